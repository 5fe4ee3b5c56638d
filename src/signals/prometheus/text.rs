//! The texts of queries: variables are filled in, once for each variant.

use jiff::Timestamp;

use super::failure::Failure;

/// What a text can name.
const KNOWN: [&str; 6] = ["namespace", "release", "revision", "backend", "model", "window"];

/// One variant, as the texts of queries know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// The release's namespace.
    pub namespace: String,
    /// The release's name.
    pub release: String,
    /// The variant's content hash.
    pub revision: String,
    /// The LLMDeployment's name.
    pub backend: String,
    /// The model's name as it is sent upstream.
    pub model: String,
    /// The time since the step's traffic was in place, as `300s`.
    pub window: String,
}

/// The time since `since` in whole seconds, rounded down so that nothing from before is
/// counted, and at least one: PromQL has no empty range. A range shorter than two scrapes
/// answers nothing, which is `PrometheusEmpty` until there are two.
pub fn window(since: Timestamp, now: Timestamp) -> String {
    format!("{}s", now.duration_since(since).as_secs().max(1))
}

/// `text` with its variables filled in.
///
/// # Errors
/// A variable that is not known, or braces that are not closed.
pub fn fill(text: &str, side: &Side) -> Result<String, Failure> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((name, after)) = after.split_once("}}") else {
            return Err(invalid("{{ has no }} after it"));
        };
        let name = name.trim();
        let value = match name {
            "namespace" => &side.namespace,
            "release" => &side.release,
            "revision" => &side.revision,
            "backend" => &side.backend,
            "model" => &side.model,
            "window" => &side.window,
            unknown => {
                let unknown: String = unknown.chars().take(64).collect();
                return Err(invalid(&format!("the variable {unknown:?} is not known")));
            }
        };
        out.push_str(before);
        escape(value, &mut out);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn invalid(what: &str) -> Failure {
    Failure::QueryInvalid(format!("{what}; the variables are {}", KNOWN.join(", ")))
}

/// Values are names and hashes, except a model's name, which is anybody's text: none can
/// end the string of PromQL that it stands in.
fn escape(value: &str, out: &mut String) {
    for c in value.chars() {
        match c {
            '\\' | '"' | '\'' => out.extend(['\\', c]),
            // A raw string has no escapes; elsewhere this is the backtick again.
            '`' => out.push_str("\\x60"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            _ => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side() -> Side {
        Side {
            namespace: "shop".into(),
            release: "answer".into(),
            revision: "41cc000000".into(),
            backend: "vllm".into(),
            model: "org/small".into(),
            window: "300s".into(),
        }
    }

    #[test]
    fn every_variable_is_filled_in_and_the_rest_is_untouched() {
        let text = "x{n=\"{{ namespace }}\",r=\"{{release}}\",v=\"{{ revision}}\",b=\"{{ backend }}\",m=\"{{ model }}\"}[{{ window }}]";
        assert_eq!(
            fill(text, &side()).unwrap(),
            "x{n=\"shop\",r=\"answer\",v=\"41cc000000\",b=\"vllm\",m=\"org/small\"}[300s]"
        );
        assert_eq!(fill("sum(x{a=\"b\"})", &side()).unwrap(), "sum(x{a=\"b\"})");
    }

    #[test]
    fn an_unknown_variable_is_named_with_those_that_are_known() {
        let failure = fill("x{a=\"{{ pod }}\"}", &side()).unwrap_err();
        assert_eq!(failure.reason(), "PrometheusQueryInvalid");
        let message = failure.to_string();
        assert!(message.contains("\"pod\"") && message.contains("revision, backend"), "{message}");
        assert!(fill("x{{ ", &side()).unwrap_err().to_string().contains("no }}"));
    }

    #[test]
    fn a_value_never_ends_the_string_that_it_stands_in() {
        let side = Side { model: "a\"} or up{x=`'\\\n".into(), ..side() };
        assert_eq!(
            fill("x{m=\"{{ model }}\"}", &side).unwrap(),
            "x{m=\"a\\\"} or up{x=\\x60\\'\\\\\\n\"}"
        );
        let nested = Side { model: "{{ window }}".into(), ..side };
        assert_eq!(fill("{{ model }}", &nested).unwrap(), "{{ window }}");
    }

    #[test]
    fn a_window_is_whole_seconds_never_longer_than_the_step() {
        let at = |ms| Timestamp::from_millisecond(ms).unwrap();
        assert_eq!(window(at(0), at(300_900)), "300s");
        assert_eq!(window(at(0), at(200)), "1s");
        assert_eq!(window(at(5000), at(0)), "1s");
    }
}
