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
    of_errors(&Strata { each, whole: whole.each_ref(), accept: 0.05 }).canary.own.factor
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

#[test]
fn the_first_requests_of_a_canary_count_as_uneven_as_stables() {
    let effect = |stable: Counts, canary: Counts| {
        let whole = [Counts::default(), Counts::default()];
        let each = vec![[&stable, &canary]];
        of_errors(&Strata { each, whole: whole.each_ref(), accept: 0.05 }).canary
    };
    // Every eighth group has a busy user. No request fails, so failures do not show how alike the
    // requests of a user are.
    let uneven = || counts(groups(|i| if i % 8 == 0 { 200 } else { 20 }), groups(|_| 0));
    let even = || counts(groups(|i| 40 + i as u64 % 5), groups(|_| 0));
    // As many as two thirds of all groups have one request, which looks even.
    let few = || counts(groups(|i| u64::from(i % 3 != 0)), groups(|i| u64::from(i == 1)));
    let known = effect(uneven(), few());
    assert!(known.own.factor > 20.0 && known.own.freedom.is_finite(), "{known:?}");
    assert_eq!(effect(even(), few()), Effect::NONE);
    // What is very uneven shows by itself.
    let busy =
        counts(groups(|i| if i == 3 { 20 } else { 0 }), groups(|i| if i == 3 { 9 } else { 0 }));
    assert!(effect(even(), busy).own.factor > 10.0);
    // From two requests a group on a side says itself how uneven it is.
    let many = counts(groups(|i| 2 + i as u64 % 2), groups(|i| u64::from(i == 1)));
    assert_eq!(effect(uneven(), many), Effect::NONE);
    // Without sticky keys nothing is known of users.
    let keyless = Counts { requests: 30, errors: 1, ..Counts::default() };
    assert_eq!(effect(uneven(), keyless), Effect::NONE);
}

#[test]
fn for_acceptance_a_side_with_failures_in_few_groups_is_as_alike_as_the_other_one() {
    let effects = |stable: &Counts, canary: &Counts| {
        let whole = [Counts::default(), Counts::default()];
        let each = vec![[stable, canary]];
        of_errors(&Strata { each, whole: whole.each_ref(), accept: 0.05 })
    };
    let uneven = |i: usize| if i.is_multiple_of(4) { 40 } else { 4 };
    // Whole users fail, or one request of each.
    let alike = counts(groups(uneven), groups(|i| if i % 3 == 0 { uneven(i) } else { 0 }));
    let apart = |failing: usize| {
        counts(groups(uneven), groups(|i| u64::from(i % (32 / failing) == 0 && i < 30)))
    };
    let Effects { canary, stable } = effects(&alike, &apart(8));
    assert!(canary.own.factor < 2.0 && stable.own.factor > 10.0, "{canary:?} {stable:?}");
    assert_eq!(canary.careful, stable.own, "of the same numbers of requests");
    assert_eq!(stable.careful, stable.own);
    // Failures in many groups tell enough.
    let Effects { canary, stable } = effects(&alike, &apart(16));
    assert!(canary.careful.factor < 0.7 * stable.own.factor, "{canary:?} {stable:?}");
    // It is never more than if all requests of a user were alike.
    let even = counts(groups(|i| 12 + i as u64 % 2), groups(|i| u64::from(i % 3 == 0)));
    let Effects { canary, .. } = effects(&alike, &even);
    assert_eq!(canary, Effect::NONE);
}

#[test]
fn for_acceptance_busy_users_without_failures_show_at_the_margin() {
    let effects = |canary: &Counts| {
        let stable = counts(groups(|i| 60 + i as u64 % 30), groups(|i| 3 + i as u64 % 2));
        let whole = [Counts::default(), Counts::default()];
        let each = vec![[&stable, canary]];
        of_errors(&Strata { each, whole: whole.each_ref(), accept: 0.05 })
    };
    // Four groups send half of all requests, and none of these fails; of the others every second
    // one does once.
    let busy = |requests: u64| {
        let of = |i: usize| if i.is_multiple_of(8) { requests } else { 13 };
        counts(groups(of), groups(|i| i as u64 % 2))
    };
    let Effects { canary, stable } = effects(&busy(120));
    let Effect { own, careful } = canary;
    assert!(own.factor < 3.0 && careful.factor > 1.3 * own.factor, "{canary:?}");
    assert_eq!(stable, Effect::NONE);
    assert_eq!(effects(&busy(13)).canary, Effect::NONE);
}

#[test]
fn for_acceptance_stables_failures_tell_when_they_are_many_more() {
    let uneven = |i: usize| 10 + 30 * (i as u64 % 2);
    let stable = |times: u64| {
        counts(groups(|i| times * uneven(i)), groups(|i| if i % 4 == 1 { 3 * times } else { 0 }))
    };
    let canary = counts(groups(uneven), groups(|i| [1, 4, 0, 1][i % 4]));
    let effect = |times: u64| {
        let (stable, whole) = (stable(times), [Counts::default(), Counts::default()]);
        let each = vec![[&stable, &canary]];
        of_errors(&Strata { each, whole: whole.each_ref(), accept: 0.05 }).canary
    };
    let [many, few] = [20, 1].map(effect);
    assert!(many.own.factor < 1.2 && many.careful.factor > 1.4 * many.own.factor, "{many:?}");
    assert!(few.careful.factor < 1.2, "{few:?}");
}
