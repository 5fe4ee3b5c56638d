//! What was found out about a prompt on a backend, and the policies that canaries run with.
//! Templates and schemas are compiled, content is hashed and JSON is read for it, and thousands
//! of releases that look every few seconds have the same few: each is examined once, until one
//! of the two changes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kube::Resource;

use crate::{
    api::{
        CanaryPolicySpec, LLMDeployment, PromptVersion, ReleaseSnapshot, release_snapshot,
        snapshot::Saved,
    },
    controllers::{caches::read_copy, error::ControllerError},
    rollout::{Problem, resolve},
    signals::index::Named,
};

/// More pairs, and policies, than are in use; beyond them, all are examined anew.
const MOST: usize = 20_000;

/// An object with the content that it has: the generation counts changes of the spec.
#[derive(PartialEq, Eq, Hash)]
struct Content {
    named: Named,
    uid: Option<String>,
    generation: Option<i64>,
}

impl Content {
    fn of<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        let meta = object.meta();
        Self { named: Named::of(object), uid: meta.uid.clone(), generation: meta.generation }
    }
}

type Pairs = HashMap<[Content; 2], Result<String, Problem>>;
type Policies = HashMap<release_snapshot::Content, Arc<CanaryPolicySpec>>;

/// What was examined.
#[derive(Default)]
pub struct Examined {
    /// The revision of each pair, or why it can not be released.
    pairs: Mutex<Pairs>,
    /// By what is written in a snapshot, whoever wrote it.
    policies: Mutex<Policies>,
}

impl Examined {
    /// As [`resolve::examine`], once for each content of both.
    ///
    /// # Errors
    /// Why the prompt can not be released there.
    pub fn of(&self, prompt: &PromptVersion, backend: &LLMDeployment) -> Result<String, Problem> {
        let key = [Content::of(prompt), Content::of(backend)];
        if let Some(found) = self.known().get(&key) {
            return found.clone();
        }
        let [prompt_name, backend_name] = [&key[0].named.name, &key[1].named.name];
        let found = resolve::examine((prompt_name, &prompt.spec), (backend_name, &backend.spec));
        let mut known = self.known();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(key, found.clone());
        found
    }

    /// The policy that a snapshot holds, if it is one of a policy.
    ///
    /// # Errors
    /// It can not be read.
    pub fn policy(
        &self,
        copy: &ReleaseSnapshot,
    ) -> Result<Option<Arc<CanaryPolicySpec>>, ControllerError> {
        let Some(text) = copy.spec.policy.as_ref().filter(|_| copy.spec.variant.is_none()) else {
            return Ok(None);
        };
        let policies = || self.policies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = policies().get(text) {
            return Ok(Some(known.clone()));
        }
        let Saved::Policy(policy) = read_copy(copy)? else { return Ok(None) };
        let policy = Arc::new(policy);
        let mut policies = policies();
        if policies.len() >= MOST {
            policies.clear();
        }
        policies.insert(text.clone(), policy.clone());
        Ok(Some(policy))
    }

    fn known(&self) -> MutexGuard<'_, Pairs> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use kube::api::ObjectMeta;

    use super::*;
    use crate::api::release_snapshot::ReleaseSnapshotSpec;

    fn meta(uid: &str, generation: i64) -> ObjectMeta {
        ObjectMeta {
            name: Some("named".into()),
            uid: Some(uid.into()),
            generation: Some(generation),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn another_content_is_examined_anew_and_the_same_is_not() {
        let examined = Examined::default();
        let (mut prompt, mut backend) = (PromptVersion::default(), LLMDeployment::default());
        (prompt.metadata, backend.metadata) = (meta("p", 1), meta("b", 1));
        let first = examined.of(&prompt, &backend).unwrap();
        assert_eq!(examined.of(&prompt, &backend).unwrap(), first);
        assert_eq!(examined.known().len(), 1);
        // A status that is written changes nothing; another generation or object does.
        prompt.metadata.resource_version = Some("7".into());
        assert_eq!(examined.of(&prompt, &backend).unwrap(), first);
        backend.spec.model = "another".into();
        backend.metadata.generation = Some(2);
        let other = examined.of(&prompt, &backend).unwrap();
        assert_ne!(other, first);
        prompt.metadata = meta("created again", 1);
        let message = serde_json::json!([{"role": "user", "content": "{{ not closed"}]);
        prompt.spec.messages = serde_json::from_value(message).unwrap();
        let problem = examined.of(&prompt, &backend).unwrap_err();
        assert_eq!(problem.reason, "PromptInvalid");
        assert!(problem.message.contains("named"), "{problem:?}");
        assert_eq!(examined.known().len(), 3);
    }

    #[test]
    fn a_policy_is_read_once_for_each_text_and_not_by_its_name() {
        let of = |weight: i64| {
            let policy = serde_json::json!({"steps": [{"weight": weight, "samples": 100}]});
            let policy: CanaryPolicySpec = serde_json::from_value(policy).unwrap();
            let content = serde_json::to_value(Saved::Policy(policy.clone())).unwrap();
            // Who may write snapshots may give any content any name.
            let spec = ReleaseSnapshotSpec::new("r", "the same digest", content).unwrap();
            (ReleaseSnapshot::new("r-1", spec), policy)
        };
        let (examined, (five, ten)) = (Examined::default(), (of(5), of(10)));
        for (copy, policy) in [&five, &ten, &five] {
            assert_eq!(examined.policy(copy).unwrap().as_deref(), Some(policy));
        }
        let again = [&five.0, &five.0].map(|copy| examined.policy(copy).unwrap().unwrap());
        assert!(Arc::ptr_eq(&again[0], &again[1]));
    }
}
