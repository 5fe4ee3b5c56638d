//! Operators ask for reports, over real sockets: who is no operator gets none, and what no
//! gateway said counts for nothing.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderName, Response, StatusCode},
    routing::any,
};
use jiff::Timestamp;
use serde_json::json;
use serinus::{
    api::keys::SIGNATURE_HEADER,
    gateway::{
        GatewayConfig,
        identity::request_keys::RequestKeys,
        routes::ReleaseInput,
        server::{Face, serve},
    },
    signals::{
        gateways::{Gateways, Known, Pulled, Sign, Silence},
        keyring::Stored,
        proof::{self, ASKED_HEADER, DIGEST_HEADER, ReportKey},
        report::{GatewayReport, LEADER_HEADER, REPORT_PATH, Unjudged},
    },
};
use tokio::{net::TcpListener, task::JoinSet};

use crate::bench::{Bench, PEOPLES_TOKEN, good, open};

const LOSS: Duration = Duration::from_secs(3);

fn start() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn stored(byte: u8) -> Stored {
    [("a".to_owned(), vec![byte; 32])].into()
}

fn key(byte: u8) -> ReportKey {
    ReportKey::derive(&[byte; 32])
}

/// A gateway that knows key 1, and its admin address.
async fn gateway() -> (Bench, String) {
    let request_keys = RequestKeys::default();
    request_keys.set(&stored(1), start());
    let config = GatewayConfig { request_keys, control_loss_timeout: LOSS, ..open() };
    let mut bench = Bench::configured(config, |_| good()).await;
    bench.serve(bench.release(50));
    let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = admin.local_addr().unwrap().to_string();
    let (gateway, forever) = (bench.gateway.clone(), std::future::pending());
    bench.servers.spawn(serve(admin, Face::Operators, gateway, forever, Duration::ZERO));
    (bench, address)
}

/// An operator that reads key `byte`, and how often it has.
fn operator(byte: u8, clock: fn() -> Timestamp) -> (Gateways, Arc<AtomicUsize>) {
    let reads = Arc::new(AtomicUsize::new(0));
    let counted = reads.clone();
    let read = Box::new(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        let keys: Result<Stored, String> = Ok(stored(byte));
        Box::pin(std::future::ready(keys)) as futures::future::BoxFuture<'static, _>
    });
    (Gateways::new(read, clock).unwrap(), reads)
}

async fn pull(operator: &Gateways, addresses: &[&str]) -> Pulled {
    let addresses: BTreeSet<String> = addresses.iter().map(|a| (*a).to_owned()).collect();
    operator.pull(7, &Sign { leads: true, ..Sign::default() }, &addresses).await;
    operator.last(7, Pulled::clone).unwrap()
}

/// What an operator that holds key 1 makes of what is at this address.
async fn pulled(address: &str) -> Result<Known, Silence> {
    pull(&operator(1, start).0, &[address]).await.reports[address].clone()
}

/// Somebody at an address of a gateway.
async fn somebody<F>(
    servers: &mut JoinSet<()>,
    says: impl Fn(Request) -> F + Clone + Send + Sync + 'static,
) -> String
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let router = Router::new().fallback(any(says));
    servers.spawn(async move { axum::serve(listener, router).await.unwrap() });
    address.to_string()
}

/// What the gateway answers to a question that somebody passes on to it.
async fn passed_on(gateway: &str, question: Request) -> (u16, Vec<(String, String)>, Bytes) {
    let mut sent = reqwest::Client::new().get(format!("http://{gateway}{REPORT_PATH}"));
    for name in [ASKED_HEADER, SIGNATURE_HEADER, LEADER_HEADER] {
        if let Some(value) = question.headers().get(name) {
            sent = sent.header(name, value.to_str().unwrap());
        }
    }
    let answer = sent.send().await.unwrap();
    let header = |name: &str| {
        let value = answer.headers().get(name)?.to_str().unwrap().to_owned();
        Some((name.to_owned(), value))
    };
    let headers = [DIGEST_HEADER, SIGNATURE_HEADER].into_iter().filter_map(header).collect();
    (answer.status().as_u16(), headers, answer.bytes().await.unwrap())
}

fn answer(status: u16, headers: &[(String, String)], body: impl Into<Body>) -> Response<Body> {
    let mut answer = Response::new(body.into());
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        let name: HeaderName = name.parse().unwrap();
        answer.headers_mut().insert(name, value.parse().unwrap());
    }
    answer
}

#[tokio::test]
async fn an_operator_with_the_gateways_key_gets_the_report() {
    let (bench, address) = gateway().await;
    let (operator, reads) = operator(1, start);
    for _ in 0..3 {
        let pulled = pull(&operator, &[&address]).await;
        let report = pulled.reports[&address].as_ref().unwrap();
        assert_eq!(report.releases["ns/r"].applied, bench.report().applied);
        assert_eq!(pulled.size(), [1, 0, 0]);
    }
    assert_eq!(reads.load(Ordering::Relaxed), 1, "an operator that is understood reads no keys");
}

/// A leader that knows a report is told what has changed; what it then knows is what another
/// one knows that asks for everything.
#[tokio::test]
async fn after_the_first_report_only_what_has_changed_is_told() {
    let (bench, address) = gateway().await;
    let (operator, _) = operator(1, start);
    let named = |name: &str| {
        let (name, route) = (name.to_owned(), name.to_owned());
        ReleaseInput { name, route, ..bench.release(50) }
    };
    let (one, two, three) = (named("one"), named("two"), named("three"));
    let told = |since: String| {
        let (key, client, address) = (key(1), bench.client.clone(), address.clone());
        async move {
            let target = format!("{REPORT_PATH}{since}");
            let request = proof::Request { method: "GET", target: &target, leader: "" };
            let mut sent = client.get(format!("http://{address}{target}"));
            for (name, value) in key.ask(&request, start(), rand::random()).headers() {
                sent = sent.header(name, value);
            }
            let answer = sent.send().await.unwrap();
            serde_json::from_slice::<GatewayReport>(&answer.bytes().await.unwrap()).unwrap()
        }
    };
    let changes: [&[ReleaseInput]; 4] =
        [&[one.clone(), two.clone()], &[one.clone(), two], &[one.clone(), three], &[one]];
    let mut known = vec![];
    for releases in changes {
        bench.gateway.set_world(&releases.iter().cloned().collect());
        let mark = known.last().map(|mark| format!("?since={mark}")).unwrap_or_default();
        let some = told(mark).await;
        let pulled = pull(&operator, &[&address]).await.reports[&address].clone().unwrap();
        assert_eq!(Ok(pulled.clone()), self::pulled(&address).await, "as who asks for everything");
        assert_eq!(pulled.releases.len(), releases.len());
        let names: Vec<String> = some.releases.into_keys().chain(some.gone).collect();
        known.push(pulled.mark.unwrap());
        match known.len() {
            1 => assert_eq!(names, ["ns/one", "ns/two"]),
            2 => assert!(names.is_empty(), "{names:?}"),
            3 => assert_eq!(names, ["ns/three", "ns/two"]),
            _ => assert_eq!(names, ["ns/three"]),
        }
    }
    // A request is counted behind its answer, which is told as well.
    assert_eq!(bench.chat(json!({"model": "one"})).await.status(), 200);
    let mark = known.last().unwrap();
    while !told(format!("?since={mark}")).await.releases.contains_key("ns/one") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // A mark of another process, of the future, or none that can be read: everything.
    for other in ["?since=0123456789abcdef.1", "?since=x", "?since=", "?other=1"] {
        assert!(told(other.to_owned()).await.releases.contains_key("ns/one"), "{other}");
    }
    let future = format!("?since={}.{}", mark.instance, mark.at + 1_000);
    assert!(told(future).await.since.is_none());
}

#[tokio::test]
async fn a_release_that_the_leader_does_not_judge_goes_to_stable_until_it_does() {
    let (bench, address) = gateway().await;
    bench.serve(bench.release(99));
    let (operator, _) = operator(1, start);
    let addresses: BTreeSet<String> = [address].into();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let releases = |of: &[&str]| Unjudged { releases: names(of), ..Unjudged::default() };
    let namespaces = |of: &[&str]| Unjudged { namespaces: names(of), ..Unjudged::default() };
    let (unjudged, other) = (releases(&["ns/other", "ns/r"]), releases(&["ns/other"]));
    // The longest question: releases of the longest names, and as many namespaces as fit.
    let far = |i: usize| format!("n{i:062}/r{i:062}");
    let long = Unjudged {
        releases: (0..64).map(far).collect(),
        namespaces: (0..95).map(|i| format!("m{i:062}")).chain(["ns".to_owned()]).collect(),
    };
    let mut user = 0;
    for (leads, unjudged, is_lost) in [
        (true, Unjudged::default(), false),
        (true, unjudged.clone(), true),
        // Who is no leader says nothing of this.
        (false, Unjudged::default(), true),
        (true, other, false),
        (false, unjudged, false),
        // Of a namespace that is named no release is judged, and those of others are.
        (true, namespaces(&["ns", "other"]), true),
        (true, namespaces(&["n", "ns2", "other"]), false),
        (true, long, true),
    ] {
        let sign = Sign { leads, unjudged };
        operator.pull(7, &sign, &addresses).await;
        assert_eq!(bench.report().control_loss, is_lost, "{sign:?}");
        let mut canary = 0;
        for _ in 0..10 {
            user += 1;
            let answer = bench.chat(json!({"user": format!("{user}")})).await;
            canary += usize::from(answer.headers()["x-serinus-revision"] == "canary");
        }
        assert_eq!(canary == 0, is_lost, "{sign:?}: {canary} of 10");
    }
}

/// Every way in which a question can be wrong: no report, and no sign of a leader.
#[tokio::test]
async fn a_question_that_is_not_an_operators_of_now_is_refused_and_no_sign_of_a_leader() {
    let (bench, address) = gateway().await;
    let url = format!("http://{address}{REPORT_PATH}");
    let request = proof::Request { method: "GET", target: REPORT_PATH, leader: "7" };
    let at = |seconds| Timestamp::from_second(seconds).unwrap();
    let asked = |key: &ReportKey, seconds, nonce: u8| {
        let asking = key.ask(&request, at(seconds), [nonce; 16]);
        let [asked, signature] = asking.headers().map(|(name, text)| (name, text.to_owned()));
        [asked, signature, (LEADER_HEADER, "7".to_owned())]
    };
    let ask = |headers: Vec<(&'static str, String)>| {
        let mut sent = bench.client.get(&url);
        for (name, value) in headers {
            sent = sent.header(name, value);
        }
        async { sent.send().await.unwrap().status().as_u16() }
    };
    tokio::time::sleep(LOSS + Duration::from_millis(100)).await;
    let right = asked(&key(1), 0, 1);
    let [time, signature, leader] = right.clone();
    let wrong: Vec<Vec<(&'static str, String)>> = vec![
        vec![],
        vec![leader.clone()],
        vec![leader.clone(), ("authorization", "Bearer nonsense".to_owned())],
        vec![leader.clone(), signature.clone()],
        vec![leader.clone(), time.clone()],
        // Another leader's term, or none, than was signed.
        vec![time.clone(), signature.clone(), (LEADER_HEADER, "8".to_owned())],
        vec![time.clone(), signature.clone()],
        vec![("x-serinus-asked", "1 00".to_owned()), signature, leader],
        asked(&key(2), 0, 2).to_vec(),
        asked(&key(1), 61, 3).to_vec(),
        asked(&key(1), -61, 4).to_vec(),
    ];
    for headers in wrong {
        let names = format!("{headers:?}");
        assert_eq!(ask(headers).await, 401, "{names}");
    }
    // People may look, and are no leader whatever they say.
    let person = ("authorization", format!("Bearer {PEOPLES_TOKEN}"));
    assert_eq!(ask(vec![person, (LEADER_HEADER, "7".to_owned())]).await, 200);
    assert!(bench.report().control_loss, "nobody who asked was a leader");
    // Whoever looks is told so, and why.
    let words = || async {
        let answer = bench.client.get(format!("http://{address}/readyz?verbose")).send().await;
        answer.unwrap().text().await.unwrap()
    };
    let told = words().await;
    for part in ["operator: ControlLoss: ", "operator: ReportRefused: ", "clocks", "differ by 61 s"]
    {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    assert_eq!(ask(right.to_vec()).await, 200);
    assert!(!bench.report().control_loss && !words().await.contains("ControlLoss"));
    tokio::time::sleep(LOSS + Duration::from_millis(100)).await;
    assert_eq!(ask(right.to_vec()).await, 401, "it was asked before");
    assert!(bench.report().control_loss, "a copy is no sign of a leader");
}

/// Every way in which an answer can be wrong: no report, and a reason.
#[tokio::test]
async fn what_no_gateway_said_counts_for_nothing_whoever_stands_in_its_place() {
    let (_bench, gateway) = gateway().await;
    let made_up = json!({"version": 1, "instance": "i", "releases": {"ns/r": {"applied": 51}}});
    let made_up = Bytes::from(made_up.to_string());
    let mut servers = JoinSet::new();
    let mut expected = vec![];

    // Says what it likes.
    let says = made_up.clone();
    let plain = move |_| std::future::ready(answer(200, &[], says.clone()));
    expected.push(("unsigned", somebody(&mut servers, plain).await, "Unproven"));

    // Never stops.
    let endless = |_| {
        let more = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 1 << 16]));
        std::future::ready(answer(200, &[], Body::from_stream(more)))
    };
    expected.push(("endless", somebody(&mut servers, endless).await, "Unproven"));

    // Signs with a key of its own, or shows the question's signature as its own.
    let says = made_up.clone();
    let own = move |question: Request| {
        let text = |name| question.headers()[name].to_str().unwrap().to_owned();
        let request = proof::Request { method: "GET", target: REPORT_PATH, leader: "7" };
        let none = key(1).proof(&request, &text(ASKED_HEADER), &text(SIGNATURE_HEADER));
        let [(_, digest), _] = none.unwrap().headers(200, &says);
        let signed = key(2).ask(&request, start(), [0; 16]).headers()[1].1.to_owned();
        let headers = [(DIGEST_HEADER.to_owned(), digest), (SIGNATURE_HEADER.to_owned(), signed)];
        std::future::ready(answer(200, &headers, says.clone()))
    };
    expected.push(("another key", somebody(&mut servers, own).await, "Unproven"));

    // Says that it is a gateway with other keys.
    let refuses = |_| std::future::ready(answer(401, &[], "{}"));
    expected.push(("refuses", somebody(&mut servers, refuses).await, "UnknownKey"));

    // Sends elsewhere.
    let to = format!("http://{gateway}{REPORT_PATH}");
    let sends = move |_| {
        let location = [("location".to_owned(), to.clone())];
        std::future::ready(answer(302, &location, ""))
    };
    expected.push(("redirects", somebody(&mut servers, sends).await, "Unproven"));

    // Stands between: passes the question on, and changes the answer.
    type Change = fn(u16, Vec<(String, String)>, Bytes) -> Response<Body>;
    let changes: [(&str, &str, Change); 5] = [
        ("another body", "Changed", |status, headers, body| {
            let body = String::from_utf8(body.to_vec()).unwrap().replace("51", "52");
            answer(status, &headers, body)
        }),
        ("a longer body", "Changed", |status, headers, body| {
            answer(status, &headers, [&body[..], b" "].concat())
        }),
        ("half a body", "Changed", |status, headers, body| {
            answer(status, &headers, body.slice(..body.len() / 2))
        }),
        ("another status", "Unproven", |_, headers, body| answer(503, &headers, body)),
        ("another length", "Unproven", |status, mut headers, body| {
            headers[0].1 = headers[0].1.replacen(char::is_numeric, "9", 1);
            answer(status, &headers, body)
        }),
    ];
    for (name, reason, change) in changes {
        let gateway = gateway.clone();
        let between = move |question: Request| {
            let gateway = gateway.clone();
            async move {
                let (status, headers, body) = passed_on(&gateway, question).await;
                assert_eq!(status, 200);
                change(status, headers, body)
            }
        };
        expected.push((name, somebody(&mut servers, between).await, reason));
    }

    // Kept a true answer from before.
    type Answer = (Vec<(String, String)>, Bytes);
    let kept: Arc<Mutex<Option<Answer>>> = Arc::default();
    let (keeps, real) = (kept.clone(), gateway.clone());
    let keeper = move |question: Request| {
        let (keeps, real) = (keeps.clone(), real.clone());
        async move {
            let before = keeps.lock().unwrap().clone();
            let (headers, body) = match before {
                Some(before) => before,
                None => {
                    let (_, headers, body) = passed_on(&real, question).await;
                    *keeps.lock().unwrap() = Some((headers.clone(), body.clone()));
                    (headers, body)
                }
            };
            answer(200, &headers, body)
        }
    };
    let keeper = somebody(&mut servers, keeper).await;
    assert!(pulled(&keeper).await.is_ok(), "passed on as it is, it is the gateway's report");
    expected.push(("an old answer", keeper, "Unproven"));

    for (name, address, reason) in &expected {
        let silence = pulled(address).await.unwrap_err();
        assert_eq!(silence.reason(), *reason, "{name}: {silence:?}");
        assert!(silence.is_unproven(), "{name}");
    }
    // Beside a true gateway the others count as silent, and it is said which they are.
    let (operator, _) = operator(1, start);
    let addresses: Vec<&str> =
        expected.iter().map(|(_, a, _)| a.as_str()).chain([gateway.as_str()]).collect();
    let pulled = pull(&operator, &addresses).await;
    assert_eq!(pulled.size(), [addresses.len(), expected.len(), expected.len()]);
    let seen = pulled.of("ns/r").read();
    assert_eq!(seen.gateways.iter().filter(|g| g.instance.is_some()).count(), 1);
    assert!(seen.gateways.iter().all(|g| g.silent.is_none() == g.instance.is_some()));
}

#[tokio::test]
async fn a_gateway_whose_clock_differs_says_so_and_is_believed() {
    let (_bench, address) = gateway().await;
    let (operator, _) = operator(1, || Timestamp::from_second(3600).unwrap());
    let pulled = pull(&operator, &[&address]).await;
    let silence = pulled.reports[&address].clone().unwrap_err();
    assert_eq!(silence.reason(), "Refused");
    assert!(silence.to_string().contains("differ by 3600 s"), "{silence}");
    assert!(!silence.is_unproven());
}

#[tokio::test]
async fn nobody_is_there_or_has_a_key_to_be_asked_with() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    assert_eq!(pulled(&free).await.unwrap_err().reason(), "Unreachable");
    let (_bench, address) = gateway().await;
    let read = || {
        let failed: Result<Stored, String> = Err("forbidden".to_owned());
        Box::pin(std::future::ready(failed)) as futures::future::BoxFuture<'static, _>
    };
    let operator = Gateways::new(Box::new(read), start).unwrap();
    let pulled = pull(&operator, &[&address]).await;
    assert_eq!(pulled.reports[&address].clone().unwrap_err(), Silence::NoKey);
}

/// The keys were replaced by hand: both sides find together, and nobody reads keys for ever.
#[tokio::test]
async fn an_operator_that_is_not_understood_reads_the_keys_again_and_asks_again_at_once() {
    let (_bench, address) = gateway().await;
    let current = Arc::new(AtomicUsize::new(2));
    let (reads, now) = (Arc::new(AtomicUsize::new(0)), current.clone());
    let counted = reads.clone();
    let read = Box::new(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        let keys: Result<Stored, String> = Ok(stored(now.load(Ordering::Relaxed) as u8));
        Box::pin(std::future::ready(keys)) as futures::future::BoxFuture<'static, _>
    });
    let operator = Gateways::new(read, start).unwrap();
    for _ in 0..20 {
        let pulled = pull(&operator, &[&address]).await;
        assert_eq!(pulled.reports[&address].clone().unwrap_err(), Silence::UnknownKey);
    }
    let so_far = reads.load(Ordering::Relaxed);
    assert!((2..=8).contains(&so_far), "{so_far} reads in 20 pulls");
    current.store(1, Ordering::Relaxed);
    let mut tries = 0;
    while pull(&operator, &[&address]).await.reports[&address].is_err() {
        tries += 1;
        assert!(tries < 600, "the keys were not read again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
