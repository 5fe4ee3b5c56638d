//! What a decision needs of a release, and what the gateway needs of all.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::Timestamp;

use super::{Claims, Standalone, key, namespace, secrets, state::Kept};
use crate::{
    api::{
        CanaryPolicySpec, LLMDeploymentSpec, PromptRelease, PromptReleaseSpec,
        llm_deployment::{SecretKeyRef, key_in_words},
        snapshot::{PackedVariant, Saved},
    },
    gateway::routes::{Fault, Faults, Grants, ReleaseInput, World},
    rollout::{
        Problem, Request, ServedBefore, Snapshot, WithoutData,
        resolve::{self, Gone},
        snapshot::namespace_of,
    },
    signals::report::{GatewayReport, ReleaseReport},
};

impl Standalone {
    pub(super) fn observe(
        &self,
        release: &PromptRelease,
        claims: &Claims,
        report: &GatewayReport,
        now: Timestamp,
    ) -> Snapshot {
        let key = key(release);
        let spec = &release.spec;
        let kept = self.state.get(&key);
        let status = kept.map(|k| k.status.clone()).unwrap_or_default();
        let namespace = namespace(release);
        let backend = self.manifests.backend(&namespace, &spec.backend_ref.name);
        let target = resolve::target(
            spec,
            self.manifests.prompt(&namespace, &spec.prompt_ref.name),
            backend,
            &status,
            None,
        )
        .map_err(|problem| self.or_invalid(problem, &namespace, spec));
        let policy_name = spec.policy_ref.as_ref().map_or("", |p| p.name.as_str());
        let seen = report.releases.get(&key);
        let route = release.route();
        let claims = claims.get(&route).map_or(&[][..], Vec::as_slice);
        let several = claims.len() > 1;
        let gone = several.then(|| self.state.served_before(&route, &key)).flatten();
        let gone = gone.map(|(by, last)| Gone { release: by.to_owned(), until: last.end() });
        let route_held_by = resolve::route_holder(&key, claims, gone.as_ref());
        let mut not_ready = BTreeMap::new();
        if let (Ok(target), Some(backend)) = (&target, backend)
            && let Some(why) = self.unusable(&namespace, backend)
        {
            not_ready.insert(target.revision.clone(), why);
        }
        let running_policy = self.running_policy(&key).map(Arc::new);
        let policy = resolve::policy(spec, self.manifests.policy(&namespace, policy_name))
            .map_err(|problem| self.or_invalid(problem, &namespace, spec));
        let without_data = self.without_data(&namespace, spec, &key, &policy);
        let external = running_policy
            .as_ref()
            .map(|policy| self.prometheus.of(&key, status.routing.generation, policy, now));
        Snapshot {
            generation: kept.map_or(1, |k| k.generation),
            spec: spec.clone(),
            requests: release
                .metadata
                .annotations
                .as_ref()
                .map(Request::from_annotations)
                .unwrap_or_default(),
            undecidable: self.manifests.undecidable(&namespace, policy_name),
            policy,
            without_data,
            running_policy,
            route_held_by,
            // The state of a release outlives its manifest under the release's own name.
            remembered: None,
            awaited: None,
            copied: None,
            beside: vec![],
            noted: 0,
            served_before: self.served_before(&key, kept, &route),
            // Content is in the state file, together with the status that names it.
            lost: vec![],
            not_ready,
            gateways: vec![ReleaseReport::as_gateway(&report.instance, seen)],
            departed: vec![],
            external: external.unwrap_or_default(),
            // A manifest is there, or it is not.
            deleting: None,
            release: key,
            status,
            target,
        }
    }

    /// What does not exist may be there, in a file that can not be used.
    fn or_invalid(&self, problem: Problem, namespace: &str, spec: &PromptReleaseSpec) -> Problem {
        let policy = spec.policy_ref.as_ref().map_or("", |p| p.name.as_str());
        let (kind, name) = match problem.reason {
            "PromptNotFound" => ("PromptVersion", spec.prompt_ref.name.as_str()),
            "BackendNotFound" => ("LLMDeployment", spec.backend_ref.name.as_str()),
            "PolicyNotFound" => ("CanaryPolicy", policy),
            _ => return problem,
        };
        let missing = || problem.message.clone();
        let message = self.manifests.instead_of((kind, namespace, name), missing);
        let message = message.unwrap_or(problem.message);
        Problem { message, ..problem }
    }

    /// Why there is no key of a Secret.
    fn no_secret(&self, namespace: &str, wanted: &SecretKeyRef) -> String {
        let missing = || {
            format!(
                "no Secret {} with the {}: add one to the folder, or set the environment variable \
                 {} and start again",
                wanted.name,
                key_in_words(&wanted.key),
                secrets::variable_in_words(wanted)
            )
        };
        let instead = self.manifests.instead_of(("Secret", namespace, &wanted.name), missing);
        instead.unwrap_or_else(missing)
    }

    /// Why a backend can not be asked.
    pub(super) fn unusable(&self, namespace: &str, backend: &LLMDeploymentSpec) -> Option<String> {
        if backend.endpoint.is_none() {
            let why = "service and serving need a cluster; in standalone mode set spec.endpoint";
            return Some(why.to_owned());
        }
        let secrets = backend.secrets();
        let missing = secrets
            .iter()
            .find(|wanted| secrets::secret(&self.manifests, namespace, wanted).is_none())?;
        Some(format!("SecretNotFound: {}", self.no_secret(namespace, missing)))
    }

    /// What users of the route had from another release, while this one does not serve it:
    /// of the same namespace only while this one has served nothing.
    fn served_before(&self, key: &str, kept: Option<&Kept>, route: &str) -> Option<ServedBefore> {
        if kept.is_some_and(Kept::serves) {
            return None;
        }
        let own = kept.and_then(|kept| kept.on_route(key, route));
        let (release, last) = self.state.served_before(route, key)?;
        let has_served = kept.is_some_and(|kept| kept.status.stable.is_some());
        if own.is_some_and(|own| own.end() >= last.end())
            || (has_served && namespace_of(release) == namespace_of(key))
        {
            return None;
        }
        Some(ServedBefore {
            release: release.to_owned(),
            revision: last.revision,
            failed: last.failed,
            since: last.until,
            // One person writes the folder, and may give the route back by the owner's manifest.
            forget: None,
            // A status is there before anything is served.
            too_late: false,
        })
    }

    /// What of a policy can never have data for a release.
    fn without_data(
        &self,
        namespace: &str,
        spec: &PromptReleaseSpec,
        key: &str,
        policy: &Result<CanaryPolicySpec, Problem>,
    ) -> Vec<WithoutData> {
        let Ok(policy) = policy else { return vec![] };
        let kept = self.state.get(key);
        let stable = kept.and_then(|kept| {
            let stable = kept.status.stable.as_ref()?;
            let saved = || match kept.saved.get(&stable.revision) {
                Some(Saved::Variant(saved)) => Some(&saved.backend),
                _ => None,
            };
            let now = self.manifests.backend(namespace, &stable.backend);
            Some((stable.backend.as_str(), now.or_else(saved)?))
        });
        let named = spec.backend_ref.name.as_str();
        let canary = self.manifests.backend(namespace, named).map(|backend| (named, backend));
        let backends: Vec<_> = stable.into_iter().chain(canary).collect();
        resolve::without_data(policy, &backends, self.prometheus.unusable(policy).as_deref())
    }

    pub(super) fn world(&self, releases: &[PromptRelease]) -> World {
        let inputs = releases.iter().filter_map(|release| {
            let key = key(release);
            let kept = self.state.get(&key)?;
            if kept.status.routing.variants.is_empty() {
                return None;
            }
            let namespace = namespace(release);
            let variants: HashMap<String, Arc<PackedVariant>> = kept
                .saved
                .iter()
                .filter_map(|(name, saved)| match saved {
                    Saved::Variant(variant) => Some((name.clone(), Arc::new(variant.into()))),
                    Saved::Policy(_) => None,
                })
                .collect();
            let other_backends = release.other_backends();
            let backends: HashMap<String, Arc<LLMDeploymentSpec>> = variants
                .values()
                .map(|v| &*v.backend_name)
                .chain(other_backends.iter().map(String::as_str))
                .filter_map(|name| {
                    let spec = self.manifests.backend(&namespace, name)?.clone();
                    Some((name.to_owned(), Arc::new(spec)))
                })
                .collect();
            let unread = other_backends.iter().filter(|name| !backends.contains_key(*name));
            let unread = unread.filter_map(|name| {
                let missing = || {
                    format!(
                        "LLMDeployment {name} does not exist: create it, or take it out of \
                         spec.fallbackBackendRefs"
                    )
                };
                let id = ("LLMDeployment", namespace.as_str(), name.as_str());
                Some((name.clone(), self.manifests.instead_of(id, missing)?))
            });
            let faults = Faults { backends: unread.collect(), ..Faults::default() };
            let mut input = ReleaseInput {
                name: release.metadata.name.clone().unwrap_or_default(),
                namespace,
                uid: kept.uid.clone(),
                route: release.route(),
                created: kept.created.to_string(),
                routing: kept.status.routing.clone(),
                trial: kept.status.canary.as_ref().map(|c| c.variant.revision.clone()),
                variants,
                backends,
                secrets: HashMap::new(),
                grants: Grants::default(),
                faults,
                other_backends,
                cache: release.spec.cache.clone(),
                // Outside a cluster a Service is a name to resolve.
                endpoints: HashMap::new(),
            };
            let wanted: Vec<SecretKeyRef> = input.wanted_secrets().collect();
            for wanted in wanted {
                match secrets::secret(&self.manifests, &input.namespace, &wanted) {
                    Some(text) => _ = input.secrets.insert(wanted, text),
                    None => {
                        let fault = Fault::new(
                            Fault::SECRET_NOT_FOUND,
                            self.no_secret(&input.namespace, &wanted),
                        );
                        input.faults.secrets.insert(wanted, fault);
                    }
                }
            }
            Some(input)
        });
        inputs.collect()
    }
}
