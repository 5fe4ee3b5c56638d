//! The rollout: which variant a request gets, and what happens next to a release.

pub mod assignment;
pub mod decide;
pub mod first;
pub mod invariants;
pub mod judged_time;
pub mod resolve;
pub mod retirement;
pub mod revisions;
pub mod snapshot;
pub mod stale;

pub use decide::{decidable, decide};
pub use snapshot::{
    Awaited, Deleting, Effect, Gateway, LostSnapshot, Plan, Problem, Request, ServedBefore,
    Snapshot, Target, WithoutData, namespace_of,
};
