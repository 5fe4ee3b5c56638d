//! Every manifest that people copy is valid.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when something is wrong")]

use std::{fs, path::Path};

use serinus::api::manifest::{self, Object};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_example_is_valid_and_its_references_exist() {
    let mut all = vec![];
    for entry in fs::read_dir(root().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        all.extend(manifest::parse(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
    }
    let has = |kind: &str, name: &str| {
        all.iter().any(|o| o.kind() == kind && o.metadata().name.as_deref() == Some(name))
    };
    let mut releases = 0;
    for object in &all {
        let Object::Release(release) = object else { continue };
        releases += 1;
        assert!(has("PromptVersion", &release.spec.prompt_ref.name));
        assert!(has("LLMDeployment", &release.spec.backend_ref.name));
        let policy = release.spec.policy_ref.as_ref();
        assert!(policy.is_none_or(|p| has("CanaryPolicy", &p.name)));
    }
    assert!(releases >= 3);
}

#[test]
fn every_manifest_in_a_document_is_valid() {
    let mut documents = vec![root().join("README.md")];
    documents.extend(fs::read_dir(root().join("docs")).unwrap().map(|e| e.unwrap().path()));
    let mut seen = 0;
    for path in documents.iter().filter(|p| p.extension().is_some_and(|e| e == "md")) {
        let text = fs::read_to_string(path).unwrap();
        for block in text.split("```yaml\n").skip(1).map(|b| b.split("```").next().unwrap()) {
            if block.contains("apiVersion: serinus.dev") {
                manifest::parse(block)
                    .unwrap_or_else(|e| panic!("{}: {e}\n{block}", path.display()));
                seen += 1;
            }
        }
    }
    assert!(seen > 0, "the README shows a release");
}

#[test]
fn every_reason_is_explained() {
    let text = fs::read_to_string(root().join("docs/reasons.md")).unwrap();
    let missing: Vec<&&str> = serinus::rollout::decide::REASONS
        .iter()
        .chain(&serinus::signals::prometheus::REASONS)
        .filter(|reason| !text.contains(&format!("`{reason}`")))
        .collect();
    assert!(missing.is_empty(), "docs/reasons.md does not explain {missing:?}");
}
