//! Fills in templates in processes of their own. A template may double a list forty times and
//! compare it, nest one until its end overflows the stack, or repeat a text until memory ends:
//! no count of instructions bounds that, and a thread can not be ended. A process can.
//!
//! There are two: one for templates that take next to nothing, which almost all are, and one
//! for those that were slow within the last minute and for large inputs. Each fills in one
//! prompt at a time. One that takes too long in the first is tried again in the second, and
//! then it stays there. So slow templates wait for slow templates, and the others do not. Of one
//! variant one request is filled in at a time, so that many requests of one
//! do not make the others wait.
//!
//! Processes start when a template is first filled in, and end when none was for a minute.
//! What they may hold is taken from the gateway's budget. Most prompts only put names between
//! words, and get along without any of this.

mod lane;
mod process;

use std::{
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, time::timeout};

pub use self::process::{Confines, run};
use self::{
    lane::{Answer, Fault, Lane},
    process::Order,
};
use super::{budget::Budget, seldom::Seldom};
use crate::{
    openai::error::ApiError,
    prompt::{Done, PromptError, Work},
};

/// Who has taken so long waits with the slow ones from then on.
const SLOW: Duration = Duration::from_millis(10);
/// For so long.
const SLOW_FOR: Duration = Duration::from_secs(60);
/// The longest that a template may take of a processor beside those that take nothing, and at
/// all.
const QUICK_TIME: Duration = Duration::from_millis(100);
const LONGEST_TIME: Duration = Duration::from_secs(1);
/// Inputs of more bytes are for the process that may take more memory.
const LARGE: usize = 1 << 20;
/// A process that takes so long by the wall clock gets no processor: it is ended.
const STUCK: Duration = Duration::from_secs(8);
/// The longest wait for a process.
const PATIENCE: Duration = Duration::from_secs(10);

/// The program that fills in: one that calls [`run`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// Before those that say what it may take ([`Confines`]).
    pub arguments: Vec<String>,
}

impl Default for Program {
    /// This program itself, also when its file was replaced.
    fn default() -> Self {
        let own = PathBuf::from("/proc/self/exe");
        let path = if own.exists() { own } else { std::env::current_exe().unwrap_or_default() };
        Self { path, arguments: vec!["fill-in".to_owned()] }
    }
}

/// The processes of one gateway.
pub(super) struct Renderer {
    program: Program,
    budget: Arc<Budget>,
    started: Instant,
    lanes: OnceLock<Lanes>,
    /// Why templates could not be filled in.
    told: Seldom,
}

struct Lanes {
    quick: Lane,
    slow: Lane,
}

/// What a process may take.
struct Share {
    /// Of the gateway's budget.
    eighths: usize,
    /// In bytes: no process gets along with less, and no prompt needs more.
    bounds: (usize, usize),
    nice: i32,
}

impl Share {
    const QUICK: Self = Self { eighths: 1, bounds: (16 << 20, 32 << 20), nice: 0 };
    const SLOW: Self = Self { eighths: 2, bounds: (24 << 20, 64 << 20), nice: 10 };

    fn of(&self, budget: &Budget) -> usize {
        budget.total() / 8 * self.eighths
    }

    fn memory(&self, budget: &Budget) -> usize {
        self.of(budget).clamp(self.bounds.0, self.bounds.1)
    }
}

/// The turns of one variant's templates. Survives a change of the route.
#[derive(Debug)]
pub(super) struct Turns {
    one: Semaphore,
    /// Milliseconds after the renderer's start.
    slow_until: AtomicU64,
}

impl Default for Turns {
    fn default() -> Self {
        Self { one: Semaphore::new(1), slow_until: AtomicU64::new(0) }
    }
}

/// Why nothing was filled in.
#[derive(Debug)]
pub(super) enum Refused {
    /// The request does not fit the prompt or the operation.
    Request(ApiError),
    /// The prompt takes too much, or needs a process and gets none. Another prompt may need
    /// none, and another backend changes nothing.
    Prompt(ApiError),
    /// There is no room for it now.
    Room(ApiError),
}

/// How much is done to fill in a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effort {
    /// As much as any template may take.
    Whole,
    /// No wait for one that was slow: somebody else's request needs to know the text.
    Little,
}

impl Refused {
    /// The variables do not fit.
    pub(super) fn inputs(error: &PromptError) -> Self {
        let refused = ApiError::new(400, "invalid_variables", error.to_string());
        Self::Request(refused.at(error.param()))
    }
}

pub(super) fn costly(why: &str) -> Refused {
    let message = format!("a template of the prompt {why}: make it simpler, or send less");
    Refused::Prompt(ApiError::new(500, "prompt_too_costly", message))
}

fn busy() -> Refused {
    waited("the templates of other requests are filled in first: try again")
}

fn waited(message: &str) -> Refused {
    Refused::Prompt(ApiError::new(503, "templates_busy", message).retry_after(1))
}

impl Renderer {
    pub(super) fn new(program: Program, budget: Arc<Budget>) -> Self {
        let (lanes, told) = Default::default();
        Self { program, budget, started: Instant::now(), lanes, told }
    }

    /// Fills in the templates of a prompt.
    ///
    /// # Errors
    /// They can not be filled in with these inputs, take too much, or others are before them
    /// for too long.
    pub(super) async fn fill_in(
        &self,
        turns: &Turns,
        work: &Work<'_>,
        effort: Effort,
    ) -> Result<Vec<String>, Refused> {
        if effort == Effort::Little && self.is_slow(turns) {
            return Err(busy());
        }
        let answered = timeout(PATIENCE, self.answered(turns, work, effort)).await;
        let answered = answered.map_err(|_| busy())?;
        match answered.map_err(|fault| self.refused(fault))?.done {
            Done::Texts(texts) if texts.len() == work.templates.len() => Ok(texts),
            Done::Texts(_) => Err(self.refused(Fault::Unavailable("a message is lost".to_owned()))),
            Done::OutOfFuel => Err(costly("runs through too many instructions")),
            Done::Failed { index, message } => {
                Err(Refused::inputs(&PromptError::Render { index, message }))
            }
        }
    }

    async fn answered(
        &self,
        turns: &Turns,
        work: &Work<'_>,
        effort: Effort,
    ) -> Result<Answer, Fault> {
        let lanes = self.lanes.get_or_init(|| self.start());
        let _turn = turns.one.acquire().await;
        let order = |time| Order { time, work }.line();
        if !self.is_slow(turns) {
            let line = order(QUICK_TIME);
            if line.len() < LARGE {
                match lanes.quick.ask(line).await {
                    Err(Fault::Time | Fault::Memory) if effort == Effort::Whole => {
                        self.was_slow(turns);
                    }
                    answered => return self.noted(turns, answered),
                }
            }
        }
        self.noted(turns, lanes.slow.ask(order(LONGEST_TIME)).await)
    }

    fn noted(&self, turns: &Turns, answered: Result<Answer, Fault>) -> Result<Answer, Fault> {
        let is_slow = match &answered {
            Ok(answer) => answer.took > SLOW,
            Err(fault) => matches!(fault, Fault::Time | Fault::Memory),
        };
        if is_slow {
            self.was_slow(turns);
        }
        answered
    }

    fn is_slow(&self, turns: &Turns) -> bool {
        self.now_millis() < turns.slow_until.load(Ordering::Relaxed)
    }

    fn was_slow(&self, turns: &Turns) {
        let until = self.now_millis() + SLOW_FOR.as_millis() as u64;
        turns.slow_until.store(until, Ordering::Relaxed);
    }

    fn now_millis(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn start(&self) -> Lanes {
        let [quick, slow] = [Share::QUICK, Share::SLOW].map(|share| lane::Setup {
            program: self.program.clone(),
            budget: self.budget.clone(),
            held: share.of(&self.budget).min(share.memory(&self.budget)),
            confines: Confines { memory: share.memory(&self.budget) as u64, nice: share.nice },
            stuck: STUCK,
        });
        let [quick, slow] = lane::start([quick, slow]);
        Lanes { quick, slow }
    }

    fn refused(&self, fault: Fault) -> Refused {
        match fault {
            Fault::Time => costly(&format!("takes more than {} s", LONGEST_TIME.as_secs())),
            Fault::Memory => {
                let most = Share::SLOW.memory(&self.budget) >> 20;
                costly(&format!("takes more than {most} MiB of memory, or nests too deep"))
            }
            Fault::Full(error) => Refused::Prompt(error),
            Fault::Starved => {
                if self.told.is_due("starved", self.now_millis()) {
                    tracing::warn!("templates wait for a processor: this machine is too busy");
                }
                waited("this gateway's machine has no time to fill in templates: try again")
            }
            Fault::Unavailable(why) => {
                if self.told.is_due(&why, self.now_millis()) {
                    tracing::warn!("templates can not be filled in: {why}");
                }
                let message = "templates can not be filled in now: the gateway's log says why";
                Refused::Prompt(ApiError::new(503, "templates_unavailable", message).retry_after(1))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn nobody_waits_for_a_slow_template_whose_text_another_request_needs_to_know() {
        let path = "/no/such/program".into();
        let program = Program { path, arguments: vec![] };
        let renderer = Renderer::new(program, Budget::new(1 << 20));
        let templates = vec![(0, Cow::Borrowed("{{ a }}"))];
        let work = Work { templates, variables: Cow::Owned(json!({"a": 1})), most: 100 };
        let turns = Turns::default();
        renderer.was_slow(&turns);
        // One is filled in, and would be waited for.
        let turn = turns.one.acquire().await.unwrap();
        let refused = renderer.fill_in(&turns, &work, Effort::Little).await.unwrap_err();
        assert!(matches!(refused, Refused::Prompt(error) if error.code == "templates_busy"));
        assert!(renderer.lanes.get().is_none(), "no process was asked");
        drop(turn);
        let refused = renderer.fill_in(&turns, &work, Effort::Whole).await.unwrap_err();
        assert!(matches!(refused, Refused::Prompt(error) if error.code == "templates_unavailable"));
    }
}
