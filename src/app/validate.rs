//! `serinus validate`: what the API server and the operator would refuse, known before either is
//! asked. Schema and rules are those of the definitions; templates and schemas of prompts are
//! compiled as they are for a release.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use serde::Serialize;

use crate::{
    analysis::plan::undecidable,
    api::{
        PromptRelease,
        manifest::{self, ManifestError, Object},
    },
    app::output::Output,
    prompt::check,
    rollout::resolve::prompt_that_fits,
};

/// The group of our kinds.
const GROUP: &str = "serinus.dev/";
/// A manifest of standalone mode is not larger.
const LARGEST: u64 = 2 << 20;

/// What to check.
#[derive(clap::Args)]
pub struct Options {
    /// Files, folders (their *.yaml, *.yml and *.json) or - for the standard input.
    #[arg(short = 'f', long = "filename", required = true, num_args = 1.., value_name = "FILE")]
    files: Vec<PathBuf>,
    /// For people or for programs.
    #[arg(short, long, default_value = "text")]
    output: Output,
}

/// What was found out about one document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    file: String,
    /// Counted from 1.
    document: usize,
    /// Kind, and namespace and name; empty when the document does not say.
    object: String,
    valid: bool,
    /// Of no kind of ours: not checked.
    left_out: bool,
    /// What is wrong and what to do.
    problem: Option<String>,
    /// What is no error, and may be meant.
    warnings: Vec<String>,
}

/// Checks files; answers whether all that was found is valid.
///
/// # Errors
/// A file can not be read, or there is nothing to check.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let mut findings = vec![];
    let mut objects = BTreeMap::new();
    for (name, bytes) in contents(&options.files)? {
        let documents = manifest::each(&bytes);
        ensure!(!documents.is_empty(), "{name} is empty: there is nothing to check");
        for (document, read) in documents {
            findings.push(finding(&name, document, read, &mut objects));
        }
    }
    warn_of_references(&mut findings, &objects);
    let bad = findings.iter().filter(|finding| !finding.valid && !finding.left_out).count();
    match options.output.document(&findings)? {
        Some(document) => print!("{document}"),
        None => print!("{}", text(&findings)),
    }
    Ok(bad == 0)
}

/// What each file holds, by its name.
fn contents(files: &[PathBuf]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut all = vec![];
    for file in files {
        if file == Path::new("-") {
            let mut bytes = vec![];
            std::io::stdin().read_to_end(&mut bytes).context("the standard input")?;
            all.push(("the standard input".to_owned(), bytes));
        } else if file.is_dir() {
            let inside = fs::read_dir(file).with_context(|| file.display().to_string())?;
            let mut inside: Vec<PathBuf> =
                inside.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
            inside.retain(|path| {
                let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
                path.is_file() && ["yaml", "yml", "json"].iter().any(|known| ending == *known)
            });
            inside.sort();
            ensure!(!inside.is_empty(), "{} has no *.yaml, *.yml or *.json", file.display());
            for path in inside {
                all.push((path.display().to_string(), read(&path)?));
            }
        } else {
            all.push((file.display().to_string(), read(file)?));
        }
    }
    Ok(all)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let named = || format!("{} can not be read", path.display());
    let size = fs::metadata(path).with_context(named)?.len();
    ensure!(
        size <= LARGEST,
        "{} has {size} bytes, and a manifest at most {LARGEST}",
        path.display()
    );
    fs::read(path).with_context(named)
}

/// Objects by what identifies them, each with the file that has it.
type Objects = BTreeMap<(&'static str, String, String), (String, Object)>;

fn finding(
    file: &str,
    document: usize,
    read: Result<Object, ManifestError>,
    objects: &mut Objects,
) -> Finding {
    let mut finding = Finding {
        file: file.to_owned(),
        document,
        object: String::new(),
        valid: false,
        left_out: false,
        problem: None,
        warnings: vec![],
    };
    let object = match read {
        Err(ManifestError::Kind { api_version, kind }) if is_of_others(&api_version) => {
            finding.left_out = true;
            finding.object = format!("{api_version} {kind}");
            return finding;
        }
        Err(error) => {
            finding.problem = Some(error.to_string());
            return finding;
        }
        Ok(object) => object,
    };
    let metadata = object.metadata();
    let namespace = metadata.namespace.clone().unwrap_or_default();
    let name = metadata.name.clone().unwrap_or_default();
    let place = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
    finding.object = format!("{} {place}{name}", object.kind());
    finding.problem = match &object {
        Object::Prompt(prompt) => {
            let checked = check(&prompt.spec).map_err(|error| error.to_string());
            checked.and_then(|()| prompt_that_fits(&prompt.spec)).err()
        }
        Object::Policy(policy) => {
            let why = undecidable(&policy.spec);
            finding.warnings.extend(why.map(|why| format!("hardly decides: {why}")));
            None
        }
        _ => None,
    };
    let id = (object.kind(), namespace, name);
    if let Some((other, _)) = objects.get(&id) {
        let problem = format!("{other} defines it, too: only one of them can be what is meant");
        finding.problem.get_or_insert(problem);
    }
    objects.insert(id, (file.to_owned(), object));
    finding.valid = finding.problem.is_none();
    finding
}

/// Whether a document is of a kind that others read: a Namespace beside a release. One that says
/// nothing is not.
fn is_of_others(api_version: &str) -> bool {
    !api_version.is_empty() && !api_version.starts_with(GROUP)
}

/// A release whose prompt is in no file may be mistyped, or its prompt may be in the cluster.
fn warn_of_references(findings: &mut [Finding], objects: &Objects) {
    for ((kind, namespace, name), (file, object)) in objects {
        let Object::Release(release) = object else { continue };
        let missing: Vec<String> = references(release)
            .filter(|(kind, name)| {
                !objects.contains_key(&(*kind, namespace.clone(), (*name).to_owned()))
            })
            .map(|(kind, name)| format!("{kind} {name}"))
            .collect();
        let place = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
        let id = format!("{kind} {place}{name}");
        let found = findings.iter_mut().find(|f| f.file == *file && f.object == id);
        if let Some(finding) = found.filter(|_| !missing.is_empty()) {
            let missing = missing.join(", ");
            finding.warnings.push(format!("in none of these files: {missing}"));
        }
    }
}

fn references(release: &PromptRelease) -> impl Iterator<Item = (&'static str, &str)> {
    let spec = &release.spec;
    let backends = [&spec.backend_ref].into_iter().chain(&spec.fallback_backend_refs);
    let backends = backends.map(|backend| ("LLMDeployment", backend.name.as_str()));
    let policy = spec.policy_ref.iter().map(|policy| ("CanaryPolicy", policy.name.as_str()));
    [("PromptVersion", spec.prompt_ref.name.as_str())].into_iter().chain(backends).chain(policy)
}

fn text(findings: &[Finding]) -> String {
    let mut out = String::new();
    for Finding { file, document, object, problem, warnings, left_out, .. } in findings {
        let place = format!("{file}, document {document}");
        match problem {
            Some(problem) if object.is_empty() => out += &format!("BAD  {place}: {problem}\n"),
            Some(problem) => out += &format!("BAD  {object} ({place}): {problem}\n"),
            None if *left_out => {}
            None => out += &format!("ok   {object}\n"),
        }
        for warning in warnings {
            out += &format!("     warning: {warning}\n");
        }
    }
    let count = |of: fn(&&Finding) -> bool| findings.iter().filter(of).count();
    let (valid, left_out) = (count(|f| f.valid), count(|f| f.left_out));
    let bad = findings.len() - valid - left_out;
    out + &format!("{valid} valid, {bad} not valid, {left_out} of other kinds were not checked\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> Vec<Finding> {
        let mut objects = BTreeMap::new();
        let mut all: Vec<Finding> = manifest::each(text.as_bytes())
            .into_iter()
            .map(|(document, read)| finding("x.yaml", document, read, &mut objects))
            .collect();
        warn_of_references(&mut all, &objects);
        all
    }

    const PROMPT: &str = "apiVersion: serinus.dev/v1alpha1\nkind: PromptVersion\n\
        metadata: {name: v1}\nspec: {prompt: support, messages: [{role: system, content: TEXT}]}\n";
    const RELEASE: &str = "apiVersion: serinus.dev/v1alpha1\nkind: PromptRelease\n\
        metadata: {name: support}\nspec: {promptRef: {name: v1}, backendRef: {name: openai}}\n";

    #[test]
    fn all_that_is_wrong_is_found_in_one_go() {
        let good = PROMPT.replace("TEXT", "hello");
        let broken = PROMPT.replace("v1}", "v2}").replace("TEXT", "'{{ open'");
        let text = [
            good.clone(),
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n".to_owned(),
            broken,
            RELEASE.to_owned(),
            RELEASE.replace("promptRef", "promtRef").replace("support", "other"),
            good,
            "apiVersion: serinus.dev/v1alpha1\nkind: PromptRelaese\nmetadata: {name: x}\n"
                .to_owned(),
            "a: [".to_owned(),
        ]
        .join("---\n");
        let found = findings(&text);
        let of = |n: usize| &found[n];
        let problem = |n: usize| of(n).problem.clone().unwrap_or_default();
        assert!(of(0).valid && of(1).left_out && of(3).valid, "{found:#?}");
        assert_eq!(of(0).object, "PromptVersion v1");
        assert!(problem(2).contains("is not a valid template"), "{found:#?}");
        assert_eq!(of(3).warnings, ["in none of these files: LLMDeployment openai"]);
        assert!(problem(4).contains("promptRef"), "{found:#?}");
        assert!(problem(5).contains("x.yaml defines it, too"), "{found:#?}");
        assert!(problem(6).contains("PromptRelaese"), "{found:#?}");
        assert!(!problem(7).is_empty() && of(7).document == 8, "{found:#?}");
        let told = super::text(&found);
        assert!(
            told.ends_with("2 valid, 5 not valid, 1 of other kinds were not checked\n"),
            "{told}"
        );
    }
}
