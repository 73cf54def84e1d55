#!/bin/sh
# What the official image does of it: POSTGRES_USER, _DB, _PASSWORD_FILE, _INITDB_ARGS.
set -eu
as() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    install -d -m 0700 -o postgres -g postgres "$PGDATA"
    password=$(mktemp)
    cat "$POSTGRES_PASSWORD_FILE" > "$password"
    chown postgres "$password"
    # shellcheck disable=SC2086 - arguments
    as initdb -U "$POSTGRES_USER" --pwfile="$password" --auth-local=trust $POSTGRES_INITDB_ARGS >/dev/null
    rm "$password"
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    as pg_ctl -w -o "-c listen_addresses=" start >/dev/null
    as createdb -U "$POSTGRES_USER" "$POSTGRES_DB"
    as pg_ctl -w -m fast stop >/dev/null
fi
exec setpriv --reuid=postgres --regid=postgres --init-groups postgres -c listen_addresses='*'
