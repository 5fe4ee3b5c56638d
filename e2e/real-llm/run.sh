#!/usr/bin/env bash
# Releases prompts on a real model and writes docs/real-llm.md. The first run builds
# llama.cpp and downloads the model (about 250 MB) into the user's cache folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache="${SERINUS_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/serinus-e2e}"
key=$(cat e2e/real-llm/requirements.txt e2e/real-llm/run.sh | sha256sum | cut -c1-12)
venv="$cache/llm-$key"
if [ ! -e "$venv/.complete" ]; then
  command -v cmake >/dev/null || { echo "building llama.cpp needs cmake and a C++ compiler" >&2; exit 1; }
  python3 -m venv "$venv"
  # Native code of the build machine dies on others; AVX2 is everywhere where models run.
  CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF" \
    "$venv/bin/pip" install --disable-pip-version-check -r e2e/real-llm/requirements.txt
  touch "$venv/.complete"
fi
cargo build --release --locked
target="$(cargo metadata --format-version 1 --no-deps --locked | "$venv/bin/python" -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')"
SERINUS_BIN="$target/release/serinus" exec "$venv/bin/python" e2e/real-llm/run.py "$@"
