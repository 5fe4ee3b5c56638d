//! What came with a copy of another release's objects: a restore into another namespace. The
//! note that was written there claims nothing here. What failed there is no first release for all
//! users here, and what was asked for there is not carried out here.

use super::{draft::Draft, reasons, requests};
use crate::{
    api::prompt_release::{HistoryEntry, Outcome, VariantRef},
    rollout::stale::tells_of,
};

/// Notes both, as long as the release has served nothing.
pub(super) fn tell(draft: &mut Draft<'_>) {
    let Some(copied) = &draft.snapshot.copied else { return };
    if draft.status.stable.is_some() {
        return;
    }
    requests::recall_from(draft, copied);
    let Some(failed) = &copied.failed else { return };
    let is_it = |entry: &&HistoryEntry| tells_of(entry, failed);
    // Once: a person may have asked for a retry since.
    if draft.status.history.iter().any(|entry| is_it(&entry)) {
        return;
    }
    let known = copied.history.iter().rfind(is_it);
    let whose = copied.written_for.as_deref().unwrap_or("another release");
    let why = known.map(|entry| format!(": {}", entry.message)).unwrap_or_default();
    let variant = || VariantRef { revision: failed.clone(), ..VariantRef::default() };
    draft.status.history.push(HistoryEntry {
        variant: known.map_or_else(variant, |entry| entry.variant.clone()),
        outcome: known.map_or(Outcome::RolledBack, |entry| entry.outcome),
        reason: known.map_or_else(|| reasons::METRIC_FAILED.into(), |entry| entry.reason.clone()),
        message: format!("it failed in {whose}, whose ReleaseSnapshots were copied here{why}"),
        at: known.map_or(draft.now, |entry| entry.at),
        requests: vec![],
        evidence: vec![],
    });
    draft.status.failed_revision = Some(failed.clone());
}
