# The same targets for people and for CI.
.PHONY: test lint unit e2e generate real-llm

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

# A real model, promoted and rolled back by measured answer quality (docs/real-llm.md).
real-llm:
	e2e/real-llm/run.sh
