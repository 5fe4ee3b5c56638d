//! The fuzz targets on stable Rust: the kept corpus, and what comes of it by chance, within
//! limits on memory, stack and time. Without coverage this finds less than cargo-fuzz
//! (`fuzz/`), and runs everywhere. By default as many inputs as take a few seconds;
//! `SERINUS_FUZZ_SECONDS` is the time for each target, `SERINUS_FUZZ_SEED` draws others. An
//! input that fails is left in `fuzz/artifacts`: mend the fault and move it to the corpus.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says so when something is wrong, and how much it tried"
)]
#[path = "../fuzz/targets.rs"]
mod targets;

use std::{
    env, fs,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use rustix::process::{Resource, Rlimit, setrlimit};

/// Inputs of a target where no time is given.
const FEW: usize = 300;
/// The longest input, in bytes.
const LONGEST: usize = 64 << 10;
/// As much stack as the threads have that carry requests.
const STACK: usize = 2 << 20;
/// An input that takes longer is a find: each is small.
const PATIENCE: Duration = Duration::from_secs(60);
/// Memory of the process, in bytes.
const MEMORY: u64 = 4 << 30;

/// What readers turn on.
const WORDS: [&str; 38] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    "\\u",
    "\\ud800",
    ":",
    ",",
    "null",
    "true",
    "NaN",
    "1e400",
    "-0",
    "\n",
    "\r",
    "\r\n\r\n",
    "data:",
    "data: ",
    "event: error\n",
    ": ",
    "[DONE]",
    "\u{feff}",
    "{\"a\":",
    "[[[[",
    "]]]]",
    "\"$ref\":\"#\"",
    "\"anyOf\":[",
    "\"allOf\":[",
    "\"items\":",
    "\"pattern\":\"(a+)+\"",
    "\"unevaluatedProperties\":false",
    "&a ",
    "*a",
    "- ",
    "? ",
    "---\n",
];

fn folder(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind).join(target)
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let mut files: Vec<_> =
        fs::read_dir(folder("corpus", target)).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{target} has a corpus");
    files.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// An input that comes of those that are known.
fn drawn(known: &[Vec<u8>], dice: &mut StdRng) -> Vec<u8> {
    let one = |dice: &mut StdRng| &known[dice.random_range(0..known.len())];
    let mut bytes = one(dice).clone();
    for _ in 0..dice.random_range(1..8) {
        let at = dice.random_range(0..=bytes.len());
        let end = (at + dice.random_range(0..40)).min(bytes.len());
        match dice.random_range(0..8) {
            0 if at < bytes.len() => bytes[at] = dice.random(),
            1 => bytes.truncate(at),
            2 => drop(bytes.drain(at..end)),
            3 => drop(bytes.splice(at..at, WORDS[dice.random_range(0..WORDS.len())].bytes())),
            // Again and again: what is long, deep, or both.
            4 => {
                let part = bytes[at..end].repeat(1 << dice.random_range(0..12));
                drop(bytes.splice(at..at, part));
            }
            5 => {
                let word = WORDS[dice.random_range(0..WORDS.len())];
                drop(bytes.splice(at..at, word.repeat(1 << dice.random_range(0..12)).into_bytes()));
            }
            6 => {
                let other = one(dice);
                let from = dice.random_range(0..=other.len());
                let part = other[from..(from + 200).min(other.len())].to_vec();
                drop(bytes.splice(at..end, part));
            }
            _ => bytes.insert(at, dice.random()),
        }
        bytes.truncate(LONGEST);
    }
    bytes
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|e| panic!("{name}: {e}")))
}

/// Runs a target over its corpus and what is drawn from it.
fn run(target: &'static str, work: fn(&[u8])) {
    // What a reader allocates by mistake ends this process, and not the machine.
    let _ = setrlimit(Resource::As, Rlimit { current: Some(MEMORY), maximum: None });
    let (asks, asked) = mpsc::channel::<Vec<u8>>();
    let (tells, told) = mpsc::channel();
    let worker = thread::Builder::new().stack_size(STACK).spawn(move || {
        for input in asked {
            let done = panic::catch_unwind(AssertUnwindSafe(|| work(&input)));
            tells.send(done.is_ok()).unwrap();
        }
    });
    let check = |input: Vec<u8>| {
        // Written before it is tried: what exhausts the stack leaves no time.
        let kept = folder("artifacts", target).join(format!("{}.txt", std::process::id()));
        fs::create_dir_all(kept.parent().unwrap()).unwrap();
        fs::write(&kept, &input).unwrap();
        asks.send(input).unwrap();
        let ended = told.recv_timeout(PATIENCE);
        assert_eq!(ended, Ok(true), "{target}: see {}", kept.display());
        fs::remove_file(&kept).unwrap();
    };
    let mut known = corpus(target);
    known.iter().for_each(|input| check(input.clone()));
    let mut dice = StdRng::seed_from_u64(number("SERINUS_FUZZ_SEED").unwrap_or(20_261_126));
    let (began, seconds) =
        (Instant::now(), number("SERINUS_FUZZ_SECONDS").map(Duration::from_secs));
    let mut count = 0;
    while seconds.map_or(count < FEW, |seconds| began.elapsed() < seconds) {
        let input = drawn(&known, &mut dice);
        check(input.clone());
        // Some go on from there.
        if dice.random_ratio(1, 20) && input.len() < LONGEST / 8 && known.len() < 500 {
            known.push(input);
        }
        count += 1;
    }
    println!("{target}: {count} inputs in {:?}", began.elapsed());
    drop(asks);
    worker.unwrap().join().unwrap();
}

#[test]
fn requests() {
    run("request", targets::request);
}

#[test]
fn answers() {
    run("answer", targets::answer);
}

#[test]
fn streams() {
    run("sse", targets::sse);
}

#[test]
fn feedbacks() {
    run("feedback", targets::feedback);
}

#[test]
fn manifests() {
    run("manifest", targets::manifest);
}

#[test]
fn schemas() {
    run("schema", targets::schema);
}
