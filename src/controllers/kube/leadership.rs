//! Which of several operators acts.
//!
//! The algorithm is that of client-go's `leaderelection`: a Lease is taken and renewed by
//! compare-and-swap on its resourceVersion; another one's Lease counts as expired when
//! it has not *changed* for its duration on our own clock, so clocks need not agree.
//!
//! Guarantees: a process says that it leads only until its last successful renewal
//! plus the duration, less a margin, counted from before that renewal was sent. So it
//! stops by itself when the API server is away, before another one may take over.
//! Each acquisition has a higher term than the one before; terms are written into every
//! status and the API server refuses a lower one, so a write that was under way when
//! leadership was lost can not undo its successor's.
//!
//! A process also says when nobody leads, as far as it sees: it has not led, nor seen a Lease
//! that another one renews, for longer than a Lease is valid. Then it is not ready, and says why.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::Stream;
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{sync::watch, time::Instant};

use crate::{controllers::exported::Exported, signals::api_server::said};

/// Leadership ends this long before the Lease does.
const MARGIN: Duration = Duration::from_secs(1);
/// A Lease that says it is valid for longer, and is not renewed for so long, has no leader.
const LONGEST_VALID: Duration = Duration::from_secs(300);

/// How leadership is sought.
#[derive(Clone, Debug)]
pub struct ElectionConfig {
    /// The namespace of the Lease.
    pub namespace: String,
    /// The Lease's name.
    pub lease: String,
    /// Who this process is: the pod's name.
    pub identity: String,
    /// How long a Lease is valid without renewal. At least 3 s.
    pub duration: Duration,
    /// The wall clock, for what people read in the Lease.
    pub clock: fn() -> Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Held {
    term: i64,
    until: Instant,
    /// Since when it leads without a break. Within a break nothing is decided, and who came to be
    /// looked at has to come again.
    since: Instant,
}

/// Whether this process leads.
pub struct Leadership {
    identity: String,
    /// How long a Lease is valid.
    duration: Duration,
    held: watch::Sender<Option<Held>>,
    seen: Mutex<Seen>,
}

/// What reading the Lease has brought.
struct Seen {
    /// When a leader lived last, this process or another one; at first, when this one began.
    leader: Instant,
    /// Who holds the Lease, when it is another process.
    holder: Option<String>,
    /// For how long a Lease may stay as it is before its holder counts as gone.
    patience: Duration,
    /// Why the last attempt to use it failed.
    trouble: Option<String>,
}

/// How long it may take until another process has taken a Lease that is valid for `duration`.
fn patience(duration: Duration) -> Duration {
    duration + 2 * duration / READS
}

/// That nobody leads, as far as this process sees.
#[derive(Debug, PartialEq, Eq)]
pub struct Leaderless {
    /// For how long.
    pub since: Duration,
    /// Why, and what to do.
    pub why: String,
}

impl Leadership {
    /// Nobody leads yet. A Lease is valid for `duration`.
    pub fn new(identity: &str, duration: Duration) -> Arc<Self> {
        let patience = patience(duration);
        let seen = Seen { leader: Instant::now(), holder: None, patience, trouble: None };
        let (identity, seen) = (identity.to_owned(), Mutex::new(seen));
        Arc::new(Self { identity, duration, held: watch::channel(None).0, seen })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The other process that leads, if one does.
    pub fn holder(&self) -> Option<String> {
        self.seen().holder.clone()
    }

    /// Whether nobody leads. After a leader has died its Lease has to expire before another one
    /// takes it, when it reads the Lease next: so long nothing is wrong.
    pub fn leaderless(&self) -> Option<Leaderless> {
        if self.term().is_some() {
            return None;
        }
        let seen = self.seen();
        let since = seen.leader.elapsed();
        (since >= seen.patience).then(|| {
            let why = match (&seen.trouble, &seen.holder) {
                (Some(trouble), _) => trouble.clone(),
                (None, Some(holder)) => format!(
                    "{holder} holds the Lease and does not renew it: if that process is gone, delete the Lease"
                ),
                (None, None) => "nobody has taken the Lease; an operator takes it when its caches are filled".to_owned(),
            };
            Leaderless { since, why }
        })
    }

    /// Takes note of what reading the Lease has brought, and logs what is new.
    fn observed(&self, state: Result<LeaseState, String>) {
        match state {
            Ok(state) => {
                let held = match state {
                    LeaseState::Held(held) => Some(held),
                    LeaseState::Other { .. } | LeaseState::Free => None,
                };
                self.set(held);
                let mut seen = self.seen();
                let (lived, valid);
                (seen.holder, lived, valid) = match state {
                    LeaseState::Held(_) => (None, Instant::now(), Duration::ZERO),
                    LeaseState::Other { holder, lived, valid } => (holder, lived, valid),
                    LeaseState::Free => (None, seen.leader, Duration::ZERO),
                };
                // A process that has just begun does not know how long it was so before.
                seen.leader = seen.leader.max(lived);
                seen.patience = patience(self.duration).max(valid.min(LONGEST_VALID));
                if seen.trouble.take().is_some() {
                    tracing::info!("the Lease can be used again");
                }
            }
            // A failed renewal leaves what is held until its own end.
            Err(why) => {
                let mut seen = self.seen();
                if seen.trouble.as_ref() != Some(&why) {
                    tracing::warn!("{why}");
                }
                if self.term().is_some() {
                    seen.leader = Instant::now();
                }
                (seen.holder, seen.trouble) = (None, Some(why));
            }
        }
    }

    /// Who this process is.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The current term while this process is sure that it leads.
    pub fn term(&self) -> Option<i64> {
        let held = (*self.held.borrow())?;
        (Instant::now() < held.until).then_some(held.term)
    }

    /// Emits whenever this process became the leader, and when it leads again after its time was
    /// over, if only for a moment and in the same term.
    pub fn elections(&self) -> impl Stream<Item = ()> + Send + 'static {
        let mut receiver = self.held.subscribe();
        // Leadership may be older than the subscription.
        receiver.mark_changed();
        futures::stream::unfold((receiver, None), |(mut receiver, mut known)| async move {
            loop {
                receiver.changed().await.ok()?;
                let led = receiver.borrow_and_update().map(|held| (held.term, held.since));
                if led != known {
                    known = led;
                    if led.is_some() {
                        return Some(((), (receiver, known)));
                    }
                }
            }
        })
    }

    fn set(&self, held: Option<Held>) {
        let now = Instant::now();
        self.held.send_modify(|known| {
            let goes_on = known
                .zip(held)
                .filter(|(known, held)| known.term == held.term && now < known.until);
            let since = goes_on.map(|(known, _)| known.since);
            *known = held.map(|held| Held { since: since.unwrap_or(held.since), ..held });
        });
    }

    /// Leads for an hour.
    #[cfg(test)]
    pub(in crate::controllers) fn leading() -> Arc<Self> {
        let this = Self::new("test", Duration::from_secs(15));
        let since = Instant::now();
        this.set(Some(Held { term: 1, until: since + Duration::from_secs(3600), since }));
        this
    }
}

/// What was seen of the Lease, and when it last changed.
#[derive(Debug, Default)]
struct Observed {
    version: Option<String>,
    since: Option<Instant>,
}

/// Who leads, as the Lease says.
#[derive(Debug)]
enum LeaseState {
    /// This process.
    Held(Held),
    /// Another one, whose Lease is valid for so long after it last changed.
    Other { holder: Option<String>, lived: Instant, valid: Duration },
    /// Nobody, and this process can not lead yet.
    Free,
}

/// The Lease is observed at so often while it is valid.
const READS: u32 = 5;

/// What to do about a Lease.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// Write this spec. The term is that of the acquisition.
    Write { spec: LeaseSpec, term: i64, acquired: bool },
    /// Somebody else holds it.
    Wait,
}

/// Seeks leadership until `stop`, then hands the Lease back. The Lease is not taken until this
/// process is `fit` to lead: one that can not see what is to be done would keep others from it.
pub async fn seek(
    client: Client,
    config: ElectionConfig,
    leadership: Arc<Leadership>,
    exported: Arc<Exported>,
    fit: impl Fn() -> bool,
    stop: tokio_util::sync::CancellationToken,
) {
    let api: Api<Lease> = Api::namespaced(client, &config.namespace);
    let mut observed = Observed::default();
    let period = config.duration / READS;
    loop {
        let before = leadership.term();
        let fit = before.is_some() || fit();
        let attempt = once(&api, &config, &mut observed, fit);
        let attempt = tokio::time::timeout(config.duration / 2, attempt);
        leadership.observed(match attempt.await {
            Ok(observed) => observed.map_err(|error| unusable(&config, &error)),
            Err(_) => {
                let ElectionConfig { namespace, lease, .. } = &config;
                Err(format!(
                    "the Lease {namespace}/{lease}: the API server does not answer in time"
                ))
            }
        });
        let term = leadership.term();
        exported.lead(term.is_some());
        if term != before {
            tracing::info!(identity = config.identity, term, "leadership changed");
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(period) => {}
        }
    }
    let held = leadership.term().is_some();
    leadership.set(None);
    if held && let Err(error) = hand_back(&api, &config).await {
        tracing::warn!("the Lease was not handed back: {}", said(&error).0);
    }
}

/// Why the Lease can not be used, and what to do.
fn unusable(config: &ElectionConfig, error: &kube::Error) -> String {
    let ElectionConfig { namespace, lease, .. } = config;
    let (why, code) = said(error);
    if matches!(error, kube::Error::SerdeError(_)) {
        return format!(
            "the Lease {namespace}/{lease} can not be read, so nobody leads: {why}: kubectl -n \
             {namespace} delete lease {lease}, and a leader is elected anew"
        );
    }
    let remedy = match code {
        401 => ": the API server does not know this operator: look at its ServiceAccount and token",
        403 => {
            ": upgrade the Helm release, or apply the Role serinus-operator of \
                deploy/rbac-operator.yaml"
        }
        404 => ": does its namespace exist?",
        _ => "",
    };
    format!("the Lease {namespace}/{lease} can not be used: {why}{remedy}")
}

async fn once(
    api: &Api<Lease>,
    config: &ElectionConfig,
    observed: &mut Observed,
    fit: bool,
) -> Result<LeaseState, kube::Error> {
    let (lease, exists) = match api.get_opt(&config.lease).await? {
        Some(lease) => (lease, true),
        None => (named(&config.lease), false),
    };
    let started = Instant::now();
    if observed.version != lease.metadata.resource_version || observed.since.is_none() {
        *observed =
            Observed { version: lease.metadata.resource_version.clone(), since: Some(started) };
    }
    let unchanged = observed.since.map_or(Duration::ZERO, |since| started - since);
    let spec = lease.spec.clone().unwrap_or_default();
    let step = step(&spec, config, unchanged, (config.clock)());
    if matches!(step, Step::Write { .. }) && !fit {
        return Ok(LeaseState::Free);
    }
    let Step::Write { spec, term, acquired } = step else {
        let valid = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let valid = Duration::from_secs(valid.unwrap_or_default());
        return Ok(LeaseState::Other {
            holder: spec.holder_identity,
            lived: started - unchanged,
            valid,
        });
    };
    let lease = Lease { spec: Some(spec), ..lease };
    let post = PostParams::default();
    let written = if exists {
        api.replace(&config.lease, &post, &lease).await
    } else {
        api.create(&post, &lease).await
    };
    match written {
        Ok(_) => {
            if acquired {
                tracing::info!(identity = config.identity, term, "took the Lease {}", config.lease);
            }
            let until = started + config.duration.saturating_sub(MARGIN);
            Ok(LeaseState::Held(Held { term, until, since: Instant::now() }))
        }
        // Somebody was faster: the next look tells who.
        Err(kube::Error::Api(status)) if status.code == 409 => {
            Ok(LeaseState::Other { holder: None, lived: started, valid: Duration::ZERO })
        }
        Err(error) => Err(error),
    }
}

fn named(name: &str) -> Lease {
    Lease {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        spec: None,
    }
}

/// What to do about a Lease that has not changed for `unchanged`.
fn step(spec: &LeaseSpec, config: &ElectionConfig, unchanged: Duration, now: Timestamp) -> Step {
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let old_term = spec.acquire_time.as_ref().map(|t| t.0.as_microsecond());
    let seconds = i32::try_from(config.duration.as_secs()).unwrap_or(i32::MAX);
    if holder == config.identity
        && let Some(term) = old_term
    {
        let spec = LeaseSpec {
            renew_time: Some(MicroTime(now)),
            lease_duration_seconds: Some(seconds),
            ..spec.clone()
        };
        return Step::Write { spec, term, acquired: false };
    }
    let promised = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(0);
    if !holder.is_empty() && unchanged < Duration::from_secs(promised) {
        return Step::Wait;
    }
    // Higher than every term before, also when the clock of an earlier holder was ahead.
    let term = now.as_microsecond().max(old_term.map_or(i64::MIN, |t| t + 1));
    let spec = LeaseSpec {
        holder_identity: Some(config.identity.clone()),
        acquire_time: Timestamp::from_microsecond(term).ok().map(MicroTime),
        renew_time: Some(MicroTime(now)),
        lease_duration_seconds: Some(seconds),
        lease_transitions: Some(spec.lease_transitions.unwrap_or(0).saturating_add(1)),
        ..LeaseSpec::default()
    };
    Step::Write { spec, term, acquired: true }
}

async fn hand_back(api: &Api<Lease>, config: &ElectionConfig) -> Result<(), kube::Error> {
    let Some(mut lease) = api.get_opt(&config.lease).await? else { return Ok(()) };
    let Some(spec) = lease.spec.as_mut() else { return Ok(()) };
    if spec.holder_identity.as_deref() == Some(config.identity.as_str()) {
        spec.holder_identity = None;
        api.replace(&config.lease, &PostParams::default(), &lease).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::{
        Router,
        http::{Method, StatusCode},
    };
    use tokio::task::JoinSet;

    use super::*;

    fn config(identity: &str) -> ElectionConfig {
        ElectionConfig {
            namespace: "ns".into(),
            lease: "serinus".into(),
            identity: identity.into(),
            duration: Duration::from_secs(15),
            clock: || Timestamp::UNIX_EPOCH,
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn taken(step: Step) -> (LeaseSpec, i64, bool) {
        match step {
            Step::Write { spec, term, acquired } => (spec, term, acquired),
            Step::Wait => panic!("expected a write"),
        }
    }

    #[test]
    fn a_free_lease_is_taken_and_then_renewed_under_the_same_term() {
        let (spec, term, acquired) =
            taken(step(&LeaseSpec::default(), &config("a"), Duration::ZERO, at(100)));
        assert!(acquired);
        let (renewed, again, acquired) =
            taken(step(&spec, &config("a"), Duration::from_secs(3), at(103)));
        assert_eq!((again, acquired), (term, false));
        assert_eq!(renewed.renew_time, Some(MicroTime(at(103))));
        assert_eq!(renewed.lease_transitions, Some(1));
    }

    #[test]
    fn a_lease_of_another_one_is_left_alone_until_it_stood_still_for_its_duration() {
        let (spec, ..) = taken(step(&LeaseSpec::default(), &config("a"), Duration::ZERO, at(100)));
        // Our clock says that it expired long ago, but it changed a moment ago.
        assert_eq!(step(&spec, &config("b"), Duration::from_secs(14), at(9_999)), Step::Wait);
        let (stolen, _, acquired) =
            taken(step(&spec, &config("b"), Duration::from_secs(15), at(101)));
        assert!(acquired);
        assert_eq!(stolen.holder_identity.as_deref(), Some("b"));
    }

    #[test]
    fn the_term_grows_also_when_the_clock_went_back() {
        let (spec, first, _) =
            taken(step(&LeaseSpec::default(), &config("a"), Duration::ZERO, at(1_000)));
        let (_, second, _) = taken(step(&spec, &config("b"), Duration::from_secs(15), at(10)));
        assert!(second > first, "{second} > {first}");
    }

    #[test]
    fn a_lease_that_was_handed_back_is_taken_at_once() {
        let (mut spec, ..) =
            taken(step(&LeaseSpec::default(), &config("a"), Duration::ZERO, at(100)));
        spec.holder_identity = None;
        assert!(taken(step(&spec, &config("b"), Duration::ZERO, at(101))).2);
    }

    fn failure(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Box::new(kube::core::Status::failure(message, "").with_code(code)))
    }

    /// Has no Lease, and counts how often it was asked for one, and for a new one.
    async fn without_a_lease(asked: Arc<[AtomicUsize; 2]>) -> (Client, JoinSet<()>) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let answer = move |method: Method, body: String| async move {
            let creates = method == Method::POST;
            asked[usize::from(creates)].fetch_add(1, Ordering::Relaxed);
            let status = kube::core::Status::failure("not found", "NotFound").with_code(404);
            let body = if creates { body } else { serde_json::to_string(&status).unwrap() };
            (if creates { StatusCode::CREATED } else { StatusCode::NOT_FOUND }, body)
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            axum::serve(listener, Router::new().fallback(answer)).await.unwrap();
        });
        (Client::try_from(kube::Config::new(address.parse().unwrap())).unwrap(), tasks)
    }

    #[tokio::test]
    async fn who_can_not_see_what_is_to_be_done_leaves_the_lease_to_others() {
        let asked: Arc<[AtomicUsize; 2]> = Arc::default();
        let (client, _tasks) = without_a_lease(asked.clone()).await;
        let count = |of: usize| asked[of].load(Ordering::Relaxed);
        let config = ElectionConfig { duration: Duration::from_millis(100), ..config("a") };
        let leadership = Leadership::new("a", config.duration);
        // It is fit after it has looked five times.
        let fit = || count(0) >= 5;
        let stop = tokio_util::sync::CancellationToken::new();
        let seeking = seek(client, config, leadership, Arc::default(), fit, stop.clone());
        let taken = async {
            while count(1) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert!(count(0) > 5, "{}", count(0));
            stop.cancel();
        };
        tokio::join!(seeking, taken);
    }

    #[tokio::test(start_paused = true)]
    async fn that_nobody_leads_is_said_with_the_reason_after_a_lease_is_over() {
        let second = Duration::from_secs(1);
        let leadership = Leadership::new("a", 15 * second);
        let failed = |code, message: &str| Err(unusable(&config("a"), &failure(code, message)));
        for _ in 0..20 {
            leadership.observed(failed(401, "Unauthorized"));
            assert_eq!(leadership.leaderless(), None, "a Lease could still be valid");
            tokio::time::advance(second).await;
        }
        tokio::time::advance(second).await;
        let Leaderless { since, why } = leadership.leaderless().unwrap();
        assert_eq!(since, 21 * second);
        for part in ["Lease ns/serinus", "Unauthorized", "ServiceAccount"] {
            assert!(why.contains(part), "{part} is not in {why}");
        }
        // What is in it is no Lease that anybody can read.
        let odd = serde_json::from_str::<Timestamp>("\"9999-12-31T23:59:59.999999Z\"").unwrap_err();
        leadership.observed(Err(unusable(&config("a"), &kube::Error::SerdeError(odd))));
        let why = leadership.leaderless().unwrap().why;
        assert!(why.contains("kubectl -n ns delete lease serinus,"), "{why}");
        // Another one leads: this one need not.
        let holder = Some("b".to_owned());
        let other = |lived, valid| Ok(LeaseState::Other { holder: holder.clone(), lived, valid });
        leadership.observed(other(Instant::now(), 15 * second));
        assert_eq!((leadership.leaderless(), leadership.holder()), (None, holder.clone()));
        // It is seen no more.
        leadership.observed(failed(403, "b is forbidden"));
        tokio::time::advance(21 * second).await;
        let why = leadership.leaderless().unwrap().why;
        assert!(
            why.contains("is forbidden: upgrade the Helm release") && leadership.holder().is_none()
        );
        // It does not renew a Lease that is valid for years, or for as long as it may.
        for (valid, patience) in [(u32::MAX, 300), (60, 60), (5, 21)] {
            let lived = Instant::now();
            leadership.observed(other(lived, valid * second));
            tokio::time::advance((patience - 1) * second).await;
            leadership.observed(other(lived, valid * second));
            assert_eq!(leadership.leaderless(), None, "{valid}");
            tokio::time::advance(second).await;
            let why = leadership.leaderless().unwrap().why;
            assert!(why.contains("b holds the Lease and does not renew it"), "{why}");
        }
        // Whoever leads itself says nothing, also when it can renew no more, until its end.
        let since = Instant::now();
        let held = Held { term: 7, until: since + 14 * second, since };
        leadership.observed(Ok(LeaseState::Held(held)));
        for _ in 0..13 {
            tokio::time::advance(second).await;
            leadership.observed(failed(500, "away"));
            assert_eq!((leadership.leaderless(), leadership.term()), (None, Some(7)));
        }
        tokio::time::advance(21 * second).await;
        assert!(leadership.leaderless().is_some() && leadership.term().is_none());
    }

    /// What is asked to be looked at within a break is not looked at, and nobody asks again.
    #[tokio::test(start_paused = true)]
    async fn who_leads_again_after_a_break_looks_at_everything_again() {
        use futures::{FutureExt, StreamExt};
        let second = Duration::from_secs(1);
        let leadership = Leadership::new("a", 15 * second);
        let mut elections = std::pin::pin!(leadership.elections());
        let mut emitted = || elections.next().now_or_never().is_some();
        let renew = |term| {
            let since = Instant::now();
            leadership.observed(Ok(LeaseState::Held(Held {
                term,
                until: since + 14 * second,
                since,
            })));
        };
        assert!(!emitted());
        renew(1);
        assert!(emitted() && !emitted());
        // Renewed in time.
        for _ in 0..5 {
            tokio::time::advance(13 * second).await;
            renew(1);
            assert!(!emitted());
        }
        // Too late, in the same term; nobody saw that it did not lead in between.
        tokio::time::advance(15 * second).await;
        assert_eq!(leadership.term(), None);
        renew(1);
        assert!(leadership.term() == Some(1) && emitted() && !emitted());
        // Lost to another one and back between two looks.
        leadership.observed(Ok(LeaseState::Free));
        tokio::time::advance(second).await;
        renew(1);
        assert!(emitted() && !emitted());
        renew(2);
        assert!(emitted() && !emitted());
    }
}
