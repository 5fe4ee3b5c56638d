//! Where evidence comes from.

pub mod endpoints;
pub mod gateways;
pub mod prometheus;
pub mod report;
pub mod watch;
