//! One process after the other, and who waits for it.

use std::{
    io, os::unix::process::ExitStatusExt, process::Stdio, sync::Arc, thread, time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    runtime::Builder,
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use super::{
    Confines, Program,
    process::{Failed, Head, TOO_LONG},
};
use crate::{
    gateway::budget::{Budget, Class, Held},
    openai::error::ApiError,
    prompt::{Done, LARGEST},
};

/// A process that nobody has asked for so long ends.
const IDLE: Duration = Duration::from_secs(60);
/// The longest first line of an answer, in bytes.
const LONGEST_HEAD: u64 = 64 << 10;
/// How a process ends that gets no memory, or asks for more than there are addresses.
const ABORTED: i32 = 6;
const PANICKED: i32 = 101;
/// Or that is at the end of its stack, where that is not an abort.
const NO_SUCH_ADDRESS: i32 = 11;

/// How a lane's processes are started.
pub(super) struct Setup {
    pub program: Program,
    pub budget: Arc<Budget>,
    /// Bytes of the budget.
    pub held: usize,
    pub confines: Confines,
    /// A process that takes so long by the wall clock gets no processor: it is ended.
    pub stuck: Duration,
}

/// What was asked for.
#[derive(Debug)]
pub(super) struct Answer {
    pub done: Done,
    /// Of a processor.
    pub took: Duration,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// It took too long.
    Time,
    /// It took too much memory, or recursed too deep.
    Memory,
    /// The gateway has no memory for a process.
    Full(ApiError),
    /// The process got too little time of a processor: the machine is too busy.
    Starved,
    /// It can not be started, or was ended by somebody else.
    Unavailable(String),
}

pub(super) struct Ask {
    line: Vec<u8>,
    reply: oneshot::Sender<Result<Answer, Fault>>,
}

/// Where a process is asked.
pub(super) struct Lane(mpsc::Sender<Ask>);

impl Lane {
    /// Waits for those who came before.
    pub(super) async fn ask(&self, line: Vec<u8>) -> Result<Answer, Fault> {
        let (reply, told) = oneshot::channel();
        let gone = || Fault::Unavailable("its thread could not be started".to_owned());
        self.0.send(Ask { line, reply }).await.map_err(|_| gone())?;
        told.await.map_err(|_| gone())?
    }
}

/// Starts a thread for all lanes; their processes start when they are asked. The thread, and
/// they, end when the lanes are dropped.
pub(super) fn start<const N: usize>(setups: [Setup; N]) -> [Lane; N] {
    let mut serving = vec![];
    let lanes = setups.map(|setup| {
        // Whoever waits keeps what was sent; one order is on its way.
        let (sender, receiver) = mpsc::channel(1);
        serving.push((setup, receiver));
        Lane(sender)
    });
    let carry = move || {
        let runtime = match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::warn!("templates can not be filled in: {error}"),
        };
        runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for (setup, receiver) in serving {
                tasks.spawn(setup.serve(receiver));
            }
            while tasks.join_next().await.is_some() {}
        });
    };
    if let Err(error) = thread::Builder::new().name("renderer".to_owned()).spawn(carry) {
        tracing::warn!("templates can not be filled in: {error}");
    }
    lanes
}

struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _held: Held,
}

impl Setup {
    async fn serve(self, mut asked: mpsc::Receiver<Ask>) {
        let mut process = None;
        loop {
            let next = match timeout(IDLE, asked.recv()).await {
                Ok(next) => next,
                Err(_) => {
                    process = None;
                    asked.recv().await
                }
            };
            let Some(Ask { line, reply }) = next else { return };
            // Who has given up meanwhile wants nothing.
            if !reply.is_closed() {
                let _ = reply.send(self.answer(&mut process, &line).await);
            }
        }
    }

    async fn answer(&self, kept: &mut Option<Process>, line: &[u8]) -> Result<Answer, Fault> {
        let is_new = kept.is_none();
        match self.attempt(kept, line).await {
            // Somebody ended the process while it was idle.
            Err(Fault::Unavailable(_)) if !is_new => self.attempt(kept, line).await,
            answered => answered,
        }
    }

    async fn attempt(&self, kept: &mut Option<Process>, line: &[u8]) -> Result<Answer, Fault> {
        let mut process = match kept.take() {
            Some(process) => process,
            None => self.start()?,
        };
        match timeout(self.stuck, process.ask(line)).await {
            Ok(Ok(answer)) => {
                *kept = Some(process);
                Ok(answer)
            }
            Ok(Err(error)) => Err(process.ended(&error).await),
            Err(_) => Err(Fault::Starved),
        }
    }

    fn start(&self) -> Result<Process, Fault> {
        let held = self.budget.take(Class::Templates, self.held).map_err(Fault::Full)?;
        let Confines { memory, nice } = self.confines;
        let failed = |error: io::Error| {
            Fault::Unavailable(format!("{}: {error}", self.program.path.display()))
        };
        let mut child = Command::new(&self.program.path)
            .args(&self.program.arguments)
            .args(["--memory", &memory.to_string(), "--nice", &nice.to_string()])
            // It has no use for what the gateway may know.
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Ctrl-C is for the gateway, which still has answers to finish.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Fault::Unavailable("it has no pipes".to_owned()));
        };
        Ok(Process { child, input, output: BufReader::new(output), _held: held })
    }
}

impl Process {
    async fn ask(&mut self, line: &[u8]) -> io::Result<Answer> {
        self.input.write_all(line).await?;
        self.input.flush().await?;
        let mut head = vec![];
        (&mut self.output).take(LONGEST_HEAD).read_until(b'\n', &mut head).await?;
        if !head.ends_with(b"\n") {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Head { took, lengths, failed } = serde_json::from_slice(&head)?;
        match failed {
            Some(Failed::Message(index, message)) => {
                return Ok(Answer { done: Done::Failed { index, message }, took });
            }
            Some(Failed::OutOfFuel) => return Ok(Answer { done: Done::OutOfFuel, took }),
            None => {}
        }
        if lengths.iter().try_fold(0_usize, |sum, n| sum.checked_add(*n)) > Some(LARGEST) {
            return Err(io::Error::other("its answer is too long"));
        }
        let mut texts = Vec::with_capacity(lengths.len());
        for length in lengths {
            let mut text = vec![0; length];
            self.output.read_exact(&mut text).await?;
            texts.push(String::from_utf8(text).map_err(io::Error::other)?);
        }
        Ok(Answer { done: Done::Texts(texts), took })
    }

    /// Why it does not answer any more.
    async fn ended(mut self, error: &io::Error) -> Fault {
        // A process that goes on is ended here.
        let status = timeout(Duration::from_secs(1), self.child.wait()).await;
        let Ok(Ok(status)) = status else {
            return Fault::Unavailable(format!("what it says is not understood: {error}"));
        };
        match (status.code(), status.signal()) {
            (Some(TOO_LONG), _) => Fault::Time,
            (Some(PANICKED), _) | (_, Some(ABORTED | NO_SUCH_ADDRESS)) => Fault::Memory,
            _ => Fault::Unavailable(format!("the process ended: {status}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Instant};

    use super::*;

    /// A lane whose process does what a shell says.
    fn saying(script: &str) -> (Arc<Budget>, Lane) {
        saying_within(script, Duration::from_secs(60))
    }

    fn saying_within(script: &str, stuck: Duration) -> (Arc<Budget>, Lane) {
        let arguments = ["-c", script].map(str::to_owned).into();
        let budget = Budget::new(8000);
        let setup = Setup {
            program: Program { path: "/bin/sh".into(), arguments },
            budget: budget.clone(),
            held: 1000,
            confines: Confines { memory: 1 << 20, nice: 0 },
            stuck,
        };
        let [lane] = start([setup]);
        (budget, lane)
    }

    fn answering(length: usize, text: &str) -> String {
        let head =
            format!(r#"{{"took":{{"secs":0,"nanos":1}},"lengths":[{length}],"failed":null}}"#);
        format!("read order; printf '{head}\\n'; {text}")
    }

    async fn text(lane: &Lane) -> String {
        let Done::Texts(texts) = lane.ask(b"order\n".to_vec()).await.unwrap().done else {
            panic!("no texts")
        };
        texts.concat()
    }

    #[tokio::test]
    async fn a_process_that_was_ended_between_two_requests_costs_neither() {
        let (_, lane) = saying(&answering(2, "printf ok"));
        for _ in 0..3 {
            assert_eq!(text(&lane).await, "ok");
        }
    }

    #[tokio::test]
    async fn a_process_knows_nothing_of_ours_and_ends_with_us() {
        let script = answering(12, "printf '%011d' $$; printf $(wc -c < /proc/$$/environ); read o");
        let (budget, lane) = saying(&script);
        let told = text(&lane).await;
        assert!(std::env::vars().next().is_some());
        assert_eq!(&told[11..], "0", "bytes of environment");
        assert!(budget.take(Class::Templates, 2001).is_err(), "it holds memory");
        drop(lane);
        let process = Path::new("/proc").join(told[..11].trim_start_matches('0'));
        let begun = Instant::now();
        while process.exists() || budget.take(Class::Templates, 3000).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it goes on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn how_a_process_ends_says_why() {
        for (script, time, memory) in [
            ("read o; exit 75", true, false),
            ("read o; exit 101", false, true),
            ("read o; kill -ABRT $$", false, true),
            ("read o; kill -SEGV $$", false, true),
            ("read o; kill -KILL $$", false, false),
            ("read o; exit 0", false, false),
            ("exit 1", false, false),
            ("read o; echo no json; read o", false, false),
            (
                "read o; echo '{\"took\":{\"secs\":0,\"nanos\":1},\"lengths\":[99999999999]}'",
                false,
                false,
            ),
        ] {
            let (_, lane) = saying(script);
            let fault = lane.ask(b"order\n".to_vec()).await.unwrap_err();
            let found = (matches!(fault, Fault::Time), matches!(fault, Fault::Memory));
            assert_eq!(found, (time, memory), "{script}: {fault:?}");
        }
    }

    #[tokio::test]
    async fn a_process_that_gets_no_processor_is_ended_and_is_no_fault_of_the_template() {
        let (budget, lane) = saying_within("exec sleep 1000", Duration::from_millis(50));
        for _ in 0..2 {
            let fault = lane.ask(b"order\n".to_vec()).await.unwrap_err();
            assert!(matches!(fault, Fault::Starved), "{fault:?}");
        }
        // What the process held is free again.
        assert!(budget.take(Class::Templates, 3000).is_ok());
    }

    #[tokio::test]
    async fn without_memory_for_a_process_none_starts() {
        let (budget, lane) = saying(&answering(2, "printf ok"));
        let held = budget.take(Class::Templates, 3000).unwrap();
        assert!(matches!(lane.ask(b"order\n".to_vec()).await, Err(Fault::Full(_))));
        drop(held);
        assert_eq!(text(&lane).await, "ok");
    }
}
