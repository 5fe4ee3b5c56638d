//! Standalone mode in virtual time: the same manifests, the same decisions, one file.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when something is wrong")]

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serinus::{
    api::prompt_release::{Outcome, Phase, PromptReleaseStatus},
    app::standalone::Standalone,
    gateway::{Gateway, GatewayConfig},
};
use tempfile::TempDir;

struct Place {
    folder: TempDir,
    gateway: Arc<Gateway>,
    standalone: Standalone,
    now: Timestamp,
}

const FIXED: &str = "
apiVersion: serinus.dev/v1alpha1
kind: LLMDeployment
metadata: {name: model}
spec: {provider: openai, model: m, endpoint: {url: http://127.0.0.1:1/v1}}
---
apiVersion: serinus.dev/v1alpha1
kind: PromptVersion
metadata: {name: v1}
spec: {prompt: p, messages: [{role: user, content: one}]}
---
apiVersion: serinus.dev/v1alpha1
kind: PromptVersion
metadata: {name: v2}
spec: {prompt: p, messages: [{role: user, content: two}]}
---
apiVersion: serinus.dev/v1alpha1
kind: CanaryPolicy
metadata: {name: quick}
spec: {steps: [{weight: 20, samples: 100}], bake: {duration: 0s}}
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
        let state = folder.path().join("state.json");
        let standalone = Standalone::open(folder.path(), state, gateway.clone()).unwrap();
        Self { folder, gateway, standalone, now: Timestamp::UNIX_EPOCH }
    }

    fn state_file(&self) -> PathBuf {
        self.folder.path().join("state.json")
    }

    /// A process that died and was started again.
    fn restart(&mut self) {
        self.gateway = gateway();
        self.standalone =
            Standalone::open(self.folder.path(), self.state_file(), self.gateway.clone()).unwrap();
    }

    fn tick(&mut self) -> Vec<String> {
        self.now = self.now.checked_add(SignedDuration::from_millis(500)).unwrap();
        let news = self.standalone.tick(self.now).unwrap();
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

    fn status(&self) -> PromptReleaseStatus {
        self.standalone.releases()[0].status.clone().unwrap()
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

#[test]
fn a_state_file_that_is_not_ours_is_refused_and_left_alone() {
    let mut place = Place::new();
    place.tick();
    fs::write(place.state_file(), "{ not a state").unwrap();
    let opened = Standalone::open(place.folder.path(), place.state_file(), gateway());
    let error = format!("{:#}", opened.err().unwrap());
    assert!(error.contains("move it away to start anew"), "{error}");
    assert_eq!(fs::read_to_string(place.state_file()).unwrap(), "{ not a state");
}
