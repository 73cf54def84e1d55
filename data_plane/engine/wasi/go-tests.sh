#!/bin/sh
# Runs the tests of Go's own os, io/fs, path/filepath and time packages in the sandbox: an independent reading of preview 1
# by people who never saw this one. Needs Go and an installed `agentfactory`; prints the counts and every failure.
#
#     sh data_plane/engine/wasi/go-tests.sh
set -eu
goroot=$(go env GOROOT)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/root" "$scratch/root/tmp" "$scratch/root/etc"
cp /etc/hosts /etc/passwd /etc/group "$scratch/root/etc"
for package in os io/fs path/filepath time; do
    GOOS=wasip1 GOARCH=wasm go test -c -o "$scratch/test.wasm" "$package"
    timeout 300 agentfactory sandbox run --dir "$scratch/root::/" --dir "$goroot::$goroot:ro" \
        --env "PWD=$goroot/src/$package" --env TMPDIR=/tmp --env "GOROOT=$goroot" \
        --limit wall_ms=200000 --limit cpu_ms=200000 --limit memory_bytes=2000000000 --limit open_files=1000 \
        "$scratch/test.wasm" -test.v -test.short >"$scratch/out" 2>&1 </dev/null || true
    for result in PASS SKIP FAIL; do
        printf '%s %s %s\n' "$package" "$result" "$(grep -c "^--- $result" "$scratch/out")"
    done
    grep '^ *--- FAIL' "$scratch/out" || true
    grep -E '^(PASS|FAIL)$' "$scratch/out" >/dev/null || tail -n 5 "$scratch/out"
done
