//! Who takes part: Serinus doing all its work, and peers that only pass on. Each is a
//! process of its own in front of the same model.

mod peers;
pub mod serinus;

use std::{
    fs,
    io::Read,
    net::{SocketAddr, TcpListener},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{sleep, timeout};

use crate::{
    load::{Request, USER},
    usage,
    wire::Connection,
};

/// Who may take part, in the order of the tables.
pub const NAMES: [&str; 9] =
    [OURS, "nginx", ENVOY, VLLM_ROUTER, TENSORZERO, "portkey", "litellm", SHADOW, ROUTES];
pub const OURS: &str = "serinus";
/// The same work by the binary that BEFORE names.
pub const BEFORE: &str = "serinus, before";
pub const ENVOY: &str = "envoy";
pub const VLLM_ROUTER: &str = "vllm-router";
pub const TENSORZERO: &str = "tensorzero";
/// Serinus as it copies a tenth of its requests to a slow canary.
pub const SHADOW: &str = "serinus, shadow";
/// Serinus with 1,000 other releases.
pub const ROUTES: &str = "serinus, 1,000 routes";

/// Whoever does not answer after so long does not take part.
const LONGEST_START: Duration = Duration::from_secs(180);

/// A contestant that is ready.
pub struct Contestant {
    pub name: String,
    pub version: String,
    /// What was set, for the reader of the table.
    pub setting: String,
    pub plain: Request,
    pub stream: Request,
    /// The rates at which it is asked, requests a second.
    pub rates: RangeInclusive<u64>,
    /// Whether it is asked for streams and for all it can.
    pub everything: bool,
    /// None for the model itself.
    pub process: Option<Process>,
    /// The cluster that it follows.
    pub cluster: Option<Process>,
}

/// Where it runs, and where what it needs is.
pub struct Place {
    /// A folder of its own, which does not last.
    pub folder: PathBuf,
    pub model: SocketAddr,
    /// The variable that names another binary than that of this build.
    pub binary: &'static str,
}

/// A contestant, or why there is none.
pub type Started = Result<Contestant, String>;

impl Contestant {
    /// The model asked directly.
    pub fn direct(model: SocketAddr) -> Self {
        Self::passing_on("direct", model, "")
    }

    /// One that is asked what the model is asked.
    fn passing_on(name: &str, address: SocketAddr, setting: &str) -> Self {
        let (plain, stream) = plain_requests(address, "/v1/chat/completions", &[], "bench");
        Self {
            name: name.to_owned(),
            version: String::new(),
            setting: setting.to_owned(),
            plain,
            stream,
            rates: 0..=u64::MAX,
            everything: true,
            process: None,
            cluster: None,
        }
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }
}

/// Starts one by name.
pub async fn start(name: &str, folder: &Path, model: SocketAddr) -> Started {
    let folder = folder.join(name.replace([' ', ','], "-"));
    fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let binary = if name == BEFORE { "BEFORE" } else { "SERINUS" };
    let place = Place { folder, model, binary };
    let started = match name {
        OURS | BEFORE => serinus::canary_at_half(&place, 0).await,
        ROUTES => serinus::canary_at_half(&place, 1_000).await,
        SHADOW => serinus::shadow(&place).await,
        "nginx" => peers::nginx(&place),
        ENVOY => peers::envoy(&place),
        VLLM_ROUTER => peers::vllm_router(&place),
        TENSORZERO => peers::tensorzero(&place),
        "portkey" => peers::portkey(&place),
        "litellm" => peers::litellm(&place),
        _ => Err(format!("unknown; one of {}", NAMES.join(", "))),
    };
    let mut contestant = started?;
    contestant.name = name.to_owned();
    answers(&mut contestant).await?;
    Ok(contestant)
}

/// What an application asks when prompt and model are in the request: twice, the second
/// as a stream. It is what Serinus sends to the model.
fn plain_requests(
    address: SocketAddr,
    path: &str,
    headers: &[(String, String)],
    model: &str,
) -> (Request, Request) {
    let of = |stream: &str| {
        let body = format!(
            r#"{{"model":"{model}","messages":[{{"role":"system","content":"{SYSTEM} Pan."}},{{"role":"user","content":"{QUESTION}"}}],"user":"{USER}","temperature":0.2,"max_tokens":512{stream}}}"#
        );
        Request::new(address, path, headers, &body)
    };
    (of(""), of(r#","stream":true,"stream_options":{"include_usage":true}"#))
}

const SYSTEM: &str = "You answer questions about kitchenware briefly, and only from the manual of the product at hand. The product is the";
const QUESTION: &str = "Is it safe to put it into an oven with its lid on, and how hot may it get?";

/// Waits until it answers as it will be asked.
async fn answers(contestant: &mut Contestant) -> Result<(), String> {
    let started = Instant::now();
    loop {
        let status = timeout(Duration::from_secs(5), first_answer(&contestant.plain)).await;
        if matches!(status, Ok(Ok(200))) {
            return Ok(());
        }
        let process = contestant.process.as_mut();
        if let Some(ended) = process.and_then(|p| p.0.try_wait().ok().flatten()) {
            return Err(format!("ended at once ({ended}); its output is above"));
        }
        if started.elapsed() > LONGEST_START {
            return Err(format!("does not answer: {status:?}"));
        }
        sleep(Duration::from_millis(200)).await;
    }
}

async fn first_answer(request: &Request) -> std::io::Result<u16> {
    let stream = tokio::net::TcpStream::connect(request.address).await?;
    let mut connection = Connection::new(stream)?;
    connection.write(request.bytes()).await?;
    Ok(connection.head().await?.map_or(0, |head| head.status()))
}

/// A process that ends with its owner, and all its children with it.
pub struct Process(Child);

impl Process {
    pub fn start(command: &mut Command) -> Result<Self, String> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).spawn();
        child.map(Self).map_err(|e| format!("{program}: {e}"))
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let family = usage::tree(self.id());
        let tell = |pid: &u32, signal| {
            let pid = i32::try_from(*pid).ok().and_then(Pid::from_raw);
            // It may have ended by itself.
            pid.map(|pid| kill_process(pid, signal))
        };
        // Asked first, a parent buries its children.
        tell(&self.id(), Signal::TERM);
        let asked = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) && asked.elapsed() < Duration::from_secs(1) {
            std::thread::yield_now();
        }
        for pid in &family {
            tell(pid, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

/// A port that was free a moment ago.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap()
}

/// What a command prints.
fn output(command: &mut Command) -> String {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(child) = child else { return String::new() };
    let output = child.wait_with_output().unwrap();
    [output.stdout, output.stderr].map(|o| String::from_utf8_lossy(&o).into_owned()).concat()
}

/// Reads what a process prints until a line has `what`.
fn printed(child: &mut Child, what: &str) -> Option<String> {
    let mut text = String::new();
    let mut byte = [0];
    let out = child.stdout.as_mut()?;
    while out.read(&mut byte).ok()? > 0 {
        if byte[0] != b'\n' {
            text.push(char::from(byte[0]));
            continue;
        }
        if text.contains(what) {
            return Some(text);
        }
        text.clear();
    }
    None
}
