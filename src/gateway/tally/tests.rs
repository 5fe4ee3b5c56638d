use std::time::Duration;

use super::*;
use crate::{
    api::prompt_release::VariantRole,
    audit::record::{AssignmentReason, CheckResult, Operation, Tokens},
    gateway::sinks,
};

fn record(outcome: RecordOutcome, group: Option<u8>) -> Record {
    Record {
        serial: None,
        request_id: String::new(),
        origin: Arc::default(),
        role: VariantRole::Canary,
        generation: 1,
        reason: AssignmentReason::Sticky,
        group,
        caller: None,
        operation: Operation::Chat,
        trace: None,
        at: jiff::Timestamp::UNIX_EPOCH,
        outcome,
        error: None,
        status: None,
        first_token_seconds: None,
        duration_seconds: 0.1,
        seconds_per_output_token: None,
        tokens: Tokens::default(),
        cost_usd: None,
        compared_usd: None,
        input_kib: None,
        check: None,
        streamed: false,
        served_model: None,
        response_id: None,
        finish_reason: None,
        content: None,
        stable: None,
    }
}

fn is_whole(counts: &Counts) -> bool {
    let away = counts.turned_away.waiting;
    counts.assigned == counts.ended() + counts.excluded + away + counts.open()
}

#[test]
fn what_went_wrong_is_counted_by_its_word() {
    let mut counts = Counts::default();
    let mut took = |outcome, error, check| {
        let record = Record { error, check, ..record(outcome, None) };
        sinks::count(&mut counts, &record);
    };
    took(RecordOutcome::Ok, None, Some(CheckResult::Passed));
    took(RecordOutcome::Ok, None, Some(CheckResult::Schema));
    took(RecordOutcome::Ok, None, Some(CheckResult::Schema));
    took(RecordOutcome::Ok, None, Some(CheckResult::Unread));
    took(RecordOutcome::ClientError, Some("context_length"), None);
    took(RecordOutcome::Error, Some("upstream_timeout"), None);
    let words = |words: &[(&str, u64)]| words.iter().map(|(w, n)| ((*w).to_owned(), *n)).collect();
    assert_eq!(counts.flaws, words(&[("schema", 2), ("unread", 1)]));
    assert_eq!(counts.refusals, words(&[("context_length", 1)]));
    assert_eq!(counts.failures, words(&[("upstream_timeout", 1)]));
    assert_eq!((counts.checked, counts.check_failures, counts.unjudged), (3, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn what_an_application_gives_up_is_counted_by_how_long_it_waited() {
    let tally = Arc::new(Tally::default());
    let (silent, speaking) = (tally.draw(Passage::Free, None), tally.draw(Passage::Free, None));
    speaking.speaks();
    tokio::time::advance(Duration::from_secs(5)).await;
    let open = tally.read(1);
    assert_eq!((open.open(), open.open.ttft.values().sum::<u64>()), (2, 1));
    assert_eq!(open.open.duration.keys().copied().collect::<Vec<_>>(), [buckets::index(5.0)]);
    drop((silent, speaking));
    let left = tally.read(2);
    assert_eq!((left.unfinished, left.open()), (2, 0));
    assert_eq!(left.waited.duration, [(buckets::index(5.0), 2)].into());
    assert_eq!(left.waited.ttft, [(buckets::index(5.0), 1)].into());
}

#[test]
fn what_a_breaker_keeps_away_counts_as_the_next_probe_ends() {
    let tally = Arc::new(Tally::default());
    (0..30).for_each(|_| tally.turn_away(false, Some(3), None));
    tally.turn_away(false, None, None);
    assert_eq!((tally.read(1).requests, tally.read(1).turned_away.waiting), (0, 31));
    let probe = tally.draw(Passage::Probe, None);
    probe.end(&record(RecordOutcome::Error, Some(4)));
    (0..10).for_each(|_| tally.turn_away(false, Some(3), None));
    // A probe that is given up tells nothing.
    drop(tally.draw(Passage::Probe, None));
    assert_eq!(tally.read(1).turned_away.waiting, 10);
    tally.draw(Passage::Probe, None).end(&record(RecordOutcome::Ok, Some(4)));
    let counts = tally.read(1);
    assert_eq!((counts.requests, counts.errors, counts.turned_away.waiting), (43, 32, 0));
    assert_eq!((counts.groups.requests[3], counts.groups.errors[3]), (40, 30));
    let away = counts.turned_away;
    assert_eq!((away.requests, away.errors, away.probes, away.probe_errors), (41, 31, 2, 1));
}

#[test]
fn what_is_nearer_to_the_probe_before_counts_as_that_one_ended() {
    let tally = Arc::new(Tally::default());
    let counted = |as_before: bool| {
        let before = tally.read(1);
        tally.turn_away(as_before, Some(3), None);
        let after = tally.read(1);
        assert!(is_whole(&after));
        (after.requests - before.requests, after.errors - before.errors)
    };
    assert_eq!(counted(true), (1, 1), "it has just opened");
    let probe = tally.draw(Passage::Probe, None);
    assert_eq!(counted(true), (0, 0), "nobody knows yet how the probe ends");
    probe.end(&record(RecordOutcome::Ok, None));
    assert_eq!((tally.read(1).requests, tally.read(1).errors), (3, 1));
    assert_eq!((counted(true), counted(false)), ((1, 0), (0, 0)));
    tally.draw(Passage::Probe, None).end(&record(RecordOutcome::Error, None));
    assert_eq!(counted(true), (1, 1));
    assert_eq!(tally.read(1).groups.errors[3], 3);
    // It has closed, and opens again.
    tally.draw(Passage::Probe, None).end(&record(RecordOutcome::Ok, None));
    tally.draw(Passage::Free, None).end(&record(RecordOutcome::Error, None));
    assert_eq!(counted(true), (1, 1));
}

#[test]
fn a_breaker_that_closes_without_a_probe_leaves_nobody_uncounted() {
    let tally = Arc::new(Tally::default());
    let before = tally.draw(Passage::Free, None);
    tally.turn_away(false, None, None);
    before.end(&record(RecordOutcome::Ok, None));
    assert_eq!(tally.read(1).turned_away.waiting, 1, "it was sent before");
    tally.draw(Passage::Free, None).end(&record(RecordOutcome::Ok, None));
    assert_eq!((tally.read(1).turned_away.waiting, tally.read(1).requests), (0, 3));
}

proptest::proptest! {
    #[test]
    fn every_drawn_request_is_in_one_place(
        events in proptest::collection::vec((0..8_u8, 0..6_usize), 1..200),
    ) {
        let tally = Arc::new(Tally::default());
        let mut under_way = vec![];
        for (what, which) in events {
            let passage = if which == 0 { Passage::Probe } else { Passage::Free };
            let ended = |under_way: &mut Vec<Drawn>| {
                (!under_way.is_empty()).then(|| under_way.swap_remove(which % under_way.len()))
            };
            match what {
                0..3 => under_way.push(tally.draw(passage, None)),
                3 => tally.turn_away(which % 2 == 0, (which > 2).then_some(which as u8), None),
                4 => drop(ended(&mut under_way)),
                5 => if let Some(drawn) = ended(&mut under_way) { drawn.exclude() },
                _ => if let Some(drawn) = ended(&mut under_way) {
                    let outcome = [
                        RecordOutcome::Ok,
                        RecordOutcome::Error,
                        RecordOutcome::ClientError,
                        RecordOutcome::Cancelled,
                    ][which % 4];
                    drawn.end(&record(outcome, Some(which as u8)));
                },
            }
            let counts = tally.read(1);
            proptest::prop_assert!(is_whole(&counts), "{:?}", counts);
            proptest::prop_assert_eq!(counts.open(), under_way.len() as u64);
        }
    }
}

fn caller(party: &str) -> Arc<Caller> {
    Arc::new(Caller { party: party.into(), ..Caller::default() })
}

#[tokio::test(start_paused = true)]
async fn what_is_open_and_what_was_turned_away_is_a_callers_too() {
    let tally = Arc::new(Tally::default());
    let (web, batch) = (caller("web"), caller("batch"));
    let held: Vec<Drawn> = (0..3).map(|_| tally.draw(Passage::Free, Some(&batch))).collect();
    held[0].speaks();
    tokio::time::advance(Duration::from_secs(60)).await;
    // It has ended nothing, and is known by what it holds.
    assert_eq!(tally.by_caller(), [("batch".to_owned(), 3)].into());
    (0..4).for_each(|_| tally.turn_away(false, None, Some(&web)));
    tally.turn_away(false, None, Some(&batch));
    let probe = Record { caller: Some(web.clone()), ..record(RecordOutcome::Error, None) };
    tally.draw(Passage::Probe, Some(&web)).end(&probe);
    tally.turn_away(false, None, Some(&web));
    let callers = tally.of_callers(&["web".into(), "batch".into()]);
    let minute = coarse(buckets::index(60.0));
    assert_eq!(callers["batch"].open.duration, [(minute, 3)].into());
    assert_eq!(callers["batch"].open.ttft, [(minute, 2)].into());
    assert_eq!((callers["batch"].requests, callers["batch"].errors), (1, 1));
    assert_eq!((callers["web"].requests, callers["web"].errors), (5, 5));
    let away = callers["web"].turned_away;
    assert_eq!((away.requests, away.waiting, away.probes, away.probe_errors), (4, 1, 1, 1));
    assert_eq!(callers["batch"].turned_away.probes, 0);
    assert_eq!(tally.by_caller(), [("batch".to_owned(), 4), ("web".to_owned(), 6)].into());
    let all = tally.read(1);
    assert_eq!((all.requests, all.errors), (6, 6));
}
