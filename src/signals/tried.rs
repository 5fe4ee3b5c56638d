//! Objects of the API server, read one by one. A list is read as a whole otherwise, so a single
//! object that can not be read (its schema is too deep, a later version has written a value that
//! this one does not know) would fail the list of all: an operator that starts would never lead,
//! and a gateway that starts would never be ready.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client, Resource,
    api::ListParams,
    core::{ObjectList, Request},
    runtime::{
        reflector::{ObjectRef, Store},
        watcher::Event,
    },
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned, de::Error as _};
use serde_json::value::RawValue;

use super::index::Named;

/// An object, or why it can not be read.
#[derive(Clone, Debug)]
pub(super) enum Tried<K> {
    Read(K),
    Unread { metadata: Box<ObjectMeta>, why: String },
}

/// What there is to know of an object that can not be read.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    metadata: ObjectMeta,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Tried<K> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        // Text is not nested: however deep it is, it is found to its end.
        let text = Box::<RawValue>::deserialize(from)?;
        match serde_json::from_str(text.get()) {
            Ok(object) => Ok(Self::Read(object)),
            Err(_) => {
                let Head { metadata } =
                    serde_json::from_str(text.get()).map_err(D::Error::custom)?;
                Ok(Self::Unread { metadata: Box::new(metadata), why: why::<K>(text.get()) })
            }
        }
    }
}

/// What a list of the API server has.
#[derive(Debug)]
pub struct Listed<K> {
    pub objects: Vec<K>,
    /// A line for each object that can not be read.
    pub unread: Vec<String>,
    /// The token for the next page, if there is one.
    pub more: Option<String>,
}

/// Lists the objects of `api`; one that can not be read does not hide the others.
///
/// # Errors
/// The API server failed or refused.
pub async fn list<K>(client: &Client, api: &Api<K>, page: &ListParams) -> kube::Result<Listed<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned,
{
    let mut request =
        Request::new(api.resource_url()).list(page).map_err(kube::Error::BuildRequest)?;
    request.extensions_mut().insert("list");
    let list: ObjectList<Tried<K>> = client.request(request).await?;
    let more = list.metadata.continue_.filter(|more| !more.is_empty());
    let mut listed = Listed { objects: Vec::new(), unread: Vec::new(), more };
    for item in list.items {
        match item {
            Tried::Read(object) => listed.objects.push(object),
            Tried::Unread { metadata, why } => {
                let (kind, name) = (K::kind(&()), named(&metadata).key());
                listed.unread.push(format!("{kind} {name} can not be read: {why}"));
            }
        }
    }
    Ok(listed)
}

/// Where an object can not be read. What stands there is not quoted: it may be a secret.
fn why<K: DeserializeOwned>(text: &str) -> String {
    let mut from = serde_json::Deserializer::from_str(text);
    let read: Result<K, _> = serde_path_to_error::deserialize(&mut from);
    match read {
        Err(error) if error.inner().to_string().starts_with("recursion limit") => {
            format!("{} is nested too deep (128 levels are read)", error.path())
        }
        Err(error) => format!("this version does not know what {} says", error.path()),
        Ok(_) => "it can not be read".to_owned(),
    }
}

impl<K: Resource<DynamicType = ()>> Resource for Tried<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Read(object) => object.meta(),
            Self::Unread { metadata, .. } => metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Read(object) => object.meta_mut(),
            Self::Unread { metadata, .. } => metadata,
        }
    }
}

/// Why objects can not be read.
pub(super) type Unread = BTreeMap<Named, String>;

/// What a watch tells, without what can not be read: that stays as it was in `store`, and is
/// noted in `unread`. What was never read is in no store, and is not deleted for all that.
#[derive(Debug, Default)]
pub(super) struct Sieve {
    /// Of the list that comes in.
    listed: Unread,
}

impl Sieve {
    pub(super) fn pass<K>(
        &mut self,
        event: Event<Tried<K>>,
        store: &Store<K>,
        unread: &mut Unread,
    ) -> Option<Event<K>>
    where
        K: Resource<DynamicType = ()> + Clone + 'static,
    {
        let known = |metadata: &ObjectMeta| {
            let name = metadata.name.clone().unwrap_or_default();
            let mut known = ObjectRef::new(&name);
            known.namespace.clone_from(&metadata.namespace);
            store.get(&known).map(|object| (*object).clone())
        };
        match event {
            Event::Init => {
                self.listed.clear();
                Some(Event::Init)
            }
            Event::InitApply(Tried::Read(object)) => Some(Event::InitApply(object)),
            Event::InitApply(Tried::Unread { metadata, why }) => {
                self.listed.insert(named(&metadata), why);
                known(&metadata).map(Event::InitApply)
            }
            Event::InitDone => {
                *unread = std::mem::take(&mut self.listed);
                Some(Event::InitDone)
            }
            Event::Apply(Tried::Read(object)) => {
                unread.remove(&named(object.meta()));
                Some(Event::Apply(object))
            }
            Event::Apply(Tried::Unread { metadata, why }) => {
                unread.insert(named(&metadata), why);
                None
            }
            Event::Delete(object) => {
                unread.remove(&named(object.meta()));
                match object {
                    Tried::Read(object) => Some(Event::Delete(object)),
                    Tried::Unread { metadata, .. } => known(&metadata).map(Event::Delete),
                }
            }
        }
    }
}

fn named(metadata: &ObjectMeta) -> Named {
    let (namespace, name) = (metadata.namespace.clone(), metadata.name.clone());
    Named::new(namespace.unwrap_or_default(), name.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use kube::{core::WatchEvent, runtime::reflector::store};
    use serde_json::{Value, json};

    use super::*;
    use crate::api::{LLMDeployment, PromptRelease, PromptVersion};

    fn backend(name: &str, limits: Value) -> Value {
        json!({
            "apiVersion": "serinus.dev/v1alpha1", "kind": "LLMDeployment",
            "metadata": {"name": name, "namespace": "shop", "resourceVersion": "1"},
            "spec": {"provider": "vllm", "model": "m",
                     "serving": {"image": "x", "resources": {"limits": limits}}},
        })
    }

    fn deep(levels: usize) -> String {
        "[".repeat(levels) + &"]".repeat(levels)
    }

    /// As kube reads it.
    fn listed<K: DeserializeOwned + Clone>(items: &[String]) -> Vec<Tried<K>> {
        let list = format!(
            r#"{{"apiVersion": "v1", "kind": "List", "metadata": {{"resourceVersion": "7"}}, "items": [{}]}}"#,
            items.join(", ")
        );
        serde_json::from_str::<ObjectList<Tried<K>>>(&list).unwrap().items
    }

    #[test]
    fn one_that_can_not_be_read_is_named_and_the_others_are_read() {
        let items = [backend("good", json!({})).to_string(), backend("bad", json!(7)).to_string()];
        let [Tried::Read(good), Tried::Unread { metadata, why }] =
            &listed::<LLMDeployment>(&items)[..]
        else {
            panic!("{items:?}")
        };
        assert_eq!(good.metadata.name.as_deref(), Some("good"));
        assert_eq!(
            (named(metadata).key(), why.contains("spec")),
            ("shop/bad".into(), true),
            "{why}"
        );
        // Deeper than a parser goes, in what a definition does not describe.
        let prompt = json!({"metadata": {"name": "deep", "namespace": "shop"},
            "spec": {"prompt": "p", "messages": [], "variables": {"x": "DEEP"}}});
        let release = json!({"metadata": {"name": "deep", "namespace": "shop"},
            "spec": {"promptRef": {"name": "p"}, "backendRef": {"name": "b"}},
            "status": {"evidence": [{"instance": "a", "stable": {"z": "DEEP"}, "canary": {}}]}});
        let with = |text: Value| text.to_string().replace("\"DEEP\"", &deep(500));
        for found in [
            listed::<PromptVersion>(&[with(prompt)]).remove(0).map(),
            listed::<PromptRelease>(&[with(release)]).remove(0).map(),
        ] {
            assert!(found.is_err_and(|why| why.contains("too deep")));
        }
    }

    impl<K> Tried<K> {
        fn map(self) -> Result<(), String> {
            match self {
                Self::Read(_) => Ok(()),
                Self::Unread { why, .. } => Err(why),
            }
        }
    }

    #[test]
    fn a_value_is_not_quoted() {
        let bad = backend("bad", json!("sk-0123456789abcdef"));
        let why = listed::<LLMDeployment>(&[bad.to_string()]).remove(0).map().unwrap_err();
        assert!(!why.contains("sk-"), "{why}");
    }

    #[test]
    fn what_can_not_be_read_stays_as_it_was_and_is_not_deleted() {
        let (reader, mut writer) = store();
        let (mut sieve, mut unread) = (Sieve::default(), Unread::new());
        let read = |limits: Value| {
            let object = backend("a", limits);
            let line = json!({"type": "MODIFIED", "object": object}).to_string();
            match serde_json::from_str::<WatchEvent<Tried<LLMDeployment>>>(&line).unwrap() {
                WatchEvent::Modified(object) => object,
                other => panic!("{other:?}"),
            }
        };
        let mut pass = |event, unread: &mut Unread| {
            let passed = sieve.pass(event, &reader, unread);
            if let Some(event) = &passed {
                writer.apply_watcher_event(event);
            }
            passed.is_some()
        };
        let key = ObjectRef::new("a").within("shop");
        // Never read: it is not there, and known.
        for event in [Event::Init, Event::InitApply(read(json!(7))), Event::InitDone] {
            pass(event, &mut unread);
        }
        assert!(reader.get(&key).is_none() && unread.contains_key(&Named::new("shop", "a")));
        assert!(pass(Event::Apply(read(json!({}))), &mut unread));
        assert!(reader.get(&key).is_some() && unread.is_empty());
        // Read once: it stays, also when all is listed anew.
        assert!(!pass(Event::Apply(read(json!(7))), &mut unread));
        for event in [Event::Init, Event::InitApply(read(json!(7))), Event::InitDone] {
            assert!(pass(event, &mut unread));
            assert_eq!(unread.len(), 1);
        }
        assert!(reader.get(&key).is_some());
        assert!(pass(Event::Delete(read(json!(7))), &mut unread));
        assert!(reader.get(&key).is_none() && unread.is_empty());
    }
}
