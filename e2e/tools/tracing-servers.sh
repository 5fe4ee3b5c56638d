#!/usr/bin/env bash
# Prints the folder of the servers that spans are sent to, each in a virtual environment
# of its own, installed once into the user's cache: Arize Phoenix and MLflow, both large.
set -euo pipefail
PHOENIX=20.26.1
MLFLOW=3.17.2
folder="${SERINUS_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/serinus-e2e}/tracing-phoenix-$PHOENIX-mlflow-$MLFLOW"
install() {
  [ -e "$folder/$1/.complete" ] && return
  rm -rf "${folder:?}/$1"
  python3 -m venv "$folder/$1"
  "$folder/$1/bin/pip" install --quiet --disable-pip-version-check "$2" >&2 || {
    echo "the end-to-end tests need $2 from PyPI, which could not be installed" >&2
    exit 1
  }
  touch "$folder/$1/.complete"
}
mkdir -p "$folder"
install phoenix "arize-phoenix==$PHOENIX" &
phoenix=$!
install mlflow "mlflow==$MLFLOW"
wait "$phoenix"
echo "$folder"
