//! What can go wrong while reconciling.

use std::time::Duration;

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
    /// The API server refused because a newer leader has written already.
    #[error("{what} was written by a newer leader")]
    Fenced {
        /// What was written.
        what: String,
    },
    /// The API server failed or refused.
    #[error("{what}: {source}")]
    Api {
        /// What was attempted.
        what: String,
        /// Why it failed.
        source: Box<kube::Error>,
    },
    /// A saved copy can not be read or made.
    #[error("the snapshot {name} can not be read: {reason}")]
    Copy {
        /// The ReleaseSnapshot.
        name: String,
        /// Why.
        reason: String,
    },
    /// Nothing new can be created in a namespace that is being deleted.
    #[error("{what}: its namespace is being deleted, and nothing can be created in it")]
    Terminating {
        /// What was to be created.
        what: String,
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
            kube::Error::Api(status)
                if status.code == 422
                    && status.message.contains("leaderTerm must not decrease") =>
            {
                Self::Fenced { what }
            }
            _ => Self::Api { what, source: Box::new(source) },
        }
    }

    /// Sorts an error of the API server about an object that was to be created.
    pub fn creating(what: impl Into<String>, source: kube::Error) -> Self {
        let what = what.into();
        let is_terminating = |status: &kube::core::Status| {
            let causes = status.details.iter().flat_map(|details| &details.causes);
            status.code == 403 && causes.clone().any(|c| c.reason == "NamespaceTerminating")
        };
        match &source {
            kube::Error::Api(status) if is_terminating(status) => Self::Terminating { what },
            _ => Self::api(what, source),
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
            Self::Copy { .. } => "CopyUnreadable",
            Self::Terminating { .. } => "NamespaceTerminating",
            Self::CachesNotReady => "CachesNotReady",
        }
    }

    /// Conflicts and changes of leadership are part of normal life.
    pub fn worth_a_warning(&self) -> bool {
        matches!(self, Self::Api { .. } | Self::Copy { .. } | Self::Fenced { .. })
    }

    /// When to try again.
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Conflict { .. } => Duration::from_millis(200),
            Self::NotLeading | Self::Fenced { .. } | Self::CachesNotReady => Duration::from_secs(1),
            Self::Api { .. } => Duration::from_secs(2),
            Self::Copy { .. } | Self::Terminating { .. } => Duration::from_secs(30),
        }
    }
}
