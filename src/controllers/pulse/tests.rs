//! Virtual time, and what happens to a leader in it.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn named(name: &str) -> Named {
    Named::new("shop", name)
}

fn refused() -> ControllerError {
    let status = kube::core::Status::failure("no right to it", "Forbidden").with_code(403);
    ControllerError::api("the status", kube::Error::Api(Box::new(status)))
}

fn fenced() -> ControllerError {
    ControllerError::Fenced { what: "the status".to_owned() }
}

/// A leader that has written in its term.
fn proven(term: i64) -> Pulse {
    let pulse = Pulse::default();
    pulse.done(term, &named("first"), Done::Wrote);
    pulse
}

/// For `seconds`, each second: what happens.
async fn each_second(seconds: u64, mut happens: impl FnMut()) {
    for _ in 0..seconds {
        tokio::time::advance(SECOND).await;
        happens();
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_without_a_look_has_no_pulse() {
    let pulse = proven(3);
    tokio::time::advance(Pulse::LOST - SECOND).await;
    assert!(pulse.works(3) && pulse.sign(3, &[]).leads);
    pulse.done(3, &named("a"), Done::Nothing);
    tokio::time::advance(2 * SECOND).await;
    assert!(pulse.works(3), "it has looked since");
    tokio::time::advance(Pulse::LOST).await;
    assert!(!pulse.works(3) && !pulse.sign(3, &[]).leads);
    assert!(pulse.works(4), "another term begins anew");
    pulse.done(3, &named("a"), Done::Wrote);
    assert!(!pulse.sign(4, &[]).leads, "what ends late is of the term before");
}

#[tokio::test(start_paused = true)]
async fn a_release_that_some_gateway_goes_on_serving_after_its_rollback_has_no_judge_for_it() {
    let pulse = proven(3);
    let told = |pulse: &Pulse| pulse.sign(3, &[]).unjudged.has("shop/bad");
    pulse.follows(3, &named("bad"), false);
    tokio::time::advance(Pulse::UNJUDGED - SECOND).await;
    pulse.follows(3, &named("bad"), false);
    assert!(!told(&pulse), "gateways take a moment");
    tokio::time::advance(SECOND).await;
    assert!(told(&pulse) && pulse.sign(3, &[]).leads);
    pulse.follows(3, &named("bad"), true);
    assert!(!told(&pulse));
    pulse.follows(3, &named("bad"), false);
    tokio::time::advance(Pulse::UNJUDGED).await;
    pulse.keep(3, |_| false);
    assert!(!told(&pulse), "it does not exist any more");
}

#[tokio::test(start_paused = true)]
async fn an_earlier_term_that_leads_has_a_pulse_of_its_own() {
    let pulse = proven(9);
    pulse.leads(3);
    assert!(!pulse.sign(3, &[]).leads, "it has to show that it can write");
    assert!(!pulse.wants_dry_run(3) && pulse.works(3));
    tokio::time::advance(Pulse::EVERY).await;
    pulse.leads(3);
    assert!(pulse.wants_dry_run(3));
    pulse.tried(3, Ok(()));
    assert!(pulse.sign(3, &[]).leads);
    tokio::time::advance(Pulse::LOST).await;
    assert!(!pulse.works(3), "its silence counts");
}

#[tokio::test(start_paused = true)]
async fn a_leader_of_which_every_attempt_fails_has_no_pulse_and_says_why() {
    for error in [refused, fenced] {
        let pulse = proven(1);
        each_second(44, || pulse.failed(1, &named("canary"), &error())).await;
        assert!(pulse.works(1) && pulse.sign(1, &[]).leads, "this could still pass");
        // What other releases have nothing to write for, or not yet, shows nothing.
        each_second(1, || {
            pulse.failed(1, &named("canary"), &error());
            pulse.done(1, &named("at rest"), Done::Nothing);
            pulse.done(1, &named("waits"), Done::Later);
            pulse.done(1, &named("canary"), Done::Later);
        })
        .await;
        assert!(!pulse.works(1) && !pulse.sign(1, &[]).leads);
        assert!(pulse.sign(1, &[]).unjudged.is_empty(), "it is not about one release");
        let failures = pulse.failures(1);
        let [(release, failure)] = failures.as_slice() else { panic!("{failures:?}") };
        assert_eq!(
            (release.key(), failure.why.clone()),
            ("shop/canary".into(), error().to_string())
        );
        assert_eq!(failure.since.elapsed(), 44 * SECOND);
        assert!(pulse.why(1).contains("shop/canary"));
        tokio::time::advance(Pulse::ENDS - Pulse::LOST).await;
        assert!(pulse.silence(1) >= Pulse::ENDS);
        pulse.done(1, &named("canary"), Done::Wrote);
        assert!(pulse.works(1) && pulse.sign(1, &[]).leads && pulse.failures(1).is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_at_rest_keeps_its_pulse() {
    let pulse = proven(1);
    each_second(600, || {
        assert!(!pulse.wants_dry_run(1), "nothing fails: nothing is tried");
        pulse.done(1, &named("a"), Done::Nothing);
        assert!(pulse.works(1) && pulse.sign(1, &[]).leads);
    })
    .await;
    // Nor does a conflict that is over with the next attempt cost anything.
    pulse.failed(1, &named("a"), &ControllerError::Conflict { what: "a".to_owned() });
    pulse.done(1, &named("a"), Done::Nothing);
    assert_eq!(pulse.sign(1, &[]), Sign { leads: true, ..Sign::default() });
}

#[tokio::test(start_paused = true)]
async fn one_release_that_always_fails_takes_leadership_from_nobody_and_has_no_judge() {
    let pulse = proven(1);
    tokio::time::advance(600 * SECOND).await;
    pulse.done(1, &named("at rest"), Done::Nothing);
    let mut dry_runs = 0;
    let mut second = 0;
    each_second(300, || {
        second += 1;
        pulse.failed(1, &named("poisoned"), &fenced());
        pulse.done(1, &named("at rest"), Done::Nothing);
        if second % Pulse::EVERY.as_secs() == 0 && pulse.wants_dry_run(1) {
            assert!(!pulse.is_fit_for_dry_run(1, &named("poisoned")));
            assert!(pulse.is_fit_for_dry_run(1, &named("at rest")));
            pulse.tried(1, Ok(()));
            dry_runs += 1;
        }
        let sign = pulse.sign(1, &[]);
        assert!(pulse.works(1) && sign.leads, "after {second} s");
        assert_eq!(sign.unjudged.has("shop/poisoned"), second > 15, "after {second} s");
    })
    .await;
    assert_eq!(dry_runs, 30);
    let news = pulse.news(1);
    assert_eq!(news.len(), 1);
    assert!(pulse.news(1).is_empty(), "this is told once");
    pulse.done(1, &named("poisoned"), Done::Wrote);
    assert_eq!(pulse.sign(1, &[]), Sign { leads: true, ..Sign::default() });
}

#[tokio::test(start_paused = true)]
async fn when_not_even_a_dry_run_is_taken_the_pulse_is_lost() {
    let pulse = proven(1);
    let mut second = 0;
    each_second(45, || {
        second += 1;
        pulse.failed(1, &named("canary"), &refused());
        pulse.done(1, &named("at rest"), Done::Nothing);
        if second % 10 == 0 && pulse.wants_dry_run(1) {
            pulse.tried(1, Err("in a dry run: no right to it".to_owned()));
        }
    })
    .await;
    assert!(!pulse.works(1) && !pulse.sign(1, &[]).leads && pulse.sign(1, &[]).unjudged.is_empty());
    assert_eq!(pulse.refused(1).as_deref(), Some("in a dry run: no right to it"));
}

/// Otherwise leaders that can not write would keep canaries running, one after the other.
#[tokio::test(start_paused = true)]
async fn a_new_leader_gives_no_sign_before_it_has_written() {
    let pulse = proven(1);
    for term in 2..5 {
        pulse.done(term, &named("at rest"), Done::Nothing);
        let mut signs = 0;
        each_second(60, || {
            signs += usize::from(pulse.sign(term, &[]).leads);
            pulse.failed(term, &named("canary"), &refused());
            pulse.done(term, &named("at rest"), Done::Nothing);
        })
        .await;
        assert_eq!(signs, 0, "in term {term}");
        assert!(pulse.silence(term) >= Pulse::ENDS);
    }
    // With nothing to write, a dry run shows it.
    pulse.done(5, &named("at rest"), Done::Nothing);
    assert!(!pulse.wants_dry_run(5), "there was no time for a look yet");
    tokio::time::advance(Pulse::EVERY).await;
    assert!(pulse.wants_dry_run(5) && pulse.works(5) && !pulse.sign(5, &[]).leads);
    pulse.tried(5, Ok(()));
    assert!(pulse.sign(5, &[]).leads && !pulse.wants_dry_run(5));
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_at_rest_that_can_not_write_stays_and_gives_no_sign() {
    let pulse = Pulse::default();
    let mut second = 0;
    each_second(120, || {
        second += 1;
        pulse.done(1, &named("at rest"), Done::Nothing);
        if second % 10 == 0 && pulse.wants_dry_run(1) {
            pulse.tried(1, Err("in a dry run: no right to it".to_owned()));
        }
        assert!(pulse.works(1) && !pulse.sign(1, &[]).leads, "after {second} s");
    })
    .await;
    assert!(pulse.refused(1).is_some());
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_a_snapshot_is_one_releases_fault_also_when_it_is_alone() {
    let unreadable = ControllerError::Copy { name: "a-1".to_owned(), reason: "no JSON".to_owned() };
    let what = "the snapshot shop/a-1".to_owned();
    let why = "unable to create new content because it is being terminated".to_owned();
    for error in [unreadable, ControllerError::Refused { what, why }] {
        let pulse = proven(1);
        let mut second = 0;
        each_second(120, || {
            second += 1;
            pulse.failed(1, &named("a"), &error);
            if second % 10 == 0
                && pulse.wants_dry_run(1)
                && pulse.is_fit_for_dry_run(1, &named("a"))
            {
                pulse.tried(1, Ok(()));
            }
        })
        .await;
        assert!(pulse.works(1) && pulse.sign(1, &[]).unjudged.has("shop/a"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_whose_releases_all_fail_takes_the_judge_from_no_other() {
    let pulse = proven(1);
    let fail = |namespace: &str, count: usize| {
        for i in 0..count {
            pulse.failed(1, &Named::new(namespace, i.to_string()), &refused());
        }
    };
    fail("tenant", Pulse::MOST + 6);
    fail("shop", 1);
    tokio::time::advance(Pulse::UNJUDGED).await;
    pulse.tried(1, Ok(()));
    let sign = pulse.sign(1, &[]);
    assert!(pulse.works(1) && sign.leads, "canaries of other namespaces go on");
    for (release, is_judged) in
        [("shop/0", false), ("shop/canary", true), ("tenant/0", false), ("tenant/69", false)]
    {
        assert_eq!(sign.unjudged.has(release), !is_judged, "{release}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_that_is_gone_fails_no_more() {
    let pulse = proven(1);
    (0..=Pulse::MOST).for_each(|i| pulse.failed(1, &named(&i.to_string()), &refused()));
    tokio::time::advance(Pulse::UNJUDGED).await;
    pulse.tried(1, Ok(()));
    assert_eq!(pulse.sign(1, &[]).unjudged.namespaces, ["shop".to_owned()].into());
    pulse.keep(1, |release| release.name != "0");
    let sign = pulse.sign(1, &[]);
    assert!(sign.leads && sign.unjudged.namespaces.is_empty());
    assert_eq!(sign.unjudged.releases.len(), Pulse::MOST);
    pulse.keep(1, |_| false);
    assert_eq!(pulse.sign(1, &[]), Sign { leads: true, ..Sign::default() });
}

#[tokio::test(start_paused = true)]
async fn a_release_that_can_not_be_read_has_no_judge_from_the_first_question_on() {
    let pulse = proven(3);
    let unread = [named("bad")];
    let sign = pulse.sign(3, &unread);
    assert!(sign.leads && sign.unjudged.has("shop/bad") && !sign.unjudged.has("shop/other"));
    // A leader that has just begun, too.
    pulse.leads(4);
    pulse.tried(4, Ok(()));
    let sign = pulse.sign(4, &unread);
    assert!(sign.leads && sign.unjudged.has("shop/bad"));
    assert!(!pulse.sign(4, &[]).unjudged.has("shop/bad"), "it is mended");
}
