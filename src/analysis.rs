//! The statistics: pure functions on counts. Nothing here knows what Kubernetes is.

pub mod buckets;
