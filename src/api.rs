//! The custom resources of `serinus.dev/v1alpha1`: the words that users write.
//!
//! The doc comments in this folder are what `kubectl explain` shows, so they say
//! units and defaults in plain words. Rules over several fields are CEL and are
//! enforced by the API server; standalone mode runs the same rules through
//! [`manifest`]. Nothing here decides anything.
#![deny(missing_docs)]
#![allow(
    clippy::duplicated_attributes,
    reason = "the derive of kube repeats keys inside printcolumn(...)"
)]

pub mod canary_policy;
pub mod conditions;
pub mod crd;
pub mod duration;
pub mod keys;
pub mod llm_deployment;
pub mod manifest;
pub mod prompt_release;
pub mod prompt_version;
pub mod release_snapshot;
pub mod schema;
pub mod secret;
pub mod snapshot;
pub mod stored;
pub mod url;

pub use canary_policy::{CanaryPolicy, CanaryPolicySpec};
pub use conditions::Condition;
pub use duration::GoDuration;
pub use llm_deployment::{LLMDeployment, LLMDeploymentSpec};
pub use prompt_release::{PromptRelease, PromptReleaseSpec, PromptReleaseStatus};
pub use prompt_version::{PromptVersion, PromptVersionSpec};
pub use release_snapshot::{ReleaseSnapshot, ReleaseSnapshotSpec};
pub use secret::SecretText;
pub use snapshot::Variant;
