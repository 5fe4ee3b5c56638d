//! Whose keys reach a namespace's own releases only, and which teams they may name.
//!
//! A team is who pays, what price reports and metrics are cut by, and with whom cached
//! answers are shared. A Secret of a tenant's namespace is written by the tenant, so what
//! teams it may name is said by who runs the gateway, in the same flag that permits keys of
//! the namespace at all: no right is needed to read it, and a tenant can not change it.

use std::str::FromStr;

use super::KeyError;
use crate::api::conditions::truncate;

/// A namespace whose keys count for its own releases.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tenant {
    /// The namespace.
    pub namespace: String,
    /// The teams that its keys may name, at least one; the first is that of a key that
    /// names none.
    teams: Vec<String>,
}

/// Why a text names no tenant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TenantError {
    /// There is no namespace before the `=`.
    #[error("a namespace is missing: write NAMESPACE, or NAMESPACE=TEAM+TEAM")]
    NoNamespace,
    /// There is an `=` and a team is missing after it.
    #[error(
        "a team of the namespace {0} is missing: write {0}=TEAM+TEAM, or {0} alone for the team of that name"
    )]
    NoTeam(String),
}

/// `NAMESPACE` for the team of that name, or `NAMESPACE=TEAM+TEAM` for these and no others.
impl FromStr for Tenant {
    type Err = TenantError;

    fn from_str(text: &str) -> Result<Self, TenantError> {
        let (namespace, teams) = text.split_once('=').unwrap_or((text, text));
        let namespace = namespace.trim().to_owned();
        if namespace.is_empty() {
            return Err(TenantError::NoNamespace);
        }
        let teams: Vec<String> = teams.split('+').map(|team| team.trim().to_owned()).collect();
        if teams.iter().any(String::is_empty) {
            return Err(TenantError::NoTeam(namespace));
        }
        Ok(Self { namespace, teams })
    }
}

impl Tenant {
    /// The team of a key that names this one, or none.
    ///
    /// # Errors
    /// A key of this namespace may not name it.
    pub(super) fn team(&self, named: &str) -> Result<String, KeyError> {
        let mut teams = self.teams.iter();
        let found = if named.is_empty() { teams.next() } else { teams.find(|team| *team == named) };
        found.cloned().ok_or_else(|| KeyError::Team {
            named: truncate(named, 64),
            namespace: self.namespace.clone(),
            permitted: self.teams.join(", "),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn team(tenant: &str, named: &str) -> Option<String> {
        tenant.parse::<Tenant>().unwrap().team(named).ok()
    }

    #[test]
    fn a_tenants_keys_name_its_own_team_unless_others_are_permitted() {
        assert_eq!(team("shop", "").as_deref(), Some("shop"));
        assert_eq!(team("shop", "shop").as_deref(), Some("shop"));
        for other in ["search", "Shop", "shop2", "shop+search", "*", "shop,search"] {
            assert_eq!(team("shop", other), None, "{other}");
        }
        assert_eq!(team("shop=web+api", "").as_deref(), Some("web"), "the first");
        assert_eq!(team("shop=web+api", "api").as_deref(), Some("api"));
        assert_eq!(team("shop = web + api", "api").as_deref(), Some("api"));
        assert_eq!(team("shop=web+api", "shop"), None, "what is listed is all");
        assert_eq!(team("shop=shop+api", "shop").as_deref(), Some("shop"));
    }

    #[test]
    fn a_team_that_may_not_be_named_is_told_with_what_to_do_and_not_at_full_length() {
        let tenant: Tenant = "shop=web+api".parse().unwrap();
        let long = format!("search\n{}", "x".repeat(100_000));
        let told = tenant.team(&long).unwrap_err().to_string();
        assert!(told.len() < 500 && !told.contains('\n'), "{told}");
        let told = tenant.team("search").unwrap_err().to_string();
        for words in ["\"search\"", "web, api", "--tenant-key-namespaces", "shop="] {
            assert!(told.contains(words), "{told}");
        }
    }

    #[test]
    fn a_tenant_without_a_namespace_or_with_half_a_list_is_refused() {
        for (text, expected) in [
            ("", TenantError::NoNamespace),
            ("=web", TenantError::NoNamespace),
            ("shop=", TenantError::NoTeam("shop".to_owned())),
            ("shop=web+", TenantError::NoTeam("shop".to_owned())),
            ("shop=+web", TenantError::NoTeam("shop".to_owned())),
        ] {
            assert_eq!(text.parse::<Tenant>(), Err(expected), "{text:?}");
        }
    }
}
