//! The definitions under `crds/` are exactly what the types generate.

use std::{fs, path::Path};

use serde_json::{Value, json};
use serinus::api::crd;

#[test]
fn the_checked_in_definitions_are_what_the_types_generate() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
    for (file, definition) in crd::all() {
        let fresh = crd::to_yaml(&definition).unwrap();
        let path = folder.join(file);
        if std::env::var_os("SERINUS_REFRESH").is_some() {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&path, &fresh).unwrap();
        }
        let kept = fs::read_to_string(&path).unwrap_or_default();
        assert!(kept == fresh, "crds/{file} is stale: run `make generate` and read the diff");
    }
}

/// Every default within `schema`, by its path; only those inside lists with `in_list`.
fn defaults(schema: &Value, path: &str, in_list: bool, found: &mut Vec<String>) {
    if in_list && schema.get("default").is_some() {
        found.push(path.to_owned());
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, property) in properties.into_iter().flatten() {
        defaults(property, &format!("{path}.{name}"), in_list, found);
    }
    if let Some(values) = schema.get("additionalProperties") {
        defaults(values, &format!("{path}.*"), in_list, found);
    }
    if let Some(items) = schema.get("items") {
        defaults(items, &format!("{path}[]"), true, found);
    }
}

#[test]
fn no_default_is_inside_a_list_where_it_would_be_seen_as_a_difference_for_ever() {
    let (mut within, mut lists) = (vec![], 0);
    for (file, definition) in crd::all() {
        let definition = serde_json::to_value(&definition).unwrap();
        for version in definition["spec"]["versions"].as_array().unwrap() {
            let schema = &version["schema"]["openAPIV3Schema"];
            defaults(schema, file, false, &mut within);
            lists += schema.to_string().matches("\"items\":").count();
        }
    }
    assert!(lists > 20, "the schemas are read: {lists}");
    assert_eq!(within, Vec::<String>::new());
}

/// Every object of `schema` that has fields which the schema does not name, by its path.
fn unknown_fields(schema: &Value, path: &str, found: &mut Vec<String>) {
    if schema["type"] == "object" && schema["x-kubernetes-preserve-unknown-fields"] == true {
        found.push(path.to_owned());
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        unknown_fields(property, &format!("{path}.{name}"), found);
    }
    unknown_fields_of(schema, "additionalProperties", path, found);
    unknown_fields_of(schema, "items", path, found);
}

fn unknown_fields_of(schema: &Value, part: &str, path: &str, found: &mut Vec<String>) {
    if let Some(values) = schema.get(part).filter(|values| values.is_object()) {
        unknown_fields(values, &format!("{path}.{part}"), found);
    }
}

#[test]
fn what_is_stored_as_written_is_compared_as_a_whole() {
    let (mut found, mut free) = (vec![], 0);
    for (file, definition) in crd::all() {
        let definition = serde_json::to_value(&definition).unwrap();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        unknown_fields(schema, file, &mut found);
        free += schema.to_string().matches("preserve-unknown-fields").count();
    }
    assert!(free >= 4, "prompts have some: {free}");
    assert_eq!(found, Vec::<String>::new(), "see src/api/schema.rs");
}

#[test]
fn no_column_of_a_table_shows_one_item_of_a_list() {
    for (file, definition) in crd::all() {
        for column in definition.spec.versions.iter().flat_map(|v| &v.additional_printer_columns) {
            for column in column {
                let path = &column.json_path;
                // One condition by its type is one item, and is meant.
                let lists = path.replace("conditions[?(@.type==", "");
                assert!(!lists.contains('['), "{file}: {} shows {path}", column.name);
            }
        }
    }
}

/// What of `schema` departs from the conventions of Kubernetes' own API (those rules of
/// kube-api-linter that a schema shows; docs/decisions/0022), by its path.
fn departures(schema: &Value, path: &str, found: &mut Vec<String>) {
    let has = |key: &str| schema.get(key).is_some();
    let mut note = |what: &str| found.push(format!("{path}: {what}"));
    match schema["type"].as_str() {
        Some("string") if !has("maxLength") && !has("enum") && !has("format") => {
            note("a text without an end");
        }
        Some("array") if !has("maxItems") => note("a list without an end"),
        Some("array") if path.contains(".spec") && !has("x-kubernetes-list-type") => {
            note("a list that does not say how it is merged");
        }
        Some("integer") if schema["format"] != "int32" && schema["format"] != "int64" => {
            note("a number of another size than int32 and int64");
        }
        _ => {}
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let is_top = !path.contains('.') && matches!(name.as_str(), "metadata" | "spec");
        if !is_top && property["description"].as_str().is_none_or(str::is_empty) {
            found.push(format!("{path}.{name}: nothing for kubectl explain"));
        }
        if !name.starts_with(|c: char| c.is_ascii_lowercase())
            || !name.chars().all(|c| c.is_ascii_alphanumeric())
        {
            found.push(format!("{path}.{name}: a name that is not in camelCase"));
        }
        departures(property, &format!("{path}.{name}"), found);
    }
    for part in ["items", "additionalProperties"] {
        if schema.get(part).is_some_and(Value::is_object) {
            departures(&schema[part], &format!("{path}[]"), found);
        }
    }
}

#[test]
fn definitions_follow_the_conventions_of_kubernetes() {
    let (mut found, mut fields) = (vec![], 0);
    for (file, definition) in crd::all() {
        let definition = serde_json::to_value(&definition).unwrap();
        for version in definition["spec"]["versions"].as_array().unwrap() {
            let schema = &version["schema"]["openAPIV3Schema"];
            departures(schema, file.trim_end_matches(".yaml"), &mut found);
            fields += schema.to_string().matches("\"description\":").count();
            let conditions = schema.pointer("/properties/status/properties/conditions");
            if let Some(conditions) = conditions {
                assert_eq!(conditions["x-kubernetes-list-map-keys"], json!(["type"]), "{file}");
                assert_eq!(version["subresources"]["status"], json!({}), "{file}");
            }
        }
    }
    assert!(fields > 150, "the schemas are read: {fields}");
    assert_eq!(found, Vec::<String>::new());
}

/// 40 KB, as YAML: what a client downloads for `kubectl explain`, and what a person can read.
#[test]
fn definitions_are_small_enough_to_be_read() {
    for (file, definition) in crd::all() {
        let size = crd::to_yaml(&definition).unwrap().len();
        assert!(size <= 40_000, "{file} has {size} bytes");
    }
}
