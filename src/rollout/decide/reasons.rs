//! The words for why: conditions, Events, history and metric labels use only these.

use crate::rollout::resolve;

macro_rules! reasons {
    ($($name:ident = $word:literal),* $(,)?) => {
        $(pub(super) const $name: &str = $word;)*
        /// Every reason that `decide` gives by itself.
        pub const REASONS: &[&str] = &[$($word),*];
    };
}

reasons! {
    ABORTED = "Aborted",
    ADVANCED = "StepAdvanced",
    APPROVED = "Approved",
    AWAITING_APPROVAL = "AwaitingApproval",
    BACKEND_NOT_READY = "BackendNotReady",
    BACK_TO_STABLE = "BackToStable",
    BAKED = "Baked",
    BAKING = "Baking",
    BEING_DELETED = "BeingDeleted",
    CANARY_STARTED = "CanaryStarted",
    CAN_DECIDE = "PolicyDecides",
    CAN_NOT_DECIDE = "PolicyCanNotDecide",
    CONTROL_LOSS = "ControlLoss",
    DEADLINE_TOO_SHORT = "DeadlineTooShort",
    EXTENDED = "Extended",
    FIRST_RELEASE = "FirstRelease",
    FIRST_RELEASE_HELD = "FirstReleaseHeld",
    FEW_STICKY_KEYS = "FewStickyKeys",
    FLOOR_ON_BOTH_SIDES = "FloorOnBothSides",
    INCONCLUSIVE = "Inconclusive",
    KNOWN_TOO_LATE = "KnownTooLate",
    MANY_STICKY_KEYS = "ManyStickyKeys",
    METRIC_FAILED = "MetricFailed",
    METRIC_WITHOUT_DATA = "MetricWithoutData",
    NOT_BUILT = "VariantNotBuilt",
    NO_DATA = "NoData",
    ONE_CALLER = "OneCaller",
    OPERATOR_AWAY = "OperatorAway",
    POLICY_LOST = "PolicyLost",
    PROGRESS_DEADLINE = "ProgressDeadlineExceeded",
    PROGRESSING = "Progressing",
    PROMOTED = "Promoted",
    REQUEST_IGNORED = "RequestIgnored",
    RETRIED = "Retried",
    RETURNED = "Returned",
    ROUTE_TAKEN = "RouteTaken",
    SAMPLE_RATIO_MISMATCH = "SampleRatioMismatch",
    SNAPSHOT_LOST = "SnapshotLost",
    SNAPSHOT_RESTORED = "SnapshotRestored",
    STABLE = "Stable",
    SUPERSEDED = "Superseded",
    SUSPENDED = "Suspended",
    WARMED_UP = "WarmedUp",
    WARMING_UP = "WarmingUp",
    WAITING_FOR_GATEWAYS = "WaitingForGateways",
}

/// `reason` as a label of a metric. It comes from a status, which another version or a person
/// may have written: what is no word of ours is `Other`.
pub fn reason_label(reason: &str) -> &'static str {
    let mut words = REASONS.iter().chain(&resolve::REASONS).copied();
    words.find(|word| *word == reason).unwrap_or("Other")
}
