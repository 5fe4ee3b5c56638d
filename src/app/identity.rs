//! The flags that say who may ask.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use anyhow::Context;
use kube::Client;
use tokio::task::JoinSet;

use super::clock;
use crate::{
    api::keys::GATEWAY_AUDIENCE,
    gateway::{
        identity::{
            Identities, Rule, Tenant, TokenFile, Verifier,
            discovery::{OidcIssuer, follow_cluster, follow_issuer},
            follow_client_keys,
        },
        notices::Notices,
    },
};

/// How applications are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ClientAuth {
    /// By client keys, and by tokens where they are configured.
    Keys,
    /// Not at all: whoever reaches the address may use every route.
    Off,
}

/// Who may use which routes.
#[derive(clap::Args)]
#[group(id = "clients")]
pub struct Options {
    /// How applications are known.
    #[arg(long, value_enum, default_value = "keys")]
    client_auth: ClientAuth,
    /// Also take tokens of this OpenID Connect issuer, named as in their claim iss.
    #[arg(long, requires = "oidc_audience", value_name = "URL")]
    oidc_issuer: Option<String>,
    /// The audience that a token must be for.
    #[arg(long, requires = "oidc_issuer", value_name = "AUDIENCE")]
    oidc_audience: Option<String>,
    /// The claim that names the team. Default: the subject is the team.
    #[arg(long, requires = "oidc_issuer", value_name = "CLAIM")]
    oidc_team_claim: Option<String>,
    /// The claim that lists the routes: a list, or one text with commas; * at the end of
    /// a name stands for anything.
    #[arg(long, requires = "oidc_issuer", value_name = "CLAIM")]
    oidc_routes_claim: Option<String>,
    /// Routes for every token of the issuer, as for a client key: "support-*, sales".
    #[arg(long, requires = "oidc_issuer", default_value = "", value_name = "ROUTES")]
    oidc_routes: String,
    /// Authorities of the issuer's certificate beside the machine's, PEM.
    #[arg(long, requires = "oidc_issuer", value_name = "FILE")]
    oidc_ca: Option<PathBuf>,
}

impl Options {
    fn is_off(&self) -> bool {
        self.client_auth == ClientAuth::Off
    }

    /// Who may ask, and in `tasks` what keeps that up to date.
    ///
    /// # Errors
    /// The issuer can not be used as it is configured.
    pub fn build(
        &self,
        mut verifiers: Vec<Arc<Verifier>>,
        tasks: &mut JoinSet<()>,
    ) -> anyhow::Result<Identities> {
        if self.is_off() {
            anyhow::ensure!(
                self.oidc_issuer.is_none() && verifiers.is_empty(),
                "--client-auth=off asks nobody for a token: leave out the flags about tokens"
            );
            tracing::warn!("--client-auth=off: whoever reaches this gateway may use every route");
            return Ok(Identities::off());
        }
        if let Some((issuer, audience)) = self.oidc_issuer.as_ref().zip(self.oidc_audience.clone())
        {
            anyhow::ensure!(
                self.oidc_routes_claim.is_some() || !self.oidc_routes.is_empty(),
                "--oidc-issuer needs --oidc-routes-claim or --oidc-routes: without them no token permits a route"
            );
            super::process::install_tls();
            let ca = self.oidc_ca.as_ref().map(std::fs::read).transpose().context("--oidc-ca")?;
            let issuer = OidcIssuer::new(issuer, ca.as_deref()).context("--oidc-issuer")?;
            let rule = Rule::Claims {
                team: self.oidc_team_claim.clone(),
                routes: self.oidc_routes_claim.clone(),
                everybody: self.oidc_routes.clone(),
            };
            let verifier = Verifier::new(audience, rule, clock::now);
            tasks.spawn(follow_issuer(verifier.clone(), issuer));
            verifiers.push(verifier);
        }
        Ok(Identities::new(verifiers))
    }
}

/// Who is known by the cluster.
#[derive(clap::Args)]
#[group(id = "cluster_identity")]
pub struct ClusterOptions {
    /// The namespace of the client keys (Secrets labelled serinus.dev/client-key=true)
    /// that may permit every route.
    #[arg(long, env = "POD_NAMESPACE", default_value = "serinus-system", value_name = "NAMESPACE")]
    client_key_namespace: String,
    /// Namespaces whose client keys permit routes of their own releases only, each with the
    /// teams that its keys may name, of which the first is that of a key that names none:
    /// shop,search=web+api. Without teams its keys are of the team with the namespace's name.
    #[arg(long, value_delimiter = ',', value_name = "NAMESPACE[=TEAM+TEAM]")]
    tenant_key_namespaces: Vec<Tenant>,
    /// Also take tokens of service accounts: they permit the routes of the releases in
    /// their namespace.
    #[arg(long)]
    service_account_tokens: bool,
    /// The audience that tokens of service accounts must be for.
    #[arg(long, default_value = GATEWAY_AUDIENCE, value_name = "AUDIENCE")]
    token_audience: String,
}

/// With what people may look at the admin address, beside metrics.
#[derive(clap::Args)]
#[group(id = "people")]
pub struct People {
    /// A file of tokens, one a line, of which one must be shown to read the report of the
    /// admin address and examples of answers that were not understood. Without it nobody may;
    /// metrics are open. It may change at any time.
    #[arg(long, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
}

impl People {
    /// The tokens, and in `tasks` what keeps them up to date.
    ///
    /// # Errors
    /// The file can not be read, or has no token.
    pub fn build(&self, tasks: &mut JoinSet<()>) -> anyhow::Result<Option<Arc<TokenFile>>> {
        let Some(path) = &self.admin_token_file else { return Ok(None) };
        let file = TokenFile::open(path.clone()).context("--admin-token-file")?;
        tasks.spawn(file.clone().follow());
        Ok(Some(file))
    }
}

impl ClusterOptions {
    /// Each namespace once: of two lists of teams nobody knows which one counts.
    fn tenants(&self) -> anyhow::Result<Vec<Tenant>> {
        let mut seen = BTreeSet::from([&self.client_key_namespace]);
        for Tenant { namespace, .. } in &self.tenant_key_namespaces {
            anyhow::ensure!(
                seen.insert(namespace),
                "--tenant-key-namespaces: {namespace} is there twice, or is the gateways' own \
                 namespace (--client-key-namespace), whose keys may name every team: name it once"
            );
        }
        Ok(self.tenant_key_namespaces.clone())
    }

    /// Which applications may ask, and in `tasks` what keeps that up to date.
    ///
    /// # Errors
    /// Something can not be used as it is configured.
    pub fn build(
        &self,
        clients: &Options,
        client: &Client,
        notices: &Arc<Notices>,
        tasks: &mut JoinSet<()>,
    ) -> anyhow::Result<Identities> {
        let mut verifiers = vec![];
        if self.service_account_tokens {
            let audience = self.token_audience.clone();
            let cluster = Verifier::new(audience, Rule::ServiceAccounts, clock::now);
            tasks.spawn(follow_cluster(cluster.clone(), client.clone()));
            verifiers.push(cluster);
        }
        let identities = clients.build(verifiers, tasks)?;
        if !identities.is_off() {
            let tenants = self.tenants()?;
            let (own, client) = (self.client_key_namespace.clone(), client.clone());
            let told = (identities.clone(), notices.clone());
            tasks.spawn(follow_client_keys(told, client, own, tenants));
        }
        Ok(identities)
    }
}
