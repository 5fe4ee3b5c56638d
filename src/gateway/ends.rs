//! When models end, as OpenAI lists it to whoever has a key. The operator has no keys, so each
//! gateway asks: seldom, beside the requests of applications, and not for any of them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::http::{Method, StatusCode, Uri};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use jiff::civil::Date;
use tokio::time::timeout;

use super::{Gateway, clients::Outgoing, routes::Target};
use crate::{audit::record::Operation, openai::models};

/// The provider that lists when its models end.
const PROVIDER: &str = "openai";
/// How often a gateway looks which backends are to be asked.
const LOOK: Duration = Duration::from_secs(10);
/// How often a backend is asked: dates are announced months before.
const EVERY_MILLIS: u64 = 6 * 3600 * 1000;
/// The longest wait for a list.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the list of one backend's server said of its model.
#[derive(Debug, Default)]
pub(super) struct Ends(Mutex<Heard>);

#[derive(Debug, Default)]
struct Heard {
    /// When it was asked last, on the gateway's clock.
    asked: Option<u64>,
    /// None while no list had the model.
    said: Option<Option<Date>>,
}

impl Ends {
    /// What was said last.
    pub(super) fn said(&self) -> Option<Option<Date>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).said
    }

    /// Whether it is to be asked now; then it counts as asked.
    fn is_due(&self, now_millis: u64) -> bool {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = heard.asked.is_none_or(|asked| now_millis.saturating_sub(asked) >= EVERY_MILLIS);
        if due {
            heard.asked = Some(now_millis);
        }
        due
    }

    /// A server that does not answer takes nothing back.
    fn hear(&self, said: Option<Option<Date>>) {
        if said.is_some() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).said = said;
        }
    }
}

/// Asks as long as the gateway runs.
pub async fn ask_when_models_end(gateway: Arc<Gateway>) {
    loop {
        tokio::time::sleep(LOOK).await;
        ask_once(&gateway).await;
    }
}

/// Asks the backends of which it is time, one after the other.
pub async fn ask_once(gateway: &Gateway) {
    let now = gateway.now_millis();
    let routes = gateway.table.all();
    let targets = routes.iter().flat_map(|route| route.targets());
    let due: BTreeMap<usize, Arc<Target>> = targets
        .filter(|target| target.origin.provider == PROVIDER && target.ends.is_due(now))
        .map(|target| (Arc::as_ptr(&target.ends).addr(), target.clone()))
        .collect();
    drop(routes);
    for target in due.into_values() {
        match timeout(PATIENCE, listed(&target)).await {
            Ok(Ok(said)) => target.ends.hear(said),
            // A server without a list is as good as any other.
            Ok(Err(why)) => {
                let backend = &target.origin.backend;
                tracing::debug!(backend, "the list of models can not be read: {why}");
            }
            Err(_) => tracing::debug!(backend = target.origin.backend, "no list of models in time"),
        }
    }
}

async fn listed(target: &Target) -> Result<Option<Option<Date>>, String> {
    let uri = list_of(target.uri(Operation::Chat)).ok_or("its address is another one")?;
    let headers = || target.headers().clone();
    let (method, body) = (Method::GET, Bytes::new());
    let request = Outgoing { method, uri: &uri, headers, body, alone: true };
    let response = target.client().send(&request).await.map_err(|e| e.to_string())?;
    if response.status() != StatusCode::OK {
        return Err(format!("status {}", response.status().as_u16()));
    }
    let body = Limited::new(response.into_body(), models::LARGEST);
    let list = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
    Ok(models::shutdown_date(&list, &target.model))
}

/// The address of the list beside that of chats.
fn list_of(chat: &Uri) -> Option<Uri> {
    let mut parts = chat.clone().into_parts();
    let path = parts.path_and_query.as_ref()?;
    let base = path.path().strip_suffix(Operation::Chat.path())?;
    let query = path.query().map(|query| format!("?{query}")).unwrap_or_default();
    parts.path_and_query = Some(format!("{base}/models{query}").parse().ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_asked_at_once_and_then_seldom() {
        let ends = Ends::default();
        let asked = (0..24).filter(|hour| ends.is_due(hour * 3_600_000)).collect::<Vec<u64>>();
        assert_eq!(asked, [0, 6, 12, 18]);
    }

    #[test]
    fn the_list_is_beside_the_chats() {
        for (chat, list) in [
            (
                "https://api.openai.com/v1/chat/completions",
                Some("https://api.openai.com/v1/models"),
            ),
            ("http://m/x/chat/completions?a=b", Some("http://m/x/models?a=b")),
            ("http://m/other", None),
        ] {
            let found = list_of(&chat.parse().unwrap()).map(|uri| uri.to_string());
            assert_eq!(found.as_deref(), list);
        }
    }
}
