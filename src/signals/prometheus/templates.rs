//! Ready-made counts from the counters of vLLM, SGLang and TGI.
//!
//! Names and bounds are those of the engines' sources: vLLM `v1/metrics/loggers.py`,
//! SGLang `srt/observability/metrics_collector.py`, TGI `router/src/server.rs`. Engines
//! that were started with bounds of their own have no such bucket, and the query is empty.
//!
//! A share is tested as if its observations were independent, so every template counts
//! requests. Gaps between tokens of one answer are not independent: where an engine has
//! only those (SGLang), each request counts once, with the share of slow gaps. That is
//! the most careful reading, as if all gaps of one answer were the same.

use super::{failure::Failure, questions::Counts};
use crate::api::{GoDuration, canary_policy::EngineTemplate};

/// How a variant's series are found unless the policy says otherwise: by the labels that
/// Prometheus gives to the endpoints of a Service with the backend's name.
const SELECTOR: &str = r#"namespace="{{ namespace }}",service="{{ backend }}""#;

const VLLM_FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const VLLM_PER_TOKEN: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
const VLLM_REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
/// First token and whole request; the request's histogram goes on, differently by version.
const SGLANG_REQUEST: &[f64] = &[
    0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 200.0,
    400.0,
];
const SGLANG_GAP: &[f64] = &[
    0.002, 0.004, 0.006, 0.008, 0.010, 0.015, 0.020, 0.025, 0.030, 0.035, 0.040, 0.060, 0.080,
    0.100, 0.200, 0.400, 0.600, 0.800, 1.0, 2.0, 4.0, 6.0, 8.0,
];

/// TGI: 35 bounds, each half as much again as the one before, added up the way TGI does
/// so that the digits are the same.
fn tgi() -> Vec<f64> {
    let mut bound = 0.0001;
    (0..35)
        .map(|_| {
            bound *= 1.5;
            bound
        })
        .collect()
}

/// What a template counts.
enum Shape {
    /// Observations above a bound of a histogram.
    Slow { histogram: &'static str, bounds: Vec<f64> },
    /// The same of gaps between tokens, one per request.
    SlowGaps { histogram: &'static str, requests: &'static str, bounds: Vec<f64> },
    /// Two counters, of which the first is missing until something was bad.
    Failed { bad: &'static str, total: &'static str },
}

fn shape(template: EngineTemplate) -> Shape {
    use EngineTemplate as T;
    let slow = |histogram, bounds: &[f64]| Shape::Slow { histogram, bounds: bounds.to_vec() };
    match template {
        T::VllmTimeToFirstToken => slow("vllm:time_to_first_token_seconds", VLLM_FIRST_TOKEN),
        T::VllmTimePerOutputToken => {
            slow("vllm:request_time_per_output_token_seconds", VLLM_PER_TOKEN)
        }
        T::VllmE2eLatency => slow("vllm:e2e_request_latency_seconds", VLLM_REQUEST),
        T::VllmAborts => Shape::Failed {
            bad: r#"sum(increase(vllm:request_success_total{SELECTOR,finished_reason=~"abort|error"}[{{ window }}]))"#,
            total: "sum(increase(vllm:request_success_total{SELECTOR}[{{ window }}]))",
        },
        T::SglangTimeToFirstToken => slow("sglang:time_to_first_token_seconds", SGLANG_REQUEST),
        T::SglangInterTokenLatency => Shape::SlowGaps {
            histogram: "sglang:inter_token_latency_seconds",
            requests: "sglang:e2e_request_latency_seconds_count",
            bounds: SGLANG_GAP.to_vec(),
        },
        T::SglangE2eLatency => slow("sglang:e2e_request_latency_seconds", SGLANG_REQUEST),
        // Aborted requests are not among the finished ones.
        T::SglangAborts => Shape::Failed {
            bad: "sum(increase(sglang:num_aborted_requests_total{SELECTOR}[{{ window }}]))",
            total: "sum(increase(sglang:num_requests_total{SELECTOR}[{{ window }}])) + (sum(increase(sglang:num_aborted_requests_total{SELECTOR}[{{ window }}])) or vector(0))",
        },
        T::TgiTimePerOutputToken => {
            slow("tgi_request_mean_time_per_token_duration", tgi().as_slice())
        }
        T::TgiE2eLatency => slow("tgi_request_duration", tgi().as_slice()),
        T::TgiErrors => Shape::Failed {
            bad: "sum(increase(tgi_request_failure{SELECTOR}[{{ window }}]))",
            total: "sum(increase(tgi_request_count{SELECTOR}[{{ window }}]))",
        },
    }
}

/// The bucket bound in seconds that stands for `slower`: the next at or above it.
///
/// # Errors
/// It is beyond the last bound.
pub(super) fn bound(template: EngineTemplate, slower: GoDuration) -> Result<f64, Failure> {
    let bounds = match shape(template) {
        Shape::Slow { bounds, .. } | Shape::SlowGaps { bounds, .. } => bounds,
        Shape::Failed { .. } => vec![],
    };
    let wanted = slower.0.as_secs_f64();
    let last = bounds.last().copied().unwrap_or_default();
    bounds.into_iter().find(|b| *b >= wanted * (1.0 - 1e-9)).ok_or_else(|| {
        Failure::QueryInvalid(format!(
            "slowerThan {slower} is beyond the last bucket bound {last} s"
        ))
    })
}

/// A bound as a matcher. The same bound is `2` to one exporter and `2.0` to another.
fn le(bound: f64) -> String {
    let digits = bound.to_string().replace('.', r"\\.");
    if bound.fract() == 0.0 {
        format!(r#"le=~"{digits}(\\.0)?""#)
    } else {
        format!(r#"le=~"{digits}""#)
    }
}

/// The two counts of a template, before variables are filled in.
///
/// # Errors
/// `slowerThan` is missing or beyond the last bucket bound.
pub(super) fn expand(
    template: EngineTemplate,
    slower: Option<GoDuration>,
    selector: Option<&str>,
) -> Result<Counts, Failure> {
    let selector = selector.unwrap_or(SELECTOR);
    let matcher = || {
        let slower = slower
            .ok_or_else(|| Failure::QueryInvalid("the template needs slowerThan".to_owned()))?;
        bound(template, slower).map(le)
    };
    let increase = |series: &str, more: &str| {
        format!("sum(increase({series}{{{selector}{more}}}[{{{{ window }}}}]))")
    };
    Ok(match shape(template) {
        Shape::Slow { histogram, .. } => {
            let total = increase(&format!("{histogram}_count"), "");
            let fast = increase(&format!("{histogram}_bucket"), &format!(",{}", matcher()?));
            Counts { bad: format!("{total} - {fast}"), total }
        }
        Shape::SlowGaps { histogram, requests, .. } => {
            let total = increase(requests, "");
            let fast = increase(&format!("{histogram}_bucket"), &format!(",{}", matcher()?));
            let gaps = increase(&format!("{histogram}_count"), "");
            Counts { bad: format!("{total} * (1 - {fast} / {gaps})"), total }
        }
        Shape::Failed { bad, total } => Counts {
            bad: format!("{} or vector(0)", bad.replace("SELECTOR", selector)),
            total: total.replace("SELECTOR", selector),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(text: &str) -> GoDuration {
        text.parse().unwrap()
    }

    #[test]
    fn a_latency_counts_what_is_beyond_the_next_bound() {
        let counts = expand(EngineTemplate::VllmTimeToFirstToken, Some(secs("2s")), None).unwrap();
        let labels = r#"namespace="{{ namespace }}",service="{{ backend }}""#;
        let all = format!(
            "sum(increase(vllm:time_to_first_token_seconds_count{{{labels}}}[{{{{ window }}}}]))"
        );
        assert_eq!(counts.total, all);
        assert_eq!(
            counts.bad,
            format!(
                r#"{all} - sum(increase(vllm:time_to_first_token_seconds_bucket{{{labels},le=~"2\\.5"}}[{{{{ window }}}}]))"#
            )
        );
    }

    #[test]
    fn bounds_are_picked_upwards_and_end() {
        use EngineTemplate as T;
        assert_eq!(bound(T::VllmE2eLatency, secs("2s")).unwrap(), 2.0);
        assert_eq!(bound(T::SglangInterTokenLatency, secs("50ms")).unwrap(), 0.06);
        // 0.0001 * 1.5^n, with the digits that TGI prints.
        assert_eq!(
            le(bound(T::TgiE2eLatency, secs("0.15ms")).unwrap()),
            r#"le=~"0\\.00015000000000000001""#
        );
        let failure = bound(T::SglangE2eLatency, secs("1h")).unwrap_err();
        assert!(failure.to_string().contains("400 s"), "{failure}");
        assert_eq!(le(2.0), r#"le=~"2(\\.0)?""#);
    }

    #[test]
    fn the_selector_can_be_ones_own() {
        let counts =
            expand(EngineTemplate::SglangAborts, None, Some(r#"job="{{ model }}""#)).unwrap();
        assert!(counts.bad.contains(r#"{job="{{ model }}"}"#), "{}", counts.bad);
        assert!(counts.bad.ends_with("or vector(0)"));
        assert!(!counts.total.contains("SELECTOR"));
    }
}
