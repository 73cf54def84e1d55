#!/usr/bin/env bash
# Builds etcd, Kubernetes' control plane, kubectl and KWOK into FOLDER, once: build_kubernetes.sh FOLDER
# Versions are those of tests/platform/kubernetes/go.mod. About 15 minutes of processor time.
set -euo pipefail
mkdir -p "$1"
target=$(cd "$1" && pwd)
cd "$(dirname "$0")/kubernetes"
ready=$target/ready-$(cat go.mod go.sum ../build_kubernetes.sh | sha256sum | cut -c1-16)
[ -e "$ready" ] && exit 0
command -v go >/dev/null || { echo "Kubernetes is built with Go 1.26 or later: https://go.dev/dl" >&2; exit 4; }

version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v1.}
# The compiler collects its garbage less often: a fifth less processor time, for memory of at most 2 GiB.
export GOGC=800
CGO_ENABLED=0 go build -trimpath -o "$target/" -ldflags "-s -w \
    -X k8s.io/component-base/version.gitVersion=$version \
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=${minor%%.*}" \
    go.etcd.io/etcd/server/v3 k8s.io/kubernetes/cmd/{kube-apiserver,kube-controller-manager,kube-scheduler,kubectl} \
    sigs.k8s.io/kwok/cmd/kwok
ln -sf server "$target/etcd"

# How its nodes and pods behave.
stages=$(go list -m -f '{{.Dir}}' sigs.k8s.io/kwok)/kustomize/stage
for stage in node/fast/node-initialize node/heartbeat-with-lease/node-heartbeat-with-lease \
    pod/fast/pod-ready pod/fast/pod-complete pod/fast/pod-delete; do
    echo ---
    cat "$stages/$stage.yaml"
done > "$target/stages.yaml"

# The operators' kinds that the chart has objects of.
module() { go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'; }
prometheus=$(module github.com/prometheus-operator/prometheus-operator@v0.85.0)/example/prometheus-operator-crd
secrets=$(module github.com/external-secrets/external-secrets@v1.3.2)/config/crds/bases
mkdir -p "$target/crds"
cp -f "$prometheus"/monitoring.coreos.com_{servicemonitors,prometheusrules}.yaml \
    "$secrets/external-secrets.io_externalsecrets.yaml" "$target/crds/"
chmod u+w "$target"/crds/*
touch "$ready"
