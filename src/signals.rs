//! Where evidence comes from.

pub mod gateways;
pub mod prometheus;
pub mod report;
pub mod spending;
pub mod watch;
