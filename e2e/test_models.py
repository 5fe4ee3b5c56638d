"""Models end on a date: people are told before, releases move by canaries, and a model that is gone is no fault
of the application."""

import datetime
import json
import time

import httpx
import pytest
import yaml

from harness import manifests as m
from harness.processes import wait_for
from harness.standalone import Standalone
from harness.traffic import Traffic
from test_cli import serinus


def control(world, **behaviours) -> None:
    """Sets the behaviour of models by their names."""
    httpx.put(f"http://127.0.0.1:{world.model.port}/control", json=behaviours).raise_for_status()


def in_days(days: int) -> str:
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)).date().isoformat()


def backend(world, name: str) -> dict:
    return world.cluster.get(f"/apis/serinus.dev/v1alpha1/namespaces/default/llmdeployments/{name}")


def retirement(world, name: str) -> dict | None:
    conditions = backend(world, name).get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == "ModelRetirement"), None)


def events(world, name: str) -> list[str]:
    found = world.cluster.get("/apis/events.k8s.io/v1/namespaces/default/events")["items"]
    return [e["reason"] for e in found if e["regarding"].get("name") == name]


def ready(world, name: str) -> bool:
    conditions = backend(world, name).get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def test_every_release_moves_off_a_model_that_ends_by_a_canary(world, tmp_path):
    world.cluster.apply([m.backend("ends-soon", world.model.url, "ends-soon"),
                         m.backend("stays", world.model.url, "stays")])
    for name in ("moves-a", "moves-b"):
        world.cluster.apply([m.prompt(f"{name}-v1", "firstTokenMs=20"),
                             m.release(name, f"{name}-v1", "ends-soon")])
    world.first("falls-back", fallbackBackendRefs=[{"name": "ends-soon"}])
    for name in ("moves-a", "moves-b"):
        world.wait_phase(name, "Stable")
    assert retirement(world, "ends-soon") is None
    # The e-mail has come: what it says goes into the spec.
    date = in_days(20)
    world.cluster.patch("llmdeployment", "ends-soon", {"spec": {"retiresOn": date}})
    told = wait_for("the condition", lambda: retirement(world, "ends-soon"))
    assert (told["status"], told["reason"]) == ("True", "RetiresWithin30Days")
    assert date in told["message"] and "serinus migrate --from ends-soon" in told["message"]
    wait_for("the Event", lambda: "RetiresWithin30Days" in events(world, "ends-soon"))
    assert ready(world, "ends-soon"), "a date changes nothing for requests"
    assert date in world.cluster.kubectl("get", "llmd", "ends-soon")
    wait_for("the metric", lambda: world.leader and world.leader.metric(
        'serinus_model_days_left{namespace="default",llmdeployment="ends-soon"}') in (19, 20))
    told = json.loads(serinus(world, "models", "-o", "json"))
    assert told[0]["model"] == "ends-soon" and told[0]["until"] == date
    assert [(u["release"], u["uses"]) for u in told[0]["releases"]] == [
        ("default/falls-back", ["fallback"]), ("default/moves-a", ["stable"]), ("default/moves-b", ["stable"])]
    version, written = backend(world, "ends-soon")["metadata"]["resourceVersion"], time.monotonic()
    # Nothing is applied by the command itself.
    text = serinus(world, "migrate", "--from", "ends-soon", "--to", "better")
    print(text)
    named = [(d["kind"], d["metadata"]["name"]) for d in yaml.safe_load_all(text)]
    assert named == [("LLMDeployment", "better"), ("PromptRelease", "falls-back"),
                     ("PromptRelease", "moves-a"), ("PromptRelease", "moves-b")]
    assert world.phase("moves-a") == "Stable"
    folder = tmp_path / "better"
    assert serinus(world, "migrate", "--from", "ends-soon", "--to", "better", "--out", str(folder)).count(".yaml") >= 4
    assert "exists" in serinus(world, "migrate", "--from", "ends-soon", "--to", "better", "--out", str(folder), code=1)
    with Traffic(world.gateways, "moves-a") as a, Traffic(world.gateways, "moves-b") as b:
        world.cluster.kubectl("apply", "-f", str(folder))
        seen = wait_for("a canary", lambda: world.cluster.release("moves-a")["status"].get("canary"))
        assert (seen["backend"], seen["prompt"]) == ("better", "moves-a-v1")
        for name in ("moves-a", "moves-b"):
            wait_for("the promotion", lambda name=name: world.history(name)[-1][1] == "Promoted", 120)
            world.wait_phase(name, "Stable")
            status = world.cluster.release(name)["status"]
            assert status["stable"]["backend"] == "better"
    assert not a.errors() and not b.errors()
    spec = world.cluster.release("falls-back")["spec"]
    assert [f["name"] for f in spec["fallbackBackendRefs"]] == ["better"]
    assert "retiresOn" not in backend(world, "better")["spec"]
    assert "no PromptRelease uses" in serinus(world, "migrate", "--from", "ends-soon", "--to", "better", code=1)
    assert "they have" in serinus(world, "migrate", "--from", "nobody-has-it", "--to", "better", code=1)
    # A probe or more later nothing was written and nobody was told again.
    time.sleep(max(0.0, written + 35 - time.monotonic()))
    assert backend(world, "ends-soon")["metadata"]["resourceVersion"] == version
    assert events(world, "ends-soon").count("RetiresWithin30Days") == 1


def test_a_date_that_the_server_lists_is_known_and_that_of_the_spec_comes_first(world):
    date = in_days(50)
    control(world, listed={"shutdownDate": date}, other={"shutdownDate": in_days(3)})
    world.cluster.apply(m.backend("listed", world.model.url, "listed"))
    told = wait_for("the condition", lambda: retirement(world, "listed"))
    assert (told["reason"], date in told["message"]) == ("RetiresWithin60Days", True)
    assert backend(world, "listed")["status"]["retirement"] == {"date": date, "source": "Server"}
    later = in_days(400)
    world.cluster.patch("llmdeployment", "listed", {"spec": {"retiresOn": later}})
    told = wait_for("the spec's", lambda: (c := retirement(world, "listed"))["reason"] == "RetiresLater" and c)
    assert told["status"] == "False"
    assert backend(world, "listed")["status"]["retirement"] == {"date": later, "source": "Spec"}
    said = world.cluster.kubectl("patch", "llmdeployment", "listed", "--type=merge",
                                 "-p", '{"spec": {"retiresOn": "2027-02-30"}}', check=False)
    assert backend(world, "listed")["spec"]["retiresOn"] == later, said


def test_a_model_that_is_gone_is_told_while_another_backend_answers(world):
    spare = m.backend("spare", world.model.url, "spare")
    world.cluster.apply([m.backend("ended", world.model.url, "ended"), spare,
                         m.prompt("survives-v1", "firstTokenMs=20"),
                         m.release("survives", "survives-v1", "ended", fallbackBackendRefs=[{"name": "spare"}])])
    world.wait_phase("survives", "Stable")
    with Traffic(world.gateways, "survives") as users:
        time.sleep(1)
        control(world, ended={"gone": True})
        told = wait_for("the condition", lambda: retirement(world, "ended"), 60)
    assert not users.errors(), users.errors()[:5]
    assert (told["status"], told["reason"]) == ("True", "ModelGone")
    wait_for("the Event", lambda: "ModelGone" in events(world, "ended"))
    assert retirement(world, "spare") is None
    assert "gone" in serinus(world, "models")
    metrics = httpx.get(f"http://127.0.0.1:{world.gateways[0].admin}/metrics").text
    assert 'error_type="upstream_model_gone"' in metrics
    control(world, ended={})


@pytest.mark.parametrize("days", [5, -1])
def test_a_folder_tells_of_a_model_that_ends(world, tmp_path, days):
    alone = Standalone(tmp_path)
    ends = m.backend("model", world.model.url)
    ends["spec"]["retiresOn"] = in_days(days)
    alone.apply("all", ends, m.policy("quick"), m.prompt("kept-v1", "firstTokenMs=20"), m.release("kept", "kept-v1"))
    alone.start()
    try:
        reason = "RetiresWithin7Days" if days > 0 else "Retired"
        said = wait_for("the notice", lambda: next((
            line for line in httpx.get(f"http://127.0.0.1:{alone.admin}/readyz?verbose").text.splitlines()
            if reason in line), None))
        assert said.startswith("LLMDeployment default/model: ") and in_days(days) in said
    finally:
        alone.process.stop()


def test_a_file_says_when_models_end_of_which_nobody_else_says_it(world, tmp_path):
    """As LiteLLM's list and a product of endoflife.date, in a ConfigMap that may change."""
    litellm, claude = tmp_path / "models.json", tmp_path / "claude.json"

    def write(date: str) -> None:
        litellm.write_text(json.dumps({
            "sample_spec": {"litellm_provider": "one of ...", "deprecation_date": "YYYY-MM-DD"},
            "in-a-file": {"litellm_provider": "openai", "deprecation_date": date},
            "azure/written": {"litellm_provider": "azure", "deprecation_date": date}}))

    write(in_days(20))
    claude.write_text(json.dumps({"schema_version": "1.2.0", "result": {"name": "claude", "releases": [
        {"name": "claude-old", "isEol": False, "eolFrom": in_days(40)}]}}))
    by_other, written = (m.backend(f"filed-{model}", world.model.url, model) for model in ("claude-old", "written"))
    by_other["spec"]["provider"] = "anthropic"
    written["spec"].update(provider="azure", retiresOn=in_days(50))
    world.cluster.apply([m.backend("filed", world.model.url, "in-a-file"), by_other, written])
    # Without an operator's file, the command reads one.
    found = yaml.safe_load(serinus(world, "models", "-o", "yaml", "--model-dates", str(litellm)))
    until = {model["model"]: model["until"] for model in found}
    assert str(until["in-a-file"]) == in_days(20) and str(until["written"]) == in_days(50)
    assert "/dev/null: it is no JSON" in serinus(world, "models", "--model-dates", "/dev/null", code=1)
    commands = [list(operator.process.command) for operator in world.operators]
    try:
        for operator, command in zip(world.operators, commands):
            operator.process.stop()
            operator.process.command = [*command, f"--model-dates={litellm}", f"--model-dates={claude}"]
            operator.start()
        told = wait_for("the condition", lambda: retirement(world, "filed"), 60)
        assert told["reason"] == "RetiresWithin30Days" and "says the file of --model-dates" in told["message"], told
        assert backend(world, "filed")["status"]["retirement"] == {"date": in_days(20), "source": "File"}
        assert retirement(world, "filed-claude-old")["reason"] == "RetiresWithin60Days"
        assert backend(world, "filed-written")["status"]["retirement"]["source"] == "Spec"
        # What changes counts without a restart; what can not be read changes nothing.
        write(in_days(5))
        wait_for("the new date", lambda: retirement(world, "filed")["reason"] == "RetiresWithin7Days", 60)
        litellm.write_text("{")
        wait_for("the warning", lambda: any("what was read before stays" in operator.process.log.read_text()
                                            for operator in world.operators), 60)
        assert backend(world, "filed")["status"]["retirement"] == {"date": in_days(5), "source": "File"}
    finally:
        for operator, command in zip(world.operators, commands):
            operator.process.stop()
            operator.process.command = command
            operator.start()
        wait_for("a leader", lambda: world.leader, 60)
    wait_for("without the file", lambda: retirement(world, "filed") is None, 60)
