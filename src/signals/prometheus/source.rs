//! One Prometheus server: a query to a number, or why not.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use prometheus_http_query::{
    Client,
    response::{InstantVector, Sample},
};
use reqwest::{
    Response, StatusCode,
    header::{AUTHORIZATION, HeaderValue},
    redirect::Policy,
};
use serde::Deserialize;
use serde_json::Value;

use super::{failure::Failure, together::Batch};
use crate::{
    api::url::{has_credentials, shown},
    audit::secrets::Secrets,
    signals::cause::innermost,
};

/// A larger answer is not one number.
const LARGEST: usize = 1 << 20;
/// A larger answer is more than a table that anyone reads.
const LARGEST_TABLE: usize = 64 << 20;
/// As much of an error's text is passed on.
const QUOTE: usize = 200;

/// Where Prometheus is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its address, with the path prefix if it has one.
    pub url: String,
    /// A file with a bearer token, or with `Basic` and a user and password in base64, read
    /// anew for each round.
    pub token_file: Option<PathBuf>,
    /// The longest that one query may take.
    pub timeout: Duration,
}

/// A Prometheus server could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The address is none.
    #[error(
        "{0:?} is no address of Prometheus: write for example http://prometheus.monitoring:9090"
    )]
    Url(String),
    /// The address holds a user or a password.
    #[error(
        "the address holds a user or a password, which everybody sees who sees the command line: \
         put a token, or Basic and user:password in base64, into the file of \
         --prometheus-token-file"
    )]
    Credentials,
    /// The HTTP client could not be set up.
    #[error("the HTTP client could not be set up")]
    Client(#[from] reqwest::Error),
}

/// A Prometheus server.
pub(super) struct Source {
    client: Client,
    token_file: Option<PathBuf>,
    pub(super) timeout: Duration,
}

impl Source {
    pub(super) fn new(config: Config) -> Result<Self, SetupError> {
        let http = reqwest::Client::builder()
            .timeout(config.timeout)
            .redirect(Policy::none())
            .no_proxy()
            .build()?;
        if has_credentials(&config.url) {
            return Err(SetupError::Credentials);
        }
        let url = config.url.trim_end_matches('/');
        let client = Client::from(http, url).map_err(|_| SetupError::Url(shown(url).into()))?;
        if !matches!(client.base_url().scheme(), "http" | "https") {
            return Err(SetupError::Url(shown(url).into()));
        }
        Ok(Self { client, token_file: config.token_file, timeout: config.timeout })
    }

    /// The header that carries the token, if there is one. The file is small and read
    /// anew each time, so that a rotated token is used at once.
    pub(super) async fn token(&self) -> Result<Option<HeaderValue>, Failure> {
        let Some(path) = &self.token_file else { return Ok(None) };
        let text =
            tokio::fs::read_to_string(path).await.map_err(|e| Failure::Token(e.to_string()))?;
        let text = text.trim();
        let is_basic = text.get(..6).is_some_and(|word| word.eq_ignore_ascii_case("basic "));
        let text = if is_basic { text.to_owned() } else { format!("Bearer {text}") };
        let mut value = HeaderValue::from_str(&text)
            .map_err(|_| Failure::Token("it holds more than a token".to_owned()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// The number that each text of a batch answers, in their order; and whether it can be
    /// asked together with others, as a scalar, which has no labels, can not.
    pub(super) async fn numbers(
        &self,
        batch: &Batch,
        token: Option<&HeaderValue>,
    ) -> Result<(Vec<Result<f64, Failure>>, bool), Failure> {
        let number = |data| finite(one(data)?);
        if let Some(text) = batch.alone() {
            let (status, body) = self.ask(text, token, LARGEST).await?;
            let data = data(status, &body, self.timeout)?;
            let is_vector = data["resultType"] == "vector";
            return Ok((vec![number(data)], is_vector));
        }
        let (status, body) = self.ask(&batch.query(), token, LARGEST).await?;
        let parts = batch.split(data(status, &body, self.timeout)?)?;
        Ok((parts.into_iter().map(number).collect(), true))
    }

    /// The values that a query answers, by their labels; none when it finds nothing.
    pub(super) async fn table(
        &self,
        text: &str,
        token: Option<&HeaderValue>,
    ) -> Result<Vec<(BTreeMap<String, String>, f64)>, Failure> {
        let (status, body) = self.ask(text, token, LARGEST_TABLE).await?;
        let mut data = data(status, &body, self.timeout)?;
        let found: Vec<InstantVector> = serde_json::from_value(data["result"].take())
            .map_err(|e| Failure::BadAnswer(quote(&e.to_string())))?;
        found
            .into_iter()
            .map(|one| {
                let labels = one.metric().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
                Ok((labels, finite(one.sample().value())?))
            })
            .collect()
    }

    async fn ask(
        &self,
        text: &str,
        token: Option<&HeaderValue>,
        largest: usize,
    ) -> Result<(StatusCode, Vec<u8>), Failure> {
        // The server gives up as well, so that slow queries do not pile up there.
        let patience = i64::try_from(self.timeout.as_millis()).unwrap_or(i64::MAX);
        let mut query = self.client.query(text).timeout(patience);
        if let Some(token) = token {
            query = query.header(AUTHORIZATION, token.clone());
        }
        let response = query.post_raw().await.map_err(|e| self.unsent(&e))?;
        let status = response.status();
        let body = self.body(response, largest).await?;
        // What an error quotes goes into statuses and Events.
        let quoted = token.filter(|_| !status.is_success()).and_then(|token| {
            let token = token.to_str().ok()?.split_once(' ')?.1;
            Secrets::new([token]).without(&body)
        });
        Ok((status, quoted.unwrap_or(body)))
    }

    async fn body(&self, mut response: Response, largest: usize) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.broken(&e))? {
            if body.len() + chunk.len() > largest {
                return Err(Failure::TooLarge(largest));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn unsent(&self, error: &prometheus_http_query::Error) -> Failure {
        match error {
            prometheus_http_query::Error::Client(client) if client.inner().is_some() => {
                client.inner().map_or(Failure::Pending, |inner| self.broken(inner))
            }
            other => Failure::Unreachable(quote(&other.to_string())),
        }
    }

    fn broken(&self, error: &reqwest::Error) -> Failure {
        if error.is_timeout() {
            return Failure::Timeout(self.timeout);
        }
        Failure::Unreachable(quote(&innermost(error)))
    }
}

/// The envelope of every answer of the HTTP API.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    #[serde(default)]
    data: Value,
    #[serde(default)]
    error_type: String,
    #[serde(default)]
    error: String,
}

/// What is in an answer. The crate's own reading is not used because it forgets the
/// status, and takes a string, a histogram and a broken answer for the same thing.
fn data(status: StatusCode, body: &[u8], timeout: Duration) -> Result<Value, Failure> {
    let envelope: Option<Envelope> = serde_json::from_slice(body).ok();
    let told = envelope.as_ref().map(|e| e.error_type.as_str()).unwrap_or_default();
    match (status.as_u16(), told) {
        (_, "timeout" | "canceled") => return Err(Failure::Timeout(timeout)),
        (200..=299, _) => {}
        (400 | 422, _) => {
            let error = envelope.map_or_else(|| status.to_string(), |e| e.error);
            return Err(Failure::BadQuery(quote(&error)));
        }
        (code @ (401 | 403), _) => return Err(Failure::Unauthorized(code)),
        (code @ (429 | 500..=599), _) => return Err(Failure::Unavailable(code)),
        _ => return Err(Failure::BadAnswer(status.to_string())),
    }
    let Some(envelope) = envelope else {
        return Err(Failure::BadAnswer("it is no JSON".to_owned()));
    };
    Ok(envelope.data)
}

/// The single number of a scalar or of a vector with one series.
fn one(mut data: Value) -> Result<f64, Failure> {
    let broken = |e: serde_json::Error| Failure::BadAnswer(quote(&e.to_string()));
    let kind = data["resultType"].as_str().unwrap_or_default().to_owned();
    let result = data["result"].take();
    match kind.as_str() {
        "scalar" => Ok(serde_json::from_value::<Sample>(result).map_err(broken)?.value()),
        "vector" => {
            let series = result.as_array().map_or(0, Vec::len);
            match series {
                0 => return Err(Failure::Empty),
                1 => {}
                more => return Err(Failure::SeveralSeries(more)),
            }
            if result[0].get("histogram").is_some() {
                return Err(Failure::WrongType("histogram".to_owned()));
            }
            let found: Vec<InstantVector> = serde_json::from_value(result).map_err(broken)?;
            found.first().map(|one| one.sample().value()).ok_or(Failure::Empty)
        }
        "" => Err(Failure::BadAnswer("it has no resultType".to_owned())),
        other => Err(Failure::WrongType(quote(other))),
    }
}

fn finite(value: f64) -> Result<f64, Failure> {
    match value {
        v if v.is_nan() => Err(Failure::NotANumber),
        v if v.is_infinite() => Err(Failure::Infinite),
        v => Ok(v),
    }
}

/// Somebody else's text, one line, not too long.
fn quote(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(QUOTE).collect()
}
