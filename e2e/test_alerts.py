"""The chart's alerts, by promtool: each fires when it should and not when it should not; and their runbooks."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import yaml

from harness.chart import CHART
from harness.cluster import ROOT

RULES = CHART / "files/rules.yaml"
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
CASES = yaml.safe_load((ROOT / "e2e/alerts.yaml").read_text())
RUNBOOKS = ROOT / "docs/runbooks"


def promtool(*arguments: str) -> subprocess.CompletedProcess:
    """That of the Prometheus server that the tests use: it is in the same folder, or on the PATH."""
    beside = Path(os.environ.get("SERINUS_PROMETHEUS", "prometheus")).with_name("promtool")
    tool = str(beside) if beside.exists() else shutil.which("promtool")
    assert tool, f"no promtool beside SERINUS_PROMETHEUS ({beside}) and none on the PATH: install it beside Prometheus"
    return subprocess.run([tool, *arguments], capture_output=True, text=True)


def unit_test(name: str, case: dict, fires: bool) -> dict:
    """One test of promtool. What is always there is written here once."""
    rule, at = ALERTS[name], case["at"]
    expected = [{
        "exp_labels": {**case["labels"], "severity": rule["labels"]["severity"]},
        "exp_annotations": {**rule["annotations"], "summary": case["summary"]}}] if fires else []
    moments = [{"eval_time": at, "alertname": name, "exp_alerts": expected}]
    if fires:
        moments.insert(0, {"eval_time": f"{int(at.removesuffix('m')) - 1}m", "alertname": name, "exp_alerts": []})
    return {"interval": "1m", "alert_rule_test": moments, "input_series": [
        {"series": series, "values": str(values)} for series, values in case["series"].items()]}


def test_the_rules_are_valid():
    done = promtool("check", "rules", "--lint-fatal", str(RULES))
    assert done.returncode == 0 and f"{len(ALERTS)} rules found" in done.stdout, done.stdout + done.stderr


def test_every_alert_has_a_case_and_every_case_an_alert():
    assert CASES.keys() == ALERTS.keys()
    assert all({"fires", "quiet"} <= cases.keys() for cases in CASES.values())
    assert sum(len(group["rules"]) for group in GROUPS) == len(ALERTS), "an alert is there twice"


def test_each_alert_fires_when_it_should_and_only_then(tmp_path):
    tests = [unit_test(name, case, kind != "quiet") for name, cases in CASES.items() for kind, case in cases.items()]
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_runbook_and_each_runbook_an_alert():
    pages = {path.stem: path.read_text() for path in RUNBOOKS.glob("*.md") if path.stem != "README"}
    assert pages.keys() == ALERTS.keys()
    for name, text in pages.items():
        assert ALERTS[name]["annotations"]["runbook_url"].endswith(f"/docs/runbooks/{name}.md")
        assert text.startswith(f"# {name}\n") and re.findall(r"^## (.+)$", text, re.M) == ["Find out", "What to do"], name
        assert "\n**Users notice**: " in text, name


def test_what_the_runbooks_refer_to_is_there():
    for page in RUNBOOKS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_each_alert_says_how_grave_it_is_and_what_it_means():
    for name, rule in ALERTS.items():
        assert rule["labels"].keys() == {"severity"} and rule["labels"]["severity"] in ("critical", "warning", "info"), name
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}, name
