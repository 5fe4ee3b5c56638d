//! What a contestant costs: CPU time and memory of its whole process tree, from /proc.

use std::{collections::BTreeMap, fs};

/// Ticks of /proc/PID/stat in a second: fixed by Linux for programs.
const TICKS: f64 = 100.0;

/// CPU seconds by thread, and of all threads that ever ran.
pub struct Cpu {
    threads: BTreeMap<u32, f64>,
    ticks: f64,
}

impl Cpu {
    /// CPU seconds so far.
    pub fn of(root: u32) -> Self {
        let (mut threads, mut ticks) = (BTreeMap::new(), 0.0);
        for pid in tree(root) {
            for thread in numbers(&format!("/proc/{pid}/task")) {
                let path = format!("/proc/{pid}/task/{thread}/schedstat");
                let text = fs::read_to_string(path).unwrap_or_default();
                let nanos = text.split(' ').next().and_then(|n| n.parse::<f64>().ok());
                threads.insert(thread, nanos.unwrap_or(0.0) / 1e9);
            }
            let spent = stat(pid).map_or(0.0, |fields| {
                [11, 12].iter().filter_map(|i| fields.get(*i)?.parse::<f64>().ok()).sum()
            });
            ticks += spent / TICKS;
        }
        Self { threads, ticks }
    }

    /// CPU seconds since `before`. The scheduler counts nanoseconds, but forgets threads
    /// that have ended; then the ticks of the processes count, 10 ms each.
    pub fn since(&self, before: &Self) -> f64 {
        if before.threads.keys().any(|thread| !self.threads.contains_key(thread)) {
            return self.ticks - before.ticks;
        }
        self.threads.values().sum::<f64>() - before.threads.values().sum::<f64>()
    }
}

/// CPU seconds that the machine has spent on anything.
pub fn machine() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<f64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|n| n.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq: all but the two of idleness.
    let busy = ticks.iter().take(7).enumerate().filter(|(i, _)| *i != 3 && *i != 4);
    busy.map(|(_, n)| n).sum::<f64>() / TICKS
}

/// Resident memory in MB (10^6 bytes).
pub fn resident(root: u32) -> f64 {
    let of = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).map(str::to_owned);
        let kib = line.and_then(|l| l.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        kib.unwrap_or(0.0) * 1024.0 / 1e6
    };
    tree(root).iter().map(of).sum()
}

/// A process and all its descendants.
pub fn tree(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = numbers("/proc")
        .into_iter()
        .filter_map(|pid| Some((pid, stat(pid)?.get(1)?.parse().ok()?)))
        .collect();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found
}

/// The fields of /proc/PID/stat behind the name, which may hold spaces: state first.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn numbers(folder: &str) -> Vec<u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}
