//! Copies of live requests, for a variant that no user sees yet.
//!
//! A copy costs the user nothing: it runs in a task of its own, from the moment when
//! stable's request is sent, with permits of its own, and its answer is read to the end
//! and thrown away. Which requests are copied is drawn by chance, so that it depends on
//! nothing that could bias the comparison.
//!
//! Every drawn copy ends exactly once: as a record beside what stable made of the same
//! request, or counted as dropped. There is no retry and no queue: a copy that finds no
//! room would measure waiting, not the variant.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::task::TaskTracker;

use super::{
    Gateway,
    assign::Assigned,
    flight::Flight,
    phases::Request,
    prepare::{self, Asked},
    renderer::{Effort, Refused},
    routes::{Route, Shadow, Target},
    tally::Drawn,
    upstream::{self, Next, Started},
};
use crate::{
    analysis::breaker::Passage,
    audit::record::{AssignmentReason, RecordOutcome, StableSide},
};

/// Copies in flight in one gateway. Each holds a request and an answer in memory.
const COPIES: usize = 128;

/// The copies of one gateway.
pub(super) struct Shadows {
    room: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Default for Shadows {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(COPIES)), tasks: TaskTracker::new() }
    }
}

impl Shadows {
    /// Ends when no copy is under way. Without a bound of its own: who drains has one.
    pub(super) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// A copy that was drawn and has room. Dropped before it is started, it counts as dropped.
pub(super) struct Copy {
    gateway: Arc<Gateway>,
    route: Arc<Route>,
    target: Arc<Target>,
    /// None once it was started.
    held: Option<(Room, Option<Drawn>)>,
}

/// What a copy holds while it runs.
struct Room {
    /// Of the gateway, until it is paired.
    _slot: OwnedSemaphorePermit,
    /// Of the backend, until it is answered.
    permit: OwnedSemaphorePermit,
}

/// Whether a request is copied.
pub(super) fn draw(gateway: &Arc<Gateway>, route: &Arc<Route>, shadow: &Shadow) -> Option<Copy> {
    if rand::random_range(0..100_u32) >= shadow.percent {
        return None;
    }
    let target = &shadow.target;
    let tally = route.tallies.get(&target.revision);
    // By chance, whoever asks.
    let drawn = tally.map(|tally| tally.draw(Passage::Free, None));
    match find_room(gateway, target) {
        Ok(room) => Some(Copy {
            gateway: gateway.clone(),
            route: route.clone(),
            target: target.clone(),
            held: Some((room, drawn)),
        }),
        Err(why) => {
            count_unsent(gateway, target, drawn, why);
            None
        }
    }
}

fn find_room(gateway: &Gateway, target: &Target) -> Result<Room, &'static str> {
    let slot = gateway.shadows.room.clone().try_acquire_owned().map_err(|_| "gateway_full")?;
    // No breaker: nobody waits for a copy, and what it kept away could not be judged.
    let permit = target.room.try_enter().ok_or("backend_full")?;
    Ok(Room { _slot: slot, permit })
}

fn count_unsent(gateway: &Gateway, target: &Target, drawn: Option<Drawn>, why: &'static str) {
    if let Some(drawn) = drawn {
        drawn.unsent();
    }
    gateway.exported.copy_dropped(&target.origin, why);
}

impl Copy {
    /// Sends the copy, at the same time as `flight` is sent to stable.
    pub(super) fn start(mut self, flight: &mut Flight, request: &Request) {
        let Some((room, drawn)) = self.held.take() else { return };
        let mut assigned = Assigned {
            group: flight.group,
            drawn,
            // What both ids share.
            unique: flight.unique,
            ..Assigned::new(&self.target, AssignmentReason::Shadow)
        };
        let Request { asked, passed } = request;
        let mut copy = Flight::new(&self.gateway, &self.route, &mut assigned, asked, passed);
        copy.trace = flight.trace;
        copy.follows();
        let (tell, told) = oneshot::channel();
        flight.copied(copy.request_id.clone(), tell);
        let stable = Stable { told, patience: self.route.baseline.timeout };
        let task = run(self.gateway.clone(), copy, asked.clone(), room, stable);
        self.gateway.shadows.tasks.spawn(task);
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if let Some((_, drawn)) = self.held.take() {
            count_unsent(&self.gateway, &self.target, drawn, "stable_unanswered");
        }
    }
}

/// How stable's answer to the same request becomes known.
struct Stable {
    told: oneshot::Receiver<StableSide>,
    /// How much longer than the copy it may take: an application that stops reading
    /// its answer must not keep the copy's room for ever.
    patience: Duration,
}

async fn run(
    gateway: Arc<Gateway>,
    mut flight: Flight,
    asked: Arc<Asked>,
    room: Room,
    stable: Stable,
) {
    let Room { _slot, permit } = room;
    let answered = ask(&gateway, &mut flight, &asked).await;
    flight.ended();
    drop((permit, asked));
    let told = tokio::time::timeout(stable.patience, stable.told).await;
    let stable = told.ok().and_then(Result::ok);
    flight.finish_beside(outcome(answered, stable), stable);
}

/// What the model refuses as the client's mistake is the canary's fault when stable
/// took the same request.
fn outcome(answered: Result<(), Fault>, stable: Option<StableSide>) -> RecordOutcome {
    let took =
        stable.is_some_and(|s| matches!(s.outcome, RecordOutcome::Ok | RecordOutcome::Error));
    match answered {
        Ok(()) => RecordOutcome::Ok,
        Err(Fault::Client) if !took => RecordOutcome::ClientError,
        Err(_) => RecordOutcome::Error,
    }
}

enum Fault {
    Client,
    Model,
}

/// Asks the shadow and reads its answer to the end.
async fn ask(gateway: &Gateway, flight: &mut Flight, asked: &Asked) -> Result<(), Fault> {
    let account = flight.account();
    let prepared =
        prepare::body(&gateway.renderer, &flight.target, asked, &account, Effort::Whole).await;
    let prepared = prepared.map_err(|refused| match refused {
        Refused::Request(_) => Fault::Client,
        Refused::Prompt(_) => Fault::Model,
        Refused::Room(_) => {
            flight.crowded = true;
            Fault::Model
        }
    })?;
    let body = flight.sends(prepared, asked);
    let called = upstream::call(flight, asked, body).await;
    flight.written = None;
    let started = called
        .map_err(|failure| if failure.client_fault { Fault::Client } else { Fault::Model })?;
    let Started::Stream(mut stream) = started else { return Ok(()) };
    loop {
        match stream.next(flight).await {
            Next::Chunk(_) => {}
            Next::End => return Ok(()),
            Next::Broken | Next::Late | Next::Failed | Next::Crowded(_) | Next::Secret => {
                return Err(Fault::Model);
            }
        }
    }
}
