//! `serinus cost`: who has spent what.

mod text;

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use futures::future::try_join_all;

use super::{
    numbers::{duration_between, in_days},
    prometheus,
};
use crate::{
    api::{
        GoDuration,
        url::{has_credentials, shown},
    },
    signals::{
        prometheus::Prometheus,
        spending::{COUNTERS, CostReport, Line, Spent, Whose, collect, query},
    },
};

/// A gateway that takes longer does not answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How far back one may look: ten years at most.
const WINDOW: RangeInclusive<GoDuration> =
    GoDuration::from_secs(1)..=GoDuration::from_secs(10 * 8760 * 3600);

/// What to add up, and where it is known.
#[derive(clap::Args)]
pub struct Options {
    /// How far back to look; only Prometheus remembers.
    #[arg(long, default_value = "24h", value_parser = duration_between(WINDOW), requires = "prometheus_url")]
    since: GoDuration,
    /// What to tell apart.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "team,release,revision,traffic"
    )]
    by: Vec<By>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    #[command(flatten)]
    prometheus: prometheus::Options,
    /// Only of some series in Prometheus, for example 'cluster="a"'.
    #[arg(long, default_value = "", hide_default_value = true, requires = "prometheus_url")]
    prometheus_selector: String,
    /// The admin address of a gateway: what it has counted since it started. Name all of
    /// them.
    #[arg(long, value_name = "URL", conflicts_with = "prometheus_url")]
    gateway: Vec<String>,
}

/// What costs are told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// Who asked.
    Team,
    /// What was released.
    Release,
    /// Which prompt on which model.
    Revision,
    /// Users, or copies for a shadow.
    Traffic,
}

impl By {
    fn of(self, whose: &mut Whose) -> &mut String {
        match self {
            Self::Team => &mut whose.team,
            Self::Release => &mut whose.release,
            Self::Revision => &mut whose.revision,
            Self::Traffic => &mut whose.traffic,
        }
    }
}

/// How costs are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For spreadsheets.
    Csv,
    /// For programs.
    Json,
}

/// Costs and where they come from.
struct Costs {
    lines: Vec<Line>,
    /// For how long, in words.
    span: String,
}

/// Prints the costs.
///
/// # Errors
/// Nobody was named who knows them, or somebody who was named did not answer: a total
/// without a part of it would look like a total.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let prometheus = options.prometheus.build()?;
    let costs = if prometheus.configured() {
        remembered(&prometheus, options.since.0, &options.prometheus_selector).await?
    } else if options.gateway.is_empty() {
        bail!(
            "say who knows the costs: --prometheus-url for those of a window of time, or --gateway for what a gateway has counted since it started"
        );
    } else {
        counted(&options.gateway).await?
    };
    let lines = group(costs.lines, &options.by);
    print!(
        "{}",
        match options.output {
            Format::Table => text::table(&lines, &options.by, &costs.span),
            Format::Csv => text::csv(&lines, &options.by),
            Format::Json => text::json(&lines, &options.by, &costs.span)?,
        }
    );
    Ok(())
}

async fn remembered(
    prometheus: &Prometheus,
    since: Duration,
    selector: &str,
) -> anyhow::Result<Costs> {
    let asked = COUNTERS.iter().map(|counter| async move {
        let answer = prometheus.table(&query(counter, since, selector)).await;
        answer.map(|answer| (counter, answer)).context("Prometheus does not tell the costs")
    });
    let mut lines = BTreeMap::new();
    for (counter, answer) in try_join_all(asked).await? {
        collect(&mut lines, counter, answer);
    }
    let lines = lines.into_iter().map(|(whose, spent)| Line { whose, spent }).collect();
    Ok(Costs { lines, span: format!("in the last {}", in_days(since)) })
}

async fn counted(gateways: &[String]) -> anyhow::Result<Costs> {
    super::process::install_tls();
    let client = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build()?;
    let asked = gateways.iter().map(|gateway| ask(&client, gateway));
    let mut reports: Vec<CostReport> = try_join_all(asked).await?;
    // One gateway under two names is one gateway.
    reports.sort_by(|a, b| a.instance.cmp(&b.instance));
    reports.dedup_by(|a, b| a.instance == b.instance);
    let since = reports.iter().map(|report| report.since).min().unwrap_or_default();
    let span = match reports.len() {
        1 => format!("of one gateway since {since:.0}"),
        several => format!("of {several} gateways since their starts, the first at {since:.0}"),
    };
    let lines = reports.into_iter().flat_map(|report| report.totals).collect();
    Ok(Costs { lines, span })
}

async fn ask(client: &reqwest::Client, gateway: &str) -> anyhow::Result<CostReport> {
    ensure!(
        !has_credentials(gateway),
        "--gateway may hold no user and no password: the admin address of a gateway asks for none"
    );
    let base = gateway.trim_end_matches('/');
    let scheme = if base.contains("://") { "" } else { "http://" };
    let answer = async {
        let url = format!("{scheme}{base}/serinus/v1/cost");
        client.get(url).send().await?.error_for_status()?.json().await
    };
    answer.await.map_err(reqwest::Error::without_url).with_context(|| {
        format!("{} does not tell its costs: is it the admin address of a gateway?", shown(gateway))
    })
}

/// Adds up what is not told apart; the dearest first.
fn group(lines: Vec<Line>, by: &[By]) -> Vec<Line> {
    let mut sums: BTreeMap<Whose, Spent> = BTreeMap::new();
    for mut line in lines {
        let mut whose = Whose::default();
        for by in by {
            *by.of(&mut whose) = std::mem::take(by.of(&mut line.whose));
        }
        sums.entry(whose).or_default().add(line.spent);
    }
    let mut lines: Vec<Line> = sums
        .into_iter()
        .filter(|(_, spent)| *spent != Spent::default())
        .map(|(whose, spent)| Line { whose, spent })
        .collect();
    lines.sort_by(|a, b| b.spent.usd.total_cmp(&a.spent.usd));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_address_of_a_gateway_holds_no_credentials_and_none_are_repeated() {
        crate::app::process::install_tls();
        for url in crate::api::url::tests::WITH {
            let error = format!("{:#}", ask(&reqwest::Client::new(), url).await.unwrap_err());
            assert!(error.contains("no password") && !error.contains("love"), "{url:?}: {error}");
        }
    }
}
