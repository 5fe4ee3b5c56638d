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
use serde::{
    Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned, ser::Error as _,
};
use serde_json::value::RawValue;
use serde_path_to_error::Segment;

use super::index::Named;

/// An object, or why it can not be read.
#[derive(Clone, Debug)]
pub enum Tried<K> {
    /// It was read.
    Read(K),
    /// It can not be read: what it is called, and why.
    Unread { metadata: Box<ObjectMeta>, why: String },
}

/// What there is to know of an object that can not be read.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    metadata: HeadOfMetadata,
}

/// Its metadata without what may be nested: what is passed over here is not read at all.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct HeadOfMetadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
}

impl From<HeadOfMetadata> for ObjectMeta {
    fn from(head: HeadOfMetadata) -> Self {
        let HeadOfMetadata { name, namespace, uid, resource_version } = head;
        Self { name, namespace, uid, resource_version, ..Self::default() }
    }
}

impl<K: Serialize> Serialize for Tried<K> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Read(object) => object.serialize(to),
            Self::Unread { why, .. } => Err(S::Error::custom(why)),
        }
    }
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Tried<K> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        // Text is not nested: however deep it is, it is found to its end. kube reads objects from
        // text in memory, which is borrowed here.
        let text = <&RawValue>::deserialize(from)?;
        if let Ok(object) = serde_json::from_str(text.get()) {
            return Ok(Self::Read(object));
        }
        // The API server notes who wrote each field, as deep as the fields are, and whoever may
        // write an object may write these notes. Nobody here reads them.
        let text = without_managed_fields(text.get()).unwrap_or_else(|| text.get().to_owned());
        if let Ok(object) = serde_json::from_str(&text) {
            return Ok(Self::Read(object));
        }
        // Without a name it is one that nobody can ask about, and hides no other.
        let Head { metadata } = serde_json::from_str(&text).unwrap_or_default();
        Ok(Self::Unread { metadata: Box::new(metadata.into()), why: why::<K>(&text) })
    }
}

/// An object without `metadata.managedFields`.
fn without_managed_fields(text: &str) -> Option<String> {
    let mut object: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
    let mut metadata: BTreeMap<String, &RawValue> =
        serde_json::from_str(object.get("metadata")?.get()).ok()?;
    metadata.remove("managedFields")?;
    let metadata = serde_json::value::to_raw_value(&metadata).ok()?;
    object.insert("metadata".to_owned(), &metadata);
    serde_json::to_string(&object).ok()
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
    read.map_or_else(|error| in_words(&error), |_| "it can not be read".to_owned())
}

const UNKNOWN: &str = "this version does not know what";

/// Where it can not be read, from an error of reading it.
pub fn in_words(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let inner = error.inner().to_string();
    if inner.starts_with(UNKNOWN) {
        // What is kept of an object in parts has said it.
        inner
    } else if inner.starts_with("recursion limit") {
        format!("{} is nested too deep (128 levels are read)", place(error.path()))
    } else {
        format!("{UNKNOWN} {} says", place(error.path()))
    }
}

/// A path as far as its parts are names of fields: keys of a map are the text of whoever wrote
/// them.
fn place(path: &serde_path_to_error::Path) -> String {
    const MOST: usize = 8;
    let is_field = |key: &str| key.len() <= 30 && key.chars().all(|c| c.is_ascii_alphabetic());
    let mut place = String::new();
    for (count, segment) in path.iter().enumerate() {
        match segment {
            Segment::Map { key } if count < MOST && is_field(key) => {
                let dot = if place.is_empty() { "" } else { "." };
                place.extend([dot, key]);
            }
            Segment::Seq { index } if count < MOST => place.extend([format!("[{index}]")]),
            _ => {
                place.push_str(" (within)");
                break;
            }
        }
    }
    if place.is_empty() { "it".to_owned() } else { place }
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

/// An event, if it tells of what can be read.
pub(super) fn read<K>(event: Event<Tried<K>>) -> Option<Event<K>> {
    let object = |tried| match tried {
        Tried::Read(object) => Some(object),
        Tried::Unread { .. } => None,
    };
    Some(match event {
        Event::Init => Event::Init,
        Event::InitApply(tried) => Event::InitApply(object(tried)?),
        Event::InitDone => Event::InitDone,
        Event::Apply(tried) => Event::Apply(object(tried)?),
        Event::Delete(tried) => Event::Delete(object(tried)?),
    })
}

/// The reason of an object that can not be read.
pub const NOT_READ: &str = "ObjectNotRead";

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
        let kind = K::kind(&());
        let over = |object: &Named| {
            tracing::info!(%kind, object = object.key(), "can be read again, or is gone");
        };
        // Of the same object: one that was made anew under its name is another one.
        let known = |metadata: &ObjectMeta| {
            let name = metadata.name.clone().unwrap_or_default();
            let mut known = ObjectRef::new(&name);
            known.namespace.clone_from(&metadata.namespace);
            let known = store.get(&known).filter(|object| object.meta().uid == metadata.uid);
            known.map(|object| (*object).clone())
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
                let before = std::mem::replace(unread, std::mem::take(&mut self.listed));
                for (object, why) in unread.iter().filter(|(key, _)| !before.contains_key(*key)) {
                    begins(&kind, object, why);
                }
                before.keys().filter(|key| !unread.contains_key(*key)).for_each(over);
                Some(Event::InitDone)
            }
            Event::Apply(Tried::Read(object)) => {
                unread.remove_entry(&named(object.meta())).iter().for_each(|(key, _)| over(key));
                Some(Event::Apply(object))
            }
            Event::Apply(Tried::Unread { metadata, why }) => {
                let object = named(&metadata);
                if !unread.contains_key(&object) {
                    begins(&kind, &object, &why);
                }
                unread.insert(object, why);
                None
            }
            Event::Delete(object) => {
                unread.remove_entry(&named(object.meta())).iter().for_each(|(key, _)| over(key));
                match object {
                    Tried::Read(object) => Some(Event::Delete(object)),
                    Tried::Unread { metadata, .. } => known(&metadata).map(Event::Delete),
                }
            }
        }
    }
}

fn begins(kind: &str, object: &Named, why: &str) {
    tracing::warn!(kind, object = object.key(), "can not be read, and counts as it was: {why}");
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
            "metadata": {"name": name, "namespace": "shop", "resourceVersion": "1", "uid": "own"},
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
    fn neither_a_value_nor_a_key_of_a_map_is_quoted() {
        let key = format!("sk-0123456789abcdef\n{}", "x".repeat(100_000));
        for limits in [json!("sk-0123456789abcdef"), json!({key: [1]})] {
            let bad = backend("bad", limits);
            let why = listed::<LLMDeployment>(&[bad.to_string()]).remove(0).map().unwrap_err();
            assert!(!why.contains("sk-") && why.len() < 200 && !why.contains('\n'), "{why}");
            assert!(why.contains("spec.serving.resources"), "{why}");
        }
    }

    /// The API server keeps them as deep as fields are that were applied, and takes any.
    #[test]
    fn who_wrote_which_field_keeps_nothing_from_being_read() {
        let fields = "{\"f:a\":".repeat(500) + "{}" + &"}".repeat(500);
        let managed = |object: Value| {
            let text = object.to_string();
            let with = format!(
                r#""metadata":{{"managedFields": [{{"manager": "x", "fieldsV1": {fields}}}],"#
            );
            let with = text.replacen("\"metadata\":{", &with, 1);
            assert_ne!(with, text);
            with
        };
        let items = [managed(backend("good", json!({}))), managed(backend("bad", json!(7)))];
        let [Tried::Read(good), Tried::Unread { metadata, .. }] =
            &listed::<LLMDeployment>(&items)[..]
        else {
            panic!("{items:?}")
        };
        assert_eq!(good.metadata.name.as_deref(), Some("good"));
        assert_eq!(named(metadata).key(), "shop/bad");
        assert_eq!(metadata.resource_version.as_deref(), Some("1"));
        // Nothing else of it can be read either.
        let odd = r#"{"metadata": {"name": 7, "managedFields": []}, "spec": 7}"#.to_owned();
        assert!(listed::<LLMDeployment>(&[odd]).remove(0).map().is_err());
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
        // Made anew under its name, it is another object: that one is not known.
        let mut other = read(json!(7));
        other.meta_mut().uid = Some("other".to_owned());
        for event in [Event::Init, Event::InitApply(other), Event::InitDone] {
            pass(event, &mut unread);
        }
        assert!(reader.get(&key).is_none() && unread.len() == 1);
        assert!(!pass(Event::Delete(read(json!(7))), &mut unread));
        assert!(unread.is_empty());
    }
}
