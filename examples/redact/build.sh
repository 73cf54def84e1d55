#!/usr/bin/env bash
# Compiles redact.wasm from src/ with zig's C compiler (a locked development dependency). Does nothing when it is newer.
set -euo pipefail
cd "$(dirname "$0")"
if [[ redact.wasm -nt build.sh && -z "$(find src -newer redact.wasm)" ]]; then exit 0; fi
zig="${ZIG:-../../.venv/bin/python-zig}"
export ZIG_GLOBAL_CACHE_DIR="${ZIG_GLOBAL_CACHE_DIR:-${AF_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/agentfactory}/zig}"
export ZIG_LOCAL_CACHE_DIR="$ZIG_GLOBAL_CACHE_DIR/local"
# zig's default shadow stack of 16 MiB would be most of the memory limit; this program needs 20 KiB.
"$zig" cc --target=wasm32-wasi -std=c11 -O2 -s -Wall -Wextra -Werror -Wl,-z,stack-size=131072 \
  -o redact.wasm.new src/main.c src/text.c src/detect.c
mv redact.wasm.new redact.wasm
