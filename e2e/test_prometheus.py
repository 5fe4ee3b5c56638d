"""A real Prometheus as a source: it judges, and nothing it does wrong is taken for a verdict."""

import time

import pytest

from harness import manifests as m
from harness.processes import wait_for
from harness.prometheus import Exporter, Prometheus
from harness.traffic import Traffic

COUNTS = {
    "bad": 'sum(increase(app_bad_total{revision="{{ revision }}"}[{{ window }}]))',
    "total": 'sum(increase(app_requests_total{revision="{{ revision }}"}[{{ window }}]))',
}
STEPS = [{"weight": 50, "samples": 200}]


def shares(name: str, **query) -> dict:
    return {"name": name, "prometheus": query or COUNTS, "margin": {"harm": 0.03, "accept": 0.12}}


def value(name: str, **rule) -> dict:
    return {"name": name, "prometheus": {"value": 'app_load{revision="{{ revision }}"}', **rule}}


@pytest.fixture(scope="module")
def exporter():
    exporter = Exporter()
    yield exporter
    exporter.stop()


@pytest.fixture(scope="module")
def prometheus(shared, exporter):
    prometheus = Prometheus(shared.cluster.folder, exporter.address).start()
    shared.prometheus.target = prometheus.url
    yield prometheus
    prometheus.process.stop()
    shared.prometheus.target = None


@pytest.fixture
def proxy(world, prometheus):
    yield world.prometheus
    world.prometheus.heal()
    if not prometheus.process.alive:
        prometheus.start()


def count(exporter: Exporter, revision: str, bad_share: float) -> None:
    exporter.grow(f'app_requests_total{{revision="{revision}"}}', 100)
    exporter.grow(f'app_bad_total{{revision="{revision}"}}', 100 * bad_share)


def canary(world, name: str) -> str:
    """The revision of the canary that is about to run."""
    def found():
        return world.cluster.release(name)["status"].get("canary", {}).get("revision")
    return wait_for(f"the canary of {name}", found)


def look(world, name: str, metric: str) -> dict:
    analysis = world.cluster.release(name)["status"].get("analysis", [])
    return next((a for a in analysis if a["metric"] == metric), {"verdict": "", "message": ""})


def stable_of(world, name: str, policy: str) -> str:
    return world.first(name, policy)["status"]["stable"]["revision"]


def promoted(world, name: str, seconds: float = 60) -> None:
    def done():
        return (f"{name}-v2", "Promoted") in world.history(name)
    try:
        wait_for(f"{name} promoted", done, seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{world.cluster.kubectl('get', 'promptrelease', name, '-o', 'yaml')}") from None


def rolled_back(world, name: str, metric: str) -> None:
    release = world.wait_phase(name, "RolledBack", seconds=60)
    entry = release["status"]["history"][-1]
    assert entry["outcome"] == "RolledBack" and entry["message"].startswith(metric), entry


@pytest.mark.parametrize("bad_share, outcome", [(0.02, "promoted"), (0.3, "rolled back")])
def test_counts_decide(world, prometheus, exporter, bad_share, outcome):
    name = f"counted-{outcome.replace(' ', '-')}"
    world.cluster.apply(m.policy("counted", STEPS, [shares("custom")]))
    stable = stable_of(world, name, "counted")
    count(exporter, stable, 0.02)
    with Traffic(world.gateways, name):
        world.next(name, "v2", "firstTokenMs=20")
        count(exporter, canary(world, name), bad_share)
        if outcome == "promoted":
            promoted(world, name)
        else:
            rolled_back(world, name, "custom")
            assert world.cluster.release(name)["status"]["stable"]["revision"] == stable


def test_a_value_beyond_its_limit_rolls_back(world, prometheus, exporter):
    world.cluster.apply(m.policy("valued", STEPS, [*m.metrics(), value("load", max=0.8)]))
    stable_of(world, "valued", "valued")
    with Traffic(world.gateways, "valued"):
        world.next("valued", "v2", "firstTokenMs=20")
        exporter.set(f'app_load{{revision="{canary(world, "valued")}"}}', 0.95)
        rolled_back(world, "valued", "load")


def test_a_template_reads_the_histogram_of_an_engine(world, prometheus, exporter):
    """The variants differ in their backend; the new one has three times in ten a late first token."""
    backends = [m.backend(name, world.model.url, name) for name in ("vllm-old", "vllm-new")]
    query = {"template": "vllm-time-to-first-token", "slowerThan": "2s"}
    world.cluster.apply([*backends, m.policy("engine", STEPS, [shares("ttft", **query)])])
    for backend, fast in (("vllm-old", 0.99), ("vllm-new", 0.7)):
        labels = f'namespace="default",service="{backend}"'
        for suffix, share in ((f'_bucket{{{labels},le="1.0"}}', fast / 2), (f'_bucket{{{labels},le="2.5"}}', fast),
                              (f'_bucket{{{labels},le="+Inf"}}', 1), (f"_count{{{labels}}}", 1)):
            exporter.grow(f"vllm:time_to_first_token_seconds{suffix}", 100 * share)
    world.cluster.apply([m.prompt("engine-v1", "firstTokenMs=20"),
                         m.release("engine", "engine-v1", "vllm-old", "engine")])
    world.wait_phase("engine", "Stable")
    found = world.cluster.kubectl("get", "canarypolicy", "engine", "-o", "json")
    assert "slowerThan 2s is judged at the bucket bound 2.5 s" in found
    with Traffic(world.gateways, "engine"):
        world.cluster.patch("promptrelease", "engine", {"spec": {"backendRef": {"name": "vllm-new"}}})
        rolled_back(world, "engine", "ttft")


def faults(exporter: Exporter, series: str, proxy, prometheus):
    """What is done, the reason that must be told, how it is undone."""
    def load(value):
        return lambda: exporter.set(series, value)

    def broken(fault):
        return lambda: proxy.break_with(fault)

    other = series.replace("}", ',shard="b"}')
    good = load(0.1)
    yield lambda: exporter.drop("app_load"), "PrometheusEmpty", good
    yield load("NaN"), "PrometheusNotANumber", good
    yield load("+Inf"), "PrometheusInfinite", good
    yield lambda: exporter.set(other, 0.1), "PrometheusSeveralSeries", lambda: exporter.drop(other)
    # Answers of the real server to other questions.
    yield broken(("ask", '"a text"')), "PrometheusWrongType", proxy.heal
    yield broken(("ask", "up[1m]")), "PrometheusWrongType", proxy.heal
    yield broken(("ask", "sum(")), "PrometheusBadQuery", proxy.heal
    yield broken(("ask", "vector(0) / 0")), "PrometheusNotANumber", proxy.heal
    yield broken(("ask", "vector(1) / 0")), "PrometheusInfinite", proxy.heal
    yield broken(401), "PrometheusUnauthorized", proxy.heal
    yield broken(503), "PrometheusUnavailable", proxy.heal
    yield broken("slow"), "PrometheusTimeout", proxy.heal
    yield broken("down"), "PrometheusUnreachable", proxy.heal
    yield prometheus.process.kill, "PrometheusUnavailable", prometheus.start


def held_for(world, name: str, reason: str) -> bool:
    status = world.cluster.release(name)["status"]
    ready = next(c for c in status["conditions"] if c["type"] == "Ready")
    return status["phase"] == "Held" and ready["reason"] == "NoData" and reason in ready["message"]


def test_every_failure_holds_with_its_reason_and_judging_resumes_by_itself(world, prometheus, proxy, exporter):
    name = "faulty"
    # More good looks than there are between all the faults together.
    rule = value("load", max=0.8, consecutive=70)
    world.cluster.apply(m.policy("faulty", STEPS, [*m.metrics(), rule], noDataTimeout="1s"))
    stable_of(world, name, "faulty")
    with Traffic(world.gateways, name) as users:
        world.next(name, "v2", "firstTokenMs=20")
        series = f'app_load{{revision="{canary(world, name)}"}}'
        exporter.set(series, 0.1)
        wait_for("a first look", lambda: look(world, name, "load")["verdict"] == "Undecided", 30)
        weights = [v["weight"] for v in world.cluster.release(name)["status"]["routing"]["variants"]]
        assert weights == [50, 50]
        for do, reason, undo in faults(exporter, series, proxy, prometheus):
            began = time.monotonic()
            do()
            wait_for(reason, lambda: look(world, name, "load")["message"].startswith(f"{reason}: "), 20)
            said = time.monotonic() - began
            assert look(world, name, "load")["verdict"] == "NoData"
            # A connection that the change cut may be told of first.
            wait_for(f"to be held for {reason}", lambda: held_for(world, name, reason), 20)
            undo()
            wait_for(f"a look after {reason}", lambda: look(world, name, "load")["verdict"] == "Undecided", 20)
            print(f"{reason}: told after {said:.1f} s, judged again {time.monotonic() - began - said:.1f} s later")
            world.wait_phase(name, "Progressing", seconds=20)
        promoted(world, name, seconds=180)
    assert not users.errors(), users.errors()[:5]
    seen = [o["status"] for _, o in world.watcher.of(name)]
    with_canary = [s["routing"]["variants"] for s in seen if s.get("canary") and s["phase"] in ("Held", "Progressing")]
    assert {tuple(v["weight"] for v in variants) for variants in with_canary} <= {(100,), (50, 50)}
    assert not [s for s in seen if s["phase"] in ("RollingBack", "RolledBack")]
    assert world.leader.metric("serinus_prometheus_query_failures_total") > 0


def test_the_same_question_is_asked_once_for_all_releases_and_idle_ones_ask_nothing(world, prometheus, proxy, exporter):
    count(exporter, "any", 0.02)
    same = {"name": "same", "prometheus": {"value": "sum(up)", "min": 1, "consecutive": 100}}
    world.cluster.apply(m.policy("batched", STEPS, [same]))
    names = [f"batch-{i}" for i in range(4)]
    for name in names:
        world.first(name, "batched")
    proxy.asked.clear()
    time.sleep(2)
    assert not proxy.asked, "idle releases ask"
    for name in names:
        world.next(name, "v2", "firstTokenMs=20")
    for name in names:
        wait_for(f"a look at {name}", lambda: look(world, name, "same")["canary"], 30)
    proxy.asked.clear()
    time.sleep(5)
    # Four releases look twice a second each; one question serves all that are due together.
    print(f"{len(proxy.asked)} queries in 5 s for 4 releases")
    assert 0 < len(proxy.asked) <= 20, len(proxy.asked)


def test_many_questions_are_few_queries_and_a_bad_one_costs_nobody_else_anything(world, proxy, exporter):
    """What can not be asked together is asked alone; each text still gets its own answer or its own reason."""
    odd = {"own": 'app_load{release="{{ release }}",n="0"}',
           "scalar": 'scalar(app_load{release="{{ release }}",n="0"})',
           "broken": 'sum(app_load{release="{{ release }}"}',
           "refused": 'app_load{release="{{ release }}"} + on (nothing) group_left () app_load',
           "escaping": 'app_load{release="many-own",n="1"}, "a", "b", "", "") or label_replace(app_load'}
    numbers = range(1, 11)
    for kind, text in odd.items():
        texts = {f"load{n}": f'app_load{{release="{{{{ release }}}}",n="{n}"}}' for n in numbers} | {"odd": text}
        world.cluster.apply(m.policy(f"many-{kind}", STEPS, [
            {"name": name, "prometheus": {"value": text, "min": 0, "consecutive": 100}} for name, text in texts.items()]))
        for n in (0, *numbers):
            exporter.set(f'app_load{{release="many-{kind}",n="{n}"}}', len(kind) + n / 100)
        world.first(f"many-{kind}", f"many-{kind}")
    for kind in odd:
        world.next(f"many-{kind}", "v2", "firstTokenMs=20")

    def right(kind: str) -> bool:
        values = [look(world, f"many-{kind}", f"load{n}").get("canary", {}).get("value") for n in numbers]
        told = look(world, f"many-{kind}", "odd")
        fine = told.get("canary", {}).get("value") == len(kind) if kind in ("own", "scalar") else "PrometheusBadQuery" in told["message"]
        return values == [len(kind) + n / 100 for n in numbers] and fine

    for kind in odd:
        wait_for(f"the answers of {kind}", lambda: right(kind), 30)
    proxy.asked.clear()
    time.sleep(5)
    asked = list(proxy.asked)
    together = [q for q in asked if q.count("label_replace(app_load{release=") >= 8]
    texts = sum(max(1, q.count("serinus_query")) for q in asked)
    print(f"{texts} texts in {len(asked)} queries in 5 s, {len(together)} of them of many texts")
    assert together and len(asked) < texts / 3
    # What spoiled a query once is not put into another.
    spoiling = ("scalar(app_load", "sum(app_load", "group_left", '"a", "b"')
    assert not [q for q in together if any(text in q for text in spoiling)]
    for kind in odd:
        wait_for(f"the answers of {kind}, still", lambda: right(kind), 30)
