#!/usr/bin/env python3
"""Writes argocd-cm.yaml, which gives Argo CD the health checks and actions, from the files in resource_customizations/.

    gitops/argocd/render.py          writes it
    gitops/argocd/render.py --check  writes nothing, and fails when it is not up to date
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILE = HERE / "argocd-cm.yaml"
HEAD = """\
# Written by gitops/argocd/render.py from resource_customizations/: do not edit.
# Add it to the ConfigMap of an Argo CD that runs:
#   kubectl patch configmap argocd-cm -n argocd --patch-file gitops/argocd/argocd-cm.yaml
apiVersion: v1
kind: ConfigMap
metadata:
  name: argocd-cm
  namespace: argocd
  labels:
    app.kubernetes.io/part-of: argocd
data:
"""
# A canary writes its status about once a second. Argo CD compares the whole application again only when
# the health of an object changes, and not for each of these writes.
UPDATES = "jsonPointers:\n- /status\n"


def block(key: str, text: str) -> str:
    """A YAML entry with a text of several lines."""
    return f"{key}: |\n" + "".join(f"  {line}".rstrip() + "\n" for line in text.splitlines())


def actions(folder: Path) -> str:
    names = sorted(path.parent.name for path in folder.glob("*/action.lua"))
    found = "".join(
        f"- name: {name}\n" + "".join(f"  {line}\n" for line in block(
            "action.lua", (folder / name / "action.lua").read_text()).splitlines())
        for name in names)
    return block("discovery.lua", (folder / "discovery.lua").read_text()) + "definitions:\n" + found


def rendered() -> str:
    entries = []
    for health in sorted(HERE.glob("resource_customizations/*/*/health.lua")):
        kind = f"{health.parent.parent.name}_{health.parent.name}"
        entries.append(block(f"resource.customizations.health.{kind}", health.read_text()))
        if (health.parent / "actions").is_dir():
            entries.append(block(f"resource.customizations.actions.{kind}", actions(health.parent / "actions")))
        entries.append(block(f"resource.customizations.ignoreResourceUpdates.{kind}", UPDATES))
    return HEAD + "".join(f"  {line}".rstrip() + "\n" for entry in entries for line in entry.splitlines())


def main() -> None:
    text = rendered()
    if sys.argv[1:] == ["--check"]:
        if not FILE.exists() or FILE.read_text() != text:
            sys.exit(f"{FILE.name} is not up to date: run gitops/argocd/render.py")
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        FILE.write_text(text)


if __name__ == "__main__":
    main()
