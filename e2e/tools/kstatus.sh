#!/usr/bin/env bash
# Builds a program that says what kstatus makes of objects, with the library that the pinned Helm
# waits by, once into the user's cache, and prints its path.
set -euo pipefail
cd "$(dirname "$0")"
key=$(cat helm/go.mod helm/go.sum helm/kstatus/main.go kstatus.sh | sha256sum | cut -c1-12)
bin="${SERINUS_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/serinus-e2e}/kstatus-$key"
if [ ! -e "$bin/.complete" ]; then
  command -v go >/dev/null || { echo "the end-to-end tests need Go 1.26 or newer: https://go.dev/dl" >&2; exit 1; }
  mkdir -p "$bin"
  (cd helm && CGO_ENABLED=0 go build -ldflags "-s -w" -o "$bin/kstatus" ./kstatus >&2)
  touch "$bin/.complete"
fi
echo "$bin/kstatus"
