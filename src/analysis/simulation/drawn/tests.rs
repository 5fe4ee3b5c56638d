use rand::{SeedableRng, rngs::StdRng};

use super::*;

const POLICY: &str = "
steps: [{weight: 20, samples: 300}, {weight: 50, samples: 600}]
analysis:
  interval: 2s
  metrics:
    - {name: errors, errorRate: {}, margin: {harm: 0.02, accept: 0.05}}
    - {name: duration, duration: {quantile: 0.9}, margin: {harm: 0.05, accept: 0.12}}
bake: {duration: 60s}
";

/// How many of `runs` canaries were rolled back, and promoted.
fn lives(policy: &str, world: World, runs: u64) -> (u64, u64) {
    let policy: CanaryPolicySpec = serde_yaml_ng::from_str(policy).unwrap();
    let mut known = Boundaries::default();
    let (mut back, mut promoted) = (0, 0);
    for seed in 0..runs {
        let mut rng = StdRng::seed_from_u64(seed);
        match Drawn::live(&policy, world, &mut rng, &mut known).outcome.end {
            End::RolledBack => back += 1,
            End::Promoted => promoted += 1,
            End::Inconclusive => {}
        }
    }
    (back, promoted)
}

fn world(canary: Behaviour) -> World {
    let stable = Behaviour::default();
    World { rate: 20.0, stable, canary, patience: 60.0, leave: 0.0, caller: None }
}

/// Five standard errors above 5 % of so many runs.
fn five_percent(runs: u64) -> u64 {
    let runs = runs as f64;
    (0.05 * runs + 5.0 * (0.05_f64 * 0.95 * runs).sqrt()) as u64
}

#[test]
fn an_equal_canary_is_not_blamed_for_users_who_leave() {
    let alike = World { leave: 0.2, ..world(Behaviour::default()) };
    let (back, promoted) = lives(POLICY, alike, 100);
    assert!(back <= five_percent(100) && promoted >= 80, "{back} back, {promoted} promoted");
    let hangs = Behaviour { hangs: (0.1, 40.0), ..Behaviour::default() };
    let both = World { patience: 5.0, stable: hangs, ..world(hangs) };
    let (back, _) = lives(POLICY, both, 100);
    assert!(back <= five_percent(100), "{back} back");
}

#[test]
fn a_canary_that_hangs_until_users_leave_is_rolled_back() {
    let hangs = Behaviour { hangs: (0.3, 40.0), ..Behaviour::default() };
    let (back, promoted) = lives(POLICY, World { patience: 5.0, ..world(hangs) }, 60);
    assert!(promoted == 0 && back >= 57, "{back} back, {promoted} promoted");
    // Also where nobody measures latencies.
    let errors = POLICY.replace("    - {name: duration", "    # - {name: duration");
    let (back, promoted) = lives(&errors, World { patience: 5.0, ..world(hangs) }, 60);
    assert!(promoted == 0 && back >= 57, "{back} back, {promoted} promoted");
}

#[test]
fn answers_that_take_longer_than_a_step_are_not_missing_from_it() {
    let slow = Behaviour { hangs: (0.3, 15.0), ..Behaviour::default() };
    let (back, promoted) = lives(POLICY, World { rate: 100.0, ..world(slow) }, 60);
    assert!(promoted == 0 && back >= 57, "{back} back, {promoted} promoted");
}

#[test]
fn a_canary_that_is_better_than_a_hanging_stable_is_not_blamed() {
    let stable = Behaviour { hangs: (0.3, 40.0), ..Behaviour::default() };
    let canary = Behaviour { hangs: (0.3, 4.0), ..Behaviour::default() };
    let (back, _) = lives(POLICY, World { patience: 5.0, stable, ..world(canary) }, 100);
    assert!(back <= five_percent(100), "{back} back");
}

#[test]
fn a_breaker_hides_no_outage_and_makes_none() {
    let down = Behaviour { outage: (12.0, 30.0), ..Behaviour::default() };
    let (_, promoted) = lives(POLICY, world(down), 60);
    assert!(promoted == 0, "{promoted} promoted");
    // The same outage on both sides, while only the canary has a breaker.
    let (back, _) = lives(POLICY, World { stable: down, ..world(down) }, 100);
    assert!(back <= five_percent(100), "{back} back");
}

#[test]
fn what_only_the_canary_refuses_or_nobody_reads_is_found() {
    for canary in [
        Behaviour { refused: 0.3, ..Behaviour::default() },
        Behaviour { unread: 0.3, ..Behaviour::default() },
    ] {
        let (back, promoted) = lives(POLICY, world(canary), 60);
        assert!(promoted == 0 && back >= 57, "{back} back, {promoted} promoted");
        let (back, _) = lives(POLICY, World { stable: canary, ..world(canary) }, 60);
        assert!(back <= five_percent(60), "{back} back");
    }
}

/// One caller, of whose requests three fifths are on the canary.
fn one(share: f64, sides: [Behaviour; 2]) -> Option<OneCaller> {
    Some(OneCaller { share, chosen: Some(0.6), sides })
}

#[test]
fn what_one_caller_does_to_a_good_canary_rolls_nobody_back() {
    let good = Behaviour::default();
    for (share, own) in [
        (0.2, Behaviour { errors: 1.0, ..good }),
        // Behind a breaker that its own failures open, others are turned away.
        (0.6, Behaviour { errors: 1.0, ..good }),
        (0.3, Behaviour { refused: 1.0, ..good }),
        (0.3, Behaviour { unread: 1.0, ..good }),
        // Open for as long as a step lasts, and given up in the end.
        (0.3, Behaviour { hangs: (1.0, 300.0), ..good }),
        (0.3, Behaviour { median: 20.0, ..good }),
    ] {
        let world = World { caller: one(share, [good, own]), ..world(good) };
        let (back, _) = lives(POLICY, world, 60);
        assert!(back <= five_percent(60), "{share}, {own:?}: {back} back");
    }
}

#[test]
fn a_caller_can_not_promote_what_is_bad_for_others_nor_save_it() {
    let (good, bad) = (Behaviour::default(), Behaviour { errors: 0.3, ..Behaviour::default() });
    let lies = one(0.4, [Behaviour { errors: 1.0, ..good }, good]);
    let (_, promoted) = lives(POLICY, World { caller: lies, ..world(bad) }, 60);
    assert!(promoted <= five_percent(60), "{promoted} promoted");
    // Bad for everybody, of whom one sends half of the requests.
    let large = Some(OneCaller { share: 0.5, chosen: None, sides: [good, bad] });
    let (back, promoted) = lives(POLICY, World { caller: large, ..world(bad) }, 60);
    assert!(promoted == 0 && back >= 57, "{back} back, {promoted} promoted");
}

#[test]
fn an_equal_canary_of_several_callers_is_promoted() {
    let good = Behaviour::default();
    let large = Some(OneCaller { share: 0.5, chosen: None, sides: [good, good] });
    let (back, promoted) = lives(POLICY, World { caller: large, ..world(good) }, 100);
    assert!(back <= five_percent(100) && promoted >= 80, "{back} back, {promoted} promoted");
    // Down on both sides for a while, with its breaker: nobody's fault.
    let down = Behaviour { outage: (12.0, 30.0), ..good };
    let large = Some(OneCaller { share: 0.5, chosen: None, sides: [down, down] });
    let alike = World { stable: down, caller: large, ..world(down) };
    assert!(lives(POLICY, alike, 100).0 <= five_percent(100));
    // On the canary alone: its breaker hides it from no caller.
    let large = Some(OneCaller { share: 0.5, chosen: None, sides: [good, down] });
    let (back, promoted) = lives(POLICY, World { caller: large, ..world(down) }, 60);
    assert!(promoted == 0 && back >= 50, "{back} back, {promoted} promoted");
}

#[test]
fn what_few_requests_meet_is_not_passed_over() {
    let errors = POLICY.replace("    - {name: duration", "    # - {name: duration");
    for canary in [
        Behaviour { refused: 0.15, ..Behaviour::default() },
        Behaviour { refused: 0.1, ..Behaviour::default() },
        Behaviour { unread: 0.1, ..Behaviour::default() },
        Behaviour { hangs: (0.1, 40.0), ..Behaviour::default() },
    ] {
        let alone = World { patience: 5.0, ..world(canary) };
        let (back, promoted) = lives(&errors, alone, 60);
        assert!(promoted <= 1 && back >= 55, "{canary:?}: {back} back, {promoted} promoted");
        let (back, promoted) = lives(&errors, World { stable: canary, ..alone }, 60);
        assert!(back <= five_percent(60) && promoted >= 45, "{back} back, {promoted} promoted");
    }
}
