//! What a gateway process tells the operator, once per interval for all releases
//! together: `GET /serinus/v1/report` on its admin address. Being asked by a leader
//! is the gateway's sign that a judge is alive.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::api::prompt_release::Counts;

/// The header with which a leader asks for a report; its value is the leader's term.
pub const LEADER_HEADER: &str = "x-serinus-leader";

/// One gateway process's state. Counts only grow while the process lives.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayReport {
    /// An id that the process drew when it started: a restart is another instance.
    pub instance: String,
    /// The state of each route, by `namespace/name` of the release.
    pub releases: BTreeMap<String, ReleaseReport>,
}

/// One release as one gateway process sees it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReleaseReport {
    /// The routing generation that requests are assigned under now.
    pub applied: i64,
    /// Everything goes to stable because no leader was seen for too long; the
    /// state before this report's own request.
    pub control_loss: bool,
    /// The canary's breaker is open.
    pub breaker_open: bool,
    /// Counts by revision, under the applied generation only. Requests whose answer
    /// ends after the generation changed still count under their own generation and are dropped from here.
    pub counts: BTreeMap<String, Counts>,
}
