#!/usr/bin/env bash
# Prints two lines: a Node of version 22 or newer (the one that is installed, or npm's
# package of it), and the folder of the clients for it with what they need. Both are
# installed once into the user's cache; nothing else is changed.
set -euo pipefail
from="$(cd "$(dirname "$0")/../clients" && pwd)"
cache="${SERINUS_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/serinus-e2e}"
npm_needed() {
  command -v npm >/dev/null || {
    echo "the end-to-end tests need Node 22 or newer with npm (https://nodejs.org/en/download)" >&2
    exit 1
  }
}
node=$(command -v node || true)
if [ -z "$node" ] || [ "$("$node" -p 'parseInt(process.versions.node)')" -lt 22 ]; then
  npm_needed
  folder="$cache/node-22.23.3"
  if [ ! -e "$folder/.complete" ]; then
    rm -rf "$folder" && mkdir -p "$folder"
    npm install --prefix "$folder" --no-save --no-audit --no-fund --silent node@22.23.3 >&2
    "$folder/node_modules/.bin/node" --version >&2
    touch "$folder/.complete"
  fi
  node="$folder/node_modules/.bin/node"
fi
folder="$cache/clients-$(cat "$from"/* | sha256sum | cut -c1-12)"
if [ ! -e "$folder/.complete" ]; then
  npm_needed
  rm -rf "$folder" && mkdir -p "$folder"
  cp "$from"/* "$folder"
  PATH="$(dirname "$node"):$PATH" npm ci --prefix "$folder" --no-audit --no-fund --silent >&2
  touch "$folder/.complete"
fi
echo "$node"
echo "$folder"
