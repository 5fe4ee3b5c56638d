//! A clock that runs only while the canary can be judged. Deadlines are compared with
//! this clock and not with the time on the wall: time in which nothing could be judged is
//! not the canary's.
//!
//! The clock is kept in the status. Each decision adds the time since `until`, under the
//! state that the decision before had left: stopped time counts for nothing. A decision is
//! planned once an interval; what is much longer than that, nobody decided (no operator, or
//! no API server to write to), and the rest does not count. So nothing has to notice when
//! an operator goes away, and the same numbers come out whoever is killed when.

use std::time::Duration;

use jiff::Timestamp;

use crate::api::{GoDuration, prompt_release::JudgedTime};

/// So much longer than an interval a decision may take to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// `time` at `now`, and how long nobody decided before.
#[must_use]
pub fn at(time: &JudgedTime, now: Timestamp, interval: Duration) -> (JudgedTime, Option<Duration>) {
    let mut time = time.clone();
    let Some(until) = time.until.replace(now) else { return (time, None) };
    // A clock that was set back counts for nothing.
    let passed = Duration::try_from(now.duration_since(until)).unwrap_or_default();
    if time.stopped.is_some() {
        return (time, None);
    }
    let counts = passed.min(interval.saturating_add(PATIENCE));
    let missing = passed.checked_sub(counts).filter(|missing| !missing.is_zero());
    for total in [&mut time.canary, &mut time.step, &mut time.quiet] {
        *total = whole_milliseconds(total.0.saturating_add(counts));
    }
    (time, missing)
}

/// The text in the status has no finer unit, and a restart must change nothing.
fn whole_milliseconds(duration: Duration) -> GoDuration {
    GoDuration(
        duration
            .saturating_sub(Duration::from_nanos(u64::from(duration.subsec_nanos()) % 1_000_000)),
    )
}

/// No time counts from `now` on, because of `why`; with none it runs again.
pub fn stop(time: &mut JudgedTime, why: Option<&str>, now: Timestamp) {
    match why {
        None => (time.stopped, time.stopped_since) = (None, None),
        Some(why) => {
            time.stopped = Some(why.to_owned());
            time.stopped_since.get_or_insert(now);
        }
    }
}

/// A new step begins.
pub fn enter_step(time: &mut JudgedTime, now: Timestamp) {
    (time.step, time.quiet, time.until) = (GoDuration::default(), GoDuration::default(), Some(now));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(15);

    fn second(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn started() -> JudgedTime {
        JudgedTime { until: Some(second(0)), ..JudgedTime::default() }
    }

    fn seconds(time: &JudgedTime) -> [u64; 3] {
        [time.canary, time.step, time.quiet].map(|d| d.0.as_secs())
    }

    #[test]
    fn stopped_time_counts_for_nothing() {
        let (mut time, _) = at(&started(), second(10), INTERVAL);
        stop(&mut time, Some("Suspended"), second(10));
        let (mut time, gap) = at(&time, second(90_000), INTERVAL);
        assert_eq!((seconds(&time), gap), ([10, 10, 10], None));
        stop(&mut time, None, second(90_000));
        let (time, _) = at(&time, second(90_020), INTERVAL);
        assert_eq!(seconds(&time), [30, 30, 30]);
        assert_eq!((time.stopped, time.stopped_since), (None, None));
    }

    #[test]
    fn one_reason_after_another_is_one_stop() {
        let mut time = started();
        stop(&mut time, Some("Suspended"), second(5));
        stop(&mut time, Some("BackendNotReady"), second(50));
        assert_eq!(time.stopped.as_deref(), Some("BackendNotReady"));
        assert_eq!(time.stopped_since, Some(second(5)));
    }

    #[test]
    fn when_nobody_decided_only_the_planned_interval_counts() {
        let (time, gap) = at(&started(), second(25), INTERVAL);
        assert_eq!((seconds(&time)[0], gap), (25, None), "slow, and still deciding");
        let (time, gap) = at(&started(), second(3_600), INTERVAL);
        assert_eq!((seconds(&time)[0], gap), (25, Some(Duration::from_secs(3_575))));
        // Also with an interval that is shorter than any restart.
        let (time, gap) = at(&started(), second(30), Duration::from_secs(1));
        assert_eq!((seconds(&time)[0], gap), (11, Some(Duration::from_secs(19))));
    }

    #[test]
    fn a_clock_that_is_set_back_takes_and_gives_nothing() {
        let (time, _) = at(&started(), second(10), INTERVAL);
        let (time, gap) = at(&time, second(-5_000), INTERVAL);
        assert_eq!((seconds(&time)[0], gap), (10, None));
        let (time, _) = at(&time, second(-4_990), INTERVAL);
        assert_eq!(seconds(&time)[0], 20);
    }

    #[test]
    fn a_step_begins_at_zero_and_the_canary_goes_on() {
        let (mut time, _) = at(&started(), second(20), INTERVAL);
        enter_step(&mut time, second(20));
        let (time, _) = at(&time, second(30), INTERVAL);
        assert_eq!(seconds(&time), [30, 10, 10]);
    }

    proptest! {
        /// The same life with decisions at other moments, and with restarts between: what
        /// counts is the running time, as long as somebody decides.
        #[test]
        fn it_does_not_matter_when_it_is_looked_at(
            changes in prop::collection::vec((1..200_i64, any::<bool>()), 1..20),
            every in 1..25_i64,
        ) {
            let (mut time, mut now, mut running, mut expected) = (started(), 0, true, 0_i64);
            for (pass, runs) in changes {
                let end = now + pass;
                expected += if running { pass } else { 0 };
                while now < end {
                    now = end.min(now + every);
                    time = at(&time, second(now), INTERVAL).0;
                    let text = serde_json::to_string(&time).unwrap();
                    time = serde_json::from_str(&text).unwrap();
                }
                running = runs;
                stop(&mut time, (!runs).then_some("Suspended"), second(now));
            }
            prop_assert_eq!(seconds(&time)[0] as i64, expected);
        }
    }
}
