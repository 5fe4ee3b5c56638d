//! JSON that is nearly so, made well-formed. Servers write `NaN` and `Infinity` (Python's
//! `json` does), half of a pair of surrogates where a model's tokens end within a
//! character, numbers that no float holds, line ends within texts, bytes that are no UTF-8,
//! and a mark of the byte order before it all.
//!
//! Only what strict reading refuses comes here. What is odd becomes `null` or U+FFFD; the
//! rest stays as it is. Other faults (single quotes, a comma before the end, something
//! behind the value) are mended too, so that an error can be read in whatever way it is
//! written, but an answer with them is none: no application can read it.

use std::borrow::Cow;

use serde::de::IgnoredAny;

/// Lists and objects within each other; what is deeper becomes `null`.
const DEEPEST: usize = 64;

/// What was made of JSON that is nearly so.
pub(super) struct Mended {
    pub json: Vec<u8>,
    /// Python's `json` or JavaScript's `JSON.parse` reads the original, too.
    pub parses: bool,
}

/// The first value of `json`, well-formed; none of what is cut off or no JSON at all.
pub(super) fn mend(json: &[u8]) -> Option<Mended> {
    let json = trimmed(json);
    let text = String::from_utf8_lossy(json);
    let mut mender = Mender {
        rest: text.as_bytes(),
        out: Vec::with_capacity(text.len()),
        open: vec![],
        // Python's clients want UTF-8, and what others make of it is no text.
        parses: matches!(text, Cow::Borrowed(_)),
    };
    mender.value()?;
    let parses = mender.parses && mender.rest.trim_ascii().is_empty();
    Some(Mended { json: mender.out, parses })
}

/// Without what may stand before JSON: white space, and a mark of the byte order.
pub(super) fn trimmed(json: &[u8]) -> &[u8] {
    let json = json.trim_ascii_start();
    json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json).trim_ascii_start()
}

struct Mender<'a> {
    rest: &'a [u8],
    out: Vec<u8>,
    /// What closes the lists and objects that are open.
    open: Vec<u8>,
    parses: bool,
}

impl Mender<'_> {
    fn value(&mut self) -> Option<()> {
        loop {
            let (&byte, rest) = self.rest.split_first()?;
            match byte {
                b'"' | b'\'' => self.text(byte)?,
                b'{' | b'[' => self.open(byte)?,
                b'}' | b']' => {
                    self.rest = rest;
                    (self.open.pop()? == byte).then_some(())?;
                    // A comma before the end is none.
                    if self.out.last() == Some(&b',') {
                        self.out.pop();
                        self.parses = false;
                    }
                    self.out.push(byte);
                }
                b',' | b':' => {
                    self.rest = rest;
                    self.out.push(byte);
                    continue;
                }
                _ if byte.is_ascii_whitespace() => {
                    self.rest = rest;
                    continue;
                }
                _ => self.word()?,
            }
            if self.open.is_empty() {
                return Some(());
            }
        }
    }

    fn open(&mut self, byte: u8) -> Option<()> {
        if self.open.len() == DEEPEST {
            self.skip()?;
            self.out.extend_from_slice(b"null");
            return Some(());
        }
        self.rest = &self.rest[1..];
        self.out.push(byte);
        self.open.push(if byte == b'{' { b'}' } else { b']' });
        Some(())
    }

    /// Passes over a list or an object, however deep.
    fn skip(&mut self) -> Option<()> {
        let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
        for (at, byte) in self.rest.iter().enumerate() {
            match byte {
                _ if in_text => {
                    in_text = escaped || *byte != b'"';
                    escaped = !escaped && *byte == b'\\';
                }
                b'"' => in_text = true,
                b'{' | b'[' => depth += 1,
                b'}' | b']' => {
                    depth -= 1;
                    if depth == 0 {
                        self.rest = &self.rest[at + 1..];
                        return Some(());
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// A text, in either kind of quotes.
    fn text(&mut self, quote: u8) -> Option<()> {
        self.rest = &self.rest[1..];
        self.parses &= quote == b'"';
        self.out.push(b'"');
        loop {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            match byte {
                _ if byte == quote => break,
                b'\\' => self.escape()?,
                b'"' => self.out.extend_from_slice(b"\\\""),
                0..b' ' => {
                    self.parses = false;
                    self.out.extend_from_slice(format!("\\u{byte:04x}").as_bytes());
                }
                _ => self.out.push(byte),
            }
        }
        self.out.push(b'"');
        Some(())
    }

    fn escape(&mut self) -> Option<()> {
        let (&byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        match byte {
            b'u' => {
                let Some(unit) = unit(rest) else {
                    self.parses = false;
                    self.out.extend_from_slice(b"\\ufffd");
                    return Some(());
                };
                self.rest = &rest[4..];
                let low = unit_after(self.rest).filter(|low| (0xdc00..0xe000).contains(low));
                match (unit, low) {
                    (0xd800..0xdc00, Some(low)) => {
                        self.rest = &self.rest[6..];
                        let pair = format!("\\u{unit:04x}\\u{low:04x}");
                        self.out.extend_from_slice(pair.as_bytes());
                    }
                    (0xd800..0xe000, _) => self.out.extend_from_slice(b"\\ufffd"),
                    _ => self.out.extend_from_slice(format!("\\u{unit:04x}").as_bytes()),
                }
            }
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {
                self.out.extend_from_slice(&[b'\\', byte]);
            }
            // It stands for nothing: the character alone.
            0..b' ' => {
                self.parses = false;
                self.out.extend_from_slice(format!("\\u{byte:04x}").as_bytes());
            }
            _ => {
                self.parses = false;
                self.out.push(byte);
            }
        }
        Some(())
    }

    /// A number or a name.
    fn word(&mut self) -> Option<()> {
        let part = |b: &u8| b.is_ascii_alphanumeric() || b"+-._".contains(b);
        let length = self.rest.iter().take_while(|b| part(b)).count();
        let word = std::str::from_utf8(&self.rest[..length]).ok()?;
        if word.is_empty() {
            return None;
        }
        let is_name = ["NaN", "Infinity", "-Infinity"].contains(&word);
        self.parses &= is_name || serde_json::from_str::<IgnoredAny>(word).is_ok();
        self.out.extend_from_slice(meant(word).as_bytes());
        self.rest = &self.rest[length..];
        Some(())
    }
}

/// What a word outside of texts means in JSON.
fn meant(word: &str) -> Cow<'_, str> {
    match word {
        "true" | "True" => "true".into(),
        "false" | "False" => "false".into(),
        _ if !word.contains(|c: char| c.is_ascii_digit()) => "null".into(),
        _ if serde_json::from_str::<serde_json::Number>(word).is_ok() => word.into(),
        _ => match word.parse::<f64>() {
            Ok(number) if number.is_finite() => number.to_string().into(),
            _ => "null".into(),
        },
    }
}

fn unit(digits: &[u8]) -> Option<u16> {
    let digits = digits.get(..4).filter(|d| d.iter().all(u8::is_ascii_hexdigit))?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn unit_after(rest: &[u8]) -> Option<u16> {
    unit(rest.strip_prefix(b"\\u")?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn read(json: &[u8]) -> Option<Value> {
        mend(json).map(|Mended { json, .. }| {
            serde_json::from_slice(&json)
                .unwrap_or_else(|e| panic!("{}: {e}", String::from_utf8_lossy(&json)))
        })
    }

    #[test]
    fn what_is_odd_is_null_and_the_rest_stays() {
        let odd = br#"{"a":NaN,"b":-Infinity,"c":1e400,"d":[nan,1,None,True],"e":"x","f":undefined,"g":.5,"h":+1,"i":01,}"#;
        let read = read(odd).unwrap();
        assert_eq!(
            read,
            json!({"a": null, "b": null, "c": null, "d": [null, 1, null, true], "e": "x",
                "f": null, "g": 0.5, "h": 1, "i": 1})
        );
    }

    #[test]
    fn halves_of_pairs_and_what_no_text_may_hold_are_replaced() {
        for (odd, text) in [
            (&br#""Hi \ud83d""#[..], "Hi \u{fffd}"),
            (br#""\ude00 you""#, "\u{fffd} you"),
            (br#""\ud83d\ud83d\ude00""#, "\u{fffd}\u{1f600}"),
            (br#""\ud83d\n\u00e9""#, "\u{fffd}\n\u{e9}"),
            (br#""\uzz""#, "\u{fffd}zz"),
            (b"\"a\nb\tc\x01\"", "a\nb\tc\u{1}"),
            (b"\"\xff\xc3\"", "\u{fffd}\u{fffd}"),
            (br#""it\'s \x""#, "it's x"),
            (b"\xef\xbb\xbf \"bom\"", "bom"),
            (br#"'say "it"'"#, "say \"it\""),
        ] {
            assert_eq!(read(odd), Some(json!(text)), "{}", String::from_utf8_lossy(odd));
        }
    }

    #[test]
    fn what_follows_is_left_and_what_is_cut_off_is_none() {
        assert_eq!(read(br#"{"a":1}{"b":2}"#), Some(json!({"a": 1})));
        assert_eq!(read(b"{\"a\":1}\0\0"), Some(json!({"a": 1})));
        for cut in [&br#"{"a":1"#[..], br#"{"a":"x"#, b"", b"  ", b"<html>", b"]", b"{]"] {
            assert!(mend(cut).is_none(), "{}", String::from_utf8_lossy(cut));
        }
    }

    #[test]
    fn what_is_too_deep_is_null_and_costs_its_size() {
        let deep = |n: usize| format!(r#"{{"a":{}{},"b":NaN}}"#, "[".repeat(n), "]".repeat(n));
        assert_eq!(read(deep(40).as_bytes()).unwrap()["b"], Value::Null);
        assert_eq!(read(deep(1_000_000).as_bytes()).unwrap()["b"], Value::Null);
        assert!(mend("[".repeat(1_000_000).as_bytes()).is_none());
    }

    #[test]
    fn what_no_application_reads_is_told_apart() {
        for read in [
            &br#"{"a": NaN, "b": -Infinity, "c": [Infinity, 1e400, 123456789012345678901234567890]}"#[..],
            br#"{"a": "\ud83d", "a": "twice"}"#,
            "\u{feff} {\"a\": \"\u{fffd}\"} \n".as_bytes(),
            format!(r#"{{"a": {}{}}}"#, "[".repeat(100), "]".repeat(100)).as_bytes(),
        ] {
            assert!(mend(read).unwrap().parses, "{}", String::from_utf8_lossy(read));
        }
        for unread in [
            &b"{'a': 1}"[..],
            br#"{"a": None}"#,
            br#"{"a": True}"#,
            br#"{"a": undefined}"#,
            br#"{"a": nan}"#,
            br#"{"a": 1,}"#,
            br#"{"a": [1,]}"#,
            br#"{"a": .5}"#,
            br#"{"a": +1}"#,
            br#"{"a": 01}"#,
            b"{\"a\": \"two\nlines\"}",
            br#"{"a": "it\'s"}"#,
            br#"{"a": "\uzz"}"#,
            br#"{"a": 1}{"error": "x"}"#,
            b"{\"a\": 1}\nTraceback (most recent call last):",
            b"{\"a\": 1}\0",
            b"{\"a\": \"\xff\"}",
        ] {
            assert!(!mend(unread).unwrap().parses, "{}", String::from_utf8_lossy(unread));
        }
    }

    proptest! {
        #[test]
        fn what_is_well_formed_says_the_same(
            texts in prop::collection::vec(".*", 0..4), number in any::<f64>(), count in any::<i64>(),
        ) {
            let value = json!({"texts": texts, "number": number, "count": count, "none": [{}, [], null, true]});
            prop_assert_eq!(read(value.to_string().as_bytes()), Some(value));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(
            prop_oneof![Just(b'"'), Just(b'\\'), Just(b'u'), Just(b'['), Just(b']'), Just(b'{'), Just(b'}'), Just(b'd'), Just(b'8'), any::<u8>()],
            0..64,
        )) {
            let _ = mend(&bytes);
        }
    }
}
