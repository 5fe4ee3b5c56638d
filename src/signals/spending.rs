//! What requests have cost, by whom: as one gateway process tells it since its start
//! (`GET /serinus/v1/cost` on its admin address), and over a window of time as Prometheus
//! kept it. Processes hold nothing that must last, so a day's cost is Prometheus's to tell.
//!
//! *Why not `increase`.* It knows a series only from its first sample on, and a team's or
//! a revision's series begins with its first request: what that cost would be lost, all of
//! it when there was only one. It also extrapolates, so that requests come in fractions.
//! [`query`] takes the difference of two samples, and all of the last one where there was no
//! series before, or a larger one of a process that is gone; only a series that was reset
//! within the window is left to `increase`.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// All that one gateway process has counted.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CostReport {
    /// An id that the process drew when it started.
    pub instance: String,
    /// When it started.
    pub since: Timestamp,
    /// A line for each team, release, revision and kind of traffic.
    pub totals: Vec<Line>,
}

/// Who caused a cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Whose {
    /// The team; empty when nobody needs to say who asks.
    #[serde(default)]
    pub team: String,
    /// `namespace/name` of the release.
    #[serde(default)]
    pub release: String,
    /// The revision.
    #[serde(default)]
    pub revision: String,
    /// `users`, `shadow` (copies, on top of what users cost), or `cache` (answers from
    /// the gateway's cache: their tokens were not spent again).
    #[serde(default)]
    pub traffic: String,
}

/// A cost and whose it is.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Line {
    /// Whose it is.
    #[serde(flatten)]
    pub whose: Whose,
    /// The cost.
    #[serde(flatten)]
    pub spent: Spent,
}

/// What was spent. Counts are floats because Prometheus's are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spent {
    /// Requests whose cost is known.
    pub priced_requests: f64,
    /// Requests that may have cost something, nobody knows what: no price, or no usage.
    pub unpriced_requests: f64,
    /// Input tokens, the cached ones included.
    pub input_tokens: f64,
    /// Input tokens that the provider read from its cache.
    pub cached_input_tokens: f64,
    /// Input tokens that the provider wrote to its cache.
    pub cache_write_tokens: f64,
    /// Output tokens, reasoning included.
    pub output_tokens: f64,
    /// Output tokens that were spent on thinking.
    pub reasoning_tokens: f64,
    /// US dollars of the priced requests.
    pub usd: f64,
}

/// A field of [`Spent`], and what the gateways' counter of it is called.
pub struct Counter {
    /// Its name without prefix and suffix.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    field: fn(&mut Spent) -> &mut f64,
}

/// Every counter, in the order in which they are exported.
pub const COUNTERS: [Counter; 8] = [
    Counter {
        name: "priced_requests",
        help: "Requests whose cost is known",
        field: |s| &mut s.priced_requests,
    },
    Counter {
        name: "unpriced_requests",
        help: "Requests that may have cost something, nobody knows what",
        field: |s| &mut s.unpriced_requests,
    },
    Counter {
        name: "input_tokens",
        help: "Input tokens, cached ones included",
        field: |s| &mut s.input_tokens,
    },
    Counter {
        name: "cached_input_tokens",
        help: "Input tokens that the provider read from its cache",
        field: |s| &mut s.cached_input_tokens,
    },
    Counter {
        name: "cache_write_tokens",
        help: "Input tokens that the provider wrote to its cache",
        field: |s| &mut s.cache_write_tokens,
    },
    Counter {
        name: "output_tokens",
        help: "Output tokens, reasoning included",
        field: |s| &mut s.output_tokens,
    },
    Counter {
        name: "reasoning_tokens",
        help: "Output tokens that were spent on thinking",
        field: |s| &mut s.reasoning_tokens,
    },
    Counter { name: "cost_usd", help: "Cost in US dollars", field: |s| &mut s.usd },
];

impl Counter {
    /// Its value.
    pub fn of(&self, mut spent: Spent) -> f64 {
        *(self.field)(&mut spent)
    }

    /// Adds to it.
    pub fn add(&self, spent: &mut Spent, value: f64) {
        *(self.field)(spent) += value;
    }
}

impl Spent {
    /// Adds what somebody else spent.
    pub fn add(&mut self, other: Self) {
        for counter in &COUNTERS {
            counter.add(self, counter.of(other));
        }
    }

    /// US dollars, if the cost of any request is known or there was none.
    pub fn known_usd(&self) -> Option<f64> {
        (self.priced_requests > 0.0 || self.unpriced_requests == 0.0).then_some(self.usd)
    }
}

/// The query for what a counter grew by within the last `window`, by whom. `selector`
/// narrows the series, for example `cluster="a"`.
pub fn query(counter: &Counter, window: Duration, selector: &str) -> String {
    let series = format!("serinus_gateway_{}_total{{{selector}}}", counter.name);
    let window = format!("{}s", window.as_secs().max(1));
    let last = format!("last_over_time({series}[{window}])");
    // A scrape or two may be missing there.
    let before = format!("last_over_time({series}[15m] offset {window})");
    format!(
        "sum by (team, release, revision, traffic) (\
         ((({last} - {before}) >= 0) or {last}) unless (resets({series}[{window}]) > 0) \
         or increase({series}[{window}]))"
    )
}

/// Adds one counter's answer, a value by labels, to the lines.
pub fn collect(
    lines: &mut BTreeMap<Whose, Spent>,
    counter: &Counter,
    answer: Vec<(BTreeMap<String, String>, f64)>,
) {
    for (mut labels, value) in answer {
        let mut label = |name: &str| labels.remove(name).unwrap_or_default();
        let whose = Whose {
            team: label("team"),
            release: label("release"),
            revision: label("revision"),
            traffic: label("traffic"),
        };
        counter.add(lines.entry(whose).or_default(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_one_counter() {
        let mut spent = Spent::default();
        for (value, counter) in (1_u32..).zip(&COUNTERS) {
            counter.add(&mut spent, f64::from(value));
        }
        let fields = serde_json::to_value(spent).unwrap();
        let mut values: Vec<f64> =
            fields.as_object().unwrap().values().map(|v| v.as_f64().unwrap()).collect();
        values.sort_by(f64::total_cmp);
        assert_eq!(values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        let mut twice = spent;
        twice.add(spent);
        assert!(COUNTERS.iter().all(|c| c.of(twice) == 2.0 * c.of(spent)));
    }

    #[test]
    fn nothing_known_is_not_zero_dollars() {
        let spent = |priced, unpriced| Spent {
            priced_requests: priced,
            unpriced_requests: unpriced,
            ..Spent::default()
        };
        assert_eq!(spent(0.0, 5.0).known_usd(), None);
        assert_eq!(spent(1.0, 5.0).known_usd(), Some(0.0));
        assert_eq!(spent(0.0, 0.0).known_usd(), Some(0.0));
    }
}
