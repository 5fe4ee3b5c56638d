//! The one event that every request through the gateway produces. Evidence,
//! exported metrics, spans and the access log all consume it;
//! nothing else is measured anywhere.

use std::sync::Arc;

use jiff::Timestamp;

use super::secrets::Known;
use crate::api::prompt_release::VariantRole;
pub use crate::openai::{Operation, usage::Tokens};

/// Why a request went to the variant that it went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AssignmentReason {
    /// By the hash of its sticky key.
    Sticky,
    /// By chance, because it has no sticky key.
    Random,
    /// There is only one variant, or the request named a revision.
    Forced,
    /// The variant that was drawn failed before its first byte, and the other one answers instead:
    /// stable of a canary's users, and in a bake each of both.
    Fallback,
    /// The breaker of the variant that was drawn is open, and the other one answers.
    Breaker,
    /// The side that was drawn could not be built.
    NotBuilt,
    /// No leader was seen for the control-loss timeout.
    ControlLoss,
    /// The first attempt failed before its first byte, and the same variant is asked again.
    Retry,
    /// Stable is unavailable, and another backend answers with its prompt.
    OtherBackend,
    /// The answer was given before and comes from the cache.
    Cached,
    /// By hash or by chance, but the cache has another variant's answer to the same
    /// request: the variants are compared by requests that are new to both.
    Repeated,
    /// It goes on from a response, a conversation or reasoning that only one variant's
    /// backend has: sent there as far as that is known, and no evidence.
    FollowUp,
    /// It is a copy of a request that stable answers; nobody sees its own answer.
    Shadow,
}

impl AssignmentReason {
    /// Whether the request is a fair draw and counts as evidence. A copy does, once it
    /// has a pair.
    pub fn is_evidence(self) -> bool {
        matches!(self, Self::Sticky | Self::Random | Self::Shadow)
    }

    /// The word on records and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sticky => "sticky",
            Self::Random => "random",
            Self::Forced => "forced",
            Self::Fallback => "fallback",
            Self::Breaker => "breaker",
            Self::NotBuilt => "not-built",
            Self::ControlLoss => "control-loss",
            Self::Retry => "retry",
            Self::OtherBackend => "other-backend",
            Self::Cached => "cached",
            Self::Repeated => "repeated",
            Self::FollowUp => "follow-up",
            Self::Shadow => "shadow",
        }
    }
}

/// How an attempt on a variant ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordOutcome {
    /// The backend answered completely.
    Ok,
    /// The backend refused the request as the client's mistake (4xx other than 408 and 429): not the variant's failure.
    ClientError,
    /// The backend failed: connection, timeout, 408, 429, 5xx, a broken stream.
    Error,
    /// The client went away: neither success nor failure.
    Cancelled,
}

impl RecordOutcome {
    /// The word on metric labels, spans and log lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientError => "client_error",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What the check of an answer found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CheckResult {
    /// Nothing wrong.
    Passed,
    /// The answer does not match the response format's JSON Schema.
    Schema,
    /// Neither text nor a tool call.
    Empty,
    /// The token limit cut it off.
    Truncated,
    /// The model refused, or a content filter stopped it.
    Refused,
    /// The arguments of a tool call are no JSON, or do not match the tool's schema.
    ToolCall,
    /// It ended for a reason that Serinus does not know, or for none: not judged.
    UnknownReason,
    /// Something was answered that Serinus can not read: not judged.
    Unread,
}

impl CheckResult {
    /// The word on metric labels, spans and log lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Schema => "schema",
            Self::Empty => "empty",
            Self::Truncated => "truncated",
            Self::Refused => "refused",
            Self::ToolCall => "tool_call",
            Self::UnknownReason => "unknown_reason",
            Self::Unread => "unread",
        }
    }

    /// Whether it says that the answer is good or bad. What is not judged is neither: it
    /// never counts as a pass, and is counted apart.
    pub fn is_judged(self) -> bool {
        !matches!(self, Self::UnknownReason | Self::Unread)
    }
}

/// What stable made of a request that was copied to a shadow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StableSide {
    /// How it ended.
    pub outcome: RecordOutcome,
    /// What the check of the answer found; none without a complete answer.
    pub check: Option<CheckResult>,
    /// What it cost, in US dollars, when price and tokens are known.
    pub cost_usd: Option<f64>,
    /// As `Record::compared_usd`.
    pub compared_usd: Option<f64>,
}

/// What is the same for every request of one variant of one release: built once with
/// the route, shared by all records.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Origin {
    /// `namespace/name` of the release.
    pub release: String,
    /// The model name that applications send.
    pub route: String,
    /// The revision.
    pub revision: String,
    /// The prompt's lineage (`spec.prompt` of the PromptVersion).
    pub prompt: String,
    /// The PromptVersion's name.
    pub prompt_version: String,
    /// The LLMDeployment's name.
    pub backend: String,
    /// The LLMDeployment's provider.
    pub provider: String,
    /// The model name that is sent upstream.
    pub model: String,
    /// The host of the backend's address.
    pub server_address: String,
    /// The port of the backend's address.
    pub server_port: u16,
}

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// The client key's or token's name.
    pub name: String,
    /// The team that pays.
    pub team: String,
    /// Who is one and the same for the evidence, with however many keys: the team, as who
    /// runs the gateway or the issuer names it, or the tenant, with all its teams.
    pub party: String,
}

/// The position in a trace (W3C Trace Context).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The span of this attempt.
    pub span_id: [u8; 8],
    /// The span that called, when the application told it.
    pub parent: Option<[u8; 8]>,
    /// Whether the trace is recorded.
    pub sampled: bool,
}

/// What was said, kept only where the configuration asks for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Content {
    /// The JSON of the input as it was sent upstream: messages, prompt or input.
    pub input: Vec<u8>,
    /// The answer's text.
    pub output: String,
    /// The JSON of the answer, or of those events of a stream, in which tools are called.
    pub tool_calls: Vec<Vec<u8>>,
    /// Whom the request names as its `user`.
    pub user: Option<String>,
    /// The conversation that the request belongs to, where the application tells it.
    pub conversation: Option<String>,
    /// Secrets that nobody is told, whatever their form: searched for when what is kept in
    /// pieces is put together, for until then none of the pieces has all of one.
    pub known: Known,
}

impl Content {
    /// How many bytes it keeps in memory, about.
    pub fn weight(&self) -> usize {
        let calls: usize = self.tool_calls.iter().map(Vec::len).sum();
        let key = self.known.key.as_ref().map_or(0, |key| key.expose().len());
        self.input.len() + self.output.len() + calls + key
    }
}

/// One attempt of one request on one variant. A request that falls back to stable
/// produces two: the canary's failure and stable's answer with the reason `Fallback`.
/// So does one that is tried again, and one that is copied: stable's, and the copy's with
/// the reason `Shadow`, whose cost comes on top of what answering the user costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The id on the answer's header.
    pub request_id: String,
    /// Its number among the evidence of its variant in this process, by which a score
    /// finds it; none when it is no evidence.
    pub serial: Option<u32>,
    /// The release and the variant that was tried.
    pub origin: Arc<Origin>,
    /// The variant's role in the routing.
    pub role: VariantRole,
    /// The routing generation under which it was assigned.
    pub generation: i64,
    /// Why this variant.
    pub reason: AssignmentReason,
    /// The group of its sticky key (`rollout::assignment::group`); none without a key.
    pub group: Option<u8>,
    /// Who asked; none when nobody needs to say.
    pub caller: Option<Arc<Caller>>,
    /// What was asked for.
    pub operation: Operation,
    /// Where in a trace; none when traces are off.
    pub trace: Option<TraceContext>,
    /// When the attempt began.
    pub at: Timestamp,
    /// How it ended.
    pub outcome: RecordOutcome,
    /// The stable word of what went wrong (`code` of the error), when something did.
    pub error: Option<&'static str>,
    /// The HTTP status from upstream, when there was one.
    pub status: Option<u16>,
    /// Time to the first token (the first content of a stream, or the whole of a JSON answer), in seconds.
    pub first_token_seconds: Option<f64>,
    /// Time to the end of the answer, in seconds.
    pub duration_seconds: f64,
    /// Time per output token after the first, in seconds.
    pub seconds_per_output_token: Option<f64>,
    /// Tokens as the provider reported them.
    pub tokens: Tokens,
    /// What it cost, in US dollars, when price and tokens are known: the bill.
    pub cost_usd: Option<f64>,
    /// What it would have cost without the provider's prompt cache, in US dollars: what
    /// variants are compared by. The one with less traffic meets a cold cache, which is
    /// not its fault.
    pub compared_usd: Option<f64>,
    /// How much the application and its users say in the request, in KiB, as far as costs are
    /// compared by it; none where nothing is compared.
    pub input_kib: Option<f64>,
    /// What the check of the answer found; none without a complete answer.
    pub check: Option<CheckResult>,
    /// Whether the answer was streamed.
    pub streamed: bool,
    /// The model that the backend says has answered.
    pub served_model: Option<String>,
    /// The backend's id of the answer.
    pub response_id: Option<String>,
    /// Why the answer ended.
    pub finish_reason: Option<String>,
    /// What was said, where the configuration asks for it.
    pub content: Option<Box<Content>>,
    /// What stable made of the same request: only of a copy, and only when it is known.
    pub stable: Option<StableSide>,
}

impl Record {
    /// It may have cost something, and nobody knows what: it was answered, or told of
    /// tokens, without a price. An answer from the cache costs nothing again.
    pub fn is_unpriced(&self) -> bool {
        let charged = self.outcome == RecordOutcome::Ok || self.tokens != Tokens::default();
        self.cost_usd.is_none() && charged && self.reason != AssignmentReason::Cached
    }

    /// The tokens that were spent on it; those of an answer from the cache were not again.
    pub fn spent_tokens(&self) -> Tokens {
        if self.reason == AssignmentReason::Cached { Tokens::default() } else { self.tokens }
    }

    /// Both sides of a copied request, when both have an outcome of their own.
    pub fn pair(&self) -> Option<StableSide> {
        let told = |o| matches!(o, RecordOutcome::Ok | RecordOutcome::Error);
        self.stable.filter(|stable| told(stable.outcome) && told(self.outcome))
    }
}
