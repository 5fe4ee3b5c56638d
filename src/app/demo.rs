//! The main job in one process and about a minute: a good prompt is promoted, a bad
//! one is rolled back, and users see no error. Everything but the model and the users
//! is what runs in production.

mod endpoint;
mod scene;
mod screen;
mod users;

use std::{
    collections::BTreeMap,
    fs,
    io::IsTerminal,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use futures::FutureExt;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::users::Seen;
use super::{
    clock, evidence_bar,
    numbers::between,
    process::{install_tls, stop_signal},
    simulated_model,
    standalone::{Happening, Standalone},
};
use crate::{
    api::{CanaryPolicySpec, Condition, PromptReleaseStatus, prompt_release::Phase},
    gateway::{
        Gateway, GatewayConfig,
        identity::Identities,
        server::{Face, serve},
    },
};

/// How often decisions are due.
const TICK: Duration = Duration::from_millis(200);
/// How long a stage of the story may take with the simulated model.
const PATIENCE: Duration = Duration::from_secs(90);
/// The same with a real model, which may be slow.
const PATIENCE_REAL: Duration = Duration::from_secs(1200);

/// How long a held canary may wait for what it misses: nobody is there to approve it.
const HELD: Duration = Duration::from_secs(15);
/// So many errors without a single answer are no accident.
const MOST_ERRORS: u64 = 20;

/// What to run the demo against.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    endpoint: endpoint::Options,
    /// Requests a second, 0.01 to 1000. Default: 45, or 4 with --url.
    #[arg(long, value_parser = between(0.01..=1000.0))]
    rate: Option<f64>,
    /// Lines of text instead of the live view.
    #[arg(long)]
    plain: bool,
}

/// What the screen shows.
struct View {
    caption: String,
    elapsed: Duration,
    status: PromptReleaseStatus,
    policy: Option<CanaryPolicySpec>,
    /// The prompt of each revision.
    names: BTreeMap<String, String>,
    users: Seen,
    /// Seconds since the start, and what happened.
    happenings: Vec<(u64, Happening)>,
}

/// Where the story goes.
trait Stage {
    fn show(&mut self, view: &View) -> anyhow::Result<()>;
    /// The person has had enough.
    fn quit(&mut self) -> anyhow::Result<bool>;
}

struct Plain {
    told: usize,
    last: Instant,
}

impl Stage for Plain {
    fn show(&mut self, view: &View) -> anyhow::Result<()> {
        for (seconds, happening) in &view.happenings[self.told..] {
            println!("{seconds:>4} s  {}: {}", happening.reason, happening.note);
        }
        self.told = view.happenings.len();
        if self.last.elapsed() >= Duration::from_secs(5) {
            self.last = Instant::now();
            self.progress(view);
        }
        Ok(())
    }

    fn quit(&mut self) -> anyhow::Result<bool> {
        Ok(false)
    }
}

impl Plain {
    fn progress(&self, view: &View) {
        let weights: Vec<String> = view
            .status
            .routing
            .variants
            .iter()
            .map(|v| {
                format!("{} {} %", view.names.get(&v.revision).unwrap_or(&v.revision), v.weight)
            })
            .collect();
        let seconds = view.elapsed.as_secs();
        println!(
            "{seconds:>4} s  {:?}: {}; users: {} answers, {} errors",
            view.status.phase,
            weights.join(", "),
            view.users.answers,
            view.users.errors
        );
        for metric in &view.status.analysis {
            println!(
                "          {:<8} {} {}",
                metric.metric,
                evidence_bar::draw(metric, 37),
                metric.verdict.word()
            );
        }
    }
}

struct Live(ratatui::DefaultTerminal);

impl Stage for Live {
    fn show(&mut self, view: &View) -> anyhow::Result<()> {
        self.0.draw(|frame| screen::draw(frame, view))?;
        Ok(())
    }

    fn quit(&mut self) -> anyhow::Result<bool> {
        while event::poll(Duration::ZERO)? {
            if let Event::Key(key) = event::read()?
                && (key.code == KeyCode::Char('q')
                    || (key.code == KeyCode::Char('c')
                        && key.modifiers.contains(KeyModifiers::CONTROL)))
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Runs the story. `Ok(true)` when the good prompt was promoted, the bad one rolled
/// back, and no user saw an error.
///
/// # Errors
/// Something around it failed: a port, the folder, the terminal.
pub async fn run(options: Options) -> anyhow::Result<bool> {
    install_tls();
    let folder = Scratch::new()?;
    let stop = CancellationToken::new();
    let mut servers = JoinSet::new();
    let endpoint = options.endpoint.reached().await?;
    let real = endpoint.is_some();
    let key = endpoint.as_ref().and_then(|endpoint| endpoint.key.clone());
    let (url, model) = match endpoint {
        Some(endpoint) => (endpoint.url, endpoint.model),
        None => {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let url = format!("http://{}/v1", listener.local_addr()?);
            servers.spawn(simulated_model::serve(listener, stop.clone().cancelled_owned()));
            (url, "simulated".to_owned())
        }
    };
    fs::write(folder.0.join("world.yaml"), scene::fixed(&url, &model, real, key.is_some()))?;
    if let Some(key) = key {
        // The folder is for this user alone, and goes away with the demo.
        fs::write(folder.0.join("key.yaml"), scene::secret(&key).to_string())?;
    }
    let gateway = Gateway::new(GatewayConfig {
        identities: Identities::off(),
        ..GatewayConfig::new(clock::now)
    });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?);
    let server = serve(
        listener,
        Face::Applications,
        gateway.clone(),
        stop.clone().cancelled_owned(),
        Duration::from_secs(5),
    );
    servers.spawn(server.map(Ok));
    let live = !options.plain && std::io::stdout().is_terminal();
    let stage: Box<dyn Stage> = if live {
        Box::new(Live(ratatui::try_init().context("the terminal can not be used: try --plain")?))
    } else {
        Box::new(Plain { told: 0, last: Instant::now() })
    };
    let left = CancellationToken::new();
    servers.spawn(leave(left.clone(), stop.clone()));
    let mut story = Story {
        standalone: Standalone::open(
            &folder.0,
            folder.0.join("state.json"),
            gateway,
            clock::now(),
        )?,
        folder: folder.0.clone(),
        stage,
        started: Instant::now(),
        seen: Arc::default(),
        users: JoinSet::new(),
        stop: stop.clone(),
        left,
        base,
        rate: options.rate.unwrap_or(if real { 4.0 } else { 45.0 }),
        patience: if real { PATIENCE_REAL } else { PATIENCE },
        held: None,
        happenings: vec![],
        names: BTreeMap::new(),
    };
    let outcome = story.tell().await;
    let seen = story.seen();
    let seconds = story.started.elapsed().as_secs();
    drop(story.stage);
    stop.cancel();
    while story.users.join_next().await.is_some() {}
    while servers.join_next().await.is_some() {}
    let ending = outcome?;
    println!("{}", ending.tell(&seen, seconds, real));
    Ok(ending.promoted && ending.rolled_back && seen.errors == 0)
}

/// Notes that the process is told to end, or that its terminal is gone, so that what it made
/// goes away with it.
async fn leave(left: CancellationToken, stop: CancellationToken) -> std::io::Result<()> {
    let mut hung_up = signal(SignalKind::hangup())?;
    tokio::select! {
        () = stop_signal() => left.cancel(),
        _ = hung_up.recv() => left.cancel(),
        () = stop.cancelled() => {}
    }
    Ok(())
}

/// How the story ended.
#[derive(Default)]
struct Ending {
    promoted: bool,
    rolled_back: bool,
    why: String,
    /// What became of the good prompt when it was not promoted.
    instead: Option<String>,
    quit: bool,
}

impl Ending {
    fn tell(&self, seen: &Seen, seconds: u64, real: bool) -> String {
        let tick = |ok: bool| if ok { "✓" } else { "✗" };
        let good = match self.promoted {
            false if self.quit => {
                "– the good prompt (v2): you left before it was decided".to_owned()
            }
            ok => format!("{} the good prompt (v2) was promoted by evidence", tick(ok)),
        };
        let bad = match self.rolled_back {
            false if self.quit => {
                "– the bad prompt (v3): you left before it was decided".to_owned()
            }
            ok => format!("{} the bad prompt (v3) was rolled back: {}", tick(ok), self.why),
        };
        let mut lines = vec![
            good,
            bad,
            format!(
                "{} users saw {} errors in {} answers",
                tick(seen.errors == 0),
                seen.errors,
                seen.answers
            ),
        ];
        if let Some(instead) = &self.instead {
            lines.insert(1, format!("  it was not: {instead}"));
        }
        if let Some(error) = &seen.last_error {
            lines.push(format!("  the last error: {error}"));
        }
        let model = if real { "a real model" } else { "simulated models" };
        lines.push(format!("{seconds} s, with {model} and simulated users"));
        lines.join("\n")
    }
}

/// How a release stands, and why.
fn told(status: &PromptReleaseStatus) -> String {
    let told = ["Stalled", "Reconciling", "Ready"].into_iter().find_map(|kind| {
        let is_it = |c: &&Condition| c.type_ == kind && !c.message.is_empty();
        let condition = status.conditions.iter().find(is_it)?;
        (kind == "Ready" || condition.status == "True").then_some(condition)
    });
    let why = told.map_or("nothing is known", |condition| condition.message.as_str());
    match status.phase {
        Phase::RolledBack => why.to_owned(),
        phase => format!("{phase:?}: {why}"),
    }
}

struct Story {
    standalone: Standalone,
    folder: PathBuf,
    stage: Box<dyn Stage>,
    started: Instant,
    seen: Arc<Mutex<Seen>>,
    users: JoinSet<()>,
    stop: CancellationToken,
    /// The process is told to end.
    left: CancellationToken,
    base: String,
    rate: f64,
    patience: Duration,
    /// Since when the canary is held.
    held: Option<Instant>,
    happenings: Vec<(u64, Happening)>,
    names: BTreeMap<String, String>,
}

impl Story {
    async fn tell(&mut self) -> anyhow::Result<Ending> {
        let mut ending = Ending::default();
        self.apply(1)?;
        let stable = |s: &PromptReleaseStatus| s.phase == Phase::Stable && s.canary.is_none();
        let caption = "v1 is released: the first revision serves at once";
        let Some(first) = self.until(caption, stable, Duration::ZERO).await? else {
            return Ok(Ending { quit: true, ..ending });
        };
        let first = first.stable.map(|s| s.revision).unwrap_or_default();
        let seen = self.seen.clone();
        self.users.spawn(users::run(
            self.base.clone(),
            scene::ROUTE.to_owned(),
            self.rate,
            seen,
            self.stop.clone(),
        ));
        self.wait("users ask questions; v1 answers", Duration::from_secs(3)).await?;
        self.apply(2)?;
        let caption = "v2 is applied: a shorter, better prompt. A canary begins";
        let ended = move |s: &PromptReleaseStatus| {
            let moved = s.stable.as_ref().is_some_and(|v| v.revision != first);
            (moved && s.phase == Phase::Stable) || s.phase == Phase::RolledBack
        };
        let Some(second) = self.until(caption, ended, self.patience).await? else {
            return Ok(Ending { quit: true, ..ending });
        };
        ending.promoted = second.phase == Phase::Stable;
        if !ending.promoted {
            ending.why = "not tried, for v2 was not promoted".to_owned();
            ending.instead = Some(told(&second));
            return Ok(ending);
        }
        self.wait("v2 serves everyone", Duration::from_secs(2)).await?;
        self.apply(3)?;
        let caption = "v3 is applied: a prompt that breaks the output format and fails often";
        let ended = |s: &PromptReleaseStatus| {
            s.phase == Phase::RolledBack
                || (s.phase == Phase::Stable
                    && s.stable.as_ref().is_some_and(|v| v.prompt.ends_with("v3")))
        };
        let Some(third) = self.until(caption, ended, self.patience).await? else {
            return Ok(Ending { quit: true, ..ending });
        };
        ending.rolled_back = third.phase == Phase::RolledBack;
        ending.why = told(&third);
        self.wait("v3 is out of routing; v2 goes on serving", Duration::from_secs(3)).await?;
        Ok(ending)
    }

    /// What `kubectl apply` does in a cluster.
    fn apply(&self, version: u8) -> anyhow::Result<()> {
        let beside = self.folder.join("release.tmp");
        fs::write(&beside, scene::release(version))?;
        fs::rename(&beside, self.folder.join("release.yaml"))?;
        Ok(())
    }

    async fn wait(&mut self, caption: &str, time: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        self.until(caption, |_| Instant::now() >= end, time * 2).await?;
        Ok(())
    }

    /// Goes on until `done`; none when the person quits. When the patience is over the
    /// status is returned as it is.
    async fn until(
        &mut self,
        caption: &str,
        done: impl Fn(&PromptReleaseStatus) -> bool,
        patience: Duration,
    ) -> anyhow::Result<Option<PromptReleaseStatus>> {
        let began = Instant::now();
        let mut ticks = tokio::time::interval(TICK);
        loop {
            ticks.tick().await;
            let news = tokio::task::block_in_place(|| self.standalone.tick(clock::now()))?;
            let at = self.started.elapsed().as_secs();
            self.happenings.extend(news.into_iter().map(|h| (at, h)));
            let status =
                self.standalone.releases().into_iter().find_map(|r| r.status).unwrap_or_default();
            self.learn_names(&status);
            let view = View {
                caption: caption.to_owned(),
                elapsed: self.started.elapsed(),
                policy: self.standalone.running_policy(scene::RELEASE),
                names: self.names.clone(),
                users: self.seen(),
                happenings: self.happenings.clone(),
                status: status.clone(),
            };
            self.stage.show(&view)?;
            if self.stage.quit()? || self.left.is_cancelled() {
                return Ok(None);
            }
            let late = !patience.is_zero() && began.elapsed() > patience;
            let seen = self.seen();
            if let Some(error) = seen.last_error.filter(|_| seen.errors >= MOST_ERRORS)
                && seen.answers == 0
            {
                bail!("no user got an answer, of {} who asked: {error}", seen.errors);
            }
            if done(&status) || late || self.is_stuck(&status) {
                return Ok(Some(status));
            }
        }
    }

    /// Whether the canary is held and nothing but a person would change that.
    fn is_stuck(&mut self, status: &PromptReleaseStatus) -> bool {
        if status.phase != Phase::Held {
            self.held = None;
            return false;
        }
        self.held.get_or_insert_with(Instant::now).elapsed() >= HELD
    }

    fn learn_names(&mut self, status: &PromptReleaseStatus) {
        let canary = status.canary.as_ref().map(|c| &c.variant);
        for variant in canary.into_iter().chain(&status.stable) {
            let name = variant.prompt.strip_prefix("support-answer-").unwrap_or(&variant.prompt);
            self.names.insert(variant.revision.clone(), name.to_owned());
        }
    }

    fn seen(&self) -> Seen {
        self.seen.lock().map(|s| s.clone()).unwrap_or_default()
    }
}

/// A folder of our own that goes away with us.
struct Scratch(PathBuf);

/// The folder of this process, for an end without a way back.
static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// Removes the folder, if there is one.
pub(super) fn clear_away() {
    if let Some(folder) = FOLDER.get() {
        // Only a temporary folder: nothing is lost when it stays.
        let _ = fs::remove_dir_all(folder);
    }
}

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let name = format!("serinus-demo-{:016x}", rand::random::<u64>());
        let path = std::env::temp_dir().join(name);
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&path).with_context(|| path.display().to_string())?;
        let _ = FOLDER.set(path.clone());
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        clear_away();
    }
}
