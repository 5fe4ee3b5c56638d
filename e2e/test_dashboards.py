"""The chart's dashboards, alerts and the queries of their runbooks against a real Prometheus, which
scrapes real operators and gateways: what they name is exported, and what they ask has an answer."""

import json
import re
import time
from contextlib import ExitStack

import pytest

from harness import manifests as m
from harness.chart import CHART
from harness.cluster import ROOT
from harness.processes import wait_for
from harness.promql import Named
from harness.prometheus import Prometheus
from harness.traffic import Traffic
from test_alerts import ALERTS, RULES, RUNBOOKS

FILES = sorted((CHART / "files/dashboards").glob("*.json"))
BOARDS = {path.stem: json.loads(path.read_text()) for path in FILES}
# With these for its variables, as Grafana does it.
FILLED = {"$__rate_interval": "10s", "$__range": "5m", "$namespace": ".*", "$release": ".*"}
# They have no series before something goes wrong that nobody brings about here.
TROUBLE = {"serinus_reconcile_failures_total", "serinus_gateway_dropped_copies_total",
           "serinus_gateway_unjudged_answers_total"}
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.rs")))
# What operators and gateways register as counters, seen or not.
REGISTERED = {f"serinus_{prefix}{name}_total" for part, prefix in (("controllers", ""), ("gateway", "gateway_"))
              for name in re.findall(r'register\(\s*"(\w+)",', (ROOT / f"src/{part}/exported.rs").read_text())}
OF_TARGETS = {"namespace", "instance", "le"}
EVERY = pytest.mark.parametrize("name", BOARDS)


def targets(board: dict) -> list[tuple[str, str]]:
    """The title of the panel, and the query as it is sent."""
    return [(panel["title"], filled(target["expr"])) for panel in board["panels"] for target in panel.get("targets", [])]


def filled(query: str) -> str:
    for variable, value in FILLED.items():
        query = query.replace(variable, value)
    assert "$" not in query, f"a variable that nobody fills in: {query}"
    return query


# What can be seen without Prometheus.


@EVERY
def test_a_dashboard_is_as_grafana_wants_it(name):
    board = BOARDS[name]
    assert board["uid"] == f"serinus-{name}" and board["schemaVersion"] >= 39 and "id" not in board
    variables = {v["name"]: v for v in board["templating"]["list"]}
    source = variables.pop("datasource")
    assert (source["type"], source["query"], source["label"]) == ("datasource", "prometheus", "Data source")
    assert {f"${v}" for v in variables} <= FILLED.keys()
    ids, taken = [], set()
    for panel in board["panels"]:
        ids.append(panel["id"])
        # graph, singlestat and table-old are gone from Grafana.
        assert panel["type"] in ("row", "stat", "timeseries", "table", "state-timeline"), panel["type"]
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, f"{panel['title']} overlaps"
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["fieldConfig"]["defaults"]["unit"] and panel["targets"] and panel["description"], panel["title"]
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert len({t["refId"] for t in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            # Other programs have metrics of these names, too, but not with this label.
            assert all("traffic=" in one for one in re.findall(r"gen_ai_\w+{([^}]*)}", target["expr"])), target["expr"]
            histogram = re.search(r"_bucket\b", target["expr"])
            assert not histogram or re.match(r"histogram_quantile\([\d.]+, sum by \(le\b", target["expr"]), target["expr"]
    assert len(set(ids)) == len(ids)
    text = json.dumps(board["panels"])
    assert all(f"${v}" in text for v in variables), "a variable that no query uses"
    assert all(v["datasource"]["uid"] == "${datasource}" for v in variables.values())


def test_a_query_is_read_for_what_it_names():
    named = Named('sum by (a) (rate(x_total{b=~"p|q",c!=""}[5m])) / on (d) group_left () count(y) > 0 or vector(0)')
    assert named.metrics == {"x_total", "y"} and named.labels == {"a", "b", "c", "d"}
    assert named.values == {("b", "p"), ("b", "q")}


# What Prometheus says.


class Told:
    """A Prometheus that has seen a good release, a bad canary, and what has no price or no prompt."""

    def __init__(self, prometheus: Prometheus):
        self.prometheus = prometheus
        self.metrics = set(prometheus.get("label/__name__/values"))
        self.labels = set(prometheus.get("labels"))

    def wrong(self, query: str) -> list[str]:
        """What the query names and nobody exports."""
        named = Named(query)
        wrong = [f"metric {name}" for name in named.metrics - self.metrics - (TROUBLE & REGISTERED)]
        wrong += [f"label {label}" for label in named.labels - self.labels - OF_TARGETS
                  if not re.search(rf"\b{label}\b", SOURCE)]
        # A word is a literal of the source, or a variant of an enum that is written as it is called.
        wrong += [f"{label}={word}" for label, word in named.values if f'"{word}"' not in SOURCE
                  and not re.search(rf"^    {word},$", SOURCE, re.M)]
        return wrong

    def empty(self, query: str) -> bool:
        """Whether it has no number to show."""
        return all(s["value"][1] == "NaN" for s in self.prometheus.query(query))


@pytest.fixture(scope="module")
def told(shared, tmp_path_factory):
    cluster = shared.cluster
    admins = [f"127.0.0.1:{part.admin}" for part in [*shared.operators, *shared.gateways]]
    prometheus = Prometheus(tmp_path_factory.mktemp("dashboards"), *admins, rules=RULES,
                            labels={"namespace": "serinus-system"}).start()
    shared.prometheus.target = prometheus.url
    unpriced = m.backend("unpriced", shared.model.url)
    del unpriced["spec"]["pricing"]
    # Nobody exports it: the queries are sent, and fail.
    asks = {"name": "app", "prometheus": {"value": 'of_nobody{revision="{{ revision }}"}', "max": 1}}
    cluster.apply([unpriced, m.policy("asking", measured=[*m.metrics(), asks]),
                   m.prompt("unpriced-v1"), m.release("unpriced", "unpriced-v1", "unpriced"),
                   m.prompt("cached-v1"), m.release("cached", "cached-v1", cache={"ttl": "10m"}),
                   m.release("nowhere", "of-nobody")])
    try:
        shared.first("seen", policy="asking")
        for name in ("unpriced", "cached"):
            shared.wait_phase(name, "Stable")
        with ExitStack() as traffic:
            traffic.enter_context(Traffic(shared.gateways, "seen"))
            for name in ("unpriced", "cached"):
                traffic.enter_context(Traffic(shared.gateways, name, rate=4, threads=1))
            shared.next("seen", "v2", "firstTokenMs=20 errorRate=0.4 badJsonRate=0.3")
            shared.wait_phase("seen", "RolledBack", seconds=90)
            time.sleep(2)
            yield Told(prometheus)
    finally:
        prometheus.process.stop()
        shared.prometheus.target = None
        cluster.kubectl("delete", "promptreleases", "--all", "--wait=false")


@EVERY
def test_each_query_of_a_dashboard_has_an_answer(told, name):
    asked = targets(BOARDS[name])
    wrong = {title: wrong for title, query in asked if (wrong := told.wrong(query))}
    assert not wrong, "names that nobody exports"
    def without():
        return [(title, query) for title, query in asked
                if not Named(query).metrics & TROUBLE and told.empty(query)]
    try:
        wait_for("an answer to each query", lambda: not without())
    except AssertionError:
        raise AssertionError(f"no data: {without()}") from None


@EVERY
def test_each_variable_of_a_dashboard_has_values(told, name):
    for variable in BOARDS[name]["templating"]["list"]:
        if variable["type"] == "query":
            series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", filled(variable["definition"])).groups()
            assert variable["query"] == variable["definition"]
            assert told.prometheus.get(f"label/{label}/values", **{"match[]": series}), variable["name"]


def test_alerts_and_runbooks_name_what_is_exported(told):
    asked = {name: rule["expr"] for name, rule in ALERTS.items()}
    for page in RUNBOOKS.glob("*.md"):
        for number, query in enumerate(re.findall(r"```promql\n(.*?)\n```", page.read_text(), re.S)):
            asked[f"{page.name} {number}"] = query
            told.prometheus.query(query)
    wrong = {name: wrong for name, query in asked.items() if (wrong := told.wrong(query))}
    assert not wrong, "names that nobody exports"


def test_prometheus_evaluates_each_alert(told):
    """Those that fire at once are about what has happened here."""
    def evaluated():
        rules = [r for group in told.prometheus.get("rules")["groups"] for r in group["rules"]]
        return rules if all(r["health"] == "ok" for r in rules) else None
    rules = wait_for("all rules", evaluated)
    assert {r["name"] for r in rules} == ALERTS.keys()
    state = {r["name"]: r["state"] for r in rules}
    assert state["SerinusReleaseRolledBack"] == "firing"
    # They have to last for a while.
    for name in ("SerinusReleaseProblem", "SerinusRoutesNotBuilt", "SerinusCostUnknown"):
        assert state[name] == "pending", name
    for name in ("SerinusOperatorMissing", "SerinusNoLeader", "SerinusNoGateways", "SerinusGatewaySilent",
                 "SerinusGatewaysNotScraped", "SerinusStableErrors", "SerinusMemoryNearBudget", "SerinusRequestsShed"):
        assert state[name] == "inactive", name
    for rule in rules:
        for alert in rule["alerts"]:
            assert "error expanding" not in str(alert["annotations"]), alert
