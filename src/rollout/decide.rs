//! What happens next to a release.

use jiff::Timestamp;

use super::snapshot::{Plan, Snapshot};

/// Decides from the world and the time; total and without side effects.
pub fn decide(snapshot: &Snapshot, _now: Timestamp) -> Plan {
    Plan { status: snapshot.status.clone(), ..Plan::default() }
}
