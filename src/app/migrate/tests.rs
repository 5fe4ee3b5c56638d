use super::*;
use crate::api::manifest::{self, Object};

fn backend(name: &str, model: &str, more: Value) -> LLMDeployment {
    let mut spec = json!({"provider": "openai", "model": model,
        "endpoint": {"url": "https://api.openai.com/v1", "apiKeySecretRef": {"name": "k", "key": "t"}}});
    let (Some(fields), Value::Object(more)) = (spec.as_object_mut(), more) else { panic!() };
    fields.extend(more);
    fields.retain(|_, value| !value.is_null());
    let metadata =
        json!({"name": name, "namespace": "shop", "labels": {"argocd.argoproj.io/instance": "x"}});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
}

fn release(name: &str, backend: &str, fallbacks: &[&str]) -> PromptRelease {
    let fallbacks: Vec<Value> = fallbacks.iter().map(|name| json!({"name": name})).collect();
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "shop", "labels": {"team": "a"}, "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": "{}", "serinus.dev/approve": "x",
            "own": "kept"}},
        "spec": {"promptRef": {"name": "p"}, "backendRef": {"name": backend},
            "policyRef": {"name": "careful"}, "fallbackBackendRefs": fallbacks},
    }))
    .unwrap()
}

fn options() -> Options {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }
    let line: Line = clap::Parser::parse_from(["x", "--from=gpt-4o", "--to=gpt-4.1"]);
    line.options
}

/// What is written, read as `kubectl apply` and standalone mode read it.
fn read_back(migration: &Migration) -> (String, Vec<Object>) {
    let text = migration.text(&options()).unwrap();
    let objects = manifest::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    (text, objects)
}

#[test]
fn everything_that_names_the_model_moves_and_the_rest_stays_as_it_is() {
    let old = backend(
        "eu-gpt-4o",
        "gpt-4o",
        json!({
        "retiresOn": "2027-01-14", "pricing": {"inputPerMillion": 1.0, "outputPerMillion": 2.0},
        "limits": {"maxConcurrency": 7}}),
    );
    let backends = [old, backend("other", "m", json!({}))];
    let releases = [
        release("answers", "eu-gpt-4o", &["other"]),
        release("spare", "other", &["eu-gpt-4o"]),
        release("elsewhere", "other", &[]),
    ];
    let (text, objects) = read_back(&migration("gpt-4o", "gpt-4.1", &backends, &releases).unwrap());
    let [Object::Backend(new), Object::Release(answers), Object::Release(spare)] =
        objects.as_slice()
    else {
        panic!("{text}")
    };
    assert_eq!((new.name_any().as_str(), new.spec.model.as_str()), ("eu-gpt-4-1", "gpt-4.1"));
    assert_eq!((&new.spec.retires_on, &new.spec.pricing), (&None, &None));
    assert!(text.contains("# spec.pricing was that of gpt-4o"), "{text}");
    assert_eq!(new.spec.limits.max_concurrency, 7);
    assert_eq!(new.spec.endpoint, backends[0].spec.endpoint);
    assert!(new.labels().is_empty(), "a tool would delete what it has not made");
    assert_eq!(answers.spec.backend_ref.name, "eu-gpt-4-1");
    assert_eq!(answers.spec.policy_ref, releases[0].spec.policy_ref);
    assert_eq!(answers.labels()["team"], "a");
    assert_eq!(answers.annotations().keys().collect::<Vec<_>>(), ["own"]);
    assert_eq!(spare.spec.backend_ref.name, "other");
    assert_eq!(spare.other_backends(), ["eu-gpt-4-1"]);
    for said in ["serinus watch answers -n shop", "kubectl delete llmdeployment eu-gpt-4o -n shop"]
    {
        assert!(text.contains(said), "{said}: {text}");
    }
}

#[test]
fn what_can_not_be_moved_is_refused_with_what_to_do() {
    let backends = [backend("a", "gpt-4o", json!({})), backend("b", "m", json!({}))];
    let (used, elsewhere) = ([release("r", "a", &[])], [release("r", "b", &[])]);
    let taken = |spec| [backends[0].clone(), backend("a-gpt-4-1", "gpt-4.1", spec)];
    let other = taken(json!({"endpoint": {"url": "https://other.example.com/v1"}}));
    for (from, to, backends, releases, said) in [
        ("gpt-4o", "gpt-4o", &backends[..], &used[..], "the same model"),
        ("gpt-5", "gpt-4.1", &backends[..], &used[..], "they have gpt-4o, m"),
        ("gpt-5", "gpt-4.1", &[][..], &used[..], "there are no LLMDeployments"),
        ("gpt-4o", "gpt-4.1", &backends[..], &elsewhere[..], "no PromptRelease uses"),
        ("gpt-4o", "gpt-4.1", &other[..], &used[..], "shop/a-gpt-4-1 exists and is not a"),
    ] {
        let why = migration(from, to, backends, releases).unwrap_err();
        assert!(why.contains(said), "{why}");
    }
    // The same backend with another price or limit is used as it is.
    let there = taken(json!({"limits": {"retries": 3}}));
    let migration = migration("gpt-4o", "gpt-4.1", &there, &used).unwrap();
    let (text, objects) = read_back(&migration);
    assert!(matches!(objects.as_slice(), [Object::Release(_)]), "{text}");
    assert!(text.contains("exists already"), "{text}");
}

#[test]
fn the_address_and_the_arguments_of_a_server_follow_the_model() {
    let azure =
        json!({"endpoint": {"url": "https://x.openai.azure.com/openai/deployments/gpt-4o"}});
    let serving = json!({"endpoint": null, "serving": {"image": "vllm/vllm-openai:v0.11",
        "args": ["--model=gpt-4o", "--served-model-name", "gpt-4o", "--seed=4"]}});
    let moved = |more: Value| moved_to(&backend("a", "gpt-4o", more).spec, "gpt-4o", "gpt-4.1");
    let url = moved(azure).spec.endpoint.unwrap().url;
    assert_eq!(url, "https://x.openai.azure.com/openai/deployments/gpt-4.1");
    let args = moved(serving).spec.serving.unwrap().args;
    assert_eq!(args, ["--model=gpt-4.1", "--served-model-name", "gpt-4.1", "--seed=4"]);
    let gpus = json!({"pricing": {"gpuHour": {"usd": 2.0, "concurrency": 8.0}}});
    assert!(moved(gpus).spec.pricing.is_some(), "that of GPUs is not that of the model");
    let unknown = moved_to(&backend("a", "gpt-4o", json!({})).spec, "gpt-4o", "no-such-model");
    assert!(unknown.comments.concat().contains("set spec.pricing"), "{:?}", unknown.comments);
}

#[test]
fn names_stay_valid() {
    for (old, from, to, new) in [
        ("gpt-4o", "gpt-4o", "gpt-5.1", "gpt-5-1"),
        ("prod-gpt-4o-eu", "gpt-4o", "gpt-5.1", "prod-gpt-5-1-eu"),
        ("model", "gpt-4o", "meta-llama/Llama-4", "model-meta-llama-llama-4"),
    ] {
        assert_eq!(new_name(old, from, to), new);
    }
    let long = new_name(&"a".repeat(50), "m", "x-1");
    assert_eq!(long, format!("{}-x", "a".repeat(50)));
    assert_eq!(
        new_name(&"a".repeat(51), "m", "x"),
        "a".repeat(51),
        "a name that is taken is refused"
    );
}

#[test]
fn a_release_that_moves_already_is_left_alone_and_told() {
    let mut moving = release("r", "b", &[]);
    moving.status = serde_json::from_value(json!({"phase": "Progressing",
        "stable": {"revision": "1", "prompt": "p", "backend": "a"}}))
    .unwrap();
    let backends = [backend("a", "gpt-4o", json!({})), backend("b", "m", json!({}))];
    let migration = migration("gpt-4o", "gpt-4.1", &backends, &[moving]).unwrap();
    assert!(migration.documents.is_empty());
    assert!(migration.notes.concat().contains("r moves already"), "{:?}", migration.notes);
}

#[test]
fn a_prompt_that_was_rolled_back_is_told() {
    let moved = |phase: &str, stable: &str| {
        let mut of = release("r", "a", &[]);
        of.status = serde_json::from_value(json!({"phase": phase,
            "stable": {"revision": "1", "prompt": stable, "backend": "a"}}))
        .unwrap();
        let migration =
            migration("gpt-4o", "gpt-4.1", &[backend("a", "gpt-4o", json!({}))], &[of]).unwrap();
        migration.text(&options()).unwrap()
    };
    assert!(
        moved("RolledBack", "before").contains("The prompt p was rolled back, and before serves")
    );
    // The same prompt on another model was.
    assert!(!moved("RolledBack", "p").contains("was rolled back"));
    assert!(!moved("Stable", "before").contains("was rolled back"));
}
