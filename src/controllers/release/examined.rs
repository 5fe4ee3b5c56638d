//! What was found out about a prompt on a backend. Templates and schemas are compiled and
//! content is hashed for it, and thousands of releases that look every few seconds name the
//! same few pairs: each is examined once, until one of the two changes.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use kube::Resource;

use crate::{
    api::{LLMDeployment, PromptVersion},
    rollout::{Problem, resolve},
    signals::index::Named,
};

/// More pairs than are in use; beyond them, all are examined anew.
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

/// The revision of each pair, or why it can not be released.
#[derive(Default)]
pub struct Examined(Mutex<HashMap<[Content; 2], Result<String, Problem>>>);

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

    fn known(&self) -> MutexGuard<'_, HashMap<[Content; 2], Result<String, Problem>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use kube::api::ObjectMeta;

    use super::*;

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
}
