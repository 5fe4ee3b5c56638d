//! Standalone mode in virtual time: the same manifests, the same decisions, one file.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when something is wrong")]

use std::{fs, os::unix::fs::symlink, path::PathBuf, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serinus::{
    api::prompt_release::{Outcome, Phase, PromptReleaseStatus},
    app::standalone::Standalone,
    gateway::{Gateway, GatewayConfig},
};
use tempfile::TempDir;

#[path = "standalone/files.rs"]
mod files;

struct Place {
    folder: TempDir,
    gateway: Arc<Gateway>,
    /// None while the process is dead.
    process: Option<Standalone>,
    now: Timestamp,
}

/// What the releases of these tests refer to.
const FIXED: &str = include_str!("fixtures/standalone.yaml");

/// The first prompt alone.
const FIXED_PROMPT: &str = "
apiVersion: serinus.dev/v1alpha1
kind: PromptVersion
metadata: {name: v1}
spec: {prompt: p, messages: [{role: user, content: one}]}
";

fn release(prompt: &str) -> String {
    format!(
        "apiVersion: serinus.dev/v1alpha1\nkind: PromptRelease\nmetadata: {{name: r}}\nspec: \
         {{promptRef: {{name: {prompt}}}, backendRef: {{name: model}}, policyRef: {{name: quick}}}}\n"
    )
}

fn gateway() -> Arc<Gateway> {
    Gateway::new(GatewayConfig {
        control_loss_timeout: Duration::from_secs(600),
        ..GatewayConfig::new(|| Timestamp::UNIX_EPOCH)
    })
}

impl Place {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("fixed.yaml"), FIXED).unwrap();
        fs::write(folder.path().join("release.yaml"), release("v1")).unwrap();
        let gateway = gateway();
        let mut place = Self { folder, gateway, process: None, now: Timestamp::UNIX_EPOCH };
        place.restart();
        place
    }

    fn state_file(&self) -> PathBuf {
        self.folder.path().join("state.json")
    }

    /// A process that died and was started again.
    fn restart(&mut self) {
        // A lock ends with its process.
        self.process = None;
        self.gateway = gateway();
        self.process = Some(self.open().unwrap());
    }

    fn open(&self) -> anyhow::Result<Standalone> {
        Standalone::open(self.folder.path(), self.state_file(), self.gateway.clone(), self.now)
    }

    fn process(&mut self) -> &mut Standalone {
        self.process.as_mut().unwrap()
    }

    fn tick(&mut self) -> Vec<String> {
        self.now = self.now.checked_add(SignedDuration::from_millis(500)).unwrap();
        let now = self.now;
        let news = self.process().tick(now).unwrap();
        news.into_iter().map(|n| format!("{}: {}", n.reason, n.note)).collect()
    }

    fn ticks(&mut self, count: usize) -> Vec<String> {
        (0..count).flat_map(|_| self.tick()).collect()
    }

    fn write_release(&self, text: &str) {
        // Another length or another time tells that the file changed.
        fs::write(self.folder.path().join("release.yaml"), format!("{text}# {}\n", text.len()))
            .unwrap();
    }

    /// Ticks for so many seconds.
    fn seconds(&mut self, seconds: usize) -> Vec<String> {
        self.ticks(seconds * 2)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// What is kept of release `r`: its uid, and its status as a restart reads it.
    fn kept(&self) -> (String, PromptReleaseStatus) {
        let state: serde_json::Value =
            serde_json::from_slice(&fs::read(self.state_file()).unwrap()).unwrap();
        let release = &state["default/r"];
        let status = serde_json::from_value(release["status"].clone()).unwrap();
        (release["uid"].as_str().unwrap().to_owned(), status)
    }

    fn served(&self) -> Vec<String> {
        self.gateway.report(false).releases.into_keys().collect()
    }

    /// `r` serves v1, and v2 was tried and left routing by request.
    fn with_a_failure() -> Self {
        let mut place = Self::new();
        place.ticks(3);
        place.write_release(&release("v2"));
        place.ticks(4);
        let revision = place.status().canary.unwrap().variant.revision;
        let abort =
            format!("metadata: {{name: r, annotations: {{serinus.dev/abort: {revision} by=ada}}}}");
        let aborted = release("v2").replace("metadata: {name: r}", &abort);
        place.write_release(&aborted);
        place.ticks(4);
        assert_eq!(place.status().failed_revision, Some(revision));
        assert_eq!(place.status().phase, Phase::RolledBack);
        place
    }

    fn status(&self) -> PromptReleaseStatus {
        self.process.as_ref().unwrap().releases()[0].status.clone().unwrap()
    }
}

#[test]
fn the_first_revision_serves_and_an_edit_starts_a_canary() {
    let mut place = Place::new();
    place.ticks(3);
    assert_eq!(place.status().phase, Phase::Stable);
    assert_eq!(place.gateway.report(false).releases["default/r"].applied, 1);
    place.write_release(&release("v2"));
    place.ticks(3);
    let status = place.status();
    assert_eq!(status.phase, Phase::Progressing);
    assert_eq!(status.canary.unwrap().variant.prompt, "v2");
}

#[test]
fn a_process_that_dies_at_any_tick_goes_on_where_it_was() {
    let mut undisturbed = Place::new();
    let mut killed = Place::new();
    for step in 0..12 {
        if step == 3 {
            undisturbed.write_release(&release("v2"));
            killed.write_release(&release("v2"));
            // A process that runs takes what two of its looks have seen.
            undisturbed.tick();
            killed.tick();
        }
        killed.restart();
        undisturbed.tick();
        killed.tick();
        let (a, b) = (undisturbed.status(), killed.status());
        assert_eq!((a.phase, &a.stable), (b.phase, &b.stable), "tick {step}");
        assert_eq!(a.canary.map(|c| (c.step, c.weight)), b.canary.map(|c| (c.step, c.weight)));
    }
    assert_eq!(killed.status().phase, Phase::Progressing);
}

#[test]
fn an_edit_that_is_not_valid_is_told_and_changes_nothing() {
    let mut place = Place::new();
    place.ticks(3);
    let before = place.status();
    place.write_release("kind: PromptRelease\nthis is not: [a manifest\n");
    let news = place.ticks(3);
    assert!(
        news.iter().any(|n| n.starts_with("InvalidManifest") && n.contains("release.yaml")),
        "{news:?}"
    );
    assert_eq!(place.status(), before);
    assert_eq!(place.gateway.report(false).releases.len(), 1);
    place.write_release(&release("v2"));
    place.ticks(3);
    assert_eq!(place.status().phase, Phase::Progressing);
}

#[test]
fn a_prompt_that_is_edited_in_place_keeps_its_first_content() {
    let mut place = Place::new();
    place.ticks(3);
    let before = place.status().stable;
    fs::write(
        place.folder.path().join("fixed.yaml"),
        FIXED.replace("content: one", "content: changed"),
    )
    .unwrap();
    let news = place.ticks(3);
    assert!(news.iter().any(|n| n.contains("immutable")), "{news:?}");
    assert_eq!(place.status().stable, before);
}

#[test]
fn a_prompt_that_is_removed_mid_canary_breaks_nothing() {
    let mut place = Place::new();
    place.ticks(3);
    place.write_release(&release("v2"));
    place.ticks(3);
    fs::write(place.folder.path().join("fixed.yaml"), FIXED.split("---").last().unwrap()).unwrap();
    place.ticks(3);
    place.restart();
    place.ticks(3);
    let routes = place.gateway.report(false).releases;
    assert_eq!(routes["default/r"].applied, place.status().routing.generation);
    assert!(place.status().stable.is_some_and(|s| s.prompt == "v1"));
}

#[test]
fn going_back_to_the_stable_prompt_withdraws_without_a_failure() {
    let mut place = Place::new();
    place.ticks(3);
    place.write_release(&release("v2"));
    place.ticks(3);
    place.write_release(&format!("{}\n", release("v1")));
    place.ticks(4);
    let status = place.status();
    assert_eq!((status.phase, status.failed_revision), (Phase::Stable, None));
    assert_eq!(status.history.last().unwrap().outcome, Outcome::Withdrawn);
}

type Spoil = fn(&std::path::Path);

/// Every way in which a file can not be read, given its path.
fn ways_to_be_unreadable() -> Vec<(&'static str, Spoil)> {
    vec![
        ("empty", |path| fs::write(path, "").unwrap()),
        ("only a comment", |path| fs::write(path, "# later\n---\n").unwrap()),
        ("half written", |path| {
            let whole = fs::read(path).unwrap();
            fs::write(path, &whole[..whole.len() * 2 / 3]).unwrap();
        }),
        ("not UTF-8", |path| fs::write(path, b"kind: \xff\xfe").unwrap()),
        ("zeros", |path| fs::write(path, [0; 4096]).unwrap()),
        ("a dangling link", |path| {
            fs::remove_file(path).unwrap();
            symlink("/nowhere/to/be/found", path).unwrap();
        }),
        ("a loop of links", |path| {
            fs::remove_file(path).unwrap();
            symlink(path, path).unwrap();
        }),
        ("a folder", |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
        ("a FIFO", |path| {
            fs::remove_file(path).unwrap();
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mkfifoat(rustix::fs::CWD, path, mode).unwrap();
        }),
        ("a socket", |path| {
            fs::remove_file(path).unwrap();
            std::os::unix::net::UnixListener::bind(path).unwrap();
        }),
        ("a device", |path| {
            fs::remove_file(path).unwrap();
            symlink("/dev/zero", path).unwrap();
        }),
        ("huge", |path| {
            fs::File::options().write(true).open(path).unwrap().set_len(1 << 40).unwrap();
        }),
    ]
}

fn remove(path: &std::path::Path) {
    if path.is_dir() { fs::remove_dir(path).unwrap() } else { fs::remove_file(path).unwrap() }
}

#[test]
fn a_file_that_can_not_be_read_changes_nothing_costs_only_itself_and_is_told_once() {
    for (what, spoil) in ways_to_be_unreadable() {
        let mut place = Place::with_a_failure();
        let before = place.kept();
        spoil(&place.path("release.yaml"));
        place.write("key.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n");
        let news = place.seconds(120);
        let told = news.iter().filter(|n| n.contains("release.yaml")).count();
        assert_eq!(told, 1, "{what}: {news:?}");
        assert!(news.iter().any(|n| n.contains("objects in")), "{what}: the other file is read");
        assert_eq!(place.kept(), before, "{what}");
        assert_eq!(place.served(), ["default/r"], "{what}");
        // The same after a restart, in which nothing but this file is there to read.
        place.restart();
        let news = place.seconds(120);
        assert!(news.iter().any(|n| n.contains("release.yaml")), "{what}: {news:?}");
        assert_eq!((place.kept(), place.served()), (before.clone(), vec!["default/r".into()]));
        // And when it is mended, the failure is still known.
        remove(&place.path("release.yaml"));
        place.write_release(&release("v2"));
        let news = place.seconds(5);
        assert!(news.iter().any(|n| n.contains("Mended")), "{what}: {news:?}");
        assert_eq!((place.status().phase, place.status().canary), (Phase::RolledBack, None));
    }
}

#[test]
fn a_new_file_that_can_not_be_read_costs_only_itself() {
    for (what, spoil) in ways_to_be_unreadable() {
        let mut place = Place::new();
        place.write("stray.yaml", FIXED);
        spoil(&place.path("stray.yaml"));
        place.ticks(3);
        assert_eq!(place.status().phase, Phase::Stable, "{what}");
        place.write_release(&release("v2"));
        place.ticks(4);
        assert_eq!(place.status().phase, Phase::Progressing, "{what}");
    }
}

#[test]
fn a_release_that_is_away_for_a_while_is_not_deleted() {
    let mut place = Place::with_a_failure();
    let before = place.kept();
    let text = fs::read_to_string(place.path("release.yaml")).unwrap();
    fs::remove_file(place.path("release.yaml")).unwrap();
    let news = place.seconds(20);
    assert_eq!(news.len(), 1, "{news:?}");
    assert!(news[0].contains("release.yaml: is gone: PromptRelease default/r"), "{news:?}");
    assert_eq!((place.kept(), place.served()), (before.clone(), vec!["default/r".into()]));
    place.write("release.yaml", &text);
    place.seconds(60);
    assert_eq!((place.kept(), place.served()), (before, vec!["default/r".into()]));
}

#[test]
fn a_deleted_release_that_comes_back_goes_on_where_it_was() {
    let mut place = Place::with_a_failure();
    let (uid, before) = place.kept();
    fs::remove_file(place.path("release.yaml")).unwrap();
    let news = place.seconds(40);
    let said = news.iter().filter(|n| n.starts_with("Deleted: PromptRelease default/r"));
    assert_eq!(said.count(), 1, "{news:?}");
    assert!(place.served().is_empty());
    place.restart();
    place.seconds(3);
    // What failed stays out.
    place.write_release(&release("v2"));
    let news = place.seconds(3);
    assert!(news.iter().any(|n| n.starts_with("Returned")), "{news:?}");
    assert_eq!((place.kept().0, place.status().stable), (uid, before.stable));
    assert_eq!((place.status().phase, place.status().canary), (Phase::RolledBack, None));
    assert_eq!(place.status().history, before.history);
    // What is new goes through a canary.
    fs::remove_file(place.path("release.yaml")).unwrap();
    place.seconds(40);
    place.write("v3.yaml", &FIXED_PROMPT.replace("name: v1", "name: v3").replace("one", "three"));
    place.write_release(&release("v3"));
    place.seconds(3);
    assert_eq!(place.status().phase, Phase::Progressing);
}

#[test]
fn an_empty_folder_deletes_nothing() {
    let mut place = Place::new();
    place.ticks(3);
    let before = place.kept();
    for name in ["release.yaml", "fixed.yaml"] {
        fs::rename(place.path(name), place.path(&format!("{name}.away"))).unwrap();
    }
    let news = place.seconds(300);
    assert!(news.iter().any(|n| n.contains("EmptyFolder") && n.contains("mounted")), "{news:?}");
    assert_eq!((place.kept(), place.served()), (before, vec!["default/r".into()]));
}

#[test]
fn a_document_that_left_its_file_is_missed_as_a_file_is() {
    let mut place = Place::new();
    place.write(
        "release.yaml",
        &format!("{}---\n{}", FIXED_PROMPT.replace("name: v1", "name: v0"), release("v1")),
    );
    place.seconds(3);
    let before = place.kept();
    place.write("release.yaml", &FIXED_PROMPT.replace("name: v1", "name: v0"));
    let news = place.seconds(20);
    assert!(news.iter().any(|n| n.contains("does not define it any more")), "{news:?}");
    assert_eq!((place.kept(), place.served()), (before, vec!["default/r".into()]));
    place.seconds(20);
    assert!(place.served().is_empty());
}

#[test]
fn two_files_with_one_name_change_nothing_and_are_both_named() {
    for copy in ["a-copy.yaml", "z-copy.yaml"] {
        let mut place = Place::new();
        place.seconds(3);
        let before = place.kept();
        place.write(copy, &release("v2"));
        for _ in 0..2 {
            let news = place.seconds(60);
            let told: Vec<_> = news.iter().filter(|n| n.starts_with("DefinedTwice")).collect();
            assert_eq!(told.len(), 1, "{news:?}");
            assert!(told[0].contains(copy) && told[0].contains("release.yaml"), "{told:?}");
            assert_eq!((place.kept(), place.served()), (before.clone(), vec!["default/r".into()]));
            place.restart();
        }
        // Without the other one, this one counts.
        fs::remove_file(place.path("release.yaml")).unwrap();
        place.seconds(3);
        assert_eq!(place.status().phase, Phase::Progressing);
    }
}

#[test]
fn what_a_release_lacks_is_said_once_and_to_those_who_ask_for_its_route() {
    let mut place = Place::new();
    place.write_release(&release("v9"));
    let news = place.seconds(60);
    assert_eq!(news.iter().filter(|n| n.starts_with("PromptNotFound")).count(), 1, "{news:?}");
    let told = place.gateway.notices().of_route("r", |namespace| namespace == "default").unwrap();
    assert!(told.contains("PromptVersion v9 does not exist"), "{told}");
    place.write_release(&release("v1"));
    let news = place.seconds(3);
    assert!(news.iter().any(|n| n.contains("no PromptNotFound now")), "{news:?}");
    // Served, and what it names next is missing: it is no answer to a request.
    place.write_release(&release("v8"));
    let news = place.seconds(60);
    assert_eq!(news.iter().filter(|n| n.starts_with("PromptNotFound")).count(), 1, "{news:?}");
    assert_eq!(place.gateway.notices().of_route("r", |_| true), None);
    assert!(place.gateway.notices().text().contains("PromptVersion v8"));
}

#[test]
fn what_is_there_and_not_valid_is_not_said_to_be_missing() {
    let mut place = Place::new();
    place.ticks(3);
    let prompt = FIXED_PROMPT.replace("name: v1", "name: v3").replace("one", "three");
    let invalid = prompt.replace("role: user", "role: nobody");
    place.write("v3.yaml", &invalid.replace("name: v3", "name: v3, namespace: other"));
    place.write_release(&release("v3"));
    place.seconds(3);
    let told = place.gateway.notices().text();
    assert!(told.contains("PromptVersion v3 does not exist"), "one of another namespace: {told}");
    place.write("v3.yaml", &invalid);
    place.seconds(3);
    let told = place.gateway.notices().text();
    assert!(told.contains("PromptVersion v3 is not valid: correct v3.yaml"), "{told}");
    assert!(told.contains("v3.yaml: InvalidManifest"), "{told}");
    place.write("v3.yaml", &prompt);
    place.seconds(3);
    assert_eq!(place.status().phase, Phase::Progressing);
}

#[test]
fn a_file_without_a_manifest_is_told_and_is_no_empty_folder() {
    for (text, reason) in [
        ("", "EmptyFile"),
        ("# later\n", "EmptyFile"),
        ("---\n---\n", "EmptyFile"),
        ("oops: [", "InvalidManifest"),
        ("kind: nothing of ours\n", "InvalidManifest"),
    ] {
        let mut place = Place::new();
        place.process = None;
        fs::remove_file(place.path("fixed.yaml")).unwrap();
        place.write("release.yaml", text);
        place.restart();
        let news = place.seconds(5);
        let told: Vec<_> = news.iter().filter(|n| n.contains("release.yaml")).collect();
        assert!(told.len() == 1 && told[0].starts_with(reason), "{text:?}: {news:?}");
        assert!(!place.gateway.notices().text().contains("EmptyFolder"), "{text:?}: {news:?}");
        fs::remove_file(place.path("release.yaml")).unwrap();
        let news = place.seconds(5);
        assert!(news.iter().any(|n| n.contains("put files *.yaml there")), "{text:?}: {news:?}");
    }
}

/// Nothing here is timed: what is read with the square of its length does not end.
#[test]
fn a_manifest_that_is_dense_or_deep_is_told_and_the_others_are_read() {
    let tags: String = (0..60_000).map(|i| format!("%TAG !a{i}! tag:x\n")).collect();
    for (what, text) in [
        ("maps", "{a: ".repeat(500_000)),
        ("lists", "[".repeat(2_000_000)),
        ("lists that a quote closes", format!("[{}", "[?\"],a\",".repeat(200_000))),
        ("tags", format!("{tags}--- 1\n")),
        ("aliases", format!("a: &a {}\nb: [{}]\n", "x".repeat(500_000), "*a, ".repeat(300_000))),
    ] {
        let mut place = Place::new();
        place.ticks(3);
        place.write("z.yaml", &text);
        place.write_release(&release("v2"));
        let news = place.seconds(5);
        assert!(
            news.iter().any(|n| n.starts_with("InvalidManifest") && n.contains("z.yaml")),
            "{what}: {:?}",
            place.gateway.notices().text()
        );
        assert_eq!(place.status().phase, Phase::Progressing, "{what}");
    }
}

#[test]
fn a_fallback_or_a_secret_that_is_there_and_not_valid_is_not_said_to_be_missing() {
    let mut place = Place::new();
    let backend = "apiVersion: serinus.dev/v1alpha1\nkind: LLMDeployment\nmetadata: {name: other}\n\
                   spec: {provider: openai, model: o, endpoint: {url: http://127.0.0.1:1/v1}}\n";
    let named = "backendRef: {name: model}, fallbackBackendRefs: [{name: other}]";
    place.write_release(&release("v1").replace("backendRef: {name: model}", named));
    place.seconds(3);
    let told = place.gateway.notices().text();
    assert!(told.contains("LLMDeployment other does not exist"), "{told}");
    place.write("b.yaml", &backend.replace("provider: openai", "provider: 1"));
    place.seconds(3);
    let told = place.gateway.notices().text();
    assert!(told.contains("LLMDeployment other is not valid: correct b.yaml"), "{told}");
    assert!(!told.contains("does not exist"), "{told}");
    let keyed = backend.replace("/v1}", "/v1, apiKeySecretRef: {name: no-such, key: token}}");
    place.write("b.yaml", &keyed);
    place.write(
        "key.yaml",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: no-such}\ndata: {token: \"?\"}\n",
    );
    place.seconds(3);
    let told = place.gateway.notices().text();
    assert!(told.contains("Secret no-such is not valid: correct key.yaml"), "{told}");
    place.write(
        "key.yaml",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: no-such}\nstringData: {token: t}\n",
    );
    place.seconds(3);
    let told = place.gateway.notices().text();
    assert!(!told.contains("no-such") && !told.contains("other"), "{told}");
}

#[test]
fn a_policy_that_is_missing_is_said_before_it_is_needed() {
    let mut place = Place::new();
    place.write_release(&release("v1").replace("quick", "quik"));
    let news = place.seconds(60);
    assert_eq!(news.iter().filter(|n| n.starts_with("PolicyNotFound")).count(), 1, "{news:?}");
    let told = place.gateway.notices().text();
    assert!(told.contains("CanaryPolicy quik does not exist"), "{told}");
    assert_eq!((place.status().phase, place.served()), (Phase::Stable, vec!["default/r".into()]));
    place.write_release(&release("v1"));
    place.seconds(3);
    assert!(!place.gateway.notices().text().contains("PolicyNotFound"));
}

#[test]
fn manifests_in_a_folder_inside_are_said_to_be_unread() {
    let mut place = Place::new();
    for inside in ["more", "empty", ".git"] {
        fs::create_dir(place.path(inside)).unwrap();
    }
    place.write("more/other.yaml", FIXED_PROMPT);
    place.write(".git/other.yaml", FIXED_PROMPT);
    place.write("empty/README.md", "");
    let news = place.seconds(120);
    let told: Vec<_> = news.iter().filter(|n| n.starts_with("FolderNotRead")).collect();
    assert_eq!(told.len(), 1, "{news:?}");
    assert!(told[0].contains("more/") && told[0].contains("move them up"), "{told:?}");
    fs::remove_dir_all(place.path("more")).unwrap();
    place.seconds(3);
    assert!(!place.gateway.notices().text().contains("FolderNotRead"));
}

#[test]
fn a_mistyped_request_is_told() {
    let mut place = Place::new();
    place.write_release(
        &release("v1").replace("{name: r}", "{name: r, annotations: {serinus.dev/aprove: abcd}}"),
    );
    let news = place.seconds(60);
    let told: Vec<_> = news.iter().filter(|n| n.contains("serinus.dev/aprove")).collect();
    assert!(told.len() == 1 && told[0].contains("serinus.dev/approve"), "{news:?}");
}

#[test]
fn a_backend_whose_secret_is_missing_waits_for_it() {
    let mut place = Place::new();
    let named = "v1, apiKeySecretRef: {name: no-such, key: token}}}";
    place.write("fixed.yaml", &FIXED.replacen("v1}}", named, 1));
    let news = place.seconds(60);
    let told: Vec<_> = news.iter().filter(|n| n.contains("SecretNotFound")).collect();
    assert!(told.iter().all(|n| n.contains("SERINUS_SECRET_NO_SUCH_<KEY>")), "{news:?}");
    assert!((1..=2).contains(&told.len()) && place.served().is_empty(), "{news:?}");
    place.write(
        "key.yaml",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: no-such}\nstringData: {token: t}\n",
    );
    place.seconds(3);
    assert_eq!(place.served(), ["default/r"]);
}

#[test]
fn a_stable_that_can_not_be_built_is_no_dead_end() {
    let mut place = Place::new();
    fs::remove_file(place.path("release.yaml")).unwrap();
    let named = "v1, apiKeySecretRef: {name: sec, key: token}}}";
    let bad = FIXED.replacen("v1}}", named, 1).replacen("name: model}", "name: bad}", 1);
    let bad = bad.split("---").next().unwrap();
    let other = bad.replace("model: m,", "model: other,");
    let secret =
        "apiVersion: v1\nkind: Secret\nmetadata: {name: sec}\nstringData: {token: \"a\\nb\"}\n";
    let told = |place: &Place| place.status().conditions[0].message.clone();
    let bad_release = release("v1").replace("name: model}", "name: bad}");
    // The same model under another name is no other revision.
    place.write("bad.yaml", &format!("{bad}---\n{secret}"));
    place.restart();
    place.write_release(&bad_release);
    place.seconds(5);
    place.write_release(&release("v1"));
    place.seconds(5);
    assert!(told(&place).contains("mend bad"), "{}", told(&place));
    let mut place = Place::new();
    fs::remove_file(place.path("release.yaml")).unwrap();
    place.write("bad.yaml", &format!("{other}---\n{secret}"));
    place.restart();
    place.write_release(&bad_release);
    place.seconds(5);
    assert!(told(&place).contains("line break"), "{}", told(&place));
    // Its author names a backend that works.
    place.write_release(&release("v1"));
    place.seconds(10);
    let told = told(&place);
    assert!(told.contains("can not build") && told.contains("promote"), "{told}");
    let revision = told.rsplit("promote ").next().unwrap().split(' ').next().unwrap().to_owned();
    let promote =
        format!("metadata: {{name: r, annotations: {{serinus.dev/promote: {revision} by=ada}}}}");
    place.write_release(&release("v1").replace("metadata: {name: r}", &promote));
    place.seconds(5);
    let status = place.status();
    assert_eq!((status.phase, &*status.routing.observed_by), (Phase::Stable, "1/1"));
    assert_eq!(status.stable.unwrap().backend, "model");
}

#[test]
fn a_file_of_the_same_size_and_time_with_another_content_is_noticed() {
    let mut place = Place::new();
    let path = place.path("release.yaml");
    place.ticks(3);
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    place.write("release.yaml", &release("v2"));
    fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    place.seconds(3);
    assert_eq!(place.status().phase, Phase::Progressing);
}

#[test]
fn what_is_immutable_stays_so_over_a_restart() {
    let mut place = Place::new();
    place.ticks(3);
    let before = place.kept();
    place.process = None;
    place.write("fixed.yaml", &FIXED.replace("content: one", "content: changed"));
    place.restart();
    let news = place.seconds(60);
    assert_eq!(news.iter().filter(|n| n.starts_with("Immutable")).count(), 1, "{news:?}");
    assert_eq!(place.kept(), before);
}

/// A release of the namespace `other` that asks for the route `r`.
fn other(prompt: &str) -> String {
    format!("{FIXED}---\n{}", release(prompt))
        .replace("metadata: {name: ", "metadata: {namespace: other, name: ")
        .replace("spec: {promptRef", "spec: {route: r, promptRef")
}

/// The same, which asks to be given it.
fn other_that_asks(prompt: &str, approve: &str) -> String {
    other(prompt).replace(
        "metadata: {namespace: other, name: r}",
        &format!(
            "metadata: {{namespace: other, name: r, annotations: {{serinus.dev/approve: {approve}}}}}"
        ),
    )
}

fn move_away(place: &Place) {
    fs::rename(place.path("release.yaml"), place.path("away")).unwrap();
}

fn move_back(place: &Place) {
    fs::rename(place.path("away"), place.path("release.yaml")).unwrap();
}

#[test]
fn a_route_whose_owner_is_away_comes_back_to_it_and_nobody_is_forgotten() {
    let mut place = Place::new();
    place.seconds(3);
    place.write("other.yaml", &other("v2"));
    let news = place.seconds(3);
    assert!(news.iter().any(|n| n.contains("RouteTaken")), "{news:?}");
    move_away(&place);
    place.seconds(5);
    assert_eq!(place.served(), ["default/r"]);
    move_back(&place);
    place.seconds(3);
    // Away for long: what another namespace has waits, and so does its approval.
    move_away(&place);
    let news = place.seconds(40);
    assert!(
        news.iter().any(|n| n.contains("FirstReleaseHeld") && n.contains("default/r")),
        "{news:?}"
    );
    assert!(place.served().is_empty());
    let held = news.iter().find(|n| n.contains("FirstReleaseHeld")).unwrap();
    let revision = held.split("approval of ").nth(1).unwrap().split(' ').next().unwrap();
    place.write("other.yaml", &other_that_asks("v2", &format!("{revision} by=ada")));
    let news = place.seconds(3);
    assert!(news.iter().any(|n| n.contains("RequestIgnored") && n.contains("from ")), "{news:?}");
    place.now += SignedDuration::from_hours(1);
    place.seconds(3);
    assert!(place.served().is_empty(), "what was refused is not carried out later");
    place.write("other.yaml", &other_that_asks("v2", &format!("{revision} by=ada at=later")));
    place.seconds(3);
    assert_eq!(place.served(), ["other/r"]);
    // The owner is back. Who was given the route keeps it, though it is younger.
    move_back(&place);
    let news = place.seconds(3);
    assert_eq!(place.served(), ["other/r"]);
    assert!(news.iter().any(|n| n.contains("RouteTaken") && n.contains("other/r")), "{news:?}");
    place.restart();
    place.seconds(3);
    assert_eq!(place.served(), ["other/r"]);
    // And when that one leaves, the first owner is held in the same way.
    fs::remove_file(place.path("other.yaml")).unwrap();
    let news = place.seconds(40);
    assert!(place.served().is_empty());
    let held = |n: &String| n.contains("FirstReleaseHeld") && n.contains("other/r of another");
    assert!(news.iter().any(held), "{news:?}");
    place.restart();
    place.now += SignedDuration::from_hours(1);
    place.seconds(3);
    assert!(place.served().is_empty());
    let revision = place.status().stable.unwrap().revision;
    let asks = format!("{{name: r, annotations: {{serinus.dev/approve: {revision} by=ada}}}}");
    place.write_release(&release("v1").replace("{name: r}", &asks));
    place.seconds(3);
    assert_eq!(place.served(), ["default/r"]);
}

#[test]
fn who_waits_for_a_route_in_another_namespace_can_not_approve_itself_in_advance() {
    let mut place = Place::new();
    place.seconds(3);
    // It finds its revision by a route of its own.
    let mine = release("v2").replace("{name: r}", "{namespace: other, name: mine}");
    place.write("mine.yaml", &mine);
    place.write("other.yaml", &other("v2"));
    place.seconds(3);
    let releases = place.process().releases();
    let mine = releases.into_iter().find(|r| r.metadata.name.as_deref() == Some("mine")).unwrap();
    let revision = mine.status.unwrap().stable.unwrap().revision;
    place.write("other.yaml", &other_that_asks("v2", &format!("{revision} by=thief")));
    let news = place.seconds(3);
    let refused = |n: &String| n.starts_with("RequestIgnored") && n.contains("default/r");
    assert!(news.iter().any(refused), "{news:?}");
    move_away(&place);
    place.seconds(40);
    assert_eq!(place.served(), ["other/mine"]);
    place.now += SignedDuration::from_hours(2);
    place.restart();
    place.seconds(3);
    assert_eq!(place.served(), ["other/mine"]);
    move_back(&place);
    place.seconds(3);
    assert_eq!(place.served(), ["default/r", "other/mine"]);
}

#[test]
fn an_owner_who_is_back_before_anybody_was_given_the_route_has_it_again() {
    // Also when the other one has the same content.
    for prompt in ["v2", "v1"] {
        let mut place = Place::new();
        place.seconds(3);
        place.write("other.yaml", &other(prompt));
        move_away(&place);
        place.seconds(120);
        assert!(place.served().is_empty(), "the other waits for a person");
        move_back(&place);
        place.seconds(3);
        assert_eq!(place.served(), ["default/r"]);
    }
}

#[test]
fn a_release_that_comes_back_with_a_route_of_another_namespace_is_held() {
    let mut place = Place::new();
    let mine = |route: &str| {
        format!("{FIXED}---\n{}", release("v2"))
            .replace("metadata: {name: ", "metadata: {namespace: other, name: ")
            .replace("spec: {promptRef", &format!("spec: {{route: {route}, promptRef"))
    };
    place.write("other.yaml", &mine("own"));
    place.seconds(3);
    assert_eq!(place.served(), ["default/r", "other/r"]);
    move_away(&place);
    fs::remove_file(place.path("other.yaml")).unwrap();
    place.seconds(40);
    assert!(place.served().is_empty());
    place.write("other.yaml", &mine("r"));
    let news = place.seconds(3);
    assert!(place.served().is_empty());
    assert!(news.iter().any(|n| n.contains("FirstReleaseHeld")), "{news:?}");
    // What it served is kept for when it has its own route again.
    fs::remove_file(place.path("other.yaml")).unwrap();
    move_back(&place);
    place.seconds(40);
    assert_eq!(place.served(), ["default/r"]);
    place.write("other.yaml", &mine("own"));
    place.seconds(3);
    assert_eq!(place.served(), ["default/r", "other/r"]);
}

#[test]
fn the_same_content_under_another_name_is_no_first_release() {
    let mut place = Place::new();
    place.seconds(3);
    fs::remove_file(place.path("release.yaml")).unwrap();
    place.seconds(40);
    let renamed = |prompt: &str| {
        release(prompt)
            .replace("{name: r}", "{name: renamed}")
            .replace("spec: {promptRef", "spec: {route: r, promptRef")
    };
    place.write("renamed.yaml", &renamed("v2"));
    place.seconds(3);
    assert!(place.served().is_empty());
    place.write("renamed.yaml", &renamed("v1"));
    place.seconds(3);
    assert_eq!(place.served(), ["default/renamed"]);
}

#[test]
fn a_second_process_on_the_same_state_is_told_who_has_it() {
    let mut place = Place::new();
    place.tick();
    let error = format!("{:#}", place.open().err().unwrap());
    for part in [&format!("process {}", std::process::id()), "--state", "state.json"] {
        assert!(error.contains(part), "{error}");
    }
    // The folder of the lock was moved away: the first one takes a new lock and goes on.
    fs::remove_file(place.path("state.json.lock")).unwrap();
    place.write_release(&release("v2"));
    place.seconds(2);
    assert_eq!(place.status().phase, Phase::Progressing);
    assert!(place.open().is_err());
    place.restart();
}

#[test]
fn a_state_behind_links_is_kept_where_they_lead() {
    let disk = TempDir::new().unwrap();
    let mut place = Place::with_a_failure();
    let (status, file) = (place.status(), place.state_file());
    place.process = None;
    // The container is made anew; what is on the disk stays.
    fs::rename(&file, disk.path().join("real.json")).unwrap();
    symlink("real.json", disk.path().join("state.json")).unwrap();
    symlink(disk.path().join("state.json"), &file).unwrap();
    fs::remove_file(place.path("state.json.before")).unwrap();
    place.restart();
    place.ticks(3);
    assert_eq!(place.status().failed_revision, status.failed_revision);
    let link = fs::read_link(&file).unwrap();
    assert_eq!(link, disk.path().join("state.json"), "it is the link that it was");
    let kept = fs::read_to_string(disk.path().join("real.json")).unwrap();
    assert_eq!(kept, fs::read_to_string(&file).unwrap());
    assert!(disk.path().join("real.json.before").exists(), "written beside the file");
    // Whoever names the same file by another path is told who has it.
    let open = |path| Standalone::open(place.folder.path(), path, gateway(), place.now);
    let error = format!("{:#}", open(disk.path().join("real.json")).err().unwrap());
    assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    // A link to nothing yet is a new state there.
    let (new, link) = (disk.path().join("new.json"), disk.path().join("link.json"));
    symlink(&new, &link).unwrap();
    let folder = TempDir::new().unwrap();
    let opened = Standalone::open(folder.path(), link.clone(), gateway(), place.now);
    opened.unwrap().tick(place.now).unwrap();
    assert!(new.exists() && link.is_symlink());
    symlink(disk.path().join("b"), disk.path().join("a")).unwrap();
    symlink(disk.path().join("a"), disk.path().join("b")).unwrap();
    let error = format!("{:#}", open(disk.path().join("a")).err().unwrap());
    assert!(
        error.contains("is a link that leads to no file") && error.contains("--state"),
        "{error}"
    );
}

#[test]
fn a_state_that_can_not_be_written_ends_the_start_with_the_path_and_the_remedy() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let made = std::process::Command::new("mkfifo").arg(folder.path().join("pipe")).status();
    assert!(made.unwrap().success());
    for state in ["file/state.json", "file/deep/state.json", ".", "pipe"] {
        let path = folder.path().join(state);
        let opened =
            Standalone::open(folder.path(), path.clone(), gateway(), Timestamp::UNIX_EPOCH);
        let error = format!("{:#}", opened.err().unwrap());
        assert!(error.contains(&path.display().to_string()), "{error}");
        assert!(error.contains("--state"), "{error}");
    }
}

#[test]
fn a_state_that_can_not_be_written_any_more_moves_nothing_and_is_told_once() {
    let mut place = Place::new();
    let state = place.path("sub/state.json");
    place.process = None;
    let gateway = place.gateway.clone();
    let opened = Standalone::open(place.folder.path(), state, gateway, place.now);
    place.process = Some(opened.unwrap());
    place.ticks(3);
    let before = place.status();
    fs::rename(place.path("sub"), place.path("away")).unwrap();
    place.write("sub", "");
    place.write_release(&release("v2"));
    for _ in 0..20 {
        place.now = place.now.checked_add(SignedDuration::from_millis(500)).unwrap();
        let now = place.now;
        let ticked = place.process().tick(now);
        assert_eq!(
            place.gateway.report(false).releases["default/r"].applied,
            before.routing.generation
        );
        if let Err(error) = ticked {
            assert!(format!("{error:#}").contains("sub/state.json"), "{error:#}");
        }
    }
    fs::remove_file(place.path("sub")).unwrap();
    fs::rename(place.path("away"), place.path("sub")).unwrap();
    let news = place.seconds(2);
    assert!(news.iter().any(|n| n.contains("StateUnwritable")), "{news:?}");
    assert_eq!(place.status().phase, Phase::Progressing);
}

#[test]
fn a_watched_folder_that_is_moved_comes_back_as_it_was() {
    let mut place = Place::new();
    place.process = None;
    let (watched, away) = (place.path("watched"), place.path("away"));
    let own = watched.join(".serinus");
    fs::create_dir_all(&own).unwrap();
    for name in ["fixed.yaml", "release.yaml"] {
        fs::rename(place.path(name), watched.join(name)).unwrap();
    }
    let gateway = place.gateway.clone();
    let open = || Standalone::open(&watched, own.join("state.json"), gateway.clone(), place.now);
    place.process = Some(open().unwrap());
    place.ticks(3);
    fs::write(watched.join("release.yaml"), release("v2")).unwrap();
    place.ticks(4);
    let before = place.status();
    assert_eq!(before.phase, Phase::Progressing);
    // A canary runs, so there is always something to write.
    fs::rename(&watched, &away).unwrap();
    let mut unwritten = 0;
    for _ in 0..80 {
        place.now = place.now.checked_add(SignedDuration::from_millis(500)).unwrap();
        let now = place.now;
        unwritten += usize::from(place.process().tick(now).is_err());
        assert!(!watched.exists());
    }
    assert!(unwritten > 0, "nothing was to be written");
    fs::rename(&away, &watched).unwrap();
    place.seconds(2);
    let after = place.status();
    assert_eq!((after.stable, after.phase), (before.stable, before.phase));
    assert_eq!(after.canary.map(|c| c.variant), before.canary.map(|c| c.variant));
    // When only the folder of the state was removed, it is made anew.
    fs::remove_dir_all(&own).unwrap();
    fs::write(watched.join("release.yaml"), release("v1")).unwrap();
    place.seconds(2);
    assert!(own.join("state.json").exists());
}

#[test]
fn a_release_that_only_the_state_knows_is_said() {
    let mut place = Place::with_a_failure();
    place.process = None;
    fs::remove_file(place.path("state.json.in-force")).unwrap();
    fs::remove_file(place.path("release.yaml")).unwrap();
    place.restart();
    let news = place.seconds(3);
    let said = news.iter().filter(|n| n.starts_with("Deleted: PromptRelease default/r: is in the"));
    assert_eq!(said.count(), 1, "{news:?}");
    // And what it was goes on when it returns.
    place.write_release(&release("v2"));
    place.seconds(3);
    assert_eq!(place.status().phase, Phase::RolledBack);
}

#[test]
fn what_is_removed_beside_the_manifests_is_written_again() {
    let mut place = Place::new();
    place.ticks(3);
    let own = place.state_file();
    let files: Vec<PathBuf> = ["", ".in-force", ".before"]
        .map(|ending| PathBuf::from(format!("{}{ending}", own.display())))
        .to_vec();
    let names = |place: &mut Place| {
        place.ticks(2);
        files.iter().filter(|file| file.exists()).count()
    };
    assert_eq!(names(&mut place), 3);
    let status = place.status();
    // `git clean`, at rest: nothing else changes.
    files.iter().for_each(|file| fs::remove_file(file).unwrap());
    assert_eq!(names(&mut place), 3);
    for file in &files {
        fs::remove_file(file).unwrap();
        assert_eq!(names(&mut place), 3, "{}", file.display());
    }
    // A typo at the next start changes nothing.
    place.write_release("spec: [\n");
    place.restart();
    place.ticks(4);
    let now = place.status();
    assert_eq!((now.stable, now.phase, place.served().len()), (status.stable, status.phase, 1));
}

#[test]
fn a_state_file_that_was_moved_away_is_not_a_new_beginning() {
    let mut place = Place::with_a_failure();
    let before = place.kept();
    place.process = None;
    fs::rename(place.state_file(), place.path("state.json.broken")).unwrap();
    place.restart();
    let news = place.seconds(3);
    assert!(news.iter().any(|n| n.starts_with("StateRestored")), "{news:?}");
    assert_eq!((place.kept().0, place.status().stable), (before.0, before.1.stable));
    assert_eq!(place.status().phase, Phase::RolledBack);
}

#[test]
fn a_state_that_is_lost_where_releases_ran_ends_the_start() {
    let ending = |place: &Place, what: &str| place.path(&format!("state.json{what}"));
    for (what, spoil) in [
        ("both are missing", None),
        ("the one before is cut", Some("{\"default/r\": ")),
        ("the one before is empty", Some("")),
    ] {
        let mut place = Place::with_a_failure();
        let before = fs::read(ending(&place, ".before")).unwrap();
        place.process = None;
        fs::remove_file(ending(&place, "")).unwrap();
        match spoil {
            None => fs::remove_file(ending(&place, ".before")).unwrap(),
            Some(text) => fs::write(ending(&place, ".before"), text).unwrap(),
        }
        let error = format!("{:#}", place.open().err().unwrap());
        for part in ["state.json ", "state.json.before", "state.json.in-force", "without a canary"]
        {
            assert!(error.contains(part), "{what}: {error}");
        }
        assert!(!ending(&place, "").exists(), "{what}: nothing is written");
        // Restored, it goes on; without all of them it begins anew.
        fs::write(ending(&place, ".before"), before).unwrap();
        place.restart();
        place.ticks(3);
        assert_eq!(place.status().phase, Phase::RolledBack, "{what}");
        place.process = None;
        for gone in ["", ".before", ".in-force"] {
            fs::remove_file(ending(&place, gone)).unwrap();
        }
        place.restart();
        place.ticks(3);
        assert_eq!(place.status().phase, Phase::Stable, "{what}");
    }
}

#[test]
fn a_state_file_that_is_cut_anywhere_is_refused_and_left_alone() {
    let mut place = Place::with_a_failure();
    let whole = fs::read(place.state_file()).unwrap();
    place.process = None;
    for cut in (0..whole.len()).step_by(whole.len() / 40) {
        fs::write(place.state_file(), &whole[..cut]).unwrap();
        let error = format!("{:#}", place.open().err().unwrap());
        assert!(error.contains("state.json.before"), "{error}");
        assert_eq!(fs::read(place.state_file()).unwrap(), whole[..cut]);
    }
}

#[test]
fn what_another_version_wrote_into_the_state_is_kept_aside() {
    let mut place = Place::new();
    place.ticks(3);
    place.process = None;
    let text = fs::read_to_string(place.state_file()).unwrap();
    let newer = text.replacen("\"phase\"", "\"newThing\":{\"a\":1},\"phase\"", 1);
    fs::write(place.state_file(), &newer).unwrap();
    place.restart();
    let news = place.seconds(2);
    let told = news.iter().find(|n| n.starts_with("StateOfAnotherVersion")).unwrap();
    assert!(told.contains("default/r.status.newThing"), "{told}");
    assert_eq!(fs::read_to_string(place.path("state.json.other-version")).unwrap(), newer);
    place.restart();
    let news = place.seconds(2);
    assert!(!news.iter().any(|n| n.starts_with("StateOfAnotherVersion")), "{news:?}");
}

#[test]
fn a_route_whose_release_is_there_twice_says_so_to_who_asks_for_it() {
    let mut place = Place::new();
    place.process = None;
    fs::remove_file(place.state_file()).unwrap();
    for file in ["state.json.before", "state.json.in-force"] {
        let _ = fs::remove_file(place.path(file));
    }
    place.write("copy.yaml", &release("v2"));
    place.restart();
    place.seconds(3);
    assert_eq!(place.served(), [""; 0]);
    let told = place.gateway.notices().of_route("r", |_| true).unwrap();
    assert!(told.contains("DefinedTwice") && told.contains("copy.yaml"), "{told}");
}

#[test]
fn a_state_file_that_is_not_ours_is_refused_and_left_alone() {
    let mut place = Place::new();
    place.seconds(5);
    let before = fs::read_to_string(place.path("state.json.before")).unwrap();
    assert!(before.contains("default/r"), "{before}");
    place.process = None;
    // Also one that somebody has emptied: what is deleted stays in it.
    for other in ["{ not a state", "{}", "null", "[]"] {
        fs::write(place.state_file(), other).unwrap();
        let error = format!("{:#}", place.open().err().unwrap());
        assert!(error.contains("move it away to start anew"), "{other}: {error}");
        assert_eq!(fs::read_to_string(place.state_file()).unwrap(), other);
    }
}
