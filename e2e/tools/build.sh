#!/usr/bin/env bash
# Builds the pinned etcd and Kubernetes binaries once into the user's cache and
# prints the folder that holds them. The folder's name is the hash of the pins,
# so a new pin builds anew and an old one stays warm.
set -euo pipefail
cd "$(dirname "$0")"
key=$(cat kubernetes/go.mod kubernetes/go.sum etcd/go.mod etcd/go.sum build.sh | sha256sum | cut -c1-12)
bin="${SERINUS_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/serinus-e2e}/$key"
if [ ! -e "$bin/.complete" ]; then
  command -v go >/dev/null || { echo "the end-to-end tests need Go 1.26 or newer: https://go.dev/dl" >&2; exit 1; }
  mkdir -p "$bin"
  version=$(awk '$1 == "k8s.io/kubernetes" {print $2} $2 == "k8s.io/kubernetes" {print $3}' kubernetes/go.mod | head -1)
  [ -n "$version" ]
  flags="-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$(echo "$version" | cut -d. -f2)"
  (cd etcd && CGO_ENABLED=0 go build -ldflags "-s -w" -o "$bin/etcd" go.etcd.io/etcd/server/v3 >&2)
  for part in kube-apiserver kube-controller-manager kubectl; do
    (cd kubernetes && CGO_ENABLED=0 go build -ldflags "$flags" -o "$bin/$part" "k8s.io/kubernetes/cmd/$part" >&2)
  done
  touch "$bin/.complete"
fi
echo "$bin"
