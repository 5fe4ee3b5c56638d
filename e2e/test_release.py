"""What the release workflow runs, as far as it runs here. No cluster is needed."""

import hashlib
import json
import re
import subprocess
import tomllib

import yaml

from harness.cluster import ROOT


def run(*command, code: int = 0) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_tag_is_released_only_with_its_version_everywhere():
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
    values = yaml.safe_load((ROOT / "charts/serinus/values.yaml").read_text())
    check, image = ROOT / "release/check.sh", values["image"]["repository"]
    run(check, f"v{version}", image)
    other = run(check, "v9.8.7", image, code=1)
    assert all(f"{what} is \"{version}\"" in other for what in (
        "version in Cargo.toml", "version in charts/serinus/Chart.yaml", "appVersion in charts/serinus/Chart.yaml"))
    assert "tests/fixtures/stored/9.8.7 is missing" in other
    assert "image.repository" in run(check, f"v{version}", "example.com/fork", code=1)
    assert "is no version" in run(check, "latest", image, code=1)


def test_the_krew_manifest_names_every_archive_with_its_checksum(tmp_path):
    archives = [tmp_path / f"kubectl-serinus_linux_{arch}.tar.gz" for arch in ("amd64", "arm64")]
    for archive in archives:
        archive.write_text(archive.name)
    found = yaml.safe_load(run(ROOT / "release/krew.sh", "v1.2.3", "example/serinus", *archives))
    assert (found["kind"], found["metadata"]["name"], found["spec"]["version"]) == ("Plugin", "serinus", "v1.2.3")
    assert len(found["spec"]["shortDescription"]) <= 50
    for archive, platform in zip(archives, found["spec"]["platforms"], strict=True):
        labels = platform["selector"]["matchLabels"]
        assert archive.name == f"kubectl-serinus_{labels['os']}_{labels['arch']}.tar.gz"
        assert platform["uri"] == f"https://github.com/example/serinus/releases/download/v1.2.3/{archive.name}"
        assert platform["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
        assert platform["bin"] == "kubectl-serinus"
    assert "is not named" in run(ROOT / "release/krew.sh", "v1.2.3", "example/serinus", "serinus.zip", code=1)


def test_the_sbom_names_every_crate_and_each_has_a_licence_that_is_allowed(tmp_path):
    notes = tmp_path / "image/var/lib/dpkg/status.d"
    notes.mkdir(parents=True)
    (notes / "libc6").write_text("Package: libc6\nArchitecture: amd64\nVersion: 2.36-9+deb12u1\nDescription: of GNU\n more\n")
    run(ROOT / "release/sbom.py", "--image", tmp_path / "image", "--out", tmp_path / "out")
    sbom = json.loads((tmp_path / "out/sbom.cdx.json").read_text())
    assert sbom["bomFormat"] == "CycloneDX" and sbom["metadata"]["component"]["name"] == "serinus"
    named = {c["purl"].split("@")[0]: c for c in sbom["components"]}
    # What a gateway runs, and nothing that only tests need.
    assert {"pkg:cargo/kube", "pkg:cargo/tokio", "pkg:cargo/rustls", "pkg:deb/debian/libc6"} <= set(named)
    assert not {"pkg:cargo/proptest", "pkg:cargo/rcgen"} & set(named)
    crates = [c for name, c in named.items() if name.startswith("pkg:cargo/")]
    assert len(crates) > 100 and all(c["hashes"] and c["licenses"] for c in crates)
    assert (named["pkg:cargo/tokio"]["scope"], named["pkg:cargo/serde_derive"]["scope"]) == ("required", "excluded")
    texts = (tmp_path / "out/licences.txt").read_text()
    assert all(f"\n{c['name']} {c['version']}: " in texts for c in crates)
    assert "Permission is hereby granted, free of charge" in texts


def test_licences_are_read_as_spdx_means_them(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "release"))
    from sbom import allowed

    permitted = {"MIT", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"}
    for expression, expected in {
        "MIT": True, "GPL-3.0": False, "MIT OR GPL-3.0": True, "MIT AND GPL-3.0": False, "Apache-2.0": False,
        "(MIT OR GPL-2.0) AND Unicode-3.0": True, "(GPL-2.0 OR GPL-3.0) AND MIT": False,
        "GPL-2.0 OR Apache-2.0 WITH LLVM-exception AND MIT": True, "MIT AND GPL-2.0 OR GPL-3.0": False,
    }.items():
        assert allowed(expression, permitted) == expected, expression


def test_workflows_run_actions_of_one_commit_each():
    used = [(file.name, line.strip()) for file in (ROOT / ".github/workflows").glob("*.yaml")
            for line in file.read_text().splitlines() if "uses:" in line]
    assert len(used) > 5
    loose = [line for line in used if not re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v[\d.]+$", line[1])]
    assert not loose, loose
