//! What the API server says when it refuses, or why it can not be asked.

use kube::runtime::watcher;

use super::cause::innermost;
use crate::api::conditions::truncate;

/// So much is kept of it: it may quote what was written.
const LONGEST: usize = 300;

/// The words of an error for people, and its code in HTTP: 0 when the API server did not answer.
pub fn said(error: &kube::Error) -> (String, u16) {
    match error {
        kube::Error::Api(status) => {
            let words = [status.message.trim(), status.reason.trim()];
            let words = words.into_iter().find(|words| !words.is_empty());
            (truncate(words.unwrap_or("no reason given"), LONGEST), status.code)
        }
        kube::Error::HyperError(_) | kube::Error::Service(_) => {
            let why = innermost(error);
            (truncate(&format!("the API server can not be reached: {why}"), LONGEST), 0)
        }
        error => (truncate(error.to_string().trim(), LONGEST), 0),
    }
}

/// What [`said`] tells, of a watch.
pub fn said_of_watch(error: &watcher::Error) -> (String, u16) {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => said(error),
        watcher::Error::WatchError(status) => said(&kube::Error::Api(status.clone())),
        error => (truncate(error.to_string().trim(), LONGEST), 0),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use kube::core::Status;

    use super::*;

    #[test]
    fn people_read_what_the_api_server_wrote_and_no_names_of_types() {
        let of = |message: &str, reason: &str, code| {
            said(&kube::Error::Api(Box::new(Status::failure(message, reason).with_code(code))))
        };
        assert_eq!(of(" no such thing\n", "NotFound", 404), ("no such thing".to_owned(), 404));
        assert_eq!(of("", "Forbidden", 403), ("Forbidden".to_owned(), 403));
        assert_eq!(of("", "", 500), ("no reason given".to_owned(), 500));
        assert!(of(&"<".repeat(1 << 20), "", 500).0.len() <= LONGEST + 3);
        let refused = io::Error::new(io::ErrorKind::ConnectionRefused, "connection refused");
        let outer = io::Error::other(io::Error::other(refused));
        assert_eq!(
            said(&kube::Error::Service(Box::new(outer))),
            ("the API server can not be reached: connection refused".to_owned(), 0)
        );
        let status = Box::new(Status::failure("too old", "Expired").with_code(410));
        let ended = said_of_watch(&watcher::Error::WatchError(status));
        assert_eq!(ended, ("too old".to_owned(), 410));
    }
}
