//! Against an API server that only keeps names, and caches that never show what was written.

use std::sync::{Mutex, PoisonError};

use axum::{
    Json, Router,
    extract::State,
    http::{Method, StatusCode, Uri},
};
use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use super::*;
use crate::{
    api::prompt_release::{HistoryEntry, Outcome},
    controllers::{
        backend::probe::Probe,
        caches::Caches,
        exported::Exported,
        kube::{Cluster, leadership::Leadership},
        pulse::Pulse,
        release::{Ahead, Examined},
    },
    rollout::{Problem, Target},
    signals::{addresses::Addresses, gateways::Gateways, prometheus::Prometheus},
};

const REVISION: &str = "0123456789012345678901234567890123456789";

/// What was asked of the API server.
#[derive(Default)]
struct Asked {
    snapshots: BTreeMap<String, Value>,
    creations: usize,
    patches: usize,
}

type Server = std::sync::Arc<Mutex<Asked>>;

fn lock(server: &Server) -> std::sync::MutexGuard<'_, Asked> {
    server.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(
    State(server): State<Server>,
    method: Method,
    uri: Uri,
    Json(body): Json<Value>,
) -> (StatusCode, Json<Value>) {
    let mut asked = lock(&server);
    let path = "/apis/serinus.dev/v1alpha1/namespaces/ns/releasesnapshots";
    assert!(uri.path().starts_with(path), "{method} {uri}");
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
            exported,
            clock: || Timestamp::UNIX_EPOCH,
            probe: Probe::new(Addresses::default()).unwrap(),
            pulse: Pulse::default(),
            ahead: Ahead::default(),
            examined: Examined::default(),
        };
        let release = json!({
            "metadata": {"name": "answers", "namespace": "ns",
                "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"promptRef": {"name": "p"}, "backendRef": {"name": "b"}},
        });
        let release = serde_json::from_value(release).unwrap();
        Self { server, context, release, _tasks: tasks }
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
            served_before: None,
            lost: vec![],
            not_ready: BTreeMap::new(),
            gateways: vec![],
            departed: vec![],
            external: Default::default(),
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
        keep(&self.release, &plan, &mut written, &self.context).await.unwrap();
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
        (None, "2026-01-01T00:00:00Z".parse().unwrap()),
    ] {
        let known = Remembered { absent_since, generation: 7, ..known.clone() };
        let noted = note(&world.release, &serving(), Some(&known)).unwrap();
        assert_eq!((noted.route.as_str(), noted.absent_since), ("answers", None));
        assert_eq!(noted.generation, 8, "of two notes it is the later one");
        let last = noted.on_route("elsewhere").unwrap();
        assert_eq!((last.revision.as_str(), last.failed.as_deref()), ("good", Some("bad")));
        assert_eq!(last.until, Some(until));
        assert_eq!(noted.on_route("answers").unwrap().revision, REVISION);
        // It is not lost when the note is written again.
        let again = note(&world.release, &serving(), Some(&noted)).unwrap();
        assert!(again.says_the_same_as(&noted), "{again:?}");
    }
}
