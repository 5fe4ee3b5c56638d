//! One attempt on one variant, from the draw to its record.

use std::{borrow::Cow, sync::Arc, time::Duration};

use axum::http::{HeaderName, HeaderValue, Uri};
use bytes::Bytes;
use jiff::Timestamp;
use tokio::{sync::oneshot, time::Instant};

use super::{
    Gateway,
    assign::Assigned,
    backends::Taken,
    budget::{Account, Class, Held},
    check::check,
    fault::MODEL_GONE,
    feedback::{Issued, Kind},
    identity::credential,
    phases::Passed,
    prepare::{Asked, Prepared, WantedVectors},
    routes::{Route, Target},
    tally::Drawn,
    unread,
    upstream::SECRET_CODE,
};
use crate::{
    api::{SecretText, url::without_credentials},
    audit::{
        record::{
            AssignmentReason, Caller, CheckResult, Content, Operation, Origin, Record,
            RecordOutcome, StableSide, TraceContext,
        },
        secrets::{Known, REDACTED, is_searched},
    },
    openai::{answer::Answer, error::ApiError},
    signals::addresses::Refused,
    telemetry::{follow, whole_words},
};

/// An attempt under way. It records itself exactly once: when it is finished, or as
/// cancelled when it is dropped before.
pub(super) struct Flight {
    gateway: Arc<Gateway>,
    route: Arc<Route>,
    pub target: Arc<Target>,
    pub reason: AssignmentReason,
    pub group: Option<u8>,
    pub unique: u64,
    pub request_id: String,
    /// Its number among the evidence of its variant.
    serial: Option<u32>,
    pub operation: Operation,
    pub streamed: bool,
    pub caller: Option<Arc<Caller>>,
    pub trace: Option<TraceContext>,
    /// What goes upstream with the request.
    pub passed: Passed,
    pub status: Option<u16>,
    /// What of the model's headers goes to the application.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub answer: Answer,
    /// What has come of the answer shows a secret of ours, or most of one, in texts that have
    /// none alone: nothing of what it says is kept.
    pub is_withheld: bool,
    /// The application's own tools, as JSON.
    tools: Option<Box<[u8]>>,
    /// How many choices, or vectors, were asked for.
    pub wanted: Option<usize>,
    /// What the vectors have to be like that were asked for.
    pub vectors: WantedVectors,
    /// How what was not understood begins.
    not_understood: Option<Box<[u8]>>,
    /// What is kept of what was said, where it is.
    content: Option<Box<Content>>,
    /// The conversation that the answer becomes a part of.
    conversation: Option<String>,
    /// What the prompt adds to the body, until the model has it.
    pub written: Option<Held>,
    /// How much is said in the request, while it is compared.
    input_kib: Option<f64>,
    /// The pod that it is at.
    pub pod: Option<Taken>,
    /// The id of the copy that a shadow got of this request.
    pub shadow_request_id: Option<String>,
    error: Option<&'static str>,
    /// Who waits to compare the copy with how this one ends.
    told: Option<oneshot::Sender<StableSide>>,
    /// What stable made of the request that this one is a copy of.
    stable: Option<StableSide>,
    started: Instant,
    at: Timestamp,
    /// How long the answer took, when that is known before it is recorded.
    took: Option<Duration>,
    first_token: Option<Instant>,
    /// The draw that it is the evidence of; none of a repetition, a fallback and the like.
    drawn: Option<Drawn>,
    /// It was turned away before it came to the variant, which says nothing of the variant.
    pub crowded: bool,
    recorded: bool,
}

impl Flight {
    pub(super) fn new(
        gateway: &Arc<Gateway>,
        route: &Arc<Route>,
        assigned: &mut Assigned,
        asked: &Asked,
        passed: &Passed,
    ) -> Self {
        let Assigned { target, reason, group, unique, copy, drawn, .. } = assigned;
        let (reason, group, unique) = (*reason, *group, *unique);
        let kind = match (reason, copy) {
            (AssignmentReason::Shadow, _) => Kind::Shadow,
            (_, Some(_)) => Kind::Copied,
            _ if reason.is_evidence() => Kind::Evidence,
            _ => Kind::Other,
        };
        let caller = passed.caller.as_deref();
        let issued = Issued { route, target, kind, group, unique, caller };
        let (request_id, serial) = gateway.feedback.issue(gateway, &issued);
        Self {
            request_id,
            serial,
            gateway: gateway.clone(),
            route: route.clone(),
            target: target.clone(),
            reason,
            group,
            unique,
            operation: asked.operation,
            streamed: asked.stream,
            caller: passed.caller.clone(),
            trace: passed.trace,
            passed: passed.clone(),
            status: None,
            headers: vec![],
            answer: Answer::default(),
            is_withheld: false,
            tools: None,
            wanted: None,
            vectors: WantedVectors::default(),
            not_understood: None,
            content: None,
            conversation: asked.conversation().filter(|_| asked.operation == Operation::Responses),
            input_kib: drawn.as_ref().map(|_| asked.input_kib()),
            pod: None,
            written: None,
            shadow_request_id: None,
            error: None,
            told: None,
            stable: None,
            started: Instant::now(),
            at: (gateway.config.clock)(),
            took: None,
            first_token: None,
            drawn: drawn.take(),
            crowded: false,
            recorded: false,
        }
    }

    /// To be grown with what is held of its answer.
    pub(super) fn holds(&self) -> Held {
        self.passed.account.nothing(Class::Answers)
    }

    /// On whose account it holds what it holds.
    pub(super) fn account(&self) -> Arc<Account> {
        self.passed.account.clone()
    }

    /// What is sent; kept where the configuration asks for it.
    pub(super) fn sends(&mut self, prepared: Prepared, asked: &Asked) -> Bytes {
        let Prepared { body, input, held } = prepared;
        self.written = Some(held);
        self.tools = asked.request.raw("tools").map(Into::into);
        self.wanted = asked.wanted();
        self.vectors = asked.vectors();
        if let Some(most) = self.gateway.config.telemetry.tracing.content_of(self.trace.as_ref()) {
            let input = body[input].iter().copied().take(most).collect();
            let (user, conversation) = (asked.user(), asked.conversation());
            let known = Known { sent: self.target.secrets(true).clone(), key: self.key() };
            self.content =
                Some(Box::new(Content { input, user, conversation, known, ..Content::default() }));
        }
        body
    }

    /// The key by which the request was let in, unless it is a word.
    fn key(&self) -> Option<SecretText> {
        let key = credential(&self.passed.headers).filter(|key| is_searched(key));
        key.map(SecretText::new)
    }

    /// An answer, or an event of a stream, calls tools; kept where the rest is.
    pub(super) fn calls(&mut self, json: &[u8]) {
        let most = self.gateway.config.telemetry.tracing.content_bytes.unwrap_or(0);
        if let Some(content) = &mut self.content
            && content.weight() + json.len() <= most.saturating_mul(2)
        {
            content.tool_calls.push(json.to_vec());
        }
    }

    /// An answer, or an event of a stream, was not understood; how the first begins is kept.
    pub(super) fn not_understood(&mut self, said: &[u8]) {
        let begins = &said[..said.len().min(unread::LONGEST)];
        self.not_understood.get_or_insert_with(|| begins.into());
    }

    /// This attempt was caused by another one of the same request.
    pub(super) fn follows(&mut self) {
        self.trace = self.trace.as_ref().map(follow);
        self.passed.trace = self.trace;
    }

    pub(super) fn clock(&self) -> fn() -> Timestamp {
        self.gateway.config.clock
    }

    /// The backend is at an address that requests may not go to, which only who runs the
    /// gateway can change.
    pub(super) fn refused_address(&self, refused: &Refused) {
        let Origin { release, backend, .. } = &*self.target.origin;
        if self.gateway.refused.is_due(&format!("{release} {backend}"), self.now_millis()) {
            tracing::warn!(%release, %backend, "no request is sent to the backend: {refused}");
        }
    }

    pub(super) fn now_millis(&self) -> u64 {
        self.gateway.now_millis()
    }

    /// The first content is here.
    pub(super) fn first_token(&mut self) {
        if self.first_token.is_none() {
            self.first_token = Some(Instant::now());
            if let Some(drawn) = &self.drawn {
                drawn.speaks();
            }
        }
    }

    /// A copy is under way, which wants to know how this request ends.
    pub(super) fn copied(&mut self, shadow_request_id: String, told: oneshot::Sender<StableSide>) {
        self.shadow_request_id = Some(shadow_request_id);
        self.told = Some(told);
    }

    /// So much of the attempt was done before: a slow template is part of what users wait for.
    pub(super) fn began_before(&mut self, took: Duration) {
        self.started = self.started.checked_sub(took).unwrap_or(self.started);
    }

    /// The answer has ended, though it is not recorded yet.
    pub(super) fn ended(&mut self) {
        self.took.get_or_insert_with(|| self.started.elapsed());
    }

    /// As `finish`, beside what stable made of the same request.
    pub(super) fn finish_beside(&mut self, outcome: RecordOutcome, stable: Option<StableSide>) {
        self.stable = stable;
        self.finish(outcome);
    }

    /// The answer has ended with an error of the variant.
    pub(super) fn fail(&mut self, error: &ApiError) {
        self.error = Some(error.code);
        self.finish(RecordOutcome::Error);
    }

    /// What went wrong, whoever turns out to be at fault.
    pub(super) fn went_wrong(&mut self, error: &ApiError) {
        self.ended();
        self.error = Some(error.code);
        self.tell_operator(error.code);
    }

    /// Logs what only who runs the gateway or the release can mend.
    fn tell_operator(&self, code: &str) {
        let what = match code {
            "upstream_not_found" => "answers as if nothing were there: is spec.endpoint right?",
            "upstream_unauthorized" => "refuses the API key of the backend",
            MODEL_GONE => "has no such model, or not for the API key of the backend",
            "prompt_too_costly" => "was not asked: a template of the prompt takes too much",
            _ => return,
        };
        self.warn(code, || what.into());
    }

    /// As `tell_operator`, of a backend that can not be reached.
    pub(super) fn unreachable(&self, error: &dyn std::error::Error) {
        self.warn("upstream_unreachable", || {
            format!("can not be reached: {}", causes(error)).into()
        });
    }

    /// As `tell_operator`, of a backend that was reached and speaks something else.
    pub(super) fn no_http(&self, what: &str, error: &dyn std::error::Error) {
        self.warn("upstream_invalid", || {
            format!("was reached, and its answer {what}: {}", causes(error)).into()
        });
    }

    /// Logs what is wrong with the backend, once a minute for each `code`.
    fn warn<'a>(&self, code: &str, what: impl FnOnce() -> Cow<'a, str>) {
        let Origin { release, backend, model, .. } = &*self.target.origin;
        let subject = format!("{release} {backend} {code}");
        if self.gateway.refused.is_due(&subject, self.now_millis()) {
            let place = place(self.target.uri(self.operation), self.operation);
            tracing::warn!(%release, %backend, %model, %code, "{place} {}", what());
        }
    }

    /// The answer has ended.
    pub(super) fn finish(&mut self, outcome: RecordOutcome) {
        if std::mem::replace(&mut self.recorded, true) {
            return;
        }
        let duration = self.took.unwrap_or_else(|| self.started.elapsed()).as_secs_f64();
        let ok = outcome == RecordOutcome::Ok;
        let told = matches!(outcome, RecordOutcome::Ok | RecordOutcome::Error);
        if self.has_breaker() && told && !self.crowded {
            self.target.breaker.record(!ok, self.gateway.now_millis());
        }
        match self.error {
            Some(MODEL_GONE) => self.target.gone.is_said(self.gateway.now_millis()),
            _ if ok && self.reason != AssignmentReason::Cached => {
                self.target.gone.has_answered(self.gateway.now_millis());
            }
            _ => {}
        }
        let first = self.first_token.map(|t| (t - self.started).as_secs_f64());
        let first_token_seconds = if self.streamed { first } else { ok.then_some(duration) };
        // What comes from the cache was checked before, and costs nothing again.
        let cached = self.reason == AssignmentReason::Cached;
        let check = (ok && !cached).then(|| self.check());
        let content = self.traced_content();
        let answer = &mut self.answer;
        // A stream that was cut off tells no usage: an event with content is about a token.
        if !ok && self.streamed && answer.tokens.output.is_none() && answer.contents > 0 {
            answer.tokens.output = Some(answer.contents);
        }
        let tokens = answer.tokens;
        let [cost_usd, compared_usd] = match cached {
            true => [Some(0.0); 2],
            false => self.target.prices.both_usd(tokens, duration),
        };
        let record = Arc::new(Record {
            request_id: self.request_id.clone(),
            serial: self.serial,
            origin: self.target.origin.clone(),
            role: self.target.role,
            generation: self.route.generation,
            reason: self.reason,
            group: self.group,
            caller: self.caller.take(),
            operation: self.operation,
            trace: self.trace,
            at: self.at,
            outcome,
            error: self.error,
            status: self.status,
            first_token_seconds,
            duration_seconds: duration,
            seconds_per_output_token: first.zip(tokens.output).and_then(|(first, n)| {
                (self.streamed && n > 1).then(|| (duration - first) / (n - 1) as f64)
            }),
            tokens,
            cost_usd,
            compared_usd,
            input_kib: self.input_kib,
            check,
            streamed: self.streamed,
            served_model: answer.model.take(),
            response_id: answer.id.take(),
            finish_reason: answer.finish_reason.take(),
            content,
            stable: self.stable,
        });
        let is_unread = check == Some(CheckResult::Unread);
        if let Some(said) = self.not_understood.take().filter(|_| is_unread) {
            let known = Known { sent: self.target.secrets(true).clone(), key: self.key() };
            self.gateway.unread.keep(&record, &said, &known);
        }
        if let Some(told) = self.told.take() {
            let side = StableSide {
                outcome,
                check: record.check,
                cost_usd: record.cost_usd,
                compared_usd: record.compared_usd,
            };
            // Nobody listens when the copy was given up.
            let _ = told.send(side);
        }
        if let Some(drawn) = self.drawn.take() {
            drawn.end(&record);
        }
        if self.operation == Operation::Responses && ok {
            let kept = [record.response_id.as_ref(), self.conversation.as_ref()];
            for id in kept.into_iter().flatten() {
                self.gateway.origins.remember(id, &self.target.revision);
            }
        }
        self.gateway.sinks.iter().for_each(|sink| sink.consume(&record));
    }

    /// The content as it is exported to traces.
    fn traced_content(&mut self) -> Option<Box<Content>> {
        if self.is_withheld {
            let answer = &mut self.answer;
            (answer.model, answer.id, answer.finish_reason) = (None, None, None);
            answer.text = REDACTED.to_owned();
            self.not_understood = None;
        }
        let mut content = self.content.take()?;
        if self.is_withheld {
            content.tool_calls.clear();
        }
        let most = self.gateway.config.telemetry.tracing.content_bytes.unwrap_or(0);
        content.output = whole_words(std::mem::take(&mut self.answer.text), most);
        Some(content)
    }

    /// Whether nothing is wrong with a complete answer.
    pub(super) fn passes(&self) -> bool {
        self.check() == CheckResult::Passed
    }

    fn check(&self) -> CheckResult {
        let template = &self.target.template;
        if !self.vectors.are_those_of(&self.answer) {
            return CheckResult::Schema;
        }
        let wanted = self.wanted.unwrap_or(1);
        check(&self.answer, wanted, template, || template.tools().with_own(self.tools.as_deref()))
    }

    fn has_breaker(&self) -> bool {
        let candidate = self.route.candidate.as_ref();
        let on_trial = candidate.is_some_and(|c| c.target.revision == self.target.revision);
        let stands_in = !self.route.alternatives.is_empty() || self.route.stand_in().is_some();
        on_trial || (stands_in && self.is_baseline())
    }

    fn is_baseline(&self) -> bool {
        self.route.baseline.revision == self.target.revision
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // Many applications close a stream as soon as it says that it is done, or why it
        // has ended, without waiting for the usage and the mark of the end.
        let answer = &self.answer;
        let outcome = match self.streamed {
            // And raise an exception as soon as it tells of an error.
            true if answer.failed => RecordOutcome::Error,
            // Before the end, nobody knows yet whether it is a secret.
            true if answer.complete() && self.is_withheld => {
                self.error.get_or_insert(SECRET_CODE);
                RecordOutcome::Error
            }
            true if answer.complete() => RecordOutcome::Ok,
            _ => RecordOutcome::Cancelled,
        };
        if outcome == RecordOutcome::Error {
            self.error.get_or_insert(told_code(answer));
        }
        self.finish(outcome);
    }
}

/// Where a request goes, for logs. The path that the backend's address begins with may hold a
/// token.
fn place(uri: &Uri, operation: Operation) -> String {
    format!("{} (POST ...{})", uri.host().unwrap_or_default(), operation.path())
}

/// An error and what caused it, without credentials of addresses.
fn causes(error: &dyn std::error::Error) -> String {
    let mut causes: Vec<String> = vec![];
    let mut next = Some(error);
    while let Some(error) = next {
        let cause = error.to_string();
        // Some errors name their source themselves.
        if !causes.iter().any(|known| known.contains(&cause)) {
            causes.push(cause);
        }
        next = error.source();
    }
    without_credentials(&causes.join(": ")).into_owned()
}

/// The word for a failure that an answer tells of itself.
pub(super) fn told_code(answer: &Answer) -> &'static str {
    let says_why = answer.complaint.is_some() || answer.finish_reason.is_some();
    if says_why { "upstream_failed" } else { "upstream_broken" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_holds_no_path_of_a_backends_address() {
        let uri = Uri::from_static("https://m:8443/v1/zq7Kp2Lm9X/chat/completions?key=zq7Kp2Lm9X");
        assert_eq!(place(&uri, Operation::Chat), "m (POST .../chat/completions)");
    }
}
