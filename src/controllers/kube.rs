//! The only code that writes to the API server. Every write asks first whether this
//! process leads, so that one that is not sure does not write.

pub mod leadership;

use std::{fmt::Debug, sync::Arc};

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
    core::NamespaceResourceScope,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use self::leadership::Leadership;
use super::{error::ControllerError, exported::Exported};
use crate::api::{
    PromptRelease,
    conditions::truncate,
    keys,
    snapshot::{Saved, copy_name},
};

/// The longest note that the API server accepts on an Event.
const LONGEST_NOTE: usize = 1024;

/// Writes, while this process leads.
pub struct Cluster {
    client: Client,
    leadership: Arc<Leadership>,
    recorder: Recorder,
    exported: Arc<Exported>,
}

/// A namespaced kind without parameters.
pub trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
{
}

impl<K> Kind for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
{
}

impl Cluster {
    /// Writes with `client` while `leadership` holds.
    pub fn new(client: Client, leadership: Arc<Leadership>, exported: Arc<Exported>) -> Self {
        let reporter = Reporter {
            controller: "serinus.dev/operator".to_owned(),
            instance: Some(leadership.identity().to_owned()),
        };
        let recorder = Recorder::new(client.clone(), reporter);
        Self { client, leadership, recorder, exported }
    }

    /// Whether this process leads.
    pub fn leadership(&self) -> &Leadership {
        &self.leadership
    }

    /// The term under which a write may go out.
    ///
    /// # Errors
    /// This process does not lead.
    pub fn term(&self) -> Result<i64, ControllerError> {
        self.leadership.term().ok_or(ControllerError::NotLeading)
    }

    fn api<K: Kind>(&self, namespace: &str) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Replaces the status of `object`, which carries the resourceVersion that was
    /// decided on; answers the object as it is now.
    ///
    /// # Errors
    /// Somebody wrote the object meanwhile, or the API server failed.
    pub async fn write_status<K: Kind>(&self, object: &K) -> Result<K, ControllerError> {
        self.term()?;
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let post =
            PostParams { field_manager: Some(keys::FIELD_MANAGER.to_owned()), dry_run: false };
        let kind = K::kind(&()).into_owned();
        let written =
            self.api::<K>(&namespace).replace_status(&name, &post, object).await.map_err(|e| {
                ControllerError::api(format!("the status of {kind} {namespace}/{name}"), e)
            })?;
        self.exported.wrote("status");
        Ok(written)
    }

    /// Server-side apply of an object that Serinus owns; answers the object as it is now.
    ///
    /// # Errors
    /// The API server failed or refused.
    pub async fn apply<K: Kind>(&self, object: &K) -> Result<K, ControllerError> {
        self.term()?;
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let mut body = serde_json::to_value(object).unwrap_or_default();
        body["apiVersion"] = json!(K::api_version(&()));
        body["kind"] = json!(K::kind(&()));
        let params = PatchParams::apply(keys::FIELD_MANAGER).force();
        let applied =
            self.api::<K>(&namespace).patch(&name, &params, &Patch::Apply(body)).await.map_err(
                |e| ControllerError::api(format!("{} {namespace}/{name}", K::kind(&())), e),
            )?;
        self.exported.wrote("apply");
        Ok(applied)
    }

    /// Sets the finalizers of `object`, provided that it did not change meanwhile.
    ///
    /// # Errors
    /// The API server failed or refused.
    pub async fn set_finalizers<K: Kind>(
        &self,
        object: &K,
        finalizers: Vec<String>,
    ) -> Result<(), ControllerError> {
        self.term()?;
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let body = json!({"metadata": {
            "finalizers": finalizers,
            "resourceVersion": object.resource_version(),
        }});
        self.api::<K>(&namespace)
            .patch(&name, &PatchParams::default(), &Patch::Merge(body))
            .await
            .map_err(|e| {
                ControllerError::api(format!("the finalizers of {namespace}/{name}"), e)
            })?;
        self.exported.wrote("finalizers");
        Ok(())
    }

    /// Keeps a copy for a release. A copy that is there already stays as it is.
    ///
    /// # Errors
    /// The API server failed or refused.
    pub async fn save(
        &self,
        release: &PromptRelease,
        name: &str,
        content: &Saved,
    ) -> Result<(), ControllerError> {
        self.term()?;
        let namespace = release.namespace().unwrap_or_default();
        let copy = copy(release, name, content);
        match self.api::<ControllerRevision>(&namespace).create(&PostParams::default(), &copy).await
        {
            Ok(_) => {
                self.exported.wrote("copy");
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
            Err(error) => Err(ControllerError::api(
                format!("the copy {namespace}/{}", copy.name_any()),
                error,
            )),
        }
    }

    /// Drops one saved copy: exactly the one that was seen, not a later one of that name.
    ///
    /// # Errors
    /// The API server failed or refused.
    pub async fn drop_copy(&self, copy: &ControllerRevision) -> Result<(), ControllerError> {
        self.term()?;
        let (namespace, name) = (copy.namespace().unwrap_or_default(), copy.name_any());
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: copy.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        match self.api::<ControllerRevision>(&namespace).delete(&name, &params).await {
            Ok(_) => {
                self.exported.wrote("copy");
                Ok(())
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(ControllerError::api(format!("the copy {namespace}/{name}"), error)),
        }
    }

    /// Tells people. What could not be told is logged: the status has it too.
    pub async fn announce<K: Kind>(&self, object: &K, warning: bool, reason: &str, note: &str) {
        self.exported.announced(reason);
        let name = object.name_any();
        tracing::info!(name, namespace = object.namespace(), reason, "{note}");
        let event = Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            note: Some(truncate(note, LONGEST_NOTE)),
            action: "Release".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &object.object_ref(&())).await {
            tracing::warn!(name, reason, "the Event could not be written: {error}");
        }
    }
}

fn copy(release: &PromptRelease, name: &str, content: &Saved) -> ControllerRevision {
    let owner = release.name_any();
    let mut metadata = ObjectMeta {
        name: Some(copy_name(&owner, name)),
        namespace: release.namespace(),
        owner_references: release.controller_owner_ref(&()).map(|mut reference| {
            // Needs no permission on the finalizers of releases.
            reference.block_owner_deletion = None;
            vec![reference]
        }),
        ..ObjectMeta::default()
    };
    let labels = [(keys::RELEASE_LABEL, owner), (keys::REVISION_LABEL, name.to_owned())];
    metadata.labels = Some(labels.into_iter().map(|(k, v)| (k.to_owned(), v)).collect());
    ControllerRevision {
        metadata,
        revision: Some(1),
        data: k8s_openapi::apimachinery::pkg::runtime::RawExtension(
            serde_json::to_value(content).unwrap_or(Value::Null),
        ),
    }
}
