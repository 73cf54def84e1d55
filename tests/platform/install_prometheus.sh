#!/usr/bin/env bash
# Unpacks Prometheus, promtool and Alertmanager of Debian's next release into FOLDER, once: install_prometheus.sh FOLDER
# Nothing is installed; they run on this release as they are.
set -euo pipefail
target=$1
[ -x "$target/promtool" ] && exit 0
source "$(dirname "$0")/debian_sid.sh"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
sid_download "$folder" prometheus promtool prometheus-alertmanager
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder/root"; done
mkdir -p "$target"
cp "$folder"/root/usr/bin/{prometheus,prometheus-alertmanager,amtool} "$target/"
cp "$folder"/root/usr/bin/promtool "$target/"  # last: it says that all is there
