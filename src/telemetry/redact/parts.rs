//! Parts of a message that a text quotes. A model that repeats its request writes the parts
//! down as JSON, and within JSON again; what begins in one of them goes on in the next, behind
//! the end of one object and the beginning of another. Rules are applied to the text without
//! what is between, too, and what they find across is taken out of each part by itself.

use std::sync::LazyLock;

use regex::Regex;

/// From the end of the text of one part to the beginning of that of the next: quotes, other
/// fields that are no lists but empty ones and no objects of objects, and the brackets between.
/// By Python's quotes, too. Another text of one part may be joined with the next part's: what is
/// found across that is looked for once more than it has to be.
static BETWEEN: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(&between()).ok());

fn between() -> String {
    let quote = r#"["']"#;
    // Any but `text`: the library can not look ahead.
    let name = r"(?:[A-Za-z_-]{1,3}|[A-Za-z_-]{5,32}|[A-Za-su-z_-][A-Za-z_-]{3}|t[A-Za-df-z_-][A-Za-z_-]{2}|te[A-Za-wyz_-][A-Za-z_-]|tex[A-Za-su-z_-])";
    let value = r#"(?:["'][^"'{}\[\]]{0,128}["']|[A-Za-z]{4,5}|-?[0-9.]{1,16}|\[\s*\]|\{[^{}\[\]]{0,128}\})"#;
    let field = format!(r"{quote}{name}{quote}\s*:\s*{value}");
    format!(
        r"{quote}(?:\s*,\s*{field})*\s*\}}\s*,\s*\{{\s*(?:{field}\s*,\s*)*{quote}text{quote}\s*:\s*{quote}"
    )
}

/// A text without what is between the parts that it quotes.
pub(super) struct Joined {
    pub text: String,
    /// Where each piece of it begins: there, and in the text as it was.
    pieces: Vec<(usize, usize)>,
}

impl Joined {
    /// None where a text quotes no parts in a row.
    pub(super) fn of(text: &str) -> Option<Self> {
        if !(text.contains("text") && text.contains('}')) {
            return None;
        }
        let (mut joined, mut from) = (Self { text: String::new(), pieces: vec![] }, 0);
        for between in BETWEEN.as_ref()?.find_iter(text) {
            joined.push(text, from, between.start());
            from = between.end();
        }
        if from == 0 {
            return None;
        }
        joined.push(text, from, text.len());
        Some(joined)
    }

    fn push(&mut self, text: &str, start: usize, end: usize) {
        self.pieces.push((self.text.len(), start));
        self.text.push_str(&text[start..end]);
    }

    /// What of the text as it was lies in several parts here, part by part; nothing of what
    /// lies in one part, which is found there.
    pub(super) fn across(&self, start: usize, end: usize) -> Vec<(usize, usize)> {
        let first = self.pieces.partition_point(|(at, _)| *at <= start).saturating_sub(1);
        let behind = self.pieces.partition_point(|(at, _)| *at < end);
        if behind <= first + 1 {
            return vec![];
        }
        let part = |index: usize| {
            let (from, origin) = self.pieces[index];
            let to = self.pieces.get(index + 1).map_or(self.text.len(), |(next, _)| *next);
            let (start, end) = (start.max(from), end.min(to));
            (start < end).then(|| (origin + start - from, origin + end - from))
        };
        (first..behind).filter_map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_in_a_row_are_joined_and_nothing_else() {
        for (text, expected) in [
            (r#"{"type": "text", "text": "ab"}, {"type": "text", "text": "cd"}"#, Some("abcd")),
            (r#"{"text":"ab","type":"text"},{"text":"cd"}"#, Some("abcd")),
            (r#"{"text":"ab","n":-1,"x":null},{"ok": true , "text" : "cd"}"#, Some("abcd")),
            (r"[{'type': 'text', 'text': 'ab'}, {'type': 'text', 'text': 'cd'}]", Some("abcd")),
            (r#"{"text": "ab"},{"text": ""},{"text": "cd"}"#, Some("abcd")),
            (
                r#"{"type":"output_text","text":"ab","annotations":[]},{"score":0.5,"text":"cd"}"#,
                Some("abcd"),
            ),
            (r#"{"text":"ab","cache_control":{"type":"ephemeral"}}, {"text":"cd"}"#, Some("abcd")),
            (
                r#"{"text": "ab"}, {"type": "image", "image": {"size": {"x": 1}}}, {"text": "cd"}"#,
                None,
            ),
            (r#"{"content": [{"text": "ab"}]}, {"content": [{"text": "cd"}]}"#, None),
            (r#"["ab", "cd"], "text": }"#, None),
        ] {
            let joined = Joined::of(text).map(|joined| joined.text);
            let expected = expected.map(|expected| (expected, true));
            let found = joined.as_ref().zip(expected);
            let found = found.map(|(joined, (text, _))| (text, joined.contains(text)));
            assert_eq!((found, joined.is_some()), (expected, expected.is_some()), "{joined:?}");
        }
    }

    #[test]
    fn what_lies_across_is_told_part_by_part() {
        let text = json!([{"text": "ab"}, {"text": ""}, {"text": "cd"}]).to_string();
        let joined = Joined::of(&text).unwrap();
        let at = joined.text.find("abcd").unwrap();
        let found = |start, end| {
            let parts = joined.across(at + start, at + end).into_iter();
            parts.map(|(start, end)| &text[start..end]).collect::<Vec<_>>()
        };
        assert_eq!(found(0, 4), ["ab", "cd"]);
        assert_eq!(found(1, 3), ["b", "c"]);
        assert!(found(0, 2).is_empty() && found(2, 4).is_empty());
    }
}
