//! `serinus migrate`: what moves every release from one model to another, as manifests for
//! people to read, keep in git and apply. Nothing here writes to the cluster: a release that
//! names another LLMDeployment starts an ordinary canary, and its policy decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use kube::ResourceExt;
use serde_json::{Map, Value, json};

use super::{
    models::{Read, read, uses},
    output::complete,
    process::{install_tls, say},
    releases::Scope,
};
use crate::{
    api::{
        LLMDeployment, LLMDeploymentSpec, PromptRelease, llm_deployment::Limits,
        prompt_release::Phase,
    },
    cost::Prices,
};

/// The longest name that an LLMDeployment may have.
const LONGEST_NAME: usize = 52;
/// Annotations that begin so are not for a manifest: what `kubectl apply` keeps, and requests.
const NOT_KEPT: [&str; 2] = ["kubectl.kubernetes.io/", "serinus.dev/"];

/// From which model to which other.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    at: Scope,
    /// The model that ends, as spec.model of LLMDeployments has it.
    #[arg(long, value_name = "MODEL")]
    from: String,
    /// The model to move to, at the same address.
    #[arg(long, value_name = "MODEL")]
    to: String,
    /// A folder to write a file for each object into. Default: all to standard output.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// All that has to be applied.
#[derive(Debug, Default)]
struct Migration {
    /// What a person has to know before.
    notes: Vec<String>,
    /// In the order in which they are applied.
    documents: Vec<Document>,
    /// Commands: how to follow the canaries, and what to delete at the end.
    follow: Vec<String>,
    clean_up: Vec<String>,
}

/// A manifest with its comments.
#[derive(Debug)]
struct Document {
    file: String,
    comments: Vec<String>,
    manifest: Value,
}

/// Writes the manifests.
///
/// # Errors
/// The cluster can not be asked, nothing uses the model, or names are taken.
pub async fn run(options: Options) -> anyhow::Result<()> {
    install_tls();
    let Read { backends, releases, unread } = read(&options.at).await?;
    let migration = migration(&options.from, &options.to, &backends, &releases)
        .map_err(|why| anyhow::anyhow!(why))?;
    match &options.out {
        None => print!("{}", migration.text(&options)?),
        Some(folder) => migration.write(&options, folder)?,
    }
    complete(&unread)
}

impl Migration {
    fn head(&self, Options { from, to, .. }: &Options, apply: &str) -> String {
        let mut lines = vec![
            format!("From the model {from} to {to}. Nothing is applied yet. Read this, and then:"),
            format!("  {apply}"),
            "Each PromptRelease below then starts an ordinary canary with its own policy. Where \
             your manifests come from git, change them there instead. To follow:"
                .to_owned(),
        ];
        lines.extend(self.follow.iter().map(|command| format!("  {command}")));
        lines.push(format!("When all of them serve {to}, and no rollback is wanted any more:"));
        lines.extend(self.clean_up.iter().map(|command| format!("  {command}")));
        lines.extend(self.notes.iter().cloned());
        comments(&lines)
    }

    fn text(&self, options: &Options) -> anyhow::Result<String> {
        let mut text = self.head(options, "kubectl apply -f FILE");
        for document in &self.documents {
            write!(text, "---\n{}", document.text()?)?;
        }
        Ok(text)
    }

    fn write(&self, options: &Options, folder: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
        for document in &self.documents {
            let path = folder.join(&document.file);
            ensure!(
                !path.exists(),
                "{} exists: name a folder with --out in which nothing is overwritten",
                path.display()
            );
        }
        for document in &self.documents {
            let path = folder.join(&document.file);
            std::fs::write(&path, document.text()?)
                .with_context(|| format!("{} can not be written", path.display()))?;
            println!("{}", path.display());
        }
        say(self.head(options, &format!("kubectl apply -f {}", folder.display())).trim_end());
        Ok(())
    }
}

impl Document {
    fn text(&self) -> anyhow::Result<String> {
        let yaml = serde_yaml_ng::to_string(&self.manifest)?;
        Ok(format!("{}{yaml}", comments(&self.comments)))
    }
}

fn comments(lines: &[String]) -> String {
    // A name of a model may be any text, and a line break would end the comment.
    let line = |line: &String| {
        format!("# {}", crate::api::conditions::printable(line)).trim_end().to_owned() + "\n"
    };
    lines.iter().map(line).collect()
}

/// What moves all that uses the model `from` to the model `to`.
fn migration(
    from: &str,
    to: &str,
    backends: &[LLMDeployment],
    releases: &[PromptRelease],
) -> Result<Migration, String> {
    if from == to {
        return Err("--from and --to are the same model".to_owned());
    }
    let ending: Vec<&LLMDeployment> =
        backends.iter().filter(|backend| backend.spec.model == from).collect();
    if ending.is_empty() {
        let known: BTreeSet<&str> = backends.iter().map(|b| b.spec.model.as_str()).collect();
        let known: Vec<&str> = known.into_iter().collect();
        return Err(match known.as_slice() {
            [] => "there are no LLMDeployments here: name another namespace with -n, or use -A"
                .to_owned(),
            known => {
                format!("no LLMDeployment has the model {from}; they have {}", known.join(", "))
            }
        });
    }
    let mut migration = Migration::default();
    // From namespace and name to namespace and name.
    let mut moved = BTreeMap::<(String, String), (String, String)>::new();
    let mut used = false;
    for old in &ending {
        let (namespace, name) = place(*old);
        let users: Vec<&PromptRelease> = releases
            .iter()
            .filter(|r| r.namespace().as_ref() == Some(&namespace) && !uses(r, &name).is_empty())
            .collect();
        used |= !users.is_empty();
        migration.clean_up.push(format!("kubectl delete llmdeployment {name} -n {namespace}"));
        if !users.iter().any(|release| names(release, &name)) {
            let all = users.iter().map(|r| r.name_any()).collect::<Vec<_>>().join(", ");
            migration.notes.push(match all.as_str() {
                "" => format!("{namespace}/{name} is used by no PromptRelease: it is left as it is."),
                all => format!("{namespace}/{name} is served, and named by no spec any more: {all} moves already."),
            });
            continue;
        }
        let new = new_name(&name, from, to);
        if moved.values().any(|other| *other == (namespace.clone(), new.clone())) {
            return Err(format!(
                "two LLMDeployments of the namespace {namespace} would become {new}: move one of them by hand"
            ));
        }
        let copy = moved_to(&old.spec, from, to);
        let there = backends.iter().find(|b| place(*b) == (namespace.clone(), new.clone()));
        match there {
            Some(there) if there.spec.identity() == copy.spec.identity() => {
                migration
                    .notes
                    .push(format!("{namespace}/{new} exists already, and is used as it is."));
            }
            Some(_) => {
                return Err(format!(
                    "LLMDeployment {namespace}/{new} exists and is not {name} with the model {to}: \
                     delete it, or name it in spec.backendRef by hand"
                ));
            }
            None => migration.documents.push(Document {
                file: format!("10-llmdeployment-{namespace}-{new}.yaml"),
                comments: copy.comments,
                manifest: backend_manifest(old, &new, &copy.spec)?,
            }),
        }
        moved.insert((namespace, name), (old.namespace().unwrap_or_default(), new));
    }
    if !used {
        return Err(format!(
            "no PromptRelease uses the model {from}, so nothing has to move; its LLMDeployments \
             can be deleted"
        ));
    }
    for release in releases {
        let (namespace, name) = place(release);
        let to = |backend: &str| {
            let (_, new) = moved.get(&(namespace.clone(), backend.to_owned()))?;
            Some(new.clone())
        };
        if let Some(document) = moved_release(release, to)? {
            migration.follow.push(format!("serinus watch {name} -n {namespace}"));
            migration.documents.push(document);
        }
    }
    Ok(migration)
}

fn place<K: kube::Resource>(object: &K) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Whether the spec of a release names an LLMDeployment.
fn names(release: &PromptRelease, backend: &str) -> bool {
    let spec = &release.spec;
    spec.backend_ref.name == backend
        || spec.fallback_backend_refs.iter().any(|other| other.name == backend)
}

struct Moved {
    spec: LLMDeploymentSpec,
    comments: Vec<String>,
}

/// The backend with another model, and what a person has to look at.
fn moved_to(old: &LLMDeploymentSpec, from: &str, to: &str) -> Moved {
    let mut spec = LLMDeploymentSpec { model: to.to_owned(), retires_on: None, ..old.clone() };
    let mut comments = vec![];
    if let Some(endpoint) = &mut spec.endpoint {
        let parts: Vec<&str> =
            endpoint.url.split('/').map(|part| if part == from { to } else { part }).collect();
        let url = parts.join("/");
        if url == endpoint.url {
            comments.push(format!("The server at spec.endpoint.url has to have the model {to}."));
        } else {
            comments
                .push(format!("spec.endpoint.url had {from} in its path: is it right with {to}?"));
            endpoint.url = url;
        }
    }
    if spec.service.is_some() {
        comments.push(format!("The Service of spec.service has to serve the model {to}."));
    }
    if let Some(serving) = &mut spec.serving {
        let before = serving.args.clone();
        let ends = |arg: &str| arg == from || arg.ends_with(&format!("={from}"));
        for arg in serving.args.iter_mut().filter(|arg| ends(arg)) {
            arg.truncate(arg.len() - from.len());
            arg.push_str(to);
        }
        comments.push(match before == serving.args {
            true => format!(
                "No argument of the model server is {from}: which one has to be changed for {to}?"
            ),
            false => {
                "A second model server runs beside the first until that one is deleted.".to_owned()
            }
        });
    }
    if spec.pricing.as_ref().is_some_and(|pricing| pricing.gpu_hour.is_none()) {
        spec.pricing = None;
        comments.push(format!("spec.pricing was that of {from}, and is left out."));
    }
    if Prices::of(&spec) == Prices::Unknown {
        comments.push(format!(
            "The price of {to} is not known: set spec.pricing. Without it no cost is counted, and \
             a policy with costPerRequest starts no canary (MetricWithoutData)."
        ));
    }
    Moved { spec, comments }
}

/// The name with the model's name in it replaced, or else with the new one behind it.
fn new_name(old: &str, from: &str, to: &str) -> String {
    let (from, to) = (as_name(from), as_name(to));
    let name = match old.contains(&from) && !from.is_empty() {
        true => old.replacen(&from, &to, 1),
        false => format!("{old}-{to}"),
    };
    let end = name.len().min(LONGEST_NAME);
    name[..end].trim_end_matches(['-', '.']).to_owned()
}

fn as_name(model: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = model.chars().map(letter).collect();
    name.trim_matches('-').to_owned()
}

fn backend_manifest(
    old: &LLMDeployment,
    name: &str,
    spec: &LLMDeploymentSpec,
) -> Result<Value, String> {
    let mut spec = serde_json::to_value(spec).map_err(|e| e.to_string())?;
    if serde_json::to_value(Limits::default()).is_ok_and(|default| spec["limits"] == default)
        && let Some(fields) = spec.as_object_mut()
    {
        fields.shift_remove("limits");
    }
    // Labels and annotations may be those by which a tool knows what it has made.
    let metadata = json!({"name": name, "namespace": old.namespace().unwrap_or_default()});
    Ok(manifest("LLMDeployment", metadata, spec))
}

/// The release on the backends that `to` knows for those that it names; none if it names none.
fn moved_release(
    release: &PromptRelease,
    to: impl Fn(&str) -> Option<String>,
) -> Result<Option<Document>, String> {
    let (namespace, name) = place(release);
    let mut spec = release.spec.clone();
    let mut comments = vec![];
    let is_served = to(&spec.backend_ref.name);
    if let Some(new) = &is_served {
        comments
            .push(format!("From LLMDeployment {} to {new}, by a canary.", spec.backend_ref.name));
        spec.backend_ref.name.clone_from(new);
        if spec.suspend {
            comments.push("spec.suspend is true: no canary starts before it is false.".to_owned());
        }
        let status = release.status.clone().unwrap_or_default();
        if let Some(stable) = status.stable.filter(|_| status.phase == Phase::RolledBack)
            && stable.prompt != spec.prompt_ref.name
        {
            comments.push(format!(
                "The prompt {} was rolled back, and {} serves: name that one in spec.promptRef, or \
                 both changes are one canary.",
                spec.prompt_ref.name, stable.prompt
            ));
        }
        if release.status.as_ref().is_some_and(|status| status.canary.is_some()) {
            comments.push(
                "A canary runs or bakes now: wait for it, or it ends without a verdict.".to_owned(),
            );
        }
    }
    let mut falls_back = false;
    for other in &mut spec.fallback_backend_refs {
        if let Some(new) = to(&other.name) {
            falls_back = true;
            other.name = new;
        }
    }
    if falls_back {
        comments.push("spec.fallbackBackendRefs counts at once, and not by a canary.".to_owned());
        let mut seen = BTreeSet::new();
        spec.fallback_backend_refs.retain(|other| seen.insert(other.name.clone()));
    }
    if is_served.is_none() && !falls_back {
        return Ok(None);
    }
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), name.as_str().into());
    metadata.insert("namespace".to_owned(), namespace.as_str().into());
    if !release.labels().is_empty() {
        metadata.insert("labels".to_owned(), json!(release.labels()));
    }
    let is_kept = |key: &str| !NOT_KEPT.iter().any(|prefix| key.starts_with(prefix));
    let annotations: BTreeMap<_, _> =
        release.annotations().iter().filter(|(key, _)| is_kept(key)).collect();
    if !annotations.is_empty() {
        metadata.insert("annotations".to_owned(), json!(annotations));
    }
    let mut spec = serde_json::to_value(&spec).map_err(|e| e.to_string())?;
    if spec["suspend"] == json!(false)
        && let Some(fields) = spec.as_object_mut()
    {
        fields.shift_remove("suspend");
    }
    Ok(Some(Document {
        file: format!("20-promptrelease-{namespace}-{name}.yaml"),
        comments,
        manifest: manifest("PromptRelease", metadata.into(), spec),
    }))
}

fn manifest(kind: &str, metadata: Value, spec: Value) -> Value {
    json!({"apiVersion": "serinus.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec})
}

#[cfg(test)]
mod tests;
