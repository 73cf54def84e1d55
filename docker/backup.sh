#!/bin/sh
# Makes a backup now and then: backup.sh SECONDS. Makes the two keys when there are none, and says what to do with them.
set -eu
umask 077
keys=/run/agentfactory
if [ ! -s "$keys/backup-create.key" ]; then
    agentfactory backup keys --out "$keys"
    echo "MOVE $keys/backup-restore.key AWAY, to where the backups are not: without it none of them can be read" >&2
fi
while true; do
    agentfactory backup create --key "$keys/backup-create.key" --place "$AF_CLI_BACKUP_PLACE" --keep "${KEEP:-14}" || echo "no backup was made" >&2
    sleep "$1"
done
