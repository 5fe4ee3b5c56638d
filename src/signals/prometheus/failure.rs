//! Why Prometheus brought no evidence: each its own reason, each with what to do.

use std::time::Duration;

use crate::analysis::external::External;

/// Every reason, for docs/reasons.md.
pub const REASONS: [&str; 17] = [
    "PrometheusNotConfigured",
    "PrometheusPending",
    "PrometheusQueryInvalid",
    "PrometheusSameQuery",
    "PrometheusUnreachable",
    "PrometheusTimeout",
    "PrometheusBadQuery",
    "PrometheusUnauthorized",
    "PrometheusUnavailable",
    "PrometheusBadAnswer",
    "PrometheusEmpty",
    "PrometheusSeveralSeries",
    "PrometheusWrongType",
    "PrometheusNotANumber",
    "PrometheusInfinite",
    "PrometheusCountsInvalid",
    "PrometheusToken",
];

/// Why there is no evidence.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failure {
    /// No address was given.
    #[error("the operator does not know Prometheus: start it with --prometheus-url")]
    NotConfigured,
    /// Nothing was asked yet under this routing, or too long ago.
    #[error("Prometheus was not asked yet since the traffic changed, or too long ago")]
    Pending,
    /// The text can not be filled in.
    #[error("{0}: correct the policy")]
    QueryInvalid(String),
    /// Both variants ask the same.
    #[error(
        "the query is the same for stable and canary, so nothing can be compared: \
         use {{{{ revision }}}}, or {{{{ backend }}}} when they differ in it"
    )]
    SameQuery,
    /// No connection.
    #[error(
        "nobody answers at --prometheus-url ({0}): is Prometheus up, and may this process reach it?"
    )]
    Unreachable(String),
    /// No answer in time.
    #[error(
        "no answer within {}: a simpler query, a recording rule, or a longer --prometheus-timeout",
        seconds(*.0)
    )]
    Timeout(Duration),
    /// 400 or 422.
    #[error("Prometheus refuses the query: {0}")]
    BadQuery(String),
    /// 401 or 403.
    #[error("Prometheus answers {0}: look at --prometheus-token-file and its rights")]
    Unauthorized(u16),
    /// The token can not be read.
    #[error(
        "--prometheus-token-file can not be used ({0}): does it exist, may the operator read it?"
    )]
    Token(String),
    /// 429, 5xx.
    #[error("Prometheus answers {0}: it is starting, overloaded or broken; asked again soon")]
    Unavailable(u16),
    /// Something that is not Prometheus.
    #[error("the answer is not one of Prometheus ({0}): is --prometheus-url right?")]
    BadAnswer(String),
    /// More than is read.
    #[error("the answer is larger than {0} bytes: put sum(...) around the query")]
    TooLarge(usize),
    /// No series.
    #[error(
        "the query finds no series: is the target scraped, are the labels right, \
         has the window two scrapes? `or vector(0)` turns nothing into zero"
    )]
    Empty,
    /// More than one series.
    #[error("the query answers {0} series and must answer one: put sum(...) around it")]
    SeveralSeries(usize),
    /// A matrix, a string or a histogram.
    #[error("the query answers a {0} and must answer a number (a scalar, or a vector of one)")]
    WrongType(String),
    /// NaN.
    #[error("the query answers NaN: often a division of zero by zero, when there was no traffic")]
    NotANumber,
    /// Infinity.
    #[error("the query answers infinity: often a division by zero")]
    Infinite,
    /// Negative, or more bad than all.
    #[error(
        "{bad} bad of {total} is no share: bad and total must count the same requests, \
         with increase(...[{{{{ window }}}}])"
    )]
    CountsInvalid {
        /// How many were bad.
        bad: f64,
        /// Of how many.
        total: f64,
    },
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

impl Failure {
    /// One CamelCase word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotConfigured => "PrometheusNotConfigured",
            Self::Pending => "PrometheusPending",
            Self::QueryInvalid(_) => "PrometheusQueryInvalid",
            Self::SameQuery => "PrometheusSameQuery",
            Self::Unreachable(_) => "PrometheusUnreachable",
            Self::Timeout(_) => "PrometheusTimeout",
            Self::BadQuery(_) => "PrometheusBadQuery",
            Self::Unauthorized(_) => "PrometheusUnauthorized",
            Self::Token(_) => "PrometheusToken",
            Self::Unavailable(_) => "PrometheusUnavailable",
            Self::BadAnswer(_) | Self::TooLarge(_) => "PrometheusBadAnswer",
            Self::Empty => "PrometheusEmpty",
            Self::SeveralSeries(_) => "PrometheusSeveralSeries",
            Self::WrongType(_) => "PrometheusWrongType",
            Self::NotANumber => "PrometheusNotANumber",
            Self::Infinite => "PrometheusInfinite",
            Self::CountsInvalid { .. } => "PrometheusCountsInvalid",
        }
    }
}

impl From<Failure> for External {
    fn from(failure: Failure) -> Self {
        Self::Missing { reason: failure.reason(), message: failure.to_string() }
    }
}
