//! The flags that say what a gateway tells of its requests, and to whom. The variables of
//! OpenTelemetry's specification are honoured where there is a flag of the same meaning.

use std::{ops::RangeInclusive, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    clock,
    numbers::{between, share},
};
use crate::{
    api::GoDuration,
    telemetry::{
        Behind, Bounds, Config, Telemetry, Tracing, access_log,
        log::Lost,
        names::Set,
        otlp,
        redact::{Kind, Redaction},
    },
};

/// The most that may wait: a batch is a quarter of it.
const BATCHES: usize = 4;
/// How long a request to the collector may take, and a span wait for others. Without any time
/// no request could succeed, and the exporter would never rest.
const TIMES: RangeInclusive<GoDuration> =
    GoDuration(Duration::from_millis(10))..=GoDuration::from_secs(3600);
/// What was said in the requests that wait, together.
const WAITING_BYTES: usize = 32 << 20;

/// Whether a request has a line in the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum AccessLog {
    /// No lines.
    Off,
    /// One JSON object a request.
    Json,
}

/// How bodies are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Compression {
    /// Compressed.
    Gzip,
    /// As they are.
    None,
}

/// What is told of requests, and to whom.
#[derive(clap::Args)]
#[group(id = "telemetry")]
pub struct Options {
    /// The address of a collector or tracing system that takes OTLP/HTTP, for example
    /// http://collector:4318; /v1/traces is added. Default: no spans are sent.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", hide_env_values = true)]
    otlp_endpoint: Option<String>,
    /// As --otlp-endpoint, but the whole address: nothing is added.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", hide_env_values = true)]
    otlp_traces_endpoint: Option<String>,
    /// A header for the collector, as name=value. May be repeated. Secrets belong into
    /// OTEL_EXPORTER_OTLP_HEADERS, which nobody sees in a list of processes.
    #[arg(long = "otlp-header", value_name = "NAME=VALUE")]
    otlp_headers: Vec<String>,
    /// How spans are sent.
    #[arg(long, value_enum, default_value = "gzip", env = "OTEL_EXPORTER_OTLP_COMPRESSION")]
    otlp_compression: Compression,
    /// A certificate authority that the collector's certificate may come from, in PEM.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_CERTIFICATE")]
    otlp_certificate: Option<PathBuf>,
    /// How long one request to the collector may take.
    #[arg(long, default_value = "10s", value_parser = between(TIMES))]
    otlp_timeout: GoDuration,
    /// How long a span waits for others at most.
    #[arg(long, default_value = "1s", value_parser = between(TIMES))]
    otlp_interval: GoDuration,
    /// How many spans are sent together; four times as many may wait.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65_536),
        env = "OTEL_BSP_MAX_EXPORT_BATCH_SIZE")]
    otlp_batch: u32,
    /// The share of traces that are recorded, 0 to 1, where the caller's traceparent does
    /// not decide.
    #[arg(long, default_value_t = 1.0, value_parser = share, env = "OTEL_TRACES_SAMPLER_ARG")]
    trace_ratio: f64,
    /// Whose names attributes have: gen_ai (OpenTelemetry), openinference (Phoenix),
    /// langfuse, mlflow; several with commas.
    #[arg(long, default_value = "gen_ai", value_delimiter = ',')]
    trace_names: Vec<Set>,
    /// Send what was said, too: input, answers, tool calls, user and conversation.
    #[arg(long)]
    trace_content: bool,
    /// How many bytes of each input and answer are kept.
    #[arg(long, default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    trace_content_bytes: u32,
    /// What is taken out of what was said, before it leaves the process.
    #[arg(long, default_value = "secret,email,iban,card,ssn,phone", value_delimiter = ',')]
    redact_kinds: Vec<String>,
    /// A regular expression whose matches are taken out as well. May be repeated.
    #[arg(long = "redact", value_name = "REGEX")]
    redact: Vec<String>,
    /// One line a request.
    #[arg(long, value_enum, default_value = "off")]
    access_log: AccessLog,
    /// The file of the access log. Default: standard output.
    #[arg(long)]
    access_log_file: Option<PathBuf>,
    /// The share of answered requests that have a line, 0 to 1. What failed has one anyway.
    #[arg(long, default_value_t = 1.0, value_parser = share)]
    access_log_ratio: f64,
}

impl Options {
    /// Sets it up and starts what works behind the requests. Lines that the log loses are
    /// counted in `log`.
    ///
    /// # Errors
    /// An address, header, rule or file can not be used.
    pub fn start(&self, log: Arc<Lost>) -> anyhow::Result<(Arc<Telemetry>, Behind)> {
        let otlp = self.otlp()?;
        let tracing = Tracing {
            ratio: otlp.is_some().then_some(self.trace_ratio),
            content_bytes: (otlp.is_some() && self.trace_content)
                .then_some(self.trace_content_bytes as usize),
        };
        let access_log = (self.access_log == AccessLog::Json).then(|| access_log::Config {
            file: self.access_log_file.clone(),
            ratio: self.access_log_ratio,
        });
        Ok(Telemetry::start(Config { tracing, otlp, access_log, log })?)
    }

    fn otlp(&self) -> anyhow::Result<Option<otlp::Config>> {
        let redaction = self.redaction()?;
        let given = |text: &&String| !text.trim().is_empty();
        let url = match (&self.otlp_traces_endpoint, &self.otlp_endpoint) {
            (Some(whole), _) if given(&whole) => whole.clone(),
            (_, Some(base)) if given(&base) => format!("{}/v1/traces", base.trim_end_matches('/')),
            _ => return Ok(None),
        };
        if variable("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let authority = self
            .otlp_certificate
            .as_ref()
            .map(|path| std::fs::read(path).with_context(|| format!("{}", path.display())))
            .transpose()
            .context("--otlp-certificate")?;
        let batch = self.otlp_batch as usize;
        Ok(Some(otlp::Config {
            url,
            headers: self.headers()?,
            gzip: self.otlp_compression == Compression::Gzip,
            timeout: self.otlp_timeout.0,
            interval: self.otlp_interval.0,
            bounds: Bounds { records: batch * BATCHES, bytes: WAITING_BYTES, batch },
            authority,
            names: self.trace_names.clone(),
            redaction,
            resource: resource(
                variable("OTEL_SERVICE_NAME").as_deref(),
                variable("OTEL_RESOURCE_ATTRIBUTES").as_deref(),
            )?,
            clock: clock::now,
        }))
    }

    fn redaction(&self) -> anyhow::Result<Redaction> {
        let kinds = self.redact_kinds.iter().filter(|word| !["", "none"].contains(&word.as_str()));
        let kinds = kinds.map(|word| word.parse::<Kind>()).collect::<Result<Vec<_>, _>>();
        let mut kinds = kinds.context("--redact-kinds")?;
        // Nothing is told that they would have to look for, and they are large.
        kinds.retain(|_| self.trace_content);
        Redaction::new(&kinds, &self.redact).context("--redact")
    }

    /// Those of the flags win over those of the variables.
    fn headers(&self) -> anyhow::Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        let variables = ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"];
        for name in variables {
            let Some(text) = variable(name) else { continue };
            for (key, value) in pairs(&text).with_context(|| name.to_owned())? {
                put(&mut headers, &key, &value).with_context(|| name.to_owned())?;
            }
        }
        for pair in &self.otlp_headers {
            let (key, value) = pair.split_once('=').context("--otlp-header must be NAME=VALUE")?;
            put(&mut headers, key, value).context("--otlp-header")?;
        }
        Ok(headers)
    }
}

fn put(headers: &mut HeaderMap, name: &str, value: &str) -> anyhow::Result<()> {
    let key: HeaderName =
        name.trim().parse().with_context(|| format!("{name} is no name of a header"))?;
    // Never shown: it may be a key.
    let mut value = HeaderValue::from_str(value.trim()).map_err(|_| {
        anyhow::anyhow!("the value of {name} has characters that no header can have")
    })?;
    value.set_sensitive(true);
    headers.insert(key, value);
    Ok(())
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.trim().is_empty())
}

/// `a=1,b=2`, percent-encoded, as OpenTelemetry's variables have it.
fn pairs(text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let list = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    list.map(|pair| {
        let (key, value) = pair.split_once('=').context("it must be a list of name=value")?;
        Ok((key.trim().to_owned(), decode(value.trim())))
    })
    .collect()
}

fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        let hex = more.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        match hex.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) if *first == b'%' => {
                out.push(byte);
                rest = more.get(2..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What describes this process. The service's own variable wins.
fn resource(
    service: Option<&str>,
    attributes: Option<&str>,
) -> anyhow::Result<Vec<(String, String)>> {
    let mut all = pairs(attributes.unwrap_or_default()).context("OTEL_RESOURCE_ATTRIBUTES")?;
    if let Some(service) = service {
        all.retain(|(name, _)| name != "service.name");
        all.push(("service.name".to_owned(), service.to_owned()));
    }
    for (name, value) in [
        ("service.name", "serinus-gateway".to_owned()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("service.instance.id", format!("{:016x}", rand::random::<u64>())),
    ] {
        if all.iter().all(|(own, _)| own != name) {
            all.push((name.to_owned(), value));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        telemetry: Options,
    }

    fn options(arguments: &[&str]) -> Options {
        let all = std::iter::once(&"serinus").chain(arguments);
        Command::try_parse_from(all).unwrap_or_else(|e| panic!("{e}")).telemetry
    }

    fn problem(arguments: &[&str]) -> String {
        format!("{:#}", options(arguments).start(Arc::default()).err().unwrap())
    }

    #[tokio::test]
    async fn nothing_is_told_unless_asked_for() {
        let (telemetry, behind) = options(&[]).start(Arc::default()).unwrap();
        assert!(!telemetry.is_on());
        assert_eq!(telemetry.tracing, Tracing::default());
        behind.flush().await;
    }

    #[test]
    fn the_path_is_added_to_a_base_and_to_nothing_else() {
        let url = |arguments: &[&str]| options(arguments).otlp().unwrap().map(|otlp| otlp.url);
        assert_eq!(url(&["--otlp-endpoint", "http://c:4318/"]).unwrap(), "http://c:4318/v1/traces");
        assert_eq!(
            url(&["--otlp-traces-endpoint", "http://p/x", "--otlp-endpoint", "http://c"]).unwrap(),
            "http://p/x"
        );
        assert_eq!(url(&["--otlp-endpoint", " "]), None, "an empty variable is none");
    }

    #[test]
    fn what_can_not_be_used_says_what_to_do() {
        let endpoint = ["--otlp-endpoint", "http://c"];
        for (arguments, expected) in [
            (&["--redact", "("][..], "--redact: "),
            (&["--redact-kinds", "passport"], "choose among secret"),
            (&["--otlp-header", "x"], "NAME=VALUE"),
            (&["--otlp-certificate", "/no/such/file"], "/no/such/file"),
        ] {
            let all: Vec<&str> = endpoint.iter().chain(arguments).copied().collect();
            assert!(problem(&all).contains(expected), "{}", problem(&all));
        }
        for flag in ["--trace-ratio", "--access-log-ratio"] {
            let refused = Command::try_parse_from(["serinus", flag, "2"]).err().unwrap();
            let text = refused.to_string();
            assert!(text.contains(flag) && text.contains("from 0 to 1"), "{text}");
        }
        let secret = problem(&["--otlp-endpoint", "http://c", "--otlp-header", "k=a\u{1}b"]);
        assert!(secret.contains("the value of k") && !secret.contains('\u{1}'), "{secret}");
    }

    #[test]
    fn variables_are_lists_of_encoded_pairs() {
        let found = pairs("authorization=Basic%20YTpi, x=1=2,").unwrap();
        let expected = [("authorization", "Basic YTpi"), ("x", "1=2")];
        assert_eq!(found, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert!(pairs("novalue").is_err());
        assert_eq!(decode("100%"), "100%");
        let resource = resource(Some("shop"), Some("service.name=x,openinference.project.name=p"));
        let resource = resource.unwrap();
        let of = |name: &str| resource.iter().find(|r| r.0 == name).map(|r| r.1.as_str());
        assert_eq!(of("service.name"), Some("shop"));
        assert_eq!(of("openinference.project.name"), Some("p"));
        assert!(of("service.instance.id").is_some());
    }
}
