//! Who is known by the gateway, over HTTP: client keys, and tokens of an issuer.

use std::sync::{Arc, Mutex};

use axum::{Router, http::HeaderMap, routing::get};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use serde_json::{Value, json};
use serinus::gateway::{
    GatewayConfig,
    identity::{
        ClientKey, Identities, Keys, Owner, Rule, Verifier,
        discovery::{OidcIssuer, follow_issuer},
    },
    notices::{Notice, Withheld},
};
use tokio::{net::TcpListener, task::JoinSet};

use crate::bench::{Bench, good, open};

const NOW: i64 = 1_800_000_000;
const KEY: &str = "0123456789abcdef01234567";
const OTHER: &str = "0123456789abcdef0123456f";

fn client_key(key: &str, name: &str, routes: &str) -> ClientKey {
    let field = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
    let fields = [field("key", key), field("routes", routes)].into();
    ClientKey::read(Owner::Gateway, name, &fields).unwrap()
}

/// A chat by who holds this key.
fn chat_as(bench: &Bench, key: &str) -> reqwest::RequestBuilder {
    let body = json!({"model": "r", "serinus": {"variables": {"question": "why?"}}});
    let url = format!("http://{}/v1/chat/completions", bench.address);
    bench.client.post(url).bearer_auth(key).json(&body)
}

#[tokio::test]
async fn that_manifests_are_not_in_force_is_told_to_who_may_use_such_a_route() {
    let identities = Identities::default();
    let keys = [client_key(KEY, "a", "shop-*"), client_key(OTHER, "b", "r")];
    identities.set_keys(Keys::new(keys).0);
    let bench = Bench::configured(GatewayConfig { identities, ..open() }, |_| good()).await;
    bench.serve(bench.release(0));
    let asked = async |key: &str| {
        let url = format!("http://{}/v1/chat/completions", bench.address);
        let body = json!({"model": "shop-answer", "messages": []});
        let answer = bench.client.post(url).bearer_auth(key).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 404);
        let body: Value = answer.json().await.unwrap();
        body["error"]["message"].as_str().unwrap().to_owned()
    };
    let before = asked(KEY).await;
    let file = |place: &str, routes: Vec<(String, String)>| Notice {
        withheld: Some(Withheld { routes, ..Withheld::default() }),
        ..Notice::new(place, "InvalidManifest", "correct it")
    };
    let notices = bench.gateway.notices();
    notices.set(vec![file("a.yaml", vec![])]);
    let told = asked(KEY).await;
    assert!(
        told.contains("maybe because one file or folder of manifests is not in force"),
        "{told}"
    );
    assert!(told.contains("/readyz?verbose of the admin address"), "{told}");
    assert_eq!(asked(OTHER).await, before, "a stranger learns nothing");
    let route = ("default".to_owned(), "shop-answer".to_owned());
    notices.set(vec![file("a.yaml", vec![]), file("b.yaml", vec![route])]);
    let told = asked(KEY).await;
    let named = "is not served now: b.yaml: InvalidManifest: see /readyz?verbose on the admin port";
    assert!(told.ends_with(named), "{told}");
    assert_eq!(asked(OTHER).await, before, "a stranger learns nothing");
    notices.set(vec![]);
    assert_eq!(asked(KEY).await, before);
}

#[tokio::test]
async fn two_credentials_are_none() {
    let identities = Identities::default();
    identities.set_keys(Keys::new([client_key(KEY, "a", "r")]).0);
    let bench = Bench::configured(GatewayConfig { identities, ..open() }, |_| good()).await;
    bench.serve(bench.release(0));
    let bearer = |key: &str| format!("Bearer {key}");
    for (name, first, second) in [
        ("authorization", bearer(KEY), bearer(OTHER)),
        ("authorization", bearer(OTHER), bearer(KEY)),
        ("authorization", bearer(KEY), bearer(KEY)),
        ("api-key", KEY.to_owned(), OTHER.to_owned()),
    ] {
        let url = format!("http://{}/v1/chat/completions", bench.address);
        let body = json!({"model": "r", "serinus": {"variables": {"question": "why?"}}});
        let request = bench.client.post(url).header(name, first).header(name, second);
        let answer = request.json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 400);
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["error"]["code"], "ambiguous_credentials");
        assert_eq!(body["error"]["param"], name);
    }
    assert!(bench.asked().is_empty());
    assert_eq!(chat_as(&bench, KEY).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_key_permits_its_routes_and_hides_the_others() {
    let identities = Identities::default();
    let keys = [client_key(KEY, "a", "r"), client_key(OTHER, "b", "s-*")];
    identities.set_keys(Keys::new(keys).0);
    let bench = Bench::configured(GatewayConfig { identities, ..open() }, |_| good()).await;
    bench.serve(bench.release(0));
    let post = |key: Option<&'static str>| {
        let body = json!({"model": "r", "serinus": {"variables": {"question": "why?"}}});
        let url = format!("http://{}/v1/chat/completions", bench.address);
        let request = bench.client.post(url).json(&body);
        async move {
            let request = match key {
                Some(key) => request.bearer_auth(key),
                None => request,
            };
            let answer = request.send().await.unwrap();
            let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
            let body: Value = answer.json().await.unwrap();
            (status, body["error"]["code"].as_str().unwrap_or_default().to_owned(), headers)
        }
    };
    let told = |(status, code, _): (u16, String, HeaderMap)| (status, code);
    assert_eq!(told(post(Some(KEY)).await), (200, String::new()));
    assert_eq!(told(post(Some(OTHER)).await), (403, "route_not_permitted".to_owned()));
    assert_eq!(told(post(Some("nonsense")).await), (401, "invalid_api_key".to_owned()));
    let (status, code, headers) = post(None).await;
    assert_eq!((status, code.as_str()), (401, "missing_api_key"));
    assert_eq!(headers["www-authenticate"], "Bearer");
    assert_eq!(bench.asked().len(), 1, "strangers cost the model nothing");
    for (key, path, status, length) in [
        (KEY, "/v1/models", 200, Some(1)),
        (OTHER, "/v1/models", 200, Some(0)),
        (KEY, "/v1/models/r", 200, None),
        (OTHER, "/v1/models/r", 404, None),
        ("nonsense", "/v1/models", 401, None),
        ("nonsense", "/v1/models/r", 401, None),
    ] {
        let url = format!("http://{}{path}", bench.address);
        let answer = bench.client.get(url).header("x-api-key", key).send().await.unwrap();
        assert_eq!(answer.status(), status, "{key} {path}");
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["data"].as_array().map(Vec::len), length, "{key} {path}: {body}");
    }
}

#[tokio::test]
async fn only_a_key_with_the_permission_chooses_the_variant() {
    let identities = Identities::default();
    let field = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
    let tester = [field("key", OTHER), field("routes", "r"), field("permissions", "force")].into();
    let tester = ClientKey::read(Owner::Gateway, "tester", &tester).unwrap();
    identities.set_keys(Keys::new([client_key(KEY, "a", "r"), tester]).0);
    let bench = Bench::configured(GatewayConfig { identities, ..open() }, |_| good()).await;
    bench.serve(bench.release(1));
    for (key, status, code) in [(KEY, 403, Some("force_not_permitted")), (OTHER, 200, None)] {
        let request = chat_as(&bench, key);
        let answer = request.header("x-serinus-variant", "canary").send().await.unwrap();
        let revision = answer.headers().get("x-serinus-revision").cloned();
        assert_eq!(answer.status(), status);
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["error"]["code"].as_str(), code);
        assert_eq!(revision.is_some_and(|revision| revision == "canary"), status == 200);
    }
    assert_eq!(bench.asked().len(), 1);
}

#[tokio::test]
async fn a_client_keeps_its_variant_where_its_key_is_the_sticky_one() {
    let identities = Identities::default();
    let key = |i: usize| format!("{i:024}");
    let keys = (0..16).map(|i| client_key(&key(i), &format!("client {i}"), "r"));
    identities.set_keys(Keys::new(keys).0);
    let bench = Bench::configured(GatewayConfig { identities, ..open() }, |_| good()).await;
    let mut release = bench.release(50);
    release.routing.settings.sticky_from = vec!["client".to_owned()];
    bench.serve(release);
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..4 {
        for i in 0..16 {
            let answer = chat_as(&bench, &key(i)).send().await.unwrap();
            let revision = answer.headers()["x-serinus-revision"].to_str().unwrap().to_owned();
            assert_eq!(*seen.entry(i).or_insert(revision.clone()), revision, "client {i}");
        }
    }
    let canaries = seen.values().filter(|revision| *revision == "canary").count();
    assert!((1..16).contains(&canaries), "{canaries} of 16 at half the traffic");
}

/// An issuer's key.
struct Key {
    id: &'static str,
    pair: EcdsaKeyPair,
}

impl Key {
    fn new(id: &'static str) -> Self {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self { id, pair: EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap() }
    }

    fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.id,
            "x": part(&point[1..33]), "y": part(&point[33..])})
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let text = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let message = format!("{}.{}", text(header), text(claims));
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn token(&self, claims: &Value) -> String {
        self.sign(&json!({"alg": "ES256", "typ": "JWT", "kid": self.id}), claims)
    }
}

/// A small issuer, which publishes what it is told.
struct Issuer {
    url: String,
    jwks: Arc<Mutex<Value>>,
    tasks: JoinSet<()>,
}

impl Issuer {
    async fn new(keys: &[&Key]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let jwks = Arc::new(Mutex::new(Value::Null));
        let metadata = json!({"issuer": url, "jwks_uri": format!("{url}keys")}).to_string();
        let shown = jwks.clone();
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(|| async { metadata }))
            .route("/keys", get(|| async move { shown.lock().unwrap().to_string() }));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        let issuer = Self { url, jwks, tasks };
        issuer.publish(keys);
        issuer
    }

    fn publish(&self, keys: &[&Key]) {
        // Others' keys and unknown ones are no reason to know none.
        let mut all = vec![json!({"kty": "new", "kid": "?"}), json!({"kty": "oct", "k": "AAAA"})];
        all.extend(keys.iter().map(|k| k.jwk()));
        *self.jwks.lock().unwrap() = json!({"keys": all});
    }

    /// Identities that believe this issuer and know its keys.
    async fn identities(&mut self, routes_claim: bool) -> Identities {
        let rule = Rule::Claims {
            team: Some("team".to_owned()),
            routes: routes_claim.then(|| "routes".to_owned()),
            everybody: "everybody".to_owned(),
        };
        let clock = || Timestamp::from_second(NOW).unwrap();
        let verifier = Verifier::new("gateway".to_owned(), rule, clock);
        let issuer = OidcIssuer::new(&self.url, None).unwrap();
        self.tasks.spawn(follow_issuer(verifier.clone(), issuer));
        let identities = Identities::new(vec![verifier]);
        identities.set_keys_known();
        identities.known().await;
        identities
    }

    fn claims(&self) -> Value {
        json!({"iss": self.url, "aud": "gateway", "sub": "ada", "exp": NOW + 600,
            "team": "support", "routes": ["support-*", "sales"]})
    }
}

fn with(mut claims: Value, field: &str, value: Value) -> Value {
    match value {
        Value::Null => drop(claims.as_object_mut().unwrap().remove(field)),
        value => claims[field] = value,
    }
    claims
}

fn who(identities: &Identities, token: &str) -> Option<(String, String)> {
    let value = format!("Bearer {token}").parse().unwrap();
    let headers: HeaderMap = [("authorization".parse().unwrap(), value)].into_iter().collect();
    let client = identities.authenticate(&headers).ok()??;
    assert!(!client.may_force);
    Some((client.caller.name.clone(), client.caller.team.clone()))
}

#[tokio::test]
async fn a_token_counts_only_when_all_of_it_is_right() {
    let (key, stranger) = (Key::new("k1"), Key::new("k1"));
    let mut issuer = Issuer::new(&[&key]).await;
    let identities = issuer.identities(true).await;
    let claims = issuer.claims();
    let change = |field, value| key.token(&with(claims.clone(), field, value));
    let ada = Some(("ada".to_owned(), "support".to_owned()));
    for token in [
        key.token(&claims),
        change("aud", json!(["other", "gateway"])),
        change("exp", json!(NOW - 59)),
        change("exp", json!(NOW as f64 + 0.5)),
        change("nbf", json!(NOW + 59)),
        key.sign(&json!({"alg": "ES256"}), &claims),
    ] {
        assert_eq!(who(&identities, &token), ada, "{token}");
    }
    let alone = change("team", Value::Null);
    assert_eq!(who(&identities, &alone), Some(("ada".to_owned(), "ada".to_owned())));
    let good = key.token(&claims);
    let (message, signature) = good.rsplit_once('.').unwrap();
    let none = |alg: &str| URL_SAFE_NO_PAD.encode(json!({"alg": alg, "kid": "k1"}).to_string());
    let payload = message.split_once('.').unwrap().1;
    for (what, token) in [
        ("another audience", change("aud", json!("other"))),
        ("no audience", change("aud", Value::Null)),
        ("another issuer", change("iss", json!("http://127.0.0.1:1/"))),
        ("no issuer", change("iss", Value::Null)),
        ("no subject", change("sub", Value::Null)),
        ("expired", change("exp", json!(NOW - 61))),
        ("never expires", change("exp", Value::Null)),
        ("expires as text", change("exp", json!("9999999999"))),
        ("not yet", change("nbf", json!(NOW + 61))),
        ("not before as text", change("nbf", json!("0"))),
        ("signed by a stranger", stranger.token(&claims)),
        ("an unknown key", key.sign(&json!({"alg": "ES256", "kid": "k9"}), &claims)),
        (
            "another algorithm of the family",
            key.sign(&json!({"alg": "ES384", "kid": "k1"}), &claims),
        ),
        ("a shared secret", key.sign(&json!({"alg": "HS256", "kid": "k1"}), &claims)),
        ("no signature", format!("{}.{payload}.", none("none"))),
        ("none with a signature", format!("{}.{payload}.{signature}", none("none"))),
        ("cut", good[..good.len() - 1].to_owned()),
        ("long", format!("{good}{}", "A".repeat(20_000))),
        ("no token", "a.b.c".to_owned()),
    ] {
        assert_eq!(who(&identities, &token), None, "{what}");
    }
}

#[tokio::test]
async fn a_tokens_routes_are_those_of_everybody_and_those_of_its_claim() {
    let key = Key::new("k1");
    let mut issuer = Issuer::new(&[&key]).await;
    for (claim, routes, permitted) in [
        (true, json!(["r"]), true),
        (true, json!("x, r"), true),
        (true, json!({"r": true}), false),
        (true, Value::Null, false),
        (false, json!(["r"]), false),
    ] {
        let identities = issuer.identities(claim).await;
        let bench = Bench::configured(GatewayConfig { identities, ..open() }, |_| good()).await;
        bench.serve(bench.release(0));
        let token = key.token(&with(issuer.claims(), "routes", routes.clone()));
        let url = format!("http://{}/v1/models/r", bench.address);
        let answer = bench.client.get(url).bearer_auth(token).send().await.unwrap();
        assert_eq!(answer.status().is_success(), permitted, "{claim} {routes}");
    }
}

#[tokio::test]
async fn a_new_key_of_the_issuer_is_learned_and_an_issuer_that_is_away_harms_nobody() {
    let (old, new) = (Key::new("old"), Key::new("new"));
    let mut issuer = Issuer::new(&[&old]).await;
    let identities = issuer.identities(true).await;
    let token = |key: &Key, subject: &str| key.token(&with(issuer.claims(), "sub", json!(subject)));
    assert!(who(&identities, &token(&old, "a")).is_some());
    issuer.publish(&[&new]);
    // The unknown key makes it ask again.
    let learned = async {
        while who(&identities, &token(&new, "b")).is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), learned).await.unwrap();
    assert!(who(&identities, &token(&old, "c")).is_none(), "the withdrawn key ends");
    *issuer.jwks.lock().unwrap() = json!({"keys": []});
    assert!(who(&identities, &token(&old, "d")).is_none(), "it is asked again, in vain");
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    assert!(who(&identities, &token(&new, "e")).is_some(), "what was known last stays");
}

#[test]
fn an_issuer_that_anybody_could_answer_for_is_refused() {
    for (url, taken) in [
        ("https://issuer.example", true),
        ("http://127.0.0.1:8000", true),
        ("http://[::1]:8000", true),
        ("http://localhost/realm", true),
        ("http://issuer.example", false),
        ("http://10.0.0.1", false),
        ("ftp://issuer.example", false),
        ("issuer.example", false),
    ] {
        // The client chooses its TLS when it is made.
        let _ = rustls::crypto::ring::default_provider().install_default();
        assert_eq!(OidcIssuer::new(url, None).is_ok(), taken, "{url}");
    }
}
