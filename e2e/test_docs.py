"""Documents are true: what they show is accepted and does what they say.

Every YAML block with a kind of Serinus or of Kubernetes is put to a real API server, every
shell block is run, command by command in the order of its document, and so are the blocks
in Python and JavaScript. What can not be run is in NOT_RUN with the reason; what has to be
another name here than in a document is in HERE. A block that is neither fails."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import httpx
import openai
import pytest
import yaml
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from harness import manifests as m
from harness.cluster import ROOT
from harness.documents import DOCUMENTS, Block, blocks, broken_links, commands, name
from harness.processes import free_port, wait_for
from harness.prometheus import Prometheus
from harness.serinus import BIN, Model
from harness.standalone import Standalone

TUTORIALS = {"docs/tutorials/standalone.md", "docs/tutorials/cluster.md"}
# The commands of a document that are not run, by how they begin, and why.
NOT_RUN = {
    r"make |cargo |benches/|SECONDS=|e2e/": "builds or measures; CI runs make test",
    r"docker |kind |k3d |minikube ": "needs a container runtime",
    r"kubectl (port-forward|rollout status)": "needs a kubelet: a gateway of the test stands in",
    r"curl -s https://raw\.|kubectl create configmap model-dates": "needs the internet; test_models.py reads such a file",
    r"cosign |gh |SIGNED=|helm upgrade serinus oci:": "needs a published version",
    r"helm rollback ": "test_chart.py does it",
    r"kubectl get podmonitors": "needs the definitions of the Prometheus Operator",
    r"kubectl patch configmap argocd-cm |kubectl wait .*--timeout=24h": "test_argocd.py and test_waiting.py do it",
    r"serinus migrate |kubectl patch llmdeployment gpt-4o |kubectl apply -f moves|serinus watch answers ": "test_models.py does it",
}
# Commands that only read, and that several documents have, are run once.
ONCE = re.compile(r"kubectl (get|logs) |serinus plan ")
# What is called otherwise here: an expression, what it becomes, and where (everywhere).
# Upper-case names after a dollar sign are set by the test.
HERE: list[tuple[str, str]] = [
    # Addresses.
    (r"http://serinus-gateway\.serinus-system", "$GATEWAY"),
    (r"https://api\.openai\.com/v1", "$MODEL"),
    (r"http://simulated-model\.shop:9000/v1", "$MODEL"),
    (r"http://prometheus\.monitoring:9090|(?<=--prometheus-url )…", "$PROMETHEUS"),
    (r"http://10\.0\.0\.[56]:8081|http://localhost:8081", "$ADMIN"),
    (r"http://collector:4318|(?<=--otlp-endpoint )…", "http://127.0.0.1:4318"),
    (r"NAME -n NAMESPACE", "support-answer -n default"),
    (r"YOUR/IMAGE", "registry.example/serinus"),
    # Files and folders.
    (r"^serinus standalone \./releases --listen \S+ --admin \S+", "serinus standalone $OTHER"),
    (r"\./releases|releases/(?=$)", "$RELEASES"),
    (r"DIR/", "./"),
    (r"/var/run/prometheus/token", "token"),
    (r"/var/log/serinus/", "./"),
    (r"/usr/local/share/man/man1", "man1"),
    # Processes that go on until they are stopped: until they are ready.
    (r"^serinus (gateway|standalone) (.*[^&])$", r"ready serinus \1 --listen=127.0.0.1:$OWN --admin=127.0.0.1:$OWN_ADMIN \2"),
    (r"^serinus operator (.*)", r"ready serinus operator --admin=127.0.0.1:$OWN_ADMIN --namespace=serinus-system \1"),
    (r"^serinus watch (\S+)(?=\s*(#.*)?$)", r"{ timeout 3 serinus watch \1 || test $? = 124; }"),
    # Installed is what the cases of test_chart.py install: here the API server only says what it would do.
    (r"^helm install ", "helm install --dry-run=server --take-ownership "),
    (r"^helm upgrade ", "helm upgrade --install --dry-run=server --take-ownership "),
    (r"^kubectl apply (--server-side.*) -k (?!crds)", r"kubectl apply --dry-run=server \1 -k "),
    (r"^kubectl delete -k ", "kubectl delete --dry-run=server --ignore-not-found -k "),
    (r"^kubectl delete namespace (\S+)$", r"kubectl delete namespace \1 --wait=false"),
    (r"^kubectl delete (promptreleases,\S+)", r"kubectl delete --dry-run=server \1"),
    (r"\A--set ", "helm template serinus charts/serinus --set "),
    # As often as is enough to see that it runs.
    (r"^serinus simulate ", "serinus simulate --runs 20 "),
    (r"--revision 41cc", "--revision $REVISION"),
]
# What a reader has done before, of documents that do not say so themselves.
BEFORE = {
    "docs/cli.md": "mkdir man1; serinus retry support-answer && kubectl wait promptrelease/support-answer "
                   "--for=jsonpath={.status.phase}=AwaitingApproval",
}
# YAML that is a part of an object: of which kind, by its first field.
PARTS = {
    "spec.cache": "PromptRelease", "responseFormat": "PromptVersion", "spec.steps": "CanaryPolicy",
    "pricing": "LLMDeployment", "compatibility": "LLMDeployment", "endpoint": "LLMDeployment", "volumes": "Pod",
}
# Groups whose definitions are not in the cluster of the tests: manifests of others, before a migration.
OF_OTHERS = {"argoproj.io", "flagger.app", "serving.kserve.io", "gateway.networking.k8s.io", "kustomize.toolkit.fluxcd.io"}
PRELUDE = """
repo="$REPO"
for each in charts crds deploy examples; do ln -sfn "$repo/$each" "$each"; done
ready() {
  "$@" > ready.log 2>&1 & local pid=$!
  until curl -s --fail "http://127.0.0.1:$OWN_ADMIN/readyz" > /dev/null; do
    kill -0 $pid || { cat ready.log; return 1; }
    sleep 0.2
  done
  kill $pid; wait $pid || true
}
"""


def reason(command: str) -> str | None:
    return next((why for begins, why in NOT_RUN.items() if re.match(begins, command)), None)


def here(command: str) -> str:
    for expression, instead in HERE:
        command = re.sub(expression, instead, command, flags=re.M)
    return command


def with_values(text: str, values: dict[str, str]) -> str:
    """With what the test sets, also where a shell would not put it in."""
    return re.sub(r"\$([A-Z_]+)", lambda found: values.get(found[1], found[0]), text)


def script(document: str, done: set[str]) -> str:
    """The commands of a document that are run; `done` are those of ONCE that others have had."""
    lines = [BEFORE.get(document, ":")]
    for block in blocks("sh", document=document):
        lines.append(f"echo '--- {block.place}' >&2")
        for command in commands(block.text):
            plain = re.sub(r"\s+#.*", "", command)
            if reason(command) or plain in done:
                continue
            lines.append(here(command))
            if ONCE.match(command):
                done.add(plain)
    return "\n".join(lines)


def run(text: str, folder: Path, seconds: float = 120, **environment: str) -> tuple[int, str]:
    """Runs a script in a folder, and ends with it whatever it has started: its exit code and output."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "serinus").unlink(missing_ok=True)
    (tools / "serinus").symlink_to(BIN)
    path = ":".join([str(tools), os.environ["SERINUS_E2E_TOOLS"], os.environ["SERINUS_HELM"], os.environ["PATH"]])
    log = folder / "output.log"
    with log.open("wb") as out:
        child = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", PRELUDE + with_values(text, environment)],
            cwd=folder, stdout=out, stderr=out, start_new_session=True,
            env={**os.environ, "PATH": path, "REPO": str(ROOT), "HELM_CACHE_HOME": str(folder), **environment})
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()
    return code, log.read_text(errors="replace")


def test_every_link_leads_somewhere():
    more = [ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", ROOT / "charts/serinus/README.md"]
    broken = [f"{name(path)}: {link}" for path in [*DOCUMENTS, *more] for link in broken_links(path)]
    assert not broken, "\n".join(broken)


def test_what_is_rendered_is_up_to_date():
    done = subprocess.run(["python3", str(ROOT / "docs/render.py"), "--check"], capture_output=True, text=True,
                          env={**os.environ, "PATH": f"{Path(os.sys.executable).parent}:{os.environ['PATH']}"})
    assert done.returncode == 0, done.stderr


def test_blocks_are_of_languages_that_are_run():
    unknown = [f"{b.place}: {b.language}" for b in blocks() if b.language not in ("", "yaml", "sh", "python", "js", "promql")]
    assert not unknown, f"say yaml, sh, python or js, or nothing for output: {unknown}"


def whole(block: Block) -> list[dict]:
    """The objects of a YAML block; a part of one is put into a whole one."""
    objects = []
    for found in yaml.safe_load_all(block.text):
        if "apiVersion" in found:
            objects.append(found)
            continue
        part = next(iter(found))
        part = f"spec.{next(iter(found['spec']))}" if part == "spec" else part
        assert part in PARTS, f"{block.place} has no apiVersion: say in PARTS what it is a part of"
        objects.append(around(PARTS[part], found))
    return objects


def around(kind: str, part: dict) -> dict:
    """An object of a kind with this part of it."""
    if kind == "Pod":
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "part"},
                "spec": {"containers": [{"name": "app", "image": "app"}], **part}}
    base = {"PromptRelease": m.release("part", "part-v1"), "PromptVersion": m.prompt("part-v1"),
            "LLMDeployment": m.backend("part", "http://model/v1"), "CanaryPolicy": m.policy("part")}[kind]
    return {**base, "spec": {**base["spec"], **part.get("spec", part)}}


def merged(base, part):
    """As a JSON merge patch."""
    if not isinstance(base, dict) or not isinstance(part, dict):
        return part
    return {**base, **{key: merged(base.get(key), value) for key, value in part.items()}}


def test_manifests_are_accepted(world):
    shown = [item for block in blocks("yaml") for item in whole(block)]
    ours = [item for item in shown if item["apiVersion"].split("/")[0] not in OF_OTHERS]
    for item in ours:
        item["metadata"].setdefault("namespace", "default")
    done = world.cluster.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-",
                                 stdin=yaml.safe_dump_all(ours), check=False)
    refused = [line for line in done.splitlines() if not line.endswith("created (server dry run)")]
    assert len(ours) > 20 and not refused and len(done.splitlines()) == len(ours), "\n".join(refused)


POLICIES = blocks("yaml", document="docs/cookbook.md")


@pytest.mark.parametrize("block", POLICIES, ids=lambda block: block.place)
def test_a_policy_that_people_copy_can_decide(block, tmp_path):
    """The command in it is run; what the text after it quotes of the answer is in the answer."""
    command = re.search(r"serinus (plan [^`\n]*)", block.text)[1].split()
    (tmp_path / "policy.yaml").write_text(block.text)
    command[1] = str(tmp_path / "policy.yaml")
    done = subprocess.run([BIN, *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    quoted = re.search(re.escape(block.text) + r"```\n\n> (.+)\n", (ROOT / block.document).read_text())
    assert quoted and quoted[1] in done.stdout, (quoted, done.stdout)


class Place:
    """The cluster that reference pages speak of: their release waits for an approval, and so it does in a folder."""

    def __init__(self, world, folder: Path):
        self.world, self.folder, self.cluster = world, folder, world.cluster
        gateway = world.gateways[0]
        self.prometheus = Prometheus(folder, f"127.0.0.1:{gateway.admin}").start()
        self.alone, self.other = Standalone(folder), folder / "other"
        self.environment = {
            "KUBECONFIG": str(self.cluster.admin), "GATEWAY": gateway.url, "MODEL": world.model.url, "KEY": m.KEY,
            "ADMIN": f"http://127.0.0.1:{gateway.admin}", "PROMETHEUS": self.prometheus.url,
            "RELEASES": str(self.alone.folder), "OTHER": str(self.other)}
        for file in ("openai.key", "token"):
            (folder / file).write_text("of-the-provider")

    def start(self) -> "Place":
        for namespace in ("shop", "search"):
            self.cluster.kubectl("create", "namespace", namespace)
        self.cluster.kubectl("create", "rolebinding", "docs-api-keys", "--clusterrole=serinus-gateway-api-keys",
                             "--serviceaccount=serinus-system:serinus-gateway")
        self.cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": m.meta("openai") | {
            "annotations": {"serinus.dev/hosts": "127.0.0.1"}}, "stringData": {"token": "of-the-provider"}})
        [shown] = [b for b in blocks("yaml", document="README.md") if "kind: PromptRelease" in b.text]
        objects = list(yaml.safe_load_all(shown.text.replace("https://api.openai.com/v1", self.world.model.url)))
        objects[-1]["spec"]["policyRef"] = {"name": "approved"}
        approved = m.policy("approved", [{"approval": {}}, {"weight": 50, "samples": 1000}])
        second = merged(objects[1], {"metadata": {"name": "support-answer-v2"}, "spec": {"parameters": {"maxTokens": 90}}})
        plain = {"apiVersion": m.API, "kind": "PromptVersion", "metadata": m.meta("search-v1"), "spec": {
            "prompt": "search", "messages": [{"role": "system", "content": "Be kind."}]}}
        released = merged(objects[-1], {"spec": {"promptRef": {"name": "support-answer-v2"}}})
        self.cluster.apply([*objects, approved, second, plain, m.release("search", "search-v1", policy_name="approved")])
        self.world.wait_phase("search", "Stable")
        self.world.wait_phase("support-answer", "Stable")
        self.cluster.apply(released)
        # The same in a folder, where the key of the provider is none.
        objects[0]["spec"]["endpoint"].pop("apiKeySecretRef")
        self.alone.apply("fixed", *objects[:2], approved, second)
        self.alone.apply("release", objects[-1])
        shutil.copytree(self.alone.folder, self.other)
        self.alone.start()
        wait_for("the first release", lambda: self.alone.status("support-answer")["phase"] == "Stable")
        self.alone.apply("release", released)
        wait_for("the approval", lambda: self.alone.status("support-answer")["phase"] == "AwaitingApproval")
        waiting = self.world.wait_phase("support-answer", "AwaitingApproval")
        self.environment["REVISION"] = waiting["status"]["canary"]["revision"][:6]
        return self

    def stop(self) -> None:
        self.alone.process.stop()
        self.prometheus.process.stop()
        self.cluster.kubectl("delete", "namespace", "shop", "search", "--wait=false")
        self.cluster.kubectl("delete", "secret", "support-web", "-n", "serinus-system", "--ignore-not-found")

    def policy(self, document: str) -> str:
        """What policy.yaml is in a document: the policy that it shows, or any."""
        shown = [b.text for b in blocks("yaml", document=document) if "kind: CanaryPolicy" in b.text]
        return shown[0] if shown else yaml.safe_dump(m.policy("shown"))


@pytest.fixture
def place(world, tmp_path):
    place = Place(world, tmp_path)
    try:
        yield place.start()
    finally:
        place.stop()


def test_commands_and_programs_of_reference_pages(place):
    failed, ran, done = [], 0, set()
    for path in DOCUMENTS:
        document = name(path)
        if document in TUTORIALS or not blocks("sh", "python", "js", document=document):
            continue
        folder = place.folder / document.replace("/", "-")
        folder.mkdir()
        for file in ("openai.key", "token"):
            (folder / file).write_text("of-the-provider")
        (folder / "policy.yaml").write_text(place.policy(document))
        own = {"OWN": str(free_port()), "OWN_ADMIN": str(free_port())}
        code, output = run(script(document, done), folder, **place.environment, **own)
        if code:
            failed.append(f"{document} ({code}):\n{output[-1500:]}")
        failed += [why for block in blocks("js", document=document) if (why := javascript(block, folder, place.environment))]
        failed += python(document, place.environment)
        ran += 1
    assert ran > 5 and not failed, "\n\n".join(failed)


def python(document: str, values: dict[str, str]) -> list[str]:
    """The blocks of a document are one program."""
    names = {"openai": openai, "httpx": httpx, "ChatOpenAI": ChatOpenAI, "OpenAIEmbeddings": OpenAIEmbeddings, "KEY": m.KEY}
    for block in blocks("python", document=document):
        try:
            exec(compile(with_values(here(block.text), values), block.place, "exec"), names)  # noqa: S102 - ours
        except Exception as error:  # noqa: BLE001 - told with its place
            return [f"{block.place}: {error!r}"]
    return []


def javascript(block: Block, folder: Path, values: dict[str, str]) -> str | None:
    modules = folder / "node_modules"
    if not modules.exists():
        modules.symlink_to(Path(os.environ["SERINUS_CLIENTS"]) / "node_modules")
    program = folder / "block.mjs"
    program.write_text(f'import OpenAI from "openai";\nconst KEY = "{m.KEY}";\n{with_values(here(block.text), values)}')
    done = subprocess.run([os.environ.get("SERINUS_NODE", "node"), str(program)], capture_output=True, text=True, timeout=60)
    return f"{block.place}: {done.stderr}" if done.returncode else None


def ends(output: str) -> list[tuple[str, str]]:
    """What `serinus history` says became of each prompt, newest first."""
    return re.findall(r"\b(Initial|Promoted|RolledBack) +\w+-answer-(v\d)", output)


ENDS = [("RolledBack", "v3"), ("Promoted", "v2"), ("Initial", "v1")]


def test_the_tutorial_without_a_cluster(tmp_path):
    ports = {port: str(free_port()) for port in ("9000", "8080", "8081")}
    text = script("docs/tutorials/standalone.md", set())
    for port, own in ports.items():
        text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{own}")
    code, output = run(text, tmp_path)
    assert code == 0, output[-3000:]
    assert ends(output)[-3:] == ENDS and "-answer-v3 does not serve" in output, output[-3000:]


def test_the_tutorial_in_a_cluster(world, tmp_path):
    # The route of another case stays with its namespace for an hour.
    text = script("docs/tutorials/cluster.md", set()).replace("support-", "tutorial-")
    text = text.replace("http://127.0.0.1:8080", world.gateways[0].url).replace("$MODEL", world.model.url)
    try:
        code, output = run(text, tmp_path, KUBECONFIG=str(world.cluster.admin))
    finally:
        world.cluster.kubectl("delete", "secret", "tutorial-web", "-n", "serinus-system", "--ignore-not-found")
        world.cluster.kubectl("delete", "namespace", "shop", "--ignore-not-found", "--wait=false")
    assert code == 0, output[-3000:]
    assert ends(output)[-3:] == ENDS and "-answer-v3 does not serve" in output, output[-3000:]
