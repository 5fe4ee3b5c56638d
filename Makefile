# The same targets for people and for CI.
.PHONY: test lint unit generate

test: lint unit

lint:
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings

unit:
	cargo test --locked

# Refreshes crds/ and the golden files; read the diff before committing it.
generate:
	SERINUS_REFRESH=1 cargo test --locked
