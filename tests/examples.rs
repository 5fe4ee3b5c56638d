//! Every manifest that people copy is valid.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when something is wrong")]

use std::{fs, path::Path};

use serinus::{
    analysis::plan::{Assumptions, WANTED, plan},
    api::{
        CanaryPolicySpec, LLMDeploymentSpec,
        manifest::{self, Object},
    },
    rollout::resolve,
};

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

/// The policies of a text, with the rate at which the text says to plan them.
fn policies(name: &str, text: &str) -> Vec<(String, CanaryPolicySpec, f64)> {
    let rates = text.split("--rps ").skip(1);
    let rate = rates.filter_map(|t| t.split(['`', '\n', ' ']).next()?.parse().ok()).next();
    let objects = if name.ends_with(".yaml") {
        manifest::parse(text).unwrap()
    } else {
        let blocks = text.split("```yaml\n").skip(1).map(|b| b.split("```").next().unwrap());
        let ours = blocks.filter(|b| b.contains("apiVersion: serinus.dev"));
        ours.flat_map(|block| manifest::parse(block).unwrap()).collect()
    };
    let backends: Vec<(&str, &LLMDeploymentSpec)> = objects
        .iter()
        .filter_map(|o| match o {
            Object::Backend(b) => Some((b.metadata.name.as_deref()?, &b.spec)),
            _ => None,
        })
        .collect();
    let of = |o: &Object| match o {
        Object::Policy(p) => {
            let without = resolve::without_data(&p.spec, &backends, None);
            assert_eq!(without, vec![], "{name}");
            let rate =
                rate.unwrap_or_else(|| panic!("{name} says no rate: serinus plan … --rps N"));
            Some((format!("{name}: {}", p.metadata.name.clone()?), p.spec.clone(), rate))
        }
        _ => None,
    };
    objects.iter().filter_map(of).collect()
}

#[test]
fn every_policy_that_people_copy_promotes_a_canary_like_stable() {
    let mut all = vec![("the default".to_owned(), resolve::careful(), 5.0)];
    for folder in ["examples", "docs", "."] {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "yaml" || e == "md") {
                let text = fs::read_to_string(&path).unwrap();
                all.extend(policies(&path.to_string_lossy(), &text));
            }
        }
    }
    assert!(all.len() >= 5, "{}", all.len());
    for (name, policy, rate) in all {
        let plan = plan(&policy, &Assumptions::default(), Some(rate));
        assert_eq!(plan.problems, Vec::<String>::new(), "{name}");
        assert!(plan.promotes >= WANTED, "{name}: {} at {rate}/s, {:?}", plan.promotes, plan.hints);
    }
}

#[test]
fn every_reason_is_explained() {
    let text = fs::read_to_string(root().join("docs/reasons.md")).unwrap();
    let missing: Vec<&&str> = serinus::rollout::decide::REASONS
        .iter()
        .chain(&serinus::rollout::resolve::REASONS)
        .chain(&serinus::rollout::retirement::REASONS)
        .chain(&serinus::signals::prometheus::REASONS)
        .filter(|reason| !text.contains(&format!("`{reason}`")))
        .collect();
    assert!(missing.is_empty(), "docs/reasons.md does not explain {missing:?}");
}
