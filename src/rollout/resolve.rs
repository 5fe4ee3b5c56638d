//! From what the spec names to what can be released, or why not. The same for the
//! cluster and for standalone mode.

use std::cmp::Reverse;

use jiff::Timestamp;

use super::snapshot::{Problem, Target, WithoutData, namespace_of};
use crate::{
    api::{
        CanaryPolicySpec, LLMDeploymentSpec, PromptReleaseSpec, PromptReleaseStatus,
        PromptVersionSpec, Variant,
        canary_policy::{Metric, Step, default_metrics},
        stored::stored_bytes,
        url::has_credentials,
    },
    cost::Prices,
    prompt::{self, revision, stands_for},
};

/// Every reason that is given here.
pub const REASONS: [&str; 7] = [
    "PromptNotFound",
    "BackendNotFound",
    "BackendInvalid",
    "PromptInvalid",
    "PolicyNotFound",
    "PolicyInvalid",
    SNAPSHOT_REFUSED,
];

/// Whether `reason` says that an object that the spec names does not exist.
pub fn is_missing(reason: &str) -> bool {
    matches!(reason, "PromptNotFound" | "BackendNotFound" | "PolicyNotFound")
}

/// What a release needs to keep is refused by the API server for what it is.
pub const SNAPSHOT_REFUSED: &str = "SnapshotRefused";

/// The variant that the spec names, under the revision by which `status` knows it. `examined`
/// is what [`examine`] said of this prompt on this backend, if that is known.
///
/// # Errors
/// Names what is missing or not valid, and what to do.
pub fn target(
    spec: &PromptReleaseSpec,
    prompt: Option<&PromptVersionSpec>,
    backend: Option<&LLMDeploymentSpec>,
    status: &PromptReleaseStatus,
    examined: Option<Result<String, Problem>>,
) -> Result<Target, Problem> {
    let missing = |reason, kind: &str, name: &str, field: &str| Problem {
        reason,
        message: format!("{kind} {name} does not exist: create it, or change {field}"),
    };
    let prompt_name = &spec.prompt_ref.name;
    let prompt = prompt.ok_or_else(|| {
        missing("PromptNotFound", "PromptVersion", prompt_name, "spec.promptRef.name")
    })?;
    let backend_name = &spec.backend_ref.name;
    let backend = backend.ok_or_else(|| {
        missing("BackendNotFound", "LLMDeployment", backend_name, "spec.backendRef.name")
    })?;
    let revision =
        examined.unwrap_or_else(|| examine((prompt_name, prompt), (backend_name, backend)))?;
    Ok(Target {
        revision: known_as(revision, status),
        variant: Variant {
            prompt_name: prompt_name.clone(),
            prompt: prompt.clone(),
            backend_name: backend_name.clone(),
            // A date is not a part of what serves, and versions that do not know the field
            // could not read a snapshot with it.
            backend: LLMDeploymentSpec { retires_on: None, ..backend.clone() },
        },
    })
}

/// Whether a prompt can be released on a backend, each with its name, and under which revision.
/// Compiles the template and the schema.
///
/// # Errors
/// Names what is not valid, and what to do.
pub fn examine(
    (prompt_name, prompt): (&str, &PromptVersionSpec),
    (backend_name, backend): (&str, &LLMDeploymentSpec),
) -> Result<String, Problem> {
    let endpoint = backend.endpoint.as_ref().map(|endpoint| endpoint.url.as_str());
    if endpoint.is_some_and(has_credentials) {
        // Of an LLMDeployment that an earlier version took: no copy of it is kept.
        return Err(Problem {
            reason: "BackendInvalid",
            message: format!(
                "the address of LLMDeployment {backend_name} holds a user or a password: create \
                 another one with the key in a Secret, named in spec.endpoint.apiKeySecretRef"
            ),
        });
    }
    prompt::check(prompt).map_err(|error| Problem {
        reason: "PromptInvalid",
        message: format!("PromptVersion {prompt_name}: {error}"),
    })?;
    Ok(revision(prompt, backend))
}

/// The most bytes that a variant may have, as the API server stores it, to be kept as a snapshot.
/// etcd takes 1.5 MiB for an object; the rest is for its metadata: names, labels, who wrote which
/// field, and the note of what is remembered of the release.
const LARGEST_VARIANT: u64 = 1_500_000;

/// The target, if a snapshot of it can be kept: in a cluster nothing is served without one.
///
/// # Errors
/// Says how large the two objects are, and what to do.
pub fn that_fits(target: Target) -> Result<Target, Problem> {
    let Variant { prompt_name, backend_name, .. } = &target.variant;
    match too_large(&target.variant) {
        None => Ok(target),
        Some(size) => Err(Problem {
            reason: "PromptInvalid",
            message: format!(
                "PromptVersion {prompt_name} and LLMDeployment {backend_name} have together {size}"
            ),
        }),
    }
}

/// Whether a prompt alone is too large for any snapshot, and what to do.
///
/// # Errors
/// It is.
pub fn prompt_that_fits(prompt: &PromptVersionSpec) -> Result<(), String> {
    too_large(prompt).map_or(Ok(()), |size| Err(format!("the prompt has {size}")))
}

/// How large it is, if it is too large for a snapshot, and what to do.
fn too_large(what: &impl serde::Serialize) -> Option<String> {
    let bytes = stored_bytes(what).unwrap_or(u64::MAX);
    (bytes > LARGEST_VARIANT).then(|| {
        format!(
            "{bytes} bytes as the API server stores it, which writes each of <, > and & in six, \
             and a ReleaseSnapshot holds {LARGEST_VARIANT} (the API server keeps objects of up to \
             1.5 MiB): make the prompt shorter"
        )
    })
}

/// What is said of a target when the API server refused `what`, a snapshot of it or of its policy.
pub fn refused(target: &Target, what: &str, why: &str) -> Problem {
    let Variant { prompt_name, backend_name, .. } = &target.variant;
    Problem {
        reason: SNAPSHOT_REFUSED,
        message: format!(
            "the API server refuses {what}, and PromptVersion {prompt_name} on LLMDeployment \
             {backend_name} is not released without it: {why}. Mend that, or name another one; it \
             is tried again within minutes. An approval that was asked for has to be asked for again"
        ),
    }
}

/// The revision as the status has it. An earlier version wrote the first ten digits: with
/// the whole revision, an upgrade would take what serves for another variant, and start a
/// canary of stable against itself.
fn known_as(revision: String, status: &PromptReleaseStatus) -> String {
    let variants = status.stable.iter().chain(&status.previous);
    let known = variants
        .chain(status.canary.iter().map(|canary| &canary.variant))
        .map(|variant| &variant.revision)
        .chain(&status.failed_revision);
    let mut known = known.filter(|known| stands_for(known, &revision));
    known.next().cloned().unwrap_or(revision)
}

/// The policy that the spec names; without a name, a careful one.
///
/// # Errors
/// The named policy does not exist.
pub fn policy(
    spec: &PromptReleaseSpec,
    policy: Option<&CanaryPolicySpec>,
) -> Result<CanaryPolicySpec, Problem> {
    match (&spec.policy_ref, policy) {
        (None, _) => Ok(careful()),
        (Some(_), Some(policy)) => Ok(policy.clone()),
        (Some(named), None) => Err(Problem {
            reason: "PolicyNotFound",
            message: format!(
                "CanaryPolicy {} does not exist: create it, or change spec.policyRef.name",
                named.name
            ),
        }),
    }
}

/// The policy of a release that names none: three steps with the default metrics.
pub fn careful() -> CanaryPolicySpec {
    let step =
        |weight, samples| Step { weight: Some(weight), samples: Some(samples), ..Step::default() };
    CanaryPolicySpec {
        steps: vec![step(5, 100), step(25, 300), step(50, 600)],
        no_data_timeout: crate::api::GoDuration::from_secs(300),
        progress_deadline: crate::api::GoDuration::from_secs(24 * 3600),
        fallback_to_stable: true,
        ..CanaryPolicySpec::default()
    }
}

/// Metrics of `policy` that can never have data between these backends (by the names of
/// their LLMDeployments); `prometheus` says why Prometheus can not be asked, if so. What
/// only traffic shows (a score that nobody sends, a model that reports no token usage)
/// is not among them.
pub fn without_data(
    policy: &CanaryPolicySpec,
    backends: &[(&str, &LLMDeploymentSpec)],
    prometheus: Option<&str>,
) -> Vec<WithoutData> {
    let unpriced = backends.iter().find(|(_, backend)| Prices::of(backend) == Prices::Unknown);
    let why = |metric: &Metric| {
        if metric.cost_per_request.is_some() {
            let (name, backend) = unpriced?;
            Some(format!(
                "nobody knows what {} costs: set spec.pricing on LLMDeployment {name}",
                backend.model
            ))
        } else {
            metric.prometheus.as_ref().and(prometheus).map(str::to_owned)
        }
    };
    let metrics = policy.analysis.metrics.iter();
    metrics.filter_map(|m| Some(WithoutData { metric: m.name.clone(), why: why(m)? })).collect()
}

/// What `policy` can measure. Of the default metrics, which nobody has asked for by name,
/// those that can never have data are left out; none of the others may be missing.
///
/// # Errors
/// Names the metrics without data, and what to do.
pub fn measurable(
    policy: &CanaryPolicySpec,
    without: &[WithoutData],
) -> Result<CanaryPolicySpec, String> {
    let mut policy = policy.clone();
    if without.is_empty() {
        return Ok(policy);
    }
    if policy.analysis.metrics == default_metrics() {
        policy.analysis.metrics.retain(|m| without.iter().all(|w| w.metric != m.name));
        return Ok(policy);
    }
    let each = without.iter().map(|w| format!("metric {} can have no data: {}", w.metric, w.why));
    let each: Vec<String> = each.collect();
    Err(format!("{}; or leave it out of the CanaryPolicy", each.join("; ")))
}

/// A release that asks for a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// `namespace/name`.
    pub release: String,
    /// When it was created, as text that sorts by time.
    pub created: String,
    /// Its status routes requests.
    pub serves: bool,
    /// Until when it served the route before, as far as anybody remembers: it was deleted and
    /// is back.
    pub served: Option<Timestamp>,
}

/// The release that served a route last, of those that do not ask for it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// `namespace/name`.
    pub release: String,
    /// Until when it served the route.
    pub until: Timestamp,
}

/// Which of several releases holds a route: the release that serves it; while none does, one
/// of the namespace that had the route last, and of these who served it last; then the
/// oldest, then the first by name. So a route belongs to somebody: who is away for a moment
/// finds it again, and who has it does not lose it to a release with an older date. The
/// answer for `release` is the holder when that is another one.
pub fn route_holder(release: &str, all: &[Claim], gone: Option<&Gone>) -> Option<String> {
    let served = all.iter().filter(|claim| claim.served.is_some());
    let last = served.min_by_key(|c| (Reverse(c.served), c.created.clone(), c.release.clone()));
    let gone = gone.filter(|gone| last.is_none_or(|last| Some(gone.until) > last.served));
    let last = gone.map(|gone| &gone.release).or(last.map(|last| &last.release));
    let namespace = last.map(|release| namespace_of(release));
    let rank = |claim: &&Claim| {
        let Claim { release, created, serves, served } = (*claim).clone();
        let elsewhere = namespace != Some(namespace_of(&release));
        (!serves, elsewhere, Reverse(served), created, release)
    };
    let holder = all.iter().min_by_key(rank)?;
    (holder.release != release).then(|| holder.release.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::prompt_release::{CanaryStatus, VariantRef};

    #[test]
    fn a_route_is_held_by_who_serves_it_then_by_who_served_it_then_by_the_older() {
        let claim = |release: &str, created: &str| Claim {
            release: release.into(),
            created: created.into(),
            serves: false,
            served: None,
        };
        let (old, young) = (claim("x/old", "2026-01-01"), claim("a/young", "2026-01-02"));
        let serves = |claim: &Claim| Claim { serves: true, ..claim.clone() };
        let until = |claim: &Claim, second| Claim {
            served: Some(Timestamp::from_second(second).unwrap()),
            ..claim.clone()
        };
        let gone = |release: &str, second| Gone {
            release: release.into(),
            until: Timestamp::from_second(second).unwrap(),
        };
        for (a, b, gone, holder) in [
            (old.clone(), young.clone(), None, "x/old"),
            (old.clone(), serves(&young), None, "a/young"),
            (old.clone(), until(&young, 1), None, "a/young"),
            (until(&old, 1), serves(&young), None, "a/young"),
            (serves(&old), serves(&young), None, "x/old"),
            (until(&old, 1), until(&young, 1), None, "x/old"),
            // Who served it last was not the older one.
            (until(&old, 1), until(&young, 2), None, "a/young"),
            (until(&old, 2), until(&young, 1), None, "x/old"),
            // Another release of the namespace that had it, before one that only waits.
            (old.clone(), young.clone(), Some(gone("a/before", 1)), "a/young"),
            (until(&old, 1), young.clone(), Some(gone("a/before", 2)), "a/young"),
            (until(&old, 2), young.clone(), Some(gone("a/before", 1)), "x/old"),
            (serves(&old), young.clone(), Some(gone("a/before", 1)), "x/old"),
            (old.clone(), young.clone(), Some(gone("third/before", 1)), "x/old"),
        ] {
            for all in [[a.clone(), b.clone()], [b.clone(), a.clone()]] {
                for own in ["x/old", "a/young"] {
                    let other = (own != holder).then(|| holder.to_owned());
                    assert_eq!(route_holder(own, &all, gone.as_ref()), other, "{all:?} {gone:?}");
                }
            }
        }
    }

    #[test]
    fn a_metric_that_can_have_no_data_is_named_or_left_out_of_the_defaults() {
        use crate::api::canary_policy::{Analysis, Margin, Nothing, PrometheusQuery};
        let known = LLMDeploymentSpec {
            provider: "openai".into(),
            model: "gpt-4o-mini".into(),
            ..LLMDeploymentSpec::default()
        };
        let own = LLMDeploymentSpec {
            provider: "own".into(),
            model: "ours-7b".into(),
            ..LLMDeploymentSpec::default()
        };
        let names = |policy: &CanaryPolicySpec| {
            policy.analysis.metrics.iter().map(|m| m.name.clone()).collect::<Vec<_>>()
        };
        let standard = careful();
        assert_eq!(without_data(&standard, &[("a", &known), ("b", &known)], None), vec![]);
        let without = without_data(&standard, &[("a", &known), ("b", &own)], None);
        assert!(without[0].why.contains("LLMDeployment b"), "{without:?}");
        let left = measurable(&standard, &without).unwrap();
        assert_eq!(names(&left), ["errors", "ttft", "duration", "checks"]);

        let metric = |name: &str| Metric {
            name: name.into(),
            margin: Some(Margin { harm: 0.1, accept: 0.5 }),
            ..Metric::default()
        };
        let asked = CanaryPolicySpec {
            analysis: Analysis {
                metrics: vec![
                    Metric { cost_per_request: Some(Nothing {}), ..metric("money") },
                    Metric { prometheus: Some(PrometheusQuery::default()), ..metric("queue") },
                ],
                ..Analysis::default()
            },
            ..careful()
        };
        let without = without_data(&asked, &[("a", &own)], Some("no --prometheus-url"));
        let text = measurable(&asked, &without).unwrap_err();
        for part in ["money", "spec.pricing", "queue", "--prometheus-url", "CanaryPolicy"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn a_variant_that_is_too_large_for_a_snapshot_is_refused_with_its_size() {
        let overhead = serde_json::to_string(&Variant::default()).unwrap().len() + 1;
        let room = LARGEST_VARIANT as usize - overhead;
        // What the API server stores in six bytes counts six.
        for (piece, stored) in
            [("x", 1), ("<", 6), (">", 6), ("&", 6), ("\u{2028}", 6), ("\u{2029}", 6), ("é", 2)]
        {
            let of = |count: usize| {
                let prompt = PromptVersionSpec { prompt: piece.repeat(count), ..<_>::default() };
                let alone = prompt_that_fits(&prompt);
                let variant = Variant { prompt, prompt_name: "p".into(), ..Variant::default() };
                (that_fits(Target { variant, ..Target::default() }), alone)
            };
            let largest = room / stored;
            let (fits, alone) = of(largest);
            assert!(fits.is_ok() && alone.is_ok(), "{largest} times {piece}");
            let problem = of(largest + 1).0.unwrap_err();
            assert_eq!(problem.reason, "PromptInvalid");
            let size = (overhead + (largest + 1) * stored).to_string();
            for part in ["PromptVersion p ", &size, "make the prompt shorter"] {
                assert!(problem.message.contains(part), "{part} is not in {}", problem.message);
            }
            // A prompt that fits with no backend is told so by itself.
            let (_, alone) = of(LARGEST_VARIANT as usize / stored + 1);
            assert!(alone.unwrap_err().contains("make the prompt shorter"));
        }
    }

    /// What is stored beside the variant: the longest note, as text within JSON, and metadata.
    #[test]
    fn the_longest_note_of_a_release_fits_beside_the_largest_variant() {
        use crate::api::{
            prompt_release::{HandledRequest, HistoryEntry, Outcome},
            snapshot::{EarlierRoute, Remembered},
        };
        // Each of its bytes takes seven as text within text.
        let worst = |length: usize| "\u{1}".repeat(length);
        let name = |length: usize| "n".repeat(length);
        let variant = |revision: &str| VariantRef {
            revision: revision.into(),
            prompt: name(253),
            backend: name(253),
        };
        let entry = |revision: &str| HistoryEntry {
            variant: variant(revision),
            outcome: Outcome::RolledBack,
            reason: name(64),
            message: worst(2_000),
            at: Timestamp::MAX,
            requests: vec![],
            evidence: vec![],
        };
        let request = || HandledRequest {
            action: worst(16),
            value: worst(512),
            revision: worst(64),
            by: worst(256),
            at: Timestamp::MAX,
            accepted: false,
            message: worst(512),
        };
        let (stable, previous, failed) = (name(64), "e".repeat(64), "f".repeat(64));
        let status = PromptReleaseStatus {
            stable: Some(variant(&stable)),
            previous: Some(variant(&previous)),
            failed_revision: Some(failed.clone()),
            history: vec![entry(&previous), entry(&stable), entry(&failed)],
            requests: (0..4).map(|_| request()).collect(),
            ..PromptReleaseStatus::default()
        };
        let mut note = Remembered::of(name(128), Timestamp::MAX, &status).unwrap();
        (note.uid, note.written_for) = (Some(name(36)), Some(name(317)));
        for i in 0..20 {
            let left = EarlierRoute {
                route: format!("{i}{}", name(128)),
                revision: name(64),
                failed: Some(name(64)),
                until: Timestamp::MAX,
            };
            EarlierRoute::add(&mut note.earlier, left);
        }
        let bytes = stored_bytes(&serde_json::to_string(&note).unwrap()).unwrap();
        // Names, labels, and for each of ten writers which fields it has written.
        let metadata = 12_000;
        assert!(LARGEST_VARIANT + bytes + metadata < 3 << 19, "{bytes}");
    }

    #[test]
    fn what_is_missing_is_named_with_the_field_to_change() {
        let spec = PromptReleaseSpec {
            prompt_ref: "p".into(),
            backend_ref: "b".into(),
            policy_ref: Some("c".into()),
            ..PromptReleaseSpec::default()
        };
        let status = PromptReleaseStatus::default();
        let problem = target(&spec, None, None, &status, None).unwrap_err();
        assert_eq!(problem.reason, "PromptNotFound");
        assert!(problem.message.contains("spec.promptRef.name"));
        let problem =
            target(&spec, Some(&PromptVersionSpec::default()), None, &status, None).unwrap_err();
        assert_eq!(problem.reason, "BackendNotFound");
        assert_eq!(policy(&spec, None).unwrap_err().reason, "PolicyNotFound");
    }

    #[test]
    fn a_variant_that_an_earlier_version_released_keeps_its_revision_of_ten_digits() {
        let (spec, prompt) = (PromptReleaseSpec::default(), PromptVersionSpec::default());
        let backend = LLMDeploymentSpec::default();
        let named = |status: &PromptReleaseStatus| {
            target(&spec, Some(&prompt), Some(&backend), status, None).unwrap().revision
        };
        let whole = revision(&prompt, &backend);
        let old = whole[..10].to_owned();
        let variant = |revision: &str| VariantRef { revision: revision.into(), ..<_>::default() };
        let canary = CanaryStatus { variant: variant(&old), ..CanaryStatus::default() };
        let knowing = PromptReleaseStatus::default;
        for status in [
            PromptReleaseStatus { stable: Some(variant(&old)), ..knowing() },
            PromptReleaseStatus { previous: Some(variant(&old)), ..knowing() },
            PromptReleaseStatus { canary: Some(canary), ..knowing() },
            PromptReleaseStatus { failed_revision: Some(old.clone()), ..knowing() },
        ] {
            assert_eq!(named(&status), old);
        }
        assert_eq!(named(&knowing()), whole);
        for other in ["0123456789", &whole[..9], &whole[..11], ""] {
            let status = PromptReleaseStatus { stable: Some(variant(other)), ..knowing() };
            assert_eq!(named(&status), whole, "{other}");
        }
    }
}
