//! The statistics: pure functions on counts. Nothing here knows what Kubernetes is.
//!
//! [`judge::assess`] is the one entry: a test plan, the counts of both sides and the
//! looks so far go in, a verdict with its evidence for every metric comes out.

pub mod breaker;
pub mod buckets;
pub mod callers;
pub mod concentration;
pub mod evidence;
pub mod external;
pub mod judge;
pub mod plan;
pub mod sample_ratio;
pub mod simulation;
pub mod stats;
