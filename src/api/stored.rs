//! How many bytes a value takes where the API server keeps it. That is not the JSON that was
//! sent: Go writes `<`, `>` and `&` in six bytes each (`\u003c`), as it does U+2028 and U+2029,
//! and numbers without an exponent up to 21 digits (encoding/json, `Encoder.SetEscapeHTML` and
//! `floatEncoder`). etcd takes 1.5 MiB for an object, counted like that.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// The bytes of `value` as the API server stores it; none when it is no JSON.
pub fn stored_bytes(value: &impl Serialize) -> Option<u64> {
    let mut count = Count(0);
    value.serialize(&mut Serializer::with_formatter(&mut count, Stored)).ok()?;
    Some(count.0)
}

/// Counts what is written.
struct Count(u64);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.saturating_add(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes as Go does.
struct Stored;

impl Formatter for Stored {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        to: &mut W,
        text: &str,
    ) -> io::Result<()> {
        let mut rest = text;
        let escaped = |c: char| matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
        while let Some((before, found)) = rest.find(escaped).map(|at| rest.split_at(at)) {
            to.write_all(before.as_bytes())?;
            let mut after = found.chars();
            let code = after.next().map_or(0, u32::from);
            write!(to, "\\u{code:04x}")?;
            rest = after.as_str();
        }
        to.write_all(rest.as_bytes())
    }

    fn write_f64<W: ?Sized + Write>(&mut self, to: &mut W, value: f64) -> io::Result<()> {
        let size = value.abs();
        if size >= 1e21 {
            write!(to, "{}", format!("{value:e}").replace('e', "e+"))
        } else if size != 0.0 && size < 1e-6 {
            write!(to, "{value:e}")
        } else {
            write!(to, "{value}")
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn text(value: &Value) -> String {
        let mut text = vec![];
        value.serialize(&mut Serializer::with_formatter(&mut text, Stored)).unwrap();
        assert_eq!(stored_bytes(value), Some(text.len() as u64));
        String::from_utf8(text).unwrap()
    }

    /// The right side is what Go's `json.NewEncoder(w).Encode(value)` writes.
    #[test]
    fn a_value_is_counted_as_go_writes_it() {
        for (value, stored) in [
            (json!("a<b>&c"), r#""a\u003cb\u003e\u0026c""#),
            (json!("<<"), r#""\u003c\u003c""#),
            (json!("x\u{2028}y\u{2029}"), r#""x\u2028y\u2029""#),
            (json!("\"\\\n\u{1}é😀'"), r#""\"\\\n\u0001é😀'""#),
            (json!({"<k>": [1, true, null]}), r#"{"\u003ck\u003e":[1,true,null]}"#),
            (
                json!([1.0, 1.5, -0.25, 1e20, 1e21, 1.5e300]),
                "[1,1.5,-0.25,100000000000000000000,1e+21,1.5e+300]",
            ),
            (json!([1e-6, 1e-7, -2.5e-9, 0.0]), "[0.000001,1e-7,-2.5e-9,0]"),
        ] {
            assert_eq!(text(&value), stored);
        }
    }

    #[test]
    fn what_has_none_of_these_is_as_long_as_it_was_sent() {
        let value = json!({"messages": [{"role": "user", "content": "plain text, 42 words"}]});
        assert_eq!(text(&value), value.to_string());
    }
}
