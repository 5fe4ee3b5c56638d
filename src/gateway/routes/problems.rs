//! What keeps a route, or one variant of it, from being built: told in notices and in the
//! report to the operator. No text here holds anything that a Secret holds.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{api::prompt_release::VariantRole, gateway::notices::Notice, prompt::short};

/// A sentence is cut here: an error may quote what a tenant wrote.
const LONGEST: usize = 300;

/// Why something can not be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// One CamelCase word.
    pub reason: &'static str,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Fault {
    pub(super) const COPY_NOT_FOUND: &str = "CopyNotFound";
    pub(super) const BACKEND_NOT_FOUND: &str = "BackendNotFound";
    pub(super) const COPY_UNREADABLE: &str = "CopyUnreadable";
    pub(super) const PROMPT_INVALID: &str = "PromptInvalid";
    pub(super) const ADDRESS_INVALID: &str = "AddressInvalid";
    pub(super) const HEADER_INVALID: &str = "HeaderInvalid";
    pub(super) const SECRET_INVALID: &str = "SecretInvalid";
    pub(super) const VARIANT_UNKNOWN: &str = "VariantUnknown";
    const ROUTE_TAKEN: &str = "RouteTaken";
    /// A Secret, or a key in it, does not exist.
    pub const SECRET_NOT_FOUND: &str = "SecretNotFound";
    pub(super) const SECRET_NOT_GRANTED: &str = "SecretNotGranted";
    /// A Secret may exist and can not be read.
    pub const SECRET_UNREADABLE: &str = "SecretUnreadable";

    /// `reason` and `message`, on one line and of a bounded length.
    pub fn new(reason: &'static str, message: impl AsRef<str>) -> Self {
        let words: Vec<&str> = message.as_ref().split_whitespace().collect();
        let mut message = words.join(" ");
        if let Some((end, _)) = message.char_indices().nth(LONGEST) {
            message.truncate(end);
            message.push('…');
        }
        Self { reason, message }
    }

    /// Whether this may pass by itself: something has not arrived yet.
    pub fn may_pass(&self) -> bool {
        matches!(self.reason, Self::COPY_NOT_FOUND | Self::SECRET_UNREADABLE)
    }
}

/// Which part of a route a problem is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The route as a whole.
    Route,
    Variant(VariantRole),
    /// Another backend that answers while stable's is unavailable.
    Fallback,
}

/// What keeps a part of a route from being built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub(super) part: Part,
    /// The variant's revision, or `fallback/` and the backend; empty for the route as a whole.
    pub revision: String,
    pub(super) backend: String,
    /// Why.
    pub fault: Fault,
    /// What was built of this variant before goes on.
    pub(super) kept: bool,
}

impl Problem {
    pub(super) fn of_route(fault: Fault) -> Self {
        let (revision, backend) = Default::default();
        Self { part: Part::Route, revision, backend, fault, kept: false }
    }

    /// Another release holds the route.
    pub(super) fn route_taken(route: &str, holder: &str) -> Self {
        let message = format!(
            "the route {route} is held by the PromptRelease {holder}: choose another route, or \
             delete one of them"
        );
        Self::of_route(Fault::new(Fault::ROUTE_TAKEN, message))
    }

    /// Whether it is about the variant that is not trusted yet.
    pub fn is_on_trial(&self) -> bool {
        matches!(self.part, Part::Variant(VariantRole::Canary | VariantRole::Shadow))
    }

    fn sentence(&self, served: bool) -> String {
        let what = match self.part {
            Part::Route => return self.fault.message.clone(),
            Part::Variant(role) => role.as_str(),
            Part::Fallback => "fallback",
        };
        let then = match self.part {
            _ if self.kept => "it goes on as it was built before",
            _ if !served => "the route is not served",
            Part::Variant(VariantRole::Shadow) => "it gets no copies",
            Part::Fallback => "it is left out",
            Part::Variant(VariantRole::Canary) => {
                "it gets no traffic: stable answers its share, which counts as turned away"
            }
            _ => "another variant answers its share, which counts as turned away",
        };
        let on = if self.backend.is_empty() { "" } else { " on LLMDeployment " };
        let Self { backend, fault, .. } = self;
        let revision = match self.part {
            Part::Fallback => String::new(),
            _ => format!(" {}", short(&self.revision)),
        };
        format!("{what}{revision}{on}{backend} can not be built, so {then}: {}", fault.message)
    }
}

/// So long the operator is not told of what may pass by itself: a copy comes by another
/// watch than the routing that names it.
const MAY_PASS: Duration = Duration::from_secs(5);

/// All that is wrong with what one release asks for.
#[derive(Clone, Debug)]
pub struct Problems {
    /// Since when it is so.
    pub(super) since: Instant,
    /// The release's namespace.
    pub namespace: String,
    /// The model name that applications send.
    pub route: String,
    /// Whether requests for the route reach this release.
    pub served: bool,
    /// At least one.
    pub all: Vec<Problem>,
}

impl PartialEq for Problems {
    fn eq(&self, other: &Self) -> bool {
        let what = |p: &Self| (p.namespace.clone(), p.route.clone(), p.served);
        what(self) == what(other) && self.all == other.all
    }
}

impl Problems {
    /// What the operator is told: why which revision can not be built.
    pub fn unbuilt(&self) -> BTreeMap<String, String> {
        let lasts = self.since.elapsed() >= MAY_PASS;
        let told = |problem: &&Problem| {
            !problem.revision.is_empty() && (lasts || !problem.fault.may_pass())
        };
        let all = self.all.iter().filter(told);
        all.map(|problem| (problem.revision.clone(), problem.fault.message.clone())).collect()
    }
}

/// By `namespace/name` of the release.
pub type ByRelease = BTreeMap<String, Arc<Problems>>;

/// For those who look.
pub fn notices(problems: &ByRelease) -> Vec<Notice> {
    let of = |(key, problems): (&String, &Arc<Problems>)| {
        let Problems { namespace, route, served, all, .. } = &**problems;
        let route = (!served).then(|| (namespace.clone(), route.clone()));
        let notice = |problem: &Problem| Notice {
            route: route.clone(),
            ..Notice::new(
                format!("PromptRelease {key}"),
                problem.fault.reason,
                problem.sentence(*served),
            )
        };
        all.iter().map(notice).collect::<Vec<_>>()
    };
    problems.iter().flat_map(of).collect()
}
