#!/bin/sh
# First step of a new installation: random passwords of the database, the seal and the certificate of the custodian.
# Made once and kept in volumes.
set -eu
umask 077
python3 /opt/agentfactory/bin/custody.py prepare
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
