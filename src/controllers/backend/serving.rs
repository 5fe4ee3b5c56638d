//! A model server of our own as a Deployment and a Service. Building can not fail.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec},
        core::v1::{
            Capabilities, Container, ContainerPort, HTTPGetAction, PodSpec, PodTemplateSpec, Probe,
            SeccompProfile, SecurityContext, Service, ServicePort, ServiceSpec,
        },
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, OwnerReference},
        util::intstr::IntOrString,
    },
};
use kube::{Resource, ResourceExt, api::ObjectMeta};

use crate::api::{
    LLMDeployment, PromptRelease, PromptReleaseStatus, conditions::Readiness, keys,
    llm_deployment::Serving,
};

/// The name of the container's port.
const PORT: &str = "http";
/// A model of many gigabytes may take this long to load: 60 min in steps of 10 s.
const STARTUP_ATTEMPTS: i32 = 360;

fn labels(backend: &LLMDeployment) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "serinus-backend".to_owned()),
        ("app.kubernetes.io/managed-by".to_owned(), keys::FIELD_MANAGER.to_owned()),
        (keys::BACKEND_LABEL.to_owned(), backend.name_any()),
    ])
}

/// Of the releases that use a backend so many own its objects: all that is needed is one
/// that lives, and the objects stay small.
const MOST_OWNERS: usize = 64;

/// Who owns the Deployment and the Service: the garbage collector deletes them when none of
/// these exists any more.
pub(super) fn owners(
    backend: Option<&LLMDeployment>,
    users: &[Arc<PromptRelease>],
) -> Vec<OwnerReference> {
    // Blocking a deletion would need a permission on the finalizers of the owners.
    let unblocking = |owner: OwnerReference| OwnerReference { block_owner_deletion: None, ..owner };
    let mut users: Vec<&Arc<PromptRelease>> = users.iter().filter(|user| owns(user)).collect();
    // The oldest, so that those that come and go change nothing.
    users.sort_by_key(|user| (user.creation_timestamp(), user.name_any()));
    let users = users.iter().take(MOST_OWNERS).filter_map(|user| user.owner_ref(&()));
    let backend = backend.and_then(|backend| backend.controller_owner_ref(&()));
    backend.into_iter().chain(users).map(unblocking).collect()
}

/// Whether a release needs its model servers. One that is being deleted serves users until it is
/// gone; in a foreground deletion its objects go first, and what it would own with them.
fn owns(release: &PromptRelease) -> bool {
    let foreground = || release.finalizers().iter().any(|f| f == "foregroundDeletion");
    let serves = || release.status.as_ref().is_some_and(PromptReleaseStatus::routes);
    release.metadata.deletion_timestamp.is_none() || (serves() && !foreground())
}

fn metadata(backend: &LLMDeployment, owners: &[OwnerReference]) -> ObjectMeta {
    ObjectMeta {
        name: Some(backend.name_any()),
        namespace: backend.namespace(),
        labels: Some(labels(backend)),
        owner_references: Some(owners.to_vec()),
        ..ObjectMeta::default()
    }
}

fn selector(backend: &LLMDeployment) -> BTreeMap<String, String> {
    BTreeMap::from([(keys::BACKEND_LABEL.to_owned(), backend.name_any())])
}

/// The Service in front of the model server.
pub(super) fn service(
    backend: &LLMDeployment,
    spec: &Serving,
    owners: &[OwnerReference],
) -> Service {
    Service {
        metadata: metadata(backend, owners),
        spec: Some(ServiceSpec {
            selector: Some(selector(backend)),
            ports: Some(vec![ServicePort {
                name: Some(PORT.to_owned()),
                port: spec.port,
                target_port: Some(IntOrString::String(PORT.to_owned())),
                protocol: Some("TCP".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// The model server's pods.
pub(super) fn deployment(
    backend: &LLMDeployment,
    spec: &Serving,
    owners: &[OwnerReference],
) -> Deployment {
    Deployment {
        metadata: metadata(backend, owners),
        spec: DeploymentSpec {
            replicas: Some(spec.replicas),
            selector: LabelSelector {
                match_labels: Some(selector(backend)),
                ..LabelSelector::default()
            },
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels(backend)),
                    ..ObjectMeta::default()
                }),
                spec: Some(PodSpec {
                    automount_service_account_token: Some(false),
                    containers: vec![container(spec)],
                    ..PodSpec::default()
                }),
            },
            ..DeploymentSpec::default()
        },
        status: None,
    }
}

fn container(spec: &Serving) -> Container {
    let health = |period, failures| Probe {
        http_get: Some(HTTPGetAction {
            path: Some(spec.health_path.clone()),
            port: IntOrString::String(PORT.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        failure_threshold: Some(failures),
        timeout_seconds: Some(5),
        ..Probe::default()
    };
    Container {
        name: "model".to_owned(),
        image: Some(spec.image.clone()),
        args: (!spec.args.is_empty()).then(|| spec.args.clone()),
        ports: Some(vec![ContainerPort {
            name: Some(PORT.to_owned()),
            container_port: spec.port,
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        resources: spec.resources.clone(),
        readiness_probe: Some(health(5, 2)),
        startup_probe: Some(health(10, STARTUP_ATTEMPTS)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                ..SeccompProfile::default()
            }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

/// What the Deployment's state means for releases.
pub(super) fn readiness(
    deployment: &Deployment,
    spec: &Serving,
) -> (Readiness, &'static str, String) {
    let status = deployment.status.clone().unwrap_or_default();
    let ready = status.ready_replicas.unwrap_or(0);
    let wanted = spec.replicas;
    let current = status.observed_generation >= deployment.metadata.generation;
    match () {
        () if wanted == 0 => {
            (Readiness::NotReady, "ScaledToZero", "spec.serving.replicas is 0".to_owned())
        }
        () if ready > 0 && current => {
            (Readiness::Ready, "PodsReady", format!("{ready} of {wanted} pods are ready"))
        }
        () => {
            let why = status
                .conditions
                .iter()
                .flatten()
                .find(|c| {
                    c.type_.as_deref() == Some("ReplicaFailure")
                        && c.status.as_deref() == Some("True")
                })
                .and_then(|c| c.message.clone())
                .unwrap_or_default();
            let message = format!("{ready} of {wanted} pods are ready{}{why}", sep(&why));
            (Readiness::InProgress, "PodsNotReady", message)
        }
    }
}

fn sep(why: &str) -> &'static str {
    if why.is_empty() { "" } else { ": " }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::DeploymentStatus;

    use super::*;

    fn backend(replicas: i32) -> (LLMDeployment, Serving) {
        let serving = Serving {
            image: "vllm/vllm-openai:v0.11".into(),
            args: vec!["--model=m".into()],
            replicas,
            port: 8000,
            health_path: "/health".into(),
            resources: None,
        };
        let mut backend = LLMDeployment::new("m", crate::api::LLMDeploymentSpec::default());
        backend.metadata.namespace = Some("ns".into());
        backend.metadata.uid = Some("u".into());
        (backend, serving)
    }

    #[test]
    fn the_service_finds_the_pods_of_the_deployment() {
        let (backend, spec) = backend(2);
        let owners = owners(Some(&backend), &[]);
        let service = service(&backend, &spec, &owners);
        let deployment = deployment(&backend, &spec, &owners);
        let pods = deployment.spec.template.metadata.unwrap().labels.unwrap();
        let wanted = service.spec.unwrap().selector.unwrap();
        assert!(wanted.iter().all(|(k, v)| pods.get(k) == Some(v)));
        let owners = deployment.metadata.owner_references.unwrap();
        assert_eq!((owners[0].uid.as_str(), owners[0].controller), ("u", Some(true)));
    }

    #[test]
    fn the_oldest_releases_own_a_model_server_so_that_it_outlives_its_backend() {
        let (backend, _) = backend(1);
        let user = |name: &str, second| {
            let mut release = PromptRelease::new(name, Default::default());
            let at = k8s_openapi::jiff::Timestamp::from_second(second).unwrap();
            release.metadata.creation_timestamp =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at));
            release.metadata.uid = Some(format!("uid-{name}"));
            Arc::new(release)
        };
        let mut gone = user("gone", 1);
        Arc::make_mut(&mut gone).metadata.deletion_timestamp =
            gone.metadata.creation_timestamp.clone();
        let mut users: Vec<_> = (0..100).rev().map(|i| user(&format!("r{i:02}"), 10 + i)).collect();
        users.push(gone.clone());
        let owners = owners(Some(&backend), &users);
        assert_eq!(owners.len(), 1 + MOST_OWNERS);
        assert_eq!((owners[0].uid.as_str(), owners[0].controller), ("u", Some(true)));
        assert_eq!((owners[1].uid.as_str(), owners[1].controller), ("uid-r00", None));
        assert!(owners.iter().all(|owner| owner.block_owner_deletion.is_none()));
        assert!(super::owners(None, &[]).is_empty());
        // It serves users until it is gone, also without its backend.
        let serves = |finalizer: &str| {
            let mut held = PromptRelease::clone(&gone);
            held.metadata.finalizers = Some(vec![finalizer.to_owned()]);
            held.status = serde_json::from_value(serde_json::json!({
                "phase": "Progressing",
                "routing": {"generation": 1, "variants": [
                    {"revision": "1", "role": "stable", "weight": 100},
                ]},
            }))
            .unwrap();
            super::owners(None, &[Arc::new(held)]).len()
        };
        assert_eq!((serves("example.com/hold"), serves("foregroundDeletion")), (1, 0));
    }

    #[test]
    fn one_ready_pod_is_enough_and_an_old_observation_is_not() {
        let (backend, spec) = backend(2);
        let mut deployment = deployment(&backend, &spec, &[]);
        deployment.metadata.generation = Some(2);
        let status = |observed, ready| {
            Some(DeploymentStatus {
                observed_generation: Some(observed),
                ready_replicas: Some(ready),
                ..DeploymentStatus::default()
            })
        };
        deployment.status = status(2, 1);
        assert_eq!(readiness(&deployment, &spec).0, Readiness::Ready);
        deployment.status = status(1, 1);
        assert_eq!(readiness(&deployment, &spec).0, Readiness::InProgress);
        deployment.status = None;
        assert_eq!(readiness(&deployment, &spec).1, "PodsNotReady");
    }
}
