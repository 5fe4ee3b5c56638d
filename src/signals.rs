//! Where evidence comes from.

pub mod gateways;
pub mod report;
pub mod watch;
