use rand::{SeedableRng, rngs::StdRng};

use super::*;

fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}

fn opened() -> Breaker {
    let mut breaker = Breaker::default();
    (0..10).for_each(|i| breaker.record(true, f64::from(i) / 10.0, &mut rng()));
    breaker
}

#[test]
fn it_opens_when_half_of_the_recent_attempts_failed_and_not_before_ten() {
    let mut breaker = Breaker::default();
    (0..9).for_each(|_| breaker.record(true, 0.0, &mut rng()));
    assert_eq!(breaker.admit(0.0, &mut rng()), Passage::Free);
    breaker.record(true, 0.0, &mut rng());
    assert!(breaker.is_open());
    let mut mixed = Breaker::default();
    (0..1000).for_each(|i| mixed.record(i % 3 == 0, f64::from(i), &mut rng()));
    assert!(!mixed.is_open());
}

#[test]
fn five_good_probes_in_a_row_close_it() {
    let mut breaker = opened();
    (0..4).for_each(|_| breaker.record(false, 1.0, &mut rng()));
    breaker.record(true, 1.0, &mut rng());
    (0..4).for_each(|_| breaker.record(false, 1.0, &mut rng()));
    assert!(breaker.is_open());
    breaker.record(false, 1.0, &mut rng());
    assert!(!breaker.is_open() && breaker.admit(1.0, &mut rng()) == Passage::Free);
}

#[test]
fn an_outage_is_probed_soon_and_then_once_a_second() {
    for rate in [2.0, 20.0, 2000.0] {
        let (mut breaker, mut rng) = (Breaker::default(), rng());
        let mut now = 0.0;
        let mut probes = vec![];
        while now < 100.0 {
            now += 1.0 / rate;
            match breaker.admit(now, &mut rng) {
                Passage::Free => breaker.record(true, now, &mut rng),
                Passage::Probe => {
                    probes.push(now);
                    breaker.record(true, now, &mut rng);
                }
                Passage::Away { .. } => {}
            }
        }
        let late = probes.iter().filter(|at| **at >= 50.0).count();
        assert!((40..70).contains(&late), "{rate}: {late} probes in 50 seconds");
        assert!(probes.windows(2).all(|p| p[1] - p[0] <= 2.0 + 1.0 / rate));
    }
}

/// A backend that is down for a while of each period, and users who may wait for it.
#[derive(Clone, Copy, Debug)]
struct World {
    down: f64,
    period: f64,
    /// Requests that arrive at any time, a second.
    arriving: f64,
    /// Users who ask again when they have their answer.
    waiting: usize,
    /// Seconds that an answer takes, and a failure.
    takes: [f64; 2],
}

/// The share that fails, of all requests and as it is counted through a breaker.
fn shares(world: World, seconds: f64, seed: u64) -> [f64; 2] {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut breaker, mut probes) = (Breaker::default(), Probes::default());
    let (mut fails, mut counted, mut all) = (0_u64, 0_u64, 0_u64);
    let World { down, period, arriving, waiting, takes } = world;
    let phase = rng.random_range(0.0..period);
    let exponential = |rng: &mut StdRng, mean: f64| -mean * (1.0 - rng.random::<f64>()).ln();
    // When each asks next, and what is under way: when it ends, who asks, how it went.
    let mut next: Vec<f64> = (0..=waiting).map(|_| rng.random_range(0.0..1.0)).collect();
    let mut under_way: Vec<(f64, Option<u64>, bool)> = vec![];
    loop {
        let who = (0..next.len()).min_by(|a, b| next[*a].total_cmp(&next[*b])).unwrap();
        let now = next[who];
        under_way.sort_by(|a, b| a.0.total_cmp(&b.0));
        while under_way.first().is_some_and(|(ends, ..)| *ends <= now) {
            let (ends, probe, failed) = under_way.remove(0);
            breaker.record(failed, ends, &mut rng);
            counted += u64::from(failed);
            let waited = probe.map(|probe| probes.end(probe, failed)).unwrap_or_default();
            counted += if failed { waited.values().sum() } else { 0 };
        }
        if now > seconds {
            return [fails, counted].map(|n| n as f64 / all as f64);
        }
        let failed = (now + phase) % period < down;
        let takes = takes[usize::from(failed)] * rng.random_range(0.5..1.5);
        next[who] =
            now + if who == 0 { exponential(&mut rng, 1.0 / arriving.max(1e-9)) } else { takes };
        all += 1;
        fails += u64::from(failed);
        match breaker.admit(now, &mut rng) {
            Passage::Away { as_before } => {
                counted += u64::from(probes.turn_away(as_before, [()]) == Some(true));
            }
            passage => under_way.push((now + takes, probes.let_through(passage), failed)),
        }
    }
}

#[test]
fn what_is_turned_away_counts_as_it_would_have_ended() {
    let open = World { down: 0.0, period: 1.0, arriving: 200.0, waiting: 0, takes: [0.02, 0.005] };
    let waiting = World { arriving: 0.0, waiting: 4, takes: [0.01, 0.1], ..open };
    let slow = World { takes: [0.5, 2.0], waiting: 40, ..waiting };
    let [some, few] = [20.0, 2.0].map(|arriving| World { arriving, ..open });
    let outages =
        [(0.5, 1.0), (0.83, 1.66), (1.6, 8.0), (4.0, 20.0), (1.0, 20.0), (0.3, 10.0), (6.0, 9.0)];
    for world in [open, some, few, waiting, slow] {
        for (down, period) in outages {
            let world = World { down, period, ..world };
            let runs: Vec<[f64; 2]> = (0..20).map(|seed| shares(world, 400.0, seed)).collect();
            let [truth, counted] = [0, 1].map(|i| runs.iter().map(|r| r[i]).sum::<f64>() / 20.0);
            assert!((counted - truth).abs() <= 0.015, "{world:?}: {counted} for {truth}");
            assert!((counted / truth - 1.0).abs() <= 0.2, "{world:?}: {counted} for {truth}");
        }
    }
}

#[test]
fn each_waits_for_the_probe_that_is_nearest() {
    let mut probes = Probes::default();
    assert_eq!(probes.turn_away(true, ["a"]), Some(true), "it has just opened");
    assert_eq!(probes.turn_away(false, ["b"]), None);
    let first = probes.let_through(Passage::Probe).unwrap();
    assert_eq!((probes.turn_away(true, ["c"]), probes.turn_away(false, ["d"])), (None, None));
    let second = probes.let_through(Passage::Probe).unwrap();
    // The later one ends earlier.
    assert_eq!(probes.end(second, true), [("d", 1)].into());
    assert_eq!(probes.turn_away(true, ["e"]), Some(true));
    assert_eq!(probes.end(first, false), [("b", 1), ("c", 1)].into());
    assert_eq!(probes.turn_away(true, ["f"]), Some(true));
    // Nobody learns how the next one ends.
    assert_eq!(probes.turn_away(false, ["g"]), None);
    let third = probes.let_through(Passage::Probe).unwrap();
    probes.give_up(third);
    assert_eq!(probes.turn_away(true, ["h"]), None);
    // It closes by what was sent before: the first request afterwards is the probe.
    let fourth = probes.let_through(Passage::Free).unwrap();
    assert_eq!(probes.let_through(Passage::Free), None);
    assert_eq!(probes.end(fourth, false), [("g", 1), ("h", 1)].into());
    assert_eq!(probes.turn_away(true, ["i"]), Some(true), "it has opened again");
}
