//! The only code that writes to the API server. Every write asks first whether this
//! process leads, so that one that is not sure does not write.

mod events;
pub mod leadership;

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
    core::NamespaceResourceScope,
    runtime::events::{Event, EventType, Reporter},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use self::{events::Events, leadership::Leadership};
use super::{error::ControllerError, exported::Exported, problems::News, superseded::Superseded};
use crate::{
    api::{
        PromptRelease, ReleaseSnapshot, ReleaseSnapshotSpec,
        conditions::truncate,
        keys,
        snapshot::{Remembered, Saved},
    },
    signals::{
        api_server::said,
        tried::{self, Tried},
    },
};

/// The longest note that the API server accepts on an Event.
const LONGEST_NOTE: usize = 1024;

/// Writes, while this process leads.
pub struct Cluster {
    client: Client,
    /// The one that is watched; none: all.
    namespace: Option<String>,
    leadership: Arc<Leadership>,
    events: Events,
    exported: Arc<Exported>,
    superseded: Superseded,
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

/// A write of which nobody needs the answer: that is the object, which may hold what can not be read.
fn taken<T>(answer: kube::Result<T>) -> kube::Result<()> {
    match answer {
        Ok(_) | Err(kube::Error::SerdeError(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

impl Cluster {
    /// Writes with `client` while `leadership` holds, in one namespace or in all.
    pub fn new(
        client: Client,
        namespace: Option<String>,
        leadership: Arc<Leadership>,
        exported: Arc<Exported>,
    ) -> Self {
        let reporter = Reporter {
            controller: "serinus.dev/operator".to_owned(),
            instance: Some(leadership.identity().to_owned()),
        };
        let events = Events::new(&client, reporter);
        Self { client, namespace, leadership, events, exported, superseded: Superseded::default() }
    }

    /// Whether this process leads.
    pub fn leadership(&self) -> &Leadership {
        &self.leadership
    }

    /// What was written, and is not yet seen.
    pub fn superseded(&self) -> &Superseded {
        &self.superseded
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

    /// The same, whose answers are read without what somebody else has noted on an object.
    fn tried<K: Kind>(&self, namespace: &str) -> Api<Tried<K>> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Replaces the status of `object`, which carries the resourceVersion that was
    /// decided on; answers the object as it is now.
    ///
    /// # Errors
    /// Somebody wrote the object meanwhile, or the API server failed.
    pub async fn write_status<K: Kind>(&self, object: &K) -> Result<K, ControllerError> {
        let written = self.replace_status(object, false).await?;
        self.exported.wrote("status");
        if written.resource_version() != object.resource_version() {
            self.superseded.add(object);
        }
        Ok(written)
    }

    /// Whether the API server would take this status now, from who may write it, by rights,
    /// schema, term and version. Nothing is changed (a dry run).
    ///
    /// # Errors
    /// It would not, or failed.
    pub async fn would_take_status<K: Kind>(&self, object: &K) -> Result<(), ControllerError> {
        self.replace_status(object, true).await?;
        Ok(())
    }

    async fn replace_status<K: Kind>(
        &self,
        object: &K,
        dry_run: bool,
    ) -> Result<K, ControllerError> {
        self.term()?;
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let post = PostParams { field_manager: Some(keys::FIELD_MANAGER.to_owned()), dry_run };
        let kind = K::kind(&()).into_owned();
        let sent = Tried::Read(object.clone());
        let answer = self.tried(&namespace).replace_status(&name, &post, &sent).await;
        let answer = answer.map_err(|e| {
            ControllerError::api(format!("the status of {kind} {namespace}/{name}"), e)
        })?;
        Ok(match answer {
            Tried::Read(written) => written,
            // It was taken all the same.
            Tried::Unread { metadata, .. } => {
                let mut written = object.clone();
                written.meta_mut().resource_version = metadata.resource_version;
                written
            }
        })
    }

    /// The objects of a kind that have a label, where this operator watches.
    ///
    /// # Errors
    /// The API server failed or refused.
    pub async fn list<K: Kind>(&self, label: &str) -> Result<Vec<K>, ControllerError> {
        let api: Api<K> = match &self.namespace {
            Some(namespace) => self.api(namespace),
            None => Api::all(self.client.clone()),
        };
        let found = tried::list(&self.client, &api, &ListParams::default().labels(label)).await;
        let found =
            found.map_err(|e| ControllerError::api(format!("the list of {}", K::kind(&())), e))?;
        for why in found.unread {
            tracing::warn!("{why}");
        }
        Ok(found.objects)
    }

    /// An object, if it exists.
    ///
    /// # Errors
    /// The API server failed or refused.
    pub async fn get<K: Kind>(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<K>, ControllerError> {
        let what = || format!("{} {namespace}/{name}", K::kind(&()));
        let found = self.tried::<K>(namespace).get_opt(name).await;
        match found.map_err(|e| ControllerError::api(what(), e))? {
            None => Ok(None),
            Some(Tried::Read(object)) => Ok(Some(object)),
            Some(Tried::Unread { why, .. }) => Err(ControllerError::Unread { what: what(), why }),
        }
    }

    /// Replaces the owners of `object`, provided that it did not change meanwhile.
    ///
    /// # Errors
    /// The API server failed or refused.
    pub async fn set_owners<K: Kind>(
        &self,
        object: &K,
        owners: &[OwnerReference],
    ) -> Result<(), ControllerError> {
        self.term()?;
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let body = json!({"metadata": {
            "ownerReferences": owners,
            "resourceVersion": object.resource_version(),
        }});
        let api = self.api::<K>(&namespace);
        let patched = api.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(body)).await;
        taken(patched)
            .map_err(|e| ControllerError::api(format!("the owners of {namespace}/{name}"), e))?;
        self.exported.wrote("owners");
        Ok(())
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
        let what = || format!("{} {namespace}/{name}", K::kind(&()));
        let applied = self.tried::<K>(&namespace).patch(&name, &params, &Patch::Apply(body)).await;
        let applied = applied.map_err(|e| ControllerError::api(what(), e))?;
        self.exported.wrote("apply");
        match applied {
            Tried::Read(applied) => Ok(applied),
            Tried::Unread { why, .. } => Err(ControllerError::Unread { what: what(), why }),
        }
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
        self.tried::<K>(&namespace)
            .patch(&name, &PatchParams::default(), &Patch::Merge(body))
            .await
            .map_err(|e| {
                ControllerError::api(format!("the finalizers of {namespace}/{name}"), e)
            })?;
        self.exported.wrote("finalizers");
        Ok(())
    }

    /// Keeps a copy for a release, with what is remembered of the release. A copy that is
    /// there already stays as it is: answers whether it is new.
    ///
    /// # Errors
    /// The API server failed, or refused: for what the copy contains, or for another reason.
    pub async fn save(
        &self,
        release: &PromptRelease,
        name: &str,
        content: &Saved,
        remembered: Option<&Remembered>,
    ) -> Result<bool, ControllerError> {
        self.term()?;
        let namespace = release.namespace().unwrap_or_default();
        let copy = copy(release, name, content, remembered)?;
        match self.api::<ReleaseSnapshot>(&namespace).create(&PostParams::default(), &copy).await {
            Ok(_) => {
                self.exported.wrote("copy");
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(false),
            Err(error) => Err(ControllerError::kept(
                format!("the snapshot {namespace}/{}", copy.name_any()),
                error,
            )),
        }
    }

    /// Notes on a saved copy what is remembered of its release.
    ///
    /// # Errors
    /// The API server failed or refused.
    pub async fn remember(
        &self,
        namespace: &str,
        copy: &str,
        remembered: &Remembered,
    ) -> Result<(), ControllerError> {
        self.term()?;
        let body = json!({"metadata": {
            "annotations": {keys::REMEMBERED_ANNOTATION: text(remembered)},
            "labels": {keys::REMEMBERED_LABEL: "true"},
        }});
        let params =
            PatchParams { field_manager: Some(keys::FIELD_MANAGER.to_owned()), ..<_>::default() };
        let api = self.api::<ReleaseSnapshot>(namespace);
        match taken(api.patch_metadata(copy, &params, &Patch::Merge(body)).await) {
            Ok(()) => {
                self.exported.wrote("copy");
                Ok(())
            }
            // It is healed by the next look.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => {
                Err(ControllerError::kept(format!("the snapshot {namespace}/{copy}"), error))
            }
        }
    }

    /// Gives a saved copy the labels that it was written with, if somebody has taken them away:
    /// people find the copies of a release by them.
    ///
    /// # Errors
    /// The API server failed or refused.
    pub async fn label(&self, copy: &ReleaseSnapshot) -> Result<(), ControllerError> {
        let missing = missing_labels(copy);
        if missing.is_empty() {
            return Ok(());
        }
        self.term()?;
        let (namespace, name) = (copy.namespace().unwrap_or_default(), copy.name_any());
        let body = json!({"metadata": {"labels": missing, "uid": copy.uid()}});
        let params =
            PatchParams { field_manager: Some(keys::FIELD_MANAGER.to_owned()), ..<_>::default() };
        let api = self.api::<ReleaseSnapshot>(&namespace);
        match taken(api.patch_metadata(&name, &params, &Patch::Merge(body)).await) {
            Ok(()) => {
                self.exported.wrote("copy");
                tracing::info!(namespace, name, "labels of a snapshot were gone: written again");
                Ok(())
            }
            // It is another one by now, or none.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => {
                Err(ControllerError::kept(format!("the labels of {namespace}/{name}"), error))
            }
        }
    }

    /// Drops one saved copy: exactly the one that was seen, not a later one of that name.
    ///
    /// # Errors
    /// The API server failed or refused.
    pub async fn drop_copy(&self, copy: &ReleaseSnapshot) -> Result<(), ControllerError> {
        self.drop_object(copy, "copy").await
    }

    /// Deletes what Serinus made: exactly the object that was seen, not a later one of that
    /// name.
    ///
    /// # Errors
    /// The API server failed or refused.
    pub async fn drop_object<K: Kind>(
        &self,
        object: &K,
        counted_as: &'static str,
    ) -> Result<(), ControllerError> {
        self.term()?;
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: object.uid(), resource_version: None }),
            ..DeleteParams::background()
        };
        match taken(self.api::<K>(&namespace).delete(&name, &params).await) {
            Ok(()) => {
                self.exported.wrote(counted_as);
                Ok(())
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => {
                let kind = K::kind(&()).into_owned();
                Err(ControllerError::api(format!("{kind} {namespace}/{name}"), error))
            }
        }
    }

    /// Tells people that something is wrong with a release, or that it is over.
    pub async fn tell(&self, release: &PromptRelease, news: &News) {
        let (name, namespace) = (release.name_any(), release.namespace());
        let News { stands, warning, reason, note } = news;
        if *stands {
            tracing::warn!(name, namespace, reason, "{note}");
        } else {
            tracing::info!(name, namespace, reason, "{note}");
        }
        self.publish(release, *warning, reason, note).await;
    }

    /// Tells people. What could not be told is logged: the status has it too.
    pub async fn announce<K: Kind>(&self, object: &K, warning: bool, reason: &str, note: &str) {
        let name = object.name_any();
        tracing::info!(name, namespace = object.namespace(), reason, "{note}");
        self.publish(object, warning, reason, note).await;
    }

    /// Writes an Event.
    async fn publish<K: Kind>(&self, object: &K, warning: bool, reason: &str, note: &str) {
        self.exported.announced(reason);
        let name = object.name_any();
        let event = Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            note: Some(truncate(note, LONGEST_NOTE)),
            action: "Release".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.events.publish(&event, &object.object_ref(&())).await {
            tracing::warn!(name, reason, "the Event could not be written: {}", said(&error).0);
        }
    }
}

fn text(remembered: &Remembered) -> String {
    // It has no map with keys that JSON does not know: writing it does not fail.
    serde_json::to_string(remembered).unwrap_or_default()
}

/// A saved copy. The release does not own it: what the release served and what failed in it
/// outlive the object (docs/decisions/0011).
fn copy(
    release: &PromptRelease,
    name: &str,
    content: &Saved,
    remembered: Option<&Remembered>,
) -> Result<ReleaseSnapshot, ControllerError> {
    let unwritable = |reason: String| ControllerError::Copy { name: name.to_owned(), reason };
    let content = serde_json::to_value(content).map_err(|e| unwritable(e.to_string()))?;
    let spec = ReleaseSnapshotSpec::new(&release.name_any(), name, content)
        .map_err(|e| unwritable(e.to_string()))?;
    let note = remembered.map(|note| (keys::REMEMBERED_ANNOTATION.to_owned(), text(note)));
    let labels = labels_of(&spec, note.is_some());
    let metadata = ObjectMeta {
        name: Some(spec.name()),
        namespace: release.namespace(),
        annotations: note.map(|note| [note].into()),
        labels: Some(labels),
        ..ObjectMeta::default()
    };
    Ok(ReleaseSnapshot { metadata, spec })
}

/// The labels of a saved copy. They are for people: nothing is decided by them.
fn labels_of(spec: &ReleaseSnapshotSpec, has_note: bool) -> BTreeMap<String, String> {
    let note = has_note.then(|| (keys::REMEMBERED_LABEL.to_owned(), "true".to_owned()));
    let release = (keys::RELEASE_LABEL.to_owned(), spec.release.clone());
    let revision = (keys::REVISION_LABEL.to_owned(), spec.revision.clone());
    [release, revision].into_iter().chain(note).collect()
}

/// The labels that a saved copy should have and has not.
fn missing_labels(copy: &ReleaseSnapshot) -> BTreeMap<String, String> {
    let has_note = copy.annotations().contains_key(keys::REMEMBERED_ANNOTATION);
    let mut labels = labels_of(&copy.spec, has_note);
    labels.retain(|name, value| copy.labels().get(name) != Some(value));
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_somebody_took_from_a_snapshot_are_known_to_be_missing() {
        let spec = ReleaseSnapshotSpec {
            release: "answers".into(),
            revision: "0123".into(),
            ..ReleaseSnapshotSpec::default()
        };
        let mut copy = ReleaseSnapshot::new("answers-0123", spec);
        copy.annotations_mut().insert(keys::REMEMBERED_ANNOTATION.into(), "{}".into());
        let all = missing_labels(&copy);
        let expected = [
            (keys::RELEASE_LABEL, "answers"),
            (keys::REMEMBERED_LABEL, "true"),
            (keys::REVISION_LABEL, "0123"),
        ];
        assert!(all.iter().map(|(name, value)| (&**name, &**value)).eq(expected), "{all:?}");
        copy.labels_mut().extend(all.clone());
        copy.labels_mut().insert("team".into(), "theirs".into());
        assert!(missing_labels(&copy).is_empty());
        copy.labels_mut().insert(keys::RELEASE_LABEL.into(), "another".into());
        assert_eq!(missing_labels(&copy)[keys::RELEASE_LABEL], "answers");
        // Without a note there is nothing to remember.
        copy.annotations_mut().clear();
        copy.labels_mut().clear();
        assert_eq!(missing_labels(&copy).len(), 2);
    }
}
