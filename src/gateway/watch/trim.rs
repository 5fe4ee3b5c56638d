//! What a gateway keeps of the objects that it follows: with ten thousand releases, their
//! histories alone would be most of its memory.

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::api::{LLMDeployment, PromptRelease, PromptReleaseStatus};

/// Of a release, what was asked for and where requests go.
pub(super) fn release(release: &mut PromptRelease) {
    release.metadata.annotations = None;
    if let Some(status) = &mut release.status {
        let routing = std::mem::take(&mut status.routing);
        *status = PromptReleaseStatus { routing, ..PromptReleaseStatus::default() };
    }
}

/// Of a backend, what was asked for.
pub(super) fn backend(backend: &mut LLMDeployment) {
    backend.metadata.annotations = None;
    backend.status = None;
}

/// Of the endpoints of a Service, their addresses and whether they serve.
pub(super) fn slice(slice: &mut EndpointSlice) {
    slice.metadata.annotations = None;
    slice.metadata.owner_references = None;
    for endpoint in slice.endpoints.iter_mut().flatten() {
        let (addresses, conditions) =
            (std::mem::take(&mut endpoint.addresses), endpoint.conditions.take());
        *endpoint = Endpoint { addresses, conditions, ..Endpoint::default() };
    }
}
