//! The JSON Schemas of prompts. What a release's revisions and variants have in common is
//! there once, and compiled when something is first checked: a small one takes 4 KB then.
//!
//! Neither compiling nor checking stalls whoever does it: a schema that could is refused
//! ([`bounds`]), and checking ends after a number of steps that grows with what is checked
//! ([`metered`]).

mod bounds;
mod metered;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    thread,
};

use jsonschema::{PatternOptions, ValidationError, Validator, error::ValidationErrorKind};
use serde_json::{Map, Value};

pub(super) use self::metered::TooCostly;
use self::{
    bounds::Bounds,
    metered::{Metered, Seen, size, within},
};
use super::PromptError;
use crate::{api::manifest::faults, openai::request::parsed};

/// Steps that any check may take: about 10 ms.
const STEPS: u64 = 200_000;
/// And so many for each value that is checked.
const STEPS_A_VALUE: u64 = 20;
/// Steps back in a text that one expression may take.
const BACKTRACKS: usize = 10_000;
/// So many schemas within each other are compiled on the stack of whoever asks.
const SHALLOW: u32 = 24;
/// The stack for those that are deeper, in bytes.
const STACK: usize = 32 << 20;
/// So much memory may a model's JSON take when it is read, in bytes: more than any model writes.
const MOST_READ: usize = 16 << 20;
/// Characters of what is told about a value: it may quote the value.
const LONGEST_MESSAGE: usize = 1000;

/// A JSON Schema.
pub(super) struct Schema {
    source: Arc<str>,
    bounds: Bounds,
    compiled: OnceLock<Option<Validator<Metered>>>,
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Schema").field(&self.source).finish()
    }
}

type InUse = HashMap<Arc<str>, Weak<Schema>>;

fn in_use() -> MutexGuard<'static, InUse> {
    static IN_USE: LazyLock<Mutex<InUse>> = LazyLock::new(Mutex::default);
    IN_USE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Schema {
    fn drop(&mut self) {
        let mut in_use = in_use();
        // The same may have come again meanwhile.
        if in_use.get(&self.source).is_some_and(|other| other.strong_count() == 0) {
            in_use.remove(&self.source);
        }
    }
}

fn compile(schema: &Value, bounds: Bounds) -> Result<Validator<Metered>, String> {
    let patterns = PatternOptions::fancy_regex()
        .backtrack_limit(BACKTRACKS)
        .size_limit(bounds.expression)
        .dfa_size_limit(bounds.expression);
    let build = || {
        let options = jsonschema::options_for::<Metered>().with_pattern_options(patterns);
        options.build(schema).map_err(|e| short(placed(&e)))
    };
    if bounds.height <= SHALLOW {
        return build();
    }
    // Compiling recurses. Whoever waits here would have compiled it otherwise.
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("schema".to_owned()).stack_size(STACK);
        let thread = builder.spawn_scoped(scope, build).map_err(|e| e.to_string())?;
        thread.join().unwrap_or_else(|_| Err("it can not be compiled".to_owned()))
    })
}

/// What makes a schema not valid, and where in it.
fn placed(error: &ValidationError<'_>) -> String {
    let (place, what) = (faults::instance_path(error), faults::of(error, true));
    if place.is_empty() { what } else { format!("{place}: {what}") }
}

fn short(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(LONGEST_MESSAGE) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// What a model has written as JSON; none where it is no JSON, or takes too much to be read.
pub(super) fn read(json: &str) -> Option<Value> {
    // A byte takes less than 512: most answers need not be counted.
    let fits = json.len() <= MOST_READ / 512 || parsed(json.as_bytes()) <= MOST_READ;
    fits.then(|| serde_json::from_str(json).ok()).flatten()
}

impl Schema {
    /// # Errors
    /// What makes it no valid JSON Schema, or one that is not compiled.
    pub fn of(schema: &Map<String, Value>) -> Result<Arc<Self>, String> {
        let schema = Value::Object(schema.clone());
        let source: Arc<str> = schema.to_string().into();
        if let Some(known) = in_use().get(&source).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let bounds = Bounds::of(&schema, source.len())?;
        compile(&schema, bounds)?;
        let new = Arc::new(Self { source: source.clone(), bounds, compiled: OnceLock::new() });
        in_use().insert(source, Arc::downgrade(&new));
        Ok(new)
    }

    /// None only if what could be compiled no longer can be: nothing is accepted then.
    fn validator(&self) -> Option<&Validator<Metered>> {
        let schema = || serde_json::from_str(&self.source).ok();
        self.compiled.get_or_init(|| compile(&schema()?, self.bounds).ok()).as_ref()
    }

    /// Whether the schema accepts a value.
    ///
    /// # Errors
    /// Finding out takes too long.
    pub fn check(&self, value: &Value) -> Result<bool, TooCostly> {
        let Some(validator) = self.validator() else { return Ok(false) };
        self.within(value, || validator.is_valid(Seen(value)))
    }

    fn within<T>(&self, value: &Value, work: impl FnOnce() -> T) -> Result<T, TooCostly> {
        let steps = STEPS.saturating_add(STEPS_A_VALUE.saturating_mul(size(value)));
        within(steps, self.bounds.weight, work)
    }

    /// What is wrong with variables that are not accepted.
    pub fn describe(&self, variables: &Value) -> PromptError {
        let unknown = |message: &str| {
            let message = message.to_owned();
            PromptError::Variables { path: String::new(), message }
        };
        let Some(validator) = self.validator() else {
            return unknown("they can not be checked against the prompt's schema");
        };
        // To say what is wrong costs more than to find that something is.
        let described = self.within(variables, || {
            let error = validator.validate(Seen(variables)).err()?;
            let mut path = error.instance_path().to_string().replace('/', ".");
            // The field at fault is the one that is missing, not what it is missing in.
            if let ValidationErrorKind::Required { property: Value::String(name) } = error.kind() {
                path = format!("{path}.{name}");
            }
            Some(PromptError::Variables { path, message: short(faults::of(&error, true)) })
        });
        let described = described.unwrap_or_default();
        described.unwrap_or_else(|| unknown("they do not match the prompt's schema"))
    }
}

#[cfg(test)]
mod tests {
    use jsonschema::json::Node;
    use serde_json::json;

    use super::*;

    fn accepts(schema: &Schema, value: &Value) -> bool {
        schema.check(value) == Ok(true)
    }

    #[test]
    fn what_is_the_same_is_kept_once_and_not_longer_than_it_is_used() {
        let of = |required: &str| {
            let schema = json!({"type": "object", "required": [required, "only here"]});
            Schema::of(schema.as_object().unwrap()).unwrap()
        };
        let known = |schema: &Arc<str>| in_use().contains_key(schema);
        let (first, second, other) = (of("a"), of("a"), of("b"));
        assert!(Arc::ptr_eq(&first, &second) && !Arc::ptr_eq(&first, &other));
        assert!(
            accepts(&first, &json!({"a": 1, "only here": 1})) && !accepts(&other, &json!({"a": 1}))
        );
        let source = first.source.clone();
        drop(first);
        assert!(known(&source));
        drop(second);
        assert!(!known(&source) && known(&other.source));
        assert!(accepts(&of("a"), &json!({"a": 1, "only here": 1})));
    }

    fn of(schema: &Value) -> Arc<Schema> {
        Schema::of(schema.as_object().unwrap()).unwrap_or_else(|e| panic!("{schema}: {e}"))
    }

    fn lists(depth: usize, inner: &str) -> Value {
        let text = format!("{}{inner}{}", "[".repeat(depth), "]".repeat(depth));
        serde_json::from_str(&text).unwrap()
    }

    /// Each of these would take hours, gigabytes or the stack, and some of them do so only
    /// when it is said what is wrong.
    #[test]
    fn what_would_take_for_ever_is_given_up() {
        let item = json!({"items": {"$ref": "#"}});
        let twice = json!({"anyOf": [item, item], "type": "array"});
        let both = json!({"allOf": [item, item], "type": ["array", "string"]});
        let one = json!({"oneOf": [item, item], "type": ["array", "string"]});
        let unevaluated = json!({
            "anyOf": [{"prefixItems": [{"$ref": "#"}]}, {"prefixItems": [{"$ref": "#"}]}],
            "unevaluatedItems": false, "type": ["array", "string"]
        });
        let dynamic = json!({"$dynamicAnchor": "n", "type": ["array", "string"], "anyOf": [
            {"items": {"$dynamicRef": "#n"}}, {"items": {"$dynamicRef": "#n"}}]});
        for schema in [twice, both, one, unevaluated, dynamic] {
            let schema = of(&schema);
            for value in [lists(100, "1"), lists(120, "\"a\""), lists(60, "[1],[2],\"a\"")] {
                let fits = schema.check(&value);
                assert!(fits != Ok(true) || schema.check(&value) == fits);
                let PromptError::Variables { message, .. } = schema.describe(&value) else {
                    panic!("of another kind")
                };
                assert!(message.chars().count() <= LONGEST_MESSAGE + 1);
            }
        }
        let names: Map<_, _> = (1..99).map(|i| (format!("^a{{1,{i}}}x"), json!({}))).collect();
        let fields: Map<_, _> = (0..50_000).map(|i| (format!("a{i}"), json!(i))).collect();
        let many = of(&json!({"patternProperties": names}));
        assert_eq!(many.check(&Value::Object(fields)), Err(TooCostly));
        let never = of(&json!({"items": {"anyOf": vec![json!(false); 5_000]}}));
        let numbers = Value::from((0..50_000).collect::<Vec<_>>());
        assert!(never.check(&numbers) != Ok(true));
    }

    /// anyOf and oneOf keep what each of their branches complains about.
    #[test]
    fn to_say_what_is_wrong_takes_no_more_than_to_find_it() {
        let tree = |keyword: &str| {
            let lists = json!({"type": "array", "items": {"$ref": "#/$defs/n"}});
            let n = json!({keyword: [{"type": "integer"}, lists]});
            of(&json!({"$defs": {"n": n}, "$ref": "#/$defs/n"}))
        };
        let flat =
            json!({"anyOf": [{"anyOf": [{"items": {"type": "integer"}}, {"type": "null"}]}]});
        let words = format!("{}\"a\"", "\"a\",".repeat(90_000));
        let long = format!("\"{}\"", "b".repeat(10 << 20));
        let told = |schema: &Schema, value: &Value| {
            assert!(schema.check(value) != Ok(true));
            let PromptError::Variables { message, .. } = schema.describe(value) else {
                panic!("of another kind")
            };
            message
        };
        for (schema, depths) in
            [(tree("anyOf"), 1..=100), (tree("oneOf"), 1..=100), (of(&flat), 1..=1)]
        {
            for depth in [*depths.start(), *depths.end()] {
                let message = told(&schema, &lists(depth, &words));
                assert_eq!(message, "they do not match the prompt's schema");
            }
            // What is wrong with little, or with something long, is said.
            for inner in ["\"a\"", &long] {
                let message = told(&schema, &lists(2, inner));
                assert!(message.starts_with(&format!("[[{}", &inner[..3])), "{message}");
            }
        }
        let long = lists(100, &long);
        let quoted = Seen(&long);
        let quoted = metered::within(10_000, of(&flat).bounds.weight, || quoted.to_value());
        assert!(quoted.unwrap().to_string().len() < 2_000);
    }

    #[test]
    fn expressions_that_go_back_and_forth_end() {
        for pattern in ["^(a+)+$", "^(?=(a+)+$)(a|aa)+b$", "^(?:(a*)*\\1)*$", "(?<!a)(a|a)*\\1b"] {
            let schema = of(&json!({"items": {"pattern": pattern}}));
            let value = json!(vec![format!("{}!", "a".repeat(5_000)); 100]);
            assert!(schema.check(&value) != Ok(true), "{pattern}");
            drop(schema.describe(&value));
        }
        let ahead = of(&json!({"pattern": "^(?=.*[0-9])(?!.*evil).{3,64}$"}));
        assert!(accepts(&ahead, &json!("abc1")) && !accepts(&ahead, &json!("evil1")));
    }

    #[test]
    fn much_that_is_plain_is_checked_to_its_end() {
        let schema = of(&json!({"type": "object", "additionalProperties": {
            "type": "array", "items": {"anyOf": [{"type": "integer", "minimum": 0},
                {"type": "string", "maxLength": 10, "pattern": "^[a-z]*$"}]}, "uniqueItems": true}}));
        let value = json!({"a": (0..50_000).collect::<Vec<_>>(), "b": ["x"], "c": ["y", "z"]});
        assert_eq!(schema.check(&value), Ok(true));
        let text =
            of(&json!({"properties": {"q": {"type": "string", "minLength": 1, "pattern": "x"}}}));
        assert_eq!(text.check(&json!({"q": "y".repeat(20_000_000) + "x"})), Ok(true));
        // A tree of expressions, ten deep.
        let binary = |op: &str| {
            json!({"properties": {"op": {"const": op}, "l": {"$ref": "#"}, "r": {"$ref": "#"}},
                "required": ["op", "l", "r"], "type": "object"})
        };
        let tree =
            of(&json!({"oneOf": [binary("+"), binary("-"), binary("*"), {"type": "number"}]}));
        let mut value = json!(1);
        for op in ["+", "-", "*", "+", "-", "*", "+", "-", "*", "+"] {
            value = json!({"op": op, "l": value, "r": 2});
        }
        assert_eq!(tree.check(&value), Ok(true));
    }

    #[test]
    fn what_a_model_writes_is_read_as_long_as_it_takes_no_more_than_it_may() {
        assert_eq!(read(r#"{"a": [1]}"#), Some(json!({"a": [1]})));
        assert!(read(&json!(vec!["long text, as models write it"; 50_000]).to_string()).is_some());
        assert_eq!(read("{"), None);
        for dense in ["[],", r#"{"":0},"#, "[1],"] {
            let json = format!("[{}0]", dense.repeat(100_000));
            assert!(serde_json::from_str::<Value>(&json).is_ok() && read(&json).is_none());
        }
    }

    #[test]
    fn a_schema_that_could_stall_is_refused_when_the_prompt_is() {
        let level =
            |i: usize| json!({"anyOf": vec![json!({"$ref": format!("#/$defs/{}", i + 1)}); 2]});
        let mut defs: Map<_, _> = (0..22).map(|i| (i.to_string(), level(i))).collect();
        defs.insert("22".to_owned(), json!({"const": 1}));
        let bomb = json!({"$defs": defs, "$ref": "#/$defs/0"});
        let error = Schema::of(bomb.as_object().unwrap()).unwrap_err();
        assert!(error.contains("refer to each definition once"), "{error}");
    }

    #[test]
    fn a_schema_as_deep_as_may_be_compiles_and_checks() {
        let mut deep = json!({"type": "string"});
        for i in 0..60 {
            deep = match i % 3 {
                0 => json!({"items": deep}),
                1 => json!({"allOf": [deep]}),
                _ => json!({"properties": {"a": deep}}),
            };
        }
        assert!(accepts(&of(&deep), &json!({"a": []})));
        let link =
            |i: usize| (i.to_string(), json!({"items": {"$ref": format!("#/$defs/{}", i + 1)}}));
        let mut defs: Map<_, _> = (0..120).map(link).collect();
        defs.insert("120".to_owned(), json!({"type": "null"}));
        let chain = of(&json!({"$defs": defs, "$ref": "#/$defs/0"}));
        assert!(accepts(&chain, &lists(100, "[]")));
        assert_eq!(chain.check(&lists(120, "1")), Ok(false));
    }
}
