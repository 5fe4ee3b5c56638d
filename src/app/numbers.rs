//! Numbers on the command line: each has a least and a most, so that nothing behind it meets a
//! value that it can not work with.

use std::{fmt::Display, ops::RangeInclusive, str::FromStr};

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

/// A share.
pub fn share(text: &str) -> Result<f64, String> {
    between(0.0..=1.0)(text)
}
