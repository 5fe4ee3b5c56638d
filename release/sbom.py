#!/usr/bin/env python3
"""What a release is made of, and under which licences.

    release/sbom.py --out FOLDER [--image FILES] [--platform x86_64-unknown-linux-gnu]

FOLDER gets sbom.cdx.json (CycloneDX 1.5: every crate in the binary, and the Debian packages that
image/rootfs.sh noted under FILES) and licences.txt (a line each, then the texts that the crates
carry). A crate whose licence deny.toml does not allow is an error.
"""

import argparse
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def ask_cargo(*arguments: str) -> str:
    return subprocess.run(["cargo", *arguments, "--locked"], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout


def built(platform: str) -> set[tuple[str, str]]:
    """Name and version of every crate that is built. `cargo metadata` also names optional ones that
    no feature turns on, where a feature of another crate mentions them (`name?/feature`)."""
    listed = ask_cargo("tree", f"--target={platform}", "--edges=no-dev", "--prefix=none", "--format={p}")
    return {(name, version.removeprefix("v")) for name, version, *_ in map(str.split, filter(None, listed.splitlines()))}


def crates(metadata: dict, named: set, checksums: dict) -> tuple[dict, list[dict], dict]:
    """The binary as a component, the crates of `named` that it is built from, and who depends on whom.
    Those of tests are not among them; those that only run at build time have the scope excluded."""
    packages = {p["id"]: p for p in metadata["packages"]}
    nodes = {n["id"]: n for n in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    reached = {root: "required"}
    todo = [root]
    while todo:
        at = todo.pop()
        for to in nodes[at]["deps"]:
            kinds = {kind["kind"] for kind in to["dep_kinds"]} - {"dev"}
            if not kinds or (packages[to["pkg"]]["name"], packages[to["pkg"]]["version"]) not in named:
                continue
            runs = reached[at] == "required" and None in kinds and not is_macro(packages[to["pkg"]])
            scope = "required" if runs else "excluded"
            if reached.get(to["pkg"]) not in (scope, "required"):
                reached[to["pkg"]] = scope
                todo.append(to["pkg"])
    depends = {purl(packages[at]): sorted(purl(packages[to["pkg"]]) for to in nodes[at]["deps"] if to["pkg"] in reached)
               for at in reached}
    components = []
    for at, scope in reached.items():
        package = packages[at]
        digest = checksums.get((package["name"], package["version"]))
        components.append({
            "type": "application" if at == root else "library", "bom-ref": purl(package),
            "name": package["name"], "version": package["version"], "purl": purl(package),
            **({} if at == root else {"scope": scope}),
            "licenses": [{"expression": expression(package)}],
            **({"hashes": [{"alg": "SHA-256", "content": digest}]} if digest else {})})
    [own] = [c for c in components if c["type"] == "application"]
    others = sorted((c for c in components if c is not own), key=lambda c: c["bom-ref"])
    return own, others, depends


def is_macro(package: dict) -> bool:
    return any("proc-macro" in target["kind"] for target in package["targets"])


def purl(package: dict) -> str:
    return f"pkg:cargo/{package['name']}@{package['version'].replace('+', '%2B')}"


def expression(package: dict) -> str:
    """As SPDX writes it; old crates have a slash for OR."""
    if not package["license"]:
        sys.exit(f"the crate {package['name']} names no licence: look at it, and replace it or clarify it in deny.toml")
    return re.sub(r"\s*/\s*", " OR ", package["license"])


def allowed(licence: str, permitted: set[str]) -> bool:
    """Whether an SPDX expression can be met by permitted licences. AND binds before OR."""
    tokens = re.findall(r"\(|\)|[^\s()]+(?:\s+WITH\s+[^\s()]+)?", licence)

    def either() -> bool:
        found = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            found |= both()
        return found

    def both() -> bool:
        found = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            found &= one()
        return found

    def one() -> bool:
        token = tokens.pop(0)
        if token != "(":
            return re.sub(r"\s+", " ", token) in permitted
        found = either()
        tokens.pop(0)
        return found

    return either()


def debian(files: Path) -> list[dict]:
    """The packages whose files are in the image. Their licences are texts in usr/share/doc."""
    found = []
    for note in sorted((files / "var/lib/dpkg/status.d").glob("*")):
        fields = dict(line.split(": ", 1) for line in note.read_text().splitlines() if re.match(r"^[A-Z][\w-]*: ", line))
        name = f"pkg:deb/debian/{fields['Package']}@{fields['Version'].replace('+', '%2B')}?arch={fields['Architecture']}"
        found.append({"type": "library", "bom-ref": name, "name": fields["Package"], "version": fields["Version"],
                      "purl": name, "scope": "required"})
    return found


def texts(metadata: dict, components: list[dict]) -> str:
    """The licences that the crates carry; the same text once, with everyone that it is of."""
    used = {c["purl"] for c in components}
    found: dict[str, list[str]] = {}
    for package in metadata["packages"]:
        if purl(package) in used:
            for file in sorted(Path(package["manifest_path"]).parent.glob("*")):
                if file.is_file() and re.match(r"(?i)(licen[cs]e|copying|notice|unlicense)", file.name):
                    text = file.read_text(errors="replace").strip().replace("\r\n", "\n")
                    found.setdefault(text, []).append(f"{package['name']} {package['version']}")
    parts = sorted((", ".join(sorted(set(names))), text) for text, names in found.items())
    return "\n\n".join(f"{'=' * 80}\n{names}\n{'=' * 80}\n{text}" for names, text in parts)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--image", type=Path, help="the files of the image")
    arguments.add_argument("--platform", default="x86_64-unknown-linux-gnu")
    given = arguments.parse_args()
    metadata = json.loads(ask_cargo("metadata", "--format-version=1", f"--filter-platform={given.platform}"))
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    checksums = {(p["name"], p["version"]): p.get("checksum") for p in lock["package"]}
    own, components, depends = crates(metadata, built(given.platform), checksums)
    permitted = set(tomllib.loads((ROOT / "deny.toml").read_text())["licenses"]["allow"])
    refused = [f"{c['name']} {c['version']}: {c['licenses'][0]['expression']}" for c in [own, *components]
               if not allowed(c["licenses"][0]["expression"], permitted)]
    if refused:
        sys.exit("licences that deny.toml does not allow:\n" + "\n".join(refused))
    system = debian(given.image) if given.image else []
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "sbom.cdx.json").write_text(json.dumps({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": {"component": own},
        "components": components + system,
        "dependencies": [{"ref": ref, "dependsOn": on} for ref, on in sorted(depends.items())]}, indent=1) + "\n")
    lines = [f"{c['name']} {c['version']}: {c['licenses'][0]['expression']}" for c in [own, *components]]
    lines += [f"{c['name']} {c['version']} (Debian): /usr/share/doc/{c['name']}/copyright in the image" for c in system]
    (given.out / "licences.txt").write_text("\n".join(lines) + "\n\n" + texts(metadata, components) + "\n")


if __name__ == "__main__":
    main()
