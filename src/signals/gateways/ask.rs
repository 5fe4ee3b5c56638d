//! One gateway's report, or why there is none.

use std::{error::Error, time::Duration};

use jiff::Timestamp;
use reqwest::{Response, StatusCode};

use crate::{
    api::{conditions::truncate, keys::SIGNATURE_HEADER},
    signals::{
        gateways::Sign,
        proof::{Announced, DIGEST_HEADER, ReportKey, Request, Unproven},
        report::{GatewayReport, LEADER_HEADER, Mark, REPORT_PATH, Unread, Wanted},
    },
};

/// A report that takes longer is no report.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// Why a gateway counts as one that does not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Silence {
    /// Nobody is there, or says nothing in time.
    #[error("it does not answer")]
    Unreachable(String),
    /// This operator has no key.
    #[error("this operator has no key to ask it with")]
    NoKey,
    /// It says so itself, unsigned, as everybody could.
    #[error(
        "it does not know the key that this operator asks with: both must read the same \
         --request-id-secret"
    )]
    UnknownKey,
    /// The answer proves nothing.
    #[error(
        "its answer ({status}) counts for nothing, {why}: something else, or a gateway of an \
         earlier version, is at this address"
    )]
    Unproven {
        /// The status that it said.
        status: u16,
        /// What is wrong.
        why: Unproven,
    },
    /// The body is not the one that was signed.
    #[error("its report was changed or cut on its way")]
    Changed,
    /// It refuses, and proves that it is a gateway.
    #[error("it refuses: {0}")]
    Refused(String),
    /// Signed, and no report.
    #[error("its report can not be read: run both in one version")]
    Unreadable(String),
}

impl Silence {
    /// One word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "Unreachable",
            Self::NoKey => "NoKey",
            Self::UnknownKey => "UnknownKey",
            Self::Unproven { .. } => "Unproven",
            Self::Changed => "Changed",
            Self::Refused(_) => "Refused",
            Self::Unreadable(_) => "Unreadable",
        }
    }

    /// What a log adds and a status leaves out, because it differs from time to time.
    pub(super) fn detail(&self) -> Option<&str> {
        match self {
            Self::Unreachable(why) | Self::Unreadable(why) => Some(why),
            _ => None,
        }
    }

    /// Whether another key may help.
    pub(super) fn is_about_keys(&self) -> bool {
        matches!(self, Self::NoKey | Self::UnknownKey | Self::Unproven { .. })
    }

    /// Whether somebody answered who has not shown to be a gateway.
    pub fn is_unproven(&self) -> bool {
        matches!(self, Self::UnknownKey | Self::Unproven { .. } | Self::Changed)
    }
}

/// A question to one gateway by who holds the Lease.
pub(super) struct Question<'a> {
    pub client: &'a reqwest::Client,
    pub address: &'a str,
    pub term: i64,
    pub sign: &'a Sign,
    pub now: Timestamp,
    /// Only what has changed since then is wanted.
    pub since: Option<&'a Mark>,
}

impl Question<'_> {
    /// Asks with a key.
    pub(super) async fn ask(
        &self,
        key: Option<&ReportKey>,
    ) -> Result<GatewayReport<Unread>, Silence> {
        let key = key.ok_or(Silence::NoKey)?;
        let leader = if self.sign.leads { self.term.to_string() } else { String::new() };
        let unjudged = if self.sign.leads { self.sign.unjudged.clone() } else { <_>::default() };
        let target = format!("{REPORT_PATH}{}", Wanted { since: self.since.cloned(), unjudged });
        let request = Request { method: "GET", target: &target, leader: &leader };
        let asking = key.ask(&request, self.now, rand::random());
        let mut sent = self.client.get(format!("http://{}{target}", self.address));
        for (name, value) in asking.headers() {
            sent = sent.header(name, value);
        }
        let answer = sent.header(LEADER_HEADER, &leader).send().await.map_err(unreachable)?;
        let status = answer.status();
        let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let announced = asking
            .admit(status.as_u16(), header(DIGEST_HEADER), header(SIGNATURE_HEADER))
            .map_err(|why| match (why, status) {
                (Unproven::Unsigned, StatusCode::UNAUTHORIZED) => Silence::UnknownKey,
                _ => Silence::Unproven { status: status.as_u16(), why },
            })?;
        let body = read(answer, &announced).await?;
        if status != StatusCode::OK {
            return Err(Silence::Refused(message(&body)));
        }
        let report: GatewayReport<Unread> = serde_json::from_slice(&body)
            .map_err(|error| Silence::Unreadable(truncate(&error.to_string(), 200)))?;
        report.known().map_err(Silence::Unreadable)
    }
}

/// The body that the head announces, and not a byte more.
async fn read(mut answer: Response, announced: &Announced) -> Result<Vec<u8>, Silence> {
    let mut body = vec![];
    while let Some(piece) = answer.chunk().await.map_err(unreachable)? {
        if body.len() + piece.len() > announced.length {
            return Err(Silence::Changed);
        }
        body.extend_from_slice(&piece);
    }
    if announced.is(&body) { Ok(body) } else { Err(Silence::Changed) }
}

fn unreachable(error: reqwest::Error) -> Silence {
    // The address is told beside it; why a connection fails is in the cause.
    let error = error.without_url();
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    Silence::Unreachable(truncate(&format!("{error}{cause}"), 200))
}

/// What an error in OpenAI's shape says.
fn message(body: &[u8]) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    truncate(body["error"]["message"].as_str().unwrap_or("it does not say why"), 500)
}
