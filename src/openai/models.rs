//! The list of models (`GET /models`): when one of them ends. OpenAI tells `shutdown_date`, a
//! day or null (<https://developers.openai.com/api/reference/resources/models/methods/list>).

use jiff::civil::Date;
use serde::Deserialize;

/// Longer lists are not read. That of a proxy for hundreds of models has this much.
pub const LARGEST: usize = 2 << 20;

#[derive(Deserialize)]
struct Models {
    data: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    id: String,
    #[serde(default)]
    shutdown_date: Option<String>,
}

/// The day on which a list says that `model` ends, or that it says none; none when it is no
/// list, or does not have the model.
pub fn shutdown_date(json: &[u8], model: &str) -> Option<Option<Date>> {
    let list: Models = serde_json::from_slice(json).ok()?;
    let own = list.data.into_iter().find(|listed| listed.id == model)?;
    // A date in another form says that the model ends, and not when.
    own.shutdown_date.map_or(Some(None), |date| date.parse().ok().map(Some))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_tells_when_a_model_ends_or_that_no_day_is_known() {
        let list = br#"{"object": "list", "data": [
            {"id": "gpt-4o", "object": "model", "created": 1, "owned_by": "system", "shutdown_date": "2027-01-14"},
            {"id": "gpt-5.5", "object": "model", "shutdown_date": null},
            {"id": "of-vllm", "object": "model", "owned_by": "vllm"},
            {"id": "odd", "object": "model", "shutdown_date": "soon"}]}"#;
        let date = "2027-01-14".parse().unwrap();
        for (model, expected) in [
            ("gpt-4o", Some(Some(date))),
            ("gpt-5.5", Some(None)),
            ("of-vllm", Some(None)),
            ("odd", None),
            ("gpt", None),
        ] {
            assert_eq!(shutdown_date(list, model), expected, "{model}");
        }
        assert_eq!(shutdown_date(br#"{"error": {"message": "no key"}}"#, "gpt-4o"), None);
    }
}
