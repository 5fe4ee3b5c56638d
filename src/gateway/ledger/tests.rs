//! What is counted, and for whom.

use super::*;
use crate::{
    audit::record::{Caller, Operation, Origin, RecordOutcome},
    openai::usage::Tokens,
};

fn record(
    team: &str,
    reason: AssignmentReason,
    outcome: RecordOutcome,
    usd: Option<f64>,
) -> Arc<Record> {
    let origin =
        Origin { release: "ns/r".to_owned(), revision: "v1".to_owned(), ..Origin::default() };
    let tokens = Tokens {
        input: Some(100),
        cached_input: Some(40),
        cache_write: None,
        output: Some(10),
        reasoning: Some(4),
    };
    let caller = (!team.is_empty()).then(|| {
        Arc::new(Caller { name: "k".to_owned(), team: team.to_owned(), ..Caller::default() })
    });
    Arc::new(Record {
        request_id: "1".to_owned(),
        serial: None,
        origin: Arc::new(origin),
        role: crate::api::prompt_release::VariantRole::Stable,
        generation: 1,
        reason,
        group: None,
        caller,
        operation: Operation::Chat,
        trace: None,
        at: jiff::Timestamp::UNIX_EPOCH,
        outcome,
        error: None,
        status: Some(200),
        first_token_seconds: None,
        duration_seconds: 1.0,
        seconds_per_output_token: None,
        tokens: if outcome == RecordOutcome::Ok { tokens } else { Tokens::default() },
        cost_usd: usd,
        compared_usd: usd,
        input_kib: None,
        check: None,
        streamed: false,
        served_model: None,
        response_id: None,
        finish_reason: None,
        content: None,
        stable: None,
    })
}

fn told(ledger: &Ledger) -> Vec<(String, String, f64, f64, f64)> {
    let line = |Line { whose, spent }: Line| {
        (whose.team, whose.traffic, spent.priced_requests, spent.unpriced_requests, spent.usd)
    };
    ledger.lines().into_iter().map(line).collect()
}

#[test]
fn teams_and_kinds_of_traffic_are_told_apart() {
    use AssignmentReason::{Cached, Forced, Shadow, Sticky};
    let ledger = Ledger::default();
    for (team, reason, usd) in [
        ("a", Sticky, Some(0.5)),
        ("a", Forced, Some(0.25)),
        ("a", Shadow, Some(1.0)),
        ("a", Cached, Some(0.0)),
        ("b", Sticky, None),
        ("", Sticky, Some(0.125)),
    ] {
        ledger.consume(&record(team, reason, RecordOutcome::Ok, usd));
    }
    let line = |team: &str, traffic: &str, priced, unpriced, usd| {
        (team.to_owned(), traffic.to_owned(), priced, unpriced, usd)
    };
    assert_eq!(
        told(&ledger),
        [
            line("", "users", 1.0, 0.0, 0.125),
            line("a", "shadow", 1.0, 0.0, 1.0),
            line("a", "users", 3.0, 0.0, 0.75),
            line("b", "users", 0.0, 1.0, 0.0),
        ]
    );
    let a = &ledger.lines()[2].spent;
    assert_eq!(
        (a.input_tokens, a.cached_input_tokens, a.output_tokens, a.reasoning_tokens),
        (200.0, 80.0, 20.0, 8.0)
    );
}

#[test]
fn what_may_have_been_charged_without_a_price_is_unpriced_and_a_refusal_is_nothing() {
    use RecordOutcome::{Cancelled, ClientError, Error, Ok};
    let ledger = Ledger::default();
    for outcome in [Ok, Cancelled, Error, ClientError] {
        ledger.consume(&record("a", AssignmentReason::Sticky, outcome, None));
    }
    assert_eq!(told(&ledger), [("a".to_owned(), "users".to_owned(), 0.0, 1.0, 0.0)]);
}

#[test]
fn teams_without_end_are_counted_together() {
    let ledger = Ledger::default();
    for i in 0..TEAMS + 50 {
        let team = format!("team-{i}");
        let record = record(&team, AssignmentReason::Sticky, RecordOutcome::Ok, Some(1.0));
        ledger.consume(&record);
        ledger.consume(&record);
    }
    let lines = ledger.lines();
    assert_eq!(lines.len(), TEAMS + 1);
    let others = lines.iter().find(|line| line.whose.team == OTHERS).unwrap();
    assert_eq!(others.spent.usd, 100.0);
}
