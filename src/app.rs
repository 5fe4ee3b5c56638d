//! Wiring: the command line and the processes.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this layer talks to people")]

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
pub mod operator;
pub mod policies;
pub mod process;
pub mod prometheus;
pub mod releases;
mod request_ids;
pub mod simulated_model;
pub mod snapshots;
pub mod standalone;
mod table;
mod telemetry;
pub mod tls;

/// Runs the command line.
pub fn main() -> ExitCode {
    cli::run()
}
