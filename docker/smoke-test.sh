#!/bin/sh
# Asks a control plane whether it does its work: smoke-test.sh HOST [AGENT], as AF_CLI_CLIENT. Runs the agent on a node when one is named.
set -eu
export AF_CLI_TARGET="$1:7443"
agentfactory node list --json > /tmp/nodes.json
agentfactory template list --json > /tmp/templates.json
if [ -n "${2:-}" ]; then
    printf '{}' | agentfactory run "$2" --input - --json > /tmp/run.json
fi
echo "$1 does its work"
