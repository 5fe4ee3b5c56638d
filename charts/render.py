#!/usr/bin/env python3
"""Writes what is made from the chart: deploy/*.yaml for kustomize, and the chart's README.md.

    charts/render.py             writes both
    charts/render.py --check     writes nothing, and fails when one is not up to date
    charts/render.py --one-file  prints one manifest of everything, definitions included

Helm is that of HELM, or the one that e2e/tools/helm.sh builds once.
"""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "charts" / "serinus"
DEPLOY = ROOT / "deploy"
VALUES = ROOT / "charts" / "deploy-values.yaml"
NAMESPACE = "serinus-system"
HEAD = "# Rendered from charts/serinus by charts/render.py: do not edit.\n"
# What is true of objects that Helm has installed only.
OF_HELM = re.compile(r"^ *(app\.kubernetes\.io/(instance|managed-by)|helm\.sh/chart): .*\n", re.M)
# Helm prints kinds in the order in which it applies them; people look for these first.
FIRST = ("Deployment", "Service")
TABLE = "<!-- Written by charts/render.py from values.yaml. -->\n"


def helm() -> str:
    if found := os.environ.get("HELM"):
        return found
    built = subprocess.run([ROOT / "e2e/tools/helm.sh"], check=True, stdout=subprocess.PIPE, text=True)
    return f"{built.stdout.strip()}/helm"


def documents(*arguments: str) -> list[tuple[str, str]]:
    """The documents of the chart: (the file of the template, the text)."""
    done = subprocess.run(
        [helm(), "template", "serinus", str(CHART), f"--namespace={NAMESPACE}", f"--values={VALUES}", *arguments],
        capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    found = re.split(r"^---\n# Source: serinus/templates/(\S+)\n", done.stdout, flags=re.M)[1:]
    texts = [OF_HELM.sub("", text).strip() + "\n" for text in found[1::2]]
    return list(zip(found[::2], texts))


def deploy() -> dict[Path, str]:
    files: dict[str, list[str]] = {}
    for file, text in documents():
        files.setdefault(file, []).append(text)
    def second(text: str) -> bool:
        return re.search(r"^kind: (\S+)", text, re.M)[1] not in FIRST
    return {DEPLOY / file: HEAD + "---\n".join(sorted(texts, key=second)) for file, texts in files.items()}


def one_file() -> str:
    texts = [text for _, text in documents("--set=crds.enabled=true")]
    return "---\n".join([(DEPLOY / "namespace.yaml").read_text(), *texts])


def values(text: str) -> list[tuple[str, str, str]]:
    """Each value with its default and what its comment says."""
    found, path, comment, rows = [], [], "", text.splitlines()
    for number, line in enumerate(rows):
        spaces, rest = len(line) - len(line.lstrip()), line.strip()
        if rest.startswith("# "):
            comment = f"{comment} {rest[2:]}".strip()
            continue
        named = re.match(r"([A-Za-z]+):(.*)", rest)
        if not rest or not named or len(path) < spaces // 2:
            comment = ""
            continue
        path = [*path[:spaces // 2], named[1]]
        default = named[2].strip()
        if comment:
            # A list or map of several lines is everything deeper than its name.
            deeper = itertools.takewhile(lambda row: len(row) - len(row.lstrip()) > spaces, rows[number + 1:])
            found.append((".".join(path), default or " ".join(row.strip() for row in deeper), comment))
        comment = ""
    return found


def readme() -> dict[Path, str]:
    path = CHART / "README.md"
    rows = [f"| `{name}` | `{default}` | {what} |"
            for name, default, what in values((CHART / "values.yaml").read_text())]
    table = "\n".join(["| value | default | what it is |", "|---|---|---|", *rows]) + "\n"
    return {path: path.read_text().split(TABLE)[0] + TABLE + "\n" + table}


def main() -> None:
    if sys.argv[1:] == ["--one-file"]:
        print(one_file(), end="")
        return
    written = deploy() | readme()
    if sys.argv[1:] == ["--check"]:
        old = [str(path.relative_to(ROOT)) for path, text in written.items()
               if not path.exists() or path.read_text() != text]
        if old:
            sys.exit(f"not as the chart renders it: {', '.join(old)}: run charts/render.py and commit what it writes")
        return
    for path, text in written.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
