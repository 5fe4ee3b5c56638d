//! Schema pieces that several kinds share.
//!
//! What is stored as it was written is a map of anything, not an object with unknown fields
//! (`x-kubernetes-preserve-unknown-fields` beside `type: object`). Kubernetes (1.36) compares
//! unknown fields by the names in the new object only: two objects with as many fields under
//! other names are equal, so a rule like `self == oldSelf` would let such a change through.
//! The values of a map are compared as a whole.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

/// A JSON object that is stored as written, for example a JSON Schema.
pub(super) fn free_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        // Without `nullable` the API server would drop a null.
        "additionalProperties": { "x-kubernetes-preserve-unknown-fields": true, "nullable": true },
    })
}

/// A list of JSON objects that are stored as written, at most `MAX`.
pub(super) fn free_objects<const MAX: u32>(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": MAX, "items": free_object(generator) })
}

/// What a status keeps for the judge, which the schema does not describe: 150 KB of definition
/// for what nobody writes by hand. The API server lets anything through, so what can not be
/// read counts as taken out, as a whole: no part of it flatters a variant, and an object with
/// it is no object that a watch fails on.
pub(super) fn if_readable<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned + Default,
{
    let stored = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(stored).unwrap_or_default())
}

/// Short texts by short names.
pub(super) fn short_texts(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": { "type": "string", "maxLength": 1024 },
    })
}

/// The name of an object in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalRef {
    /// The object's name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

impl From<&str> for LocalRef {
    fn from(name: &str) -> Self {
        Self { name: name.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::api::PromptReleaseStatus;

    /// What the API server lets through, because the definition does not describe it.
    #[test]
    fn what_can_not_be_read_of_the_judges_memory_counts_as_taken_out_as_a_whole() {
        let good = json!({"instance": "a", "stable": {"assigned": 7}, "canary": {}});
        let read = |status: Value| serde_json::from_value::<PromptReleaseStatus>(status).unwrap();
        let status = read(json!({"evidence": [good]}));
        assert_eq!(status.evidence[0].stable.assigned, 7);
        for bad in [
            json!({"instance": "b", "stable": {"assigned": -1}, "canary": {}}),
            json!({"instance": "b", "stable": {"ttft": {"never": 1}}, "canary": {}}),
            json!({"instance": "b", "stable": null, "canary": {}}),
            json!(7),
        ] {
            let status = read(json!({
                "evidence": [good, bad],
                "earlierSteps": [{"step": 0, "stable": {}, "canary": {}}, bad],
                "analysis": [{"metric": "errors", "verdict": "Pass", "turn": bad, "batches": bad,
                              "inStep": bad}],
            }));
            assert!(status.evidence.is_empty() && status.earlier_steps.is_empty(), "{bad}");
            let [metric] = &status.analysis[..] else { panic!("{status:?}") };
            assert!(metric.turn.is_none() && metric.batches.is_none(), "{bad}");
            assert!(metric.in_step.is_none(), "{bad}");
        }
        let status = read(json!({"evidence": null, "earlierSteps": "x"}));
        assert!(status.evidence.is_empty() && status.earlier_steps.is_empty());
    }
}
