//! A stream under way: read as it passes, until it has ended or is given up.

use std::{pin::Pin, time::Duration};

use bytes::Bytes;
use futures::FutureExt;
use serde::de::IgnoredAny;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    Answered, Asked, Failure, Flight, Unread, broken, next_chunk, no_memory, quotes::Quotes, told,
};
use crate::{
    gateway::budget::{Held, SMALL},
    openai::{
        alike::{Reader, Said},
        error::ApiError,
        sse::{Events, Fate, Payload},
    },
};

/// The longest that a stream may go on without content before it is passed on as it is.
const LONGEST_START: usize = 1 << 20;
/// The reason why an answer ended, its usage, the mark of the end, the end itself.
const LAST_WORDS: usize = 4;
/// How long the end of a connection is waited for when the answer was complete, so that the
/// connection can be used again.
const AFTER_THE_END: Duration = Duration::from_secs(1);
/// How long the usage and the mark of the end are waited for after the reason why the
/// answer ended.
const AFTER_THE_REASON: Duration = Duration::from_secs(10);

/// A stream under way: what was read and not taken yet, and the rest.
pub(in crate::gateway) struct Stream {
    rest: Answered,
    /// What was read ahead of the rest: how it ended.
    end: Option<Option<Unread>>,
    /// The last event was read.
    is_read: bool,
    events: Events,
    reader: Reader,
    /// The application did not ask for an event that carries nothing but usage.
    hides_usage: bool,
    /// The event in which the model says that it failed.
    failed: Option<Bytes>,
    /// How long the model wants to be left alone, by the headers.
    wait: Option<Duration>,
    patience: Patience,
    /// Content came after a reason why the answer had ended: it says nothing here.
    ends_early: bool,
    /// What is kept of it: an event that is not complete, the text, the calls.
    held: Held,
    quotes: Quotes,
}

/// How long a stream is waited for. Its timer is set once, and again when it fires too
/// early: with each event, only a time is noted.
struct Patience {
    timer: Pin<Box<Sleep>>,
    /// Since when the next bytes are waited for.
    since: Instant,
    between: Duration,
    /// When the whole must have come.
    deadline: Option<Instant>,
}

impl Patience {
    fn new(between: Duration, deadline: Option<Instant>) -> Self {
        let since = Instant::now();
        let first = since + between;
        let timer = Box::pin(sleep_until(deadline.map_or(first, |deadline| deadline.max(first))));
        Self { timer, since, between, deadline }
    }

    fn due(&self) -> Instant {
        let due = self.since + self.between;
        self.deadline.map_or(due, |deadline| deadline.min(due))
    }

    /// Ends when it is lost.
    async fn lost(&mut self) {
        loop {
            let due = self.due();
            if due < self.timer.deadline() {
                self.timer.as_mut().reset(due);
            }
            self.timer.as_mut().await;
            if self.timer.deadline() >= due {
                return;
            }
            self.timer.as_mut().reset(due);
        }
    }
}

/// What comes next in a stream.
pub(in crate::gateway) enum Next {
    /// Some bytes, read already.
    Chunk(Bytes),
    /// It is complete.
    End,
    /// It broke off.
    Broken,
    /// It took too long, or says nothing any more.
    Late,
    /// There is no room for what must be kept of it.
    Crowded(ApiError),
    /// It spells out a secret of ours.
    Secret,
    /// It has ended after it said that it failed, which has gone on.
    Failed,
}

impl Stream {
    pub(super) fn new(
        flight: &Flight,
        asked: &Asked,
        rest: Answered,
        wait: Option<Duration>,
        deadline: Option<Instant>,
    ) -> Self {
        Self {
            rest,
            end: None,
            is_read: false,
            events: Events::default(),
            reader: Reader::new(flight.operation),
            hides_usage: asked.hides_usage(),
            failed: None,
            wait,
            patience: Patience::new(flight.target.between_tokens_timeout, deadline),
            ends_early: false,
            held: flight.holds(),
            quotes: Quotes::new(flight.target.secrets(true).clone()),
        }
    }

    /// Holds what is kept of it, if there is room.
    fn hold(&mut self, flight: &Flight) -> Result<(), ApiError> {
        let kept = self.events.pending() + flight.answer.kept() + self.quotes.kept();
        if kept <= SMALL { Ok(()) } else { self.held.grow_to(kept) }
    }

    /// What is wrong with what has come, before anybody has seen any of it. What tells of an
    /// error may be what spells out a secret.
    fn failure(&self, flight: &mut Flight) -> Option<Failure> {
        let is_secret = self.quotes.is_secret();
        if flight.answer.failed {
            let failure = told(flight, self.failed.as_ref(), self.wait);
            return Some(if is_secret { failure.without_words() } else { failure });
        }
        is_secret.then(Failure::secret)
    }

    /// Reads until the stream says something: until then the answer may still come from
    /// another variant. Nor has it begun when it tells of an error right after its first
    /// words, for nobody has seen them.
    pub(super) async fn start(
        mut self,
        flight: &mut Flight,
        first: Bytes,
    ) -> Result<Box<Self>, Failure> {
        let mut read = 0;
        let mut next = Some(Ok(first));
        while let Some(chunk) = next {
            let chunk = chunk.map_err(|e| broken(&e))?;
            read += chunk.len();
            let content = self.read(chunk, flight);
            if let Err(error) = self.hold(flight) {
                flight.crowded = true;
                return Err(no_memory(error));
            }
            if let Some(failure) = self.failure(flight) {
                return Err(failure);
            }
            if content || flight.answer.complete() || read > LONGEST_START {
                return Ok(Box::new(self));
            }
            next = next_chunk(&mut self.rest).await;
        }
        let content = self.read_last(flight);
        if let Some(failure) = self.failure(flight) {
            return Err(failure);
        }
        if content || flight.answer.complete() || flight.answer.is_unread() {
            self.end = Some(None);
            return Ok(Box::new(self));
        }
        let message = "the model's stream ended before it said anything";
        Err(Failure { repeatable: true, ..Failure::new(502, "upstream_broken", message) })
    }

    /// Reads a chunk; says whether it carried content.
    fn read(&mut self, chunk: Bytes, flight: &mut Flight) -> bool {
        let (mut content, hides_usage) = (false, self.hides_usage);
        let Self { reader, failed, quotes, events, .. } = self;
        let mut said = Readers { reader, failed, quotes, is_last: false };
        let came = chunk.len();
        events.feed(chunk, |payload| heard(payload, &mut said, flight, hides_usage, &mut content));
        self.quotes.came(came);
        if flight.answer.failed || flight.answer.complete() {
            self.quotes.end();
        }
        self.conceal(flight);
        if content {
            flight.first_token();
        }
        content
    }

    /// The stream has ended well: its last event is one, though nothing may end it.
    fn read_last(&mut self, flight: &mut Flight) -> bool {
        self.is_read = true;
        let (mut content, hides_usage) = (false, self.hides_usage);
        let Self { reader, failed, quotes, events, .. } = self;
        let mut said = Readers { reader, failed, quotes, is_last: true };
        events.end(|payload| heard(payload, &mut said, flight, hides_usage, &mut content));
        self.quotes.end();
        self.conceal(flight);
        if content {
            flight.first_token();
        }
        content
    }

    /// An event that tells of an error may quote any header of the request. Of an answer that
    /// shows a secret nothing is kept, also when it ends here, or its reader goes away.
    fn conceal(&mut self, flight: &mut Flight) {
        flight.is_withheld = self.quotes.shows_most();
        if flight.answer.failed {
            let secrets = flight.target.secrets(false);
            self.events.change(|event| secrets.without(event));
        }
    }

    /// Reads what came together with the last words: usage, the mark of the end, the end
    /// itself. They go on in one write, where each would take one of its own.
    async fn gather(&mut self, flight: &mut Flight) {
        for _ in 0..LAST_WORDS {
            // Who reads the connection hands over one piece at a time.
            tokio::task::yield_now().await;
            match next_chunk(&mut self.rest).now_or_never() {
                Some(Some(Ok(chunk))) => {
                    self.read(chunk, flight);
                }
                Some(Some(Err(error))) => self.end = Some(Some(error)),
                Some(None) => self.end = Some(None),
                None => return,
            }
            if self.end.is_some() {
                return;
            }
        }
    }

    /// What is left when nothing more comes.
    fn last(&mut self) -> Next {
        self.events.broke_off();
        self.quotes.end();
        if self.quotes.is_secret() {
            return Next::Secret;
        }
        self.events.take().map_or(Next::End, Next::Chunk)
    }

    /// Waits for the next bytes and reads them.
    pub(in crate::gateway) async fn next(&mut self, flight: &mut Flight) -> Next {
        loop {
            if self.quotes.is_secret() {
                return Next::Secret;
            }
            if !self.quotes.holds()
                && let Some(bytes) = self.events.take()
            {
                return Next::Chunk(bytes);
            }
            self.patience.since = Instant::now();
            let chunk = match self.end.take() {
                Some(end) => end.map(Err),
                None => tokio::select! {
                    biased;
                    chunk = next_chunk(&mut self.rest) => chunk,
                    () = self.patience.lost() => match &flight.answer {
                        answer if answer.failed => return Next::Failed,
                        answer if answer.complete() => return self.last(),
                        _ => return Next::Late,
                    },
                },
            };
            match chunk {
                Some(Ok(chunk)) => {
                    self.goes_on(chunk, flight).await;
                    if let Err(error) = self.hold(flight) {
                        return Next::Crowded(error);
                    }
                }
                Some(Err(_)) if flight.answer.failed => return Next::Failed,
                // However the connection ends, the answer had said that it was complete.
                Some(Err(_)) if flight.answer.done => return self.last(),
                Some(Err(_)) => return Next::Broken,
                None => {
                    if let Some(next) = self.ended(flight) {
                        return next;
                    }
                }
            }
        }
    }

    async fn goes_on(&mut self, chunk: Bytes, flight: &mut Flight) {
        let had_ended = flight.answer.has_ended();
        let content = self.read(chunk, flight);
        self.ends_early |= had_ended && content;
        if flight.answer.complete() {
            self.gather(flight).await;
        }
        let between = flight.target.between_tokens_timeout;
        self.patience.between = if flight.answer.done {
            between.min(AFTER_THE_END)
        } else if flight.answer.has_ended() && !self.ends_early {
            between.min(AFTER_THE_REASON)
        } else {
            between
        };
    }

    /// The connection has ended well. None while something is to go on before that.
    fn ended(&mut self, flight: &mut Flight) -> Option<Next> {
        if !self.is_read {
            self.read_last(flight);
        }
        self.quotes.end();
        if self.quotes.is_secret() {
            return Some(Next::Secret);
        }
        let answer = &flight.answer;
        let is_whole = answer.complete() || answer.is_unread();
        if !answer.failed && !is_whole {
            // What came of an event would spoil the one that tells of this.
            while self.events.take().is_some() {}
            return Some(Next::Broken);
        }
        if let Some(bytes) = self.events.take() {
            self.end = Some(None);
            return Some(Next::Chunk(bytes));
        }
        Some(if answer.failed { Next::Failed } else { Next::End })
    }
}

/// What reads payloads.
struct Readers<'a> {
    reader: &'a mut Reader,
    failed: &'a mut Option<Bytes>,
    quotes: &'a mut Quotes,
    /// It is the last event, which nothing has ended.
    is_last: bool,
}

/// Reads a payload.
fn heard(
    payload: Payload<'_>,
    said: &mut Readers<'_>,
    flight: &mut Flight,
    hides_usage: bool,
    content: &mut bool,
) -> Fate {
    let mut fate = Fate::Forward;
    let (Payload::Data(data) | Payload::Error(data) | Payload::Stray(data)) = payload;
    match payload {
        Payload::Data(data) => {
            let called = std::mem::take(&mut flight.answer.tool_call);
            let quotes = &mut *said.quotes;
            let hear = |what: Said<'_>| quotes.event(data, &what);
            let carried = if said.is_last {
                said.reader.last(&mut flight.answer, data, hear)
            } else {
                said.reader.read(&mut flight.answer, data, hear)
            };
            if flight.answer.tool_call {
                flight.calls(data);
            }
            flight.answer.tool_call |= called;
            *content |= carried.content;
            if carried.nothing || (hides_usage && carried.only_usage) {
                fate = Fate::Drop;
            } else if said.is_last && carried.unread {
                fate = Fate::AsItCame;
            }
            if carried.unread {
                flight.not_understood(data);
            }
        }
        Payload::Error(data) => {
            said.quotes.event(data, &Said::Event(None));
            flight.answer.error_event(data);
        }
        Payload::Stray(line) => {
            said.quotes.event(line, &Said::Event(None));
            flight.answer.stray_line(line);
            flight.not_understood(line);
        }
    }
    let is_half = || serde_json::from_slice::<IgnoredAny>(data).is_err();
    if said.is_last && !matches!(payload, Payload::Data(_)) && is_half() {
        fate = Fate::AsItCame;
    }
    if flight.answer.failed && said.failed.is_none() {
        *said.failed = Some(Bytes::copy_from_slice(data));
    }
    fate
}
