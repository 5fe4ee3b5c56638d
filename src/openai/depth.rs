//! How deep JSON is nested, known before anything reads it.
//!
//! Readers recurse: into a list within a list, once more for each level. A few kilobytes of
//! brackets would exhaust the stack of a thread, which ends the whole process. So nothing
//! that strangers send is read before it was looked at here, in one pass and without
//! recursion. The bound is that of `serde_json`, which more than one of its readers at work
//! within each other would not keep.

use memchr::memchr2;

/// So many lists and objects may lie within each other; no API needs a tenth.
pub const DEEPEST: usize = 128;

/// Lists and objects are nested deeper than [`DEEPEST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("lists and objects are nested deeper than {DEEPEST} levels: send them flatter")]
pub struct TooDeep;

/// Looks at how deep a JSON text is nested, well-formed or not.
///
/// # Errors
/// It is deeper than [`DEEPEST`].
pub fn bounded(json: &[u8]) -> Result<(), TooDeep> {
    // Each level is a byte at least: most events of a stream need no look.
    if json.len() <= DEEPEST {
        return Ok(());
    }
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(byte) = json.get(at) {
        at += 1;
        match byte {
            b'"' => at = text_end(json, at),
            b'[' | b'{' => {
                depth += 1;
                if depth > DEEPEST {
                    return Err(TooDeep);
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// Where a text is over that begins at `at`, behind its quote.
fn text_end(json: &[u8], mut at: usize) -> usize {
    while let Some(found) = json.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found;
        if json[at] == b'"' {
            return at + 1;
        }
        // What follows a backslash ends no text.
        at += 2;
    }
    json.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nested(open: &str, close: &str, depth: usize) -> String {
        format!("{}1{}", open.repeat(depth), close.repeat(depth))
    }

    #[test]
    fn so_many_levels_are_taken_and_one_more_is_not() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")] {
            let levels = open.matches(['[', '{']).count();
            let (fits, deeper) = (DEEPEST / levels, DEEPEST / levels + 1);
            assert_eq!(bounded(nested(open, close, fits).as_bytes()), Ok(()));
            assert_eq!(bounded(nested(open, close, deeper).as_bytes()), Err(TooDeep));
            assert_eq!(bounded(open.repeat(1_000_000).as_bytes()), Err(TooDeep), "unfinished");
        }
        let beside = format!("[{}]", vec!["[[[]]]"; 10_000].join(","));
        assert_eq!(bounded(beside.as_bytes()), Ok(()), "what is closed is no deeper");
    }

    #[test]
    fn brackets_within_texts_are_text() {
        let open = "[".repeat(1000);
        for json in [
            format!("[\"{open}\"]"),
            format!("{{\"{open}\":1}}"),
            format!("[\"\\\"{open}\"]"),
            format!("[\"{open}\\\\\", \"{open}\"]"),
            format!("[\"{open}"),
            format!("[\"{open}\\"),
        ] {
            assert_eq!(bounded(json.as_bytes()), Ok(()), "{json}");
        }
        let outside = format!("[\"\\\\\", {open}");
        assert_eq!(bounded(outside.as_bytes()), Err(TooDeep), "the text ended before");
    }

    proptest! {
        #[test]
        fn what_serde_json_takes_is_taken(depth in 0..200_usize, text in ".*") {
            let text = serde_json::Value::from(text).to_string();
            let json = format!("{}{text}{}", "[".repeat(depth), "]".repeat(depth));
            let taken = serde_json::from_str::<serde_json::Value>(&json).is_ok();
            prop_assert!(!taken || bounded(json.as_bytes()).is_ok());
            prop_assert_eq!(bounded(json.as_bytes()).is_ok(), depth <= DEEPEST);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(
            prop_oneof![Just(b'"'), Just(b'\\'), Just(b'['), Just(b'}'), any::<u8>()], 0..512,
        )) {
            let _ = bounded(&bytes);
        }
    }
}
