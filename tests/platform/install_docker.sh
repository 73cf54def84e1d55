#!/usr/bin/env bash
# Makes a Docker engine with compose run on a bare Debian as root, and the images that no registry gives here.
#
#   tests/platform/install_docker.sh            prints nothing when all is there
#
# A running engine is used as it is. Local images, agentfactory-test/…: base (Debian with Python 3.11), postgres (Debian's
# server behind the variables of the official image), prometheus (the program beside $PROMTOOL), openbao ($BAO), opa ($OPA),
# collector (built) and zipkin (Maven Central's, on Debian's Java). Packages, programs and the unpacked base are kept in
# AF_CACHE_DIR.
set -euo pipefail
cache=${AF_CACHE_DIR:-$HOME/.cache/agentfactory}/docker
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$cache"
source "$here/debian_sid.sh"
export DEBIAN_FRONTEND=noninteractive
plugins=${DOCKER_CONFIG:-$HOME/.docker}/cli-plugins
suite=bookworm
mirror=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -1) || true
mirror=${mirror:-http://deb.debian.org/debian}

# What is missing can be had by root on Debian alone: can WHAT.
can() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && return
    echo "there is no $1, and making one takes root on Debian; install a Docker engine with compose, and let this user use it" >&2
    exit 4
}

packages() {
    docker info >/dev/null 2>&1 && return
    command -v dockerd >/dev/null && return
    can "Docker engine"
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends docker.io >/dev/null
}

# Compose and buildx of Debian's next release run on this one as they are; nothing of it is installed.
compose() {
    docker compose version >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1 && return
    can "docker compose with buildx"
    local debs=$cache/debs
    if ! ls "$debs"/docker-compose_*.deb "$debs"/docker-buildx_*.deb >/dev/null 2>&1; then
        mkdir -p "$debs"
        sid_download "$debs" docker-compose docker-buildx
    fi
    local unpacked
    unpacked=$(mktemp -d)
    for package in "$debs"/docker-*.deb; do dpkg -x "$package" "$unpacked"; done
    mkdir -p "$plugins"
    cp "$unpacked"/usr/libexec/docker/cli-plugins/* "$plugins/"
    rm -rf "$unpacked"
}

engine() {
    docker info >/dev/null 2>&1 && return
    can "Docker engine that answers"
    setsid dockerd --data-root "$cache/data" --exec-root /run/agentfactory-docker > "$cache/dockerd.log" 2>&1 &
    for _ in $(seq 150); do
        docker info >/dev/null 2>&1 && return
        sleep 0.2
    done
    tail -n 20 "$cache/dockerd.log" >&2
    echo "the Docker engine does not start: it needs a machine that may mount and use cgroups, as a container with" \
        "--privileged may; its log is $cache/dockerd.log" >&2
    exit 4
}

base() {
    docker image inspect agentfactory-test/base >/dev/null 2>&1 && return
    local root=$cache/base-$suite
    if [ ! -e "$root.tar" ]; then
        can "base image"
        if ! command -v debootstrap >/dev/null; then
            apt-get update -qq
            apt-get install -y -qq --no-install-recommends debootstrap >/dev/null
        fi
        rm -rf "$root"
        debootstrap --variant=minbase --include=python3-minimal,python3-pip,python3-venv,ca-certificates,postgresql \
            "$suite" "$root" "$mirror" > "$cache/debootstrap.log" 2>&1 || { tail -n 20 "$cache/debootstrap.log" >&2; exit 4; }
        rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}
        tar -C "$root" -cf "$root.tar.new" . && mv "$root.tar.new" "$root.tar"
        rm -rf "$root"
    fi
    docker import "$root.tar" agentfactory-test/base >/dev/null
}

packages
compose
engine
base
# image NAME FILE...: NAME's Dockerfile with these files beside it, made again when one of them is another one.
image() {
    local name=$1 context key
    shift
    key=$(cat "$here/images/$name"/* "$@" | sha256sum | cut -c1-32)
    [ "$(docker image inspect --format '{{index .Config.Labels "made-of"}}' "agentfactory-test/$name" 2>/dev/null)" = "$key" ] && return
    context=$(mktemp -d)
    cp -- "$here/images/$name"/* "$@" "$context"
    for package in "$context"/*.deb; do [ -e "$package" ] && dpkg -x "$package" "$context/jre"; done
    rm -f "$context"/*.deb
    docker build --quiet --label "made-of=$key" --tag "agentfactory-test/$name" "$context" >/dev/null
    rm -rf "$context"
}

# Zipkin's program and the Java that runs it, into $cache; the program is the one of this digest or none.
zipkin() {
    local jar=$cache/zipkin.jar address=https://repo1.maven.org/maven2/io/zipkin/zipkin-server/3.5.1/zipkin-server-3.5.1-exec.jar
    local digest=7ac633a6832647e71e50012a5e3e91fbc7054414955261724526030faf271d8d
    if ! echo "$digest  $jar" | sha256sum --check --status 2>/dev/null; then
        curl --silent --show-error --fail --location --max-time 300 --output "$jar" "$address"
        echo "$digest  $jar" | sha256sum --check --quiet
    fi
    ls "$cache"/java/openjdk-17-jre-headless_*.deb >/dev/null 2>&1 && return
    can "Java"
    mkdir -p "$cache/java"
    apt-get update -qq
    (cd "$cache/java" && apt-get -o APT::Sandbox::User=root download -qq openjdk-17-jre-headless)
}

image postgres
image prometheus "$(dirname "$PROMTOOL")/prometheus"
image openbao "$BAO"
image opa "$OPA"
image collector "$("$here/install_collector.sh" "$(dirname "$cache")")"
zipkin
image zipkin "$cache/zipkin.jar" "$cache"/java/openjdk-17-jre-headless_*.deb
