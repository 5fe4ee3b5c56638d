#!/usr/bin/env bash
# Builds the pinned Helm, the kwok that stands in for nodes and kubelets, and the kube-score that reads
# what the chart renders, once into the user's cache, and prints the folder that holds them. Their key
# is their own: a new Helm builds no Kubernetes anew.
set -euo pipefail
cd "$(dirname "$0")"
key=$(cat helm/go.mod helm/go.sum kwok/go.mod kwok/go.sum kube-score/go.mod kube-score/go.sum helm.sh | sha256sum | cut -c1-12)
bin="${SERINUS_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/serinus-e2e}/helm-$key"
if [ ! -e "$bin/.complete" ]; then
  command -v go >/dev/null || { echo "the end-to-end tests need Go 1.26 or newer: https://go.dev/dl" >&2; exit 1; }
  mkdir -p "$bin"
  (cd helm && CGO_ENABLED=0 go build -ldflags "-s -w" -o "$bin/helm" helm.sh/helm/v4/cmd/helm >&2)
  (cd kwok && CGO_ENABLED=0 go build -ldflags "-s -w" -o "$bin/kwok" sigs.k8s.io/kwok/cmd/kwok >&2)
  (cd kube-score && CGO_ENABLED=0 go build -ldflags "-s -w" -o "$bin/kube-score" github.com/zegl/kube-score/cmd/kube-score >&2)
  # What nodes and pods go through is in the module's own manifests.
  stages=$(cd kwok && go list -m -f '{{.Dir}}' sigs.k8s.io/kwok)/kustomize/stage
  for stage in "$stages"/{node,pod}/fast/{node,pod}-*.yaml; do
    if [ -e "$stage" ]; then echo ---; cat "$stage"; fi
  done > "$bin/stages.yaml"
  # The definitions of PodMonitor and PrometheusRule, as the Prometheus Operator's own module has them.
  definitions=$(go mod download -json github.com/prometheus-operator/prometheus-operator@v0.85.0 |
    awk -F '"' '$2 == "Dir" {print $4}')
  for kind in podmonitors prometheusrules; do
    cp "$definitions/example/prometheus-operator-crd/monitoring.coreos.com_$kind.yaml" "$bin/$kind.yaml"
  done
  touch "$bin/.complete"
fi
echo "$bin"
