//! Against an API server that only keeps names, and caches that show what was written only when
//! they are told to.

use std::{
    convert::Infallible,
    sync::{Mutex, PoisonError},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, stream::pending};
use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use super::*;
use crate::{
    api::{
        ReleaseSnapshotSpec,
        prompt_release::{HistoryEntry, Outcome, Phase},
        snapshot::EarlierRoute,
    },
    controllers::{
        backend::probe::Probe,
        caches::Caches,
        exported::Exported,
        kube::{Cluster, leadership::Leadership},
        pulse::Pulse,
        release::{Ahead, Examined, Refusals, before::before},
        retries::Retries,
    },
    rollout::{Problem, ServedBefore, Target, decide},
    signals::{addresses::Addresses, gateways::Gateways, prometheus::Prometheus},
};

mod copied;
mod refused;
mod restored;

const REVISION: &str = "0123456789012345678901234567890123456789";

/// What was asked of the API server.
#[derive(Default)]
struct Asked {
    snapshots: BTreeMap<String, Value>,
    /// Releases as they are listed.
    releases: Vec<Value>,
    creations: usize,
    patches: usize,
    /// Statuses of the release that were written.
    statuses: Vec<Value>,
    /// With which code and words it refuses new snapshots.
    refuses: Option<(u16, &'static str)>,
}

type Server = std::sync::Arc<Mutex<Asked>>;

fn lock(server: &Server) -> std::sync::MutexGuard<'_, Asked> {
    server.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(State(server): State<Server>, method: Method, uri: Uri, body: Bytes) -> Response {
    if uri.query().is_some_and(|query| query.contains("watch=true")) {
        // Nothing happens.
        return Body::from_stream(pending::<Result<Bytes, Infallible>>()).into_response();
    }
    let asked = lock(&server);
    if method == Method::GET {
        let (kind, items): (_, Vec<&Value>) = if uri.path().ends_with("/promptreleases") {
            ("PromptReleaseList", asked.releases.iter().collect())
        } else {
            ("ReleaseSnapshotList", asked.snapshots.values().collect())
        };
        let list = json!({"kind": kind, "apiVersion": "serinus.dev/v1alpha1",
            "metadata": {"resourceVersion": "1"}, "items": items});
        return Json(list).into_response();
    }
    drop(asked);
    write(&server, &method, &uri, serde_json::from_slice(&body).unwrap()).into_response()
}

fn write(server: &Server, method: &Method, uri: &Uri, body: Value) -> (StatusCode, Json<Value>) {
    let mut asked = lock(server);
    if uri.path() == "/apis/serinus.dev/v1alpha1/namespaces/ns/promptreleases/answers/status" {
        asked.statuses.push(body["status"].clone());
        return (StatusCode::OK, Json(body));
    }
    let path = "/apis/serinus.dev/v1alpha1/namespaces/ns/releasesnapshots";
    assert!(uri.path().starts_with(path), "{method} {uri}");
    if method == Method::POST
        && let Some((code, message)) = asked.refuses
    {
        asked.creations += 1;
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {},
            "status": "Failure", "reason": "", "message": message, "code": code});
        return (StatusCode::from_u16(code).unwrap(), Json(status));
    }
    if method == Method::PATCH {
        asked.patches += 1;
        return (StatusCode::OK, Json(json!({"metadata": {"name": "answers-1"}})));
    }
    assert_eq!(method, Method::POST);
    asked.creations += 1;
    let name = body["metadata"]["name"].as_str().unwrap().to_owned();
    if asked.snapshots.contains_key(&name) {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {},
            "status": "Failure", "reason": "AlreadyExists", "message": "", "code": 409});
        return (StatusCode::CONFLICT, Json(status));
    }
    asked.snapshots.insert(name, body.clone());
    (StatusCode::CREATED, Json(body))
}

struct World {
    server: Server,
    client: Client,
    context: Context,
    release: PromptRelease,
    _tasks: JoinSet<()>,
}

impl World {
    async fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let server = Server::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(server.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        let config = kube::Config::new(address.parse().unwrap());
        let client = Client::try_from(config).unwrap();
        let exported = std::sync::Arc::new(Exported::default());
        let cluster = Cluster::new(client.clone(), None, Leadership::leading(), exported.clone());
        let context = Context {
            cluster,
            // Nobody polls the watches.
            caches: Caches::new(&client, None).0,
            gateways: Gateways::new(Box::new(|| Box::pin(async { Ok(BTreeMap::new()) })), || {
                Timestamp::UNIX_EPOCH
            })
            .unwrap(),
            prometheus: Prometheus::new(None).unwrap(),
            model_dates: Arc::default(),
            exported,
            clock: || Timestamp::UNIX_EPOCH,
            probe: Probe::new(Addresses::default()).unwrap(),
            pulse: Pulse::default(),
            ahead: Ahead::default(),
            examined: Examined::default(),
            refusals: Refusals::default(),
            retries: Retries::default(),
            serving: true,
        };
        let release = json!({
            "metadata": {"name": "answers", "namespace": "ns", "uid": "own",
                "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"promptRef": {"name": "p"}, "backendRef": {"name": "b"}},
        });
        let release = serde_json::from_value(release).unwrap();
        Self { server, client, context, release, _tasks: tasks }
    }

    /// The caches show the snapshots as they are now.
    async fn look_again(&mut self) {
        let all = lock(&self.server).snapshots.len();
        let (caches, mut watches) = Caches::new(&self.client, Some("ns"));
        self.context.caches = caches;
        let copies = async { while watches.copies.next().await.is_some() {} };
        let releases = async { while watches.releases.next().await.is_some() {} };
        let caches = &self.context.caches;
        let filled = async {
            caches.copies.wait_until_ready().await.unwrap();
            caches.releases.wait_until_ready().await.unwrap();
        };
        tokio::select! {
            () = filled => {}
            () = copies => panic!("the watch has ended"),
            () = releases => panic!("the watch has ended"),
        }
        assert_eq!(self.context.caches.copies.state().len(), all);
    }

    /// Somebody restores a snapshot with a note.
    fn restore(&self, note: &Remembered) {
        self.restore_into("ns", note);
    }

    fn restore_into(&self, namespace: &str, note: &Remembered) {
        let revision = &note.stable.revision;
        let content = serde_json::to_value(Saved::Variant(Variant::default())).unwrap();
        let snapshot = json!({
            "apiVersion": "serinus.dev/v1alpha1", "kind": "ReleaseSnapshot",
            "metadata": {
                "name": copy_name("answers", revision), "namespace": namespace,
                "annotations": {"serinus.dev/remembered": serde_json::to_string(note).unwrap()},
            },
            "spec": ReleaseSnapshotSpec::new("answers", revision, content).unwrap(),
        });
        let name = copy_name("answers", revision);
        // The key is only where it is kept.
        let key = if namespace == "ns" { name } else { format!("{namespace}/{name}") };
        lock(&self.server).snapshots.insert(key, snapshot);
    }

    /// Releases of the name `answers` as the caches show them, without a status.
    fn list(&self, namespaces: &[&str]) {
        let release = |namespace: &&str| {
            let mut release = serde_json::to_value(&self.release).unwrap();
            release["metadata"]["namespace"] = json!(namespace);
            release["metadata"]["uid"] = json!(format!("of {namespace}"));
            release
        };
        lock(&self.server).releases = namespaces.iter().map(release).collect();
    }

    /// What there was before the release, as it is observed.
    fn before(&self) -> (Option<Remembered>, Option<ServedBefore>) {
        let status = self.release.status.clone().unwrap_or_default();
        let (remembered, served) = before(&self.release, &status, &self.context).unwrap();
        (remembered.map(|note| *note), served)
    }

    /// The release as it is for a reconcile.
    fn snapshot(&self) -> Snapshot {
        Snapshot {
            release: "ns/answers".into(),
            generation: 1,
            spec: self.release.spec.clone(),
            status: self.release.status.clone().unwrap_or_default(),
            requests: vec![],
            target: Ok(Target { revision: REVISION.into(), variant: Variant::default() }),
            policy: Ok(resolve::careful()),
            undecidable: None,
            without_data: vec![],
            running_policy: None,
            route_held_by: None,
            remembered: None,
            copied: None,
            beside: vec![],
            awaited: None,
            noted: 0,
            served_before: None,
            lost: vec![],
            not_ready: BTreeMap::new(),
            gateways: vec![],
            departed: vec![],
            external: Default::default(),
            deleting: None,
        }
    }

    /// One reconcile that decides on `status`; answers the snapshots and the notes that were
    /// written, and what is lost.
    async fn reconcile(
        &mut self,
        snapshot: Snapshot,
        status: PromptReleaseStatus,
        effects: Vec<Effect>,
    ) -> (usize, usize, Vec<LostSnapshot>) {
        let (mut snapshot, mut written) = (snapshot, Written::default());
        let before = {
            let asked = lock(&self.server);
            (asked.snapshots.len(), asked.patches)
        };
        heal(&self.release, &mut snapshot, &mut written, &self.context).await.unwrap();
        let plan = Plan { status: status.clone(), effects, wake_at: None };
        save(&self.release, &plan, &mut written, &self.context).await.unwrap();
        remember(&self.release, &plan.status, &mut written, &self.context).await.unwrap();
        self.release.status = Some(status);
        let asked = lock(&self.server);
        (asked.snapshots.len() - before.0, asked.patches - before.1, snapshot.lost)
    }
}

fn stable() -> VariantRef {
    VariantRef { revision: REVISION.into(), prompt: "p".into(), backend: "b".into() }
}

fn serving() -> PromptReleaseStatus {
    PromptReleaseStatus {
        stable: Some(stable()),
        history: vec![HistoryEntry {
            variant: stable(),
            outcome: Outcome::Initial,
            reason: "FirstRelease".into(),
            message: String::new(),
            at: Timestamp::UNIX_EPOCH,
            requests: vec![],
            evidence: vec![],
        }],
        ..PromptReleaseStatus::default()
    }
}

#[tokio::test]
async fn a_first_release_writes_its_snapshot_once_though_the_caches_lag() {
    let mut world = World::new().await;
    let save = Effect::Save {
        name: REVISION.into(),
        content: Box::new(Saved::Variant(Variant::default())),
    };
    let first = world.reconcile(world.snapshot(), serving(), vec![save]).await;
    assert_eq!(first, (1, 0, vec![]));
    for _ in 0..3 {
        let next = world.reconcile(world.snapshot(), serving(), vec![]).await;
        assert_eq!(next, (0, 0, vec![]), "the caches do not show it yet");
    }
    let asked = lock(&world.server);
    let snapshot = &asked.snapshots[&copy_name("answers", REVISION)];
    let note = snapshot["metadata"]["annotations"]["serinus.dev/remembered"].as_str().unwrap();
    assert!(serde_json::from_str::<Remembered>(note).unwrap().stable == stable());
    assert_eq!(snapshot["metadata"]["labels"]["serinus.dev/remembered"], "true");
}

#[tokio::test]
async fn a_decision_that_changes_the_note_writes_it_though_the_caches_lag() {
    let mut world = World::new().await;
    world.release.status = Some(serving());
    let healed = world.reconcile(world.snapshot(), serving(), vec![]).await;
    assert_eq!(healed, (1, 0, vec![]), "written again, with its note");
    let failed = PromptReleaseStatus { failed_revision: Some("bad".into()), ..serving() };
    let decided = world.reconcile(world.snapshot(), failed.clone(), vec![]).await;
    assert_eq!(decided, (0, 1, vec![]));
    assert_eq!(world.reconcile(world.snapshot(), failed, vec![]).await, (0, 0, vec![]));
}

#[tokio::test]
async fn what_can_not_be_written_again_is_lost_and_asks_nothing() {
    let mut world = World::new().await;
    world.release.status = Some(serving());
    let gone = Problem { reason: "PromptNotFound", message: String::new() };
    let snapshot = Snapshot { target: Err(gone), ..world.snapshot() };
    let failed = PromptReleaseStatus { failed_revision: Some("bad".into()), ..serving() };
    let (created, patched, lost) = world.reconcile(snapshot, failed, vec![]).await;
    assert_eq!((created, patched, lock(&world.server).creations), (0, 0, 0));
    let [lost] = &lost[..] else { panic!("{lost:?}") };
    assert_eq!((lost.name.as_str(), &lost.variant), (&*copy_name("answers", REVISION), &stable()));
    assert!(lost.why.contains("PromptVersion p does not exist"), "{}", lost.why);
}

#[tokio::test]
async fn a_note_says_what_was_served_on_the_route_that_a_release_of_its_name_had_before() {
    let world = World::new().await;
    let at = |second| Timestamp::from_second(second).unwrap();
    let before = PromptReleaseStatus {
        stable: Some(VariantRef { revision: "good".into(), ..stable() }),
        failed_revision: Some("bad".into()),
        ..serving()
    };
    let known = Remembered::of("elsewhere".into(), at(1), &before).unwrap();
    for (absent_since, until) in [
        (Some(at(5)), at(5)),
        // The object of now was created when the one of before was gone.
        (None, Timestamp::UNIX_EPOCH),
    ] {
        let known = Remembered { absent_since, generation: 7, ..known.clone() };
        let noted = note(&world.release, &serving(), Some(&known), Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!((noted.route.as_str(), noted.absent_since), ("answers", None));
        assert_eq!(noted.generation, 8, "of two notes it is the later one");
        let last = noted.on_route("elsewhere").unwrap();
        assert_eq!((last.revision.as_str(), last.failed.as_deref()), ("good", Some("bad")));
        assert_eq!(last.until, Some(until));
        assert_eq!(noted.on_route("answers").unwrap().revision, REVISION);
        // It is not lost when the note is written again.
        let again = note(&world.release, &serving(), Some(&noted), Timestamp::UNIX_EPOCH).unwrap();
        assert!(again.says_the_same_as(&noted), "{again:?}");
    }
}

const GOOD: &str = "9999999999999999999999999999999999999999";

/// What is remembered of a release in which what it serves as its first now had failed.
fn of_before(generation: i64) -> Remembered {
    let good = VariantRef { revision: GOOD.into(), ..stable() };
    let entry = |variant: VariantRef, outcome| HistoryEntry {
        variant,
        outcome,
        ..serving().history.remove(0)
    };
    let status = PromptReleaseStatus {
        stable: Some(good.clone()),
        failed_revision: Some(REVISION.into()),
        history: vec![entry(good, Outcome::Initial), entry(stable(), Outcome::RolledBack)],
        ..PromptReleaseStatus::default()
    };
    let note = Remembered::of("answers".into(), Timestamp::UNIX_EPOCH, &status).unwrap();
    Remembered { generation, uid: Some("of before".into()), ..note }
}

/// A world in which a release without a status has become a first release.
async fn after_a_first_release() -> World {
    let mut world = World::new().await;
    let plan = decide(&world.snapshot(), Timestamp::UNIX_EPOCH);
    assert_eq!(plan.status.phase, Phase::Stable);
    let first = world.reconcile(world.snapshot(), plan.status, plan.effects).await;
    assert_eq!(first, (1, 0, vec![]));
    world
}

#[tokio::test]
async fn a_note_that_comes_after_a_first_release_counts_as_if_it_had_been_there() {
    // Also one that was written at the same generation as the first release's own.
    for generation in [1, 7] {
        let mut world = after_a_first_release().await;
        world.look_again().await;
        assert_eq!(world.before(), (None, None), "its own note is nothing of before");
        world.restore(&of_before(generation));
        world.look_again().await;
        let (remembered, _) = world.before();
        assert_eq!(remembered.as_ref(), Some(&of_before(generation)));
        let snapshot =
            Snapshot { remembered: remembered.clone().map(Box::new), ..world.snapshot() };
        let plan = decide(&snapshot, Timestamp::UNIX_EPOCH);
        // The operator is killed before the status is written, and another one looks.
        let now = world.release.status.clone();
        let kept = world.reconcile(snapshot, plan.status.clone(), plan.effects).await;
        assert_eq!((kept.0, kept.1), (0, 0), "the note is not outdone yet");
        world.release.status = now;
        world.look_again().await;
        assert_eq!(world.before().0, remembered);
        // The status is written: it is noted, once, and is no news any more.
        world.release.status = Some(plan.status.clone());
        let status = plan.status;
        assert_eq!(status.stable.as_ref().unwrap().revision, GOOD);
        assert_eq!(status.failed_revision.as_deref(), Some(REVISION));
        assert!(status.routing.variants.iter().all(|v| v.revision == GOOD && v.weight == 100));
        let outcomes: Vec<_> =
            status.history.iter().map(|h| (h.variant.revision.as_str(), h.outcome)).collect();
        assert_eq!(
            outcomes,
            [
                (REVISION, Outcome::Initial),
                (REVISION, Outcome::Withdrawn),
                (GOOD, Outcome::Initial),
                (REVISION, Outcome::RolledBack)
            ]
        );
        assert_eq!(world.before(), (None, None));
        let noted = world.reconcile(world.snapshot(), status, vec![]).await;
        assert_eq!((noted.0, noted.1), (0, 1));
    }
}

#[tokio::test]
async fn the_highest_of_several_restored_notes_counts_and_one_that_can_not_be_read_is_none() {
    let mut world = after_a_first_release().await;
    let older = VariantRef { revision: "8".repeat(40), ..stable() };
    world.restore(&Remembered { stable: older, ..of_before(3) });
    world.restore(&of_before(7));
    let unreadable = VariantRef { revision: "7".repeat(40), ..stable() };
    let garbled = Remembered { stable: unreadable, generation: i64::MAX, ..of_before(9) };
    world.restore(&garbled);
    world.look_again().await;
    assert_eq!(world.before().0, Some(of_before(7)));
    // A note whose content is not there says nothing that could serve again.
    let gone =
        Remembered { stable: VariantRef { revision: "6".repeat(40), ..stable() }, ..of_before(9) };
    {
        let mut asked = lock(&world.server);
        let (kept, good) = (copy_name("answers", REVISION), copy_name("answers", GOOD));
        asked.snapshots.retain(|name, _| *name == kept || *name == good);
        let text = serde_json::to_string(&gone).unwrap();
        asked.snapshots.get_mut(&good).unwrap()["metadata"]["annotations"]["serinus.dev/remembered"] =
            text.into();
    }
    world.look_again().await;
    assert_eq!(world.before(), (None, None));
}

#[tokio::test]
async fn what_failed_on_the_route_before_another_one_is_held_also_when_that_comes_late() {
    let mut world = after_a_first_release().await;
    let earlier = EarlierRoute {
        route: "answers".into(),
        revision: GOOD.into(),
        failed: Some(REVISION.into()),
        until: Timestamp::UNIX_EPOCH,
    };
    world.restore(&Remembered {
        route: "elsewhere".into(),
        earlier: vec![earlier],
        ..of_before(7)
    });
    for _ in 0..3 {
        world.look_again().await;
        let (remembered, served_before) = world.before();
        assert_eq!(remembered, None);
        assert_eq!(served_before.as_ref().map(|b| b.release.as_str()), Some("ns/answers"));
        let snapshot = Snapshot { served_before, ..world.snapshot() };
        let plan = decide(&snapshot, Timestamp::UNIX_EPOCH);
        assert_eq!((plan.status.phase, plan.status.routes()), (Phase::Held, false));
        let ready = crate::api::conditions::find(&plan.status.conditions, "Ready").unwrap();
        assert!(ready.message.contains("failed there"), "{}", ready.message);
        let kept = world.reconcile(snapshot, plan.status, plan.effects).await;
        assert_eq!((kept.0, kept.1), (0, 0), "the note stays as it is");
    }
}

fn ready(status: &PromptReleaseStatus) -> (&str, &str, &str) {
    let ready = conditions::find(&status.conditions, conditions::types::READY).unwrap();
    (&ready.status, &ready.reason, &ready.message)
}
