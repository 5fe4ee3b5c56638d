//! What is asked for one release: from its status and its policy to texts.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    failure::Failure,
    templates,
    text::{Side, fill, window},
};
use crate::api::{
    CanaryPolicySpec, PromptReleaseStatus,
    canary_policy::{Metric, PrometheusQuery},
    prompt_release::VariantRef,
};

/// What is asked for one release under one routing.
#[derive(Clone, Debug, PartialEq)]
pub struct Questions {
    /// `namespace/name`.
    pub release: String,
    /// The routing generation that the answers belong to.
    pub generation: i64,
    /// How often its policy wants evidence.
    pub interval: Duration,
    /// By metric name.
    pub metrics: Vec<(String, Result<Question, Failure>)>,
}

/// What is asked for one metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Counts of both variants.
    Shares {
        /// Of the side that is compared with; none when it has no traffic.
        stable: Option<Counts>,
        /// Of the side under comparison.
        canary: Counts,
    },
    /// A value of the canary.
    Value(String),
}

/// The texts of two counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// How many were bad.
    pub bad: String,
    /// Of how many.
    pub total: String,
}

/// The metrics of a policy that Prometheus answers.
pub fn asked(policy: &CanaryPolicySpec) -> impl Iterator<Item = (&Metric, &PrometheusQuery)> {
    policy.analysis.metrics.iter().filter_map(|m| Some((m, m.prometheus.as_ref()?)))
}

/// What to ask for a release `namespace/name`; nothing while no canary has its traffic.
/// `model` answers a variant's model name.
pub fn questions(
    namespace: &str,
    name: &str,
    status: &PromptReleaseStatus,
    policy: &CanaryPolicySpec,
    model: impl Fn(&VariantRef) -> String,
    now: Timestamp,
) -> Option<Questions> {
    asked(policy).next()?;
    let canary = status.canary.as_ref()?;
    let window = window(canary.confirmed_at?, now);
    // While baking, the variant that served before is the one that is compared with.
    let control = status.previous.as_ref().or(status.stable.as_ref())?;
    let alone = status.previous.is_some() && policy.bake.holdback == 0;
    let side = |variant: &VariantRef| Side {
        namespace: namespace.to_owned(),
        release: name.to_owned(),
        revision: variant.revision.clone(),
        backend: variant.backend.clone(),
        model: model(variant),
        window: window.clone(),
    };
    let (control, canary) = (side(control), side(&canary.variant));
    let metrics = asked(policy)
        .map(|(metric, query)| {
            (metric.name.clone(), question(query, (!alone).then_some(&control), &canary))
        })
        .collect();
    Some(Questions {
        release: format!("{namespace}/{name}"),
        generation: status.routing.generation,
        interval: policy.analysis.interval.0,
        metrics,
    })
}

fn question(
    query: &PrometheusQuery,
    control: Option<&Side>,
    canary: &Side,
) -> Result<Question, Failure> {
    if let Some(value) = &query.value {
        return Ok(Question::Value(fill(value, canary)?));
    }
    let texts = counts(query)?;
    let of = |side: &Side| {
        Ok::<_, Failure>(Counts { bad: fill(&texts.bad, side)?, total: fill(&texts.total, side)? })
    };
    let (stable, canary) = (control.map(of).transpose()?, of(canary)?);
    match &stable {
        Some(s) if s.bad == canary.bad || s.total == canary.total => Err(Failure::SameQuery),
        _ => Ok(Question::Shares { stable, canary }),
    }
}

/// The two counts that a query asks for, before variables are filled in.
fn counts(query: &PrometheusQuery) -> Result<Counts, Failure> {
    match (query.template, &query.bad, &query.total) {
        (Some(template), ..) => {
            templates::expand(template, query.slower_than, query.selector.as_deref())
        }
        (None, Some(bad), Some(total)) => Ok(Counts { bad: bad.clone(), total: total.clone() }),
        _ => Err(Failure::QueryInvalid("it needs bad and total, value, or template".to_owned())),
    }
}

/// What a person should know about the texts of a policy before it is used: the bucket
/// bounds that stand in for `slowerThan`.
///
/// # Errors
/// A text can not be filled in; names the metric.
pub fn notes(policy: &CanaryPolicySpec) -> Result<Vec<String>, String> {
    let mut notes = vec![];
    for (metric, query) in asked(policy) {
        let named = |failure: Failure| format!("{}: {failure}", metric.name);
        let (one, other) = (Side::default(), Side { revision: "1".into(), ..Side::default() });
        // Whether two variants ask the same is known when there are two.
        if let Err(failure @ Failure::QueryInvalid(_)) = question(query, Some(&one), &other) {
            return Err(named(failure));
        }
        if let (Some(template), Some(slower)) = (query.template, query.slower_than) {
            let bound = templates::bound(template, slower).map_err(named)?;
            if (bound - slower.0.as_secs_f64()).abs() > 1e-9 {
                notes.push(format!(
                    "{}: slowerThan {slower} is judged at the bucket bound {bound} s",
                    metric.name
                ));
            }
        }
    }
    Ok(notes)
}
