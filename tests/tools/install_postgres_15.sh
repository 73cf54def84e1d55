#!/usr/bin/env bash
# Installs Debian's PostgreSQL 15 programs for the integration tests. Starts no server and makes no cluster.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
mkdir -p /etc/postgresql-common/createcluster.d
echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.d/agentfactory-tests.conf
apt-get update -qq
apt-get install -y -qq --no-install-recommends postgresql-15 >/dev/null
/usr/lib/postgresql/15/bin/postgres --version
