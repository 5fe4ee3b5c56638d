//! Costs as text: a table, CSV, JSON. What is not known is said to be unknown.

use serde_json::{Map, Value, json};

use super::By;
use crate::{
    app::table,
    signals::spending::{Line, Spent, Whose},
};

impl By {
    fn name(self) -> &'static str {
        match self {
            Self::Team => "team",
            Self::Release => "release",
            Self::Revision => "revision",
            Self::Traffic => "traffic",
        }
    }
}

fn total(lines: &[Line]) -> Spent {
    let mut total = Spent::default();
    lines.iter().for_each(|line| total.add(line.spent));
    total
}

/// A whole number; Prometheus's counts are floats.
fn whole(count: f64) -> String {
    format!("{count:.0}")
}

fn usd(spent: &Spent) -> String {
    spent.known_usd().map_or_else(|| "unknown".to_owned(), |usd| format!("{usd:.4}"))
}

pub(super) fn table(lines: &[Line], by: &[By], span: &str) -> String {
    if lines.is_empty() {
        return format!("No request has cost anything {span}.\n");
    }
    let head = ["requests", "unpriced", "input", "cached", "output", "reasoning", "usd"];
    let names = by.iter().map(|by| by.name()).chain(head).map(str::to_uppercase);
    let mut rows = vec![names.collect::<Vec<_>>()];
    let numbers = |spent: &Spent| {
        let requests = spent.priced_requests + spent.unpriced_requests;
        let counts = [
            requests,
            spent.unpriced_requests,
            spent.input_tokens,
            spent.cached_input_tokens,
            spent.output_tokens,
            spent.reasoning_tokens,
        ];
        counts.map(whole).into_iter().chain([usd(spent)])
    };
    for Line { whose, spent } in lines {
        let mut whose = whose.clone();
        let cell = |text: &mut String| if text.is_empty() { "-".to_owned() } else { text.clone() };
        let cells = by.iter().map(|by| cell(by.of(&mut whose)));
        rows.push(cells.collect::<Vec<_>>().into_iter().chain(numbers(spent)).collect());
    }
    let total = total(lines);
    if lines.len() > 1 && !by.is_empty() {
        let mut row = vec!["total".to_owned()];
        row.resize(by.len(), String::new());
        rows.push(row.into_iter().chain(numbers(&total)).collect());
    }
    let mut out = format!("Costs {span}\n\n{}", table::table(&rows));
    if total.unpriced_requests > 0.0 {
        out.push_str(&format!(
            "\nUSD leaves out {} requests whose cost is unknown: set spec.pricing on their LLMDeployment, or make the model report its usage.\n",
            whole(total.unpriced_requests)
        ));
    }
    out
}

/// The columns of CSV and JSON after the names: what they are called, and their values.
fn fields(spent: &Spent) -> [(&'static str, f64); 7] {
    [
        ("pricedRequests", spent.priced_requests),
        ("unpricedRequests", spent.unpriced_requests),
        ("inputTokens", spent.input_tokens),
        ("cachedInputTokens", spent.cached_input_tokens),
        ("cacheWriteTokens", spent.cache_write_tokens),
        ("outputTokens", spent.output_tokens),
        ("reasoningTokens", spent.reasoning_tokens),
    ]
}

/// RFC 4180. USD is empty where it is unknown.
pub(super) fn csv(lines: &[Line], by: &[By]) -> String {
    let names = by.iter().map(|by| by.name());
    let head = names.chain(fields(&Spent::default()).map(|(name, _)| name)).chain(["usd"]);
    let mut out = head.collect::<Vec<_>>().join(",") + "\r\n";
    for Line { whose, spent } in lines {
        let mut whose = whose.clone();
        let names: Vec<String> = by.iter().map(|by| quoted(by.of(&mut whose))).collect();
        let counts = fields(spent).map(|(_, count)| whole(count));
        let usd = spent.known_usd().map(|usd| usd.to_string()).unwrap_or_default();
        let cells: Vec<String> = names.into_iter().chain(counts).chain([usd]).collect();
        out.push_str(&cells.join(","));
        out.push_str("\r\n");
    }
    out
}

/// A name as a cell. A team's name may be anybody's choice, and spreadsheets calculate
/// what begins like a formula: a quote before it keeps it a text.
fn quoted(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = if formula { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text
}

/// USD is null where it is unknown.
pub(super) fn json(lines: &[Line], by: &[By], span: &str) -> anyhow::Result<String> {
    let of = |whose: &Whose, by: &[By], spent: &Spent| {
        let mut whose = whose.clone();
        let mut line = Map::new();
        for by in by {
            line.insert(by.name().to_owned(), Value::from(std::mem::take(by.of(&mut whose))));
        }
        for (name, count) in fields(spent) {
            line.insert(name.to_owned(), Value::from(count.round() as u64));
        }
        line.insert("usd".to_owned(), json!(spent.known_usd()));
        Value::Object(line)
    };
    let all: Vec<Value> = lines.iter().map(|line| of(&line.whose, by, &line.spent)).collect();
    let total = of(&Whose::default(), &[], &total(lines));
    let text = serde_json::to_string_pretty(&json!({"span": span, "lines": all, "total": total}))?;
    Ok(text + "\n")
}

#[cfg(test)]
mod tests {
    use super::{super::group, *};

    fn line(team: &str, release: &str, priced: f64, unpriced: f64, usd: f64) -> Line {
        let whose = Whose {
            team: team.to_owned(),
            release: release.to_owned(),
            revision: "r1".to_owned(),
            traffic: "users".to_owned(),
        };
        let spent = Spent {
            priced_requests: priced,
            unpriced_requests: unpriced,
            input_tokens: 10.0 * (priced + unpriced),
            usd,
            ..Spent::default()
        };
        Line { whose, spent }
    }

    fn lines() -> Vec<Line> {
        vec![
            line("a", "ns/x", 3.0, 0.0, 0.25),
            line("b", "ns/x", 0.0, 2.0, 0.0),
            line("a", "ns/y", 1.0, 1.0, 1.5),
        ]
    }

    #[test]
    fn what_is_not_told_apart_is_added_up_and_the_dearest_comes_first() {
        let by_team = group(lines(), &[By::Team]);
        let told: Vec<(&str, f64)> =
            by_team.iter().map(|l| (l.whose.team.as_str(), l.spent.usd)).collect();
        assert_eq!(told, [("a", 1.75), ("b", 0.0)]);
        assert!(by_team.iter().all(|line| line.whose.release.is_empty()));
        assert_eq!(group(lines(), &[]).len(), 1);
    }

    #[test]
    fn the_table_tells_unknown_from_zero() {
        let text = table(&group(lines(), &[By::Team]), &[By::Team], "in the last 24h");
        let expected = "\
Costs in the last 24h

TEAM   REQUESTS  UNPRICED  INPUT  CACHED  OUTPUT  REASONING  USD
a      5         1         50     0       0       0          1.7500
b      2         2         20     0       0       0          unknown
total  7         3         70     0       0       0          1.7500

USD leaves out 3 requests whose cost is unknown: set spec.pricing on their LLMDeployment, or make the model report its usage.
";
        assert_eq!(text, expected);
        assert_eq!(
            table(&[], &[By::Team], "in the last 24h"),
            "No request has cost anything in the last 24h.\n"
        );
    }

    #[test]
    fn csv_and_json_leave_an_unknown_price_empty() {
        let by = [By::Release, By::Team];
        let grouped = group(lines(), &by);
        let csv = csv(&grouped, &by);
        let rows: Vec<&str> = csv.split("\r\n").collect();
        assert_eq!(
            rows[0],
            "release,team,pricedRequests,unpricedRequests,inputTokens,cachedInputTokens,cacheWriteTokens,outputTokens,reasoningTokens,usd"
        );
        assert_eq!(rows[1], "ns/y,a,1,1,20,0,0,0,0,1.5");
        assert_eq!(rows[3], "ns/x,b,0,2,20,0,0,0,0,");
        let json: Value = serde_json::from_str(&json(&grouped, &by, "s").unwrap()).unwrap();
        assert_eq!(json["lines"][2]["usd"], Value::Null);
        assert_eq!(json["lines"][0]["usd"], 1.5);
        assert_eq!(
            (&json["total"]["usd"], &json["total"]["unpricedRequests"]),
            (&json!(1.75), &json!(3))
        );
        assert_eq!(json["lines"][0].get("revision"), None);
    }

    #[test]
    fn a_name_that_looks_like_a_formula_stays_a_text() {
        assert_eq!(quoted("=1+1"), "'=1+1");
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(quoted("team-a"), "team-a");
    }
}
