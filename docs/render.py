#!/usr/bin/env python3
"""Writes docs/api.md from crds/, and the policies of docs/cookbook.md from examples/policy-*.yaml.

    docs/render.py          writes both
    docs/render.py --check  writes nothing, and fails when one is not up to date

Needs PyYAML, which the Python in the folder has that e2e/tools/python.sh prints.
"""

import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
# In the order in which a reader meets them.
KINDS = ("PromptRelease", "PromptVersion", "LLMDeployment", "CanaryPolicy", "ReleaseSnapshot")
HEAD = """# API reference

<!-- Written by docs/render.py from crds/: do not edit. -->

Group `serinus.dev`, version `v1alpha1`; all kinds are namespaced. `kubectl explain promptrelease.spec --recursive` says the same of the definitions in your cluster.

A **bold** field is required. `[]` is a list, `{}` a map. A duration is written as in Go: `500ms`, `30s`, `1h30m`. A rule is checked by the API server, which refuses what breaks it with the words in *italics*. A field is *as written* when the definition does not look into it.

"""
DURATION = "^([0-9]+(\\.[0-9]+)?(ms|s|m|h))+$"
NAME = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
POLICY = re.compile(r"(<!-- (examples/policy-\S+\.yaml) -->\n```yaml\n)(.*?)(```\n)", re.S)


def definitions() -> dict[str, dict]:
    found = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]
    return {d["spec"]["names"]["kind"]: d["spec"] for d in found if d["kind"] == "CustomResourceDefinition"}


def is_as_written(schema: dict) -> bool:
    values = schema.get("additionalProperties")
    anything = "x-kubernetes-preserve-unknown-fields"
    return bool(schema.get(anything) or isinstance(values, dict) and values.get(anything))


def number(value: float) -> str:
    return f"{value:,.15g}" if abs(value) < 1e15 else f"{value:g}"


def limits(schema: dict) -> str:
    """How large or long it may be, in words."""
    def between(least, most, unit: str = "") -> str:
        ends = [number(x) for x in (least, most) if x is not None]
        if not ends:
            return ""
        words = " to ".join(ends) if len(ends) == 2 else f"at least {ends[0]}" if most is None else f"at most {ends[0]}"
        return f"{words}{unit}"
    found = [
        between(schema.get("minimum"), schema.get("maximum")),
        between(schema.get("minLength"), schema.get("maxLength"), " characters"),
        between(schema.get("minItems"), schema.get("maxItems"), " items"),
        between(schema.get("minProperties"), schema.get("maxProperties"), " entries"),
    ]
    pattern = schema.get("pattern")
    if pattern == DURATION:
        return ""
    if pattern == NAME:
        return "a name as Kubernetes has them"
    if pattern:
        found.append(f"`{pattern.replace('|', chr(92) + '|')}`")
    return ", ".join(x for x in found if x)


def kind_of(schema: dict) -> str:
    if options := schema.get("enum"):
        return " \\| ".join(f"`{option}`" for option in options if option is not None)
    if schema.get("pattern") == DURATION:
        return "duration"
    if is_as_written(schema):
        return "as written"
    if schema.get("type") == "array":
        return f"list of {kind_of(schema['items'])}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map of {kind_of(schema['additionalProperties'])}"
    if schema.get("x-kubernetes-int-or-string"):
        return "integer or string"
    return schema.get("type", "as written")


def flow(value) -> str:
    """A default as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return number(value) if isinstance(value, float) else str(value) or '""'


def sentence(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def rules(schema: dict) -> str:
    messages = [rule.get("message", rule["rule"]) for rule in schema.get("x-kubernetes-validations", [])]
    return "".join(f" *{sentence(message)}.*" for message in messages)


def rows(schema: dict, path: str = "") -> list[str]:
    """A row for each field, in depth; what a list or map holds stands under the list or map."""
    found = []
    required = schema.get("required", [])
    for name, field in sorted(schema.get("properties", {}).items(), key=lambda item: (item[0] not in required, item[0])):
        here = f"{path}{name}"
        inner, inside = field, here
        while inner.get("type") == "array":
            inner, inside = inner["items"], f"{inside}[]"
        values = inner.get("additionalProperties")
        if isinstance(values, dict) and not is_as_written(inner):
            inner, inside = values, f"{inside}{{}}"
        said = sentence(field.get("description", "")) + rules(field)
        if inner is not field:
            of_one = sentence(inner.get("description", ""))
            said += (f" Each: {of_one}" if of_one and inner.get("properties") else "") + rules(inner)
        bounds = limits(field) or (limits(inner) and f"each {limits(inner)}")
        # A default of a whole object is told by its fields.
        default = flow(field["default"]) if "default" in field and not field.get("properties") else ""
        if len(default) > 80:
            default = "see the description"
        shown = f"**`{here}`**" if name in required else f"`{here}`"
        kind = kind_of(field) + (f"; {bounds}" if bounds else "")
        found.append(f"| {shown} | {kind} | {default and f'`{default}`'} | {said.strip()} |")
        if not is_as_written(inner):
            found += rows(inner, f"{inside}.")
    return found


def table(schema: dict) -> str:
    return "\n".join(["| field | type | default | what it is |", "|---|---|---|---|", *rows(schema)]) + "\n"


def api() -> str:
    text = HEAD
    found = definitions()
    assert set(found) == set(KINDS), f"docs/render.py does not know of {set(found) ^ set(KINDS)}"
    for kind in KINDS:
        names, version = found[kind]["names"], found[kind]["versions"][0]
        schema = version["schema"]["openAPIV3Schema"]
        short = "".join(f", `{name}`" for name in names.get("shortNames", []))
        text += f"## {kind}\n\n{schema['description'].strip()}\n\n`kubectl get {names['plural']}`{short}\n\n"
        for part in [p for p in schema["properties"] if p not in ("apiVersion", "kind", "metadata")]:
            inner = schema["properties"][part]
            text += f"### {kind} {part}\n\n"
            if rules(inner) or rules(schema):
                text += (rules(inner) + (rules(schema) if part == "spec" else "")).strip() + "\n\n"
            if inner.get("properties"):
                text += table(inner) + "\n"
            else:
                text += f"{sentence(inner.get('description', ''))} ({kind_of(inner)})\n\n"
    return text.rstrip() + "\n"


def cookbook() -> str:
    text = (ROOT / "docs/cookbook.md").read_text()
    return POLICY.sub(lambda block: block[1] + (ROOT / block[2]).read_text() + block[4], text)


def main() -> None:
    written = {ROOT / "docs/api.md": api(), ROOT / "docs/cookbook.md": cookbook()}
    if sys.argv[1:] == ["--check"]:
        old = [str(path.relative_to(ROOT)) for path, text in written.items()
               if not path.exists() or path.read_text() != text]
        if old:
            sys.exit(f"not as it is rendered: {', '.join(old)}: run docs/render.py and commit what it writes")
        return
    for path, text in written.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
