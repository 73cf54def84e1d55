#!/usr/bin/env bash
# Builds an OpenTelemetry Collector under CACHE, once for this file, and prints its path: install_collector.sh CACHE
# Of Go's module proxy, by the project's own builder: a static binary with the parts named here and no other.
set -euo pipefail
version=0.165.0
target=$1/otelcol-$version-$(sha256sum "$0" | cut -c1-16)
if [ ! -x "$target/otelcol" ]; then
    command -v go >/dev/null || { echo "the collector is built with Go 1.25 or later: https://go.dev/dl" >&2; exit 4; }
    mkdir -p "$1"
    folder=$(mktemp -d "$1/otelcol-XXXXXX")
    trap 'rm -rf "$folder"' EXIT
    core=go.opentelemetry.io/collector
    contrib=github.com/open-telemetry/opentelemetry-collector-contrib
    cat > "$folder/parts.yaml" <<YAML
dist: {name: otelcol, version: $version, output_path: $folder/build}
receivers:
  - gomod: $core/receiver/otlpreceiver v$version
processors:
  - gomod: $core/processor/batchprocessor v$version
  - gomod: $core/processor/memorylimiterprocessor v$version
exporters:
  - gomod: $core/exporter/debugexporter v$version
  - gomod: $core/exporter/otlpexporter v$version
  - gomod: $core/exporter/otlphttpexporter v$version
  - gomod: $contrib/exporter/zipkinexporter v0.148.0
extensions:
  - gomod: $contrib/extension/healthcheckextension v0.165.1
providers:
  - gomod: $core/confmap/provider/envprovider v1.71.0
  - gomod: $core/confmap/provider/fileprovider v1.71.0
  - gomod: $core/confmap/provider/yamlprovider v1.71.0
YAML
    CGO_ENABLED=0 GOFLAGS="-trimpath -buildvcs=false" \
        go run "$core/cmd/builder@v$version" --config "$folder/parts.yaml" >&2
    mkdir -p "$target"
    mv "$folder/build/otelcol" "$target/.otelcol" && mv "$target/.otelcol" "$target/otelcol"  # whole or not there
fi
echo "$target/otelcol"
