//! Requests that go on from something that a backend keeps, or that only its model reads: a
//! stored response, a conversation, encrypted reasoning.
//!
//! Where two variants have different backends, such a request can be answered by one of
//! them only. It is sent there, as far as this gateway knows where that is, and to nobody
//! else. It is the evidence of a side that its user's sticky key draws and that has what it
//! goes on from. Otherwise it is no evidence: each step of a canary moves some users to it
//! in the middle of what they do, and would blame it for what it can not know. Without a
//! sticky key each request is drawn anew, and a side would get its own by its weight: of
//! stable's requests more would go on from something than of the canary's.

use std::{borrow::Cow, time::Duration};

use memchr::memmem;
use moka::sync::Cache;
use xxhash_rust::xxh3::xxh3_64;

use super::{prepare::Asked, routes::Target};
use crate::audit::record::Operation;

/// So many responses and conversations are remembered, for so long. One that is forgotten,
/// or that another replica answered, is sent where the draw says.
const REMEMBERED: u64 = 100_000;
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// Marks of reasoning that no other model can read, as APIs name it: Responses, OpenRouter,
/// Gemini and Anthropic behind compatible endpoints.
const SEALED: [&[u8]; 4] = [
    br#""encrypted_content""#,
    br#""reasoning.encrypted""#,
    br#""thought_signature""#,
    br#""redacted_thinking""#,
];

/// What a request goes on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Continued<'a> {
    /// A response or a conversation by its id.
    Kept(Cow<'a, str>),
    /// Reasoning that the request carries, and that one model reads.
    Sealed,
}

/// What a request goes on from, if it does.
pub(super) fn continued(asked: &Asked) -> Option<Continued<'_>> {
    let request = &asked.request;
    if asked.operation == Operation::Responses {
        let previous = request.text("previous_response_id").filter(|id| !id.is_empty());
        let kept = previous.or_else(|| asked.conversation().map(Cow::Owned));
        if let Some(id) = kept {
            return Some(Continued::Kept(id));
        }
    }
    let field = match asked.operation {
        Operation::Responses => "input",
        Operation::Chat => "messages",
        Operation::Completions | Operation::Embeddings => return None,
    };
    let said = request.raw(field)?;
    SEALED.iter().any(|mark| memmem::find(said, mark).is_some()).then_some(Continued::Sealed)
}

impl Continued<'_> {
    /// Whether either of two variants can go on from it.
    pub(super) fn is_shared(&self, one: &Target, other: &Target) -> bool {
        one.has_address_of(other) && (one.model == other.model || matches!(self, Self::Kept(_)))
    }
}

/// Which revision has answered a response or a conversation, as far as this process knows.
pub(super) struct Origins(Cache<u64, u64>);

impl Default for Origins {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(REMEMBERED).time_to_live(KEPT).build())
    }
}

impl Origins {
    pub(super) fn remember(&self, id: &str, revision: &str) {
        self.0.insert(xxh3_64(id.as_bytes()), xxh3_64(revision.as_bytes()));
    }

    /// Which of these variants it was.
    pub(super) fn among<'a, T: AsRef<Target>>(
        &self,
        continued: &Continued<'_>,
        mut variants: impl Iterator<Item = &'a T>,
    ) -> Option<&'a T> {
        let Continued::Kept(id) = continued else { return None };
        let revision = self.0.get(&xxh3_64(id.as_bytes()))?;
        variants.find(|variant| xxh3_64((*variant).as_ref().revision.as_bytes()) == revision)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::gateway::budget::{Budget, Class};

    fn of(operation: Operation, body: &'static str) -> Option<String> {
        let held = Budget::new(1 << 20).nothing(Class::Bodies);
        let body = Bytes::from_static(body.as_bytes());
        let asked = Asked::read(operation, None, body, 100, held).unwrap();
        continued(&asked).map(|continued| match continued {
            Continued::Kept(id) => id.into_owned(),
            Continued::Sealed => "sealed".to_owned(),
        })
    }

    #[test]
    fn what_a_request_goes_on_from_is_found_wherever_an_api_puts_it() {
        let responses = |body| of(Operation::Responses, body);
        assert_eq!(responses(r#"{"previous_response_id": "resp_1"}"#).unwrap(), "resp_1");
        assert_eq!(responses(r#"{"conversation": {"id": "conv_1"}}"#).unwrap(), "conv_1");
        assert_eq!(responses(r#"{"conversation": "conv_1"}"#).unwrap(), "conv_1");
        let sealed = r#"{"input": [{"type": "reasoning", "encrypted_content": "x"}]}"#;
        assert_eq!(responses(sealed).unwrap(), "sealed");
        assert_eq!(responses(r#"{"previous_response_id": null, "input": "hi"}"#), None);
        let gemini = r#"{"messages": [{"role": "assistant", "tool_calls": [{"extra_content":
            {"google": {"thought_signature": "x"}}}]}]}"#;
        assert_eq!(of(Operation::Chat, gemini).unwrap(), "sealed");
        assert_eq!(
            of(Operation::Chat, r#"{"messages": [{"role": "user", "content": "x"}]}"#),
            None
        );
    }
}
