//! What a schema may be, before it is compiled: compiling recurses, too, and where anyOf,
//! allOf and oneOf refer to each other a schema of a kilobyte says to look at a value
//! millions of times.

use std::{collections::HashMap, ptr};

use regex::RegexBuilder;
use serde_json::{Map, Value};

use super::metered::Weight;

/// The length of a schema as JSON, in bytes.
const LONGEST: usize = 256 << 10;
/// Values in a schema.
const MOST_VALUES: u64 = 10_000;
/// Schemas within each other, those counted that are referred to.
const DEEPEST: u32 = 256;
/// References.
const MOST_REFERENCES: usize = 1_000;
/// Regular expressions.
const MOST_EXPRESSIONS: usize = 100;
/// What all regular expressions may take when they are compiled, in bytes.
const LARGEST_EXPRESSIONS: usize = 16 << 20;
/// How often one value may be looked at.
const MOST_LOOKS: u64 = 10_000;
/// What an expression may cost that goes back and forth in a text, in steps.
const BACK_AND_FORTH: u64 = 200;

/// What a schema says about its cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub weight: Weight,
    /// What one regular expression may take when it is compiled, in bytes.
    pub expression: usize,
    /// How many schemas lie within each other.
    pub height: u32,
}

impl Bounds {
    /// # Errors
    /// The schema is beyond what is compiled: says what to do.
    pub fn of(schema: &Value, length: usize) -> Result<Self, String> {
        if length > LONGEST {
            return Err(format!(
                "it has {length} bytes, of which {LONGEST} are taken: leave out descriptions \
                 and examples, or split the prompt"
            ));
        }
        let mut found = Found::default();
        found.collect(schema);
        if found.values > MOST_VALUES {
            return Err(format!(
                "it holds more than {MOST_VALUES} values: say the same with fewer, for example \
                 a pattern in place of a long enum"
            ));
        }
        if found.references > MOST_REFERENCES {
            return Err(format!("it has more than {MOST_REFERENCES} references: use fewer"));
        }
        if found.expressions.len() > MOST_EXPRESSIONS {
            return Err(format!(
                "it has more than {MOST_EXPRESSIONS} regular expressions (pattern, \
                 patternProperties): use fewer"
            ));
        }
        let height = Graph::of(schema, &found).check(schema)?;
        Ok(found.bounds(height))
    }
}

/// What is in a schema, wherever it is.
#[derive(Default)]
struct Found<'a> {
    values: u64,
    booleans: u64,
    references: usize,
    names: u64,
    expressions: Vec<&'a str>,
    /// What references may mean besides a place: anchors and ids.
    anchors: HashMap<&'a str, &'a Value>,
}

impl<'a> Found<'a> {
    fn collect(&mut self, value: &'a Value) {
        self.values += 1;
        match value {
            Value::Bool(_) => self.booleans += 1,
            Value::Array(list) => list.iter().for_each(|value| self.collect(value)),
            Value::Object(object) => {
                for (key, inner) in object {
                    self.keyword(value, key, inner);
                    self.collect(inner);
                }
            }
            Value::Null | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn keyword(&mut self, schema: &'a Value, key: &str, value: &'a Value) {
        match (key, value) {
            ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(_)) => self.references += 1,
            ("pattern", Value::String(text)) => self.expressions.push(text),
            ("patternProperties", Value::Object(patterns)) => {
                self.names += patterns.len() as u64;
                self.expressions.extend(patterns.keys().map(String::as_str));
            }
            ("$anchor" | "$dynamicAnchor" | "$id" | "id", Value::String(name)) => {
                let name = name.trim_end_matches('#').trim_start_matches('#');
                self.anchors.entry(name).or_insert(schema);
            }
            _ => {}
        }
    }

    fn bounds(&self, height: u32) -> Bounds {
        let count = self.expressions.len().max(1);
        let expression = (LARGEST_EXPRESSIONS / count).min(LARGEST_EXPRESSIONS / 4);
        // Without looking around or back, an expression passes over a text once.
        let is_plain = |text: &&str| RegexBuilder::new(text).size_limit(expression).build().is_ok();
        let text = if self.expressions.iter().all(is_plain) { 1 } else { BACK_AND_FORTH };
        // What is always or never true is looked at without a look at the value.
        let element = 1 + self.booleans / 32;
        let member = element + self.names * text;
        Bounds { weight: Weight { element, member, text }, expression, height }
    }
}

/// A schema within another, or one that it refers to.
#[derive(Clone, Copy)]
struct Edge<'a> {
    to: &'a Value,
    /// It is about the same value, and not one within it.
    same: bool,
}

struct Graph<'a> {
    root: &'a Value,
    anchors: &'a HashMap<&'a str, &'a Value>,
    /// By the address of a schema; none while it is being looked at.
    heights: HashMap<usize, Option<u32>>,
    looks: HashMap<usize, Option<u64>>,
    reached: Vec<&'a Value>,
}

fn address(value: &Value) -> usize {
    ptr::from_ref(value).addr()
}

impl<'a> Graph<'a> {
    fn of(root: &'a Value, found: &'a Found<'a>) -> Self {
        let (heights, looks) = (HashMap::new(), HashMap::new());
        Self { root, anchors: &found.anchors, heights, looks, reached: vec![] }
    }

    /// How many schemas lie within each other.
    fn check(&mut self, schema: &'a Value) -> Result<u32, String> {
        let height = self.height(schema, 0)?;
        for schema in std::mem::take(&mut self.reached) {
            if self.looks(schema)? > MOST_LOOKS {
                return Err(format!(
                    "one value would be looked at more than {MOST_LOOKS} times, because anyOf, \
                     allOf, oneOf and references multiply within each other: refer to each \
                     definition once where several refer to the same"
                ));
            }
        }
        Ok(height)
    }

    /// How many schemas lie within each other below, those counted that are referred to.
    fn height(&mut self, schema: &'a Value, depth: u32) -> Result<u32, String> {
        if let Some(known) = self.heights.get(&address(schema)) {
            // What is under way refers to itself, which is compiled once.
            return Ok(known.unwrap_or(0));
        }
        self.heights.insert(address(schema), None);
        self.reached.push(schema);
        let mut height = 0;
        // At each, so that this recurses no deeper than what it looks for.
        let check = |height: u32| {
            if depth + height <= DEEPEST {
                return Ok(());
            }
            Err(format!(
                "schemas lie within each other, or refer to each other, more than {DEEPEST} \
                 levels deep: make it flatter"
            ))
        };
        check(1)?;
        for edge in self.edges(schema) {
            height = height.max(1 + self.height(edge.to, depth + 1)?);
            check(height)?;
        }
        self.heights.insert(address(schema), Some(height));
        Ok(height)
    }

    /// How often a value is looked at to check it, apart from the values within it.
    fn looks(&mut self, schema: &'a Value) -> Result<u64, String> {
        match self.looks.get(&address(schema)) {
            Some(Some(known)) => return Ok(*known),
            Some(None) => {
                let message = "a schema refers to itself for the same value, which never ends: \
                               refer to it from properties or items";
                return Err(message.to_owned());
            }
            None => {}
        }
        self.looks.insert(address(schema), None);
        let mut looks = 1_u64;
        for edge in self.edges(schema).iter().filter(|edge| edge.same) {
            looks = looks.saturating_add(self.looks(edge.to)?);
        }
        let again = |name| schema.get(name).is_some();
        if again("unevaluatedProperties") || again("unevaluatedItems") {
            looks = looks.saturating_mul(2);
        }
        self.looks.insert(address(schema), Some(looks));
        Ok(looks)
    }

    fn edges(&self, schema: &'a Value) -> Vec<Edge<'a>> {
        let Value::Object(schema) = schema else { return vec![] };
        schema.iter().flat_map(|(key, value)| self.edges_of(key, value)).collect()
    }

    fn edges_of(&self, key: &str, value: &'a Value) -> Vec<Edge<'a>> {
        let all = |same: bool| -> Vec<Edge<'a>> {
            match value {
                Value::Array(list) => list.iter().map(|to| Edge { to, same }).collect(),
                to => vec![Edge { to, same }],
            }
        };
        let named = |same: bool| -> Vec<Edge<'a>> {
            let schemas = value.as_object().into_iter().flat_map(Map::values);
            schemas.filter(|to| !to.is_array()).map(|to| Edge { to, same }).collect()
        };
        match key {
            "$ref" | "$dynamicRef" | "$recursiveRef" => {
                let to = value.as_str().and_then(|reference| self.meant(reference));
                to.map(|to| Edge { to, same: true }).into_iter().collect()
            }
            "allOf" | "anyOf" | "oneOf" | "not" | "if" | "then" | "else" => all(true),
            "dependentSchemas" | "dependencies" => named(true),
            "properties" | "patternProperties" => named(false),
            "items"
            | "prefixItems"
            | "additionalItems"
            | "contains"
            | "propertyNames"
            | "additionalProperties"
            | "unevaluatedItems"
            | "unevaluatedProperties"
            | "contentSchema" => all(false),
            _ => vec![],
        }
    }

    /// What a reference leads to within the schema, if it can be found.
    fn meant(&self, reference: &str) -> Option<&'a Value> {
        let (base, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let base = if base.is_empty() {
            self.root
        } else {
            let same = |(id, _): &(&&str, _)| **id == base || id.ends_with(&format!("/{base}"));
            self.anchors.iter().find(same).map(|(_, schema)| *schema)?
        };
        match fragment {
            "" => Some(base),
            pointer if pointer.starts_with('/') => base.pointer(&decoded(pointer)),
            anchor => self.anchors.get(anchor).copied(),
        }
    }
}

/// Without the encoding of URLs.
fn decoded(pointer: &str) -> String {
    let mut bytes = Vec::with_capacity(pointer.len());
    let mut rest = pointer.as_bytes();
    while let [first, after @ ..] = rest {
        let code = after.get(..2).filter(|_| *first == b'%');
        let code = code.and_then(|c| u8::from_str_radix(std::str::from_utf8(c).ok()?, 16).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(schema: &Value) -> Result<Bounds, String> {
        Bounds::of(schema, schema.to_string().len())
    }

    /// Definitions of which each refers to the next one twice.
    fn doubling(levels: usize, keyword: &str) -> Value {
        let level = |i: usize| json!({keyword: vec![json!({"$ref": format!("#/$defs/{i}")}); 2]});
        let mut defs: Map<_, _> = (0..levels).map(|i| (i.to_string(), level(i + 1))).collect();
        defs.insert(levels.to_string(), json!({"const": 1}));
        json!({"$defs": defs, "$ref": "#/$defs/0"})
    }

    #[test]
    fn what_multiplies_within_itself_is_refused_and_what_people_write_is_not() {
        for keyword in ["anyOf", "allOf", "oneOf"] {
            assert!(of(&doubling(8, keyword)).is_ok(), "{keyword}");
            for levels in [16, 25, 100] {
                let error = of(&doubling(levels, keyword)).unwrap_err();
                assert!(error.contains("more than 10000 times"), "{keyword} {levels}: {error}");
            }
        }
        let mut nested = json!({"properties": {"a": {}}});
        for _ in 0..20 {
            nested = json!({"allOf": [nested], "unevaluatedProperties": false});
        }
        assert!(of(&nested).unwrap_err().contains("more than 10000 times"));
        // A tree of expressions, an answer of many forms, a list of lists.
        let binary = |op: &str| json!({"properties": {"op": {"const": op}, "l": {"$ref": "#"}, "r": {"$ref": "#"}}});
        let tree = json!({"oneOf": [binary("+"), binary("-"), binary("*"), {"type": "number"}]});
        let form = |i: usize| json!({"properties": {"kind": {"const": i}}, "required": ["kind"]});
        let forms = json!({"items": {"oneOf": (0..60).map(form).collect::<Vec<_>>()}});
        let lists = json!({"$id": "https://e.org/s", "$anchor": "l", "items": {"$ref": "s#l"}});
        for schema in [tree, forms, lists, json!({}), json!({"additionalProperties": true})] {
            assert!(of(&schema).is_ok(), "{schema}");
        }
    }

    #[test]
    fn what_refers_to_itself_for_the_same_value_is_refused() {
        for schema in [
            json!({"$ref": "#"}),
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
            json!({"allOf": [{"not": {"$ref": "#"}}]}),
            json!({"$anchor": "a", "anyOf": [{"type": "null"}, {"$ref": "#a"}]}),
            json!({"$ref": "#/$defs/a%20b", "$defs": {"a b": {"$ref": "#/$defs/a~1"}, "a/": {"$ref": "#/$defs/a b"}}}),
        ] {
            let error = of(&schema).unwrap_err();
            assert!(error.contains("refers to itself for the same value"), "{schema}: {error}");
        }
        let through = json!({"allOf": [{"properties": {"x": {"allOf": [{"$ref": "#"}]}}}]});
        assert!(of(&through).is_ok(), "the value within is another one");
    }

    #[test]
    fn what_is_large_or_deep_is_refused_before_it_is_compiled() {
        let chain = |n: usize| {
            let link = |i: usize| {
                (i.to_string(), json!({"items": {"$ref": format!("#/$defs/{}", i + 1)}}))
            };
            let mut defs: Map<_, _> = (0..n).map(link).collect();
            defs.insert(n.to_string(), json!({}));
            json!({"$defs": defs, "$ref": "#/$defs/0"})
        };
        assert!(of(&chain(100)).is_ok());
        for (schema, what) in [
            (chain(900), "levels deep"),
            (chain(2000), "references"),
            (json!({"enum": (0..10_001).collect::<Vec<_>>()}), "10000 values"),
            (json!({"description": "x".repeat(300_000)}), "bytes"),
            (
                json!({"allOf": (0..101).map(|i| json!({"pattern": format!("a{i}")})).collect::<Vec<_>>()}),
                "regular expressions",
            ),
        ] {
            let error = of(&schema).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }
}
