//! `serinus convert-snapshots`: what earlier versions kept as ControllerRevisions becomes
//! ReleaseSnapshots, once, with the rights of whoever runs it. Operators and gateways have no
//! right to ControllerRevisions (docs/decisions/0013).
//!
//! It may be run as often as one likes, also beside a running operator: what is there already
//! stays, and of two notes the later one counts. The ControllerRevisions stay, because gateways
//! of the earlier version go on with them until they are replaced; `--delete` drops those that
//! have become snapshots.

use anyhow::Context;
use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::json;

use super::{
    process::{say, told},
    releases::Scope,
};
use crate::{
    api::{ReleaseSnapshot, ReleaseSnapshotSpec, keys, snapshot::Remembered},
    signals::tried,
};

/// Objects read at once.
const PAGE: u32 = 200;

/// What to convert.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    at: Scope,
    /// Delete the ControllerRevisions that have become snapshots: when no gateway of the earlier
    /// version runs any more.
    #[arg(long)]
    delete: bool,
}

/// What has become of all of them.
#[derive(Default)]
struct Counts {
    found: usize,
    written: usize,
    deleted: usize,
    failed: usize,
}

/// Converts them; answers whether all could be.
///
/// # Errors
/// The cluster can not be asked.
pub async fn convert(options: Options) -> anyhow::Result<bool> {
    super::process::install_tls();
    let client = options.at.client().await?;
    let old: Api<ControllerRevision> = options.at.api(&client);
    let mut counts = Counts::default();
    let mut page = ListParams::default().labels(keys::RELEASE_LABEL).limit(PAGE);
    loop {
        let list = tried::list(&client, &old, &page).await;
        let list = list.context("the ControllerRevisions can not be read")?;
        for revision in &list.objects {
            convert_one(&client, revision, options.delete, &mut counts).await;
        }
        counts.found += list.unread.len();
        counts.failed += list.unread.len();
        list.unread.iter().for_each(say);
        match list.more {
            Some(more) => page.continue_token = Some(more),
            None => break,
        }
    }
    let Counts { found, written, deleted, failed } = counts;
    println!(
        "{found} ControllerRevisions of releases: {written} written as ReleaseSnapshots, \
         {} were there already, {failed} could not be converted, {deleted} deleted",
        found - written - failed
    );
    if found > deleted && !options.delete {
        println!("when no gateway of the earlier version runs any more, run it with --delete");
    }
    Ok(failed == 0)
}

async fn convert_one(client: &Client, old: &ControllerRevision, delete: bool, counts: &mut Counts) {
    counts.found += 1;
    let namespace = old.namespace().unwrap_or_default();
    let kept = keep(client, &namespace, old).await;
    counts.written += usize::from(matches!(kept, Ok(true)));
    let done = match kept {
        Ok(_) if delete => drop_old(client, &namespace, old).await.map(|()| counts.deleted += 1),
        kept => kept.map(|_| ()),
    };
    if let Err(error) = done {
        counts.failed += 1;
        say(format_args!("{namespace}/{}: {}", old.name_any(), told(&error)));
    }
}

/// Writes the snapshot, or the note on one that is there; answers whether it is new.
async fn keep(client: &Client, namespace: &str, old: &ControllerRevision) -> anyhow::Result<bool> {
    let fresh = converted(old)?;
    let api: Api<ReleaseSnapshot> = Api::namespaced(client.clone(), namespace);
    match api.create(&PostParams::default(), &fresh).await {
        Ok(_) => return Ok(true),
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
        Err(error) => return Err(error).context("the ReleaseSnapshot can not be written"),
    }
    let name = fresh.name_any();
    let known = api.get(&name).await.context("the ReleaseSnapshot can not be read")?;
    let Some(note) = later_note(note_of(&fresh), note_of(&known)) else { return Ok(false) };
    let body = json!({"metadata": {
        // Nobody may have written a later note meanwhile.
        "resourceVersion": known.resource_version(),
        "annotations": {keys::REMEMBERED_ANNOTATION: serde_json::to_string(&note)?},
        "labels": {keys::REMEMBERED_LABEL: "true"},
    }});
    api.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(body))
        .await
        .context("the note on the ReleaseSnapshot can not be written: run this again")?;
    Ok(false)
}

/// The snapshot that a ControllerRevision of ours becomes. Nobody owns it.
fn converted(old: &ControllerRevision) -> anyhow::Result<ReleaseSnapshot> {
    let label = |key: &str| {
        old.labels().get(key).with_context(|| format!("it has no label {key}: it is left alone"))
    };
    let (release, revision) = (label(keys::RELEASE_LABEL)?, label(keys::REVISION_LABEL)?);
    let spec = ReleaseSnapshotSpec::new(release, revision, old.data.0.clone())
        .context("it is left alone")?;
    spec.content().context("no version of Serinus has written it so: it is left alone")?;
    let note = old.annotations().get_key_value(keys::REMEMBERED_ANNOTATION);
    let labels =
        [(keys::RELEASE_LABEL, release.as_str()), (keys::REVISION_LABEL, revision.as_str())];
    let marked = note.map(|_| (keys::REMEMBERED_LABEL, "true"));
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    let metadata = ObjectMeta {
        name: Some(spec.name()),
        namespace: old.namespace(),
        labels: Some(labels.into_iter().chain(marked).map(owned).collect()),
        annotations: note.map(|(key, text)| [(key.clone(), text.clone())].into()),
        ..ObjectMeta::default()
    };
    Ok(ReleaseSnapshot { metadata, spec })
}

fn note_of(snapshot: &ReleaseSnapshot) -> Option<Remembered> {
    let text = snapshot.annotations().get(keys::REMEMBERED_ANNOTATION)?;
    serde_json::from_str(text).ok()
}

/// The note to write on a snapshot that is there with the note `known`, when another one said
/// `old`; none if it has that already. A release keeps the earlier claim on its route.
fn later_note(old: Option<Remembered>, known: Option<Remembered>) -> Option<Remembered> {
    let old = old?;
    let Some(known) = known else { return Some(old) };
    let first = old.since.min(known.since);
    let same_route = old.route == known.route;
    let last = if old.generation > known.generation { old } else { known.clone() };
    let note = Remembered { since: if same_route { first } else { last.since }, ..last };
    (note != known).then_some(note)
}

/// Deletes exactly what was converted.
async fn drop_old(
    client: &Client,
    namespace: &str,
    old: &ControllerRevision,
) -> anyhow::Result<()> {
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace);
    let seen = Preconditions { uid: old.uid(), resource_version: old.resource_version() };
    let params = DeleteParams { preconditions: Some(seen), ..DeleteParams::background() };
    match api.delete(&old.name_any(), &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error).context("it is a ReleaseSnapshot now, and can not be deleted"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::api::{Variant, snapshot::Saved};

    fn old(change: impl FnOnce(&mut Value)) -> ControllerRevision {
        let data = serde_json::to_value(Saved::Variant(Variant::default())).unwrap();
        let mut object = json!({
            "metadata": {
                "name": "answers-0123", "namespace": "shop",
                "labels": {keys::RELEASE_LABEL: "answers", keys::REVISION_LABEL: "0123"},
                "annotations": {keys::REMEMBERED_ANNOTATION: "a note"},
                "ownerReferences": [{"apiVersion": "serinus.dev/v1alpha1",
                    "kind": "PromptRelease", "name": "answers", "uid": "of-before"}],
            },
            "revision": 1, "data": data,
        });
        change(&mut object);
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn content_and_note_are_taken_over_and_owners_are_not() {
        let old = old(|_| ());
        let snapshot = converted(&old).unwrap();
        assert_eq!(snapshot.name_any(), "answers-0123");
        assert_eq!(snapshot.namespace().as_deref(), Some("shop"));
        assert_eq!(json!({"variant": snapshot.spec.variant}), old.data.0);
        assert_eq!(snapshot.annotations()[keys::REMEMBERED_ANNOTATION], "a note");
        assert_eq!(snapshot.labels()[keys::REMEMBERED_LABEL], "true");
        assert!(snapshot.owner_references().is_empty());
    }

    #[test]
    fn what_is_not_ours_is_left_alone_and_says_why() {
        type Change = fn(&mut Value);
        let changes: [(Change, &str); 4] = [
            (|o| o["metadata"]["labels"] = json!({keys::RELEASE_LABEL: "a"}), "label"),
            (|o| o["data"] = json!({"spec": {"template": {}}}), "left alone"),
            (|o| o["data"]["variant"]["prompt"]["ofNextYear"] = json!(1), "left alone"),
            (|o| o["data"] = json!(null), "left alone"),
        ];
        for (change, why) in changes {
            let error = format!("{:#}", converted(&old(change)).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn of_two_notes_the_later_counts_with_the_earlier_claim() {
        let note = |generation: i64, since: i64, failed: &str| -> Remembered {
            let at = jiff::Timestamp::from_second(since).unwrap();
            serde_json::from_value(json!({
                "route": "answers", "since": at, "generation": generation, "failed": failed,
                "stable": {"revision": "1", "prompt": "p", "backend": "b"},
            }))
            .unwrap()
        };
        assert_eq!(later_note(None, None), None);
        assert_eq!(later_note(None, Some(note(1, 1, "a"))), None);
        assert_eq!(later_note(Some(note(1, 1, "a")), None), Some(note(1, 1, "a")));
        let both = |old, known| later_note(Some(old), Some(known));
        assert_eq!(both(note(1, 1, "a"), note(1, 1, "a")), None);
        assert_eq!(both(note(1, 9, "a"), note(2, 9, "b")), None, "it is later");
        assert_eq!(both(note(1, 1, "a"), note(2, 9, "b")), Some(note(2, 1, "b")));
        assert_eq!(both(note(3, 9, "a"), note(2, 1, "b")), Some(note(3, 1, "a")));
        let elsewhere = Remembered { route: "other".into(), ..note(2, 1, "b") };
        assert_eq!(both(note(3, 9, "a"), elsewhere), Some(note(3, 9, "a")));
    }
}
