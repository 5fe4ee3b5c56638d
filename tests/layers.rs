//! Imports go down only, and pure layers stay pure. The table is the one in `src/lib.rs`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when something is wrong")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The modules of each layer, lowest first.
const LAYERS: [&[&str]; 5] = [
    &["api", "openai"],
    &["analysis", "audit", "cost", "prompt", "rollout"],
    &["signals", "traffic", "evaluation", "telemetry"],
    &["controllers", "gateway"],
    &["app"],
];

/// What the lower two layers must not use: they are values and functions.
const IMPURE: [&str; 9] = [
    "use tokio",
    "tokio::",
    "use kube::{Client",
    "kube::Client",
    "kube::runtime",
    "use hyper",
    "use axum",
    "use reqwest",
    "tracing::",
];

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// (path, module, code without comments)
fn modules() -> Vec<(String, String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![];
    sources(&root, &mut files);
    files
        .iter()
        .filter_map(|path| {
            let relative = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            let module = relative.split(['/', '.']).next().unwrap().to_owned();
            let text = fs::read_to_string(path).unwrap();
            let code: Vec<&str> =
                text.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
            (!["lib", "main"].contains(&module.as_str()))
                .then(|| (relative, module, code.join("\n")))
        })
        .collect()
}

#[test]
fn imports_go_down_only() {
    let mut wrong = vec![];
    for (path, module, code) in modules() {
        let own =
            layer_of(&module).unwrap_or_else(|| panic!("src/{path}: {module} is in no layer"));
        let grouped = code.replace("crate::{", "crate::{ ");
        for (other, layer) in
            LAYERS.iter().enumerate().flat_map(|(l, m)| m.iter().map(move |o| (*o, l)))
        {
            let mentions = grouped.contains(&format!("crate::{other}"))
                || imports_in_group(&code).iter().any(|name| name == other);
            let sideways = layer == own && layer >= 2 && other != module;
            if mentions && (layer > own || sideways) {
                wrong.push(format!("src/{path} (layer {own}) imports {other} (layer {layer})"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The first names inside `use crate::{…}`.
fn imports_in_group(code: &str) -> Vec<String> {
    let mut names = vec![];
    for part in code.split("crate::{").skip(1) {
        let (mut depth, mut name) = (0, String::new());
        for c in part.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => names.push(std::mem::take(&mut name)),
                _ if depth == 0 => name.push(c),
                _ => {}
            }
        }
        names.push(name);
    }
    names.iter().map(|n| n.trim().split("::").next().unwrap().trim().to_owned()).collect()
}

#[test]
fn words_and_decisions_know_no_io() {
    let mut wrong = vec![];
    for (path, module, code) in modules() {
        let pure = layer_of(&module).is_some_and(|l| l <= 1) && !path.ends_with("tests.rs");
        let production = code.split("#[cfg(test)]\nmod tests").next().unwrap();
        if pure {
            wrong.extend(
                IMPURE
                    .iter()
                    .filter(|i| production.contains(**i))
                    .map(|i| format!("src/{path}: {i}")),
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_module_is_a_drawer() {
    for (path, ..) in modules() {
        for drawer in ["utils", "common", "helpers", "types", "metrics", "mod"] {
            assert!(!path.ends_with(&format!("{drawer}.rs")), "src/{path}: say what it is");
        }
    }
}

/// Who reads the wall clock in the loops, and for what: for times that people read, or that
/// outlive the process. An interval of a process is none of these. By the wall clock it would end
/// when somebody sets that clock back, until the old time is there again.
const WALL_CLOCK: [(&str, &str); 17] = [
    ("controllers/backend.rs", "conditions"),
    ("controllers/kube/leadership.rs", "what people read in the Lease, and terms"),
    ("controllers/policy.rs", "conditions"),
    ("controllers/prompt.rs", "conditions"),
    ("controllers/release.rs", "times in the status, which outlive the process"),
    ("controllers/release/absent.rs", "since when a release is gone, which is noted"),
    ("controllers/release/asking.rs", "the window of a query"),
    ("controllers/release/before.rs", "how long ago a first release was, which the status tells"),
    ("controllers/release/keep.rs", "conditions"),
    (
        "controllers/release/observe.rs",
        "how old what Prometheus told is: by a clock that went back it is asked anew",
    ),
    ("controllers.rs", "days until models end"),
    ("gateway.rs", "when the process started, for people"),
    ("gateway/caching.rs", "ages of answers that replicas share"),
    ("gateway/flight.rs", "records"),
    ("gateway/identity/request_keys", "ages of keys, which are stored"),
    ("gateway/identity/tokens.rs", "until when a token holds"),
    ("gateway/server/report.rs", "of when a question is"),
];

#[test]
fn only_these_files_read_the_wall_clock() {
    let mut used = vec![];
    for (path, module, code) in modules() {
        let code = code.split("#[cfg(test)]\nmod tests").next().unwrap();
        let reads = code.contains("clock)()") && !path.ends_with("tests.rs");
        if layer_of(&module) != Some(3) || !reads {
            continue;
        }
        let known = WALL_CLOCK.iter().find(|(file, _)| path.starts_with(file));
        let (file, _) = known.unwrap_or_else(|| {
            panic!(
                "{path} reads the wall clock: for an interval use tokio::time::Instant; for a \
                 time that people read or that outlives the process add it to WALL_CLOCK"
            )
        });
        used.push(*file);
    }
    for (file, what) in WALL_CLOCK {
        assert!(used.contains(&file), "{file} does not read the wall clock any more ({what})");
    }
}
