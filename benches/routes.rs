//! What many routes cost a gateway: with 100, 1,000 and 10,000 releases, how long one
//! release that changes takes, a request that finds its route among all of them, the same
//! while other releases change a thousand times a second, and the memory of a route. None
//! should grow with the number of routes.
//! `cargo bench --bench routes`
//!
//! The request lacks a variable, so that it ends behind route, draw and prompt, and the
//! model is never asked. Requests go to all routes in a mixed order, as users' do.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench prints, waits and stops when wrong"
)]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde_json::json;
use serinus::{
    api::{
        Variant,
        prompt_release::{RoutedVariant, Routing, RoutingSettings, VariantRole},
    },
    gateway::{
        Gateway, GatewayConfig,
        identity::Identities,
        routes::ReleaseInput,
        server::{Face, serve},
    },
};
use tokio::{net::TcpListener, task::JoinSet};

const SIZES: [usize; 3] = [100, 1_000, 10_000];
const ROUNDS: usize = 9;
const REQUESTS: usize = 5_000;
const CHANGES: usize = 500;

struct Subject {
    releases: usize,
    gateway: Arc<Gateway>,
    connection: TcpStream,
    first_world: f64,
    kilobytes: f64,
    changes: Vec<f64>,
    requests: Vec<f64>,
    /// While releases change.
    meanwhile: Vec<f64>,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut servers = JoinSet::new();
    let mut subjects: Vec<Subject> =
        SIZES.iter().map(|releases| runtime.block_on(subject(*releases, &mut servers))).collect();
    for round in 0..ROUNDS {
        for subject in &mut subjects {
            let quiet = subject.ask();
            subject.requests.push(quiet);
            subject.change(round);
            subject.ask_while_others_change(round);
        }
    }
    println!("medians of {ROUNDS} rounds in turns, and how often that of {} releases\n", SIZES[0]);
    println!(
        "| releases | all at once, ms | KB a release | one changes, µs | | a request, µs | | while 1,000 a second change |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let (change, request) = (median(&subjects[0].changes), median(&subjects[0].requests));
    for subject in &subjects {
        let Subject { releases, first_world, kilobytes, changes, requests, meanwhile, .. } =
            subject;
        let ratios: Vec<f64> = meanwhile.iter().zip(requests).map(|(m, r)| m / r).collect();
        let (changes, requests) = (median(changes), median(requests));
        println!(
            "| {releases} | {:.1} | {kilobytes:.1} | {:.1} | × {:.2} | {:.1} | × {:.2} | × {:.2} |",
            first_world * 1e3,
            changes * 1e6,
            changes / change,
            requests * 1e6,
            requests / request,
            median(&ratios),
        );
    }
}

async fn subject(releases: usize, servers: &mut JoinSet<()>) -> Subject {
    let gateway = Gateway::new(GatewayConfig {
        identities: Identities::off(),
        ..GatewayConfig::new(|| Timestamp::UNIX_EPOCH)
    });
    let before = resident();
    let world = (0..releases).map(|i| release(i, 1)).collect();
    let started = Instant::now();
    gateway.set_world(&world);
    let first_world = started.elapsed().as_secs_f64();
    let kilobytes = (resident() - before) / releases as f64;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let forever = std::future::pending();
    let server =
        serve(listener, Face::Applications, gateway.clone(), forever, Duration::from_secs(1));
    servers.spawn(server);
    let connection = connect(address);
    Subject {
        releases,
        gateway,
        connection,
        first_world,
        kilobytes,
        changes: vec![],
        requests: vec![],
        meanwhile: vec![],
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let connection = TcpStream::connect(address).unwrap();
    connection.set_nodelay(true).unwrap();
    connection
}

impl Subject {
    /// Which of them comes at this place of a mixed order: 7,919 is prime.
    fn mixed(&self, n: usize) -> usize {
        n * 7_919 % self.releases
    }

    /// Seconds that a request takes.
    fn ask(&mut self) -> f64 {
        let bodies: Vec<Vec<u8>> = (0..REQUESTS).map(|n| request(self.mixed(n))).collect();
        let mut answer = [0; 4096];
        let started = Instant::now();
        for body in &bodies {
            self.connection.write_all(body).unwrap();
            let length = self.connection.read(&mut answer).unwrap();
            assert!(answer[..length].starts_with(b"HTTP/1.1 400"), "it lacks a variable");
        }
        started.elapsed().as_secs_f64() / REQUESTS as f64
    }

    fn ask_while_others_change(&mut self, round: usize) {
        let (gateway, releases) = (self.gateway.clone(), self.releases);
        let done = AtomicBool::new(false);
        let took = std::thread::scope(|scope| {
            scope.spawn(|| {
                let generations = i64::try_from(1_000_000 * (round + 1)).unwrap()..;
                for (n, generation) in generations.enumerate() {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let input = release(n * 7_919 % releases, generation);
                    gateway.change([(input.key(), Some(Arc::new(input)))]);
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let took = self.ask();
            done.store(true, Ordering::Relaxed);
            took
        });
        self.meanwhile.push(took);
    }

    fn change(&mut self, round: usize) {
        let generation = i64::try_from(round).unwrap() + 2;
        let changed = |n: usize| {
            let input = release(self.mixed(n), generation);
            (input.key(), Some(Arc::new(input)))
        };
        let changes: Vec<_> = (0..CHANGES.min(self.releases)).map(changed).collect();
        let (count, started) = (changes.len(), Instant::now());
        for change in changes {
            self.gateway.change([change]);
        }
        self.changes.push(started.elapsed().as_secs_f64() / count as f64);
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Resident memory in kilobytes.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn request(route: usize) -> Vec<u8> {
    let body =
        json!({"model": format!("route-{route}"), "user": "ada", "messages": []}).to_string();
    let length = body.len();
    format!("POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// A release with a canary at half.
fn release(number: usize, generation: i64) -> ReleaseInput {
    let variant = |text: &str| Variant {
        prompt_name: "p".into(),
        prompt: serde_json::from_value(json!({
            "prompt": "p",
            "messages": [{"role": "system", "content": text},
                {"role": "user", "content": "{{ question }}"}],
            "variables": {"type": "object", "required": ["question"]},
            "responseFormat": {"type": "object", "required": ["answer"]},
        }))
        .unwrap(),
        backend_name: "b".into(),
        backend: serde_json::from_value(json!({
            "provider": "openai", "model": "gpt-4o-mini",
            "endpoint": {"url": "http://127.0.0.1:9/v1"},
        }))
        .unwrap(),
    };
    let routed = |revision: &str, role| RoutedVariant {
        revision: revision.into(),
        role,
        weight: 50,
        copies: None,
    };
    ReleaseInput {
        namespace: "ns".into(),
        name: format!("release-{number}"),
        uid: format!("uid-{number}"),
        route: format!("route-{number}"),
        routing: Routing {
            generation,
            variants: vec![routed("a", VariantRole::Stable), routed("b", VariantRole::Canary)],
            settings: RoutingSettings {
                sticky_from: vec!["body:user".into()],
                fallback_to_stable: true,
            },
            observed_by: String::new(),
        },
        variants: [("a", variant("one")), ("b", variant("two"))]
            .map(|(revision, saved)| (revision.into(), Arc::new((&saved).into())))
            .into(),
        ..ReleaseInput::default()
    }
}
