#!/bin/bash
# Builds the QuickJS reactor, javascript.wasm. Everything is pinned by digest. build.sh FOLDER
set -eu -o pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=guests/sources.sh
. "$here/../sources.sh"
out=$1
export AF_ZIG=${AF_ZIG:-$here/../../.venv/bin/python-zig}
[ -x "$AF_ZIG" ] || { echo "this needs zig (ziglang 0.17, a locked development dependency): run make ready" >&2; exit 4; }

VERSION=2025.04.26
source=$(source_of quickjs quickjs_$VERSION.orig.tar.xz ec81da5b3249ed648dbc7df4a1654988910e66a118d9b71cb63534216efcfbbe)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
tar -C "$work" --strip-components=1 -xf "$source"
cd "$work"
compile() { "$here/../zig.sh" cc -O2 -g0 -D_GNU_SOURCE -fno-strict-aliasing -ffile-prefix-map="$work"=. "$@"; }

# dtoa.c includes setjmp.h and uses nothing of it; WASI has none.
mkdir none && touch none/setjmp.h
objects=()
for file in quickjs libregexp libunicode cutils dtoa; do
    # EMSCRIPTEN: no atomics, no computed goto. The check of the stack goes with it and is wanted here.
    compile -DCONFIG_VERSION="\"$VERSION\"" -DEMSCRIPTEN -DCONFIG_STACK_CHECK -D_WASI_EMULATED_SIGNAL -Inone -w -c $file.c -o $file.o
    objects+=("$file.o")
done
compile -std=c11 -Wall -Wextra -Werror -Wno-unused-parameter -isystem . -c "$here/src/reactor.c" -o reactor.o
"$here/../zig.sh" cc -O2 -g0 -s -mexec-model=reactor "${objects[@]}" reactor.o -o "$out/javascript.wasm" -Wl,-z,stack-size=1048576
(cd "$out" && sha256sum javascript.wasm)
