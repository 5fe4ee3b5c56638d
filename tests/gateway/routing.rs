//! Where a request goes when things go wrong, or somebody wishes so.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{body::Body, http::Response};
use futures::{StreamExt, stream, stream::FuturesUnordered};
use serde_json::{Value, json};
use serinus::{
    api::{SecretText, llm_deployment::SecretKeyRef, prompt_release::Counts},
    gateway::routes::ReleaseInput,
};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use crate::bench::{Bench, edit, event, fails, good, says, streamed, variant};

/// Sets fields of the limits of both variants' backend.
fn limited(mut release: ReleaseInput, limits: &Value) -> ReleaseInput {
    for variant in release.variants.values_mut() {
        edit(variant, |variant| {
            let mut backend = serde_json::to_value(&variant.backend).unwrap();
            let own = backend["limits"].as_object_mut().unwrap();
            own.extend(limits.as_object().cloned().unwrap());
            variant.backend = serde_json::from_value(backend).unwrap();
        });
    }
    release
}

/// A second backend, whose model is `other-model`.
fn with_other_backend(mut release: ReleaseInput, model: SocketAddr) -> ReleaseInput {
    let spec = json!({"provider": "test", "model": "other-model",
        "endpoint": {"url": format!("http://{model}/v1")}});
    release.backends.insert("other".to_owned(), Arc::new(serde_json::from_value(spec).unwrap()));
    release.other_backends = vec!["other".to_owned()];
    release
}

fn models(asked: &[Value]) -> Vec<&str> {
    asked.iter().map(|request| request["model"].as_str().unwrap()).collect()
}

fn overloaded(retry_after: (&str, &str)) -> Response<Body> {
    let mut response = fails(429);
    let (name, value) = retry_after;
    response
        .headers_mut()
        .insert(axum::http::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
    response
}

/// A good answer whose body comes after something else.
fn good_after(wait: impl Future<Output = ()> + Send + 'static) -> Response<Body> {
    let body = stream::once(async move {
        wait.await;
        Ok::<_, std::io::Error>(r#"{"choices": [{"message": {"content": "{\"answer\": 1}"}}]}"#)
    });
    Response::builder().body(Body::from_stream(body)).unwrap()
}

#[tokio::test]
async fn another_backend_answers_when_the_own_one_is_away_and_that_is_no_evidence() {
    let bench = Bench::new(|r| if r["model"] == "other-model" { good() } else { fails(503) }).await;
    bench.serve(with_other_backend(bench.release(1), bench.model));
    let answer = bench.chat(json!({"user": "stable-by-draw"})).await;
    assert_eq!(answer.status(), 200);
    let revision = answer.headers()["x-serinus-revision"].to_str().unwrap().to_owned();
    assert!(revision != "stable" && revision != "canary", "{revision}: it is marked");
    assert_eq!(models(&bench.asked()), ["upstream-model", "upstream-model", "other-model"]);
    let counts = bench.counts("stable");
    assert_eq!((counts.requests, counts.errors), (1, 1), "the first attempt counts, and only it");
}

#[tokio::test]
async fn a_backend_that_fails_outright_is_passed_over() {
    let bench = Bench::new(|r| if r["model"] == "other-model" { good() } else { fails(503) }).await;
    let release = with_other_backend(bench.release(0), bench.model);
    bench.serve(limited(release, &json!({"retries": 0})));
    for _ in 0..30 {
        assert_eq!(bench.chat(json!({})).await.status(), 200);
    }
    let asked = bench.asked();
    let own = models(&asked).iter().filter(|m| **m == "upstream-model").count();
    assert!((10..20).contains(&own), "{own} of 30 asked the backend that is away");
}

#[tokio::test]
async fn what_the_application_did_wrong_is_asked_of_nobody_else() {
    let bench = Bench::new(|_| fails(400)).await;
    bench.serve(with_other_backend(bench.release(0), bench.model));
    assert_eq!(bench.chat(json!({})).await.status(), 400);
    assert_eq!(bench.asked().len(), 1);
}

#[tokio::test]
async fn an_overloaded_model_is_asked_again_when_it_says_so() {
    let times = Arc::new(AtomicUsize::new(0));
    let counted = times.clone();
    let bench = Bench::new(move |_| match counted.fetch_add(1, Ordering::Relaxed) {
        0 => overloaded(("retry-after-ms", "60")),
        _ => good(),
    })
    .await;
    bench.serve(bench.release(0));
    let began = Instant::now();
    assert_eq!(bench.chat(json!({})).await.status(), 200);
    assert!(began.elapsed() >= Duration::from_millis(60), "not before");
    assert_eq!(times.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn what_proxies_and_providers_say_of_an_overloaded_model_is_repeated() {
    for status in [502, 503, 504, 520, 521, 522, 523, 524, 529] {
        let times = Arc::new(AtomicUsize::new(0));
        let counted = times.clone();
        let bench = Bench::new(move |_| match counted.fetch_add(1, Ordering::Relaxed) {
            0 => fails(status),
            _ => good(),
        })
        .await;
        bench.serve(bench.release(0));
        assert_eq!(bench.chat(json!({})).await.status(), 200, "{status}");
        assert_eq!(times.load(Ordering::Relaxed), 2, "{status}");
    }
}

#[tokio::test]
async fn who_must_wait_long_is_told_how_long() {
    let bench = Bench::new(|_| overloaded(("retry-after", "30"))).await;
    bench.serve(bench.release(0));
    let answer = bench.chat(json!({})).await;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["retry-after"]),
        (429, &"30".parse().unwrap())
    );
    assert_eq!(bench.asked().len(), 1, "a user who waits that long is better off with an error");
}

#[tokio::test]
async fn a_tester_chooses_the_variant_and_that_is_no_evidence() {
    let bench = Bench::new(|_| good()).await;
    bench.serve(bench.release(1));
    let ask = async |wanted: &str| {
        let body = json!({"model": "r", "serinus": {"variables": {"question": "q"}}});
        bench
            .client
            .post(format!("http://{}/v1/chat/completions", bench.address))
            .header("x-serinus-variant", wanted)
            .json(&body)
            .send()
            .await
            .unwrap()
    };
    for (wanted, got) in [("canary", "canary"), ("stable", "stable")] {
        let answer = ask(wanted).await;
        assert_eq!(answer.headers()["x-serinus-revision"], got);
    }
    assert_eq!(bench.counts("canary").requests + bench.counts("stable").requests, 0);
    let unknown = ask("0123456789").await;
    assert_eq!(unknown.status(), 404);
    let error: Value = unknown.json().await.unwrap();
    assert_eq!(error["error"]["code"], "variant_not_found");
}

#[tokio::test]
async fn who_finds_no_room_waits_for_it_and_one_too_many_is_told_to_come_back() {
    let bench = Bench::new(|_| good_after(tokio::time::sleep(Duration::from_millis(150)))).await;
    let limits = json!({"maxConcurrency": 1, "maxQueue": 1, "queueTimeout": "5s", "retries": 0});
    let one = limited(bench.release(0), &limits);
    // The room is the backend's, whichever release asks.
    let other = ReleaseInput { name: "o".to_owned(), route: "o".to_owned(), ..one.clone() };
    bench.gateway.set_world(&[one, other].into_iter().collect());
    let asked = ["r", "o", "r"].map(|route| bench.chat(json!({"model": route})));
    let mut statuses: Vec<u16> = futures::future::join_all(asked)
        .await
        .iter()
        .map(|answer| answer.status().as_u16())
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 429]);
}

#[tokio::test]
async fn a_stream_that_falls_silent_is_ended_with_an_error() {
    let bench = Bench::new(|_| {
        let begun = stream::iter([Ok(event("a", None))]);
        streamed(begun.chain(stream::pending()))
    })
    .await;
    bench.serve(limited(bench.release(1), &json!({"betweenTokensTimeout": "50ms"})));
    let text = bench.chat(json!({"stream": true, "user": "u"})).await.text().await.unwrap();
    assert!(text.contains("upstream_timeout"), "{text}");
    assert_eq!(bench.counts("stable").errors + bench.counts("canary").errors, 1);
}

#[tokio::test]
async fn a_stream_that_takes_too_long_as_a_whole_is_ended_with_an_error() {
    let bench = Bench::new(|_| {
        let endless = stream::repeat(()).then(|()| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Ok(event("a", None))
        });
        streamed(endless)
    })
    .await;
    bench.serve(limited(bench.release(0), &json!({"timeout": "1s"})));
    let text = bench.chat(json!({"stream": true})).await.text().await.unwrap();
    assert!(text.contains("\"a\"") && text.contains("upstream_timeout"), "{text}");
}

#[tokio::test]
async fn a_stream_that_said_that_it_is_done_is_good_however_its_connection_ends() {
    for broken in [false, true] {
        let bench = Bench::new(move |_| {
            let said = [event(r#"{"answer": 1}"#, Some("stop")), "data: [DONE]\n\n".to_owned()];
            let end: Result<String, std::io::Error> = Err(std::io::Error::other("reset"));
            let end = stream::iter(broken.then_some(end)).chain(stream::pending());
            // Apart from what was said, so that it is not read together.
            let pause = stream::once(async {
                tokio::time::sleep(Duration::from_millis(30)).await;
                Ok(": \n\n".to_owned())
            });
            streamed(stream::iter(said.map(Ok)).chain(pause).chain(end))
        })
        .await;
        bench.serve(bench.release(1));
        let text = bench.chat(json!({"stream": true, "user": "u"})).await.text().await.unwrap();
        assert!(text.contains("[DONE]") && !text.contains("error"), "{text}");
        let (stable, canary) = (bench.counts("stable"), bench.counts("canary"));
        assert_eq!((stable.requests + canary.requests, stable.errors + canary.errors), (1, 0));
    }
}

#[tokio::test]
async fn who_leaves_when_the_stream_said_that_it_is_done_or_why_it_ended_got_an_answer() {
    for mark in ["data: [DONE]\n\n", ""] {
        let bench = Bench::new(move |_| {
            let said = [event(r#"{"answer": 1}"#, Some("stop")), mark.to_owned()];
            streamed(stream::iter(said.map(Ok)).chain(stream::pending()))
        })
        .await;
        bench.serve(bench.release(1));
        let answer = bench.chat(json!({"stream": true, "user": "u"})).await;
        let (mut body, mut text) = (answer.bytes_stream(), String::new());
        while !text.contains("stop") || !text.ends_with(mark) {
            text.push_str(std::str::from_utf8(&body.next().await.unwrap().unwrap()).unwrap());
        }
        drop(body);
        let ended = || {
            let counts = [bench.counts("stable"), bench.counts("canary")];
            let sum = |of: fn(&Counts) -> u64| counts.iter().map(of).sum::<u64>();
            (sum(|c| c.checked), sum(|c| c.unfinished))
        };
        for _ in 0..500 {
            if ended() != (0, 0) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(ended(), (1, 0), "{mark:?}");
    }
}

#[tokio::test]
async fn a_full_backend_counts_for_both_variants_alike() {
    let (open, opened) = watch::channel(false);
    let bench = Bench::new(move |_| {
        let mut opened = opened.clone();
        good_after(async move {
            opened.wait_for(|open| *open).await.unwrap();
        })
    })
    .await;
    let limits = json!({"maxConcurrency": 1, "maxQueue": 0, "retries": 0, "timeout": "60s"});
    bench.serve(limited(bench.release(50), &limits));
    let mut answers: FuturesUnordered<_> =
        (0..24).map(|user| bench.chat(json!({"user": format!("user {user}")}))).collect();
    // One is inside until all others were told that there is no room.
    for _ in 0..23 {
        assert_eq!(answers.next().await.unwrap().status(), 429);
    }
    open.send(true).unwrap();
    assert_eq!(answers.next().await.unwrap().status(), 200);
    let (stable, canary) = (bench.counts("stable"), bench.counts("canary"));
    assert!(stable.requests > 3 && canary.requests > 3, "both are asked for");
    assert_eq!(stable.errors + canary.errors, 23, "each of them was drawn for a side");
    assert_eq!(stable.failures.keys().collect::<Vec<_>>(), ["too_many_requests"]);
    assert!(bench.report().failing.is_empty(), "and none of them met the variant");
}

#[tokio::test]
async fn a_failure_of_the_canary_counts_before_stable_has_answered() {
    let bench = Bench::new(|request| match variant(request).as_str() {
        "canary" => fails(500),
        // It never answers.
        _ => Response::builder()
            .body(Body::from_stream(stream::pending::<Result<String, std::io::Error>>()))
            .unwrap(),
    })
    .await;
    bench.serve(bench.release(100));
    let asked = bench.chat(json!({"user": "u"}));
    let seen = async {
        while bench.counts("canary").errors == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        answer = asked => panic!("{answer:?}"),
        () = seen => {}
    }
}

#[tokio::test]
async fn what_leaves_something_behind_is_asked_once() {
    let bench = Bench::new(|_| good()).await;
    let times = Arc::new(AtomicUsize::new(0));
    for (more, status, asked) in [
        (json!({}), 502, 2),
        (json!({"conversation": "c1"}), 502, 1),
        (json!({"background": true}), 502, 1),
        (json!({"conversation": null, "background": false}), 502, 2),
        // It says that it did nothing.
        (json!({"conversation": {"id": "c1"}}), 503, 2),
    ] {
        times.store(0, Ordering::Relaxed);
        let counted = times.clone();
        let handler = axum::routing::post(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            async move { fails(status) }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let model = listener.local_addr().unwrap();
        let router = axum::Router::new().route("/v1/responses", handler);
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await });
        let mut release = limited(bench.release(0), &json!({"retries": 1}));
        for variant in release.variants.values_mut() {
            edit(variant, |variant| {
                let endpoint = json!({"url": format!("http://{model}/v1")});
                variant.backend.endpoint = Some(serde_json::from_value(endpoint).unwrap());
            });
        }
        bench.serve(release);
        let mut body = json!({"model": "r", "serinus": {"variables": {"question": "why?"}}});
        body.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
        let answer = bench.post("/v1/responses", &body).await;
        assert_eq!(answer.status(), status, "{more}");
        assert_eq!(times.load(Ordering::Relaxed), asked, "{more}");
    }
}

#[tokio::test]
async fn a_key_that_is_empty_is_nobodys() {
    let bench = Bench::new(|_| good()).await;
    bench.serve(bench.release(50));
    for _ in 0..60 {
        assert_eq!(bench.chat(json!({"user": ""})).await.status(), 200);
    }
    let (stable, canary) = (bench.counts("stable").requests, bench.counts("canary").requests);
    assert!(stable > 5 && canary > 5, "drawn one by one: {stable} and {canary}");
}

/// Says so when it is dropped.
struct Noticed(Arc<AtomicBool>);

impl Drop for Noticed {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn an_application_that_goes_away_in_the_middle_ends_the_model_too() {
    let ended = Arc::new(AtomicBool::new(false));
    let told = ended.clone();
    let bench = Bench::new(move |_| {
        let noticed = Noticed(told.clone());
        let endless = stream::unfold(noticed, |noticed| async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Some((Ok(event("word ", None)), noticed))
        });
        streamed(endless)
    })
    .await;
    bench.serve(bench.release(1));
    let answer = bench.chat(json!({"stream": true, "user": "u"})).await;
    let mut body = answer.bytes_stream();
    body.next().await.unwrap().unwrap();
    assert!(!ended.load(Ordering::Relaxed));
    drop(body);
    for _ in 0..500 {
        if ended.load(Ordering::Relaxed) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(ended.load(Ordering::Relaxed), "the model's connection was closed");
    let (stable, canary) = (bench.counts("stable"), bench.counts("canary"));
    assert_eq!((stable.requests + canary.requests, stable.unfinished + canary.unfinished), (0, 1));
}

#[tokio::test]
async fn usage_is_asked_for_and_shown_only_to_who_wanted_it() {
    let usage = r#"data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#;
    let bench = Bench::new(move |_| {
        let events = [event("a", Some("stop")), format!("{usage}\n\n"), "data: [DONE]\n\n".into()];
        streamed(stream::iter(events.map(Ok)))
    })
    .await;
    bench.serve(bench.release(0));
    let hidden = bench.chat(json!({"stream": true})).await.text().await.unwrap();
    assert!(!hidden.contains("usage") && hidden.ends_with("data: [DONE]\n\n"), "{hidden}");
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let shown = bench.chat(options).await.text().await.unwrap();
    assert!(shown.contains(usage), "{shown}");
    assert!(bench.asked().iter().all(|r| r["stream_options"]["include_usage"] == true));
}

#[tokio::test]
async fn a_backend_gets_its_own_query_headers_and_key() {
    let seen = Arc::new(std::sync::Mutex::new(vec![]));
    let keep = seen.clone();
    let handler = move |uri: axum::http::Uri, headers: axum::http::HeaderMap| {
        keep.lock().unwrap().push((uri.to_string(), headers));
        async { good() }
    };
    let router = axum::Router::new().fallback(axum::routing::post(handler));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let model = listener.local_addr().unwrap();
    let mut server = JoinSet::new();
    server.spawn(async move { axum::serve(listener, router).await });
    let bench = Bench::new(|_| good()).await;
    let mut release = bench.release(0);
    for variant in release.variants.values_mut() {
        edit(variant, |variant| {
            let endpoint = json!({
                "url": format!("http://{model}/openai/deployments/gpt-4o"),
                "query": {"api-version": "2024-10-21", "a b": "c&d"},
                "headers": {"x-team": "shop"},
                "apiKeyHeader": "api-key",
                "apiKeySecretRef": {"name": "azure", "key": "key"},
            });
            variant.backend.endpoint = Some(serde_json::from_value(endpoint).unwrap());
        });
    }
    let reference = SecretKeyRef { name: "azure".to_owned(), key: "key".to_owned() };
    release.secrets.insert(reference, SecretText::from("the key".to_owned()));
    bench.serve(release);
    let body = json!({"model": "r", "serinus": {"variables": {"question": "why?"}}});
    let url = format!("http://{}/v1/chat/completions", bench.address);
    let request = bench.client.post(url).bearer_auth("the application's").json(&body);
    assert_eq!(request.send().await.unwrap().status(), 200);
    let (uri, headers) = seen.lock().unwrap().pop().unwrap();
    let path = "/openai/deployments/gpt-4o/chat/completions";
    assert_eq!(uri, format!("{path}?a%20b=c%26d&api-version=2024-10-21"));
    assert_eq!(
        (&headers["x-team"], &headers["api-key"]),
        (&"shop".parse().unwrap(), &"the key".parse().unwrap())
    );
    assert!(headers.get("authorization").is_none(), "nobody's key goes to somebody else");
}

#[tokio::test]
async fn mistral_is_not_asked_for_usage_which_it_refuses_and_tells_anyway() {
    let bench = Bench::new(|_| {
        let events = [event("a", Some("stop")), "data: [DONE]\n\n".to_owned()];
        streamed(stream::iter(events.map(Ok)))
    })
    .await;
    let mut release = bench.release(0);
    for variant in release.variants.values_mut() {
        edit(variant, |variant| variant.backend.provider = "mistral".to_owned());
    }
    bench.serve(release);
    for more in [json!({}), json!({"stream_options": {"include_usage": true}})] {
        let mut body = json!({"stream": true});
        body.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
        assert_eq!(bench.chat(body).await.status(), 200);
    }
    assert!(bench.asked().iter().all(|r| r.get("stream_options").is_none()));
}

#[tokio::test]
async fn requests_spread_over_the_pods_of_a_service_and_none_is_lost_with_one_of_them() {
    let bench = Bench::new(|_| says(r#"{"answer": "one"}"#, "stop")).await;
    let second = bench.another_model(|_| says(r#"{"answer": "two"}"#, "stop")).await;
    // Nobody listens there any more.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut release = limited(bench.release(0), &json!({"retries": 1}));
    for variant in release.variants.values_mut() {
        edit(variant, |variant| {
            variant.backend.endpoint = None;
            variant.backend.service =
                Some(serde_json::from_value(json!({"name": "model", "port": 80})).unwrap());
        });
    }
    release.endpoints.insert("backend".to_owned(), vec![bench.model, second, gone]);
    bench.serve(release);
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..40 {
        let answer = bench.chat(json!({})).await;
        assert_eq!(answer.status(), 200);
        let body: Value = answer.json().await.unwrap();
        *seen.entry(body["choices"][0]["message"]["content"].to_string()).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), 2, "both that live got some: {seen:?}");
}
