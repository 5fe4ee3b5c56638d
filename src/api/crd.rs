//! The CustomResourceDefinitions, generated from the types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use super::{CanaryPolicy, LLMDeployment, PromptRelease, PromptVersion};

/// All definitions, by the file name that they have under `crds/`.
pub fn all() -> Vec<(&'static str, CustomResourceDefinition)> {
    vec![
        ("llmdeployments.yaml", LLMDeployment::crd()),
        ("promptversions.yaml", PromptVersion::crd()),
        ("canarypolicies.yaml", CanaryPolicy::crd()),
        ("promptreleases.yaml", PromptRelease::crd()),
    ]
}

/// One definition as the YAML that is checked in.
///
/// # Errors
/// When the definition can not be written as YAML.
pub fn to_yaml(crd: &CustomResourceDefinition) -> Result<String, serde_yaml_ng::Error> {
    Ok(format!(
        "# Generated from src/api by `serinus crd`: do not edit.\n{}",
        serde_yaml_ng::to_string(crd)?
    ))
}
