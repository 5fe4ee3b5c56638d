//! A record for tests.

use std::sync::Arc;

use jiff::Timestamp;

use crate::{
    api::prompt_release::VariantRole,
    audit::record::{
        AssignmentReason, Caller, CheckResult, Operation, Origin, Record, RecordOutcome,
        TraceContext,
    },
    openai::usage::Tokens,
};

/// What most requests are: a streamed answer of a canary.
pub(crate) fn record() -> Record {
    Record {
        request_id: "r-1".to_owned(),
        serial: None,
        origin: Arc::new(origin("rev1")),
        role: VariantRole::Canary,
        generation: 4,
        reason: AssignmentReason::Sticky,
        group: Some(3),
        caller: Some(Arc::new(Caller {
            name: "shop".to_owned(),
            team: "web".to_owned(),
            party: "web".to_owned(),
        })),
        operation: Operation::Chat,
        trace: Some(TraceContext {
            trace_id: [1; 16],
            span_id: [2; 8],
            parent: Some([3; 8]),
            sampled: true,
        }),
        at: Timestamp::from_second(1_700_000_000).unwrap_or_default(),
        outcome: RecordOutcome::Ok,
        error: None,
        status: Some(200),
        first_token_seconds: Some(0.25),
        duration_seconds: 1.5,
        seconds_per_output_token: Some(0.025),
        tokens: Tokens {
            input: Some(100),
            cached_input: Some(40),
            cache_write: None,
            output: Some(51),
            reasoning: Some(11),
        },
        cost_usd: Some(0.0042),
        compared_usd: Some(0.0051),
        input_kib: None,
        check: Some(CheckResult::Passed),
        streamed: true,
        served_model: Some("gpt-4o-mini-2024-07-18".to_owned()),
        response_id: Some("chatcmpl-1".to_owned()),
        finish_reason: Some("stop".to_owned()),
        content: None,
        stable: None,
    }
}

/// A variant.
pub(crate) fn origin(revision: &str) -> Origin {
    Origin {
        release: "ns/support".to_owned(),
        route: "support".to_owned(),
        revision: revision.to_owned(),
        prompt: "support-answer".to_owned(),
        prompt_version: "support-answer-v7".to_owned(),
        backend: "mini".to_owned(),
        provider: "openai".to_owned(),
        model: "gpt-4o-mini".to_owned(),
        server_address: "api.openai.com".to_owned(),
        server_port: 443,
    }
}
