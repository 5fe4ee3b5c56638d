//! The rollout: which variant a request gets, and what happens next to a release.

pub mod assignment;
