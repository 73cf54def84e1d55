#!/bin/sh
# First step of a new installation: random passwords of the database, made once and kept in a volume.
set -eu
umask 077
cd /run/agentfactory
[ -s pgpass ] && exit 0
random() { python3 -c 'import secrets; print(secrets.token_urlsafe(32))'; }
random > owner-password
random > service-password
{
    echo "postgres:5432:agentfactory:agentfactory:$(cat owner-password)"
    echo "postgres:5432:agentfactory:af_service:$(cat service-password)"
} > pgpass.new
mv pgpass.new pgpass
