#!/bin/sh
# The installation: keys, certificates, schema; the same again after an upgrade. With "policy": the bundle for the OPA
# servers. With "nodes": keys of the custodian, a policy that is in force, and what new nodes need.
set -eu
umask 077
handed=/run/agentfactory/handed
case "${1:-}" in
policy)
    for server in opa-1 opa-2; do
        agentfactory policy export --output "/run/policy/$server.new"
        mv "/run/policy/$server.new" "/run/policy/$server.tar.gz"
    done
    ;;
nodes)
    first_run=/opt/agentfactory/bin/first_run.py
    python3 $first_run keys
    python3 $first_run policy control-plane-1:7444
    # Whoever holds the token can enroll a node in this zone until it expires; nodes that are enrolled need none.
    cp /var/lib/agentfactory/trust.json /var/lib/agentfactory/ca.crt "$handed"
    agentfactory node token --zone "$NODE_ZONE" --uses 100 --hours 24 > "$handed/token.new"
    mv "$handed/token.new" "$handed/token"
    cat <<-'TEXT'

	Agent Factory runs. The first command to try:

	    docker compose run --rm cli node list

	and an agent, from a folder with agent.toml and its module:

	    docker compose run --rm -v "$PWD:/work" -w /work cli template build .

	TEXT
    ;;
*)
    exec agentfactory init --name "$INSTALLATION" \
        --server-name control-plane --server-name control-plane-1 --server-name control-plane-2 --server-name localhost \
        --service-password-file /run/agentfactory/service-password
    ;;
esac
