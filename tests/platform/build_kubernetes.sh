#!/usr/bin/env bash
# Builds etcd, Kubernetes' control plane, kubectl and KWOK into FOLDER, once: build_kubernetes.sh FOLDER
# Versions are those of tests/platform/kubernetes/go.mod. About 15 minutes of processor time.
set -euo pipefail
target=$1
[ -e "$target/ready" ] && exit 0
command -v go >/dev/null || { echo "Kubernetes is built with Go 1.26 or later: https://go.dev/dl" >&2; exit 4; }
cd "$(dirname "$0")/kubernetes"
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v1.}
mkdir -p "$target"
CGO_ENABLED=0 go build -trimpath -o "$target/" -ldflags "-s -w \
    -X k8s.io/component-base/version.gitVersion=$version \
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=${minor%%.*}" \
    go.etcd.io/etcd/server/v3 k8s.io/kubernetes/cmd/{kube-apiserver,kube-controller-manager,kube-scheduler,kubectl} \
    sigs.k8s.io/kwok/cmd/kwok
[ -e "$target/etcd" ] || mv "$target/v3" "$target/etcd" 2>/dev/null || mv "$target/server" "$target/etcd"
stages=$(go list -m -f '{{.Dir}}' sigs.k8s.io/kwok)/kustomize/stage
for stage in node/fast/node-initialize node/heartbeat-with-lease/node-heartbeat-with-lease \
    pod/fast/pod-ready pod/fast/pod-complete pod/fast/pod-delete; do
    echo ---
    cat "$stages/$stage.yaml"
done > "$target/stages.yaml"
touch "$target/ready"
