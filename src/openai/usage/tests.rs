//! What the shapes mean; whole answers of real servers are in `tests/fixtures/providers`.

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

fn tokens(usage: &str) -> Tokens {
    serde_json::from_str::<Usage>(usage).unwrap().tokens()
}

fn input_and_output(usage: &str) -> (Option<u64>, Option<u64>) {
    let tokens = tokens(usage);
    (tokens.input, tokens.output)
}

#[test]
fn details_are_parts_of_the_whole() {
    let read = tokens(
        r#"{"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150,
            "prompt_tokens_details": {"cached_tokens": 80, "cache_write_tokens": 10},
            "completion_tokens_details": {"reasoning_tokens": 40}}"#,
    );
    let all = |input, cached, written, output, reasoning| Tokens {
        input: Some(input),
        cached_input: Some(cached),
        cache_write: Some(written),
        output: Some(output),
        reasoning: Some(reasoning),
    };
    assert_eq!(read, all(100, 80, 10, 50, 40));
}

#[test]
fn anthropics_own_input_leaves_the_cached_out() {
    let read = tokens(
        r#"{"input_tokens": 50, "cache_read_input_tokens": 1000, "cache_creation_input_tokens": 200, "output_tokens": 9}"#,
    );
    assert_eq!(
        (read.input, read.cached_input, read.cache_write),
        (Some(1250), Some(1000), Some(200))
    );
    // The same names beside `prompt_tokens` are parts of it.
    let read = tokens(
        r#"{"prompt_tokens": 1250, "cache_read_input_tokens": 1000, "completion_tokens": 9}"#,
    );
    assert_eq!((read.input, read.cached_input), (Some(1250), Some(1000)));
}

#[test]
fn a_part_larger_than_the_whole_is_beside_it() {
    let cached = r#"{"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 1015, "prompt_tokens_details": {"cached_tokens": 1000}}"#;
    assert_eq!(input_and_output(cached), (Some(1010), Some(5)));
    let thinking = r#"{"prompt_tokens": 33, "completion_tokens": 7163, "total_tokens": 7196, "reasoning_tokens": 73997}"#;
    assert_eq!(input_and_output(thinking), (Some(33), Some(81160)));
}

#[test]
fn hidden_thinking_shows_in_the_total() {
    // 12 in, 1 written, 386 thought.
    let xai = r#"{"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 399, "completion_tokens_details": {"reasoning_tokens": 386}}"#;
    assert_eq!(input_and_output(xai), (Some(12), Some(387)));
    let gemini = r#"{"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623}"#;
    assert_eq!(input_and_output(gemini), (Some(20), Some(603)));
    // All of the limit went into thinking.
    let gemini = r#"{"prompt_tokens": 20, "total_tokens": 120}"#;
    assert_eq!(input_and_output(gemini), (Some(20), Some(100)));
    // A total that does not fit takes nothing away.
    let small = r#"{"prompt_tokens": 20, "completion_tokens": 7, "total_tokens": 3}"#;
    assert_eq!(input_and_output(small), (Some(20), Some(7)));
}

#[test]
fn embeddings_are_known_to_have_no_output() {
    assert_eq!(input_and_output(r#"{"prompt_tokens": 8, "total_tokens": 8}"#), (Some(8), Some(0)));
    assert_eq!(input_and_output(r#"{"prompt_tokens": 8}"#), (Some(8), None));
}

#[test]
fn timings_without_the_cached_part_do_not_tell_the_input() {
    let read = |text: &str| serde_json::from_str::<Timings>(text).unwrap().tokens();
    let new = read(r#"{"cache_n": 236, "prompt_n": 1, "predicted_n": 35, "prompt_ms": 30.958}"#);
    assert_eq!((new.input, new.cached_input, new.output), (Some(237), Some(236), Some(35)));
    let old = read(r#"{"prompt_n": 1, "predicted_n": 35}"#);
    assert_eq!((old.input, old.output), (None, Some(35)));
}

#[test]
fn the_last_of_each_kind_holds() {
    let mut seen = Tokens::default();
    for usage in [
        r#"{"input_tokens": 25, "cache_read_input_tokens": 5, "output_tokens": 1}"#,
        "null",
        r#"{"output_tokens": 15}"#,
        r#"{"completion_tokens": 16, "prompt_tokens": null}"#,
    ] {
        seen.absorb(tokens(usage));
    }
    assert_eq!((seen.input, seen.cached_input, seen.output), (Some(30), Some(5), Some(16)));
}

#[test]
fn another_type_is_unknown_and_no_error() {
    for usage in ["null", "3", "-3", "1.5", "true", "\"x\"", "[1, {\"a\": []}]", "{}"] {
        assert_eq!(tokens(usage), Tokens::default(), "{usage}");
    }
    for wrong in ["null", "-3", "1.5", "1e300", "true", "\"7\"", "[7]", "{\"n\": 7}"] {
        let usage = format!(
            r#"{{"prompt_tokens": {wrong}, "prompt_tokens_details": {wrong}, "completion_tokens": 4, "cached_tokens": {wrong}}}"#
        );
        let read = tokens(&usage);
        assert_eq!((read.input, read.cached_input, read.output), (None, None, Some(4)), "{usage}");
    }
    assert_eq!(tokens(r#"{"prompt_tokens": 12.0}"#).input, Some(12));
}

#[test]
fn it_is_read_where_it_is_nested_and_from_a_parsed_value() {
    #[derive(Deserialize)]
    struct Event {
        #[serde(default)]
        usage: Option<Usage>,
        #[serde(default)]
        x_groq: Nested,
    }
    let text = r#"{"id": "1", "usage": null, "x_groq": {"id": "r", "usage": {"prompt_tokens": 3, "completion_tokens": 4, "queue_time": 0.1}}}"#;
    let event: Event = serde_json::from_str(text).unwrap();
    assert_eq!(event.usage, None);
    assert_eq!(event.x_groq.usage.tokens().output, Some(4));
    let value: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(Nested::deserialize(&value["x_groq"]).unwrap(), event.x_groq);
    let event: Event = serde_json::from_str(r#"{"x_groq": "no", "usage": []}"#).unwrap();
    assert_eq!((event.usage, event.x_groq), (Some(Usage::default()), Nested::default()));
}

/// Any JSON, with the names that are read among its keys.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        ".{0,8}".prop_map(Into::into),
    ];
    let name = prop_oneof![
        Just("prompt_tokens".to_owned()),
        Just("completion_tokens".to_owned()),
        Just("total_tokens".to_owned()),
        Just("prompt_tokens_details".to_owned()),
        Just("cached_tokens".to_owned()),
        Just("input_tokens".to_owned()),
        Just("cache_read_input_tokens".to_owned()),
        Just("reasoning_tokens".to_owned()),
        ".{0,8}",
    ];
    leaf.prop_recursive(3, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            prop::collection::hash_map(name.clone(), inner, 0..8)
                .prop_map(|map| map.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}

proptest! {
    /// Whatever a server sends: no error, no overflow, and parts fit into their whole.
    #[test]
    fn any_json_is_read(usage in any_json()) {
        let text = usage.to_string();
        let read = tokens(&text);
        prop_assert_eq!(read, Usage::deserialize(&usage).unwrap().tokens());
        if let (Some(cached), Some(input)) = (read.cached_input, read.input) {
            prop_assert!(cached <= input);
        }
        if let (Some(reasoning), Some(output)) = (read.reasoning, read.output) {
            prop_assert!(reasoning <= output);
        }
    }
}
