//! From samples to tables: medians and ranges over the rounds, and what they say of the
//! bounds. What a gateway adds is its time less the direct one of the same round.

use std::collections::BTreeMap;

use crate::{
    Cell,
    contestants::{Contestant, ENVOY, OURS, ROUTES, TENSORZERO, VLLM_ROUTER},
};

/// One round of one cell; milliseconds.
#[derive(Clone)]
pub struct Sample {
    pub p50: f64,
    pub p99: f64,
    pub gap_p99: f64,
    /// CPU of the contestant for one request.
    pub cpu: f64,
    /// Resident, MB.
    pub memory: f64,
    /// Answers a second.
    pub rate: f64,
    pub failed: usize,
}

pub struct Report {
    rounds: usize,
    seconds: u64,
    load_average: String,
    samples: BTreeMap<(Cell, String), Vec<Sample>>,
    broken: Vec<String>,
}

/// The middle one, and the outer ones.
#[derive(Clone, Copy)]
struct Spread {
    low: f64,
    median: f64,
    high: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.filter(|v| !v.is_nan()).collect();
        values.sort_by(f64::total_cmp);
        let at = |i: usize| values.get(i).copied().unwrap_or(f64::NAN);
        let last = values.len().saturating_sub(1);
        Self { low: at(0), median: at(values.len() / 2), high: at(last) }
    }

    fn show(self, digits: usize) -> String {
        if self.median.is_nan() {
            return "–".to_owned();
        }
        let Self { low, median, high } = self;
        format!("**{median:.digits$}** ({low:.digits$}–{high:.digits$})")
    }
}

impl Default for Sample {
    fn default() -> Self {
        let nan = f64::NAN;
        Self { p50: nan, p99: nan, gap_p99: nan, cpu: nan, memory: nan, rate: nan, failed: 1 }
    }
}

impl Report {
    pub fn new(rounds: usize, seconds: u64, load_average: String) -> Self {
        Self { rounds, seconds, load_average, samples: BTreeMap::new(), broken: vec![] }
    }

    pub fn add(&mut self, name: &str, cell: Cell, sample: Sample) {
        self.samples.entry((cell, name.to_owned())).or_default().push(sample);
    }

    pub fn broke(&mut self, name: &str, cell: Cell, error: &std::io::Error) {
        // Rounds of all contestants stay beside each other.
        self.add(name, cell, Sample::default());
        self.broken.push(format!("{name} could not be measured with {}: {error}", title(cell)));
    }

    pub fn print(&self, taking_part: &[Contestant], cells: &[Cell], skipped: &[String]) {
        let Self { rounds, seconds, load_average, .. } = self;
        println!(
            "{rounds} rounds of {seconds} s a cell, in turns; load average at the start: {}\n",
            load_average.trim()
        );
        for c in taking_part.iter().filter(|c| c.process.is_some()) {
            println!("- {} {}: {}", c.name, c.version, c.setting);
        }
        skipped.iter().chain(&self.broken).for_each(|line| println!("- {line}"));
        for cell in cells {
            self.table(*cell, taking_part);
        }
        println!();
        self.verdicts();
    }

    fn of(&self, cell: Cell, name: &str) -> &[Sample] {
        self.samples.get(&(cell, name.to_owned())).map_or(&[], Vec::as_slice)
    }

    fn spread(&self, cell: Cell, name: &str, pick: fn(&Sample) -> f64) -> Spread {
        Spread::of(self.of(cell, name).iter().map(pick))
    }

    fn added(&self, cell: Cell, name: &str, pick: fn(&Sample) -> f64) -> Spread {
        let pairs = self.of(cell, name).iter().zip(self.of(cell, "direct"));
        Spread::of(pairs.map(|(through, direct)| pick(through) - pick(direct)))
    }

    fn table(&self, cell: Cell, taking_part: &[Contestant]) {
        println!("\n**{}**\n", title(cell));
        match cell {
            Cell::Maximum => {
                println!("| | req/s | CPU ms per request | RSS MB |\n|---|---|---|---|")
            }
            Cell::Plain(_) => println!(
                "| | added p50 ms | added p99 ms | CPU ms per request | RSS MB | failed |\n|---|---|---|---|---|---|"
            ),
            Cell::Streams(_) => println!(
                "| | first chunk: added p50 ms | added p99 ms | gap p99 ms | CPU ms per stream | RSS MB | failed |\n|---|---|---|---|---|---|---|"
            ),
        }
        for c in taking_part {
            let name = c.name.as_str();
            let samples = self.of(cell, name);
            if samples.is_empty() {
                continue;
            }
            let cpu = self.spread(cell, name, |s| s.cpu).show(3);
            let memory = self.spread(cell, name, |s| s.memory).median;
            let memory = if memory.is_nan() { "–".to_owned() } else { format!("{memory:.0}") };
            if cell == Cell::Maximum {
                let rate = self.spread(cell, name, |s| s.rate).show(0);
                println!("| {name} | {rate} | {cpu} | {memory} |");
                continue;
            }
            let (p50, p99) = if c.process.is_some() {
                let of = |pick| self.added(cell, name, pick).show(3);
                (of(|s| s.p50), of(|s| s.p99))
            } else {
                let of = |pick| format!("(itself {})", self.spread(cell, name, pick).show(3));
                (of(|s| s.p50), of(|s| s.p99))
            };
            let failed: usize = samples.iter().map(|s| s.failed).sum();
            let gap = match cell {
                Cell::Streams(_) => {
                    format!(" {} |", self.spread(cell, name, |s| s.gap_p99).show(2))
                }
                _ => String::new(),
            };
            println!("| {name} | {p50} | {p99} |{gap} {cpu} | {memory} | {failed} |");
        }
    }

    /// Says of every bound whether it is met. Never a reason to stop: another machine has
    /// other times.
    fn verdicts(&self) {
        for cell in [Cell::Plain(1_000), Cell::Plain(3_000)] {
            let (p50, cpu) = (self.p50(cell, OURS), self.cpu(cell, OURS));
            verdict(cell, "added p50 ms", p50, 0.14);
            verdict(cell, "CPU ms per request", cpu, 0.11);
            verdict(cell, "added p50 over Envoy's", p50 / self.p50(cell, ENVOY), 1.4);
            verdict(cell, "CPU over Envoy's", cpu / self.cpu(cell, ENVOY), 1.4);
            let tail = |name| self.added(cell, name, |s| s.p99);
            let (ours, envoy) = (tail(OURS), tail(ENVOY));
            verdict(cell, "added p99 ms, within Envoy's range", ours.median, envoy.high);
            verdict(cell, "added p99 ms in the worst round", ours.high, 5.0);
        }
        let streams = Cell::Streams(200);
        let gap = |name| self.spread(streams, name, |s| s.gap_p99).median;
        verdict(streams, "added p50 ms of the first chunk", self.p50(streams, OURS), 0.30);
        verdict(streams, "CPU ms per stream", self.cpu(streams, OURS), 0.35);
        verdict(streams, "gap p99 over Envoy's", gap(OURS) / gap(ENVOY), 1.0);
        let everywhere =
            self.samples.keys().filter(|(_, name)| name == OURS).map(|(cell, _)| *cell);
        for cell in everywhere.filter(|cell| *cell != Cell::Maximum) {
            for peer in [VLLM_ROUTER, TENSORZERO] {
                let p50 = self.p50(cell, OURS) / self.p50(cell, peer);
                let cpu = self.cpu(cell, OURS) / self.cpu(cell, peer);
                verdict(cell, &format!("added p50 over {peer}'s"), p50, 1.0);
                verdict(cell, &format!("CPU over {peer}'s"), cpu, 1.0);
            }
        }
        let cell = Cell::Plain(3_000);
        let memory = self.spread(cell, ROUTES, |s| s.memory).high;
        verdict(cell, "RSS MB with 1,000 routes", memory, 50.0);
        let ours = self.samples.iter().filter(|((_, name), _)| name.starts_with(OURS));
        let failed: usize = ours.flat_map(|(_, samples)| samples).map(|s| s.failed).sum();
        println!("- {}: {failed} requests through serinus failed", met(failed == 0));
    }

    fn p50(&self, cell: Cell, name: &str) -> f64 {
        self.added(cell, name, |s| s.p50).median
    }

    fn cpu(&self, cell: Cell, name: &str) -> f64 {
        self.spread(cell, name, |s| s.cpu).median
    }
}

fn verdict(cell: Cell, what: &str, value: f64, bound: f64) {
    let cell = title(cell);
    if value.is_nan() || bound.is_nan() {
        println!("- not measured: {cell}: {what}");
    } else {
        println!("- {}: {cell}: {what}: {value:.3}, at most {bound:.3}", met(value <= bound));
    }
}

fn met(ok: bool) -> &'static str {
    if ok { "ok" } else { "NOT met" }
}

fn title(cell: Cell) -> String {
    match cell {
        Cell::Plain(rate) => format!("{rate} requests/s"),
        Cell::Streams(rate) => format!("{rate} streams/s × 20 chunks"),
        Cell::Maximum => "64 connections, each asking again at once".to_owned(),
    }
}
