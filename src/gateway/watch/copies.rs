//! Saved copies as a gateway keeps them. The JSON of a ControllerRevision takes several
//! times the memory of the variant that it describes.

use std::{borrow::Cow, sync::Arc};

use k8s_openapi::{
    NamespaceResourceScope, api::apps::v1::ControllerRevision,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Resource, ResourceExt};
use serde::Deserialize;

use crate::api::{Variant, snapshot::Saved};

/// A ControllerRevision that was read.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "ControllerRevision")]
pub(super) struct SavedCopy {
    metadata: ObjectMeta,
    /// None for a policy, and for what can not be read.
    pub variant: Option<Arc<Variant>>,
}

impl From<ControllerRevision> for SavedCopy {
    fn from(copy: ControllerRevision) -> Self {
        let name = copy.name_any();
        let variant = match serde_json::from_value(copy.data.0) {
            Ok(Saved::Variant(variant)) => Some(Arc::new(variant)),
            Ok(Saved::Policy(_)) => None,
            Err(error) => {
                tracing::warn!(copy = name, "the saved copy can not be read: {error}");
                None
            }
        };
        Self { metadata: copy.metadata, variant }
    }
}

impl Resource for SavedCopy {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        ControllerRevision::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        ControllerRevision::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        ControllerRevision::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        ControllerRevision::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
