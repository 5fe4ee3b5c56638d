//! The one place that reads the wall clock; everything else is handed a time.

use jiff::Timestamp;

/// The time now.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn now() -> Timestamp {
    Timestamp::now()
}
