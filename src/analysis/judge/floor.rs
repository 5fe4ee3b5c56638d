//! Floors: an emergency brake on the canary's own value, long before a comparison is
//! sure. While stable is beyond the same floor, that is an incident of both, and the
//! floor decides nothing: an incident of the provider rolls back nobody. The relative
//! tests go on, so a canary that is worse than a broken stable still fails.

use super::{Measured, measure::Comparison};
use crate::{
    analysis::stats::{exact::log_evidence_above, proportion::Share},
    api::{
        GoDuration,
        canary_policy::{Floor, Metric},
        prompt_release::{Sample, Unit},
    },
};

/// A floor acts with this error, however often it is looked at.
const FLOOR_ALPHA: f64 = 0.001;
/// A floor on a mean, which has no exact rule, asks for so many standard errors.
const FLOOR_Z: f64 = 4.0;

/// What a metric's floor says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BeyondFloor {
    /// The canary is surely beyond the floor and stable is not: the canary fails.
    CanaryAlone(String),
    /// Stable is beyond the floor at the same time: nothing passes, and nobody is rolled
    /// back for that.
    BothSides(String),
}

impl Measured {
    /// What the metric's floor says, when the canary is surely beyond it.
    ///
    /// Of the canary the floor asks for certainty, of stable only for its plain value: in
    /// doubt an incident of both sides is held, and the relative tests go on.
    pub(super) fn beyond_floor(&self, metric: &Metric) -> Option<BeyondFloor> {
        let floor = metric.floor.as_ref()?;
        if let Some(longest) = floor.max_duration {
            return self.beyond_longest(metric, floor, longest);
        }
        let Sample { count, value } = self.canary;
        if count < floor.min_samples {
            return None;
        }
        let beyond = |value: f64| {
            floor.max.is_some_and(|max| value > max) || floor.min.is_some_and(|min| value < min)
        };
        let sure = match self.comparison {
            Comparison::Means(mean, _) => {
                let slack =
                    FLOOR_Z * (mean.variance * self.effects.canary.own.factor / mean.n).sqrt();
                floor.max.is_some_and(|max| mean.mean - slack > max)
                    || floor.min.is_some_and(|min| mean.mean + slack < min)
            }
            _ if self.unit == Unit::Share => {
                let n = count as f64;
                let share = Share { n, bad: value * n }.deflated(self.effects.canary.own.factor);
                // Requests that the breaker let through decide alone, if there are enough of them.
                let asked = self
                    .asked_alone()
                    .filter(|(asked, _)| *asked >= floor.min_samples as f64 && beyond(value));
                let sure = |max| {
                    surely_above(share, max)
                        || asked.is_some_and(|(_, asked)| surely_above(asked, max))
                };
                floor.max.is_some_and(sure)
            }
            _ => false,
        };
        let limit = floor.max.or(floor.min).unwrap_or_default();
        let mostly = self.mostly.as_ref().map(|word| format!(" (mostly {word})"));
        let message = format!(
            "floor: {} of {count}{} is beyond {}",
            self.unit.value(value),
            mostly.unwrap_or_default(),
            self.unit.value(limit)
        );
        let stable = self.stable;
        let both = stable.count > 0 && beyond(stable.value);
        sure.then(|| match both {
            true => BeyondFloor::BothSides(format!(
                "{message}, and so is stable with {} of {}",
                self.unit.value(stable.value),
                stable.count
            )),
            false => BeyondFloor::CanaryAlone(message),
        })
    }

    /// As `beyond_floor`, of the longest latency that is tolerated at the metric's quantile.
    fn beyond_longest(
        &self,
        metric: &Metric,
        floor: &Floor,
        longest: GoDuration,
    ) -> Option<BeyondFloor> {
        let latency = metric.time_to_first_token.as_ref().or(metric.duration.as_ref())?;
        let [stable, canary] = self.floored?;
        let most = 1.0 - latency.quantile;
        if canary.n < floor.min_samples as f64 || !surely_above(canary, most) {
            return None;
        }
        let message = format!(
            "floor: {:.1} % of {:.0} requests took longer than {longest}, at most {:.1} % may",
            canary.value() * 100.0,
            canary.n,
            most * 100.0
        );
        Some(if stable.n > 0.0 && stable.value() > most {
            BeyondFloor::BothSides(format!(
                "{message}, and so did {:.1} % of stable's {:.0}",
                stable.value() * 100.0,
                stable.n
            ))
        } else {
            BeyondFloor::CanaryAlone(message)
        })
    }
}

/// Exact at any number of requests and however often it is looked at.
fn surely_above(share: Share, most: f64) -> bool {
    log_evidence_above(share, most) >= -FLOOR_ALPHA.ln()
}
