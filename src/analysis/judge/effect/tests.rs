//! By how much less users tell over several steps.

use super::*;

fn counts(requests: Vec<u64>, failed: Vec<u64>) -> Counts {
    let (n, errors) = (requests.iter().sum(), failed.iter().sum());
    let mut counts = Counts { requests: n, errors, ..Counts::default() };
    (counts.groups.requests, counts.groups.errors) = (requests, failed);
    counts
}

fn groups(of: impl Fn(usize) -> u64) -> Vec<u64> {
    (0..32).map(of).collect()
}

/// The canary's effect over these steps, of each stable's counts and the canary's.
fn of_steps(steps: &[&[Counts; 2]]) -> f64 {
    let whole = [Counts::default(), Counts::default()];
    let each = steps.iter().map(|[stable, canary]| [stable, canary]).collect();
    of_errors(&Strata { each, whole: whole.each_ref() }).canary.factor
}

#[test]
fn over_steps_it_is_that_of_the_difference() {
    // At 5 %: a few busy users of the canary, of whom half always fail.
    let busy = [
        counts(groups(|i| 218 + (i as u64 % 2)), groups(|_| 95)),
        counts(
            groups(|i| if i % 4 == 0 { 40 } else { 2 }),
            groups(|i| if i % 8 == 0 { 40 } else { 0 }),
        ),
    ];
    // At 80 %: many who are not alike.
    let many = [
        counts(groups(|_| 25), groups(|i| 2 + (i as u64 % 2))),
        counts(groups(|_| 100), groups(|_| 10)),
    ];
    let together = [0, 1].map(|side| {
        let sum = |of: fn(&Counts) -> &Vec<u64>| sum(of(&busy[side]), of(&many[side]));
        counts(sum(|c| &c.groups.requests), sum(|c| &c.groups.errors))
    });
    assert_eq!(of_steps(&[&many]), 1.0);
    let [alone, pooled, summed] =
        [vec![&busy], vec![&busy, &many], vec![&together]].map(|steps| of_steps(&steps));
    // The first step has a tenth of the requests, and more than its part of the difference.
    assert!((5.5..7.0).contains(&pooled), "{pooled}");
    assert!(alone > 2.0 * pooled && pooled > 2.0 * summed, "{alone} {pooled} {summed}");
    // An empty step changes nothing.
    let empty = [Counts::default(), Counts::default()];
    assert!((of_steps(&[&busy, &many, &empty]) - pooled).abs() < 1e-9);
}
