//! When a server wants to be asked again.

use std::time::Duration;

use jiff::Timestamp;

/// How long to wait by `retry-after-ms` (OpenAI's and Azure's), else by `Retry-After`:
/// seconds or a date (RFC 9110, section 10.2.3). None of a date that has passed.
pub fn retry_after<'a>(
    header: impl Fn(&str) -> Option<&'a str>,
    clock: fn() -> Timestamp,
) -> Option<Duration> {
    let number = |text: &str, unit: f64| {
        let number: f64 = text.parse().ok()?;
        Duration::try_from_secs_f64(number * unit).ok()
    };
    if let Some(wait) = header("retry-after-ms").and_then(|text| number(text, 1e-3)) {
        return Some(wait);
    }
    let wanted = header("retry-after")?;
    if let Some(wait) = number(wanted, 1.0) {
        return Some(wait);
    }
    let until = jiff::fmt::rfc2822::parse(wanted).ok()?.timestamp();
    Duration::try_from(until.duration_since(clock())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2015-10-21T07:27:00Z".parse().unwrap()
    }

    fn wait(headers: &[(&str, &str)]) -> Option<Duration> {
        let find = |wanted: &str| headers.iter().find(|(name, _)| *name == wanted);
        retry_after(|wanted| find(wanted).map(|(_, value)| *value), now)
    }

    #[test]
    fn seconds_parts_of_them_and_dates_are_read() {
        let millis = |n| Some(Duration::from_millis(n));
        assert_eq!(wait(&[("retry-after", "2")]), millis(2000));
        assert_eq!(wait(&[("retry-after", "1.5")]), millis(1500));
        assert_eq!(wait(&[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")]), millis(60_000));
        assert_eq!(wait(&[("retry-after", "7"), ("retry-after-ms", "20")]), millis(20));
        assert_eq!(wait(&[("retry-after-ms", "0.5")]), Some(Duration::from_micros(500)));
        assert_eq!(wait(&[("retry-after", "7"), ("retry-after-ms", "soon")]), millis(7000));
    }

    #[test]
    fn what_is_no_time_or_has_passed_says_nothing() {
        for value in ["soon", "-1", "NaN", "inf", "1e300", "", "Wed, 21 Oct 2015 07:00:00 GMT"] {
            assert_eq!(wait(&[("retry-after", value)]), None, "{value}");
        }
        assert_eq!(wait(&[]), None);
    }
}
