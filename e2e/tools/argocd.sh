#!/usr/bin/env bash
# Builds the pinned Argo CD once into the user's cache, and prints the folder that holds it, its
# parts by their names, and its definitions.
set -euo pipefail
cd "$(dirname "$0")"
key=$(cat argocd/go.mod argocd/go.sum argocd.sh | sha256sum | cut -c1-12)
bin="${SERINUS_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/serinus-e2e}/argocd-$key"
if [ ! -e "$bin/.complete" ]; then
  command -v go >/dev/null || { echo "the end-to-end tests need Go 1.26 or newer: https://go.dev/dl" >&2; exit 1; }
  rm -rf "$bin" && mkdir -p "$bin"
  (cd argocd && go mod download github.com/argoproj/argo-cd/v3)
  module=$(cd argocd && go list -m -f '{{.Dir}}' github.com/argoproj/argo-cd/v3)
  # The controller's metrics have no option for their address: a copy is built with the loopback's.
  cp -r argocd "$bin/build" && cp -r "$module" "$bin/build/argo-cd" && chmod -R u+w "$bin/build"
  sed -i 's/"0\.0\.0\.0:%d"/"127.0.0.1:%d"/' "$bin/build/argo-cd/controller/appcontroller.go"
  if cmp -s "$module/controller/appcontroller.go" "$bin/build/argo-cd/controller/appcontroller.go"; then
    echo "Argo CD's controller says elsewhere now where its metrics listen: look at argocd.sh" >&2
    exit 1
  fi
  cd "$bin/build"
  go mod edit -replace github.com/argoproj/argo-cd/v3=./argo-cd
  CGO_ENABLED=0 go build -mod=mod -ldflags "-s -w" -o "$bin/argocd" github.com/argoproj/argo-cd/v3/cmd >&2
  cd "$bin" && rm -r build
  for part in repo-server application-controller applicationset-controller; do
    ln -s argocd "$bin/argocd-$part"
  done
  cp "$module"/manifests/crds/*-crd.yaml "$bin/"
  touch "$bin/.complete"
fi
echo "$bin"
