//! Every group, label, annotation and header name that Serinus owns, in one place.

/// The API group of all kinds.
pub const GROUP: &str = "serinus.dev";
/// The served version.
pub const VERSION: &str = "v1alpha1";
/// The field manager of everything that the operator applies.
pub const FIELD_MANAGER: &str = "serinus";
/// The label on snapshots and on the objects of a serving backend: the owner's name.
pub const RELEASE_LABEL: &str = "serinus.dev/release";
/// The label on the Deployment and Service that a serving backend becomes.
pub const BACKEND_LABEL: &str = "serinus.dev/backend";
/// The label on a snapshot: the revision that it records.
pub const REVISION_LABEL: &str = "serinus.dev/revision";
/// The annotation on a snapshot of a stable variant: what is remembered of its release.
pub const REMEMBERED_ANNOTATION: &str = "serinus.dev/remembered";
/// The label on a snapshot with that annotation, for tables and selectors: "true".
pub const REMEMBERED_LABEL: &str = REMEMBERED_ANNOTATION;
/// Requests by annotation: each value starts with the revision that it is about,
/// optionally followed by `by=WHO at=WHEN`.
pub const APPROVE_ANNOTATION: &str = "serinus.dev/approve";
/// See [`APPROVE_ANNOTATION`]: skip the remaining steps and promote.
pub const PROMOTE_ANNOTATION: &str = "serinus.dev/promote";
/// See [`APPROVE_ANNOTATION`]: take the canary out of routing.
pub const ABORT_ANNOTATION: &str = "serinus.dev/abort";
/// See [`APPROVE_ANNOTATION`]: try a revision again that failed before.
pub const RETRY_ANNOTATION: &str = "serinus.dev/retry";
/// Kept a serving backend from being deleted; set by earlier versions, removed on sight.
pub const IN_USE_FINALIZER: &str = "serinus.dev/in-use";
/// Answer header: the id under which the request is recorded.
pub const REQUEST_ID_HEADER: &str = "x-serinus-request-id";
/// Answer header: the id of the copy that a shadow got of this request. Scores of both
/// ids are compared in pairs.
pub const SHADOW_REQUEST_ID_HEADER: &str = "x-serinus-shadow-request-id";
/// Answer header: the revision that answered.
pub const REVISION_HEADER: &str = "x-serinus-revision";
/// Header of a vote that one gateway passes on to another: the signature of the body.
pub const SIGNATURE_HEADER: &str = "x-serinus-signature";
/// The label on a Secret that holds a client key; its value is "true".
pub const CLIENT_KEY_LABEL: &str = "serinus.dev/client-key";
/// The annotation on a Secret that a backend names: the hosts to which it may be sent.
pub const HOSTS_ANNOTATION: &str = "serinus.dev/hosts";
/// Request header: the variant that a tester asks for: stable, canary or a revision.
pub const VARIANT_HEADER: &str = "x-serinus-variant";
/// The audience that service accounts' tokens for a gateway have.
pub const GATEWAY_AUDIENCE: &str = "serinus-gateway";
/// Answer header of a release with a cache: hit or miss.
pub const CACHE_HEADER: &str = "x-serinus-cache";
