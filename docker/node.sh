#!/bin/sh
# A node: enrolls once, with the token that was handed to it, then runs as what it was enrolled as. `node.sh compiler`: one
# that compiles modules for others.
set -eu
umask 077
handed=/run/agentfactory/handed
module=data_plane${1:+.$1}
if [ ! -e node.json ]; then
    cp "$handed/trust.json" trust.json
    python3 -m "$module" enroll --token - --control-plane "$ENROLL_AT" < "$handed/token"
fi
unset ENROLL_AT
exec python3 -m "$module"
