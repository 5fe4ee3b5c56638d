#!/usr/bin/env bash
# The Python of the end-to-end tests and of docs/render.py: a virtual environment in the
# user's cache with e2e/requirements.txt. Prints its folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache="${SERINUS_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/serinus-e2e}"
key=$(sha256sum e2e/requirements.txt | cut -c1-12)
venv="$cache/venv-$key"
if [ ! -e "$venv/.complete" ]; then
  command -v python3 >/dev/null || { echo "the end-to-end tests need Python 3.11 or newer" >&2; exit 1; }
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r e2e/requirements.txt
  touch "$venv/.complete"
fi >&2
echo "$venv"
