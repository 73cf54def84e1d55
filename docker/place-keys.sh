#!/bin/sh
# Copies handed files to where programs want them, as files of their owner alone: place-keys.sh FROM TO
# Kubernetes names them without folders: keys.order.key becomes keys/order.key, clients.admin.crt clients/admin.crt.
set -eu
umask 077
for file in "$1"/*; do
    name=$(basename "$file")
    case "$name" in
    keys.*) name=keys/${name#keys.} ;;
    clients.*) name=clients/${name#clients.} ;;
    esac
    mkdir -p "$2/$(dirname "$name")"
    cat "$file" > "$2/$name"
done
