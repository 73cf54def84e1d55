#!/bin/bash
# Builds the CPython reactor: python.wasm and the part of the standard library that agents can import, as one zip of
# byte code. Everything is pinned by digest; the result depends on nothing but the sources. build.sh FOLDER
set -eu -o pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=guests/sources.sh
. "$here/../sources.sh"
out=$1
export AF_ZIG=${AF_ZIG:-$here/../../.venv/bin/python-zig}
[ -x "$AF_ZIG" ] || { echo "this needs zig (ziglang 0.17, a locked development dependency): run make ready" >&2; exit 4; }
jobs=${JOBS:-2}

VERSION=3.13.5
python=$(source_of python3.13 python3.13_$VERSION.orig.tar.xz 93e583f243454e6e9e4588ca2c2662206ad961659863277afcdb96801647d640)
zlib=$(source_of zlib "zlib_1.3.dfsg+really1.3.1.orig.tar.gz" 60dd315c07f616887caa029408308a018ace66e3d142726a97db164b3b8f69fb)

work=${AF_GUEST_WORK:-$(mktemp -d)}
[ -n "${AF_GUEST_WORK:-}" ] || trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{python,zlib,host,wasi,bin} "$out"
[ -e "$work/python/configure" ] || tar -C "$work/python" --strip-components=1 -xf "$python"
# The day of a build is not to be seen in it.
sed -i 's/^#define DATE __DATE__/#define DATE "Jan  1 2025"/; s/^#define TIME __TIME__/#define TIME "00:00:00"/' "$work/python/Modules/getbuildinfo.c"
[ -e "$work/zlib/zlib.h" ] || tar -C "$work/zlib" --strip-components=1 -xf "$zlib"
for tool in cc ar ranlib; do
    printf '#!/bin/sh\nexec "%s/../zig.sh" %s "$@"\n' "$here" "$tool" > "$work/bin/$tool"
    chmod +x "$work/bin/$tool"
done

step() { echo "· after $SECONDS s: $1"; }

step "the build machine's own Python $VERSION, which freezes the modules that a start needs"
unneeded=(_asyncio _bisect _blake2 _bz2 _codecs_{cn,hk,iso2022,jp,kr,tw} _contextvars _csv _ctypes _curses _curses_panel _datetime _dbm
    _decimal _elementtree _gdbm _hashlib _heapq _interp{channels,queues,reters} _json _lsprof _lzma _md5 _multi{bytecodec,processing}
    _pickle _posixshmem _posixsubprocess _queue _random _scproxy _sha{1,2,3} _socket _sqlite3 _ssl _statistics _tkinter _uuid
    _zoneinfo cmath fcntl grp mmap pyexpat readline resource select syslog termios unicodedata xxlimited{,_35} xxsubtype zlib)
if ! [ -x "$work/host/python" ]; then
    # Of its extension modules only those that pack the standard library, and linked in; the others are half of its build.
    (cd "$work/host" && for module in "${unneeded[@]}"; do export "py_cv_module_$module=n/a"; done && MODULE_BUILDTYPE=static ../python/configure -q --disable-test-modules --without-ensurepip CFLAGS="-O1 -g0" > configure.log 2>&1 \
        && make -s -j"$jobs" python > make.log 2>&1) || { tail -30 "$work"/host/{configure,make}.log >&2; exit 1; }
fi

step "zlib for WASI"
(cd "$work/zlib" && for file in adler32 crc32 deflate infback inffast inflate inftrees trees zutil compress uncompr; do
    "$work/bin/cc" -O2 -g0 -w -c $file.c -o $file.o
done && rm -f libz.a && "$work/bin/ar" Dcr libz.a ./*.o)

step "CPython for WASI"
# Codecs of Chinese, Japanese and Korean text: 1 MB of tables in each agent. Python's own tests and subprocesses: not for agents.
for module in _codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp _codecs_kr _codecs_tw _multibytecodec _posixsubprocess _interpchannels \
    _interpqueues _interpreters xxlimited xxlimited_35 xxsubtype; do
    export "py_cv_module_$module=n/a"
done
export CONFIG_SITE="$here/config.site ../python/Tools/wasm/config.site-wasm32-wasi" HOSTRUNNER=true PKG_CONFIG_PATH='' PKG_CONFIG_LIBDIR=/nonexistent
export CC=$work/bin/cc CPP="$work/bin/cc -E" CXX=/bin/false AR=$work/bin/ar RANLIB=$work/bin/ranlib
export CFLAGS="-O2 -g0 -ffile-prefix-map=$work=." ZLIB_CFLAGS="-I../zlib" ZLIB_LIBS="-L../zlib -lz"
cd "$work/wasi"
[ -e Makefile ] || ../python/configure -q --host=wasm32-wasip1 --build=x86_64-pc-linux-gnu --with-build-python="$work/host/python" \
    --disable-test-modules --without-doc-strings --with-pymalloc=yes > configure.log 2>&1 || { tail -30 configure.log >&2; exit 1; }
make -s -j"$jobs" libpython3.13.a > make.log 2>&1 || { tail -30 make.log >&2; exit 1; }
make -s -j"$jobs" Modules/_hacl/libHacl_Hash_SHA2.a Modules/_decimal/libmpdec/libmpdec.a Modules/expat/libexpat.a >> make.log 2>&1 \
    || { tail -30 make.log >&2; exit 1; }

step "the reactor"
for source in reactor missing; do
    "$CC" -O2 -g0 -Wall -Wextra -Wno-unused-parameter -I../python/Include -I. -c "$here/src/$source.c" -o $source.o
done
# Objects alone, in a fixed order: what the linker writes must not depend on how a directory is listed.
"$CC" -O2 -g0 -s -mexec-model=reactor -o "$out/python.wasm" reactor.o missing.o libpython3.13.a \
    $(find Modules -name 'lib*.a' | sort) ../zlib/libz.a -lwasi-emulated-signal -lwasi-emulated-getpid -lwasi-emulated-process-clocks -lm \
    -Wl,-z,stack-size=8388608
"$work/host/python" "$here/standard_library.py" "$work/python/Lib" "$out/stdlib.zip"
step "done"
(cd "$out" && sha256sum python.wasm stdlib.zip)
