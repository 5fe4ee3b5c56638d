"""Objects that earlier versions stored: in the definitions of today, and back in those of then.

tests/fixtures/stored has a folder for each version: its definitions, and objects of every kind with
all that the API server kept of them (e2e/keep_stored.py)."""

import copy
import json
import time

import pytest
import yaml

from harness import manifests as m
from harness import stored
from harness.cluster import GROUP, ROOT, Cluster
from harness.processes import wait_for
from harness.serinus import BIN, Gateway, Model, Operator
from harness.traffic import Traffic
from keep_stored import PORT

VERSIONS = sorted((ROOT / "tests" / "fixtures" / "stored").iterdir())
EVERY = pytest.mark.parametrize("version", VERSIONS, ids=lambda folder: folder.name)


def definitions(folder) -> dict[str, dict]:
    files = sorted(set(folder.glob("*.yaml")) - {folder / "kustomization.yaml"})
    found = {}
    for file in files:
        definition = yaml.safe_load(file.read_text())
        [served] = definition["spec"]["versions"]
        found[f"{definition['spec']['names']['kind']} {served['name']}"] = served["schema"]["openAPIV3Schema"]
    return found


# A bound that is higher or lower in `new` admits more; otherwise what was stored may not be valid any more.
UPPER = {"maximum", "maxLength", "maxItems", "maxProperties"}
LOWER = {"minimum", "minLength", "minItems", "minProperties"}
# These must stay as they are: an older operator would not read what a wider enum admits, or a field
# without which it can not do, and what was stored must stay valid.
SAME = {"type", "format", "pattern", "default", "nullable", "enum", "required", "multipleOf",
        "exclusiveMinimum", "exclusiveMaximum", "uniqueItems", "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys", "x-kubernetes-map-type", "x-kubernetes-int-or-string",
        "x-kubernetes-preserve-unknown-fields", "allOf", "anyOf", "oneOf", "not"}


def breaks(old: dict, new: dict, path: str = "") -> list[str]:
    """What makes objects of `old` invalid in `new`, or objects of `new` unreadable for a program of `old`."""
    found = []
    for key in sorted(SAME):
        before, after = old.get(key), new.get(key)
        if key in ("enum", "required"):
            before, after = (sorted(x or [], key=str) for x in (before, after))
        if before != after:
            found.append(f"{path}: {key} was {before!r} and is {after!r}")
    for key in sorted(UPPER | LOWER):
        if key not in new:
            continue
        if key not in old or (new[key] < old[key] if key in UPPER else new[key] > old[key]):
            found.append(f"{path}: {key} was {old.get(key)} and is {new[key]}")
    rules = lambda schema: {r["rule"] for r in schema.get("x-kubernetes-validations", [])}
    found += [f"{path}: a new rule: {rule}" for rule in sorted(rules(new) - rules(old))]
    for part in ("items", "additionalProperties"):
        if bool(old.get(part)) != bool(new.get(part)):
            found.append(f"{path}: {part} came or went")
        elif isinstance(old.get(part), dict):
            found += breaks(old[part], new[part], f"{path}[]")
    for name, field in old.get("properties", {}).items():
        if name not in new.get("properties", {}):
            found.append(f"{path}.{name} is gone")
        else:
            found += breaks(field, new["properties"][name], f"{path}.{name}")
    return found


@EVERY
def test_definitions_only_gain_optional_fields_and_wider_bounds(version):
    before, now = definitions(version / "crds"), definitions(ROOT / "crds")
    assert len(before) == 5 and set(before) <= set(now)
    found = [f"{kind}{line}" for kind, schema in before.items() for line in breaks(schema, now[kind])]
    # What was broken on purpose stands here, a line each, and in the notes of the release.
    excused = version / "breaks.txt"
    assert found == (excused.read_text().splitlines() if excused.exists() else []), "\n".join(found)


def test_what_breaks_is_found():
    old = {"properties": {"a": {"type": "string", "enum": ["x", "y"], "maxLength": 9}, "b": {"type": "array", "items": {
        "type": "object", "required": ["c"], "properties": {"c": {"type": "integer", "minimum": 1}}}}}}

    def changed(change) -> list[str]:
        new = copy.deepcopy(old)
        change(new["properties"])
        return breaks(old, new)

    inner = lambda p: p["b"]["items"]
    assert changed(lambda p: p.update(d={"type": "string", "maxLength": 1})) == []
    assert changed(lambda p: p["a"].update(maxLength=10)) == []
    for change, says in (
            (lambda p: p.pop("a"), ".a is gone"), (lambda p: p["a"].update(maxLength=8), "maxLength was 9 and is 8"),
            (lambda p: p["a"].update(minLength=1), "minLength was None and is 1"),
            (lambda p: p["a"]["enum"].append("z"), "enum"), (lambda p: p["a"]["enum"].remove("x"), "enum"),
            (lambda p: inner(p).update(required=[]), "required"),
            (lambda p: inner(p)["properties"]["c"].update(minimum=2), ".b[].c: minimum was 1 and is 2"),
            (lambda p: inner(p)["properties"]["c"].update(type="string"), "type"),
            (lambda p: inner(p).update({"x-kubernetes-validations": [{"rule": "self.c < 3"}]}), "a new rule"),
            (lambda p: p["a"].update(default="x"), "default")):
        [line] = changed(change)
        assert says in line


@pytest.fixture
def empty(tmp_path):
    """A cluster without definitions."""
    cluster = Cluster(tmp_path).start()
    yield cluster
    cluster.stop()


def define(cluster: Cluster, folder) -> None:
    cluster.kubectl("apply", "--server-side", "--force-conflicts", *(
        a for f in sorted(folder.glob("*s.yaml")) for a in ("-f", str(f))))
    wait_for("the definitions", cluster._established, 30)
    # The API server takes a moment to serve a changed schema.
    time.sleep(2)


def path(key: str) -> str:
    """Where the API server has what etcd has at `key`."""
    plural, namespace, name = key.removeprefix(stored.PREFIX).split("/")
    return f"{GROUP}/namespaces/{namespace}/{plural}/{name}"


def lost(before, after, where: str = "") -> list[str]:
    """Fields of `before` that `after` has not, or has with another value."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [line for k, v in before.items() for line in (
            lost(v, after[k], f"{where}.{k}") if k in after else [f"{where}.{k} is gone"])]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [line for i, pair in enumerate(zip(before, after)) for line in lost(*pair, f"{where}[{i}]")]
    return [] if before == after else [f"{where} was {before!r} and is {after!r}"]


def content(found: dict) -> dict:
    return {k: v for k, v in found.items() if k not in ("metadata", "apiVersion", "kind")}


def assert_valid(cluster: Cluster, objects: dict[str, dict]) -> None:
    """Every object can be made anew with spec and status, which checks all of it: what is unchanged
    in an update is not checked."""
    cluster.kubectl("create", "namespace", "copies", check=False)
    for key, found in objects.items():
        namespace, name = key.split("/")[-2:]
        copied = path(key).replace(f"/namespaces/{namespace}/", "/namespaces/copies/")
        body = {**found, "metadata": {"name": name, "namespace": "copies"}}
        made = cluster.http.post(copied.rsplit("/", 1)[0], json=body)
        assert made.status_code == 201, f"{key}: {made.text}"
        if "status" in found:
            body["metadata"]["resourceVersion"] = made.json()["metadata"]["resourceVersion"]
            told = cluster.http.put(f"{copied}/status", json=body)
            assert told.status_code == 200, f"{key}: {told.text}"
            made = told
        assert not lost(content(found), content(made.json())), key
        cluster.http.delete(copied).raise_for_status()


@EVERY
def test_objects_of_an_earlier_version_go_on_and_go_back(version, empty):
    cluster = empty
    before = json.loads((version / "objects.json").read_text())
    kinds = {o["kind"] for o in before.values()}
    assert kinds == {"LLMDeployment", "PromptVersion", "CanaryPolicy", "PromptRelease", "ReleaseSnapshot"}
    define(cluster, version / "crds")
    stored.write(cluster, before)
    read = lambda: {key: cluster.get(path(key)) for key in before}
    changes = lambda now: [f"{key}{line}" for key, old in before.items()
                           for line in lost(content(old), content(now[key]))]
    assert not changes(read()), "as that version read them"

    define(cluster, ROOT / "crds")
    assert not changes(read())
    assert_valid(cluster, before)

    cluster.grant()
    # At the address that is stored in the backends.
    model = Model(cluster.folder)
    model.port, model.url = PORT, f"http://127.0.0.1:{PORT}/v1"
    model.process.command = [BIN, "simulated-model", f"--listen=127.0.0.1:{PORT}"]
    model.start()
    gateway = Gateway(cluster, "gateway").start()
    operator = Operator(cluster, "operator", [gateway]).start()
    try:
        gateway.wait_ready().wait_judged()
        status = lambda name: cluster.release(name)["status"]
        outcomes = lambda name: [(h["prompt"], h["outcome"]) for h in status(name)["history"]]
        was = {name: before[f"{stored.PREFIX}promptreleases/default/{name}"]["status"] for name in ("kept", "underway")}
        with Traffic([gateway], "underway", score=lambda _: 0.8) as users, Traffic([gateway], "kept", rate=5) as others:
            wait_for("the promotion", lambda: ("underway-v2", "Promoted") in outcomes("underway"), 120)
        assert not users.errors() and not others.errors(), [*users.errors(), *others.errors()][:3]
        # What was decided stays decided: the canary resumed, and what had failed stays out.
        assert [o for o in outcomes("underway") if o[1] == "Promoted"] == [("underway-v2", "Promoted")]
        assert {seen.revision for seen in others.seen} == {was["kept"]["stable"]["revision"]}
        assert status("kept")["failedRevision"] == was["kept"]["failedRevision"]
        assert outcomes("kept") == [(h["prompt"], h["outcome"]) for h in was["kept"]["history"]]
    finally:
        for part in (operator, gateway, model):
            part.process.stop()

    # Back: all that today's operator wrote is valid and whole in the definitions of then.
    now = stored.read(cluster)
    define(cluster, version / "crds")
    back = {key: cluster.get(path(key)) for key in now}
    assert not [f"{key}{line}" for key, new in now.items() for line in lost(content(new), content(back[key]))]
    assert_valid(cluster, back)


def test_an_object_with_a_field_of_a_later_version_stalls_nothing(world):
    """The definitions are upgraded before the operators, and may stay when operators go back."""
    cluster = world.cluster
    later = {"CanaryPolicy": m.policy("later"), "LLMDeployment": m.backend("later", world.model.url),
             "PromptVersion": m.prompt("later-v1"), "PromptRelease": m.release("later", "later-v1", "later", "later")}
    try:
        for file in (ROOT / "crds").glob("*s.yaml"):
            definition = yaml.safe_load(file.read_text())
            schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
            schema["properties"]["spec"]["properties"]["newField"] = {"type": "string", "maxLength": 9}
            cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=yaml.safe_dump(definition))
        for made in later.values():
            made["spec"]["newField"] = "new"
            wait_for("the new field", lambda made=made: cluster.apply(made) is not None and "new" == json.loads(
                cluster.kubectl("get", made["kind"], made["metadata"]["name"], "-o", "json"))["spec"].get("newField"))
        world.first("unconcerned")
        world.wait_phase("later", "Stable")
        for part in [*world.operators, *world.gateways]:
            part.process.kill()
            part.start()
        for gateway in world.gateways:
            gateway.wait_ready()
        world.first("afterwards")
    finally:
        for made in reversed(later.values()):
            cluster.kubectl("delete", made["kind"], made["metadata"]["name"], "--wait=false", check=False)
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(ROOT / "crds"))
