//! The flags that bound what requests may cost, and how much memory there is for them.

use std::{fs, path::Path, time::Duration};

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::numbers::between;
use crate::gateway::limits::Limits;

/// The program, routes and counts, of a gateway that is not small.
const OWN: u64 = 64 << 20;
/// Records that wait to be sent (`app/telemetry.rs`).
const TELEMETRY: u64 = 32 << 20;
/// With less, hardly a request is served.
const LEAST: u64 = 16 << 20;
/// Of memory without a limit, a gateway takes a half for granted.
const UNLIMITED_SHARE: u64 = 2;

/// Files that a process has open beside connections, if it may have many.
const FILES: u64 = 128;

/// What requests and connections may cost.
#[derive(Debug, clap::Args)]
#[group(id = "limits")]
pub struct Options {
    /// The largest request body, in bytes.
    #[arg(long, default_value_t = Limits::default().body, value_name = "BYTES", value_parser = between::<usize>(1..=1 << 40))]
    max_body_bytes: usize,
    /// Messages that one request may have.
    #[arg(long, default_value_t = Limits::default().messages, value_name = "COUNT", value_parser = between::<usize>(1..=1_000_000_000))]
    max_messages: usize,
    /// Open connections of applications.
    #[arg(long, default_value_t = Limits::default().connections, value_name = "COUNT", value_parser = between::<usize>(1..=10_000_000))]
    max_connections: usize,
    /// The longest that one answer may take, in seconds.
    #[arg(long, default_value_t = Limits::default().answer_time.as_secs(), value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=604_800))]
    max_answer_seconds: u64,
    /// Memory of the whole process, in MiB: connections, bodies and answers share what is
    /// left of it, and more is turned away with 503. Default: the limit of the container
    /// (cgroups), or half of the machine's memory.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(64..=16_777_216))]
    memory: Option<u64>,
}

impl Options {
    /// The limits; what has no flag keeps its default. The cache takes `cache` bytes.
    ///
    /// # Errors
    /// The memory is too small for what the other flags ask for.
    pub fn build(&self, cache: u64) -> anyhow::Result<Limits> {
        let defaults = Limits::default();
        let memory = self.memory.map(|mib| mib << 20).or_else(available);
        let (connections, operators) =
            places(open_files(), (self.max_connections, defaults.operators));
        if connections < self.max_connections {
            tracing::warn!(
                connections,
                wanted = self.max_connections,
                "this process may not open more files, and each connection of an application may \
                 need one to a model, too: raise the hard limit of open files (ulimit -Hn) or \
                 lower --max-connections"
            );
        }
        let limits = Limits {
            body: self.max_body_bytes,
            messages: self.max_messages,
            connections,
            operators,
            answer_time: Duration::from_secs(self.max_answer_seconds),
            ..defaults
        };
        let Some(memory) = memory else { return Ok(limits) };
        let left = for_requests(memory, cache);
        let budget = usize::try_from(left).unwrap_or(usize::MAX);
        let largest = Limits::largest_body(budget);
        anyhow::ensure!(
            self.max_body_bytes <= largest || self.max_body_bytes == defaults.body,
            "of {} MiB of memory, {} MiB are left for requests (the cache takes {} MiB), so a body \
             may have at most {largest} bytes: give more --memory, or lower --max-body-bytes or \
             --cache-memory",
            memory >> 20,
            left >> 20,
            cache >> 20,
        );
        tracing::info!(
            memory_mib = memory >> 20,
            requests_mib = left >> 20,
            largest_body = limits.body.min(largest),
            "connections, bodies and answers share what is left of the memory"
        );
        Ok(Limits { memory: budget, body: limits.body.min(largest), ..limits })
    }
}

/// How many files this process may have open, from now on as many as it may at all. Shells and
/// service managers start programs with a lower limit, for those that can not cope with more.
fn open_files() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    let files = if setrlimit(Resource::Nofile, raised).is_ok() { maximum } else { current };
    files.unwrap_or(u64::MAX)
}

/// How many applications and operators may be connected when a process may have `files` open.
/// Each connection of an application may need one to a model, too.
fn places(files: u64, (connections, operators): (usize, usize)) -> (usize, usize) {
    let part = |most: u64| most.min(files / 8);
    let operators = operators.min(usize::try_from(part(operators as u64)).unwrap_or(operators));
    let left = files.saturating_sub(part(FILES) + operators as u64) / 2;
    (connections.min(usize::try_from(left).unwrap_or(connections)).max(1), operators.max(1))
}

/// What is left for requests. An eighth is for what the allocator does not give back.
fn for_requests(memory: u64, cache: u64) -> u64 {
    memory.saturating_sub(OWN + TELEMETRY + memory / 8 + cache).max(LEAST)
}

/// The memory that this process may use.
fn available() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo(&text));
    let machine = machine.map(|all| all / UNLIMITED_SHARE);
    of_cgroup().into_iter().chain(machine).min()
}

/// The smallest limit of this process's cgroup and those around it.
fn of_cgroup() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let (root, path, file) = cgroup(&own)?;
    let (root, mut limits) = (Path::new(root), vec![]);
    for folder in root.join(path).ancestors().take_while(|folder| folder.starts_with(root)) {
        limits.extend(fs::read_to_string(folder.join(file)).ok().and_then(|text| limit(&text)));
    }
    limits.into_iter().min()
}

/// Where the limit is: of version 1 when memory is governed by that, otherwise of version 2.
fn cgroup(own: &str) -> Option<(&'static str, &str, &'static str)> {
    let first = own.lines().find_map(|line| line.split_once(":memory:/"));
    if let Some((_, path)) = first {
        return Some(("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes"));
    }
    let second = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(("/sys/fs/cgroup", second, "memory.max"))
}

fn limit(text: &str) -> Option<u64> {
    // Without a limit it says "max".
    text.trim().parse().ok()
}

fn meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().context("MemTotal").ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_limit_leaves_room_for_the_largest_body() {
        let left = for_requests(512 << 20, 128 << 20);
        assert_eq!(left >> 20, 224);
        let budget = usize::try_from(left).unwrap();
        assert_eq!(budget, Limits::default().memory);
        assert!(Limits::largest_body(budget) >= Limits::default().body);
        assert_eq!(for_requests(128 << 20, 128 << 20), LEAST);
    }

    #[test]
    fn connections_leave_files_for_models_for_operators_and_for_the_process() {
        let wanted = (10_000, 256);
        assert_eq!(places(u64::MAX, wanted), wanted);
        assert_eq!(places(1 << 20, wanted), wanted);
        assert_eq!(places(20_000, wanted), (9_808, 256));
        assert_eq!(places(1_024, wanted), (384, 128));
        assert_eq!(places(256, wanted), (96, 32));
        assert_eq!(places(1_024, (100, 256)), (100, 128));
        for files in 0..2_000 {
            let (connections, operators) = places(files, wanted);
            assert!(connections > 0 && operators > 0);
            let open = (2 * connections + operators) as u64;
            let own = FILES.min(files / 8);
            assert!(files < 16 || open + own <= files, "{open} of {files}");
        }
    }

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        assert_eq!((limit("536870912\n"), limit("max\n")), (Some(512 << 20), None));
        let second = ("/sys/fs/cgroup", "kube/pod", "memory.max");
        assert_eq!(cgroup("0::/kube/pod\n"), Some(second));
        let first = ("/sys/fs/cgroup/memory", "a", "memory.limit_in_bytes");
        assert_eq!(cgroup("4:memory:/a\n1:cpu:/b\n0::/\n"), Some(first));
        assert_eq!(meminfo("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
        assert!(available().is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn a_limit_of_nothing_is_refused() {
        #[derive(Debug, clap::Parser)]
        struct All {
            #[command(flatten)]
            all: Options,
        }
        let parse = |flag: &str| <All as clap::Parser>::try_parse_from(["serinus", flag]);
        for flag in ["max-body-bytes", "max-messages", "max-connections", "max-answer-seconds"] {
            assert!(parse(&format!("--{flag}=0")).is_err(), "{flag}");
            assert!(parse(&format!("--{flag}=1")).is_ok(), "{flag}");
        }
    }
}
