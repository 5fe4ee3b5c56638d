//! Schema pieces that several kinds share.
//!
//! What is stored as it was written is a map of anything, not an object with unknown fields
//! (`x-kubernetes-preserve-unknown-fields` beside `type: object`). Kubernetes (1.36) compares
//! unknown fields by the names in the new object only: two objects with as many fields under
//! other names are equal, so a rule like `self == oldSelf` would let such a change through.
//! The values of a map are compared as a whole.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A JSON object that is stored as written, for example a JSON Schema.
pub(super) fn free_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        // Without `nullable` the API server would drop a null.
        "additionalProperties": { "x-kubernetes-preserve-unknown-fields": true, "nullable": true },
    })
}

/// A list of JSON objects that are stored as written, at most 128.
pub(super) fn free_objects(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": 128, "items": free_object(generator) })
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
