//! Numbers on the command line: each has a least and a most, so that nothing behind it meets a
//! value that it can not work with.

use std::{fmt::Display, ops::RangeInclusive, str::FromStr, time::Duration};

use crate::api::GoDuration;

/// Reads a number, or a duration, of this range. NaN is in no range.
pub fn between<T>(
    range: RangeInclusive<T>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + Display + Clone + Send + Sync + 'static,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("give a value from {} to {}", range.start(), range.end()))
    }
}

/// Reads a duration of this range, which may begin with days: `7d`, `1d12h`. Manifests have no
/// days, as durations in Kubernetes have none.
pub fn duration_between(
    range: RangeInclusive<GoDuration>,
) -> impl Fn(&str) -> Result<GoDuration, String> + Clone + Send + Sync + 'static {
    move |text| {
        let read = || {
            let (days, rest) = text.split_once('d').unwrap_or(("0", text));
            let is_number = !days.is_empty() && days.bytes().all(|c| c.is_ascii_digit());
            let days = Duration::from_secs(days.parse::<u64>().ok()?.checked_mul(86_400)?);
            let rest = if rest.is_empty() && text.ends_with('d') { "0s" } else { rest };
            let sum = days.checked_add(rest.parse::<GoDuration>().ok()?.0)?;
            Some(GoDuration(sum)).filter(|sum| is_number && range.contains(sum))
        };
        let (start, end) = (range.start(), in_days(range.end().0));
        read().ok_or_else(|| {
            format!("give a duration from {start} to {end}, for example 90s, 12h or 7d")
        })
    }
}

/// A duration as people read it: in days, where it is that long.
pub fn in_days(duration: Duration) -> String {
    let (days, rest) = (duration.as_secs() / 86_400, duration.as_secs() % 86_400);
    match (days, rest / 3600) {
        (0 | 1, _) => GoDuration(duration).to_string(),
        (_, 0) => format!("{days}d"),
        (_, hours) => format!("{days}d{hours}h"),
    }
}

/// A share.
pub fn share(text: &str) -> Result<f64, String> {
    between(0.0..=1.0)(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_days_on_the_command_line() {
        let read = duration_between(GoDuration::from_secs(1)..=GoDuration::from_secs(100 * 86_400));
        let seconds = |text: &str| read(text).map(|duration| duration.0.as_secs());
        assert_eq!(seconds("7d"), Ok(7 * 86_400));
        assert_eq!(seconds("1d12h30m"), Ok(131_400));
        assert_eq!(seconds("90s"), Ok(90));
        for bad in
            ["d", "-1d", "1.5d", "1d1d", "d5h", "1dx", "101d", "0d", "99999999999999999999d", "7 d"]
        {
            assert!(seconds(bad).unwrap_err().contains("from 1s to 100d"), "{bad}");
        }
    }

    #[test]
    fn long_durations_are_read_in_days() {
        let of = |hours: u64| in_days(Duration::from_secs(hours * 3600));
        assert_eq!([of(0), of(26), of(48), of(75)], ["0s", "26h", "2d", "3d3h"]);
    }
}
