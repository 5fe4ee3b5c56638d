//! How many instructions a request takes, and where: Serinus under callgrind, in front
//! of the same model. Counts hold on any machine with the same instruction set, so that
//! they can be compared from change to change; `benches/callgrind.sh` runs this.
//!
//! The counters are set to zero, N requests are sent, and the counters are written; then
//! the same with 2N: the difference is free of what happens once. What is due to the
//! clock (timers, the operator's questions) is counted without requests and taken off.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::{
    contestants::{self, Contestant, OURS},
    load::{CONNECTIONS, Request, connect, several},
    start_model,
};

/// Requests of the shorter run.
const PLAIN: u64 = 16 * CONNECTIONS as u64;
const STREAMS: u64 = 2 * CONNECTIONS as u64;

/// Expects SERINUS to be valgrind with callgrind and a binary with symbols.
pub async fn run() {
    let folder = tempfile::tempdir().unwrap();
    let (_model, address) = start_model().await;
    let ours = contestants::start(OURS, folder.path(), address).await.unwrap();
    let out = PathBuf::from(std::env::var("CALLGRIND_FOLDER").unwrap());
    count("request", &ours, &ours.plain, PLAIN, &out).await;
    count("stream of 20 chunks", &ours, &ours.stream, STREAMS, &out).await;
}

/// Instructions of one function.
#[derive(Clone, Copy, Default)]
struct Cost {
    own: f64,
    /// With all that it calls.
    whole: f64,
}

/// Instructions by function, and in how many seconds.
struct Profile {
    costs: BTreeMap<String, Cost>,
    seconds: f64,
}

async fn count(what: &str, ours: &Contestant, request: &Request, requests: u64, out: &Path) {
    // What is made once is made.
    let connections = connect(request).await.unwrap();
    let mut connections = several(connections, request, requests).await.unwrap();
    let mut profiles = vec![];
    for times in 0..3 {
        control(ours, "--zero");
        let started = Instant::now();
        connections = several(connections, request, requests * times).await.unwrap();
        // What is done behind the last answer belongs to it.
        let quiet = if times == 0 { 3_000 } else { 300 };
        sleep(Duration::from_millis(quiet)).await;
        let seconds = started.elapsed().as_secs_f64();
        let name = format!("{}-{times}", what.split(' ').next().unwrap_or_default());
        control(ours, &format!("--dump={name}"));
        profiles.push(Profile { costs: profile(out, &name), seconds });
    }
    let [idle, once, twice] = profiles.as_slice() else { return };
    let cost = |name: &str, pick: fn(&Cost) -> f64| {
        let of = |profile: &Profile| profile.costs.get(name).map_or(0.0, pick);
        let clock = of(idle) / idle.seconds * (twice.seconds - once.seconds);
        (of(twice) - of(once) - clock) / requests as f64
    };
    let by = |pick: fn(&Cost) -> f64| {
        let names = twice.costs.keys().map(String::as_str);
        sorted(names.map(|name| (cost(name, pick), name)))
    };
    let own = by(|cost| cost.own);
    let sum: f64 = own.iter().map(|(cost, _)| cost).sum();
    println!("\n**{:.1} thousand instructions a {what}**, outside the kernel\n", sum / 1e3);
    let mut crates: BTreeMap<&str, f64> = BTreeMap::new();
    for (cost, name) in &own {
        *crates.entry(belongs_to(name)).or_default() += cost;
    }
    table("by crate", &sorted(crates.into_iter().map(|(n, c)| (c, n))), sum, 16);
    table("by function, itself", &own, sum, 30);
    let mut ours = by(|cost| cost.whole);
    ours.retain(|(_, name)| belongs_to(name) == "serinus");
    table("our functions, with what they call", &ours, sum, 24);
}

fn sorted<'a>(costs: impl Iterator<Item = (f64, &'a str)>) -> Vec<(f64, &'a str)> {
    let mut costs: Vec<_> = costs.collect();
    costs.sort_by(|a, b| b.0.total_cmp(&a.0));
    costs
}

fn table(title: &str, rows: &[(f64, &str)], sum: f64, most: usize) {
    println!("| {title} | instructions | share |\n|---|---|---|");
    for (cost, name) in rows.iter().take(most) {
        println!("| `{name}` | {cost:.0} | {:.1} % |", cost / sum * 100.0);
    }
    println!();
}

fn control(ours: &Contestant, what: &str) {
    let pid = ours.pid().unwrap().to_string();
    let done = Command::new("callgrind_control").args([what, &pid]).stdout(Stdio::null()).status();
    assert!(done.unwrap().success(), "callgrind_control {what} failed");
}

/// Instructions by function, of the dump that has this name as its trigger.
fn profile(out: &Path, name: &str) -> BTreeMap<String, Cost> {
    let wanted = format!("Trigger: dump {name}\n");
    for _ in 0..100 {
        for entry in fs::read_dir(out).unwrap().flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            // Written completely only with the totals at its end.
            if text.contains(&wanted) && text.contains("\ntotals:") {
                return costs(&text);
            }
        }
        std::thread::yield_now();
    }
    BTreeMap::new()
}

/// Callgrind's format: a line `fn=(id) name` opens a function, lines of numbers are its
/// costs, and the line after `calls=` is the cost of a callee, which is not its own.
fn costs(text: &str) -> BTreeMap<String, Cost> {
    let (mut names, mut costs) = (BTreeMap::new(), BTreeMap::<String, Cost>::new());
    let (mut function, mut callee, mut of_callee) = (String::new(), String::new(), false);
    for line in text.lines() {
        if let Some((key, value)) = line.split_once('=').filter(|(key, _)| key.len() <= 5) {
            if key == "fn" || key == "cfn" {
                let (id, name) = value.split_once(' ').unwrap_or((value, ""));
                let named = names.entry(id.to_owned()).or_insert_with(|| name.to_owned());
                *(if key == "fn" { &mut function } else { &mut callee }) = named.clone();
            }
            of_callee = key == "calls";
        } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
            let instructions = line.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0.0);
            let of_callee = std::mem::take(&mut of_callee);
            let cost = costs.entry(function.clone()).or_default();
            // A function that calls itself has that in its own whole already.
            if !of_callee || callee != function {
                cost.whole += instructions;
            }
            if !of_callee {
                cost.own += instructions;
            }
        }
    }
    costs
}

/// The crate of a function's name as Rust writes it: `<hyper::a::B<T> as core::c>::d`.
fn belongs_to(name: &str) -> &str {
    let name = name.trim_start_matches(['<', '&', '*', '(', '[']);
    let name = name.trim_start_matches("dyn ").trim_start_matches("mut ");
    match name.split_once("::") {
        Some((first, _)) if first.chars().all(|c| c.is_alphanumeric() || c == '_') => first,
        _ => "C library and others",
    }
}
