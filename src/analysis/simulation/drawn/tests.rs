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
    World { rate: 20.0, stable, canary, patience: 60.0, leave: 0.0 }
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
