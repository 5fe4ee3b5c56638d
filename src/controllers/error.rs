//! What can go wrong while reconciling.

use std::time::Duration;

use kube::core::Status;

use crate::signals::{api_server::said, tried::NOT_READ};

/// How the API server begins or ends what it says of a quota, of an admission webhook or policy
/// that denies, of a namespace that is being deleted, and of an object that etcd does not take.
/// Some of these have the code of a missing right (403) or of a fault (500), so the words decide.
const REFUSALS: [&str; 7] = [
    "exceeded quota",
    "failed quota",
    "denied the request",
    "denied request",
    "it is being terminated",
    "request is too large",
    "message larger than max",
];

/// Whether an answer is about what was written, or where.
fn is_about_content(status: &Status) -> bool {
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    if causes.any(|cause| cause.reason == "NamespaceTerminating") {
        return true;
    }
    match status.code {
        400 | 413 | 422 => !status.message.contains(FENCED),
        403 | 500 => REFUSALS.iter().any(|words| status.message.contains(words)),
        _ => false,
    }
}

/// The rule of the definition that refuses a status of an earlier leader.
const FENCED: &str = "leaderTerm must not decrease";

/// An error of a reconcile; the object is tried again.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// Somebody else wrote the object first: the next look sees it.
    #[error("{what} changed meanwhile")]
    Conflict {
        /// What was written.
        what: String,
    },
    /// This process does not lead, or is no longer sure of it.
    #[error("this operator does not lead")]
    NotLeading,
    /// The API server refused because a leader with a later term has written already.
    #[error(
        "{what} was written by an operator with a later term: another one leads, or the Lease was \
         deleted, or a clock put back (docs/reasons.md says what to do: DecisionNotWritten)"
    )]
    Fenced {
        /// What was written.
        what: String,
    },
    /// The API server failed or refused.
    #[error("{what}: {}", said(source).0)]
    Api {
        /// What was attempted.
        what: String,
        /// Why it failed.
        source: Box<kube::Error>,
    },
    /// The API server refused a snapshot, or the note on it, for what it contains or where it
    /// is: who asked may write, and the same again will be refused again.
    #[error("{what} is refused: {why}")]
    Refused {
        /// What was written.
        what: String,
        /// What the API server says.
        why: String,
    },
    /// An object is there, and can not be read.
    #[error("{what} can not be read: {why}")]
    Unread {
        /// The object.
        what: String,
        /// Where it can not be read.
        why: String,
    },
    /// A saved copy can not be read or made.
    #[error("the snapshot {name} can not be read: {reason}")]
    Copy {
        /// The ReleaseSnapshot.
        name: String,
        /// Why.
        reason: String,
    },
    /// The watch ended before it was complete.
    #[error("the caches are not filled yet")]
    CachesNotReady,
}

impl ControllerError {
    /// Sorts an error of the API server.
    pub fn api(what: impl Into<String>, source: kube::Error) -> Self {
        let what = what.into();
        match &source {
            kube::Error::Api(status) if status.code == 409 => Self::Conflict { what },
            kube::Error::Api(status) if status.code == 422 && status.message.contains(FENCED) => {
                Self::Fenced { what }
            }
            _ => Self::Api { what, source: Box::new(source) },
        }
    }

    /// Sorts an error of the API server about something that one release keeps.
    pub fn kept(what: impl Into<String>, source: kube::Error) -> Self {
        match &source {
            kube::Error::Api(status) if is_about_content(status) => {
                Self::Refused { what: what.into(), why: said(&source).0 }
            }
            _ => Self::api(what, source),
        }
    }

    /// Whether the API server refused for what was written, and not for who wrote it: the same
    /// again will be refused again.
    pub fn is_about_content(&self) -> bool {
        match self {
            Self::Refused { .. } => true,
            Self::Api { source, .. } => {
                matches!(&**source, kube::Error::Api(status) if is_about_content(status))
            }
            _ => false,
        }
    }

    /// Whether it is about one object, so that others may well be handled: what is wrong with it, or
    /// with a right in its namespace. Otherwise the API server is away or busy, or this operator does
    /// not lead.
    pub fn is_about_one(&self) -> bool {
        match self {
            Self::Conflict { .. } | Self::Refused { .. } | Self::Unread { .. } => true,
            Self::Copy { .. } => true,
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) => {
                    is_about_content(status)
                        || (matches!(status.code, 400..500)
                            && ![401, 408, 429].contains(&status.code))
                }
                kube::Error::SerdeError(_) => true,
                _ => false,
            },
            Self::NotLeading | Self::Fenced { .. } | Self::CachesNotReady => false,
        }
    }

    /// Whether the API server says that this operator has no right to what it tried.
    pub fn is_forbidden(&self) -> bool {
        let Self::Api { source, .. } = self else { return false };
        matches!(&**source, kube::Error::Api(status) if status.code == 403)
    }

    /// One CamelCase word, for metrics and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => "Conflict",
            Self::NotLeading => "NotLeading",
            Self::Fenced { .. } => "Fenced",
            Self::Api { .. } => "ApiServer",
            Self::Refused { .. } => "Refused",
            Self::Unread { .. } => NOT_READ,
            Self::Copy { .. } => "CopyUnreadable",
            Self::CachesNotReady => "CachesNotReady",
        }
    }

    /// Conflicts and changes of leadership are part of normal life.
    pub fn worth_a_warning(&self) -> bool {
        matches!(
            self,
            Self::Api { .. }
                | Self::Refused { .. }
                | Self::Unread { .. }
                | Self::Copy { .. }
                | Self::Fenced { .. }
        )
    }

    /// When to try again, for the first time.
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Conflict { .. } => Duration::from_millis(200),
            Self::NotLeading | Self::Fenced { .. } | Self::CachesNotReady => Duration::from_secs(1),
            Self::Api { .. } | Self::Refused { .. } => Duration::from_secs(2),
            Self::Unread { .. } | Self::Copy { .. } => Duration::from_secs(30),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Box::new(Status::failure(message, "").with_code(code)))
    }

    #[test]
    fn a_refusal_of_what_was_written_is_told_from_a_missing_right_and_from_a_fault() {
        for (code, message, is_refusal) in [
            (500, "etcdserver: request is too large", true),
            (
                500,
                "rpc error: code = ResourceExhausted desc = trying to send message larger than max (2097279 vs. 2097152)",
                true,
            ),
            (413, "Request entity too large: limit is 3145728", true),
            (422, "ReleaseSnapshot.serinus.dev \"a\" is invalid: metadata.name", true),
            (422, "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no", true),
            (400, "admission webhook \"w.example\" denied the request: no", true),
            (403, "admission webhook \"w.example\" denied the request: no", true),
            (
                403,
                "releasesnapshots.serinus.dev \"a\" is forbidden: exceeded quota: q, requested: count/releasesnapshots.serinus.dev=1",
                true,
            ),
            (
                403,
                "releasesnapshots.serinus.dev \"a\" is forbidden: unable to create new content in namespace shop because it is being terminated",
                true,
            ),
            (
                403,
                "releasesnapshots.serinus.dev \"a\" is forbidden: User \"system:serviceaccount:serinus-system:serinus-operator\" cannot create resource \"releasesnapshots\" in API group \"serinus.dev\" in the namespace \"shop\"",
                false,
            ),
            (
                422,
                "PromptRelease.serinus.dev \"a\" is invalid: status: leaderTerm must not decrease",
                false,
            ),
            (401, "Unauthorized", false),
            (404, "the server could not find the requested resource", false),
            (429, "too many requests", false),
            (500, "failed calling webhook \"w.example\": connection refused", false),
            (500, "etcdserver: mvcc: database space exceeded", false),
            (503, "the server is currently unable to handle the request", false),
        ] {
            assert_eq!(
                ControllerError::api("x", error(code, message)).is_about_content(),
                is_refusal,
                "{message}"
            );
            let kept = ControllerError::kept("x", error(code, message));
            assert_eq!(matches!(kept, ControllerError::Refused { .. }), is_refusal, "{message}");
        }
    }

    #[test]
    fn a_namespace_that_is_being_deleted_is_known_by_the_cause_whatever_the_words() {
        let status = serde_json::json!({"status": "Failure", "code": 403, "reason": "Forbidden",
        "message": "not now", "details": {"causes": [
            {"reason": "NamespaceTerminating", "message": "", "field": "metadata.namespace"},
        ]}});
        let status: Status = serde_json::from_value(status).unwrap();
        let kept = ControllerError::kept("x", kube::Error::Api(Box::new(status)));
        assert!(matches!(kept, ControllerError::Refused { .. }), "{kept:?}");
    }

    #[test]
    fn of_what_the_api_server_quotes_little_is_kept() {
        let long = format!("admission webhook \"w\" denied the request: {}", "<".repeat(1 << 20));
        assert!(ControllerError::kept("x", error(400, &long)).to_string().len() < 400);
    }
}
