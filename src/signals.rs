//! Where evidence comes from.

pub mod report;
