//! The JSON Schemas of prompts. What a release's revisions and variants have in common is
//! there once, and compiled when something is first checked: a small one takes 4 KB then.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
};

use jsonschema::{Validator, error::ValidationErrorKind};
use serde_json::{Map, Value};

use super::PromptError;

/// A JSON Schema.
#[derive(Debug)]
pub(super) struct Schema {
    source: Arc<str>,
    compiled: OnceLock<Option<Validator>>,
}

type InUse = HashMap<Arc<str>, Weak<Schema>>;

fn in_use() -> MutexGuard<'static, InUse> {
    static IN_USE: LazyLock<Mutex<InUse>> = LazyLock::new(Mutex::default);
    IN_USE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Schema {
    fn drop(&mut self) {
        let mut in_use = in_use();
        // The same may have come again meanwhile.
        if in_use.get(&self.source).is_some_and(|other| other.strong_count() == 0) {
            in_use.remove(&self.source);
        }
    }
}

impl Schema {
    /// # Errors
    /// What makes it no valid JSON Schema.
    pub fn of(schema: &Map<String, Value>) -> Result<Arc<Self>, String> {
        let schema = Value::Object(schema.clone());
        let source: Arc<str> = schema.to_string().into();
        if let Some(known) = in_use().get(&source).and_then(Weak::upgrade) {
            return Ok(known);
        }
        jsonschema::validator_for(&schema).map_err(|e| e.to_string())?;
        let new = Arc::new(Self { source: source.clone(), compiled: OnceLock::new() });
        in_use().insert(source, Arc::downgrade(&new));
        Ok(new)
    }

    /// None only if what could be compiled no longer can be: nothing is accepted then.
    fn validator(&self) -> Option<&Validator> {
        let compile = || {
            let schema = serde_json::from_str(&self.source).ok()?;
            jsonschema::validator_for(&schema).ok()
        };
        self.compiled.get_or_init(compile).as_ref()
    }

    pub fn accepts(&self, value: &Value) -> bool {
        self.validator().is_some_and(|validator| validator.is_valid(value))
    }

    /// What is wrong with variables that are not accepted.
    pub fn describe(&self, variables: &Value) -> PromptError {
        let error = self.validator().and_then(|v| v.iter_errors(variables).next());
        let Some(error) = error else {
            let message = "they can not be checked against the prompt's schema".to_owned();
            return PromptError::Variables { path: String::new(), message };
        };
        let mut path = error.instance_path().to_string().replace('/', ".");
        // The field at fault is the one that is missing, not what it is missing in.
        if let ValidationErrorKind::Required { property: Value::String(name) } = error.kind() {
            path = format!("{path}.{name}");
        }
        PromptError::Variables { path, message: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_the_same_is_kept_once_and_not_longer_than_it_is_used() {
        let of = |required: &str| {
            let schema = json!({"type": "object", "required": [required, "only here"]});
            Schema::of(schema.as_object().unwrap()).unwrap()
        };
        let known = |schema: &Arc<str>| in_use().contains_key(schema);
        let (first, second, other) = (of("a"), of("a"), of("b"));
        assert!(Arc::ptr_eq(&first, &second) && !Arc::ptr_eq(&first, &other));
        assert!(
            first.accepts(&json!({"a": 1, "only here": 1})) && !other.accepts(&json!({"a": 1}))
        );
        let source = first.source.clone();
        drop(first);
        assert!(known(&source));
        drop(second);
        assert!(!known(&source) && known(&other.source));
        assert!(of("a").accepts(&json!({"a": 1, "only here": 1})));
    }
}
