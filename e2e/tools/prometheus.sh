#!/usr/bin/env bash
# Prints a Prometheus server: SERINUS_PROMETHEUS, the one that is installed, or the
# Debian package, unpacked once into the user's cache (nothing is installed).
set -euo pipefail
if [ -n "${SERINUS_PROMETHEUS:-}" ]; then echo "$SERINUS_PROMETHEUS"; exit 0; fi
if command -v prometheus; then exit 0; fi
folder="${SERINUS_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/serinus-e2e}/prometheus"
if [ ! -e "$folder/.complete" ]; then
  fail() {
    echo "the end-to-end tests need a Prometheus server ($1): install one (apt-get install prometheus, or" \
      "https://prometheus.io/download) so that it is on the PATH, or name it in SERINUS_PROMETHEUS" >&2
    exit 1
  }
  command -v apt-get >/dev/null || fail "there is no apt-get to download one"
  rm -rf "$folder" && mkdir -p "$folder"
  cd "$folder"
  apt-get download -q prometheus >&2 || { apt-get update -q >&2 && apt-get download -q prometheus >&2; } ||
    fail "apt-get download failed"
  dpkg -x prometheus_*.deb . || fail "the package could not be unpacked"
  rm prometheus_*.deb
  ./usr/bin/prometheus --version >&2 || fail "the one of the package does not run"
  touch .complete
fi
echo "$folder/usr/bin/prometheus"
