#!/usr/bin/env bash
# Prints a Redis server: SERINUS_REDIS, a Redis or Valkey that is installed, or the Debian
# package with its libraries, unpacked once into the user's cache (nothing is installed).
set -euo pipefail
if [ -n "${SERINUS_REDIS:-}" ]; then echo "$SERINUS_REDIS"; exit 0; fi
if command -v valkey-server || command -v redis-server; then exit 0; fi
folder="${SERINUS_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/serinus-e2e}/redis"
if [ ! -e "$folder/.complete" ]; then
  fail() {
    echo "the end-to-end tests need a Redis or Valkey server ($1): install one (apt-get install redis-server)" \
      "so that it is on the PATH, or name it in SERINUS_REDIS" >&2
    exit 1
  }
  command -v apt-get >/dev/null || fail "there is no apt-get to download one"
  rm -rf "$folder" && mkdir -p "$folder"
  cd "$folder"
  packages=(redis-server redis-tools libjemalloc2 liblzf1)
  apt-get download -q "${packages[@]}" >&2 || { apt-get update -q >&2 && apt-get download -q "${packages[@]}" >&2; } ||
    fail "apt-get download failed"
  for package in ./*.deb; do dpkg -x "$package" . || fail "the package could not be unpacked"; done
  rm ./*.deb
  # The server is a link to a program of the tools; its libraries are beside it.
  printf '#!/bin/sh\nLD_LIBRARY_PATH="%s" exec "%s" "$@"\n' "$(dirname "$folder"/usr/lib/*/libjemalloc.so.2)" \
    "$folder/usr/bin/redis-server" > redis && chmod +x redis
  ./redis --version >&2 || fail "the one of the package does not run"
  touch .complete
fi
echo "$folder/redis"
