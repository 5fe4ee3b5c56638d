//! Wiring: the command line and the processes.
#![allow(clippy::print_stdout, reason = "this layer talks to people")]

use std::process::ExitCode;

pub mod addresses;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod cost;
pub mod demo;
pub mod evidence_bar;
pub mod gateway;
pub mod identity;
pub mod limits;
pub mod migrate;
mod model_dates;
pub mod models;
mod numbers;
pub mod operator;
pub mod output;
pub mod policies;
pub mod process;
pub mod prometheus;
pub mod releases;
mod request_ids;
pub mod shell;
pub mod simulated_model;
pub mod snapshots;
pub mod standalone;
mod table;
mod telemetry;
pub mod tls;
pub mod validate;

/// Runs the command line.
pub fn main() -> ExitCode {
    // Also when it ends by a panic.
    let _last = process::WritesLast;
    end_with_the_reader();
    cli::run()
}

/// Who reads what is printed may stop: `serinus crd | head -1`. There is nothing more to say
/// then, which is no fault. The standard library has no other way than a panic.
fn end_with_the_reader() {
    let otherwise = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let says = panic.payload_as_str().unwrap_or_default();
        if says.starts_with("failed printing to stdout") {
            demo::clear_away();
            if says.contains("Broken pipe") {
                std::process::exit(0);
            }
            // A full disk behind it, for example.
            process::say(format_args!("serinus: {says}"));
            std::process::exit(1);
        }
        if !process::log_panic(panic) {
            otherwise(panic);
        }
    }));
}
