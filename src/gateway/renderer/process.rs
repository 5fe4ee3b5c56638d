//! The process that fills in: what it may take, and how it is asked.
//!
//! An order is a line of JSON. The answer is a line of JSON, and the texts after it.

use std::{
    fs,
    io::{self, BufRead, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, Thread},
    time::Duration,
};

use rustix::{
    process::{Resource, Rlimit, setpriority_process, setrlimit},
    time::{ClockId, clock_gettime},
};
use serde::{Deserialize, Serialize};

use crate::prompt::{Done, Engine, Work};

/// The exit code of a process that took too long.
pub(super) const TOO_LONG: i32 = 75;
/// How often the time is looked at.
const TICK: Duration = Duration::from_millis(10);
/// A buffer of more bytes is not kept.
const LARGE: usize = 64 << 10;
/// The longest message, in bytes: it may quote the inputs.
const LONGEST_MESSAGE: usize = 2_000;

/// What a process may take.
#[derive(Clone, Copy, Debug)]
pub struct Confines {
    /// Memory, in bytes.
    pub memory: u64,
    /// How far others go first, as `nice` counts it.
    pub nice: i32,
}

/// What is to be done, and how long it may take of a processor.
#[derive(Serialize)]
pub(super) struct Order<'a> {
    pub time: Duration,
    pub work: &'a Work<'a>,
}

#[derive(Deserialize)]
struct Ordered {
    time: Duration,
    work: Work<'static>,
}

/// The line before the texts.
#[derive(Serialize, Deserialize)]
pub(super) struct Head {
    /// The time that it took of a processor.
    pub took: Duration,
    /// How long each text is, in bytes.
    pub lengths: Vec<usize>,
    /// Why there are none.
    pub failed: Option<Failed>,
}

#[derive(Serialize, Deserialize)]
pub(super) enum Failed {
    /// This message can not be filled in, and why.
    Message(usize, String),
    OutOfFuel,
}

impl Order<'_> {
    pub fn line(&self) -> Vec<u8> {
        let mut line = vec![];
        // Texts and values are written as JSON without fail.
        let _ = serde_json::to_writer(&mut line, self);
        line.push(b'\n');
        line
    }
}

/// Fills in what standard input asks for, until it ends.
///
/// # Errors
/// The process can not be confined, or is asked what it does not understand.
pub fn run(confines: Confines) -> io::Result<()> {
    confine(confines)?;
    let watch = Watch::start()?;
    let mut engine = Engine::default();
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let mut line = vec![];
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let Ordered { time, work } = serde_json::from_slice(&line)?;
        if line.capacity() > LARGE {
            line = vec![];
        }
        let (done, took) = watch.during(time, || engine.fill_in(&work));
        drop(work);
        answer(&mut output, &done, took)?;
    }
}

fn answer(output: &mut impl Write, done: &Done, took: Duration) -> io::Result<()> {
    let (texts, failed) = match done {
        Done::Texts(texts) => (texts.as_slice(), None),
        Done::Failed { index, message } => (&[][..], Some(Failed::Message(*index, short(message)))),
        Done::OutOfFuel => (&[][..], Some(Failed::OutOfFuel)),
    };
    let lengths = texts.iter().map(String::len).collect();
    let mut head = serde_json::to_vec(&Head { took, lengths, failed })?;
    head.push(b'\n');
    output.write_all(&head)?;
    for text in texts {
        output.write_all(text.as_bytes())?;
    }
    output.flush()
}

fn short(message: &str) -> String {
    if message.len() <= LONGEST_MESSAGE {
        return message.to_owned();
    }
    format!("{}…", &message[..message.floor_char_boundary(LONGEST_MESSAGE)])
}

fn confine(confines: Confines) -> io::Result<()> {
    let most = |n: u64| Rlimit { current: Some(n), maximum: Some(n) };
    setrlimit(Resource::Data, most(confines.memory))?;
    // What a user asked is in no file.
    setrlimit(Resource::Core, most(0))?;
    if confines.nice > 0 {
        setpriority_process(None, confines.nice)?;
    }
    // When the machine has no memory left, this is the process to end. Not every kernel knows it.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    Ok(())
}

/// Ends the process when something takes too long.
struct Watch {
    /// Nanoseconds of this process; 0 while nothing is done.
    until: Arc<AtomicU64>,
    thread: Thread,
}

impl Watch {
    #[allow(clippy::disallowed_methods, reason = "the process has no runtime")]
    fn start() -> io::Result<Self> {
        let until = Arc::new(AtomicU64::new(0));
        let looked_at = until.clone();
        let look = move || {
            loop {
                match looked_at.load(Ordering::Acquire) {
                    0 => thread::park(),
                    until if nanos(taken()) > until => std::process::exit(TOO_LONG),
                    _ => thread::sleep(TICK),
                }
            }
        };
        let builder = thread::Builder::new().name("watch".to_owned()).stack_size(64 << 10);
        let thread = builder.spawn(look)?.thread().clone();
        Ok(Self { until, thread })
    }

    /// What `work` makes, and how long it took.
    fn during<T>(&self, most: Duration, work: impl FnOnce() -> T) -> (T, Duration) {
        let begun = taken();
        self.until.store(nanos(begun + most).max(1), Ordering::Release);
        self.thread.unpark();
        let made = work();
        self.until.store(0, Ordering::Release);
        (made, taken().saturating_sub(begun))
    }
}

/// The time that this process has had of a processor.
fn taken() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
