//! What a gateway keeps of the objects that it follows: with ten thousand releases, their
//! histories alone would be most of its memory.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    NamespaceResourceScope,
    api::discovery::v1::{Endpoint, EndpointSlice},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Resource, ResourceExt};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _},
};
use serde_json::Value;

use crate::{
    api::{
        LLMDeployment, LLMDeploymentSpec, PromptRelease, ReleaseSnapshot, conditions,
        prompt_release::{ResponseCache, RoutedVariant, Routing, RoutingSettings, VariantRole},
        snapshot::{PackedVariant, Saved},
    },
    gateway::notices::Notice,
    signals::tried,
};

/// An object of which only `T` is kept.
#[derive(Clone, Debug)]
pub(super) struct Kept<T> {
    /// What it is called, its uid and its resourceVersion; nothing else.
    metadata: ObjectMeta,
    pub what: T,
}

/// What is kept of an object.
pub(super) trait Part {
    type Whole: Resource<DynamicType = (), Scope = NamespaceResourceScope> + DeserializeOwned;

    fn of(whole: Self::Whole) -> Self;

    /// What can be used of an object that is not wholly understood.
    fn salvage(_: &Value) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }
}

impl<'de, T: Part> Deserialize<'de> for Kept<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let whole = Value::deserialize(deserializer)?;
        let text = |field| whole["metadata"][field].as_str().map(str::to_owned);
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        let what = match serde_path_to_error::deserialize::<_, T::Whole>(&whole) {
            Ok(object) => T::of(object),
            Err(error) => {
                let why = tried::in_words(&error);
                let salvaged = T::salvage(&whole).ok_or_else(|| D::Error::custom(&why))?;
                let ObjectMeta { name, namespace, .. } = &metadata;
                let kind = T::Whole::kind(&());
                tracing::warn!(?namespace, ?name, "this {kind} can not be read as a whole: {why}");
                salvaged
            }
        };
        Ok(Self { metadata, what })
    }
}

impl<T: Part> Resource for Kept<T> {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        T::Whole::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        T::Whole::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        T::Whole::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        T::Whole::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Of a release, where requests go.
#[derive(Clone, Debug)]
pub(super) struct Release {
    pub route: String,
    pub created: String,
    pub routing: Routing,
    /// The running canary, also while it is held out of routing.
    pub trial: Option<String>,
    pub other_backends: Vec<String>,
    pub cache: Option<ResponseCache>,
    /// Routed variants that can not be read, by revision, and why.
    pub unread: BTreeMap<String, String>,
    /// Why the operator gives it no routing. Of a release that is routed, or well, nothing is
    /// retained of its conditions.
    pub unserved: Option<Arc<Notice>>,
}

fn why_unserved(release: &PromptRelease) -> Option<Arc<Notice>> {
    let status = release.status.as_ref().filter(|status| status.routing.variants.is_empty())?;
    let ready = conditions::find(&status.conditions, conditions::types::READY)?;
    if ready.status == "True" {
        return None;
    }
    let namespace = release.namespace()?;
    let place = format!("PromptRelease {namespace}/{}", release.name_any());
    let notice = Notice::new(place, ready.reason.as_str(), ready.message.as_str());
    Some(Arc::new(Notice { route: Some((namespace, release.route())), ..notice }))
}

impl Part for Release {
    type Whole = PromptRelease;

    fn of(mut release: PromptRelease) -> Self {
        release.drop_copied_status();
        Self {
            unserved: why_unserved(&release),
            route: release.route(),
            created: release.creation_timestamp().map(|t| t.0.to_string()).unwrap_or_default(),
            other_backends: release.other_backends(),
            trial: release
                .status
                .as_ref()
                .and_then(|s| Some(s.canary.as_ref()?.variant.revision.clone())),
            routing: release.status.map(|status| status.routing).unwrap_or_default(),
            cache: release.spec.cache,
            unread: BTreeMap::new(),
        }
    }

    /// A newer version wrote it, with a field or a role of its own: stable serves, if at
    /// least that can be read, and the rest is told.
    fn salvage(whole: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let (metadata, spec, status) = (&whole["metadata"], &whole["spec"], &whole["status"]);
        let (mut variants, mut unread) = (vec![], BTreeMap::new());
        for variant in status["routing"]["variants"].as_array()? {
            match RoutedVariant::deserialize(variant) {
                Ok(variant) => variants.push(variant),
                Err(error) => _ = unread.insert(text(&variant["revision"])?, error.to_string()),
            }
        }
        variants.iter().find(|variant| variant.role == VariantRole::Stable)?;
        let others = spec["fallbackBackendRefs"].as_array().into_iter().flatten();
        Some(Self {
            route: text(&spec["route"]).or_else(|| text(&metadata["name"]))?,
            created: text(&metadata["creationTimestamp"]).unwrap_or_default(),
            trial: text(&status["canary"]["revision"]),
            other_backends: others.filter_map(|other| text(&other["name"])).collect(),
            routing: Routing {
                generation: status["routing"]["generation"].as_i64()?,
                variants,
                settings: RoutingSettings::deserialize(&status["routing"]["settings"])
                    .unwrap_or_default(),
                observed_by: String::new(),
            },
            cache: ResponseCache::deserialize(&spec["cache"]).ok(),
            unread,
            unserved: None,
        })
    }
}

/// Of a backend, what was asked for; shared by the routes that use it.
impl Part for Arc<LLMDeploymentSpec> {
    type Whole = LLMDeployment;

    fn of(backend: LLMDeployment) -> Self {
        Self::new(backend.spec)
    }
}

/// A copy that a release saved.
#[derive(Clone, Debug)]
pub(super) struct SavedCopy {
    /// Whose it is.
    pub release: String,
    /// None for a policy; otherwise the variant, or why it can not be read.
    pub variant: Option<Result<Arc<PackedVariant>, String>>,
}

impl Part for SavedCopy {
    type Whole = ReleaseSnapshot;

    fn of(copy: ReleaseSnapshot) -> Self {
        let name = copy.name_any();
        let variant = match copy.spec.content() {
            Ok(Saved::Variant(variant)) => Some(Ok(Arc::new(PackedVariant::from(&variant)))),
            Ok(Saved::Policy(_)) => None,
            Err(error) => {
                tracing::debug!(name, "the snapshot can not be read: {error}");
                Some(Err(error.to_string()))
            }
        };
        Self { release: copy.spec.release, variant }
    }
}

/// Of the endpoints of a Service, their addresses and whether they serve.
pub(super) fn trim_slice(slice: &mut EndpointSlice) {
    slice.metadata.annotations = None;
    slice.metadata.owner_references = None;
    for endpoint in slice.endpoints.iter_mut().flatten() {
        let (addresses, conditions) =
            (std::mem::take(&mut endpoint.addresses), endpoint.conditions.take());
        *endpoint = Endpoint { addresses, conditions, ..Endpoint::default() };
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::signals::tried::Tried;

    #[test]
    fn of_conditions_only_why_a_release_has_no_routing_is_retained() {
        let unserved = |ready: &str, variants: &serde_json::Value| {
            let release = json!({
                "apiVersion": "serinus.dev/v1alpha1",
                "kind": "PromptRelease",
                "metadata": {"name": "r", "namespace": "ns"},
                "spec": {
                    "route": "chat", "promptRef": {"name": "p"}, "backendRef": {"name": "b"},
                },
                "status": {
                    "routing": {"generation": 1, "variants": variants},
                    "conditions": [{
                        "type": "Ready", "status": ready, "reason": "PromptNotFound",
                        "message": "PromptVersion p does not\nexist",
                        "lastTransitionTime": "2026-01-01T00:00:00Z",
                    }],
                },
            });
            let kept: Kept<Release> = serde_json::from_str(&release.to_string()).unwrap();
            kept.what.unserved
        };
        let (none, some) = (json!([]), json!([{"revision": "1", "role": "stable", "weight": 100}]));
        let told = unserved("False", &none).unwrap();
        assert_eq!(
            told.to_string(),
            "PromptRelease ns/r: PromptNotFound: PromptVersion p does not exist"
        );
        assert_eq!(told.route, Some(("ns".to_owned(), "chat".to_owned())));
        assert_eq!(unserved("Unknown", &none), Some(told), "it waits, and is not served either");
        assert_eq!((unserved("True", &none), unserved("False", &some)), (None, None));
    }

    #[test]
    fn a_list_holds_the_rest_when_one_object_can_not_be_read() {
        let release = |name: &str, role: &str| {
            json!({
                "apiVersion": "serinus.dev/v1alpha1",
                "kind": "PromptRelease",
                "metadata": {
                    "name": name, "namespace": "ns", "uid": "u", "resourceVersion": "7",
                    "labels": {"a": "b"},
                },
                "spec": {
                    "promptRef": {"name": "p"}, "backendRef": {"name": "b"},
                    "policyRef": {"name": "c"},
                },
                "status": {"routing": {"generation": 1, "variants": [
                    {"revision": "r", "role": role, "weight": 100},
                ]}},
            })
        };
        let mut unknown_field = release("next", "stable");
        unknown_field["spec"]["ofNextYear"] = json!(true);
        unknown_field["status"]["routing"]["variants"]
            .as_array_mut()
            .unwrap()
            .push(json!({"revision": "s", "role": "a-role-of-next-year", "weight": 0}));
        let list = [release("old", "stable"), release("new", "a-role-of-next-year"), unknown_field];
        let kept: Vec<Tried<Kept<Release>>> =
            serde_json::from_str(&json!(list).to_string()).unwrap();
        let [Tried::Read(old), Tried::Unread { metadata, why }, Tried::Read(next)] = &kept[..]
        else {
            panic!("{kept:?}")
        };
        assert_eq!((metadata.name.as_deref(), metadata.uid.as_deref()), (Some("new"), Some("u")));
        assert_eq!(why, "this version does not know what status.routing.variants[0].role says");
        let read = |kept: &Kept<Release>| {
            let release = &kept.what;
            let (route, uid) = (release.route.clone(), kept.metadata.uid.clone());
            (uid.unwrap(), route, release.routing.variants.len(), release.unread.len())
        };
        assert_eq!(read(old), ("u".into(), "old".into(), 1, 0));
        assert_eq!(
            read(next),
            ("u".into(), "next".into(), 1, 1),
            "stable serves, the rest is told"
        );
        assert_eq!((old.resource_version().as_deref(), old.labels().len()), (Some("7"), 0));
    }
}
