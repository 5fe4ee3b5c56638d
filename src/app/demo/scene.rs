//! The manifests of the demo. They are ordinary ones: the same YAML works in a cluster
//! with another endpoint.

use serde_json::{Value, json};

use crate::api::SecretText;

/// The route, and the release's name.
pub(super) const ROUTE: &str = "support-answer";
/// `namespace/name` of the release.
pub(super) const RELEASE: &str = "default/support-answer";

/// How much a step looks at, and the margins (harm, accept) that it can tell.
struct Scale {
    weight: u8,
    samples: [u32; 2],
    share: [f64; 2],
    slow: [f64; 2],
    cost: [f64; 2],
}

const SIMULATED: Scale = Scale {
    weight: 10,
    samples: [150, 400],
    share: [0.02, 0.08],
    slow: [0.10, 0.25],
    cost: [0.25, 1.0],
};
const REAL: Scale = Scale {
    weight: 25,
    samples: [50, 80],
    share: [0.05, 0.25],
    slow: [0.25, 0.5],
    cost: [1.0, 4.0],
};

/// The backend, the policy and three prompts.
pub(super) fn fixed(url: &str, model: &str, real: bool, has_key: bool) -> String {
    let key = if has_key { ", apiKeySecretRef: {name: demo, key: key}" } else { "" };
    // Names of models may hold what YAML reads differently.
    let (url, model) = (Value::from(url), Value::from(model));
    // A real model is slow, so its canary decides on little and tells big differences only.
    let scale = if real { REAL } else { SIMULATED };
    let markers = if real {
        ["", "", ""]
    } else {
        [
            "[[sim:firstTokenMs=60 tokens=30 quality=0.80]]",
            "[[sim:firstTokenMs=55 tokens=24 quality=0.92]]",
            "[[sim:firstTokenMs=60 tokens=30 quality=0.55 badJsonRate=0.25 errorRate=0.15]]",
        ]
    };
    let prompts = [
        ("support-answer-v1", "You answer questions about {{ product }}.", markers[0]),
        (
            "support-answer-v2",
            "You answer questions about {{ product }} in one short sentence.",
            markers[1],
        ),
        (
            "support-answer-v3",
            "Write about {{ product }}. Use no JSON at all, only a poem.",
            markers[2],
        ),
    ]
    .map(|(name, text, marker)| {
        // A real model does as it is told; cut off, the third prompt fails for sure.
        let tokens = if real && name.ends_with("v3") { 4 } else { 128 };
        prompt(name, text, marker, tokens)
    })
    .concat();
    format!(
        r#"apiVersion: serinus.dev/v1alpha1
kind: LLMDeployment
metadata: {{name: demo-model}}
spec:
  provider: openai
  model: {model}
  endpoint: {{url: {url}{key}}}
  pricing: {{inputPerMillion: 0.15, outputPerMillion: 0.60}}
---
apiVersion: serinus.dev/v1alpha1
kind: CanaryPolicy
metadata: {{name: quick}}
spec:
  steps:
    - {{weight: {}, samples: {}}}
    - {{weight: 50, samples: {}}}
  analysis:
    interval: 500ms
    metrics:
      - {{name: errors, errorRate: {{}}, margin: {{harm: {harm}, accept: {accept}}}}}
      - {{name: ttft, timeToFirstToken: {{quantile: 0.9}}, margin: {{harm: {slower}, accept: {slow}}}}}
      - {{name: checks, checkFailures: {{}}, margin: {{harm: {harm}, accept: {accept}}}}}
      - {{name: cost, costPerRequest: {{}}, margin: {{harm: {dearer}, accept: {dear}}}}}
  bake: {{duration: 4s}}
{prompts}"#,
        scale.weight,
        scale.samples[0],
        scale.samples[1],
        harm = scale.share[0],
        accept = scale.share[1],
        slower = scale.slow[0],
        slow = scale.slow[1],
        dearer = scale.cost[0],
        dear = scale.cost[1],
    )
}

/// The Secret with the endpoint's key.
pub(super) fn secret(key: &SecretText) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "demo"},
        "stringData": {"key": key.expose()},
    })
}

fn prompt(name: &str, text: &str, marker: &str, tokens: u32) -> String {
    format!(
        r#"---
apiVersion: serinus.dev/v1alpha1
kind: PromptVersion
metadata: {{name: {name}}}
spec:
  prompt: support-answer
  messages:
    - {{role: system, content: "{text} Answer as a JSON object with the field answer. {marker}"}}
    - {{role: user, content: "{{{{ question }}}}"}}
  variables:
    type: object
    required: [product, question]
    properties: {{product: {{type: string}}, question: {{type: string}}}}
  parameters: {{maxTokens: {tokens}}}
  responseFormat:
    type: object
    required: [answer]
    properties: {{answer: {{type: string}}}}
"#
    )
}

/// The release, naming one of the prompts.
pub(super) fn release(version: u8) -> String {
    format!(
        "apiVersion: serinus.dev/v1alpha1\nkind: PromptRelease\nmetadata: {{name: {ROUTE}}}\nspec:\n  \
         promptRef: {{name: support-answer-v{version}}}\n  backendRef: {{name: demo-model}}\n  \
         policyRef: {{name: quick}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::manifest;

    #[test]
    fn the_manifests_of_the_demo_are_valid() {
        for real in [true, false] {
            let text = fixed("http://127.0.0.1:1/v1", "a: \"b\"", real, real);
            assert_eq!(manifest::parse(&text).unwrap().len(), 5);
        }
        assert_eq!(manifest::parse(&release(1)).unwrap().len(), 1);
        let key = SecretText::from("sk: \"planted\"".to_owned());
        assert_eq!(manifest::parse(&secret(&key).to_string()).unwrap().len(), 1);
    }
}
