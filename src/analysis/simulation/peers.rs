//! How other projects judge a canary, so that a simulation can compare them with
//! Serinus on the same streams of requests.
//!
//! Each rule sees one metric, a share of bad requests, one interval at a time. It is
//! rebuilt from what the project's source does, not from what its users expect of it.
//! No code is taken over. Defaults are the values of the project's own documentation.
//!
//! | rule | source | what decides |
//! |---|---|---|
//! | [`ArgoRollouts`] | argoproj/argo-rollouts, August 2026 | the canary's share in one interval against a fixed limit; more than `failureLimit` failures roll back |
//! | [`Flagger`] | fluxcd/flagger v1.44.0 | the canary's share in one interval against a fixed limit; `threshold` failed checks roll back |
//! | [`Kayenta`] | spinnaker/kayenta, April 2025 | a Mann-Whitney U test of the canary's shares against the baseline's |
//!
//! None of the three weighs an interval by its number of requests: 1 bad of 10 is
//! 10 %, as is 100 of 1,000.
//!
//! # A fair comparison
//!
//! A rule that rolls back more often finds more bad canaries. So compare at the same
//! rate of false rollbacks: scan one threshold of each rule on streams without a
//! difference, keep the value that meets the wanted rate, then compare on bad
//! streams. The threshold to scan is a public field, and `tuned` sets it:
//! [`ArgoRollouts::max_bad_share`], [`Flagger::max_bad_share`] and
//! [`Kayenta::allowed_increase`]. The tuned value fits one base rate of errors only;
//! that a user has to know this rate is a property of fixed limits.
//!
//! # What is left out
//!
//! Delays, restarts and outages of the peers, their web hooks, several metrics
//! together. A query of the peers that filters for failures (or for successes) gives
//! an empty answer while no such request was ever seen; here it gives 0 (or 1).

mod argo_rollouts;
mod flagger;
mod kayenta;
pub mod mann_whitney;

pub use argo_rollouts::ArgoRollouts;
pub use flagger::Flagger;
pub use kayenta::{Kayenta, Missing};

/// What a rule sees of one interval between two looks: new counts only.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Interval {
    pub stable: Side,
    pub canary: Side,
}

/// One side's requests of an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Side {
    /// All requests.
    pub n: u64,
    /// Those that count against the side: errors, failed checks, slower than T.
    pub bad: u64,
}

impl Side {
    /// The share of bad requests, 0 to 1. NaN without requests, as a query that
    /// divides one rate by another answers.
    pub fn bad_share(&self) -> f64 {
        self.bad as f64 / self.n as f64
    }
}

/// What a rule says after a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Another interval, please.
    Continue,
    /// The canary is withdrawn.
    Rollback,
    /// The canary becomes stable.
    Promote,
    /// The rule has stopped, or the horizon is reached, without an answer.
    Inconclusive,
}

/// A way to judge a canary. After any other answer than [`Decision::Continue`] the
/// canary is over: call [`Rule::reset`] before the next look.
pub trait Rule {
    /// A name with the settings that matter, for tables and legends.
    fn name(&self) -> String;
    /// Forgets everything: a new canary.
    fn reset(&mut self);
    /// One more interval of one metric. `last` says that the horizon is reached.
    fn look(&mut self, interval: &Interval, last: bool) -> Decision;
}

/// A share as a person writes it: `5 %`, `0.25 %`.
fn percent(share: f64) -> String {
    let text = format!("{:.2}", 100.0 * share);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod testing {
    use super::{Decision, Interval, Rule, Side};

    /// An interval in which stable had 5 bad of 100.
    pub fn canary(bad: u64, n: u64) -> Interval {
        Interval { stable: Side { n: 100, bad: 5 }, canary: Side { n, bad } }
    }

    /// The first decision, and the number of looks until then. The stream's last
    /// interval is the horizon.
    pub fn run(rule: &mut dyn Rule, stream: &[Interval]) -> (Decision, usize) {
        rule.reset();
        for (i, interval) in stream.iter().enumerate() {
            let decision = rule.look(interval, i + 1 == stream.len());
            if decision != Decision::Continue {
                return (decision, i + 1);
            }
        }
        (Decision::Continue, stream.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_requests_have_no_share() {
        assert!(Side { n: 0, bad: 0 }.bad_share().is_nan());
        assert_eq!(Side { n: 20, bad: 1 }.bad_share(), 0.05);
    }

    #[test]
    fn percents_are_short() {
        assert_eq!(percent(0.05), "5 %");
        assert_eq!(percent(0.0025), "0.25 %");
        assert_eq!(percent(0.1), "10 %");
    }
}
