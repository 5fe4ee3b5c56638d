# The same targets for people and for CI.
.PHONY: test lint unit e2e generate manifests sbom fuzz real-llm

test: lint unit e2e

lint:
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings

unit:
	cargo test --locked

# Real operators, gateways and clients against a real API server. Needs Go and Python;
# what is built or downloaded stays in the user's cache folder.
e2e:
	e2e/run.sh

# Refreshes crds/ and the golden files; read the diff before committing it.
generate:
	SERINUS_REFRESH=1 cargo test --locked

# Renders deploy/ and the chart's table of values from the chart, docs/api.md from the definitions,
# and Argo CD's ConfigMap from its scripts. Needs Go, which builds Helm once, and Python 3.11.
manifests:
	charts/render.py
	"$$(e2e/tools/python.sh)/bin/python" docs/render.py
	gitops/argocd/render.py

# What the binary is made of (CycloneDX) and under which licences, in target/sbom; an error for a
# licence that deny.toml does not allow.
sbom:
	release/sbom.py --out target/sbom

# A minute of each fuzz target on stable Rust; with a nightly compiler and cargo-fuzz,
# `cd fuzz && cargo +nightly fuzz run request` and so on look further.
fuzz:
	SERINUS_FUZZ_SECONDS=$${SERINUS_FUZZ_SECONDS:-60} cargo test --locked --test fuzz -- --nocapture

# A real model, promoted and rolled back by measured answer quality (docs/real-llm.md).
real-llm:
	e2e/real-llm/run.sh
