use super::*;
use crate::{
    audit::record::Caller,
    telemetry::fixtures::{origin, record},
};

fn of(origin: &Arc<Origin>) -> Record {
    Record { origin: origin.clone(), ..record() }
}

fn line<'a>(text: &'a str, start: &str) -> &'a str {
    text.lines()
        .find(|line| line.starts_with(start))
        .unwrap_or_else(|| panic!("no {start} in\n{text}"))
}

#[test]
fn metrics_have_the_conventions_names_and_buckets_and_an_exemplar() {
    let exported = Exported::default();
    exported.consume(&Arc::new(record()));
    let text = exported.text();
    let asked = r#"gen_ai_operation_name="chat",gen_ai_provider_name="openai",gen_ai_request_model="gpt-4o-mini",release="ns/support",revision="rev1",traffic="users""#;
    for (name, buckets, more) in [
        ("gen_ai_client_operation_duration_seconds", &DURATION[..], r#",error_type="""#),
        ("gen_ai_server_time_to_first_token_seconds", &FIRST_TOKEN[..], ""),
        ("gen_ai_server_time_per_output_token_seconds", &PER_TOKEN[..], ""),
        ("gen_ai_client_token_usage", &TOKENS[..], r#",gen_ai_token_type="output""#),
    ] {
        let found = line(&text, &format!("{name}_count{{{asked}{more}}}"));
        assert!(found.ends_with(" 1"), "{found}");
        let prefix = format!("{name}_bucket{{le=\"");
        let labels = format!("{asked}{more}}}");
        let lines: Vec<&str> =
            text.lines().filter(|l| l.starts_with(&prefix) && l.contains(&labels)).collect();
        let bounds: Vec<f64> = lines
            .iter()
            .filter_map(|l| l.strip_prefix(&prefix)?.split('"').next()?.parse().ok())
            .filter(|bound: &f64| bound.is_finite())
            .collect();
        assert_eq!(bounds, buckets, "{name}");
        let exemplar =
            r#"# {trace_id="01010101010101010101010101010101",span_id="0202020202020202"}"#;
        assert!(lines.iter().any(|l| l.contains(exemplar)), "{name}: {lines:?}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn money_and_tokens_are_counted_by_team_and_whose_traffic_it_is() {
    let exported = Exported::default();
    let origin = Arc::new(origin("rev1"));
    exported.consume(&Arc::new(of(&origin)));
    exported.consume(&Arc::new(of(&origin)));
    let copy = Record { reason: AssignmentReason::Shadow, caller: None, ..of(&origin) };
    exported.consume(&Arc::new(copy));
    exported.consume(&Arc::new(Record { cost_usd: None, ..of(&origin) }));
    let text = exported.text();
    for (start, end) in [
        (
            r#"serinus_gateway_cost_usd_total{release="ns/support",revision="rev1",traffic="users",team="web"}"#,
            " 0.0084",
        ),
        (
            r#"serinus_gateway_cost_usd_total{release="ns/support",revision="rev1",traffic="shadow",team=""}"#,
            " 0.0042",
        ),
        (
            r#"serinus_gateway_unpriced_requests_total{release="ns/support",revision="rev1",traffic="users",team="web"}"#,
            " 1",
        ),
        (
            r#"serinus_gateway_tokens_total{release="ns/support",revision="rev1",traffic="users",team="web",kind="input"}"#,
            " 300",
        ),
        (
            r#"serinus_gateway_tokens_total{release="ns/support",revision="rev1",traffic="users",team="web",kind="reasoning"}"#,
            " 33",
        ),
        (
            r#"serinus_gateway_requests_total{release="ns/support",revision="rev1",role="canary",reason="sticky",outcome="ok"}"#,
            " 3",
        ),
        (
            r#"serinus_gateway_dropped_copies_total{release="ns/support",revision="rev1",why="not_paired"}"#,
            " 1",
        ),
    ] {
        assert!(line(&text, start).ends_with(end), "{}", line(&text, start));
    }
}

#[test]
fn what_nobody_knows_the_price_of_is_not_free() {
    let (exported, origin) = (Exported::default(), Arc::new(origin("rev1")));
    let unpriced = Record { cost_usd: None, ..of(&origin) };
    exported.consume(&Arc::new(unpriced));
    let text = exported.text();
    assert!(text.contains("serinus_gateway_unpriced_requests_total{"), "{text}");
    assert!(!text.contains("serinus_gateway_cost_usd_total{"), "{text}");
}

#[test]
fn a_failure_counts_under_its_word_and_has_no_time_to_the_first_token() {
    let exported = Exported::default();
    let failed = Record {
        outcome: RecordOutcome::Error,
        error: Some("upstream_timeout"),
        tokens: Default::default(),
        cost_usd: None,
        ..record()
    };
    exported.consume(&Arc::new(failed));
    let text = exported.text();
    assert!(text.contains(r#"error_type="upstream_timeout"} 1"#));
    assert!(!text.contains("gen_ai_server_time_to_first_token_seconds_count"));
    assert!(!text.contains("unpriced_requests_total{"), "nothing was answered");
}

#[test]
fn another_routing_of_the_same_variant_goes_on_counting() {
    let exported = Exported::default();
    exported.consume(&Arc::new(of(&Arc::new(origin("rev1")))));
    exported.consume(&Arc::new(of(&Arc::new(origin("rev1")))));
    let text = exported.text();
    let counted: Vec<&str> =
        text.lines().filter(|l| l.starts_with("serinus_gateway_requests_total")).collect();
    assert!(matches!(counted[..], [one] if one.ends_with(" 2")), "{counted:?}");
}

#[test]
fn the_series_of_a_variant_that_left_go_after_their_last_values_were_seen() {
    let exported = Exported::default();
    let (stays, leaves) = (Arc::new(origin("stays")), Arc::new(origin("leaves")));
    for origin in [&stays, &leaves] {
        exported.consume(&Arc::new(of(origin)));
        exported.copy_dropped(origin, "breaker");
    }
    drop(leaves);
    let now = Instant::now();
    exported.retire(now);
    exported.retire(now + FAREWELL - Duration::from_secs(1));
    assert!(exported.text().contains(r#"revision="leaves""#), "not yet");
    exported.retire(now + FAREWELL);
    let text = exported.text();
    assert!(!text.contains(r#"revision="leaves""#), "{text}");
    assert!(text.contains(r#"revision="stays""#));
    let back = Arc::new(origin("leaves"));
    exported.consume(&Arc::new(of(&back)));
    assert!(exported.text().contains(r#"revision="leaves""#), "it may come back, from zero");
}

#[test]
fn ten_thousand_routings_leave_nothing_behind() {
    let exported = Exported::default();
    for generation in 0..10_000 {
        let origin = Arc::new(origin(&format!("rev{generation}")));
        exported.consume(&Arc::new(of(&origin)));
    }
    let now = Instant::now();
    exported.retire(now);
    assert!(exported.found.read().unwrap().is_empty());
    exported.retire(now + FAREWELL);
    assert!(exported.variants.lock().unwrap().is_empty());
    assert!(!exported.text().contains("ns/support"));
}

#[test]
fn names_of_teams_can_not_grow_without_bound() {
    let exported = Exported::default();
    let origin = Arc::new(origin("rev1"));
    for team in 0..TEAMS + 50 {
        let caller = Caller { team: format!("team-{team}"), ..Caller::default() };
        let record = Record { caller: Some(Arc::new(caller)), ..of(&origin) };
        exported.consume(&Arc::new(record));
    }
    let text = exported.text();
    let teams = text.lines().filter(|l| l.starts_with("serinus_gateway_cost_usd_total")).count();
    assert_eq!(teams, TEAMS + 1);
    let other = line(
        &text,
        r#"serinus_gateway_cost_usd_total{release="ns/support",revision="rev1",traffic="users",team="other"}"#,
    );
    let usd: f64 = other.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((usd - 50.0 * 0.0042).abs() < 1e-9, "{other}");
}
