//! From what the spec names to what can be released, or why not. The same for the
//! cluster and for standalone mode.

use super::snapshot::{Problem, Target};
use crate::{
    api::{
        CanaryPolicySpec, LLMDeploymentSpec, PromptReleaseSpec, PromptVersionSpec, Variant,
        canary_policy::Step,
    },
    prompt::{Template, revision},
};

/// The variant that the spec names.
///
/// # Errors
/// Names what is missing or not valid, and what to do.
pub fn target(
    spec: &PromptReleaseSpec,
    prompt: Option<&PromptVersionSpec>,
    backend: Option<&LLMDeploymentSpec>,
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
    Template::compile(prompt).map_err(|error| Problem {
        reason: "PromptInvalid",
        message: format!("PromptVersion {prompt_name}: {error}"),
    })?;
    Ok(Target {
        revision: revision(prompt, backend),
        variant: Variant {
            prompt_name: prompt_name.clone(),
            prompt: prompt.clone(),
            backend_name: backend_name.clone(),
            backend: backend.clone(),
        },
    })
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
        steps: vec![step(5, 300), step(25, 1000), step(50, 2000)],
        no_data_timeout: crate::api::GoDuration::from_secs(300),
        progress_deadline: crate::api::GoDuration::from_secs(24 * 3600),
        fallback_to_stable: true,
        ..CanaryPolicySpec::default()
    }
}

/// Which of several releases holds a route: the oldest, then the first by name. Each
/// is (route, creation time, `namespace/name`); the answer for `release` is the holder
/// when that is another one.
pub fn route_holder<'a>(
    release: &str,
    route: &str,
    all: impl Iterator<Item = (&'a str, &'a str, &'a str)>,
) -> Option<String> {
    let holder =
        all.filter(|(r, ..)| *r == route).map(|(_, created, name)| (created, name)).min()?;
    (holder.1 != release).then(|| holder.1.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_release_holds_the_route_whatever_the_order() {
        let (old, young) = (("r", "2026-01-01", "x/old"), ("r", "2026-01-02", "a/young"));
        for all in [[old, young], [young, old]] {
            assert_eq!(route_holder("a/young", "r", all.into_iter()), Some("x/old".into()));
            assert_eq!(route_holder("x/old", "r", all.into_iter()), None);
        }
    }

    #[test]
    fn what_is_missing_is_named_with_the_field_to_change() {
        let spec = PromptReleaseSpec {
            prompt_ref: "p".into(),
            backend_ref: "b".into(),
            policy_ref: Some("c".into()),
            ..PromptReleaseSpec::default()
        };
        let problem = target(&spec, None, None).unwrap_err();
        assert_eq!(problem.reason, "PromptNotFound");
        assert!(problem.message.contains("spec.promptRef.name"));
        let problem = target(&spec, Some(&PromptVersionSpec::default()), None).unwrap_err();
        assert_eq!(problem.reason, "BackendNotFound");
        assert_eq!(policy(&spec, None).unwrap_err().reason, "PolicyNotFound");
    }
}
