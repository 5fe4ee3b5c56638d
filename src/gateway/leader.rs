//! What this gateway hears of a leader, and what it does without one: nobody judges canaries
//! then, so their users go to stable. Whoever looks is told that, and why.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Gateway, GatewayConfig, notices::Notice, routes::Route};
use crate::signals::report::Unjudged;

/// What nobody judges.
pub(super) struct WithoutJudge {
    /// Nothing is judged.
    pub all: bool,
    /// These are not.
    pub some: Arc<Unjudged>,
}

/// Operators ask each second or so: a refusal of before this is over.
const ASKED_AGAIN: Duration = Duration::from_secs(30);
/// When a leader was seen last, while none was.
const NEVER: i64 = i64::MIN;
/// The reason of a gateway that hears of no leader, as releases say it.
const CONTROL_LOSS: &str = "ControlLoss";
/// A line of the log names so many releases and namespaces.
const NAMED: usize = 10;

impl Gateway {
    /// Takes note of a question by a leader, with the releases that it does not judge; answers
    /// what had no judge until then.
    pub(super) fn asked(&self, by_leader: Option<Unjudged>) -> WithoutJudge {
        // That a gateway has just started is no loss to tell the first leader of.
        let is_first = self.leader_seen.load(Ordering::Relaxed) == NEVER && by_leader.is_some();
        let all = self.leader_is_lost() && !is_first;
        let before = self.unjudged.load_full();
        if let Some(unjudged) = by_leader {
            if *before != unjudged {
                tell_unjudged(&before, &unjudged);
                self.unjudged.store(Arc::new(unjudged));
            }
            self.leader_seen.store(self.millis(), Ordering::Relaxed);
        }
        WithoutJudge { all, some: before }
    }

    /// Nobody judges the release of this route.
    pub(super) fn control_loss(&self, route: &Route) -> bool {
        self.leader_is_lost() || self.unjudged.load().has(&route.release)
    }

    /// When a leader was seen last, as far as a gateway that starts with this configuration knows.
    pub(super) fn seen_at_start(config: &GatewayConfig) -> AtomicI64 {
        AtomicI64::new(if config.awaits_leader { NEVER } else { 0 })
    }

    /// No leader was seen for too long.
    fn leader_is_lost(&self) -> bool {
        let silent = self.millis().saturating_sub(self.leader_seen.load(Ordering::Relaxed));
        u128::try_from(silent).unwrap_or(0) > self.config.control_loss_timeout.as_millis()
    }

    /// A question for a report was refused.
    pub(super) fn refused_question(&self, why: &str) {
        self.refused_question.store(Some(Arc::new((Instant::now(), why.to_owned()))));
        if self.turned_away.is_due("report", self.now_millis()) {
            tracing::warn!("a question for a report was refused: {why}");
        }
    }

    /// What is wrong between this gateway and its operators, when nobody judges what it serves.
    /// Anybody may ask with a wrong key; while a leader asks with the right one, that is nobody's
    /// concern.
    pub(super) fn without_operator(&self) -> Vec<Notice> {
        if !self.leader_is_lost() {
            return vec![];
        }
        let refused = self.refused_question.load();
        let refused = refused.as_ref().filter(|refused| refused.0.elapsed() < ASKED_AGAIN);
        let refused = refused.map(|refused| {
            Notice::new("operator", "ReportRefused", format!("it got no report: {}", refused.1))
        });
        let since = match self.leader_seen.load(Ordering::Relaxed) {
            NEVER => "since this gateway started".to_owned(),
            _ => format!("for {} s", self.config.control_loss_timeout.as_secs()),
        };
        let message = format!(
            "no operator that leads and can write has asked for a report {since}, so all users \
             get the stable variants, and in a bake what served before: /readyz?verbose of the \
             operators (port admin) says why; it goes on by itself when one asks"
        );
        let lost = Notice::new("operator", CONTROL_LOSS, message);
        [lost].into_iter().chain(refused).collect()
    }
}

/// Logs what the leader judges no more, and what it judges again.
fn tell_unjudged(before: &Unjudged, now: &Unjudged) {
    let list = |of: [&Unjudged; 2]| {
        let releases = of[0].releases.difference(&of[1].releases).cloned();
        let namespaces = of[0].namespaces.difference(&of[1].namespaces);
        let all: Vec<String> = namespaces.map(|n| format!("{n}/*")).chain(releases).collect();
        let more = all.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        (!all.is_empty()).then(|| format!("[{}]{more}", all[..all.len().min(NAMED)].join(", ")))
    };
    if let Some(new) = list([now, before]) {
        tracing::warn!("releases that the leader does not judge (all to stable): {new}");
    }
    if let Some(over) = list([before, now]) {
        tracing::info!("releases that the leader judges again: {over}");
    }
}
