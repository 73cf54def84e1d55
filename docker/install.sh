#!/bin/sh
# The installation: keys, certificates, schema; the same again after an upgrade. With "nodes": keys of the custodian, and
# what new nodes need.
set -eu
umask 077
handed=/run/agentfactory/handed
case "${1:-}" in
nodes)
    python3 /opt/agentfactory/bin/first_run.py keys
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
