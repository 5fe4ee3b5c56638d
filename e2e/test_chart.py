"""The Helm chart: what it renders, what the API server says to it, and an installation's whole life."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time

import pytest
import yaml

from harness import audit
from harness import manifests as m
from harness.chart import CHART, NAMESPACE, TOOLS, Nodes, helm, pods, rendered, values_file
from harness.cluster import ROOT, Cluster
from harness.processes import wait_for
from harness.serinus import BIN, Gateway, Model, Operator
from harness.traffic import Traffic

# What there is to choose, each at least once away from its default.
COMBINATIONS = {
    "defaults": {},
    "model servers": {"serving": {"enabled": True, "namespaces": ["shop", "search"]},
                      "apiKeys": {"namespaces": ["shop"]},
                      "tenantKeys": {"shop": [], "search": ["web", "api"]}},
    "one namespace": {"watchNamespace": "shop", "crds": {"enabled": False}, "userRoles": {"create": False},
                      "serving": {"enabled": True, "namespaces": ["shop"]}, "apiKeys": {"namespaces": ["shop"]},
                      "tenantKeys": {"shop": ["web"]}},
    "one namespace with rules": {
        "watchNamespace": "shop", "crds": {"enabled": False}, "admission": {
            "actions": ["Warn"], "approvals": {"enabled": True}, "routes": {"enabled": True}, "secrets": {"enabled": True}}},
    "its own namespace": {"watchNamespace": NAMESPACE, "crds": {"enabled": False},
                          "userRoles": {"create": False}, "apiKeys": {"namespaces": [NAMESPACE]}},
    "the least": {"userRoles": {"create": False}, "crds": {"keep": False}, "image": {"tag": "edge"}, **{
        part: {"replicas": 1, "podDisruptionBudget": {"enabled": False}, "networkPolicy": {"enabled": False},
               "resources": {"requests": {"cpu": 1}, "limits": {"memory": "1Gi"}}, **more}
        for part, more in (("operator", {}), ("gateway", {"clientAuth": "off", "graceSeconds": 0, "drainSeconds": 600}))}},
    "everything": {
        "image": {"repository": "registry.example/serinus", "digest": f"sha256:{'0' * 64}", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "registry"}], "fullnameOverride": "prompts", "commonLabels": {"owner": "search"},
        "serving": {"enabled": True},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}, "disabled": ["SerinusCostUnknown"],
                           "runbookUrl": "https://wiki.example/serinus/"},
        "dashboards": {"enabled": True, "labels": {"grafana_dashboard": "1", "team": "search"},
                       "annotations": {"grafana_folder": "Serinus"}},
        "admission": {"actions": ["Deny", "Audit"], "approvals": {"enabled": True, "requests": ["approve", "abort"]},
                      "routes": {"enabled": True}, "secrets": {"enabled": True}},
        "operator": {"prometheus": {"url": "http://prometheus.monitoring:9090",
                                    "token": {"secretName": "prometheus", "key": "bearer"}}},
        "gateway": {"autoscaling": {
                        "enabled": True, "minReplicas": 3, "maxReplicas": 30, "metrics": [{"type": "Resource", "resource": {
                            "name": "memory", "target": {"type": "AverageValue", "averageValue": "300Mi"}}}],
                        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 600}}},
                    "service": {"port": 443, "annotations": {"a": "b"}},
                    "tls": {"secretName": "tls", "clientCa": True}, "adminTokens": {"secretName": "people", "key": "list"},
                    "cache": {"redisUrl": {"secretName": "redis", "key": "address"}}}}}
for part in ("operator", "gateway"):
    COMBINATIONS["everything"][part] |= {
        "extraArgs": ["--allow-upstream=169.254.10.0/24"], "serviceAccount": {"annotations": {"a": "b"}},
        "podDisruptionBudget": {"maxUnavailable": "50%"}, "podMonitor": {
            "enabled": True, "interval": "15s", "labels": {"release": "prometheus"}},
        "networkPolicy": {"metricsFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "egress": [{"ports": [{"port": 443}]}]},
        "podLabels": {"a": "b"}, "podAnnotations": {"a": "b"}, "extraEnv": [{"name": "RUST_LOG", "value": "warn"}],
        "extraVolumes": [{"name": "scratch", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "scratch", "mountPath": "/scratch"}], "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "a", "operator": "Exists"}], "priorityClassName": "system-cluster-critical",
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname"}}]}},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
                                       "whenUnsatisfiable": "DoNotSchedule"}]}
COMBINATIONS["everything"]["gateway"]["networkPolicy"]["from"] = [{"namespaceSelector": {}}]
EVERY = pytest.mark.parametrize("values", COMBINATIONS.values(), ids=COMBINATIONS.keys())


# What is rendered; no cluster is needed.


def kinds(objects: list[dict], *wanted: str) -> list[dict]:
    return [o for o in objects if o["kind"] in wanted]


def containers(objects: list[dict]) -> dict[str, dict]:
    return {c["name"]: c for o in kinds(objects, "Deployment") for c in o["spec"]["template"]["spec"]["containers"]}


def by_name(objects: list[dict]) -> dict[tuple, dict]:
    found = {(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]): o for o in objects}
    assert len(found) == len(objects), "an object is there twice"
    return found


def render(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / "charts/render.py"), *arguments], capture_output=True, text=True,
                          env={**os.environ, "HELM": str(TOOLS / "helm")})


def test_deploy_and_the_table_of_values_are_what_the_chart_renders():
    checked = render("--check")
    assert checked.returncode == 0, checked.stderr


def test_the_one_file_manifest_has_what_kustomize_builds():
    built = subprocess.run([f"{os.environ['SERINUS_E2E_TOOLS']}/kubectl", "kustomize", str(ROOT / "deploy")],
                           capture_output=True, text=True, check=True)
    def plain(text: str) -> dict:
        found = by_name([o for o in yaml.safe_load_all(text) if o])
        for kind, _, name in found:
            if kind == "CustomResourceDefinition":
                found[kind, None, name]["metadata"].pop("labels", None)
        return found
    assert plain(render("--one-file").stdout) == plain(built.stdout)


@EVERY
def test_lint_finds_nothing(tmp_path, values):
    text = helm("lint", "--strict", str(CHART), f"--namespace={NAMESPACE}", values_file(tmp_path, values), folder=tmp_path)
    assert "1 chart(s) linted, 0 chart(s) failed" in text
    assert "WARNING" not in text and "ERROR" not in text, text


@EVERY
def test_the_binary_knows_every_argument(tmp_path, values):
    objects = rendered(tmp_path, values)
    for name, container in containers(objects).items():
        arguments = container["args"]
        assert arguments[0] == name
        for extra, known in (([], True), (["--no-such-flag"], False)):
            # It says what it does not know before it gives the help.
            done = subprocess.run([BIN, *arguments, *extra, "--help"], capture_output=True, text=True)
            assert (done.returncode == 0) == known, done.stderr


@EVERY
def test_pods_are_restricted_and_their_files_are_mounted(tmp_path, values):
    objects = rendered(tmp_path, values)
    for deployment in kinds(objects, "Deployment"):
        spec = deployment["spec"]["template"]["spec"]
        assert spec["securityContext"] == {
            "runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
        [container] = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["requests"] and container["resources"]["limits"]
        mounted = {v["mountPath"]: v["name"] for v in container.get("volumeMounts", [])}
        assert sorted(mounted.values()) == sorted(v["name"] for v in spec.get("volumes", []))
        for argument in container["args"]:
            if file := re.search(r"=(/etc/serinus/[a-z-]+)/", argument):
                assert file[1] in mounted, argument
        selector = deployment["spec"]["selector"]["matchLabels"]
        assert selector == {"app.kubernetes.io/name": deployment["metadata"]["name"]}, "to change it is a break"
        assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


@EVERY
def test_every_object_has_the_recommended_labels_and_a_namespace_where_it_needs_one(tmp_path, values):
    of_all = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "ValidatingAdmissionPolicy",
              "ValidatingAdmissionPolicyBinding"}
    for o in by_name(rendered(tmp_path, values)).values():
        labels = o["metadata"]["labels"]
        wanted = {"app.kubernetes.io/instance": "serinus", "app.kubernetes.io/managed-by": "Helm",
                  "app.kubernetes.io/part-of": "serinus", "app.kubernetes.io/version": version()}
        assert wanted.items() <= labels.items(), o
        assert {"app.kubernetes.io/name", "helm.sh/chart"} <= labels.keys(), o
        assert ("namespace" in o["metadata"]) == (o["kind"] not in of_all), o["metadata"]


def scored(text: str) -> set[tuple[str, str]]:
    """What kube-score does not like: (the object, what it says of it)."""
    done = subprocess.run([str(TOOLS / "kube-score"), "score", "--output-format=json", "-"], input=text,
                          capture_output=True, text=True, timeout=60)
    return {(o["object_name"], comment["summary"]) for o in json.loads(done.stdout) for check in o["checks"]
            if not check["skipped"] and check["grade"] < 10 for comment in check["comments"]}


def test_what_kube_score_says_of_the_chart_is_explained(tmp_path):
    said = (CHART / "README.md").read_text().split("## What kube-score says\n")[1].split("\n## ")[0]
    explained = set(re.findall(r"^\| ([A-Z].+?) \| [A-Z].{9,} \|$", said, re.M))
    of = lambda name: scored(yaml.safe_dump_all(rendered(tmp_path, COMBINATIONS[name] | {"crds": {"enabled": False}})))
    both = {f"Deployment/apps/v1/{NAMESPACE}/serinus-{part}" for part in ("operator", "gateway")}
    expected = {(name, what) for name in both for what in explained}
    assert len(explained) == 4
    for name in ("defaults", "model servers", "one namespace"):
        assert of(name) == expected, name
    assert scored("---\n".join((ROOT / "deploy" / f"{file}.yaml").read_text() for file in ("operator", "gateway"))) == expected
    # Whoever sets what the table names is told less of it.
    assert {what for _, what in of("everything")} < explained


def test_a_spread_constraint_is_about_the_pods_of_its_deployment(tmp_path):
    constraints = [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"},
                   {"maxSkew": 2, "topologyKey": "host", "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": {"a": "b"}}}]
    objects = rendered(tmp_path, {part: {"topologySpreadConstraints": constraints} for part in ("operator", "gateway")})
    for deployment in kinds(objects, "Deployment"):
        own = {"labelSelector": deployment["spec"]["selector"]}
        assert deployment["spec"]["template"]["spec"]["topologySpreadConstraints"] == [constraints[0] | own, constraints[1]]


def version() -> str:
    return re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]


def test_chart_and_binary_have_one_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == version()


@pytest.mark.parametrize("arguments,said", [
    (["--set=gateway.replica=3"], "at '/gateway': additional properties 'replica' not allowed"),
    (["--set=gatway.replicas=3"], "additional properties 'gatway' not allowed"),
    (["--set=gateway.clientAuth=token"], "at '/gateway/clientAuth': value must be one of"),
    (["--set-string=gateway.replicas=3"], "at '/gateway/replicas': got string, want integer"),
    (["--set=serving.namespaces=shop"], "at '/serving/namespaces': got string, want array"),
    (["--set=operator.prometheus.url=http://ada:pw@prometheus"], "at '/operator/prometheus/url'"),
    (["--set=commonLabels.app\\.kubernetes\\.io/name=x"], "at '/commonLabels/app.kubernetes.io~1name'"),
    (["--set=tenantKeys.Shop={web}"], "at '/tenantKeys': additional properties 'Shop' not allowed"),
    (["--set=gateway.extraArgs={drain}"], "at '/gateway/extraArgs/0'"),
    (["--set=admission.actions={Refuse}"], "at '/admission/actions/0': value must be one of"),
    (["--set-json=admission.approvals.requests=[]"], "at '/admission/approvals/requests'"),
    (["--set=admission.approvals.requests={suspend}"], "at '/admission/approvals/requests/0'"),
    # What a schema can not say.
    (["--set=admission.actions={Deny,Warn}"], "admission.actions: whom a rule refuses needs no warning: choose Deny or Warn"),
    (["--set=serving.namespaces={shop}"], "serving.namespaces: model servers are off: set serving.enabled to true"),
    (["--set=watchNamespace=shop", "--set=apiKeys.namespaces={search}"],
     "apiKeys.namespaces: the namespace search is not looked after: watchNamespace is shop"),
    (["--set=gateway.clientAuth=off", "--set=tenantKeys.shop={web}"], "there are no client keys"),
    ([f"--set=tenantKeys.{NAMESPACE}={{web}}"], f"{NAMESPACE} is the namespace of the gateways"),
    (["--set=gateway.tls.clientCa=true"], "set gateway.tls.secretName, too"),
    (["--set=operator.prometheus.token.secretName=x"], "set operator.prometheus.url, too"),
    (["--set=prometheusRule.enabled=true", "--set=prometheusRule.disabled={SerinusCostUnknwon}"],
     "prometheusRule.disabled: there is no alert SerinusCostUnknwon in files/rules.yaml"),
    (["--set=gateway.autoscaling.enabled=true", "--set=gateway.autoscaling.maxReplicas=1"],
     "maxReplicas is less than minReplicas"),
])
def test_a_value_that_means_nothing_is_refused(tmp_path, arguments, said):
    text = helm("template", "serinus", str(CHART), f"--namespace={NAMESPACE}", *arguments, folder=tmp_path, check=False)
    assert not text.startswith("0\n") and said in text, text


def leaves(values: dict, schema: dict, path: str = "") -> set[str]:
    """The paths of all values, each of them in the schema, which knows no others."""
    found = set()
    assert values.keys() == schema["properties"].keys() - {"global"}, f"values.yaml and the schema differ at {path}"
    assert schema["additionalProperties"] is False, path
    for name in values:
        of = resolved(schema["properties"][name])
        deeper = name != "resources" and "properties" in of
        found |= leaves(values[name], of, f"{path}{name}.") if deeper else {f"{path}{name}"}
    return found


def resolved(schema: dict) -> dict:
    whole = json.loads((CHART / "values.schema.json").read_text())
    return whole["definitions"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema


def test_every_value_is_in_the_schema_and_says_what_it_is():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    documented = set(re.findall(r"^\| `([\w.]+)` \| `.+` \| .{9,} \|$", (CHART / "README.md").read_text(), re.M))
    every = leaves(values, schema)
    assert documented == every

    def at(path: str, of: dict):
        for name in path.split("."):
            of = of.get(name, {}) if isinstance(of, dict) else {}
        return of
    as_it_is = {path for path in every if not any(
        at(path, chosen) not in ({}, at(path, values)) for chosen in COMBINATIONS.values())}
    assert not as_it_is, "in no combination away from the default"


def test_a_package_holds_the_definitions_of_crds(tmp_path):
    helm("package", str(CHART), f"--destination={tmp_path}", folder=tmp_path)
    [package] = tmp_path.glob("*.tgz")
    with tarfile.open(package) as files:
        assert all(member.isfile() for member in files), "links do not outlive a package"
        read = {member.name: files.extractfile(member).read() for member in files}
    for path in ROOT.glob("crds/*.yaml"):
        held = read.get(f"serinus/files/crds/{path.name}")
        assert held == (None if path.name == "kustomization.yaml" else path.read_bytes())


@pytest.mark.parametrize("keep", [True, False])
def test_definitions_are_those_of_crds_and_kept_unless_told_otherwise(tmp_path, keep):
    found = by_name(kinds(rendered(tmp_path, {"crds": {"keep": keep}}), "CustomResourceDefinition"))
    originals = [yaml.safe_load(p.read_text()) for p in ROOT.glob("crds/*.yaml") if p.name != "kustomization.yaml"]
    assert len(found) == len(originals) == 5
    for original in originals:
        held = found["CustomResourceDefinition", None, original["metadata"]["name"]]
        assert held["spec"] == original["spec"]
        assert held["metadata"].get("annotations") == ({"helm.sh/resource-policy": "keep"} if keep else None)


def test_alerts_are_those_of_the_rule_file_with_what_the_values_say(tmp_path):
    plain = yaml.safe_load((CHART / "files/rules.yaml").read_text())
    [rule] = kinds(rendered(tmp_path, {"prometheusRule": {"enabled": True}}), "PrometheusRule")
    assert rule["spec"] == plain
    values = COMBINATIONS["everything"]["prometheusRule"]
    [rule] = kinds(rendered(tmp_path, {"prometheusRule": values}), "PrometheusRule")
    assert values["labels"].items() <= rule["metadata"]["labels"].items()
    alerts = lambda of: [r for group in of["groups"] for r in group["rules"]]
    kept = {r["alert"]: r["annotations"]["runbook_url"] for r in alerts(rule["spec"])}
    assert kept.keys() == {r["alert"] for r in alerts(plain)} - set(values["disabled"])
    assert kept["SerinusNoLeader"] == "https://wiki.example/serinus/SerinusNoLeader.md"


def test_each_dashboard_is_a_config_map_that_grafana_finds(tmp_path):
    files = {path.name: path.read_text() for path in (CHART / "files/dashboards").glob("*.json")}
    found = {}
    for o in kinds(rendered(tmp_path, {"dashboards": {"enabled": True}}), "ConfigMap"):
        assert o["metadata"]["labels"]["grafana_dashboard"] == "1"
        found |= o["data"]
    assert found == files and len(files) == 3
    assert not kinds(rendered(tmp_path, {}), "ConfigMap", "PrometheusRule")


# Who may do what. tests/rights.rs compares deploy/, which is one of the combinations, with the
# table in docs/security.md; no other combination grants what that table does not have.


def rights(objects: list[dict]) -> set[tuple]:
    """Each right that is bound to an account: (account, where, group, resource, names, verb)."""
    found = by_name(objects)
    granted = set()
    for binding in kinds(objects, "ClusterRoleBinding", "RoleBinding"):
        where = binding["metadata"].get("namespace")
        ref = binding["roleRef"]
        role = found[ref["kind"], where if ref["kind"] == "Role" else None, ref["name"]]
        for subject in binding["subjects"]:
            assert (subject["kind"], subject["namespace"]) == ("ServiceAccount", NAMESPACE)
            granted |= {(subject["name"].rsplit("-", 1)[1], where, group, resource,
                         tuple(rule.get("resourceNames", ())), verb) for rule in role["rules"]
                        for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]}
    return granted


def roles(objects: list[dict]) -> set[tuple]:
    """Each right that any role has, bound or not, without where and without names of the install's own."""
    return {("operator" if "-operator" in role["metadata"]["name"] else "gateway", group, resource,
             bool(rule.get("resourceNames")), verb)
            for role in kinds(objects, "ClusterRole", "Role") for rule in role["rules"]
            if not role["metadata"]["name"].endswith(("-view", "-edit", "-approve"))
            for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]}


@EVERY
def test_no_combination_grants_more_than_the_table_of_rights(tmp_path, values):
    deployed = [o for path in (ROOT / "deploy").glob("rbac-*.yaml") for o in yaml.safe_load_all(path.read_text())]
    objects = rendered(tmp_path, values)
    assert roles(objects) <= roles(deployed)
    for account, where, group, resource, names, verb in rights(objects):
        if resource == "secrets" and not names:
            assert account == "gateway" and where, "Secrets are read in namespaces that were named"
            assert where == NAMESPACE or where in str(values), where
        if (group, resource) in {("apps", "deployments"), ("", "services")} and verb not in ("get", "list", "watch"):
            assert where in values["serving"]["namespaces"], where


def test_without_model_servers_the_operator_has_no_right_to_deployments_and_services(tmp_path):
    objects = rendered(tmp_path, {})
    assert not [r for r in roles(objects) if r[1:3] in {("apps", "deployments"), ("", "services")}]
    # That is all that is missing: with them, everything of the table is granted.
    of_servers = roles(rendered(tmp_path, {"serving": {"enabled": True}})) - roles(objects)
    assert {r[1:3] for r in of_servers} == {("apps", "deployments"), ("", "services")}


@pytest.mark.parametrize("name", ["one namespace", "its own namespace"])
def test_an_install_of_one_namespace_makes_nothing_of_the_whole_cluster(tmp_path, name):
    values = COMBINATIONS[name]
    objects = rendered(tmp_path, values)
    assert {o["metadata"]["namespace"] for o in objects} == {NAMESPACE, values["watchNamespace"]}
    everywhere = {r for r in rights(rendered(tmp_path, values | {"watchNamespace": ""})) if r[1] is None}
    here = {r for r in rights(objects) if r[1] == values["watchNamespace"]}
    assert {r[:1] + r[2:] for r in everywhere} <= {r[:1] + r[2:] for r in here}, "the same rights, in one namespace"


# What a cluster makes of it.


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A cluster with nodes whose pods must be restricted in the chart's namespace."""
    cluster = Cluster(tmp_path_factory.mktemp("chart"), audit.RIGHTS, controllers="disruption").start()
    nodes = Nodes(cluster).start()
    for name in (NAMESPACE, "shop", "search"):
        cluster.kubectl("create", "namespace", name)
    cluster.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    for kind in ("podmonitors", "prometheusrules"):
        cluster.kubectl("apply", "--server-side", "-f", str(TOOLS / f"{kind}.yaml"))
    model = Model(cluster.folder).start()
    yield cluster, model
    model.process.stop()
    nodes.stop()
    cluster.stop()


def on(cluster: Cluster, *arguments: str, check: bool = True) -> str:
    return helm(*arguments, f"--namespace={NAMESPACE}", folder=cluster.folder, cluster=cluster, check=check)


@EVERY
def test_the_api_server_takes_every_combination(installed, tmp_path, values):
    cluster, _ = installed
    text = yaml.safe_dump_all(rendered(tmp_path, values))
    # PodMonitors and PrometheusRules are known once their definitions are established.
    def applied():
        return cluster.kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict",
                               "-f", "-", stdin=text)
    taken = wait_for("the API server", applied, 30, every=2).strip().splitlines()
    assert len(taken) == text.count("\nkind: ") + text.startswith("kind: ")
    assert not [line for line in taken if not line.endswith("(server dry run)")], taken


class Beside:
    """The real processes, with the rights of the chart's accounts, beside the pods that only seem to run."""

    def __init__(self, cluster: Cluster, name: str, *arguments: str):
        self.gateway = Gateway(cluster, f"gateway-{name}", *arguments)
        self.operator = Operator(cluster, f"operator-{name}", [self.gateway])
        self.operator.process.command += arguments

    def __enter__(self) -> "Beside":
        self.gateway.start().wait_ready()
        self.operator.start()
        wait_for("a leader", lambda: self.operator.leads)
        self.gateway.wait_judged()
        return self

    def __exit__(self, *_) -> None:
        self.operator.process.stop()
        self.gateway.process.stop()


def phase(cluster: Cluster, name: str, namespace: str = "default") -> str:
    return cluster.release(name, namespace).get("status", {}).get("phase", "")


def wait_phase(cluster: Cluster, name: str, *phases: str, namespace: str = "default") -> None:
    try:
        wait_for(f"{name} {'/'.join(phases)}", lambda: phase(cluster, name, namespace) in phases, 90)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{cluster.kubectl('get', 'promptrelease', name, '-n', namespace, '-o', 'yaml')}") from None


def older_chart(folder) -> str:
    """The chart as an earlier version: another image, and a definition that has since grown."""
    chart = folder / "older"
    shutil.copytree(CHART, chart)
    text = (chart / "Chart.yaml").read_text().replace(version(), "0.0.9")
    (chart / "Chart.yaml").write_text(text)
    path = chart / "files/crds/promptreleases.yaml"
    definition = yaml.safe_load(path.read_text())
    definition["spec"]["versions"][0].pop("additionalPrinterColumns")
    path.write_text(yaml.safe_dump(definition))
    return str(chart)


def columns(cluster: Cluster) -> bool:
    definition = cluster.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/promptreleases.serinus.dev")
    return bool(definition["spec"]["versions"][0].get("additionalPrinterColumns", [])[1:])


def keys(cluster: Cluster) -> dict:
    return cluster.get(f"/api/v1/namespaces/{NAMESPACE}/secrets/serinus-request-ids").get("data", {})


def test_a_canary_goes_on_over_upgrade_and_rollback_and_uninstall_keeps_releases(installed):
    cluster, model = installed
    folder = cluster.folder
    refused = cluster.kubectl("run", "any", "--image=any:1", "-n", NAMESPACE, check=False)
    assert "violates PodSecurity" in refused, "the namespace takes restricted pods only"

    on(cluster, "install", "serinus", older_chart(folder), "--wait", "--timeout=150s")
    images = lambda: sorted(c["image"].rsplit(":", 1)[1] for pod in pods(cluster) for c in pod["spec"]["containers"])
    assert images() == ["0.0.9"] * 4 and not columns(cluster)
    cluster.apply([m.client_key(), m.backend("model", model.url), m.policy("asks", steps=[
        {"weight": 20, "samples": 80}, {"approval": {}}, {"weight": 50, "samples": 160}])])
    with Beside(cluster, "life") as beside:
        cluster.apply([m.prompt("answer-v1"), m.release("answer", "answer-v1", policy_name="asks")])
        wait_phase(cluster, "answer", "Stable")
        known = keys(cluster)
        assert known, "gateways have filled the Secret"
        with Traffic([beside.gateway], "answer") as traffic:
            cluster.apply(m.prompt("answer-v2"))
            cluster.patch("promptrelease", "answer", {"spec": {"promptRef": {"name": "answer-v2"}}})
            wait_phase(cluster, "answer", "Progressing")
            canary = cluster.release("answer")["status"]["canary"]["revision"]

            def goes_on() -> None:
                """The same canary, more requests of which reach the operator."""
                status = cluster.release("answer")["status"]
                assert status["phase"] in ("Progressing", "AwaitingApproval"), status["phase"]
                assert status["canary"]["revision"] == canary
                before = beside.operator.metric("serinus_leader"), sum(s.revision == canary for s in traffic.seen)
                assert before[0] == 1
                wait_for("more requests", lambda: sum(s.revision == canary for s in traffic.seen) > before[1] + 5)

            on(cluster, "upgrade", "serinus", str(CHART), "--wait", "--timeout=150s")
            wait_for("the older pods' end", lambda: images() == [version()] * 4)
            assert columns(cluster), "the chart upgrades definitions"
            goes_on()
            on(cluster, "rollback", "serinus", "1", "--wait", "--timeout=150s")
            wait_for("the newer pods' end", lambda: images() == ["0.0.9"] * 4)
            assert not columns(cluster)
            goes_on()
            on(cluster, "upgrade", "serinus", str(CHART), "--wait", "--timeout=150s")
            goes_on()
            wait_phase(cluster, "answer", "AwaitingApproval")
            cluster.patch("promptrelease", "answer", {"metadata": {"annotations": {
                "serinus.dev/approve": f"{canary} by=ada"}}})
            wait_phase(cluster, "answer", "Stable")
            assert cluster.release("answer")["status"]["history"][-1]["outcome"] == "Promoted"
            assert keys(cluster).items() >= known.items(), "no upgrade takes the keys away"

            objects = lambda: {o["metadata"]["uid"] for kind in ("promptreleases", "promptversions", "canarypolicies",
                                                                 "llmdeployments", "releasesnapshots")
                               for o in cluster.get(f"/apis/{m.API}/{kind}")["items"]}
            before, status = objects(), cluster.release("answer")["status"]
            on(cluster, "uninstall", "serinus", "--wait", "--timeout=150s")
            time.sleep(1)
        assert not traffic.errors(), traffic.errors()[:3]
        assert len(traffic.seen) > 100
    assert objects() == before and cluster.release("answer")["status"]["routing"] == status["routing"]
    left = cluster.kubectl("get", "deploy,svc,sa,role,rolebinding,pdb,networkpolicy,secret", "-n", NAMESPACE, "-o", "name")
    assert sorted(left.split()) == ["secret/users", "serviceaccount/default"]
    roles_left = cluster.kubectl("get", "clusterroles,clusterrolebindings", "-o", "name")
    assert "serinus" not in roles_left

    # Installed again, it takes the definitions that it left, and goes on where it was.
    on(cluster, "install", "serinus", str(CHART), "--wait", "--timeout=150s")
    assert objects() == before
    with Beside(cluster, "again"):
        cluster.apply([m.prompt("answer-v3"), m.release("other", "answer-v3", policy_name="asks")])
        wait_phase(cluster, "other", "Stable")
        again = cluster.release("answer")["status"]
        assert again["phase"] == "Stable" and again["stable"] == status["stable"]
        before = objects()
    on(cluster, "upgrade", "serinus", str(CHART), "--set=crds.enabled=false", "--wait", "--timeout=150s")
    assert objects() == before, "whoever takes the definitions out of the chart keeps them, too"
    on(cluster, "uninstall", "serinus", "--wait", "--timeout=150s")


def runbooks_find(cluster: Cluster) -> None:
    """What the runbooks read from the cluster is there under the names that they use."""
    pages = [path.read_text() for path in (ROOT / "docs/runbooks").glob("*.md")]
    commands = {line for page in pages for block in re.findall(r"```sh\n(.*?)```", page, re.S)
                for line in block.splitlines() if line.startswith("kubectl get ")}
    assert len(commands) > 5
    for command in sorted(commands):
        found = cluster.kubectl(*shlex.split(command)[1:])
        # There may be no Event and no PodMonitor; what is selected by a label or a name is there.
        assert found or not (" -l " in command or " lease " in command), command


def test_the_notes_lead_to_the_first_release(installed, tmp_path):
    """Its commands are run as they are printed, but for what is on the internet or needs a kubelet."""
    cluster, model = installed
    notes = on(cluster, "install", "serinus", str(CHART), "--wait", "--timeout=150s")
    script = notes.split("To the first release:\n")[1].split("The next version of the prompt")[0]
    with Beside(cluster, "notes") as beside:
        script = re.sub(r"kubectl port-forward .*\n", "", script)
        for printed, here in (("https://api.openai.com/v1", model.url), ("=api.openai.com", "=127.0.0.1"),
                              ("http://localhost:8080", beside.gateway.url), (" CHART ", f" {CHART} ")):
            assert printed in script, printed
            script = script.replace(printed, here)
        (tmp_path / "openai.key").write_text("of-the-provider")
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, capture_output=True, text=True, env={
            **os.environ, "PATH": f"{TOOLS}:{cluster.tools}:{os.environ['PATH']}", "KUBECONFIG": str(cluster.admin),
            "HELM_CACHE_HOME": str(tmp_path)})
        assert done.returncode == 0, done.stderr
        assert '"finish_reason":"stop"' in done.stdout.splitlines()[-1], done.stdout
        runbooks_find(cluster)
        cluster.kubectl("delete", "promptreleases,llmdeployments", "--all")
        cluster.kubectl("delete", "secret", "support-web", "-n", NAMESPACE)
    on(cluster, "uninstall", "serinus", "--wait", "--timeout=150s")


def test_without_model_servers_releases_work_and_nothing_is_asked_for_in_vain(installed, tmp_path):
    cluster, model = installed
    on(cluster, "install", "serinus", str(CHART), "--wait", "--timeout=150s")
    began = len(audit.uses(cluster.audit_log))
    off = [a for a in containers(rendered(tmp_path, {}))["operator"]["args"] if "serving" in a]
    beside = Beside(cluster, "no-servers")
    beside.operator.process.command += off
    with beside:
        cluster.apply([m.backend("plain", model.url), m.policy("quick"), m.prompt("plain-v1"),
                       m.release("plain", "plain-v1", "plain"),
                       {"apiVersion": m.API, "kind": "LLMDeployment", "metadata": m.meta("served"), "spec": {
                           "provider": "vllm", "model": "m", "serving": {"image": "model:1"}}}])
        wait_phase(cluster, "plain", "Stable")
        condition = lambda: cluster.kubectl(
            "get", "llmdeployment", "served", "-o", "jsonpath={.status.conditions[*]}")
        wait_for("the reason", lambda: "ServingNotPermitted" in condition())
        assert "--set serving.enabled=true --set 'serving.namespaces={default}'" in condition()
        denied = [use for use in audit.uses(cluster.audit_log)[began:] if not use.allowed]
        assert not denied, "with the chart's argument nothing is asked for that it does not permit"
        cluster.kubectl("delete", "promptrelease", "plain")
        cluster.kubectl("delete", "llmdeployment", "served", "plain")
    on(cluster, "uninstall", "serinus", "--wait", "--timeout=150s")


def test_an_install_of_one_namespace_has_the_rights_that_it_needs(installed):
    cluster, model = installed
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(ROOT / "crds"))
    values = COMBINATIONS["one namespace"]
    # From an install of all namespaces: bindings can not be moved to a role of another kind.
    on(cluster, "install", "serinus", str(CHART), "--set=crds.enabled=false", "--wait", "--timeout=150s")
    on(cluster, "upgrade", "serinus", str(CHART), "--reset-values", values_file(cluster.folder, values), "--wait",
       "--timeout=150s")
    assert "serinus" not in cluster.kubectl("get", "clusterroles,clusterrolebindings", "-o", "name")
    of = lambda manifest: manifest | {"metadata": manifest["metadata"] | {"namespace": "shop"}}
    began = len(audit.uses(cluster.audit_log))
    tenants = [a for a in containers(rendered(cluster.folder, values))["gateway"]["args"] if "tenant" in a]
    beside = Beside(cluster, "shop", "--watch-namespace=shop")
    beside.gateway.process.command += tenants
    with beside:
        locked = of(m.backend("locked", model.url))
        locked["spec"]["endpoint"]["apiKeySecretRef"] = {"name": "locked", "key": "token"}
        secret = {"apiVersion": "v1", "kind": "Secret", "stringData": {"token": "of-the-backend"}, "metadata": {
            "name": "locked", "namespace": "shop", "annotations": {"serinus.dev/hosts": "127.0.0.1"}}}
        served = {"apiVersion": m.API, "kind": "LLMDeployment", "metadata": {"name": "served", "namespace": "shop"},
                  "spec": {"provider": "vllm", "model": "m", "serving": {"image": "model:1"}}}
        cluster.apply([secret, locked, served, of(m.policy("quick")), of(m.prompt("v-v1")), of(m.prompt("v-v2")),
                       of(m.release("locked", "v-v1", "locked")), of(m.release("served", "v-v1", "served"))])
        # The pod of the model server is ready on a node that kwok plays.
        for name in ("locked", "served"):
            wait_phase(cluster, name, "Stable", namespace="shop")
        cluster.patch("promptrelease", "locked", {"spec": {"promptRef": {"name": "v-v2"}}}, "shop")
        wait_phase(cluster, "locked", "Progressing", "Held", namespace="shop")
        cluster.kubectl("delete", "promptreleases", "--all", "-n", "shop")
        cluster.kubectl("delete", "llmdeployments", "--all", "-n", "shop")
        wait_for("the model server's end", lambda: not cluster.kubectl("get", "deployments", "-n", "shop", "-o", "name"))
    refused = {u for u in audit.uses(cluster.audit_log)[began:] if not u.allowed}
    assert not refused, f"asked for and not granted: {refused}"
    on(cluster, "uninstall", "serinus", "--wait", "--timeout=150s")


def test_the_number_of_gateways_stays_when_autoscaling_begins_and_ends(installed):
    cluster, _ = installed
    replicas = lambda: cluster.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/serinus-gateway")["spec"]["replicas"]
    upgrade = lambda *how: on(cluster, "upgrade", "serinus", str(CHART), "--wait", "--timeout=150s", *how)
    on(cluster, "install", "serinus", str(CHART), "--set=gateway.replicas=3", "--wait", "--timeout=150s")
    upgrade("--set=gateway.autoscaling.enabled=true")
    assert replicas() == 3
    upgrade("--set=gateway.autoscaling.enabled=true", "--set=gateway.podAnnotations.a=b")
    assert replicas() == 3, "nobody else has set it"
    # As an autoscaler does it, which has no metrics here.
    cluster.kubectl("scale", "deployment", "serinus-gateway", "-n", NAMESPACE, "--replicas=5")
    for annotation in ("c", "d"):
        upgrade("--set=gateway.autoscaling.enabled=true", f"--set=gateway.podAnnotations.a={annotation}")
        assert replicas() == 5
    cluster.kubectl("scale", "deployment", "serinus-gateway", "-n", NAMESPACE, "--replicas=6")
    on(cluster, "rollback", "serinus", "4", "--wait", "--timeout=150s")
    assert replicas() == 6
    refused = on(cluster, "upgrade", "serinus", str(CHART), "--set=gateway.replicas=4", check=False)
    assert "conflict with" in refused and ".spec.replicas" in refused, refused
    upgrade("--set=gateway.replicas=4", "--force-conflicts")
    assert replicas() == 4
    on(cluster, "uninstall", "serinus", "--wait", "--timeout=150s")


def test_an_install_from_deploy_becomes_one_of_the_chart(installed):
    """As docs/install.md says, without a moment in which a Deployment is away."""
    cluster, _ = installed
    # As an earlier version was installed.
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(ROOT / "crds"))
    cluster.kubectl("apply", "-k", str(ROOT / "deploy"))
    applied = cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(ROOT / "deploy"), check=False)
    assert not [line for line in applied.splitlines() if not line.endswith(" serverside-applied")], applied
    wait_for("the pods", lambda: len(pods(cluster)) == 4)
    cluster.patch("secret", "serinus-request-ids", {"data": {"kept": "a2V5"}}, NAMESPACE)
    uids = lambda: {o["metadata"]["uid"] for o in json.loads(
        cluster.kubectl("get", "deploy,svc,sa,secret", "-n", NAMESPACE, "-l", "app.kubernetes.io/part-of=serinus",
                        "-o", "json"))["items"]}
    before = uids()
    assert len(before) == 6
    refused = on(cluster, "install", "serinus", str(CHART), check=False)
    assert "invalid ownership metadata" in refused, refused
    on(cluster, "install", "serinus", str(CHART), "--take-ownership", "--force-conflicts", "--wait", "--timeout=150s",
       "--set=serving.enabled=true")
    assert uids() == before and keys(cluster) == {"kept": "a2V5"}
    wait_for("the older pods' end", lambda: len(pods(cluster)) == 4)
    on(cluster, "uninstall", "serinus", "--wait", "--timeout=150s")
    assert cluster.kubectl("get", "crd", "promptreleases.serinus.dev", "-o", "name")
