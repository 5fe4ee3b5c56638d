#!/usr/bin/env bash
# The end-to-end tests: builds what they need into the user's cache, then runs them.
# Arguments go to pytest: e2e/run.sh -k rollback -s
# Without arguments all run, the files spread over two processes with a cluster each.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="$(e2e/tools/python.sh)"
cargo build --locked
SERINUS_BIN="$(cargo metadata --format-version 1 --no-deps --locked | "$venv/bin/python" -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')/debug/serinus"
SERINUS_E2E_TOOLS="$(e2e/tools/build.sh)"
SERINUS_HELM="$(e2e/tools/helm.sh)"
SERINUS_KSTATUS="$(e2e/tools/kstatus.sh)"
SERINUS_ARGOCD="$(e2e/tools/argocd.sh)"
SERINUS_PROMETHEUS="$(e2e/tools/prometheus.sh)"
SERINUS_REDIS="$(e2e/tools/redis.sh)"
SERINUS_IMAGE_TOOLS="$(e2e/tools/image.sh)"
SERINUS_TRACING="$(e2e/tools/tracing-servers.sh)"
{ read -r SERINUS_NODE; read -r SERINUS_CLIENTS; } < <(e2e/tools/clients.sh)
export SERINUS_BIN SERINUS_E2E_TOOLS SERINUS_HELM SERINUS_KSTATUS SERINUS_ARGOCD SERINUS_PROMETHEUS SERINUS_REDIS SERINUS_IMAGE_TOOLS SERINUS_TRACING SERINUS_NODE SERINUS_CLIENTS
cd e2e
[ $# -gt 0 ] || set -- -n 2 --dist loadfile
exec "$venv/bin/python" -m pytest -q -ra -p no:cacheprovider "$@"
