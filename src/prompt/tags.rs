//! The tags of a template, looked at before the engine reads them: it reads a chain of operators
//! by recursion, and works out what is constant in it.

/// So many bytes, without its texts, one tag of a template may have.
const LONGEST_TAG: usize = 2_000;

/// Whether no tag of a template is longer than [`LONGEST_TAG`]; why not.
pub(super) fn short_tags(source: &str) -> Result<(), String> {
    let mut rest = source;
    while let Some(open) = rest.find('{') {
        let tag = &rest[open..];
        let Some(end) = ["{{", "{%", "{#"].iter().position(|mark| tag.starts_with(mark)) else {
            rest = &rest[open + 1..];
            continue;
        };
        let inside = &tag[2..];
        let close = ["}}", "%}", "#}"][end];
        let (length, outside) = match close {
            "#}" => (0, inside.find(close).map_or(inside.len(), |at| at + 2)),
            _ => tag_length(inside, close),
        };
        if length > LONGEST_TAG {
            let line = source[..source.len() - inside.len()].matches('\n').count() + 1;
            return Err(format!(
                "the tag in line {line} has more than {LONGEST_TAG} bytes beside its texts: \
                 divide it"
            ));
        }
        rest = &inside[outside..];
        let word = inside[..outside].trim_start_matches(['-', '+']).trim_start();
        if close == "%}" && word.starts_with("raw") {
            rest = rest.find("endraw").map_or("", |at| &rest[at..]);
        }
    }
    Ok(())
}

/// How many bytes a tag has beside its texts, and how many with its end.
fn tag_length(inside: &str, close: &str) -> (usize, usize) {
    let (mut length, mut text, mut escaped) = (0, None, false);
    for (at, byte) in inside.bytes().enumerate() {
        match text {
            Some(quote) => {
                if !escaped && byte == quote {
                    text = None;
                }
                escaped = !escaped && byte == b'\\';
            }
            None if inside.as_bytes()[at..].starts_with(close.as_bytes()) => {
                return (length, at + close.len());
            }
            None => {
                text = matches!(byte, b'"' | b'\'').then_some(byte);
                escaped = false;
                length += 1;
            }
        }
    }
    (length, inside.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_that_is_long_is_refused_before_the_engine_reads_it() {
        let of = |content: &str| short_tags(content);
        for long in [
            format!("{{{{ {}1 }}}}", "-".repeat(20_000)),
            format!("{{{{ 1{} }}}}", "+1".repeat(30_000)),
            format!("{{{{ 1{} }}}}", "~1".repeat(30_000)),
            format!("{{{{ 2{} }}}}", "**2".repeat(18_000)),
            format!("{{% if {}1 %}}x{{% endif %}}", "-".repeat(30_000)),
            format!("{{% for i in range({}1) %}}{{% endfor %}}", "-".repeat(30_000)),
            format!("{{{{ {}", "-".repeat(30_000)),
            format!("{{% raw %}}{{% endraw %}}\n{{{{- {}1 -}}}}", "not ".repeat(9_000)),
            format!("{{% if true %}}\n{{{{ \"}}}}\"{} }}}}", "~1".repeat(2_000)),
        ] {
            let error = of(&long).unwrap_err();
            assert!(error.contains("has more than 2000 bytes beside its texts"), "{error}");
            assert!(error.len() < 300, "{error}");
        }
        let text = "x".repeat(9_000);
        for fine in [
            format!("{{{{ {}1 }}}}", "-".repeat(1_900)),
            format!("{{{{ 2{} }}}}", "**1".repeat(600)),
            format!(
                "{{{{ \"{text}\" }}}} {{# {text} #}} {{% raw %}}{{{{ {text} }}}}{{% endraw %}}"
            ),
            format!("{text} {{ {text} }} {{{{ 'it\\'s {text}' }}}}"),
        ] {
            assert_eq!(of(&fine), Ok(()), "{}", &fine[..60]);
        }
    }
}
