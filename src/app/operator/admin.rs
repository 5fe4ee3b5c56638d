//! The operator's admin address: probes, metrics, and what people read of its state.

use std::sync::Arc;

use axum::{
    Router,
    extract::{RawQuery, State},
    http::StatusCode,
    response::IntoResponse,
    routing::get,
};
use jiff::{SignedDuration, Unit};

use crate::{
    api::conditions::on_one_line,
    controllers::{Context, kube::leadership::Leaderless},
    gateway::server::is_verbose,
    signals::gateways::Pulled,
};

/// More silent gateways than this are not shown.
const SHOWN: usize = 100;
/// A line about one of them is cut here.
const LONGEST: usize = 900;

pub(super) async fn serve_admin(listener: tokio::net::TcpListener, context: Arc<Context>) {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(context);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!("the admin server failed: {error}");
    }
}

/// Whether this process can do its work; with `?verbose` also what it can not do, and a line for
/// each release that is not well.
async fn readyz(
    State(context): State<Arc<Context>>,
    RawQuery(query): RawQuery,
) -> (StatusCode, String) {
    let leadership = context.cluster.leadership();
    let (term, leaderless) = (leadership.term(), leadership.leaderless());
    let lost = term.filter(|term| !context.pulse.works(*term));
    let not_ready = if !context.caches.are_ready() {
        Some("the caches are not filled yet".to_owned())
    } else if let Some(term) = lost {
        let seconds = context.pulse.silence(term).as_secs();
        Some(format!(
            "this operator leads and has made or written no decision for {seconds} s; \
             /readyz?verbose says why"
        ))
    } else {
        leaderless.as_ref().map(|Leaderless { since, .. }| {
            format!(
                "no operator leads, as far as this one sees, for {} s; /readyz?verbose says why",
                since.as_secs()
            )
        })
    };
    let (status, mut words) = match not_ready {
        Some(words) => (StatusCode::SERVICE_UNAVAILABLE, words),
        None => (StatusCode::OK, "ready".to_owned()),
    };
    if query.is_some_and(|query| query.split('&').any(is_verbose)) {
        words.push('\n');
        words.push_str(&undone(&context, term, leaderless));
    }
    (status, words)
}

/// What this operator can not do, since when, and the last error; and a line for each gateway that
/// is silent and for each release that is not well.
fn undone(context: &Context, term: Option<i64>, leaderless: Option<Leaderless>) -> String {
    let mut lines = vec![];
    match (term, leaderless) {
        (Some(term), _) => {
            lines.extend(unwritten(context, term));
            lines.extend(context.gateways.last(term, silent).unwrap_or_default());
        }
        (None, Some(Leaderless { why, .. })) => {
            lines.push(format!("this operator does not lead, and sees nobody that does: {why}"));
        }
        (None, None) => lines.push(match context.cluster.leadership().holder() {
            Some(holder) => format!("this operator does not lead, {holder} does"),
            None => "this operator does not lead".to_owned(),
        }),
    }
    lines.extend(context.caches.failing());
    let problems = context.problems();
    lines.extend(problems.lines().map(str::to_owned));
    if term.is_some() && lines.is_empty() {
        lines.push("no problems".to_owned());
    }
    lines.join("\n") + "\n"
}

/// A line for each gateway without a report.
fn silent(pulled: &Pulled) -> Vec<String> {
    let silent = pulled.reports.iter().filter_map(|(address, report)| {
        let why = report.as_ref().err()?;
        Some(on_one_line(&format!("gateway {address}: {}: {why}", why.reason()), LONGEST))
    });
    silent.take(SHOWN).collect()
}

/// A line for each release of which the leader can make or write no decision.
fn unwritten(context: &Context, term: i64) -> Vec<String> {
    let (now, sign) =
        ((context.clock)(), context.pulse.sign(term, &context.caches.unread_releases()));
    let mut lines = vec![];
    if !sign.leads {
        lines.push("gateways are not told that a leader asks".to_owned());
    }
    lines.extend(context.pulse.refused(term));
    let failures = context.pulse.failures(term);
    let more = failures.len().saturating_sub(SHOWN);
    for (release, failure) in failures.into_iter().take(SHOWN) {
        let passed = SignedDuration::try_from(failure.since.elapsed()).unwrap_or_default();
        let (key, since) = (release.key(), (now - passed).round(Unit::Second).unwrap_or(now));
        let stable = if sign.unjudged.has(&key) { ", its users go to stable" } else { "" };
        lines.push(format!("{key}: not decided since {since}{stable}: {}", failure.why));
    }
    if more > 0 {
        lines.push(format!("and {more} more releases that are not decided"));
    }
    lines
}

async fn metrics(State(context): State<Arc<Context>>) -> impl IntoResponse {
    context.count_releases();
    (
        [("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")],
        context.exported.text(),
    )
}
