//! Events about objects.

use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, Recorder, Reporter},
};

/// So many Events are written by one recorder; then a new one is made. A recorder keeps each
/// Event for six minutes, because the same Event again is counted up and not written anew, and
/// for each new Event it looks through all that it keeps. With 10,000 of them that is slow.
const OF_ONE: usize = 256;

/// Writes Events.
pub(super) struct Events {
    client: Client,
    reporter: Reporter,
    /// The recorder, and how many Events it has written.
    now: Mutex<(Recorder, usize)>,
}

impl Events {
    pub(super) fn new(client: &Client, reporter: Reporter) -> Self {
        let recorder = Recorder::new(client.clone(), reporter.clone());
        Self { client: client.clone(), reporter, now: Mutex::new((recorder, 0)) }
    }

    /// Writes one.
    ///
    /// # Errors
    /// The API server failed or refused.
    pub(super) async fn publish(
        &self,
        event: &Event,
        regarding: &ObjectReference,
    ) -> Result<(), kube::Error> {
        let recorder = self.recorder();
        recorder.publish(event, regarding).await
    }

    fn recorder(&self) -> Recorder {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.1 == OF_ONE {
            *now = (Recorder::new(self.client.clone(), self.reporter.clone()), 0);
        }
        now.1 += 1;
        now.0.clone()
    }
}
