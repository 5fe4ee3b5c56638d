//! Asks Prometheus: for all releases together, each text once, many texts in one query, at
//! most [`AT_ONCE`] queries at a time and within a bounded time. What it answered is kept by release and
//! routing generation until it is asked again.
//!
//! A slow or broken server costs only this task: whoever decides reads what is kept, and
//! what is too old or of another generation is `PrometheusPending`, never evidence.

mod failure;
mod questions;
mod source;
mod templates;
mod text;
mod together;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    time::Duration,
};

use futures::StreamExt;
use jiff::Timestamp;
use tokio::time::Instant;

pub use self::{
    failure::{Failure, REASONS},
    questions::{Counts, Question, Questions, notes, questions},
    source::{Config, SetupError},
    text::{Side, fill, window},
};
use self::{
    questions::asked,
    source::Source,
    together::{Spoilers, may_be_one},
};
use crate::{
    analysis::{
        external::{External, Externals},
        stats::proportion::Share,
    },
    api::CanaryPolicySpec,
};

/// Queries that run at the same time.
const AT_ONCE: usize = 8;
/// A round takes at most so many times the patience for one query.
const ROUND: u32 = 3;
/// So many intervals (and a round) after it was asked, an answer is no evidence any more.
const STALE: u32 = 3;
/// `increase` extrapolates, and two queries may see different scrapes: so much more bad
/// than total is rounding, and counts as all bad.
const SLACK: f64 = 0.02;

/// What Prometheus answered last.
#[derive(Default)]
pub struct Prometheus {
    source: Option<Source>,
    known: Mutex<BTreeMap<String, Known>>,
    spoilers: Spoilers,
}

#[derive(Clone, Debug)]
struct Known {
    generation: i64,
    at: Timestamp,
    interval: Duration,
    externals: Externals,
}

/// What one round was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// How many queries were sent.
    pub sent: usize,
    /// Why some texts brought nothing: the reason of each.
    pub failed: Vec<&'static str>,
}

type Answers = BTreeMap<String, Result<f64, Failure>>;

impl Prometheus {
    /// Without an address every question is answered `PrometheusNotConfigured`.
    ///
    /// # Errors
    /// The address is none, or the HTTP client could not be set up.
    pub fn new(config: Option<Config>) -> Result<Self, SetupError> {
        let source = config.map(Source::new).transpose()?;
        Ok(Self { source, ..Self::default() })
    }

    /// Whether there is anything to ask.
    pub fn configured(&self) -> bool {
        self.source.is_some()
    }

    /// Why the queries of a policy can never be answered, if so.
    pub fn unusable(&self, policy: &CanaryPolicySpec) -> Option<String> {
        asked(policy).next()?;
        if !self.configured() {
            return Some(Failure::NotConfigured.to_string());
        }
        notes(policy).err()
    }

    /// Whether a release should be asked for now: never under this routing generation, or
    /// an interval ago.
    pub fn due(&self, release: &str, generation: i64, now: Timestamp) -> bool {
        let Ok(known) = self.known.lock() else { return false };
        known.get(release).is_none_or(|k| {
            k.generation != generation || elapsed(k.at, now).is_none_or(|e| e >= k.interval)
        })
    }

    /// Asks all questions in one round and keeps the answers.
    pub async fn ask(&self, questions: &[Questions], now: Timestamp) -> Round {
        let Some(source) = &self.source else { return Round::default() };
        let texts = questions.iter().flat_map(texts_of).map(str::to_owned).collect();
        let (sent, answers) = answers(source, texts, &self.spoilers).await;
        let failed = answers.values().filter_map(|a| a.as_ref().err()).map(Failure::reason);
        let round = Round { sent, failed: failed.collect() };
        if let Ok(mut known) = self.known.lock() {
            for asked in questions {
                let of = |(metric, question): &(String, Result<Question, Failure>)| {
                    (metric.clone(), external(question, &answers))
                };
                let externals = asked.metrics.iter().map(of).collect();
                let (generation, interval) = (asked.generation, asked.interval);
                let kept = Known { generation, at: now, interval, externals };
                known.insert(asked.release.clone(), kept);
            }
        }
        round
    }

    /// The values that one query answers, by their labels: for people, not for verdicts.
    ///
    /// # Errors
    /// There is no address, or the server did not answer as it should.
    pub async fn table(&self, text: &str) -> Result<Vec<(BTreeMap<String, String>, f64)>, Failure> {
        let source = self.source.as_ref().ok_or(Failure::NotConfigured)?;
        let token = source.token().await?;
        source.table(text, token.as_ref()).await
    }

    /// Keeps only what belongs to these releases.
    pub fn forget_all_but(&self, releases: &BTreeSet<String>) {
        if let Ok(mut known) = self.known.lock() {
            known.retain(|release, _| releases.contains(release));
        }
    }

    /// What is known of the metrics of `policy` that Prometheus answers.
    pub fn of(
        &self,
        release: &str,
        generation: i64,
        policy: &CanaryPolicySpec,
        now: Timestamp,
    ) -> Externals {
        let Some(source) = &self.source else { return all(policy, &Failure::NotConfigured) };
        let known = self.known.lock().ok().and_then(|known| known.get(release).cloned());
        let longest = policy.analysis.interval.0 * STALE + source.timeout * ROUND;
        let mut externals = all(policy, &Failure::Pending);
        if let Some(known) = known
            && known.generation == generation
            && elapsed(known.at, now).is_some_and(|e| e <= longest)
        {
            for (metric, external) in known.externals {
                externals.entry(metric).and_modify(|e| *e = external);
            }
        }
        externals
    }
}

/// How long ago; none when a clock went back by much.
fn elapsed(at: Timestamp, now: Timestamp) -> Option<Duration> {
    const JUMP: i64 = 5;
    let since = now.duration_since(at);
    if since.as_secs() < -JUMP { None } else { Some(Duration::try_from(since).unwrap_or_default()) }
}

fn all(policy: &CanaryPolicySpec, failure: &Failure) -> Externals {
    asked(policy).map(|(metric, _)| (metric.name.clone(), failure.clone().into())).collect()
}

fn texts_of(questions: &Questions) -> Vec<&str> {
    let mut texts = vec![];
    for question in questions.metrics.iter().filter_map(|(_, q)| q.as_ref().ok()) {
        match question {
            Question::Value(text) => texts.push(text.as_str()),
            Question::Shares { stable, canary } => {
                for counts in stable.iter().chain([canary]) {
                    texts.extend([counts.bad.as_str(), counts.total.as_str()]);
                }
            }
        }
    }
    texts
}

/// Asks for every text. What does not come back within the round is a timeout. The number of
/// queries, and what they answered.
async fn answers(
    source: &Source,
    texts: BTreeSet<String>,
    spoilers: &Spoilers,
) -> (usize, Answers) {
    let (mut sent, mut answers) = (0, Answers::new());
    if texts.is_empty() {
        return (sent, answers);
    }
    let token = match source.token().await {
        Ok(token) => token,
        Err(failure) => {
            let failed = |text| (text, Err(failure.clone()));
            return (sent, texts.into_iter().map(failed).collect());
        }
    };
    let (token, end) = (token.as_ref(), Instant::now() + source.timeout * ROUND);
    let mut waiting = spoilers.batches(texts, AT_ONCE);
    while !waiting.is_empty() {
        sent += waiting.len();
        let asked: Vec<_> = futures::stream::iter(std::mem::take(&mut waiting))
            .map(|batch| async move {
                let found = tokio::time::timeout_at(end, source.numbers(&batch, token)).await;
                (batch, found.unwrap_or(Err(Failure::Timeout(source.timeout))))
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (batch, found) in asked {
            match found {
                Ok((found, goes_with_others)) => {
                    if let Some(text) = batch.alone().filter(|_| !goes_with_others) {
                        spoilers.add(text);
                    }
                    answers.extend(batch.texts.into_iter().zip(found));
                }
                Err(failure)
                    if batch.alone().is_none() && may_be_one(&failure) && Instant::now() < end =>
                {
                    waiting.extend(batch.parts(&failure));
                }
                Err(failure) => {
                    if let Some(text) = batch.alone().filter(|_| may_be_one(&failure)) {
                        spoilers.add(text);
                    }
                    let failed = |text| (text, Err(failure.clone()));
                    answers.extend(batch.texts.into_iter().map(failed));
                }
            }
        }
    }
    (sent, answers)
}

fn external(question: &Result<Question, Failure>, answers: &Answers) -> External {
    let answer = |text: &str| answers.get(text).cloned().unwrap_or(Err(Failure::Pending));
    let share = |counts: &Counts| share(answer(&counts.bad)?, answer(&counts.total)?);
    let evidence = question.clone().and_then(|question| match question {
        Question::Value(text) => answer(&text).map(External::Value),
        Question::Shares { stable, canary } => {
            let none = Ok(Share { n: 0.0, bad: 0.0 });
            let stable = stable.as_ref().map_or(none, share)?;
            Ok(External::Shares { stable, canary: share(&canary)? })
        }
    });
    evidence.unwrap_or_else(External::from)
}

/// Two counts to a share. `increase` extrapolates to the edges of its window and answers
/// fractions of events: both counts are rounded to whole ones.
fn share(bad: f64, total: f64) -> Result<Share, Failure> {
    let slack = 1.0 + total * SLACK;
    if total < 0.0 || bad < -slack || bad > total + slack {
        return Err(Failure::CountsInvalid { bad, total });
    }
    let n = total.round();
    Ok(Share { n, bad: bad.round().clamp(0.0, n) })
}

#[cfg(test)]
mod tests;
