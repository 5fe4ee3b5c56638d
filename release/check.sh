#!/usr/bin/env bash
# Whether TAG may be released: release/check.sh TAG IMAGE
# One version is in the tag, Cargo.toml and the chart, and the chart names the image that is pushed.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -ne 2 ]; then
  echo "usage: release/check.sh TAG IMAGE" >&2
  exit 2
fi
tag=$1 image=$2 wrong=0
if [[ ! $tag =~ ^v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$ ]]; then
  echo "the tag $tag is no version: name it like v1.2.3 or v1.2.3-rc.1" >&2
  exit 1
fi
expect() {
  if [ "$2" != "$3" ]; then
    echo "$1 is \"$2\", and this release has $3: change $1, commit, and tag that commit" >&2
    wrong=1
  fi
}
expect "version in Cargo.toml" "$(awk -F '"' '/^version = / {print $2; exit}' Cargo.toml)" "${tag#v}"
expect "version in charts/serinus/Chart.yaml" "$(awk '/^version:/ {print $2}' charts/serinus/Chart.yaml)" "${tag#v}"
expect "appVersion in charts/serinus/Chart.yaml" "$(awk -F '"' '/^appVersion:/ {print $2}' charts/serinus/Chart.yaml)" "${tag#v}"
expect "image.repository in charts/serinus/values.yaml" "$(awk '/^  repository:/ {print $2; exit}' charts/serinus/values.yaml)" "$image"
# What users have stored is kept for tests of the next version (docs/releasing.md).
if [[ $tag != *-* && ! -e tests/fixtures/stored/${tag#v}/objects.json ]]; then
  echo "tests/fixtures/stored/${tag#v} is missing: run e2e/keep_stored.py as docs/releasing.md says" >&2
  wrong=1
fi
exit $wrong
