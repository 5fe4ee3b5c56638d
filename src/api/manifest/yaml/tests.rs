use proptest::prelude::*;
use serde::Deserialize;
use serde_json::json;

use super::*;

fn fault(text: &str) -> Fault {
    documents(text).unwrap_err().fault
}

/// What `serde_yaml_ng` reads, which read manifests before.
fn as_before(text: &str) -> Option<Vec<Value>> {
    let documents = || serde_yaml_ng::Deserializer::from_str(text);
    let both = documents().zip(documents()).map(|(document, again)| {
        serde_yaml_ng::Value::deserialize(document).ok()?;
        Value::deserialize(again).ok()
    });
    both.collect()
}

#[test]
fn so_many_levels_are_read_and_one_more_is_not() {
    let block = |depth: usize| (0..depth).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
    let ways: [(&str, &dyn Fn(usize) -> String); 6] = [
        ("lists", &|depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth))),
        ("objects", &|depth| format!("{}1{}", "{a: ".repeat(depth), "}".repeat(depth))),
        ("block lists", &|depth| format!("{}1", "- ".repeat(depth))),
        ("block objects", &block),
        ("keys", &|depth| format!("{}a: 1", "- ".repeat(depth - 1))),
        ("both", &|depth| format!("- {}{}", "[".repeat(depth - 1), "]".repeat(depth - 1))),
    ];
    for (what, text) in ways {
        assert_eq!(documents(&text(DEEPEST)).unwrap().len(), 1, "{what}");
        assert_eq!(fault(&text(DEEPEST + 1)), Fault::TooDeep, "{what}");
    }
}

/// What made libyaml look at every level for every word: reading ends where the level is.
#[test]
fn what_is_too_deep_is_left_where_it_is_too_deep() {
    for unit in ["[", "{", "{a: ", "[{a: ", "- ", "? ", "- ? ", "[[], ", "[a, ", "{\"a\": [], b: "]
    {
        let text = unit.repeat(100_000);
        let error = documents(&text).unwrap_err();
        assert_eq!(error.fault, Fault::TooDeep, "{unit}");
        let read = error.line + error.column;
        assert!(read <= (DEEPEST + 2) * unit.len() + 1024, "{unit}: {read}");
    }
}

#[test]
fn where_a_bracket_is_text_there_is_one_opinion() {
    // Two parsers disagreed on these: to libyaml each unit opened one more list.
    for unit in ["[?\"],a\",", "[a :\"],b\","] {
        let text = format!("[{}]", unit.repeat(10_000));
        assert!(documents(&text).is_ok_and(|read| read[0].as_array().is_some()), "{unit}");
    }
    let breaks = ["\u{85}", "\u{2028}", "\u{2029}"];
    for other in breaks {
        let text = format!("a: 1 # {}", format!("{other}[").repeat(10_000));
        assert_eq!(documents(&text).unwrap(), [json!({"a": 1})]);
    }
}

#[test]
fn many_tag_lines_are_no_more_work_than_others() {
    let tags: String = (0..50_000).map(|i| format!("%TAG !a{i}! tag:x\n")).collect();
    assert_eq!(documents(&format!("{tags}--- 1")).unwrap(), [json!(1)]);
}

#[test]
fn aliases_are_written_out_up_to_a_bound() {
    let text = "a: &x [1, {b: 2}]\nc: *x\nd: &k key\n*k : *x\n";
    let x = json!([1, {"b": 2}]);
    assert_eq!(documents(text).unwrap(), [json!({"a": x, "c": x, "d": "key", "key": x})]);
    // The later anchor of a name counts from there on, and none counts in the next document.
    assert_eq!(documents("[&a 1, &a 2, &b 3, *a]").unwrap(), [json!([1, 2, 3, 2])]);
    assert!(matches!(fault("--- &a 1\n--- *a\n"), Fault::Syntax(ErrorKind::UnknownAnchor)));

    let long = "x".repeat(100_000);
    let names = |count: usize| format!("- &a {long}\n{}", "- *a\n".repeat(count));
    assert_eq!(documents(&names(50)).unwrap()[0].as_array().unwrap().len(), 51);
    assert_eq!(fault(&names(20_000)), Fault::TooManyCopies);
    let doubled: String =
        (1..100).map(|i| format!("- &a{i} [*a{}, *a{}]\n", i - 1, i - 1)).collect();
    assert_eq!(fault(&format!("- &a0 x\n{doubled}")), Fault::TooManyCopies);
    let nested = format!("- {}{long}{}", "&a [".repeat(120), "]".repeat(120));
    assert_eq!(fault(&nested), Fault::TooManyCopies, "each anchor keeps a copy");
}

#[test]
fn aliases_make_nothing_deeper_than_it_may_be() {
    let half = DEEPEST / 2;
    let list =
        |depth: usize, inner: &str| format!("{}{inner}{}", "[".repeat(depth), "]".repeat(depth));
    let text = |more: usize| format!("- &a {}\n- {}\n", list(half, "1"), list(more, "*a"));
    assert!(documents(&text(half - 1)).is_ok());
    assert_eq!(fault(&text(half)), Fault::TooDeep);
    assert_eq!(fault("&a [*a]"), Fault::OwnAlias);
    assert_eq!(fault("&a {b: *a}"), Fault::OwnAlias);
}

#[test]
fn words_and_tags_mean_what_they_meant() {
    let words = [
        "",
        "~",
        "null",
        "Null",
        "NULL",
        "nil",
        "true",
        "True",
        "TRUE",
        "yes",
        "on",
        "False",
        "0",
        "-0",
        "+1",
        "+-1",
        "--1",
        "007",
        "-007",
        "0.7",
        "00.7",
        "1_000",
        "0x1F",
        "-0x1f",
        "0o17",
        "0b101",
        "0x",
        "0xg",
        "0x-1",
        "18446744073709551615",
        "-9223372036854775808",
        ".5",
        "5.",
        "1e3",
        "1E-3",
        "1e400",
        "+.5",
        ".inf",
        "-.inf",
        "+.INF",
        ".nan",
        "inf",
        "nan",
        "infinity",
        "2026-11-28",
        "12:30",
        "a b",
        "'1'",
        "\"1\"",
        "\"\\u00e4\\t\"",
        "!!str 1",
        "!!int '1'",
        "!!float 1",
        "!!bool 'true'",
        "!!null ~",
        "!!str",
        "'it''s'",
        "<<",
        "=",
        "é",
        "1111111111111111111111111111111111111111111",
    ];
    for word in words {
        let (value, key) = (format!("a: {word}\n"), format!("? {word}\n: a\n"));
        assert_eq!(documents(&value).ok(), as_before(&value), "{value}");
        // As a key, nothing and a tag alone mean that there is no key.
        if !word.is_empty() && !word.starts_with('!') {
            assert_eq!(documents(&key).ok(), as_before(&key), "{key}");
        }
    }
    for tag in ["!x", "!x [1]", "!x {a: 1}", "!!int x", "!!bool 1", "!!null 1", "!", "!<x> 1"] {
        let read = documents(&format!("a: {tag}\n"));
        assert!(matches!(read.unwrap_err().fault, Fault::Tag), "{tag}");
    }
    for number in ["18446744073709551616", "-9223372036854775809"] {
        assert_eq!(fault(&format!("a: {number}")), Fault::TooLargeNumber);
    }
}

#[test]
fn texts_of_several_lines_are_what_they_were() {
    for text in [
        "a: |\n  x\n   y\n\n  z\n",
        "a: |-\n  x\n\n",
        "a: |+\n  x\n\n",
        "a: >\n  x\n  y\n\n  z\n",
        "a: |\n  x",
        "a: |2\n    x\n",
        "a: >-\n  x\n    y\n  z",
        "a: x\n  y\n\n  z\n",
        "a: \"x\n  y \\\n  z\"\n",
        "a: 'x\n\n  y'\n",
        "a: |\n\tx\n",
        "a: |\n  x\r\n  y\r\n",
        "a:\n- b\n- c\n",
        "---\na: 1\n---\n...\n---\nb: [1,\n2]\n",
        "# x\n",
        "a: b # c\n",
        "",
        "a: {b: c, \"d\":1, e}\n",
        "? a\n? b\n",
        "a: |\n  {{x}}\n  {% if y %}\n",
    ] {
        let read = documents(text).ok().map(|mut all| {
            all.retain(|value| !value.is_null());
            all
        });
        let before = as_before(text).map(|mut all| {
            all.retain(|value| !value.is_null());
            all
        });
        assert_eq!(read, before, "{text:?}");
    }
}

#[test]
fn what_is_wrong_is_told_with_its_place_and_without_values() {
    for (text, told) in [
        ("a: 1\nb: 2\na: 3\n", "duplicate entry with key \"a\": remove one at line 3 column 1"),
        ("a: [1\n", "unclosed bracket '[' at line 1 column 4"),
        ("[a, b]: 1\n", "a key is a list or an object: keys are texts at line 1 column 6"),
        (
            "a:\n  b: !x 1\n",
            "a value that begins with ! and has no quotes is a tag, which can not be used here: \
             put the value in quotes, or remove the tag at line 2 column 9",
        ),
    ] {
        assert_eq!(documents(text).unwrap_err().to_string(), told);
    }
    for text in [
        "k: [s3cr3t",
        "k: 5318008531800853180085318008",
        "k: !!int s3cr3t",
        "s3cr3t\nk: 1",
        // How a password may begin.
        "k: !s3cr3t",
        "k: !s3cr3t more",
        "k: !<s3cr3t> more",
        "k: [!s3cr3t]",
        "k: !s3cr3t {a: 1}",
        "k: *s3cr3t",
        "k: &s3cr3t",
        "k: @s3cr3t",
        "k: %s3cr3t",
        "k: `s3cr3t",
        "k: 's3cr3t",
        "k: \"s3cr3t",
        "k: |s3cr3t",
        "k: !e!s3cr3t more",
    ] {
        let Err(error) = documents(text) else { continue };
        let told = error.to_string();
        assert!(!told.contains("s3cr3t") && !told.contains("5318008"), "{told}");
    }
    let long = "k".repeat(100_000);
    assert!(documents(&format!("{long}: 1\n")).is_err(), "a key has 1,024 characters at most");
    assert!(documents(&format!("a: !{long} 1")).unwrap_err().to_string().len() < 200);
}

proptest! {
    #[test]
    fn nothing_makes_it_panic(words in prop::collection::vec(
        prop::sample::select(vec![
            "[", "{", "]", "}", ",", ": ", ":", "- ", "? ", "?", "a", "\"", "'", "\\", " #", "\n",
            "\n  ", "\t", "|\n", ">-\n  ", "&a ", "*a ", "!t ", "!!int ", "---\n", "...\n",
            "%TAG ! x\n", "\u{feff}", "\u{85}", "\u{2028}", "\r", "\0", "é", "~", "1e3", "0x1f",
        ]), 0..40,
    )) {
        let _ = documents(&words.concat());
    }
}

#[test]
fn json_reads_as_json_does() {
    let text = r#"{"a": "\ud83d\ude00 \u00e9 \/ \" \b\f\n\r\t", "b":[1,-2.5e3,true,null],
	"tab": {"c":{}} , "long": "x"}"#;
    let json: Value = serde_json::from_str(text).unwrap();
    assert_eq!(documents(text).unwrap(), [json]);
}

#[test]
fn of_a_text_that_is_wrong_somewhere_what_is_before_is_known() {
    // The parser is ahead by a word or two.
    for (text, known) in [
        ("kind: A\n---\nkind: B\nlist: [1, {a: 2", "{\"kind\":\"B\",\"list\":[1]}"),
        ("kind: A\n---\nkind: B\nspec:\n   a: 1\n  b: 2\n", "{\"kind\":\"B\",\"spec\":{\"a\":1}}"),
        ("kind: A\n---\nkind: B\nspec:\n  a: 1\n\tb: 2\n", "{\"kind\":\"B\",\"spec\":{}}"),
        ("kind: A\n---\nkind: B\nkind: C\n", "{\"kind\":\"B\"}"),
    ] {
        let Begun { documents, error, cut } = begun(text);
        assert!(error.is_some() && cut, "{text}");
        let all: Vec<String> = documents.iter().map(Value::to_string).collect();
        assert_eq!(all, ["{\"kind\":\"A\"}", known], "{text}");
    }
}

#[test]
fn of_a_text_that_is_wrong_between_documents_none_is_cut() {
    for text in ["kind: A\n---\n@b\n", "kind: A\n...\n]\n"] {
        let Begun { documents, error, cut } = begun(text);
        assert!(error.is_some() && !cut, "{text}");
        assert_eq!(documents, [serde_json::json!({"kind": "A"})], "{text}");
    }
}
