//! Content hashes. Two objects with the same content are the same variant, whatever
//! they are called and in whatever order their keys were written.
//!
//! A revision has 160 bits, as many as a git commit: two prompts with one revision cost
//! 2^80 hashes. With the 40 bits of earlier versions they were found in a minute, and then
//! the reviewed prompt and the other one were the same variant.

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::api::{LLMDeploymentSpec, PromptVersionSpec};

/// The digest of a prompt's whole content: `sha256:` and 64 hex digits.
pub fn digest(prompt: &PromptVersionSpec) -> String {
    let value = serde_json::to_value(prompt).unwrap_or(Value::Null);
    format!("sha256:{}", hex(&Sha256::digest(canonical(&value).as_bytes())))
}

/// Hex digits of a revision and of a policy's digest.
pub const REVISION_DIGITS: usize = 40;
/// Hex digits that people read; also the whole of a revision that an earlier version wrote.
const SHORT_DIGITS: usize = 10;

/// The revision of a prompt on a backend: the first 40 hex digits of the hash over the
/// prompt's digest and the backend's identity fields. Operational fields (limits,
/// pricing, replicas, the secret) do not change it.
pub fn revision(prompt: &PromptVersionSpec, backend: &LLMDeploymentSpec) -> String {
    let identity = serde_json::to_value(backend.identity()).unwrap_or(Value::Null);
    let text = format!("{}\n{}", digest(prompt), canonical(&identity));
    hex(&Sha256::digest(text.as_bytes()))[..REVISION_DIGITS].to_owned()
}

/// The first ten digits of a revision, for people. It identifies nothing.
pub fn short(revision: &str) -> &str {
    revision.get(..SHORT_DIGITS).unwrap_or(revision)
}

/// Whether what is stored stands for this revision (or digest): they are equal, or an
/// earlier version stored the ten digits that were a whole revision then. A text of any
/// other length stands for itself only.
pub fn stands_for(stored: &str, revision: &str) -> bool {
    stored == revision || (stored.len() == SHORT_DIGITS && short(revision) == stored)
}

/// JSON with sorted keys.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            let fields: Vec<String> = entries
                .into_iter()
                .map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), canonical(value)))
                .collect();
            format!("{{{}}}", fields.join(","))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(","))
        }
        scalar => scalar.to_string(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn prompt(value: Value) -> PromptVersionSpec {
        serde_json::from_value(value).unwrap()
    }

    fn backend(model: &str, timeout: &str) -> LLMDeploymentSpec {
        serde_json::from_value(json!({
            "provider": "openai", "model": model, "endpoint": {"url": "https://a/v1"},
            "limits": {"timeout": timeout},
        }))
        .unwrap()
    }

    #[test]
    fn the_order_of_keys_does_not_matter_and_the_content_does() {
        let one =
            prompt(json!({"prompt": "p", "messages": [], "variables": {"type": "object", "a": 1}}));
        let two =
            prompt(json!({"variables": {"a": 1, "type": "object"}, "messages": [], "prompt": "p"}));
        let other =
            prompt(json!({"prompt": "p", "messages": [], "variables": {"type": "object", "a": 2}}));
        assert_eq!(digest(&one), digest(&two));
        assert_ne!(digest(&one), digest(&other));
    }

    #[test]
    fn the_digests_of_objects_that_exist_stay_what_they_are() {
        let old = prompt(json!({
            "prompt": "p",
            "messages": [{"role": "system", "content": "A {{ b }}"}],
            "parameters": {"temperature": 0.5, "maxTokens": 9},
            "responseFormat": {"type": "object", "required": ["answer"]},
            "tools": [{"type": "function", "function": {"name": "f"}}],
        }));
        assert_eq!(
            digest(&old),
            "sha256:6dc43f210825a6ef53685ee90f7a4ee58ede110ffdc8bc8ba626a8650e64ad35"
        );
        assert_eq!(revision(&old, &backend("m", "10s"))[..10], *"43e4abcf8b");
        let mut strict = old.clone();
        strict.response_format.as_mut().unwrap().insert("strict".to_owned(), json!(true));
        assert_ne!(digest(&strict), digest(&old));
    }

    #[test]
    fn what_only_says_how_a_backend_is_asked_does_not_change_the_revision() {
        let p = prompt(json!({"prompt": "p", "messages": []}));
        let plain = backend("m", "10s");
        let mut other = plain.clone();
        other.compatibility = serde_json::from_value(json!({"streamOptions": false})).unwrap();
        other.proxy = serde_json::from_value(json!({"direct": true})).unwrap();
        other.limits.idle_timeout = "0s".parse().unwrap();
        assert_eq!(revision(&p, &plain), revision(&p, &other));
    }

    #[test]
    fn operational_fields_are_not_part_of_the_revision() {
        let p = prompt(json!({"prompt": "p", "messages": []}));
        assert_eq!(revision(&p, &backend("m", "10s")), revision(&p, &backend("m", "20s")));
        assert_ne!(revision(&p, &backend("m", "10s")), revision(&p, &backend("n", "10s")));
        assert_eq!(revision(&p, &backend("m", "10s")).len(), REVISION_DIGITS);
    }

    #[test]
    fn a_revision_of_an_earlier_version_stands_for_its_continuation_and_nothing_else_does() {
        let full = revision(&prompt(json!({"prompt": "p", "messages": []})), &backend("m", "10s"));
        assert!(stands_for(&full, &full));
        assert!(stands_for(&full[..10], &full));
        assert!(stands_for(short(&full), &full));
        for other in ["", &full[..9], &full[..11], &full[..39], "0123456789"] {
            assert!(!stands_for(other, &full), "{other}");
        }
        assert_eq!((short("v1"), short("0123456789a")), ("v1", "0123456789"));
    }

    /// What an earlier version released must not look like another variant to a later one:
    /// a new field of a spec is left out of its JSON while it has its default.
    #[test]
    fn revisions_of_known_objects_never_change() {
        let plain =
            prompt(json!({"prompt": "p", "messages": [{"role": "system", "content": "A."}]}));
        let full = prompt(json!({
            "prompt": "p", "messages": [{"role": "user", "content": "{{ q }}"}],
            "variables": {"type": "object", "required": ["q"]},
            "parameters": {"temperature": 0.2, "maxTokens": 512},
            "responseFormat": {"type": "object"},
            "tools": [{"type": "function", "function": {"name": "f"}}],
        }));
        assert_eq!(short(&revision(&plain, &backend("m", "10s"))), "04daedd994");
        assert_eq!(short(&revision(&full, &backend("m", "10s"))), "1989c7e2e6");
    }
}
