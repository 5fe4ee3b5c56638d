//! What gateways add to a request, side by side: Serinus doing all its work (a canary at
//! half of the traffic), peers that only pass on, and the model asked directly as the
//! baseline, all in one run and in turns, because only differences within one run mean
//! anything on a machine with two shared cores.
//!
//! `cargo bench --bench gateways` prints the tables of docs/performance.md and says
//! which bounds are met. Peers come from `benches/peers/install.sh`; one that is not
//! there is named. Let nothing else run beside it.
//!
//! Environment: ROUNDS (5), SECONDS per round and cell (3), RATES (50,500,1000,3000),
//! STREAMS a second (200,187), MAXIMUM=0 for no closed loop, CONTESTANTS (names
//! separated by `;`), SERINUS (another binary, with what comes before `gateway`),
//! BEFORE (an earlier binary, to compare with), SERINUS_ARGS in place of its arguments (`{collector}` is an address that takes traces).
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench prints and stops when something is wrong"
)]

mod cluster;
mod contestants;
mod instructions;
mod load;
mod model;
mod pace;
mod report;
mod usage;
mod wire;

use std::{
    io,
    net::SocketAddr,
    process::{Command, Stdio},
    time::Instant,
};

use tokio::task::LocalSet;

use crate::{
    contestants::{Contestant, Process, free_address},
    load::{Answers, closed_loop, connect, open_loop},
    report::{Report, Sample},
    usage::{Cpu, resident},
};

/// What is measured at one time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cell {
    /// So many requests a second.
    Plain(u64),
    /// So many streams a second. Their chunks are 5 ms apart, so that of 200 a second each
    /// begins at the moment at which all others get a chunk; of 187, chunks come one by one.
    Streams(u64),
    /// As many requests as it can answer.
    Maximum,
}

struct Options {
    rounds: usize,
    seconds: u64,
    cells: Vec<Cell>,
    names: Vec<String>,
}

impl Options {
    fn read() -> Self {
        let text =
            |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
        let number = |name: &str, default: &str| text(name, default).parse::<u64>().unwrap();
        let rates = |name, default| -> Vec<u64> {
            let list = text(name, default);
            list.split(',').filter(|n| !n.is_empty()).map(|n| n.parse().unwrap()).collect()
        };
        let mut cells: Vec<Cell> =
            rates("RATES", "50,500,1000,3000").into_iter().map(Cell::Plain).collect();
        cells.extend(rates("STREAMS", "200,187").into_iter().map(Cell::Streams));
        cells.extend((number("MAXIMUM", "1") > 0).then_some(Cell::Maximum));
        let before = std::env::var_os("BEFORE").map(|_| contestants::BEFORE);
        let all: Vec<&str> = contestants::NAMES.into_iter().chain(before).collect();
        let names = text("CONTESTANTS", &all.join(";"));
        Self {
            rounds: usize::try_from(number("ROUNDS", "5")).unwrap(),
            seconds: number("SECONDS", "3"),
            cells,
            names: names.split(';').map(|name| name.trim().to_owned()).collect(),
        }
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, what, address, ..] = arguments.as_slice()
        && what == "model"
    {
        runtime.block_on(model::serve(address.parse().unwrap())).unwrap();
        return;
    }
    if let [_, what, address, folder, admin, ..] = arguments.as_slice()
        && what == "cluster"
    {
        let (address, admin) = (address.parse().unwrap(), admin.parse().unwrap());
        runtime.block_on(cluster::serve(address, folder.into(), admin)).unwrap();
        return;
    }
    let local = LocalSet::new();
    if arguments.iter().any(|argument| argument == "instructions") {
        runtime.block_on(local.run_until(instructions::run()));
    } else {
        runtime.block_on(local.run_until(run(&Options::read())));
    }
}

async fn run(options: &Options) {
    let started = Instant::now();
    let load_average = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let folder = tempfile::tempdir().unwrap();
    let (_model, address) = start_model().await;
    let mut taking_part = vec![Contestant::direct(address)];
    let mut skipped = vec![];
    for name in &options.names {
        match contestants::start(name, folder.path(), address).await {
            Ok(contestant) => taking_part.push(contestant),
            Err(why) => skipped.push(format!("{name} does not take part: {why}")),
        }
    }
    let mut report = Report::new(options.rounds, options.seconds, load_average);
    let spent = || (usage::machine(), Cpu::of(std::process::id()), Instant::now());
    let before = spent();
    for round in 0..options.rounds {
        for cell in &options.cells {
            for i in 0..taking_part.len() {
                // Nobody is always the one behind the same other.
                let contestant = &taking_part[(i + round) % taking_part.len()];
                if takes(contestant, *cell)
                    && let Err(error) = measure(contestant, *cell, options, &mut report).await
                {
                    report.broke(&contestant.name, *cell, &error);
                }
            }
        }
        eprintln!(
            "round {} of {}: {:.0} s",
            round + 1,
            options.rounds,
            started.elapsed().as_secs_f64()
        );
    }
    let after = spent();
    let others = after.0 - before.0 - after.1.since(&before.1);
    let cores = others / after.2.duration_since(before.2).as_secs_f64();
    skipped.push(format!("Other processes of the machine used {cores:.2} cores meanwhile"));
    let traces = model::traces(address).await.unwrap_or_default();
    skipped.push(format!("The collector got {traces} requests with spans"));
    report.print(&taking_part, &options.cells, &skipped);
    println!("\ntook {:.0} s", started.elapsed().as_secs_f64());
}

fn takes(contestant: &Contestant, cell: Cell) -> bool {
    match cell {
        Cell::Plain(rate) => contestant.rates.contains(&rate),
        Cell::Streams(_) => contestant.everything && contestant.rates.contains(&1_000),
        Cell::Maximum => contestant.everything && contestant.process.is_some(),
    }
}

async fn measure(
    contestant: &Contestant,
    cell: Cell,
    options: &Options,
    report: &mut Report,
) -> io::Result<()> {
    let request = match cell {
        Cell::Streams(_) => &contestant.stream,
        Cell::Plain(_) | Cell::Maximum => &contestant.plain,
    };
    let connections = connect(request).await?;
    let before = contestant.pid().map(Cpu::of);
    let answers = match cell {
        Cell::Plain(rate) | Cell::Streams(rate) => {
            open_loop(connections, request, rate, options.seconds).await?
        }
        Cell::Maximum => closed_loop(connections, request, options.seconds).await?,
    };
    let spent = contestant.pid().zip(before).map(|(pid, before)| Cpu::of(pid).since(&before));
    let memory = contestant.pid().map(resident);
    report.add(&contestant.name, cell, sample(answers, spent, memory));
    Ok(())
}

fn sample(mut answers: Answers, spent: Option<f64>, memory: Option<f64>) -> Sample {
    let asked = (answers.times.len() + answers.failed).max(1) as f64;
    let mut at = |share: f64, gaps: bool| {
        let times = if gaps { &mut answers.gaps } else { &mut answers.times };
        times.sort_by(f64::total_cmp);
        let last = times.len().saturating_sub(1) as f64;
        times.get((last * share) as usize).map_or(f64::NAN, |seconds| seconds * 1e3)
    };
    Sample {
        p50: at(0.5, false),
        p99: at(0.99, false),
        gap_p99: at(0.99, true),
        cpu: spent.map_or(f64::NAN, |seconds| seconds * 1e3 / asked),
        memory: memory.unwrap_or(f64::NAN),
        rate: answers.times.len() as f64 / answers.took,
        failed: answers.failed,
    }
}

/// This program once more, as the model.
async fn start_model() -> (Process, SocketAddr) {
    let address = free_address();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["model", &address.to_string()]).stdout(Stdio::null());
    let process = Process::start(&mut command).unwrap();
    while tokio::net::TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    (process, address)
}
