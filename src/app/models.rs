//! `serinus models`: which models are in use, by whom, and until when there are these models.

use std::collections::BTreeMap;

use jiff::{Timestamp, civil::Date};
use kube::{Api, ResourceExt, api::ListParams};
use serde::Serialize;

use super::{
    clock, model_dates,
    output::{Output, complete},
    process::{install_tls, say},
    releases::{Scope, unread},
    table::table,
};
use crate::{
    api::{
        LLMDeployment, PromptRelease,
        conditions::{self, types::MODEL_RETIREMENT},
        prompt_release::VariantRef,
        url::without_path,
    },
    rollout::retirement::{MODEL_GONE, days_left},
    signals::{model_dates::ModelDates, tried},
};

/// What to list.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    at: Scope,
    #[command(flatten)]
    dates: model_dates::Options,
    /// For people or for programs.
    #[arg(short, long, default_value = "text")]
    output: Output,
}

/// One model at one address.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Model {
    model: String,
    provider: String,
    address: String,
    /// The day on which the model ends, if it is known.
    until: Option<Date>,
    /// 0 on that day, and less after it.
    days_left: Option<i32>,
    /// Gateways report that the server has no such model.
    gone: bool,
    /// By `namespace/name`.
    deployments: Vec<String>,
    releases: Vec<User>,
}

/// A release that uses a model.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
struct User {
    /// `namespace/name`.
    release: String,
    /// `stable`, `canary`, `previous`, `named` (in its spec, and not served yet), `fallback`.
    uses: Vec<&'static str>,
}

/// Lists the models.
///
/// # Errors
/// The cluster can not be asked.
pub async fn run(options: Options) -> anyhow::Result<()> {
    install_tls();
    let dates = options.dates.build()?;
    let Read { backends, releases, unread } = read(&options.at).await?;
    let models = models(&backends, &releases, &dates, clock::now());
    match options.output.document(&models)? {
        Some(document) => print!("{document}"),
        None if models.is_empty() => say("no LLMDeployments found"),
        None => print!("{}", text(&models, options.at.all_namespaces)),
    }
    complete(&unread)
}

/// What models and who uses them are read from.
pub(super) struct Read {
    pub backends: Vec<LLMDeployment>,
    pub releases: Vec<PromptRelease>,
    /// A line for each object that can not be read.
    pub unread: Vec<String>,
}

/// The LLMDeployments and PromptReleases of a namespace, or of all.
///
/// # Errors
/// The cluster can not be asked.
pub(super) async fn read(at: &Scope) -> anyhow::Result<Read> {
    let client = at.client().await?;
    let (backends, releases): (Api<LLMDeployment>, Api<PromptRelease>) =
        (at.api(&client), at.api(&client));
    let everything = ListParams::default();
    let backends = tried::list(&client, &backends, &everything).await;
    let backends = backends.map_err(|error| unread("LLMDeployments", error))?;
    let releases = tried::list(&client, &releases, &everything).await;
    let releases = releases.map_err(|error| unread("PromptReleases", error))?;
    Ok(Read {
        backends: backends.objects,
        releases: releases.objects,
        unread: [backends.unread, releases.unread].concat(),
    })
}

/// What a release uses an LLMDeployment of its namespace for.
pub(super) fn uses(release: &PromptRelease, backend: &str) -> Vec<&'static str> {
    let status = release.status.clone().unwrap_or_default();
    let is =
        |variant: Option<&VariantRef>| variant.is_some_and(|variant| variant.backend == backend);
    let canary = status.canary.as_ref().map(|canary| &canary.variant);
    let serves = [
        ("stable", is(status.stable.as_ref())),
        ("canary", is(canary)),
        ("previous", is(status.previous.as_ref())),
    ];
    let mut uses: Vec<_> = serves.into_iter().filter(|(_, so)| *so).map(|(use_, _)| use_).collect();
    if release.spec.backend_ref.name == backend && uses.is_empty() {
        uses.push("named");
    }
    if release.spec.fallback_backend_refs.iter().any(|other| other.name == backend) {
        uses.push("fallback");
    }
    uses
}

/// The models of `backends`, those that end first at the beginning.
fn models(
    backends: &[LLMDeployment],
    releases: &[PromptRelease],
    dates: &ModelDates,
    now: Timestamp,
) -> Vec<Model> {
    let mut all = BTreeMap::<_, Model>::new();
    for backend in backends {
        let (namespace, name) = (backend.namespace().unwrap_or_default(), backend.name_any());
        let spec = &backend.spec;
        // The path of an address may hold a token.
        let address = without_path(&spec.base_url(&name, &namespace)).to_string();
        let key = (spec.model.clone(), spec.provider.clone(), address.clone());
        let model = all.entry(key).or_insert_with(|| Model {
            model: spec.model.clone(),
            provider: spec.provider.clone(),
            address,
            until: None,
            days_left: None,
            gone: false,
            deployments: vec![],
            releases: vec![],
        });
        let status = backend.status.clone().unwrap_or_default();
        // Without an operator only what a person has written is known.
        let known = spec.retires_on.or(status.retirement.as_ref().map(|known| known.date));
        let date = known.or_else(|| dates.of(&spec.provider, &spec.model));
        model.until = model.until.into_iter().chain(date).min();
        let retirement = conditions::find(&status.conditions, MODEL_RETIREMENT);
        model.gone |= retirement.is_some_and(|condition| condition.reason == MODEL_GONE);
        model.deployments.push(format!("{namespace}/{name}"));
        for release in releases.iter().filter(|r| r.namespace().as_ref() == Some(&namespace)) {
            let uses = uses(release, &name);
            if !uses.is_empty() {
                let release = format!("{namespace}/{}", release.name_any());
                model.releases.push(User { release, uses });
            }
        }
    }
    let mut models: Vec<Model> = all.into_values().collect();
    for model in &mut models {
        model.days_left = model.until.map(|date| days_left(date, now));
        model.releases.sort();
    }
    models.sort_by_key(|model| (!model.gone, model.until.is_none(), model.until));
    models
}

fn text(models: &[Model], all_namespaces: bool) -> String {
    let head = ["MODEL", "PROVIDER", "ADDRESS", "UNTIL", "DAYS", "LLMDEPLOYMENTS", "RELEASES"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let short = |name: &str| match name.split_once('/') {
        Some((_, name)) if !all_namespaces => name.to_owned(),
        _ => name.to_owned(),
    };
    let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    for model in models {
        let until = model.until.map(|date| date.to_string());
        let days = match model.days_left {
            Some(days) if days <= 0 => "ended".to_owned(),
            Some(days) => days.to_string(),
            None => String::new(),
        };
        let users: Vec<String> = model
            .releases
            .iter()
            .map(|user| format!("{} ({})", short(&user.release), user.uses.join(", ")))
            .collect();
        let deployments: Vec<String> = model.deployments.iter().map(|name| short(name)).collect();
        rows.push(vec![
            model.model.clone(),
            model.provider.clone(),
            model.address.clone(),
            or_none(until.unwrap_or_default()),
            if model.gone { "gone".to_owned() } else { or_none(days) },
            deployments.join(", "),
            or_none(users.join(", ")),
        ]);
    }
    table(&rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn backend(name: &str, model: &str, until: Option<&str>, reason: &str) -> LLMDeployment {
        let condition = json!({"type": MODEL_RETIREMENT, "status": "True", "reason": reason,
            "message": "", "lastTransitionTime": "2026-11-29T00:00:00Z"});
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"provider": "openai", "model": model,
                "endpoint": {"url": "https://api.example.com/v1/token-in-path"}},
            "status": {"conditions": [condition],
                "retirement": until.map(|date| json!({"date": date, "source": "Server"}))},
        }))
        .unwrap()
    }

    fn release(name: &str, spec: &str, status: serde_json::Value) -> PromptRelease {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"promptRef": {"name": "p"}, "backendRef": {"name": spec},
                "fallbackBackendRefs": [{"name": "spare"}]},
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn the_model_that_ends_first_is_the_first_with_all_who_use_it() {
        let variant = |backend: &str| json!({"revision": "1", "prompt": "p", "backend": backend});
        let backends = [
            backend("never", "m-0", None, ""),
            backend("a", "gpt-4o", Some("2027-01-14"), "RetiresWithin60Days"),
            backend("b", "gpt-4o", None, ""),
            backend("o3", "o3", Some("2026-11-29"), "Retired"),
            backend("spare", "spare", None, MODEL_GONE),
        ];
        let releases = [
            release(
                "faq",
                "a",
                json!({"phase": "Baking", "stable": variant("a"), "previous": variant("o3")}),
            ),
            release("new", "b", json!(null)),
        ];
        let now = "2026-11-29T12:00:00Z".parse().unwrap();
        let text = text(&models(&backends, &releases, &ModelDates::default(), now), false);
        let expected = "\
MODEL   PROVIDER  ADDRESS                  UNTIL       DAYS   LLMDEPLOYMENTS  RELEASES
spare   openai    https://api.example.com  -           gone   spare           faq (fallback), new (fallback)
o3      openai    https://api.example.com  2026-11-29  ended  o3              faq (previous)
gpt-4o  openai    https://api.example.com  2027-01-14  46     a, b            faq (stable), new (named)
m-0     openai    https://api.example.com  -           -      never           -
";
        assert_eq!(text, expected);
    }
}
