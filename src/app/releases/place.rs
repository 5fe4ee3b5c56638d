//! Where the releases are: in a cluster, or in a folder that `serinus standalone` runs.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, anyhow, bail};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use k8s_openapi::{NamespaceResourceScope, api::authentication::v1::SelfSubjectReview};
use kube::{
    Api, Client, Config, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
    config::KubeConfigOptions,
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;

use crate::{
    api::PromptRelease,
    app::standalone::View,
    rollout::snapshot::Action,
    signals::{
        cause::innermost,
        tried::{self, Tried},
        watch::readable,
    },
};

/// How often a folder's state is read again.
const LOOK: Duration = Duration::from_millis(500);

/// Which cluster and namespace.
#[derive(clap::Args)]
struct Place {
    /// The namespace. Default: the one of the kubeconfig's context.
    #[arg(short, long)]
    namespace: Option<String>,
    /// The context of the kubeconfig. Default: the current one.
    #[arg(long)]
    context: Option<String>,
}

impl Place {
    /// A client of that cluster.
    ///
    /// # Errors
    /// There is none, and what to do.
    async fn client(&self) -> anyhow::Result<Client> {
        let advice = "no cluster to talk to: set KUBECONFIG or --context";
        let config = match &self.context {
            None => Config::infer()
                .await
                .map_err(|error| anyhow!("{advice} ({})", innermost(&error)))?,
            Some(_) => {
                let options = KubeConfigOptions {
                    context: self.context.clone(),
                    ..KubeConfigOptions::default()
                };
                Config::from_kubeconfig(&options)
                    .await
                    .map_err(|error| anyhow!("{advice} ({})", innermost(&error)))?
            }
        };
        Ok(Client::try_from(config)?)
    }

    /// The objects of a kind in that namespace.
    fn api<K>(&self, client: Client) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::default_namespaced(client),
        }
    }
}

/// One namespace of a cluster, or all.
#[derive(clap::Args)]
pub struct Scope {
    #[command(flatten)]
    at: Place,
    /// In all namespaces.
    #[arg(short = 'A', long)]
    pub(in crate::app) all_namespaces: bool,
}

impl Scope {
    /// A client of that cluster.
    ///
    /// # Errors
    /// There is none, and what to do.
    pub(in crate::app) async fn client(&self) -> anyhow::Result<Client> {
        self.at.client().await
    }

    /// The objects of a kind there.
    pub(in crate::app) fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match self.all_namespaces {
            true => Api::all(client.clone()),
            false => self.at.api(client.clone()),
        }
    }
}

/// A cluster, or a folder.
#[derive(clap::Args)]
pub struct Where {
    #[command(flatten)]
    cluster: Place,
    /// The folder that `serinus standalone` runs, named as it was started with it, instead of a
    /// cluster.
    #[arg(long, value_name = "DIR", conflicts_with = "context")]
    folder: Option<PathBuf>,
    /// The state file of that process, when it was started with --state.
    #[arg(long, value_name = "FILE", requires = "folder")]
    state: Option<PathBuf>,
}

/// Why objects of a kind can not be read. A cluster without our definitions answers a bare 404.
pub(in crate::app) fn unread(kind: &str, error: kube::Error) -> anyhow::Error {
    match &error {
        kube::Error::Api(status) if status.code == 404 => anyhow!(
            "this cluster does not know {kind}: Serinus is not installed in it (docs/install.md), \
             or --context names another cluster"
        ),
        _ => anyhow::Error::new(error).context(format!("the {kind} can not be read")),
    }
}

/// Where releases are read, and asked for things.
pub(super) enum Source {
    Cluster { client: Client, api: Box<Api<PromptRelease>>, namespace: String },
    Folder { view: View, namespace: Option<String> },
}

impl Where {
    pub(super) async fn source(&self) -> anyhow::Result<Source> {
        if let Some(folder) = &self.folder {
            let view = View::of(folder, self.state.as_deref())?;
            return Ok(Source::Folder { view, namespace: self.cluster.namespace.clone() });
        }
        let client = self.cluster.client().await?;
        let api = Box::new(self.cluster.api(client.clone()));
        let namespace = self.cluster.namespace.clone();
        let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
        Ok(Source::Cluster { client, api, namespace })
    }

    /// What a command that is printed for people has to name, as `--folder DIR `.
    pub(super) fn in_words(&self) -> String {
        let Place { namespace, context } = &self.cluster;
        let folder = self.folder.as_ref().map(|folder| folder.display().to_string());
        let state = self.state.as_ref().map(|state| state.display().to_string());
        let all = [
            ("folder", &folder),
            ("state", &state),
            ("context", context),
            ("namespace", namespace),
        ];
        let named = all.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        named.map(|(name, value)| format!("--{name} {value} ")).collect()
    }
}

impl Source {
    /// Every release of the namespace, or of all, and a line for each that can not be read.
    pub(super) async fn list(
        &self,
        all: bool,
    ) -> anyhow::Result<(Vec<PromptRelease>, Vec<String>)> {
        match self {
            Self::Cluster { client, api, .. } => {
                let everywhere = all.then(|| Api::<PromptRelease>::all(client.clone()));
                let api = everywhere.as_ref().unwrap_or(&**api);
                let list = tried::list(client, api, &ListParams::default()).await;
                let list = list.map_err(|error| unread("PromptReleases", error))?;
                Ok((list.objects, list.unread))
            }
            Self::Folder { view, namespace } => {
                let mut releases = view.releases()?;
                releases.retain(|release| {
                    all || namespace.is_none() || release.metadata.namespace == *namespace
                });
                Ok((releases, Vec::new()))
            }
        }
    }

    /// Where a command looks, as ` in the namespace shop`; empty for everywhere.
    pub(super) fn within(&self, all: bool) -> String {
        let namespace = match self {
            Self::Cluster { namespace, .. } => Some(namespace),
            Self::Folder { namespace, .. } => namespace.as_ref(),
        };
        let namespace = namespace.filter(|_| !all);
        namespace.map_or_else(String::new, |name| format!(" in the namespace {name}"))
    }

    pub(super) async fn one(&self, name: &str) -> anyhow::Result<PromptRelease> {
        match self {
            Self::Cluster { client, namespace, .. } => {
                let api: Api<Tried<PromptRelease>> = Api::namespaced(client.clone(), namespace);
                let found = api.get_opt(name).await;
                match found.map_err(|error| unread("PromptReleases", error))? {
                    Some(Tried::Read(release)) => Ok(release),
                    Some(Tried::Unread { why, .. }) => bail!(
                        "PromptRelease {namespace}/{name} can not be read: {why}. Mend it with \
                         kubectl, or upgrade this program"
                    ),
                    None => bail!(
                        "there is no PromptRelease {name}{}: `serinus get -A` lists all",
                        self.within(false)
                    ),
                }
            }
            Self::Folder { .. } => {
                let (mut found, _) = self.list(false).await?;
                found.retain(|release| release.name_any() == name);
                if found.len() > 1 {
                    bail!(
                        "{} namespaces have a PromptRelease {name}: name one with -n",
                        found.len()
                    );
                }
                found.pop().with_context(|| {
                    format!(
                        "there is no PromptRelease {name}: `serinus get --folder DIR` lists all"
                    )
                })
            }
        }
    }

    /// A release at each change, beginning with what it is now.
    pub(super) fn changes(
        &self,
        name: &str,
    ) -> impl Stream<Item = anyhow::Result<PromptRelease>> + '_ {
        match self {
            Self::Cluster { client, namespace, .. } => {
                let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
                let changes = readable(client, Some(namespace), config).applied_objects();
                changes.map_err(Into::into).boxed()
            }
            Self::Folder { .. } => {
                let (name, ticks) = (name.to_owned(), tokio::time::interval(LOOK));
                stream::unfold(ticks, move |mut ticks| {
                    let name = name.clone();
                    async move {
                        ticks.tick().await;
                        Some((self.one(&name).await, ticks))
                    }
                })
                .boxed()
            }
        }
    }

    /// Who asks: in a cluster as the API server knows them.
    pub(super) async fn whoami(&self) -> anyhow::Result<String> {
        let name = match self {
            Self::Cluster { client, .. } => {
                let api: Api<SelfSubjectReview> = Api::all(client.clone());
                let review = api
                    .create(&PostParams::default(), &SelfSubjectReview::default())
                    .await
                    .context("the API server does not tell who you are")?;
                review.status.and_then(|s| s.user_info).and_then(|u| u.username)
            }
            Self::Folder { .. } => ["SUDO_USER", "USER", "LOGNAME"]
                .iter()
                .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty())),
        };
        // The value is split at spaces.
        Ok(name.unwrap_or_else(|| "unknown".to_owned()).replace(char::is_whitespace, "_"))
    }

    /// Puts a request on the release.
    pub(super) async fn ask(
        &self,
        release: &PromptRelease,
        action: Action,
        value: &str,
    ) -> anyhow::Result<()> {
        match self {
            Self::Cluster { api, .. } => {
                let patch = json!({"metadata": {"annotations": {(action.annotation()): value}}});
                api.patch(&release.name_any(), &PatchParams::default(), &Patch::Merge(patch))
                    .await
                    .context("the request could not be written")?;
                Ok(())
            }
            Self::Folder { view, .. } => view.ask(release, action, value),
        }
    }

    /// Why nobody answers, as far as that is known.
    pub(super) fn unanswered(&self) -> &'static str {
        match self {
            Self::Cluster { .. } => "no operator has answered",
            Self::Folder { view, .. } if !view.is_running() => {
                "no `serinus standalone` runs on this folder now, so nobody has answered"
            }
            Self::Folder { .. } => "`serinus standalone` has not answered",
        }
    }
}
