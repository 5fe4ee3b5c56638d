//! What becomes of real processes when what they write is not read or can not be written.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when something is wrong")]

use std::{
    fs::{self, File, OpenOptions},
    io::{self, PipeReader, PipeWriter, Read, Write},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
    time::Duration,
};

use rustix::{
    io::ioctl_fionbio,
    process::{Pid, Signal, kill_process},
};
use tokio::process::{Child, Command};

/// Longer than anything here takes: only whoever fails waits for it.
const LONG: Duration = Duration::from_secs(60);

fn serinus(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_serinus"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    // No cluster, and nothing in between.
    command.env_clear().env("KUBECONFIG", "/no/such/file").env("RUST_LOG", "info");
    command.kill_on_drop(true);
    command
}

/// A disk that is full.
fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

/// A pipe whose reader has gone.
fn gone() -> Stdio {
    io::pipe().unwrap().1.into()
}

/// A pipe that is full and that nobody reads.
fn unread() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = io::pipe().unwrap();
    ioctl_fionbio(&writer, true).unwrap();
    while writer.write(&[b'-'; 4096]).is_ok() {}
    while writer.write(b"-").is_ok() {}
    ioctl_fionbio(&writer, false).unwrap();
    (reader, writer)
}

async fn code(mut child: Child) -> Option<i32> {
    tokio::time::timeout(LONG, child.wait()).await.expect("it goes on").unwrap().code()
}

#[tokio::test]
async fn an_error_that_nobody_can_read_is_an_error_and_no_panic() {
    for arguments in [
        &["standalone", "/no/such/folder"][..],
        &["standalone", "/no/such/folder", "--log-json"],
        &["operator", "--admin", "127.0.0.1:0"],
        &["gateway", "--admin", "127.0.0.1:0", "--listen", "127.0.0.1:0"],
        &["get"],
        &["watch", "x"],
        &["cost", "--gateway", "http://127.0.0.1:1"],
        &["convert-snapshots"],
        &["plan", "/no/such/file", "--rps", "1"],
        &["demo", "--plain", "--url", "http://127.0.0.1:1", "--model", "m"],
    ] {
        for (what, stderr) in [("full", full()), ("gone", gone())] {
            let child = serinus(arguments).stderr(stderr).spawn().unwrap();
            assert_eq!(code(child).await, Some(1), "{arguments:?}, {what}");
        }
        // And with a reader it is read, whatever was logged before.
        let (mut reader, writer) = io::pipe().unwrap();
        let mut command = serinus(arguments);
        let child = command.stderr(writer).spawn().unwrap();
        drop(command);
        assert_eq!(code(child).await, Some(1), "{arguments:?}");
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let last = text.lines().last().unwrap_or_default();
        assert!(last.starts_with("serinus: "), "{arguments:?}: {text}");
    }
}

/// A folder of manifests and a standalone process that serves it.
struct Standalone {
    folder: tempfile::TempDir,
    admin: SocketAddr,
    child: Child,
}

fn client() -> reqwest::Client {
    serinus::app::process::install_tls();
    reqwest::Client::builder().no_proxy().timeout(LONG).build().unwrap()
}

const RELEASE: &str = "
apiVersion: serinus.dev/v1alpha1
kind: LLMDeployment
metadata: {name: model}
spec: {provider: openai, model: m, endpoint: {url: 'http://127.0.0.1:1/v1'}}
---
apiVersion: serinus.dev/v1alpha1
kind: PromptVersion
metadata: {name: answer-v1}
spec: {prompt: answer, messages: [{role: system, content: Answer.}]}
---
apiVersion: serinus.dev/v1alpha1
kind: PromptRelease
metadata: {name: answers}
spec: {promptRef: {name: answer-v1}, backendRef: {name: model}}
";

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Standalone {
    async fn start(stderr: Stdio, stdout: Stdio, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("release.yaml"), RELEASE).unwrap();
        let (listen, admin) = (free().to_string(), free());
        let path = folder.path().to_str().unwrap();
        let (auth, at) = ("--client-auth=off", admin.to_string());
        let own = ["standalone", path, "--listen", &listen, "--admin", &at, auth];
        let all: Vec<&str> = own.iter().chain(more).copied().collect();
        let child = serinus(&all).stderr(stderr).stdout(stdout).spawn().unwrap();
        let mut this = Self { folder, admin, child };
        this.says("/readyz", |text| text.starts_with("ready")).await;
        let client = client();
        let ask = |i: usize| {
            let body = r#"{"model": "answers", "messages": []}"#;
            let request = client.post(format!("http://{listen}/v1/chat/completions"));
            request.header("x-user-id", i).body(body).send()
        };
        // Its model is not there: each is answered all the same, and has a line in the access log.
        for i in 0..20 {
            assert!(ask(i).await.unwrap().status().is_server_error());
        }
        this
    }

    /// Waits until the admin address says this.
    async fn says(&mut self, path: &str, is_it: impl Fn(&str) -> bool) -> String {
        let (client, url) = (client(), format!("http://{}{path}", self.admin));
        let asks = async {
            loop {
                if let Ok(answer) = client.get(&url).send().await
                    && let Ok(text) = answer.text().await
                    && is_it(&text)
                {
                    return text;
                }
                assert_eq!(self.child.try_wait().unwrap(), None, "it has ended");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let said = tokio::time::timeout(LONG, asks).await;
        said.unwrap_or_else(|_| panic!("{path} does not say it"))
    }

    /// Each of these files is a line of the log at the next look.
    async fn decides(&mut self, files: usize) {
        for i in 0..files {
            fs::write(self.folder.path().join(format!("bad-{i}.yaml")), "oops: [\n").unwrap();
        }
        let last = format!("bad-{}.yaml", files - 1);
        self.says("/readyz?verbose", |text| text.contains(&last)).await;
    }

    async fn ends(mut self) {
        let pid = Pid::from_raw(self.child.id().unwrap().try_into().unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let ended = tokio::time::timeout(LONG, self.child.wait()).await;
        assert!(ended.expect("SIGTERM does not end it").unwrap().success());
    }
}

#[tokio::test]
async fn a_log_that_can_not_be_written_ends_nothing_and_is_counted() {
    for (stderr, more) in [(full(), &["--log-json"][..]), (gone(), &[])] {
        let mut standalone = Standalone::start(stderr, Stdio::null(), more).await;
        standalone.decides(3).await;
        let unwritten = r#"serinus_gateway_telemetry_total{what="log",outcome="unwritten"} "#;
        let counted = |text: &str| {
            let count = text.lines().find_map(|line| line.strip_prefix(unwritten));
            count.is_some_and(|count| count != "0")
        };
        standalone.says("/metrics", counted).await;
        let text = standalone.says("/metrics", |_| true).await;
        assert!(text.contains("serinus_gateway_panics_total 0"), "{text}");
        standalone.ends().await;
    }
}

#[tokio::test]
async fn a_reader_that_stands_still_keeps_a_process_neither_from_deciding_nor_from_ending() {
    let (log_reader, log) = unread();
    let mut standalone = Standalone::start(log.into(), Stdio::null(), &[]).await;
    // More lines than any buffer of the system would take: the first one waits already.
    standalone.decides(50).await;
    standalone.ends().await;
    drop(log_reader);
    let (access_reader, access_log) = unread();
    let more = ["--access-log", "json"];
    let mut standalone = Standalone::start(Stdio::null(), access_log.into(), &more).await;
    standalone.decides(1).await;
    standalone.ends().await;
    drop(access_reader);
}

/// The largest size of a file stands for a disk that fills up while a process runs: a shell
/// sets it, because this process needs larger ones.
#[tokio::test]
async fn a_log_file_at_the_limit_of_its_size_ends_nothing() {
    let (folder, logs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = logs.path().join("log");
    fs::write(&log, vec![b'-'; 1 << 20]).unwrap();
    let admin = free();
    let script = "ulimit -f 512; exec \"$0\" standalone \"$1\" --listen 127.0.0.1:0 --admin \"$2\"";
    let child = Command::new("/bin/sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_serinus")])
        .args([folder.path(), Path::new(&admin.to_string())])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(OpenOptions::new().append(true).open(&log).unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut standalone = Standalone { folder, admin, child };
    standalone.says("/metrics", |text| text.contains(r#"outcome="unwritten"} "#)).await;
    let unwritten = |text: &str| !text.contains(r#"what="log",outcome="unwritten"} 0"#);
    standalone.says("/metrics", unwritten).await;
    standalone.ends().await;
    assert_eq!(File::open(&log).unwrap().metadata().unwrap().len(), 1 << 20);
}
