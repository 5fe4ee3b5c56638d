//! Votes: what they need, who may cast them, and that each counts once, on several
//! replicas too.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use reqwest::Response;
use serde_json::{Value, json};
use serinus::gateway::{
    GatewayConfig,
    identity::{ClientKey, Identities, Keys, Owner, request_keys::RequestKeys},
    peers::Peers,
    server::{Face, serve},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::bench::{Bench, event, fails, good, open, streamed};

const PATH: &str = "/serinus/v1/feedback";
const KEYS: [&str; 4] = [
    "0123456789abcdef0123456a",
    "0123456789abcdef0123456b",
    "0123456789abcdef0123456c",
    "0123456789abcdef0123456d",
];

fn header(answer: &Response, name: &str) -> String {
    answer.headers()[name].to_str().unwrap().to_owned()
}

fn id(answer: &Response) -> String {
    header(answer, "x-serinus-request-id")
}

async fn vote(bench: &Bench, id: &str) -> (u16, String) {
    told(bench.post(PATH, &json!({"request_id": id, "score": 0.25})).await).await
}

async fn told(answer: Response) -> (u16, String) {
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap_or_default();
    (status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
}

fn votes(bench: &Bench) -> u64 {
    let counts = bench.report().counts;
    counts.values().flat_map(|c| c.scores.values()).map(|sums| sums.count).sum()
}

fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[tokio::test]
async fn an_id_is_accepted_as_it_was_printed_and_in_no_other_form() {
    let bench = Bench::new(|_| good()).await;
    bench.serve(bench.release(50));
    let id = id(&bench.chat(json!({"user": "ada"})).await);
    let parts: Vec<&str> = id.split('-').collect();
    let [release, revision, generation, kind, rest] = parts[..] else { panic!("{id}") };
    let other = if revision == "stable" { "canary" } else { "stable" };
    for forged in [
        format!("{release}-{other}-{generation}-{kind}-{rest}"),
        format!("{release}-{revision}-{generation}-e00-{:016x}", 1),
        format!("{release}-{revision}-{generation}-{kind}-{}", &rest[..rest.len() - 32]),
        format!(
            "{release}-{revision}-{generation}-{kind}-{}{}",
            &rest[..rest.len() - 32],
            "0".repeat(32)
        ),
        format!("{release}-{revision}-0{generation}-{kind}-{rest}"),
        format!("+{id}"),
        format!("{id} "),
        format!("0{id}"),
        id.to_uppercase(),
        rest.to_owned(),
        String::new(),
    ] {
        assert_eq!(vote(&bench, &forged).await, refused(404, "unknown_request"), "{forged}");
    }
    assert_eq!(votes(&bench), 0);
    assert_eq!(vote(&bench, &id).await.0, 204);
    assert_eq!(vote(&bench, &id).await, refused(409, "duplicate_feedback"));
    assert_eq!(votes(&bench), 1);
}

#[tokio::test]
async fn a_vote_needs_a_complete_answer() {
    let gate = CancellationToken::new();
    let held = gate.clone();
    let bench = Bench::new(move |request| match request["user"].as_str() {
        Some("fails") => fails(400),
        Some("breaks") => {
            streamed(stream::iter([Ok(event("x", None)), Err(std::io::Error::other("gone"))]))
        }
        Some("waits") => {
            let held = held.clone();
            let first = stream::once(async { Ok(event("x", None)) });
            streamed(first.chain(stream::once(async move {
                held.cancelled().await;
                Ok(format!("{}data: [DONE]\n\n", event("y", Some("stop"))))
            })))
        }
        _ => good(),
    })
    .await;
    bench.serve(bench.release(50));
    let unanswered = refused(409, "unanswered_request");
    let failed = bench.chat(json!({"user": "fails"})).await;
    assert_eq!(failed.status(), 400);
    let failed = vote(&bench, &id(&failed)).await;
    assert!(failed == unanswered || failed.0 == 204, "{failed:?}");
    let broken = bench.chat(json!({"user": "breaks", "stream": true})).await;
    let broken_id = id(&broken);
    let _ = broken.bytes().await;
    assert_eq!(vote(&bench, &broken_id).await, unanswered);
    let running = bench.chat(json!({"user": "waits", "stream": true})).await;
    let running_id = id(&running);
    assert_eq!(vote(&bench, &running_id).await, unanswered, "it has not ended");
    assert_eq!(votes(&bench), 0);
    gate.cancel();
    running.text().await.unwrap();
    assert_eq!(vote(&bench, &running_id).await.0, 204);
    assert_eq!(votes(&bench), 1);
}

#[tokio::test]
async fn a_vote_under_an_earlier_routing_or_on_no_fair_draw_is_taken_and_no_evidence() {
    let bench = Bench::new(|_| good()).await;
    bench.serve(bench.release(50));
    let late = id(&bench.chat(json!({"user": "ada"})).await);
    bench.serve(bench.release(60));
    assert_eq!(vote(&bench, &late).await.0, 204);
    let forced = bench.client.post(format!("http://{}/v1/chat/completions", bench.address));
    let body = json!({"model": "r", "serinus": {"variables": {"question": "why?"}}});
    let forced = forced.header("x-serinus-variant", "canary").json(&body).send().await.unwrap();
    assert_eq!(vote(&bench, &id(&forced)).await.0, 204);
    assert_eq!(votes(&bench), 0);
}

fn client_key(key: &str, name: &str, fields: &[(&str, &str)]) -> ClientKey {
    let own = [("key", key), ("routes", "r")];
    let all = own.iter().chain(fields);
    let fields = all.map(|(n, v)| ((*n).to_owned(), v.as_bytes().to_vec())).collect();
    ClientKey::read(Owner::Gateway, name, &fields).unwrap()
}

#[tokio::test]
async fn a_team_scores_its_own_answers_and_others_need_a_permission() {
    let identities = Identities::default();
    identities.set_keys(
        Keys::new([
            client_key(KEYS[0], "app", &[("team", "shop")]),
            client_key(KEYS[1], "app-next-key", &[("team", "shop")]),
            client_key(KEYS[2], "evil", &[]),
            client_key(KEYS[3], "evaluator", &[("permissions", "score")]),
        ])
        .0,
    );
    let bench = Bench::configured(GatewayConfig { identities, ..open() }, |_| good()).await;
    bench.serve(bench.release(50));
    let post = async |key: &str, path: &str, body: Value| {
        let url = format!("http://{}{path}", bench.address);
        bench.client.post(url).bearer_auth(key).json(&body).send().await.unwrap()
    };
    let mut counted = 0;
    for (voter, expected) in [
        (KEYS[0], refused(204, "")),
        (KEYS[1], refused(204, "")),
        (KEYS[2], refused(403, "score_not_permitted")),
        (KEYS[3], refused(204, "")),
    ] {
        let chat = json!({"model": "r", "serinus": {"variables": {"question": "why?"}}});
        let id = id(&post(KEYS[0], "/v1/chat/completions", chat).await);
        let body = json!({"request_id": id, "score": 0});
        assert_eq!(told(post(voter, PATH, body).await).await, expected);
        counted += u64::from(expected.0 == 204);
        assert_eq!(votes(&bench), counted);
    }
}

fn shared(keys: &[(&str, u8)]) -> RequestKeys {
    let known = RequestKeys::default();
    set(&known, keys);
    known
}

fn set(known: &RequestKeys, keys: &[(&str, u8)]) {
    let keys = keys.iter().map(|(name, byte)| ((*name).to_owned(), vec![*byte; 32])).collect();
    known.set(&keys, Timestamp::UNIX_EPOCH);
}

#[tokio::test]
async fn a_replaced_key_counts_and_a_withdrawn_one_does_not() {
    let request_keys = shared(&[("a", 1)]);
    let config = GatewayConfig { request_keys: request_keys.clone(), ..open() };
    let bench = Bench::configured(config, |_| good()).await;
    bench.serve(bench.release(50));
    let ids = [id(&bench.chat(json!({})).await), id(&bench.chat(json!({})).await)];
    set(&request_keys, &[("a", 1), ("b", 2)]);
    assert_eq!(vote(&bench, &ids[0]).await.0, 204);
    set(&request_keys, &[("b", 2)]);
    assert_eq!(vote(&bench, &ids[1]).await, refused(404, "unknown_request"));
    assert_eq!(votes(&bench), 1);
}

/// Replicas with one key that know each other.
struct Replicas {
    all: Vec<Bench>,
    known: Arc<Mutex<Vec<SocketAddr>>>,
    stop: Vec<CancellationToken>,
}

impl Replicas {
    async fn new(count: usize) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let known = Arc::new(Mutex::new(vec![]));
        let (mut all, mut stop) = (vec![], vec![]);
        for _ in 0..count {
            let addresses = known.clone();
            let peers = Peers::new(move || addresses.lock().unwrap().clone()).unwrap();
            let request_keys = shared(&[("a", 1)]);
            let config = GatewayConfig { request_keys, peers: Arc::new(peers), ..open() };
            let mut bench = Bench::configured(config, |_| good()).await;
            let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
            known.lock().unwrap().push(admin.local_addr().unwrap());
            let (gateway, until) = (bench.gateway.clone(), CancellationToken::new());
            stop.push(until.clone());
            let until = until.cancelled_owned();
            bench.servers.spawn(serve(admin, Face::Operators, gateway, until, Duration::ZERO));
            bench.serve(bench.release(50));
            all.push(bench);
        }
        Self { all, known, stop }
    }

    fn votes(&self) -> Vec<u64> {
        self.all.iter().map(votes).collect()
    }
}

#[tokio::test]
async fn a_vote_that_every_replica_gets_counts_once_where_it_was_answered() {
    let replicas = Replicas::new(3).await;
    let [one, two, three] = &replicas.all[..] else { panic!() };
    let first = id(&one.chat(json!({})).await);
    assert_eq!(vote(two, &first).await.0, 204);
    for again in [two, three, one] {
        assert_eq!(vote(again, &first).await, refused(409, "duplicate_feedback"));
    }
    // Many at once.
    let second = id(&two.chat(json!({})).await);
    let sent = (0..30).map(|i| vote(&replicas.all[i % 3], &second));
    let answers = futures::future::join_all(sent).await;
    assert_eq!(answers.iter().filter(|(status, _)| *status == 204).count(), 1);
    assert_eq!(replicas.votes(), [1, 1, 0]);
}

#[tokio::test]
async fn a_vote_for_a_process_that_is_gone_is_no_evidence_and_for_a_silent_one_is_sent_again() {
    let replicas = Replicas::new(3).await;
    let [one, two, _] = &replicas.all[..] else { panic!() };
    let ids = [id(&one.chat(json!({})).await), id(&one.chat(json!({})).await)];
    replicas.stop[0].cancel();
    let first = replicas.known.lock().unwrap()[0];
    while TcpStream::connect(first).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(vote(two, &ids[0]).await, refused(503, "feedback_not_delivered"));
    replicas.known.lock().unwrap().remove(0);
    assert_eq!(vote(two, &ids[0]).await.0, 204);
    assert_eq!(vote(two, &ids[0]).await.0, 204, "no evidence is no double");
    assert_eq!(replicas.votes(), [0, 0, 0]);
    assert_eq!(vote(one, &ids[1]).await.0, 204, "itself it still counts");
    assert_eq!(replicas.votes(), [1, 0, 0]);
}

#[tokio::test]
async fn only_gateways_pass_votes_on() {
    let replicas = Replicas::new(1).await;
    let bench = &replicas.all[0];
    let id = id(&bench.chat(json!({})).await);
    let body = json!({"request_id": id, "name": "helpfulness", "score": 0}).to_string();
    let address = replicas.known.lock().unwrap()[0];
    for signature in
        [None, Some(""), Some("00000000000000000000000000000000"), Some(&id[id.len() - 32..])]
    {
        let mut request = bench.client.post(format!("http://{address}{PATH}")).body(body.clone());
        if let Some(signature) = signature {
            request = request.header("x-serinus-signature", signature);
        }
        assert_eq!(told(request.send().await.unwrap()).await, refused(401, "not_a_gateway"));
    }
    assert_eq!(votes(bench), 0);
}

/// Stands at the address of a replica: passes questions on to `real`, and gives each
/// caller the answer that `lie` makes of the real one.
async fn impostor(
    servers: &mut JoinSet<()>,
    real: SocketAddr,
    lie: fn(String) -> String,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    servers.spawn(async move {
        while let Ok((mut caller, _)) = listener.accept().await {
            let mut question = vec![0; 16 * 1024];
            let mut read = 0;
            while !question[..read].ends_with(b"}") {
                read += caller.read(&mut question[read..]).await.unwrap();
            }
            let mut served = TcpStream::connect(real).await.unwrap();
            served.write_all(&question[..read]).await.unwrap();
            let mut answer = vec![0; 16 * 1024];
            let read = served.read(&mut answer).await.unwrap();
            let answer = lie(String::from_utf8_lossy(&answer[..read]).into_owned());
            caller.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    address
}

/// Somebody else at the address of a replica can neither take a vote nor say that no
/// replica gave the answer.
#[tokio::test]
async fn what_became_of_a_vote_counts_when_a_gateway_signed_it() {
    let replicas = Replicas::new(3).await;
    let [one, two, three] = &replicas.all[..] else { panic!() };
    let mut servers = JoinSet::new();
    let first = id(&one.chat(json!({})).await);
    let real = replicas.known.lock().unwrap()[0];
    let silent = refused(503, "feedback_not_delivered");
    let lies: [fn(String) -> String; 4] = [
        |_| "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\ncounted".to_owned(),
        |_| "HTTP/1.1 421 Misdirected Request\r\ncontent-length: 0\r\n\r\n".to_owned(),
        |_| {
            let signed = "x-serinus-signature: 00000000000000000000000000000000";
            format!("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n{signed}\r\n\r\ncounted")
        },
        // The signature is of another word.
        |real| real.replace("200 OK", "421 Misdirected Request"),
    ];
    for lie in lies {
        let address = impostor(&mut servers, real, lie).await;
        replicas.known.lock().unwrap()[0] = address;
        assert_eq!(vote(two, &first).await, silent);
    }
    // What was signed for an earlier question is none for this one.
    static EARLIER: Mutex<Option<String>> = Mutex::new(None);
    let second = id(&one.chat(json!({})).await);
    let earlier = |real| EARLIER.lock().unwrap().get_or_insert(real).clone();
    let address = impostor(&mut servers, real, earlier).await;
    replicas.known.lock().unwrap()[0] = address;
    assert_eq!(vote(two, &second).await.0, 204, "it was passed on as it is");
    assert_eq!(vote(two, &second).await, silent);
    replicas.known.lock().unwrap()[0] = real;
    assert_eq!(vote(three, &second).await, refused(409, "duplicate_feedback"));
}
