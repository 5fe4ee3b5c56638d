#!/usr/bin/env bash
# Instructions per request on the hot path, by crate and by function, for
# docs/performance.md: benches/callgrind.sh
# Needs valgrind (apt-get install valgrind). Builds a binary with symbols beside the
# usual one; the profiles stay in target/callgrind for callgrind_annotate or KCachegrind.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v valgrind >/dev/null || {
    echo "valgrind is missing: apt-get install valgrind" >&2
    exit 1
}
symbols="$PWD/target/symbols"
CARGO_PROFILE_DIST_STRIP=none CARGO_PROFILE_DIST_DEBUG=line-tables-only \
    cargo build --profile dist --locked --target-dir "$symbols"
export CALLGRIND_FOLDER="$PWD/target/callgrind"
rm -rf "$CALLGRIND_FOLDER"
mkdir -p "$CALLGRIND_FOLDER"
export SERINUS="valgrind --quiet --tool=callgrind --callgrind-out-file=$CALLGRIND_FOLDER/out $symbols/dist/serinus"
cargo bench --locked --bench gateways -- instructions
