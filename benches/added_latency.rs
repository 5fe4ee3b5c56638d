//! What the gateway adds to a request: an open loop at a constant rate, measured from
//! the instant at which each request was due, directly and through the gateway in
//! turns within one run. `cargo bench --bench added_latency`
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench prints and stops when something is wrong"
)]

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde_json::json;
use serinus::{
    api::{
        Variant,
        prompt_release::{RoutedVariant, Routing, RoutingSettings, VariantRole},
    },
    app::simulated_model,
    gateway::{
        Gateway, GatewayConfig,
        identity::Identities,
        routes::ReleaseInput,
        server::{Face, serve},
    },
};
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::JoinSet,
};

const ROUNDS: usize = 5;
const SECONDS: u64 = 4;

#[tokio::main]
async fn main() {
    let model = start_model().await;
    let gateways = [
        ("canary 50 %", start_gateway(canary_at_half(model)).await),
        ("shadow 10 %", start_gateway(slow_shadow(model)).await),
    ];
    let client = reqwest::Client::builder().tcp_nodelay(true).build().unwrap();
    println!(
        "{ROUNDS} rounds of {SECONDS} s each, direct and through the gateway in turns; milliseconds"
    );
    println!(
        "{:<12} {:>6} {:>22} {:>22} {:>22}",
        "", "req/s", "direct p50 / p99", "gateway p50 / p99", "added p50 / p99"
    );
    for ((what, gateway), rate) in gateways.iter().flat_map(|g| [(g, 200), (g, 1000)]) {
        let mut added = vec![];
        let (mut direct, mut through) = (vec![], vec![]);
        for _ in 0..ROUNDS {
            let d = load(&client, model, "[[sim:firstTokenMs=0 tokenMs=0]] why?", rate).await;
            let g = load(&client, *gateway, "", rate).await;
            added.push((g.0 - d.0, g.1 - d.1));
            direct.push(d);
            through.push(g);
        }
        let show = |all: &[(f64, f64)]| {
            let median = |pick: fn(&(f64, f64)) -> f64| {
                let mut values: Vec<f64> = all.iter().map(pick).collect();
                values.sort_by(f64::total_cmp);
                values[values.len() / 2]
            };
            format!("{:.3} / {:.3}", median(|v| v.0), median(|v| v.1))
        };
        let (direct, through, added) = (show(&direct), show(&through), show(&added));
        println!("{what:<12} {rate:>6} {direct:>22} {through:>22} {added:>22}");
    }
}

async fn start_model() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn(async move { simulated_model::serve(listener, std::future::pending()).await.unwrap() });
    address
}

async fn start_gateway(release: ReleaseInput) -> SocketAddr {
    let gateway = Gateway::new(GatewayConfig {
        control_loss_timeout: Duration::from_secs(3600),
        identities: Identities::off(),
        ..GatewayConfig::new(|| Timestamp::UNIX_EPOCH)
    });
    gateway.set_world(&[release].into_iter().collect());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let forever = std::future::pending();
    spawn(serve(listener, Face::Applications, gateway, forever, Duration::from_secs(1)));
    address
}

/// A canary at 50 %: every request draws, renders, validates, is checked and counted.
fn canary_at_half(model: SocketAddr) -> ReleaseInput {
    release(model, 0, [(VariantRole::Stable, 50, None), (VariantRole::Canary, 50, None)])
}

/// A shadow that takes half a second for each of its copies: users must not notice.
fn slow_shadow(model: SocketAddr) -> ReleaseInput {
    release(model, 500, [(VariantRole::Stable, 100, None), (VariantRole::Shadow, 0, Some(10))])
}

fn release(
    model: SocketAddr,
    second_takes_ms: u32,
    [first, second]: [(VariantRole, i32, Option<i32>); 2],
) -> ReleaseInput {
    let variant = |text: &str, ms: u32| {
        Variant {
        prompt_name: "p".into(),
        prompt: serde_json::from_value(json!({
            "prompt": "p",
            "messages": [{"role": "system", "content": format!("[[sim:firstTokenMs={ms} tokenMs=0]] {text}")},
                {"role": "user", "content": "{{ question }}"}],
            "variables": {"type": "object", "required": ["question"]},
            "responseFormat": {"type": "object", "required": ["answer"]},
        }))
        .unwrap(),
        backend_name: "b".into(),
        backend: serde_json::from_value(json!({
            "provider": "openai", "model": "gpt-4o-mini",
            "endpoint": {"url": format!("http://{model}/v1")},
            "limits": {"maxConcurrency": 5000},
        }))
        .unwrap(),
    }
    };
    let routed = |revision: &str, (role, weight, copies)| RoutedVariant {
        revision: revision.into(),
        role,
        weight,
        copies,
    };
    ReleaseInput {
        namespace: "ns".into(),
        name: "r".into(),
        uid: "uid".into(),
        route: "r".into(),
        routing: Routing {
            generation: 1,
            variants: vec![routed("a", first), routed("b", second)],
            settings: RoutingSettings {
                sticky_from: vec!["body:user".into()],
                fallback_to_stable: true,
            },
            observed_by: String::new(),
        },
        variants: [("a".into(), variant("one", 0)), ("b".into(), variant("two", second_takes_ms))]
            .into(),
        ..ReleaseInput::default()
    }
}

#[expect(clippy::disallowed_methods, reason = "servers live as long as the bench")]
fn spawn(server: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(server);
}

/// Hands out the instants at which requests are due. A thread of its own, because the
/// timer of tokio counts whole milliseconds, which is more than what is measured here.
#[expect(clippy::disallowed_methods, reason = "a pacing thread of its own")]
fn pace(rate: u64) -> UnboundedReceiver<Instant> {
    let (sender, receiver) = unbounded_channel();
    std::thread::spawn(move || {
        let started = Instant::now() + Duration::from_millis(50);
        for i in 0..rate * SECONDS {
            let due = started + Duration::from_secs_f64(i as f64 / rate as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if sender.send(due).is_err() {
                return;
            }
        }
    });
    receiver
}

/// p50 and p99 in milliseconds.
async fn load(client: &reqwest::Client, to: SocketAddr, message: &str, rate: u64) -> (f64, f64) {
    let url = Arc::new(format!("http://{to}/v1/chat/completions"));
    let messages = match message {
        "" => json!([]),
        text => json!([{"role": "user", "content": text}]),
    };
    let (mut due_times, mut requests) = (pace(rate), JoinSet::new());
    let mut number = 0;
    while let Some(due) = due_times.recv().await {
        number += 1;
        let body = json!({"model": "r", "messages": messages, "user": format!("u{number}"),
            "serinus": {"variables": {"question": "why?"}}});
        let (client, url) = (client.clone(), url.clone());
        requests.spawn(async move {
            let answer = client.post(url.as_str()).json(&body).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            answer.bytes().await.unwrap();
            due.elapsed().as_secs_f64() * 1000.0
        });
    }
    let mut times: Vec<f64> = requests.join_all().await;
    times.sort_by(f64::total_cmp);
    let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize];
    (at(0.5), at(0.99))
}
