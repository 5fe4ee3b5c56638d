//! Looking at a policy before anyone waits for it: `serinus plan` and `serinus simulate`.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};

pub use self::{
    plan::{PlanOptions, plan},
    simulate::{SimulateOptions, simulate},
};
use crate::{
    analysis::plan::Assumptions,
    api::{
        CanaryPolicySpec, LLMDeploymentSpec,
        manifest::{self, Object},
    },
    app::numbers::{between, share},
    rollout::{WithoutData, resolve},
};

mod plan;
mod simulate;

/// Where the policy is, and what is assumed of its traffic.
#[derive(clap::Args)]
pub struct Setup {
    /// A file with a CanaryPolicy, or FILE:NAME when it has several; "default" is the
    /// policy of a release that names none.
    policy: String,
    /// Requests a second of the route.
    #[arg(long, value_name = "N", value_parser = between(1e-6..=1e6))]
    rps: f64,
    /// Stable's share of failed requests.
    #[arg(long, default_value_t = Assumptions::default().error_rate, value_parser = share)]
    error_rate: f64,
    /// Stable's share of failed checks, and of bad counts from Prometheus.
    #[arg(long, default_value_t = Assumptions::default().check_failures, value_parser = share)]
    check_failures: f64,
    /// The standard deviation of the cost of a request, over its mean: of what the length of
    /// the input does not explain, where that is known.
    #[arg(long, default_value_t = Assumptions::default().cost_variation, value_parser = between(1e-6..=1e6))]
    cost_variation: f64,
    /// Stable's mean score.
    #[arg(long, default_value_t = Assumptions::default().score, value_parser = share)]
    score: f64,
    /// The standard deviation of a score; thumbs at 80 % have 0.4.
    #[arg(long, default_value_t = Assumptions::default().score_deviation, value_parser = between(1e-6..=1.0))]
    score_deviation: f64,
    /// The share of requests that get a score.
    #[arg(long, default_value_t = Assumptions::default().feedback, value_parser = share)]
    feedback: f64,
    /// How many requests of one user tell as much as one of different users: what messages
    /// say as "requests of one user count 1/N". It grows when users send more: see --users.
    #[arg(long, default_value_t = Assumptions::default().design_effect, value_parser = between(1e-3..=1e6))]
    design_effect: f64,
    /// How many users there are. When some send much more than others, the square of the sum
    /// of their requests over the sum of the squares.
    #[arg(long, value_name = "N", value_parser = between(1.0..=1e12))]
    users: Option<f64>,
    /// How alike the requests of one user are, 0 to 1 (with --users).
    #[arg(long, default_value_t = Assumptions::default().intraclass_correlation, value_parser = share)]
    intraclass_correlation: f64,
}

impl Setup {
    fn assumptions(&self) -> Assumptions {
        Assumptions {
            error_rate: self.error_rate,
            check_failures: self.check_failures,
            cost_variation: self.cost_variation,
            score: self.score,
            score_deviation: self.score_deviation,
            feedback: self.feedback,
            design_effect: self.design_effect,
            users: self.users.unwrap_or(f64::INFINITY),
            intraclass_correlation: self.intraclass_correlation,
        }
    }

    fn load(&self) -> anyhow::Result<Loaded> {
        if self.policy == "default" {
            return Ok(Loaded { policy: resolve::careful(), without_data: vec![] });
        }
        let (file, name) = match self.policy.rsplit_once(':') {
            Some((file, name)) if !PathBuf::from(&self.policy).exists() => (file, Some(name)),
            _ => (self.policy.as_str(), None),
        };
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("{file} can not be read: name a file with a CanaryPolicy"))?;
        let objects = manifest::parse(&text).with_context(|| file.to_owned())?;
        let mut policies: Vec<(String, CanaryPolicySpec)> = objects
            .iter()
            .filter_map(|object| match object {
                Object::Policy(p) => Some((p.metadata.name.clone()?, p.spec.clone())),
                _ => None,
            })
            .filter(|(found, _)| name.is_none_or(|name| found == name))
            .collect();
        let names: Vec<&str> = policies.iter().map(|(n, _)| n.as_str()).collect();
        ensure!(
            !policies.is_empty(),
            "{file} has no CanaryPolicy{}",
            name.map(|n| format!(" named {n}")).unwrap_or_default()
        );
        if policies.len() > 1 {
            bail!(
                "{file} has several policies, choose one: {file}:{}",
                names.join(&format!(", {file}:"))
            );
        }
        let policy = policies.remove(0).1;
        let backends: Vec<(&str, &LLMDeploymentSpec)> = objects
            .iter()
            .filter_map(|object| match object {
                Object::Backend(b) => Some((b.metadata.name.as_deref()?, &b.spec)),
                _ => None,
            })
            .collect();
        let without_data = resolve::without_data(&policy, &backends, None);
        Ok(Loaded { policy, without_data })
    }
}

/// A policy, and which of its metrics can have no data with the backends of its file.
struct Loaded {
    policy: CanaryPolicySpec,
    without_data: Vec<WithoutData>,
}
