//! Evidence that somebody else counted, as Prometheus.

use super::stats::proportion::Share;

/// What is known of one metric from outside the gateways, by the metric's name.
pub type Externals = std::collections::BTreeMap<String, External>;

/// What is known of one metric from outside the gateways.
#[derive(Clone, Debug, PartialEq)]
pub enum External {
    /// Counts of both variants since the step's traffic was in place.
    Shares {
        /// The side that is compared with.
        stable: Share,
        /// The side under comparison.
        canary: Share,
    },
    /// A plain value of the canary.
    Value(f64),
    /// Nothing, and why.
    Missing {
        /// One CamelCase word.
        reason: &'static str,
        /// A sentence that says what to do.
        message: String,
    },
}
