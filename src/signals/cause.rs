//! Why a connection failed.

use std::error::Error;

/// The innermost reason of an error. Clients wrap it in words that do not help ("error sending
/// request").
pub fn innermost(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
