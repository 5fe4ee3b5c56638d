//! Embeddings: vectors that depend on nothing but the text, as numbers or as base64 of
//! their 32-bit floats.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

const DIMENSIONS: u64 = 16;

pub(super) fn whole(request: &Value, input_tokens: usize) -> Value {
    let dimensions = request.get("dimensions").and_then(Value::as_u64).unwrap_or(DIMENSIONS);
    let base64 = request.get("encoding_format").and_then(Value::as_str) == Some("base64");
    // A list of numbers is one input in tokens.
    let inputs: Vec<&Value> = match request.get("input") {
        Some(Value::Array(all)) if !all.iter().all(Value::is_number) => all.iter().collect(),
        Some(one) => vec![one],
        None => vec![],
    };
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, input)| {
            let vector = vector(input, dimensions);
            let embedding = if base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
                json!(BASE64_STANDARD.encode(bytes))
            } else {
                json!(vector)
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    json!({
        "object": "list", "data": data, "model": request.get("model"),
        "usage": {"prompt_tokens": input_tokens, "total_tokens": input_tokens},
    })
}

/// Multiples of 1/128, which are the same in both forms.
fn vector(input: &Value, dimensions: u64) -> Vec<f32> {
    let seed = xxh3_64(input.to_string().as_bytes());
    (0..dimensions)
        .map(|i| {
            let [byte, ..] = xxh3_64(&(seed ^ i).to_le_bytes()).to_le_bytes();
            f32::from(byte.cast_signed()) / 128.0
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_the_same_vector_and_another_text_is_another() {
        let ask = |more: Value| {
            let mut request = json!({"model": "m", "input": ["a", "b"], "dimensions": 4});
            request.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
            whole(&request, 3)["data"].clone()
        };
        let numbers = ask(json!({}));
        let coded = ask(json!({"encoding_format": "base64"}));
        let bytes = BASE64_STANDARD.decode(coded[1]["embedding"].as_str().unwrap()).unwrap();
        let decoded: Vec<f32> =
            bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(json!(decoded), numbers[1]["embedding"]);
        assert_ne!(numbers[0]["embedding"], numbers[1]["embedding"]);
    }
}
