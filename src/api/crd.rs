//! The CustomResourceDefinitions, generated from the types.
//!
//! The API server writes the defaults of a schema into the object. Inside a list that is
//! seen as a difference for ever: `kubectl apply` and Argo CD compare lists as a whole, so
//! a list that was completed is never the list that somebody wrote. Therefore no schema has
//! a default inside a list; whoever reads the object fills it in, with the same value.
//!
//! Lists are of one author, too (`atomic`), because their order counts; only those whose items
//! have a name of their own (conditions, metrics) are merged item by item (`map`).
//!
//! A status has one author, who writes it whole. It is declared so (`atomic`): otherwise the API
//! server keeps a list of who wrote which field of it, which is as large as the status and
//! computed at each write.
//!
//! An object that no operator has looked at has no conditions, and kstatus, by which Helm and Flux
//! wait, takes an object without conditions for done. So a status has a default, with a generation
//! that no object has: kstatus waits until the operator writes the real one.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;
use serde_json::json;

use super::{
    CanaryPolicy, LLMDeployment, PromptRelease, PromptVersion, ReleaseSnapshot, conditions::UNSEEN,
};

/// All definitions, by the file name that they have under `crds/`.
pub fn all() -> Vec<(&'static str, CustomResourceDefinition)> {
    let mut all = vec![
        ("llmdeployments.yaml", LLMDeployment::crd()),
        ("promptversions.yaml", PromptVersion::crd()),
        ("canarypolicies.yaml", CanaryPolicy::crd()),
        ("promptreleases.yaml", PromptRelease::crd()),
        ("releasesnapshots.yaml", ReleaseSnapshot::crd()),
    ];
    for (_, definition) in &mut all {
        for version in &mut definition.spec.versions {
            let schema = version.schema.as_mut();
            if let Some(schema) = schema.and_then(|schema| schema.open_api_v3_schema.as_mut()) {
                drop_defaults_in_lists(schema, false);
                if let Some(spec) = schema.properties.as_mut().and_then(|p| p.get_mut("spec")) {
                    name_list_types(spec);
                }
                if let Some(status) = schema.properties.as_mut().and_then(|p| p.get_mut("status")) {
                    status.x_kubernetes_map_type = Some("atomic".to_owned());
                    status.default = Some(JSON(json!({ "observedGeneration": UNSEEN })));
                }
            }
        }
    }
    all
}

fn drop_defaults_in_lists(schema: &mut JSONSchemaProps, in_list: bool) {
    if in_list {
        schema.default = None;
    }
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        drop_defaults_in_lists(property, in_list);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        drop_defaults_in_lists(values, in_list);
    }
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => drop_defaults_in_lists(items, true),
        Some(JSONSchemaPropsOrArray::Schemas(all)) => {
            for items in all {
                drop_defaults_in_lists(items, true);
            }
        }
        None => {}
    }
}

/// Says of each list without a type that it is replaced as a whole.
fn name_list_types(schema: &mut JSONSchemaProps) {
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        name_list_types(property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        name_list_types(items);
        schema.x_kubernetes_list_type.get_or_insert_with(|| "atomic".to_owned());
    }
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
