"""Who may ask: client keys, service accounts, operators; and secrets that stay secret."""

import contextlib
import time

import httpx
import openai
import pytest

from harness import manifests as m
from harness.processes import wait_for
from harness.serinus import Gateway

OWN = "e2e-own-0123456789abcdef-own"
TENANT = "e2e-tenant-0123456789abcdef"
PEOPLE = "planted-token-of-people-0123456789"


def ask(gateway: Gateway, route: str, key: str | None, header: str = "authorization") -> httpx.Response:
    shown = {} if key is None else {header: f"Bearer {key}" if header == "authorization" else key}
    return httpx.post(f"{gateway.url}/v1/chat/completions", headers=shown, json={
        "model": route, "messages": [], "serinus": {"variables": {"question": "why?"}}})


def models(gateway: Gateway, key: str) -> list[str]:
    answer = httpx.get(f"{gateway.url}/v1/models", headers={"api-key": key})
    answer.raise_for_status()
    return [model["id"] for model in answer.json()["data"]]


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"] if answer.status_code >= 400 else ""


@contextlib.contextmanager
def another_gateway(world, name: str, *arguments: str, **options):
    gateway = Gateway(world.cluster, name, *arguments, **options).start()
    try:
        yield gateway.wait_ready()
    finally:
        gateway.process.stop()


@pytest.fixture
def shop(world):
    """A tenant's namespace with a release of its own, `shop-answer`."""
    world.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
    objects = [m.backend("model", world.model.url), m.policy("quick"), m.prompt("shop-answer-v1"),
               m.release("shop-answer", "shop-answer-v1")]
    for o in objects:
        o["metadata"]["namespace"] = "shop"
    world.cluster.apply(objects)
    wait_for("the tenant's release", lambda: world.cluster.release("shop-answer", "shop").get(
        "status", {}).get("phase") == "Stable")
    yield "shop"
    world.cluster.kubectl("delete", "promptrelease", "shop-answer", "-n", "shop")


def test_a_client_key_opens_its_routes_and_is_given_out_and_withdrawn_while_gateways_run(world):
    world.first("keys-a")
    world.first("keys-b")
    gateway = world.gateways[0]
    assert code(ask(gateway, "keys-a", None)) == (401, "missing_api_key")
    assert code(ask(gateway, "keys-a", OWN)) == (401, "invalid_api_key")
    world.cluster.apply(m.client_key("own", OWN, routes="keys-a, other-*"))
    wait_for("the key", lambda: ask(gateway, "keys-a", OWN).status_code == 200, 10)
    assert ask(gateway, "keys-a", OWN, header="x-api-key").status_code == 200
    assert code(ask(gateway, "keys-b", OWN)) == (403, "route_not_permitted")
    assert models(gateway, OWN) == ["keys-a"]
    assert {"keys-a", "keys-b"} <= set(models(gateway, m.KEY))
    other = ask(gateway, "keys-b", m.KEY).headers["x-serinus-request-id"]
    score = httpx.post(f"{gateway.url}/serinus/v1/feedback", headers={"api-key": OWN},
                       json={"request_id": other, "score": 1})
    assert code(score) == (404, "unknown_request"), "another's requests are not there"
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="nonsense", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="ask who runs the gateway"):
        client.models.list()
    world.cluster.kubectl("delete", "secret", "own", "-n", "serinus-system")
    wait_for("the end of the key", lambda: ask(gateway, "keys-a", OWN).status_code == 401, 10)


def test_a_tenants_key_opens_the_tenants_routes_only(world, shop):
    world.first("keys-c")
    world.cluster.apply(m.client_key("mine", TENANT, namespace=shop, permissions="force"))
    world.cluster.kubectl("create", "rolebinding", "serinus-client-keys", "-n", shop,
                          "--clusterrole=serinus-gateway-client-keys",
                          "--serviceaccount=serinus-system:serinus-gateway")
    with another_gateway(world, "tenants", f"--tenant-key-namespaces={shop}") as gateway:
        assert ask(gateway, "shop-answer", TENANT).status_code == 200
        assert code(ask(gateway, "keys-c", TENANT)) == (403, "route_not_permitted")
        assert models(gateway, TENANT) == ["shop-answer"]
    # The others were not told to look there.
    assert code(ask(world.gateways[0], "shop-answer", TENANT)) == (401, "invalid_api_key")


def test_a_tenants_key_names_the_teams_that_it_may_and_no_others(world, shop):
    """A team is who pays: what a tenant writes into its own Secret does not make it another one."""
    def key(team: str) -> None:
        world.cluster.apply(m.client_key("mine", TENANT, namespace=shop, team=team))

    def problems() -> str:
        return httpx.get(f"http://127.0.0.1:{gateway.admin}/readyz?verbose").text

    world.cluster.kubectl("create", "rolebinding", "serinus-client-keys", "-n", shop,
                          "--clusterrole=serinus-gateway-client-keys",
                          "--serviceaccount=serinus-system:serinus-gateway", check=False)
    key("web")
    with another_gateway(world, "teams", f"--tenant-key-namespaces={shop}=web+api") as gateway:
        assert ask(gateway, "shop-answer", TENANT).status_code == 200
        key("search")
        wait_for("the end of the key",
                 lambda: code(ask(gateway, "shop-answer", TENANT)) == (401, "invalid_api_key"), 10)
        assert "Secret shop/mine: InvalidClientKey: the key names the team \"search\"" in problems()
        key("api")
        wait_for("the key", lambda: ask(gateway, "shop-answer", TENANT).status_code == 200, 10)
        assert "InvalidClientKey" not in problems()
        told = httpx.get(f"http://127.0.0.1:{gateway.admin}/serinus/v1/cost").json()["totals"]
        assert {line["team"] for line in told} == {"web", "api"}, told
        log = gateway.process.log.read_text()
        assert log.count("the key names the team") == 1, "it is told at the change, and once"
    world.cluster.kubectl("delete", "secret", "mine", "-n", shop)


def test_a_service_account_opens_the_routes_of_its_namespace_while_the_api_server_is_away(world, shop):
    world.first("keys-d")
    token = world.cluster.token("default", shop, audience="serinus-gateway")
    for_others = world.cluster.token("default", shop)
    with another_gateway(world, "accounts", "--service-account-tokens") as gateway:
        assert ask(gateway, "shop-answer", token).status_code == 200
        assert code(ask(gateway, "keys-d", token)) == (403, "route_not_permitted")
        assert code(ask(gateway, "shop-answer", for_others)) == (401, "invalid_api_key")
        head, claims, signature = token.split(".")
        for forged in (f"{head}.{claims}.", f"{head}.{claims[:-2]}AA.{signature}",
                       f"eyJhbGciOiJub25lIn0.{claims}."):
            assert code(ask(gateway, "shop-answer", forged)) == (401, "invalid_api_key")
        fresh = world.cluster.token("default", shop, audience="serinus-gateway")
        apiserver = world.cluster.parts["apiserver"]
        apiserver.pause()
        try:
            assert ask(gateway, "shop-answer", fresh).status_code == 200
        finally:
            apiserver.resume()
        world.cluster.wait_ready()
    assert code(ask(world.gateways[0], "shop-answer", token)) == (401, "invalid_api_key")


def test_a_report_is_for_operators_and_metrics_are_for_everybody(world, shop):
    people = world.cluster.folder / "people.tokens"
    people.write_text(f"{PEOPLE}\n")
    tokens = [None, m.KEY, world.cluster.token("serinus-operator"),
              world.cluster.token("serinus-operator", audience="serinus-gateway"),
              world.cluster.token("default", shop, audience="serinus-gateway")]
    with another_gateway(world, "looked-at", f"--admin-token-file={people}") as looked_at:
        for gateway, opens in ((world.gateways[0], None), (looked_at, PEOPLE)):
            admin = f"http://127.0.0.1:{gateway.admin}"
            for token in (*tokens, PEOPLE):
                shown = {} if token is None else {"authorization": f"Bearer {token}"}
                for path in ("report", "unread"):
                    answer = httpx.get(f"{admin}/serinus/v1/{path}", headers=shown | {"x-serinus-leader": "9"})
                    assert answer.status_code == (200 if token and token == opens else 401), answer.text
            for path in ("/metrics", "/healthz", "/readyz"):
                assert httpx.get(admin + path).status_code == 200


def test_no_log_metric_status_or_event_tells_a_secret(world):
    """Planted where they belong, used rightly and wrongly, then looked for everywhere."""
    upstream, wrong = "planted-upstream-0123456789", "planted-wrong-key-0123456789"
    client, short = "planted-client-key-0123456789", "planted-short"
    backend = m.backend("guarded", world.model.url)
    backend["spec"]["endpoint"]["apiKeySecretRef"] = {"name": "guarded", "key": "token"}
    world.cluster.apply([
        {"apiVersion": "v1", "kind": "Secret", "stringData": {"token": upstream},
         "metadata": m.meta("guarded") | {"annotations": {"serinus.dev/hosts": "127.0.0.1"}}},
        backend, m.client_key("planted", client), m.client_key("planted-bad", short)])
    world.cluster.kubectl("create", "rolebinding", "serinus-api-keys", "-n", "default",
                          "--clusterrole=serinus-gateway-api-keys",
                          "--serviceaccount=serinus-system:serinus-gateway", check=False)
    operator = world.cluster.token("serinus-operator", audience="serinus-gateway")
    signing = world.cluster.get("/api/v1/namespaces/serinus-system/secrets/serinus-request-ids")["data"]
    people = world.cluster.folder / "people.tokens"
    people.write_text(PEOPLE)
    told = []
    with another_gateway(world, "talkative", f"--admin-token-file={people}", env={"RUST_LOG": "debug"}) as gateway:
        for name, needed in (("guarded-good", upstream), ("guarded-bad", "another")):
            world.first(name, backend_name="guarded", marker=f"requireKey={needed}")
            wait_for("the route", lambda: name in models(gateway, client), 20)
            for key in (client, wrong, short, operator):
                for header in ("authorization", "api-key"):
                    answer = ask(gateway, name, key, header)
                    told.append(f"{answer.headers} {answer.text}")
        wait_for("an answer with the key",
                 lambda: ask(gateway, "guarded-good", client).status_code == 200, 40)
        time.sleep(0.5)
        told += [httpx.get(f"http://127.0.0.1:{g.admin}/metrics").text
                 for g in (gateway, *world.gateways)]
        report = httpx.get(f"http://127.0.0.1:{gateway.admin}/serinus/v1/report",
                           headers={"authorization": f"Bearer {PEOPLE}"})
        report.raise_for_status()
        told.append(report.text)
    logs = {file.name: file.read_text(errors="replace") for file in world.cluster.folder.glob("*.log")
            if not file.name.startswith(("kube-", "etcd", "audit"))}
    assert len(logs["talkative.log"]) > 1000, "a log without words hides nothing"
    told += list(logs.values())
    told.append(world.cluster.kubectl("get", "events,promptreleases,llmdeployments,promptversions,"
                                      "releasesnapshots", "-A", "-o", "yaml"))
    everything = "\n".join(told)
    # The marker in the prompt tells the model which key it needs: it is no leak.
    everything = everything.replace(f"requireKey={upstream}", "")
    for secret in (upstream, wrong, client, short, operator, PEOPLE, *signing.values(), m.KEY):
        where = [name for name, text in logs.items() if secret in text]
        assert secret not in everything, (secret[:12], where)
