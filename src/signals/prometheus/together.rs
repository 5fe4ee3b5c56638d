//! Many texts in one query, so that a thousand canaries cost Prometheus tens of requests.
//!
//! Each text gets a label that says which one it is, and the results are joined by `or`:
//! `label_replace(TEXT, "serinus_query", "ID", "", "") or label_replace(…)`. Anybody may write
//! a policy, so a text must not reach beyond its own place: one that could end it (by a
//! bracket, a comma, a string or a comment that goes on) is asked alone, and nobody can say
//! that a result belongs to another text, because the IDs of a round are drawn at random.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::Mutex,
};

use serde_json::Value;

use super::failure::Failure;

/// The label that tells results apart.
const LABEL: &str = "serinus_query";
/// Texts in one query.
const MOST: usize = 250;
/// Bytes of one query.
const LARGEST: usize = 256 << 10;
/// So many kinds of texts are remembered as ones that spoil a query, and for so many rounds:
/// what was slow because the server was busy is not slow for ever.
const REMEMBERED: usize = 1_000;
const ROUNDS: u32 = 100;

/// Texts that are asked together, and the query that asks them.
pub(super) struct Batch {
    pub(super) texts: Vec<String>,
    nonce: u64,
}

impl Batch {
    pub(super) fn new(texts: Vec<String>) -> Self {
        Self { texts, nonce: rand::random() }
    }

    /// The text itself when it is alone.
    pub(super) fn alone(&self) -> Option<&str> {
        if let [one] = self.texts.as_slice() { Some(one) } else { None }
    }

    pub(super) fn query(&self) -> String {
        let mut query = String::new();
        for (index, text) in self.texts.iter().enumerate() {
            let or = if index == 0 { "" } else { "or " };
            let id = self.id(index);
            // Writing to a string does not fail.
            let _ = writeln!(query, r#"{or}label_replace({text}, "{LABEL}", "{id}", "", "")"#);
        }
        query
    }

    fn id(&self, index: usize) -> String {
        format!("{:016x}-{index}", self.nonce)
    }

    /// The series of each text, from the result of the query: what it would have answered
    /// alone, as `data` of the HTTP API.
    pub(super) fn split(&self, mut data: Value) -> Result<Vec<Value>, Failure> {
        let Some(Value::Array(series)) = data.get_mut("result").map(Value::take) else {
            return Err(Failure::BadAnswer("it has no result".to_owned()));
        };
        let mut by_id: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for mut one in series {
            let label = one.get_mut("metric").and_then(|m| m.as_object_mut()?.remove(LABEL));
            if let Some(Value::String(id)) = label {
                by_id.entry(id).or_default().push(one);
            }
        }
        let kind = data["resultType"].take();
        let of = |index| {
            let series = by_id.remove(&self.id(index)).unwrap_or_default();
            serde_json::json!({"resultType": kind, "result": series})
        };
        Ok((0..self.texts.len()).map(of).collect())
    }

    /// The parts to ask when the whole failed: a text that is refused is found by halves, one
    /// that is slow by asking each alone.
    pub(super) fn parts(self, failure: &Failure) -> Vec<Self> {
        let size = match failure {
            Failure::Timeout(_) => 1,
            _ => self.texts.len().div_ceil(2),
        };
        self.texts.chunks(size.max(1)).map(|part| Self::new(part.to_vec())).collect()
    }
}

/// Whether what is wrong may be wrong with one text of several.
pub(super) fn may_be_one(failure: &Failure) -> bool {
    matches!(failure, Failure::BadQuery(_) | Failure::Timeout(_) | Failure::TooLarge(_))
}

/// The kinds of texts that spoiled a query for others, and are asked alone from then on.
/// Rounds and revisions differ by digits, so a text's kind is what is left without them.
#[derive(Default)]
pub(super) struct Spoilers(Mutex<Known>);

#[derive(Default)]
struct Known {
    kinds: BTreeSet<String>,
    rounds: u32,
}

impl Spoilers {
    pub(super) fn add(&self, text: &str) {
        if let Ok(mut known) = self.0.lock() {
            if known.kinds.len() >= REMEMBERED {
                known.kinds.clear();
            }
            known.kinds.insert(kind(text));
        }
    }

    fn has(&self, text: &str) -> bool {
        self.0.lock().is_ok_and(|known| known.kinds.contains(&kind(text)))
    }

    /// The queries of a new round. Few texts each alone, at most `alone` of them; many
    /// together.
    pub(super) fn batches(&self, texts: BTreeSet<String>, alone: usize) -> Vec<Batch> {
        if let Ok(mut known) = self.0.lock() {
            known.rounds += 1;
            if known.rounds.is_multiple_of(ROUNDS) {
                known.kinds.clear();
            }
        }
        if texts.len() <= alone {
            return texts.into_iter().map(|text| Batch::new(vec![text])).collect();
        }
        let (together, mut batches): (Vec<_>, Vec<_>) =
            texts.into_iter().partition(|text| is_closed(text) && !self.has(text));
        let mut batches: Vec<Vec<String>> = batches.drain(..).map(|text| vec![text]).collect();
        let (mut batch, mut bytes) = (vec![], 0);
        for text in together {
            if batch.len() == MOST || bytes + text.len() > LARGEST {
                batches.push(std::mem::take(&mut batch));
                bytes = 0;
            }
            bytes += text.len();
            batch.push(text);
        }
        batches.push(batch);
        batches.into_iter().filter(|texts| !texts.is_empty()).map(Batch::new).collect()
    }
}

fn kind(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// Whether a text ends where it ends: its brackets and strings are closed in the order in
/// which they were opened, it has no comment, and outside of brackets no comma.
fn is_closed(text: &str) -> bool {
    let (mut open, mut chars) = (vec![], text.chars());
    while let Some(c) = chars.next() {
        match c {
            '(' => open.push(')'),
            '[' => open.push(']'),
            '{' => open.push('}'),
            ')' | ']' | '}' if open.pop() != Some(c) => return false,
            ',' if open.is_empty() => return false,
            '#' => return false,
            '"' | '\'' if !ends_string(&mut chars, c) => return false,
            // Raw, over lines, and with no way to write a backtick: seldom, and not worth it.
            '`' => return false,
            _ => {}
        }
    }
    open.is_empty()
}

fn ends_string(chars: &mut std::str::Chars<'_>, quote: char) -> bool {
    while let Some(c) = chars.next() {
        match c {
            '\\' if chars.next().is_none() => return false,
            '\n' => return false,
            c if c == quote => return true,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_could_reach_beyond_its_place_is_asked_alone() {
        for closed in [
            r#"sum(increase(x{a="b"}[300s])) or vector(0)"#,
            r#"sum by (a, b) (rate(x{a=~"\\d+,(\"",b='}'}[5m]))"#,
            "max(x) / 2",
        ] {
            assert!(is_closed(closed), "{closed}");
        }
        for open in [
            r#"x, "a", "b", "", "") or label_replace(y"#,
            "x) or (y",
            "(x",
            "x # rest",
            "x{a=\"}",
            "x{a=`b`}",
            "x{a=\"b\\",
            "x{a=\"b\nc\"}",
            "x, y",
            "x[5m)",
            "}x{",
        ] {
            assert!(!is_closed(open), "{open}");
        }
    }

    #[test]
    fn many_texts_are_few_queries_and_each_gets_its_own_series() {
        let texts: BTreeSet<String> = (0..600).map(|i| format!("x{i}")).collect();
        let batches = Spoilers::default().batches(texts.clone(), 8);
        assert_eq!(batches.iter().map(|b| b.texts.len()).collect::<Vec<_>>(), [250, 250, 100]);
        let batch = &batches[2];
        assert_eq!(batch.query().lines().count(), 100);
        let series = |label: String, value: &str| serde_json::json!({"metric": {LABEL: label}, "value": [1, value]});
        let data = serde_json::json!({"resultType": "vector", "result": [
            series(batch.id(1), "7"), series(batch.id(3), "8"), series(batch.id(3), "9"),
            series("0000000000000000-0".to_owned(), "1"), {"metric": {}, "value": [1, "2"]}]});
        let parts = batch.split(data).unwrap();
        let values = |i: usize| parts[i]["result"].as_array().unwrap().len();
        assert_eq!((parts.len(), values(0), values(1), values(2), values(3)), (100, 0, 1, 0, 2));
        assert_eq!(parts[1]["result"][0]["value"][1], "7");
        // Large texts are fewer in a query; few texts need none of this.
        let large: BTreeSet<String> =
            (0..60).map(|i| format!("{i}{}", "x".repeat(10_000))).collect();
        assert_eq!(Spoilers::default().batches(large, 8).len(), 3);
        assert_eq!(Spoilers::default().batches(texts.into_iter().take(8).collect(), 8).len(), 8);
    }

    #[test]
    fn a_thousand_canaries_with_three_engine_metrics_are_tens_of_queries() {
        // Of each metric two sums, of each side.
        let text = |i: usize, metric: &str, revision: &str, part: &str| {
            format!(
                "sum(increase(vllm:{metric}_{part}{{model_name=\"team-{}/answers-{i}\",\
                 serinus_revision=\"{revision}\"}}[915s])) or vector(0)",
                i % 20
            )
        };
        let mut texts = BTreeSet::new();
        for i in 0..1_000 {
            for metric in ["e2e_request_latency", "time_to_first_token", "request_failure"] {
                for revision in ["5d41402abc4b2a76", "7d793037a0760186"] {
                    texts.extend(["bucket", "count"].map(|part| text(i, metric, revision, part)));
                }
            }
        }
        assert_eq!(texts.len(), 12_000);
        let batches = Spoilers::default().batches(texts, 8);
        assert_eq!(batches.len(), 48);
        assert!(batches.iter().all(|batch| batch.query().len() <= 2 * LARGEST));
    }

    #[test]
    fn only_what_one_text_can_cause_is_looked_for_in_parts() {
        let page = Failure::BadAnswer("it is no JSON".to_owned());
        for (failure, may_be) in [
            (Failure::BadQuery(String::new()), true),
            (Failure::Timeout(std::time::Duration::ZERO), true),
            (Failure::TooLarge(1), true),
            // A page to log in, or none at all, is that for every text.
            (page, false),
            (Failure::Unauthorized(401), false),
            (Failure::Unavailable(503), false),
            (Failure::Unreachable(String::new()), false),
        ] {
            assert_eq!(may_be_one(&failure), may_be, "{failure:?}");
        }
    }

    #[test]
    fn what_spoiled_a_query_is_asked_alone_from_then_on() {
        let texts: BTreeSet<String> = (0..50).map(|i| format!("x_{}[{i}s]", i % 7)).collect();
        let spoilers = Spoilers::default();
        spoilers.add("sum(bad[17s])");
        let mut with = texts.clone();
        with.insert("sum(bad[32s])".to_owned());
        let batches = spoilers.batches(with, 8);
        assert_eq!(batches.iter().map(|b| b.texts.len()).collect::<Vec<_>>(), [1, 50]);
        let refused = Failure::BadQuery(String::new());
        let halves = Batch::new(texts.into_iter().collect()).parts(&refused);
        assert_eq!(halves.iter().map(|b| b.texts.len()).collect::<Vec<_>>(), [25, 25]);
        let slow = Failure::Timeout(std::time::Duration::from_secs(1));
        assert_eq!(halves.into_iter().next().unwrap().parts(&slow).len(), 25);
    }
}
