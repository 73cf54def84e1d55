#!/bin/sh
# zig as the C compiler of WASI SDK, whose linker flags it does not all know: zig.sh cc|ar|ranlib ARGUMENT...
tool=$1
shift
if [ "$tool" != cc ]; then
    exec "$AF_ZIG" "$tool" "$@"
fi
set -- "$@" __END__
while [ "$1" != __END__ ]; do
    argument=$1
    shift
    case $argument in -Wl,--stack-first | -Wl,--initial-memory=*) ;; *) set -- "$@" "$argument" ;; esac
done
shift
exec "$AF_ZIG" cc -target wasm32-wasi -Wno-deprecated "$@"
