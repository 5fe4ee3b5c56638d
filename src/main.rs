//! The `serinus` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    serinus::app::main()
}
