//! What a template works out is bounded by nothing but the end of a process. Each of these is
//! that of an author who means no good, or of one who did not think of large inputs.

use std::time::Duration;

use futures::{StreamExt, stream};
use serde_json::json;
use serinus::{
    analysis::buckets,
    api::{
        GoDuration,
        prompt_release::{Counts, ResponseCache},
    },
    gateway::{GatewayConfig, renderer::Program, routes::ReleaseInput},
};

use crate::bench::{Bench, edit, good, open};

fn saying(mut release: ReleaseInput, name: &str, content: &str) -> ReleaseInput {
    release.name = name.to_owned();
    release.route = name.to_owned();
    release.uid = name.to_owned();
    for variant in release.variants.values_mut() {
        edit(variant, |v| v.prompt.messages[0].content = content.to_owned());
    }
    release
}

const DOUBLE: &str = "{% set ns = namespace(a=['x'], b=['x']) %}{% for i in range(40) %}\
                      {% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}";
const DEEP: &str = "{% set ns = namespace(a=[]) %}{% for i in range(90000) %}\
                    {% set ns.a = [[[[ns.a]]]] %}{% endfor %}";
const LONG: &str = "{% set a = 'a' * 100000 %}";

/// Each with what it does.
fn costly() -> Vec<String> {
    let double = |end: &str| format!("{DOUBLE}{end}");
    vec![
        // For ever.
        double("{{ ns.a == ns.b }}"),
        double("{{ ns.a in [ns.b] }}"),
        double("{{ [ns.a, ns.b] | sort | length }}"),
        double("{{ ns.a }}"),
        double("{{ ns.a | tojson | length }}"),
        "{% for i in range(100000) %}{{ range(90000) | list | length }}{% endfor %}".to_owned(),
        // Past the end of the stack.
        format!("{DEEP}x"),
        format!("{DEEP}{{{{ ns.a }}}}"),
        // All memory.
        format!("{LONG}{{{{ [a * 1000, a * 1000, a * 1000] | length }}}}"),
        format!(
            "{LONG}{{% set ns = namespace(l=[]) %}}{{% for i in range(9000) %}}\
             {{% set ns.l = ns.l + [a ~ i] %}}{{% endfor %}}x"
        ),
        format!("{LONG}{{{{ a | replace('a', a) | length }}}}"),
        "{{ range(99999) | list | batch(1) | map('list') | list | length * 1 }}{% set ns = \
         namespace(a='a') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}"
            .to_owned(),
    ]
}

#[tokio::test]
async fn a_template_that_takes_too_much_costs_its_own_requests_and_no_others() {
    let bench = Bench::new(|_| good()).await;
    let costly = costly();
    let names: Vec<String> = (0..costly.len()).map(|i| format!("bad{i}")).collect();
    let bad =
        costly.iter().zip(&names).map(|(content, name)| saying(bench.release(0), name, content));
    let fine = saying(bench.release(0), "fine", "{% if true %}I say {{ question }}{% endif %}");
    bench.gateway.set_world(&bad.chain([fine]).collect());
    let ask = async |name: &str| {
        let answer = bench.chat(json!({"model": name})).await;
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(ask("fine").await.0, 200);
    // All at once, three of each: meanwhile the others have their answers.
    let asked = names.iter().flat_map(|name| [name; 3]);
    let ask = &ask;
    let bad = stream::iter(asked).map(|name| async move { (name, ask(name).await) });
    let bad = bad.buffer_unordered(100).collect::<Vec<_>>();
    let fine = async {
        for _ in 0..10 {
            assert_eq!(ask("fine").await.0, 200);
        }
    };
    tokio::pin!(bad);
    let fine_first = tokio::select! {
        all = &mut bad => Err(all),
        () = fine => Ok(()),
    };
    assert!(fine_first.is_ok(), "who takes nothing waits for those that take too much");
    let (mut too_costly, mut others) = (0, vec![]);
    for (name, (status, text)) in bad.await {
        match (status, &text) {
            (500, text) if text.contains("prompt_too_costly") => too_costly += 1,
            // They wait for each other.
            (503, text) if text.contains("templates_busy") => {}
            _ => others.push(format!("{name}: {status} {text}")),
        }
    }
    assert_eq!(others, [""; 0]);
    assert!(too_costly >= 5, "{too_costly}");
    // One at a time, none waits for another. A busy machine may have no time for it.
    let mut whys = String::new();
    for (name, content) in names.iter().zip(&costly) {
        let (mut status, mut text) = ask(name).await;
        for _ in 0..20 {
            if !text.contains("templates_busy") {
                break;
            }
            (status, text) = ask(name).await;
        }
        assert!(status == 500 && text.contains("prompt_too_costly"), "{content}: {status} {text}");
        whys.push_str(&text);
        assert_eq!(ask("fine").await.0, 200);
    }
    assert!(whys.contains("takes more than 1 s") && whys.contains("of memory, or nests"), "{whys}");
    assert!(bench.asked().iter().all(|body| body["messages"][0]["content"] == "I say why?"));
}

#[tokio::test]
async fn a_canary_whose_template_takes_too_much_fails_and_its_users_get_stable() {
    let bench = Bench::new(|_| good()).await;
    let mut release = bench.release(50);
    edit(release.variants.get_mut("canary").unwrap(), |v| {
        v.prompt.messages[0].content = format!("{DOUBLE}{{{{ ns.a == ns.b }}}}");
    });
    bench.serve(release);
    for i in 0..8 {
        let answer = bench.chat(json!({"user": i.to_string()})).await;
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    }
    let Counts { assigned, errors, requests, .. } = bench.counts("canary");
    assert!(assigned > 0 && errors == requests && requests > 0, "{assigned} {requests} {errors}");
}

#[tokio::test]
async fn users_of_a_canary_who_wait_for_its_templates_in_vain_get_stable() {
    let bench = Bench::new(|_| good()).await;
    // Both are on one backend, as when only the prompt is edited.
    let mut release = bench.release(99);
    edit(release.variants.get_mut("canary").unwrap(), |v| {
        v.prompt.messages[0].content = format!("{DOUBLE}{{{{ ns.a == ns.b }}}}");
    });
    bench.serve(release);
    let bench = &bench;
    let all = (0..30).map(|i| async move {
        let answer = bench.chat(json!({"user": i.to_string()})).await;
        (answer.status().as_u16(), answer.text().await.unwrap())
    });
    let answers = futures::future::join_all(all).await;
    let failed: Vec<_> = answers.iter().filter(|(status, _)| *status != 200).collect();
    assert!(failed.is_empty(), "{failed:?}");
    let Counts { errors, requests, turned_away, .. } = bench.counts("canary");
    assert!(requests > 20 && errors == requests, "{requests} {errors} {turned_away:?}");
}

#[tokio::test]
async fn the_time_that_a_template_takes_is_part_of_the_answers_with_a_cache_and_without() {
    const SLEEPS: &str = "while read order; do sleep 1; printf '%s\\nok' \
                          '{\"took\":{\"secs\":0,\"nanos\":1},\"lengths\":[2],\"failed\":null}'; done";
    for cache in [None, Some(ResponseCache { ttl: GoDuration(Duration::from_secs(60)) })] {
        let mut config = open();
        config.renderer =
            Program { path: "/bin/sh".into(), arguments: ["-c", SLEEPS].map(str::to_owned).into() };
        let bench = Bench::configured(config, |_| good()).await;
        let mut release = saying(bench.release(50), "r", "{% if true %}{% endif %}");
        release.cache = cache;
        bench.serve(release);
        assert_eq!(bench.chat(json!({})).await.status(), 200);
        assert_eq!(bench.asked()[0]["messages"][0]["content"], "ok");
        let all = [bench.counts("stable"), bench.counts("canary")];
        let took: Vec<_> = all.iter().flat_map(|counts| counts.duration.keys()).collect();
        assert!(took.len() == 1 && buckets::bound(*took[0]) >= 1.0, "{took:?}");
    }
}

#[tokio::test]
async fn templates_get_what_names_in_words_get() {
    let bench = Bench::new(|_| good()).await;
    let source = "{% for i in range(2) %}{{ i }}{% endfor %} {{ question | upper }}";
    let release = saying(bench.release(0), "r", source);
    bench.serve(release);
    let asked = async |question: &str| {
        let variables = json!({"variables": {"question": question}});
        assert_eq!(bench.chat(json!({"serinus": variables})).await.status(), 200);
        let asked = bench.asked().pop().unwrap();
        assert!(asked["messages"][1]["content"] == question);
        asked["messages"][0]["content"].as_str().unwrap().to_owned()
    };
    for question in ["why?", "a \"b\" \\ \n c", "ü€𝄞", ""] {
        assert_eq!(asked(question).await, format!("01 {}", question.to_uppercase()));
    }
    let long = "é\"\\\n".repeat(150_000);
    let release = saying(bench.release(0), "r", "{{ question | length }}");
    bench.serve(release);
    assert_eq!(asked(&long).await, "600000");
    let missing = saying(bench.release(0), "r", "{% if a %}{{ b }}{% endif %}{{ c.d }}");
    bench.serve(missing);
    let answer = bench.chat(json!({})).await;
    assert_eq!(answer.status(), 400);
    assert!(answer.text().await.unwrap().contains("message 0 can not be rendered"));
}

#[tokio::test]
async fn without_a_program_that_fills_in_only_templates_are_not_served() {
    let mut config = GatewayConfig { ..open() };
    config.renderer.path = "/no/such/program".into();
    let bench = Bench::configured(config, |_| good()).await;
    let template = saying(bench.release(0), "t", "{% if true %}{{ question }}{% endif %}");
    bench.gateway.set_world(&[template, bench.release(0)].into_iter().collect());
    let answer = bench.chat(json!({"model": "t"})).await;
    assert_eq!(answer.status(), 503);
    assert!(answer.text().await.unwrap().contains("templates_unavailable"));
    assert_eq!(bench.chat(json!({})).await.status(), 200);
    // Nothing is stuck after that.
    assert_eq!(bench.chat(json!({"model": "t"})).await.status(), 503);
}
