//! A variant that can not be built takes no other down.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use serinus::{
    api::{
        SecretText, Variant,
        llm_deployment::SecretKeyRef,
        prompt_release::{RoutedVariant, VariantRole},
    },
    gateway::routes::{Grants, ReleaseInput},
};

use crate::bench::{Bench, edit, fails, good, variant};

/// Each way in which a variant can be impossible to build, and the word for it.
const FAULTS: [(&str, &str); 14] = [
    ("no API key", "SecretNotFound"),
    ("an empty API key", "SecretInvalid"),
    ("a blank API key", "SecretInvalid"),
    ("an API key with a line break", "SecretInvalid"),
    ("an API key for other hosts", "SecretNotGranted"),
    ("an API key for its host and not for its proxy", "SecretNotGranted"),
    ("no authority", "SecretNotFound"),
    ("a garbled authority", "SecretInvalid"),
    ("no client certificate", "SecretNotFound"),
    ("a garbled client certificate", "SecretInvalid"),
    ("a header's value", "HeaderInvalid"),
    ("a template", "PromptInvalid"),
    ("no copy", "CopyNotFound"),
    ("an unreadable copy", "CopyUnreadable"),
];

fn secret(name: &str, key: &str) -> SecretKeyRef {
    SecretKeyRef { name: name.to_owned(), key: key.to_owned() }
}

fn endpoint(variant: &mut Variant, field: &str, value: Value) {
    let mut endpoint = serde_json::to_value(&variant.backend.endpoint).unwrap();
    endpoint[field] = value;
    variant.backend.endpoint = Some(serde_json::from_value(endpoint).unwrap());
}

/// Makes a variant impossible to build.
fn spoil(release: &mut ReleaseInput, revision: &str, fault: &str) {
    let mut know = |name: &str, key: &str, text: &str| {
        release.secrets.insert(secret(name, key), SecretText::from(text.to_owned()));
    };
    let authority = json!({"caSecretRef": {"name": "ca", "key": "ca.crt"}});
    let certificate = json!({"clientCertificateSecretRef": {"name": "own"}});
    let api_key = json!({"name": "key", "key": "token"});
    let (field, value) = match fault {
        "no API key" => ("apiKeySecretRef", api_key),
        "an empty API key" | "a blank API key" => {
            know("key", "token", if fault == "an empty API key" { "" } else { " \t" });
            ("apiKeySecretRef", api_key)
        }
        "an API key with a line break" => {
            know("key", "token", "a\nb");
            ("apiKeySecretRef", api_key)
        }
        "an API key for other hosts" => {
            know("key", "token", "k");
            release.grants = Grants::none();
            release.grants.allow("key", "api.openai.com");
            release.grants.allow("stable", "127.0.0.1");
            ("apiKeySecretRef", api_key)
        }
        "an API key for its host and not for its proxy" => {
            know("key", "token", "k");
            release.grants = Grants::none();
            release.grants.allow("key", "127.0.0.1");
            release.grants.allow("stable", "127.0.0.1");
            let proxy = json!({"url": "http://127.0.0.2:3128"});
            let proxy = Some(serde_json::from_value(proxy).unwrap());
            edit(release.variants.get_mut(revision).unwrap(), |v| v.backend.proxy = proxy);
            ("apiKeySecretRef", api_key)
        }
        "no authority" => ("tls", authority),
        "a garbled authority" => {
            know("ca", "ca.crt", "garbled-secret-text");
            ("tls", authority)
        }
        "no client certificate" => ("tls", certificate),
        "a garbled client certificate" => {
            know("own", "tls.crt", "garbled-secret-text");
            know("own", "tls.key", "garbled-secret-text");
            ("tls", certificate)
        }
        "a header's value" => ("headers", json!({"x-team": "a\nb"})),
        "a template" => {
            let saved = release.variants.get_mut(revision).unwrap();
            edit(saved, |v| v.prompt.messages[0].content = "{{ question".to_owned());
            return;
        }
        "no copy" => {
            release.variants.remove(revision);
            return;
        }
        "an unreadable copy" => {
            release.variants.remove(revision);
            release.faults.copies.insert(revision.to_owned(), "unknown field `of`".to_owned());
            return;
        }
        other => panic!("{other}"),
    };
    edit(release.variants.get_mut(revision).unwrap(), |v| endpoint(v, field, value));
}

/// A release with the canary in this role.
fn with(bench: &Bench, role: VariantRole) -> ReleaseInput {
    let mut release = bench.release(if role == VariantRole::Shadow { 0 } else { 50 });
    let variants = &mut release.routing.variants;
    match role {
        VariantRole::Shadow => variants.push(RoutedVariant {
            revision: "canary".to_owned(),
            role,
            weight: 0,
            copies: Some(100),
        }),
        // It was promoted: the one that the draw is about is in charge.
        VariantRole::Stable | VariantRole::Previous => {
            variants[0].role = VariantRole::Previous;
            variants[1].role = VariantRole::Stable;
        }
        VariantRole::Canary => {}
    }
    release
}

/// The variants that answered `n` users.
async fn ask(bench: &Bench, n: usize) -> Vec<String> {
    let before = bench.asked().len();
    for i in 0..n {
        let answer = bench.chat(json!({"user": format!("user-{i}")})).await;
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    }
    bench.asked()[before..].iter().map(variant).collect()
}

#[tokio::test]
async fn without_a_judge_users_of_a_bake_get_what_served_before() {
    let bench = Bench::with_control_loss(Duration::ZERO, |_| good()).await;
    bench.serve(with(&bench, VariantRole::Previous));
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(ask(&bench, 20).await.iter().all(|who| who == "stable"));
}

#[tokio::test]
async fn in_a_bake_each_variant_answers_while_the_other_one_fails() {
    for without_judge in [false, true] {
        for dead in ["stable", "canary"] {
            let at = format!("{dead} is dead, no judge: {without_judge}");
            let patience = if without_judge { Duration::ZERO } else { Duration::from_secs(60) };
            let script =
                move |request: &Value| if variant(request) == dead { fails(500) } else { good() };
            let bench = Bench::with_control_loss(patience, script).await;
            bench.serve(with(&bench, VariantRole::Previous));
            tokio::time::sleep(Duration::from_millis(5)).await;
            // Nobody notices the first failures either, nor those that open the breaker.
            let asked = ask(&bench, 120).await;
            let met = |who: &str| asked.iter().filter(|asked| *asked == who).count();
            let other = if dead == "stable" { "canary" } else { "stable" };
            assert!(met(other) >= 120, "{at}: {asked:?}");
            let asks_the_dead = dead == "stable" || !without_judge;
            assert_eq!(met(dead) > 0, asks_the_dead, "{at}");
            assert!(met(dead) < 60, "{at}: its breaker opens: {}", met(dead));
            if !without_judge {
                let of_dead = bench.counts(dead);
                let away = of_dead.turned_away.waiting + of_dead.turned_away.requests;
                assert!(of_dead.errors > 0 && away > 0, "{at}: {of_dead:?}");
                assert_eq!(bench.counts(other).errors, 0, "{at}");
            }
        }
    }
}

#[tokio::test]
async fn a_refusal_stays_one_when_the_other_variant_can_not_be_asked() {
    let script =
        |request: &Value| if variant(request) == "canary" { fails(400) } else { fails(503) };
    for role in [VariantRole::Previous, VariantRole::Canary] {
        let bench = Bench::new(script).await;
        bench.serve(with(&bench, role));
        let mut statuses = std::collections::BTreeSet::new();
        for n in 0..20 {
            let answer = bench.chat(json!({"user": format!("user-{n}")})).await;
            let asked_the_canary = bench.asked().iter().map(variant).any(|who| who == "canary");
            if asked_the_canary && answer.headers()["x-serinus-revision"] == "canary" {
                statuses.insert(answer.status().as_u16());
            }
        }
        assert_eq!(statuses, [400].into(), "{role:?}");
    }
}

#[tokio::test]
async fn when_both_variants_of_a_bake_fail_each_is_asked_and_no_more() {
    let bench = Bench::new(|_| fails(500)).await;
    bench.serve(with(&bench, VariantRole::Previous));
    for n in 1..=4 {
        assert_eq!(bench.chat(json!({"user": format!("user-{n}")})).await.status(), 500);
        let asked = bench.asked();
        let met = |who: &str| asked.iter().filter(|asked| variant(asked) == who).count();
        // As often as one that fails is asked again.
        assert!((n..=3 * n).contains(&met("stable")), "{}", met("stable"));
        assert!((n..=3 * n).contains(&met("canary")), "{}", met("canary"));
    }
}

#[tokio::test]
async fn whatever_is_wrong_with_a_variant_the_others_answer_and_it_is_told() {
    for (fault, reason) in FAULTS {
        for (role, bad, answers) in [
            (VariantRole::Canary, "canary", "stable"),
            (VariantRole::Shadow, "canary", "stable"),
            // While baking: the promoted one is called canary here, the one before stable.
            (VariantRole::Previous, "stable", "canary"),
            (VariantRole::Stable, "canary", "stable"),
        ] {
            let at = format!("{role:?} with {fault}");
            let bench = Bench::new(|_| good()).await;
            let mut release = with(&bench, role);
            spoil(&mut release, bad, fault);
            bench.serve(release);
            assert!(ask(&bench, 20).await.iter().all(|who| who == answers), "{at}");
            later().await;
            let report = bench.report();
            let why = &report.unbuilt[bad];
            assert!(!why.is_empty() && !why.contains("garbled-secret-text"), "{at}: {why}");
            assert!(bench.gateway.notices().text().contains(reason), "{at}: {why}");
            assert_eq!(report.applied, if role == VariantRole::Shadow { 1 } else { 51 });
            if role == VariantRole::Shadow {
                assert_eq!(bench.counts("canary").assigned, 0, "{at}: nothing was copied");
                continue;
            }
            let (side, other) = (bench.counts(bad), bench.counts(answers));
            assert_eq!((side.assigned + other.assigned, side.requests), (20, 0), "{at}");
            assert_eq!(side.turned_away.waiting, side.assigned, "{at}: it is no pass");
            assert!(side.assigned > 0 && other.requests == other.assigned, "{at}");
        }
    }
}

#[tokio::test]
async fn another_backend_that_can_not_be_built_is_left_out() {
    let bench = Bench::new(|_| good()).await;
    let mut release = bench.release(0);
    let spec = json!({"provider": "test", "model": "other",
        "endpoint": {"url": "https://localhost:1/v1",
            "tls": {"caSecretRef": {"name": "ca", "key": "ca.crt"}}}});
    release.backends.insert("other".to_owned(), Arc::new(serde_json::from_value(spec).unwrap()));
    release.other_backends = vec!["other".to_owned()];
    bench.serve(release);
    assert_eq!(ask(&bench, 2).await, ["stable", "stable"]);
    let text = bench.gateway.notices().text();
    assert!(text.contains("fallback") && text.contains("LLMDeployment other"), "{text}");
}

#[tokio::test]
async fn another_backend_that_does_not_exist_is_told_and_keeps_no_revision_from_being_built() {
    let bench = Bench::new(|_| good()).await;
    let mut release = bench.release(0);
    release.other_backends = vec!["nope".to_owned()];
    bench.serve(release);
    assert_eq!(ask(&bench, 2).await, ["stable", "stable"]);
    let text = bench.gateway.notices().text();
    assert!(
        text.contains("LLMDeployment nope does not exist: create it, or take it out"),
        "{text}"
    );
    let unbuilt = bench.report().unbuilt;
    let told = unbuilt.get("fallback/nope").expect("the operator is told, too");
    assert!(unbuilt.len() == 1 && told.contains("does not exist"), "{unbuilt:?}");
}

#[tokio::test]
async fn what_was_turned_away_is_judged_when_the_variant_can_be_asked() {
    let bench = Bench::new(|_| good()).await;
    let mut release = bench.release(50);
    spoil(&mut release, "canary", "no API key");
    bench.serve(release.clone());
    ask(&bench, 20).await;
    let turned = bench.counts("canary").turned_away.waiting;
    release.secrets.insert(secret("key", "token"), SecretText::from("k".to_owned()));
    bench.serve(release);
    assert!(bench.report().unbuilt.is_empty() && bench.gateway.notices().text().is_empty());
    let answered = ask(&bench, 20).await.iter().filter(|who| *who == "canary").count();
    let canary = bench.counts("canary");
    assert_eq!(answered as u64, turned, "the same users are drawn");
    assert_eq!((canary.turned_away.waiting, canary.requests), (0, 2 * turned));
}

/// A release whose stable variant has an API key, and the keys that its model is sent.
async fn with_a_model_that_notes_keys(
    weight: i32,
) -> (Bench, ReleaseInput, Arc<std::sync::Mutex<Vec<String>>>) {
    let keys = Arc::<std::sync::Mutex<Vec<String>>>::default();
    let seen = keys.clone();
    let model = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = model.local_addr().unwrap();
    let router = axum::Router::new().fallback(move |headers: axum::http::HeaderMap| {
        seen.lock().unwrap().push(headers["authorization"].to_str().unwrap().to_owned());
        async { good() }
    });
    let mut bench = Bench::new(|_| good()).await;
    bench.servers.spawn(async move { axum::serve(model, router).await.unwrap() });
    let mut release = bench.release(weight);
    edit(release.variants.get_mut("stable").unwrap(), |v| {
        endpoint(v, "url", json!(format!("http://{address}/v1")));
        endpoint(v, "apiKeySecretRef", json!({"name": "stable", "key": "token"}));
    });
    (bench, release, keys)
}

#[tokio::test]
async fn stables_rotated_key_is_applied_beside_a_canary_that_can_not_be_built() {
    for (fault, _) in FAULTS {
        let (bench, mut release, keys) = with_a_model_that_notes_keys(50).await;
        for key in ["first", "second"] {
            if key == "second" {
                spoil(&mut release, "canary", fault);
            }
            release.secrets.insert(secret("stable", "token"), SecretText::from(key.to_owned()));
            bench.serve(release.clone());
            let forced = bench
                .client
                .post(format!("http://{}/v1/chat/completions", bench.address))
                .header("x-serinus-variant", "stable")
                .json(&json!({"model": "r", "serinus": {"variables": {"question": "why?"}}}));
            assert_eq!(forced.send().await.unwrap().status(), 200, "{fault}");
        }
        assert_eq!(*keys.lock().unwrap(), ["Bearer first", "Bearer second"], "{fault}");
    }
}

#[tokio::test]
async fn a_key_that_was_replaced_by_nothing_stays_the_one_before() {
    let (bench, mut release, keys) = with_a_model_that_notes_keys(0).await;
    for (key, is_told) in [("first", false), ("", true), ("  ", true), ("second", false)] {
        release.secrets.insert(secret("stable", "token"), SecretText::from(key.to_owned()));
        bench.serve(release.clone());
        assert_eq!(bench.chat(json!({"user": "u"})).await.status(), 200, "{key:?}");
        let told = bench.gateway.notices().text();
        assert_eq!(told.contains("SecretInvalid"), is_told, "{key:?}: {told}");
        let what_to_do = "in the Secret stable, the key that the LLMDeployment names is empty";
        assert_eq!(told.contains(what_to_do), is_told, "{key:?}: {told}");
    }
    let first = "Bearer first";
    assert_eq!(*keys.lock().unwrap(), [first, first, first, "Bearer second"]);
}

#[tokio::test]
async fn without_stable_the_route_says_why_and_no_canary_takes_its_place() {
    for (fault, reason) in FAULTS {
        let bench = Bench::new(|_| good()).await;
        let mut release = bench.release(50);
        spoil(&mut release, "stable", fault);
        bench.serve(release);
        let answer = bench.chat(json!({"user": "u"})).await;
        assert_eq!(answer.status(), 404, "{fault}");
        let text = answer.text().await.unwrap();
        assert!(text.contains(reason) && !text.contains("garbled-secret-text"), "{fault}: {text}");
        assert!(bench.asked().is_empty());
        later().await;
        let report = bench.report();
        assert!(report.applied == 0 && report.unbuilt.contains_key("stable"), "{report:?}");
        assert!(!ready(&bench).await, "{fault}: it can serve nothing");
        assert_eq!(bench.gateway.notices().text().lines().count(), 1);
        // Repaired, it is served and the gateway is ready; broken again, both stay.
        bench.serve(bench.release(50));
        assert!(ready(&bench).await && bench.gateway.notices().text().is_empty());
        let mut broken = bench.release(50);
        spoil(&mut broken, "stable", fault);
        bench.serve(broken);
        ask(&bench, 2).await;
        later().await;
        assert!(ready(&bench).await && bench.report().unbuilt.contains_key("stable"), "{fault}");
    }
}

#[tokio::test]
async fn a_promotion_that_can_not_be_built_leaves_what_served_with_its_rotated_key() {
    let bench = Bench::new(|_| good()).await;
    bench.serve(bench.release(0));
    let mut next = bench.release(0);
    next.routing.generation = 9;
    next.routing.variants[0].revision = "new".to_owned();
    let mut saved = next.variants["canary"].clone();
    edit(&mut saved, |v| endpoint(v, "apiKeySecretRef", json!({"name": "no", "key": "no"})));
    next.variants = [("new".to_owned(), saved)].into();
    bench.serve(next);
    assert_eq!(ask(&bench, 2).await, ["stable", "stable"]);
    let report = bench.report();
    assert_eq!((report.applied, report.unbuilt.contains_key("new")), (1, true));
}

#[tokio::test]
async fn a_canary_that_is_held_out_of_routing_is_tried_and_told() {
    let bench = Bench::new(|_| good()).await;
    let mut release = bench.release(0);
    release.trial = Some("canary".to_owned());
    spoil(&mut release, "canary", "no API key");
    bench.serve(release.clone());
    assert!(bench.report().unbuilt.contains_key("canary"));
    release.secrets.insert(secret("key", "token"), SecretText::from("k".to_owned()));
    bench.serve(release);
    assert!(bench.report().unbuilt.is_empty(), "it may come back");
    ask(&bench, 2).await;
}

#[tokio::test]
async fn a_tester_who_asks_for_a_variant_that_can_not_be_built_is_told_why() {
    let bench = Bench::new(|_| good()).await;
    let mut release = bench.release(50);
    spoil(&mut release, "canary", "no authority");
    bench.serve(release);
    for wanted in ["canary", "stable"] {
        let answer = bench
            .client
            .post(format!("http://{}/v1/chat/completions", bench.address))
            .header("x-serinus-variant", wanted)
            .json(&json!({"model": "r", "serinus": {"variables": {"question": "why?"}}}))
            .send()
            .await
            .unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        match wanted {
            "canary" => assert!(status == 404 && text.contains("there is no Secret ca"), "{text}"),
            _ => assert_eq!(status, 200, "{text}"),
        }
    }
}

#[tokio::test]
async fn one_tenants_broken_release_leaves_the_gateway_ready_for_others() {
    let bench = Bench::new(|_| good()).await;
    let mut broken = bench.release(0);
    spoil(&mut broken, "stable", "no API key");
    let other = ReleaseInput { namespace: "other".into(), route: "o".into(), ..bench.release(0) };
    bench.gateway.set_world(&[broken, other].into_iter().collect());
    assert!(ready(&bench).await);
    assert!(bench.gateway.notices().text().contains("ns/r"));
}

#[tokio::test]
async fn a_route_stays_with_the_release_that_has_it() {
    let bench = Bench::new(|_| good()).await;
    let named = |name: &str, created: &str| ReleaseInput {
        name: name.into(),
        created: created.into(),
        ..bench.release(0)
    };
    let (young, old) = (named("young", "2026-01-02"), named("old", "2026-01-01"));
    let held = || bench.gateway.report(false).releases.keys().cloned().collect::<Vec<_>>();
    bench.serve(young.clone());
    bench.gateway.set_world(&[young, old.clone()].into_iter().collect());
    let applied = |name: &str| bench.gateway.report(false).releases[name].applied;
    assert_eq!((applied("ns/young"), held().len()), (1, 1), "{:?}", held());
    assert!(bench.gateway.notices().text().contains("held by the PromptRelease ns/young"));
    bench.serve(old);
    assert_eq!(held(), ["ns/old"]);
}

/// Lets pass what may pass by itself.
async fn later() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(6)).await;
    tokio::time::resume();
}

async fn ready(bench: &Bench) -> bool {
    let readyz = format!("http://{}/readyz", bench.address);
    bench.client.get(readyz).send().await.unwrap().status() == 200
}
