//! What operators and gateways may do in a cluster: the roles in `deploy/` are the table in
//! `docs/security.md`, which says for each right what it is for, and nothing reaches further.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when something is wrong")]

use std::{collections::BTreeSet, fs, path::Path};

use serde::Deserialize;
use serde_json::Value;

/// The roles of processes; those of people are in another file.
const FILES: [&str; 2] = ["rbac-operator", "rbac-gateway"];

/// Kinds that a role of the whole cluster may name beside those of `serinus.dev`, with what it
/// may do to them at most. Secrets and pods are not among them, nor is a kind in which others
/// keep what they do not want to be read or replaced.
const ELSEWHERE: [(&str, &str, &[&str]); 4] = [
    ("apps", "deployments", &["get", "list", "watch"]),
    ("", "services", &["get"]),
    ("events.k8s.io", "events", &["create", "patch"]),
    ("discovery.k8s.io", "endpointslices", &["get", "list", "watch"]),
];

/// One verb on one kind, and whose.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    role: String,
    group: String,
    /// With the names of the objects, where it is about some only.
    resource: String,
    verb: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    api_groups: Vec<String>,
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
    verbs: Vec<String>,
}

fn text(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

fn manifests() -> Vec<Value> {
    let documents = FILES.iter().flat_map(|file| {
        let text = text(&format!("deploy/{file}.yaml"));
        let all = serde_yaml_ng::Deserializer::from_str(&text);
        all.map(|document| Value::deserialize(document).unwrap()).collect::<Vec<_>>()
    });
    documents.collect()
}

fn rights(manifest: &Value) -> Vec<Right> {
    let role = manifest["metadata"]["name"].as_str().unwrap();
    let rules: Vec<Rule> = serde_json::from_value(manifest["rules"].clone()).unwrap();
    let mut rights = vec![];
    for rule in rules {
        let names = rule.resource_names.join(", ");
        for (group, resource) in
            rule.api_groups.iter().flat_map(|g| rule.resources.iter().map(move |r| (g, r)))
        {
            let resource = match names.as_str() {
                "" => resource.clone(),
                names => format!("{resource} {names}"),
            };
            rights.extend(rule.verbs.iter().map(|verb| Right {
                role: role.to_owned(),
                group: group.clone(),
                resource: resource.clone(),
                verb: verb.clone(),
            }));
        }
    }
    rights
}

fn roles() -> Vec<Value> {
    let roles = manifests().into_iter();
    let roles: Vec<Value> = roles.filter(|manifest| manifest["rules"].is_array()).collect();
    assert!(roles.len() > 4, "the roles are read");
    roles
}

/// The rows of the table of rights: role, group, kinds, verbs, what for.
fn documented() -> BTreeSet<Right> {
    let security = text("docs/security.md");
    let table = security.split("\n## Rights\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut all = BTreeSet::new();
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let plain = row.replace('`', "");
        let cells: Vec<&str> = plain.trim_matches('|').split('|').map(str::trim).collect();
        let [role, group, resources, verbs, what_for] = cells[..] else { panic!("{row}") };
        assert!(what_for.len() > 10, "what for: {row}");
        for (resource, verb) in
            resources.split(", ").flat_map(|r| verbs.split(", ").map(move |verb| (r, verb)))
        {
            let group = if group == "core" { "" } else { group };
            all.insert(Right {
                role: role.to_owned(),
                group: group.to_owned(),
                resource: resource.to_owned(),
                verb: verb.to_owned(),
            });
        }
    }
    all
}

#[test]
fn every_right_is_in_the_table_with_what_it_is_for() {
    let granted: BTreeSet<Right> = roles().iter().flat_map(rights).collect();
    let documented = documented();
    let only = |a: &BTreeSet<Right>, b: &BTreeSet<Right>| {
        a.difference(b).map(|right| format!("{right:?}")).collect::<Vec<_>>()
    };
    assert_eq!(only(&granted, &documented), Vec::<String>::new(), "granted, not in the table");
    assert_eq!(only(&documented, &granted), Vec::<String>::new(), "in the table, not granted");
}

#[test]
fn a_role_of_the_whole_cluster_names_our_kinds_and_a_few_that_are_harmless() {
    let manifests = manifests();
    let bound = |manifest: &&Value| manifest["kind"] == "ClusterRoleBinding";
    let bound: Vec<&str> = manifests
        .iter()
        .filter(bound)
        .map(|binding| binding["roleRef"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(bound, ["serinus-operator", "serinus-gateway"]);
    for role in roles().iter().filter(|role| role["kind"] == "ClusterRole") {
        let rights = rights(role);
        assert!(rights.iter().all(|r| !format!("{r:?}").contains('*')), "{rights:?}");
        if !bound.contains(&role["metadata"]["name"].as_str().unwrap()) {
            continue;
        }
        for right in rights {
            let elsewhere = ELSEWHERE
                .iter()
                .find(|(group, kind, _)| (*group, *kind) == (&right.group, &right.resource));
            let harmless = elsewhere.is_some_and(|(_, _, verbs)| verbs.contains(&&*right.verb));
            assert!(right.group == "serinus.dev" || harmless, "{right:?}");
            let writes = !["get", "list", "watch"].contains(&&*right.verb);
            assert!(right.role == "serinus-operator" || !writes, "a gateway writes: {right:?}");
        }
    }
}

#[test]
fn a_right_to_secrets_is_bound_in_a_namespace_only() {
    // By kind and name: a role of the cluster and one of a namespace may have one name.
    let of_secrets: Vec<([Value; 2], Vec<Right>)> = roles()
        .iter()
        .map(|role| {
            let rights = rights(role).into_iter().filter(|r| r.resource.starts_with("secrets"));
            ([role["kind"].clone(), role["metadata"]["name"].clone()], rights.collect())
        })
        .filter(|(_, rights): &(_, Vec<Right>)| !rights.is_empty())
        .collect();
    assert_eq!(of_secrets.len(), 4, "{of_secrets:?}");
    for manifest in manifests() {
        let named = ["kind", "name"].map(|field| manifest["roleRef"][field].clone());
        if of_secrets.iter().any(|(role, _)| *role == named) {
            assert_eq!(manifest["kind"], "RoleBinding", "{named:?}");
            assert_eq!(manifest["metadata"]["namespace"], "serinus-system", "{named:?}");
        }
    }
    let writes = of_secrets.iter().flat_map(|(_, rights)| rights);
    for right in writes.filter(|right| !["get", "list", "watch"].contains(&&*right.verb)) {
        assert_eq!(right.resource, "secrets serinus-request-ids", "{right:?}");
    }
}

#[test]
fn whoever_may_edit_a_namespace_writes_no_snapshot() {
    let users = text("deploy/rbac-users.yaml");
    let edit = serde_yaml_ng::Deserializer::from_str(&users)
        .map(|document| Value::deserialize(document).unwrap())
        .find(|manifest| manifest["metadata"]["name"] == "serinus-edit")
        .unwrap();
    let edit = rights(&edit);
    assert!(edit.iter().any(|right| right.resource == "promptreleases"));
    for right in edit {
        assert!(!["*", "releasesnapshots"].contains(&&*right.resource), "{right:?}");
    }
}
