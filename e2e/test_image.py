"""The image: what is in it, that it is the same when built again, and that it runs as the chart has it run."""

import os

import httpx
import pytest

from harness import manifests as m
from harness.chart import rendered
from harness.image import TOOLS, Image, Pod, stripped
from harness.names import Names, Tls, certificate
from harness.processes import free_port, wait_for
from harness.serinus import Model
from harness.standalone import Standalone

if TOOLS.startswith("missing: ") and not os.environ.get("SERINUS_IMAGE_REQUIRED"):
    pytest.skip(TOOLS, allow_module_level=True)

# The bound of a release. A stripped debug build fits it, too: .github/workflows/release.yaml checks
# the image that it pushes.
MOST_COMPRESSED = 30_000_000
KEY = {"authorization": f"Bearer {m.KEY}"}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    assert not TOOLS.startswith("missing: "), TOOLS
    folder = tmp_path_factory.mktemp("image")
    return Image(folder / "first", stripped(folder))


@pytest.fixture(scope="module")
def chart(tmp_path_factory):
    """The containers of the chart, with the securityContexts of container and pod in one."""
    found = {}
    for o in rendered(tmp_path_factory.mktemp("chart"), {}):
        if o["kind"] == "Deployment":
            pod = o["spec"]["template"]["spec"]
            [container] = pod["containers"]
            container["securityContext"] |= pod["securityContext"]
            found[container["name"]] = container
    return found


@pytest.fixture(scope="module", autouse=True)
def demo(image, chart, tmp_path_factory):
    """Runs beside the other cases, in a network of its own. It keeps its manifests in /tmp."""
    process = Pod("demo", ["demo", "--plain"], chart["gateway"]["securityContext"], host_network=False,
                  scratch=["/tmp"]).process(image, tmp_path_factory.mktemp("demo")).start()
    yield process
    process.stop()


def test_the_image_is_small_and_runs_as_a_user_by_number(image):
    assert image.compressed < MOST_COMPRESSED
    assert image.config["User"] == "65532:65532"
    assert image.config["Entrypoint"] == ["/usr/bin/serinus"] and not image.config.get("Cmd")
    assert image.config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_the_image_has_one_program_and_nothing_that_is_another_users(image):
    executable = [f.name for f in image.files if f.isfile() and f.mode & 0o111]
    assert [f for f in executable if not ("/lib" in f"/{f}" and ".so" in f)] == ["usr/bin/serinus"]
    assert all(f.uid == f.gid == 0 for f in image.files)
    assert not [f.name for f in image.files if f.mode & 0o6000 or not (f.isfile() or f.isdir())]
    assert [f.name for f in image.files if f.mode & 0o022] == ["tmp"]
    known = (image.root / "etc/ssl/certs/ca-certificates.crt").read_text()
    assert known.count("BEGIN CERTIFICATE") > 50
    assert (image.root / "usr/share/doc/serinus/LICENSE").is_file()


def test_built_again_the_image_is_the_same(image, tmp_path):
    again = Image(tmp_path / "second", stripped(tmp_path))
    assert again.manifest["digest"] == image.manifest["digest"]


def chat(url: str, route: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", headers=KEY, timeout=30, json={
        "model": route, "messages": [], "serinus": {"variables": {"question": "why"}}})


def with_a_template(name: str) -> dict:
    """Filled in by another process of the same program, which the gateway starts from /proc/self/exe."""
    return m.prompt(name, text="{% for w in ['Answer', 'briefly'] %}{{ w }} {% endfor %}")


def test_names_and_authorities_work_in_the_image(image, chart, tmp_path):
    """A name of /etc/hosts and one that only the server of /etc/resolv.conf knows. Both servers show
    certificates of an authority that the image does not know, until it is told."""
    model = Model(tmp_path).start()
    ca, crt, key = certificate(tmp_path, "listed.test", "asked.test")
    secure, names = Tls(model.port, crt, key), Names("asked.test")
    (tmp_path / "hosts").write_text("127.0.0.1 localhost listed.test\n")
    (tmp_path / "resolv.conf").write_text(f"nameserver {names.own}\noptions attempts:2 timeout:2\n")
    own = image.root / "etc/ssl/certs/ca-certificates.crt"
    (tmp_path / "more.crt").write_text(own.read_text() + ca.read_text())
    ways = {"unknown": {}, "file": {"env": {"SSL_CERT_FILE": "/etc/serinus/ca.crt"}},
            "bundle": {"mounts": {"/etc/ssl/certs/ca-certificates.crt": tmp_path / "more.crt"}}}
    try:
        for way, told in ways.items():
            (tmp_path / way).mkdir()
            here = Standalone(tmp_path / way)
            for name in ("listed", "asked"):
                here.apply(name, m.backend(name, f"https://{name}.test:{secure.port}/v1"), m.policy("quick"),
                           with_a_template(f"{name}-v1"), m.release(name, f"{name}-v1", name))
            os.chown(here.folder, 65532, 65532)
            folder = str(here.folder)
            here.process = Pod(
                f"standalone-{way}", here.process.command[1:], chart["gateway"]["securityContext"], env=told.get("env", {}),
                mounts={folder: folder, "/etc/hosts": tmp_path / "hosts", "/etc/resolv.conf": tmp_path / "resolv.conf",
                        "/etc/serinus/ca.crt": ca, **told.get("mounts", {})},
                written={folder}).process(image, tmp_path / way)
            try:
                here.start()
                for name in ("listed", "asked"):
                    wait_for(f"the release {name}", lambda: here.status(name)["phase"] == "Stable")
                    answer = chat(here.url, name)
                    print(way, name, answer.status_code, answer.text[:300])
                    if way == "unknown":
                        assert answer.status_code == 502, answer.text
                        wait_for("the reason", lambda: "UnknownIssuer" in here.process.log.read_text())
                    else:
                        assert answer.status_code == 200, answer.text + here.process.tail()
            finally:
                here.process.stop()
        assert names.asked
    finally:
        names.stop()
        secure.stop()
        model.process.stop()


@pytest.fixture
def as_a_pod(image, chart, tmp_path):
    """Starts the operator or a gateway as the chart does, with the account that a kubelet mounts."""
    started = []

    def start(cluster, component: str) -> str:
        account = tmp_path / component
        account.mkdir()
        (account / "token").write_text(cluster.token(f"serinus-{component}"))
        (account / "namespace").write_text("serinus-system")
        (account / "ca.crt").write_text((cluster.folder / "certs/apiserver.crt").read_text())
        container, admin = chart[component], free_port()
        fields = {"metadata.namespace": "serinus-system", "metadata.name": f"{component}-in-the-image"}
        env = {e["name"]: e.get("value") or fields[e["valueFrom"]["fieldRef"]["fieldPath"]] for e in container["env"]}
        url = f"http://127.0.0.1:{free_port()}" if component == "gateway" else f"http://127.0.0.1:{admin}"
        # A pod has addresses of its own; here everything shares those of the machine.
        own = [f"--admin=127.0.0.1:{admin}", *([f"--listen={url.removeprefix('http://')}"] if component == "gateway" else [])]
        pod = Pod(component, [*container["args"], *own], container["securityContext"],
                  env={**env, "KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": cluster.port},
                  mounts={"/var/run/secrets/kubernetes.io/serviceaccount": account})
        started.append(pod.process(image, tmp_path).start())
        try:
            wait_for(component, lambda: httpx.get(f"{url}/readyz").status_code == 200)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{started[-1].tail()}") from None
        return url

    yield start
    for process in started:
        process.stop()


def test_gateway_and_operator_run_in_the_image_as_the_chart_starts_them(world, as_a_pod):
    as_a_pod(world.cluster, "operator")
    gateway = as_a_pod(world.cluster, "gateway")
    world.cluster.apply([with_a_template("imaged-v1"), m.release("imaged", "imaged-v1")])
    world.wait_phase("imaged", "Stable")
    wait_for("an answer", lambda: chat(gateway, "imaged").status_code == 200)


def test_the_demo_comes_to_its_end_in_the_image(demo):
    wait_for("the end of the demo", lambda: not demo.alive, 240)
    said = demo.tail(60)
    assert demo.child.returncode == 0, said
    assert "users saw 0 errors" in said, said
