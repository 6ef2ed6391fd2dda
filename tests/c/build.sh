#!/usr/bin/env bash
# tests/c/build.sh PREFIX FOLDER: compiles the C and C++ tests into FOLDER against an installation in PREFIX.
set -euo pipefail
umask 022

[ $# = 2 ] || { echo "usage: build.sh PREFIX FOLDER" >&2; exit 2; }
prefix=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")"

pc=$(find "$prefix" -name xpmem.pc -print -quit)
[ -n "$pc" ] || { echo "build.sh: no xpmem.pc below $prefix" >&2; exit 1; }
export PKG_CONFIG_PATH=${pc%/*}
CC=${CC:-cc} CXX=${CXX:-c++}
warnings=(-Wall -Wextra -Werror)
# Word splitting is what these are for.
cflags=$(pkg-config --cflags xpmem) libs=$(pkg-config --libs xpmem)
static_libs=$(pkg-config --static --libs xpmem | sed 's/-lxpmem/-l:libxpmem.a/')
libdir=$(pkg-config --variable=libdir xpmem)
[ "$(pkg-config --cflags --libs cray-xpmem)" = "$(pkg-config --cflags --libs xpmem)" ] ||
    { echo "build.sh: cray-xpmem.pc and xpmem.pc differ" >&2; exit 1; }

c() {
    # shellcheck disable=SC2086
    "$CC" -std=gnu11 -D_GNU_SOURCE -O2 -g "${warnings[@]}" $cflags "$@"
}

# The headers, by themselves, in every dialect.
printf '#include <rmap.h>\n#include <xpmem.h>\nint main(void) { struct rmap_counters c; c.size = sizeof(c); return rmap_counters(&c) + XPMEM_PERMIT_MODE - 1; }\n' >"$out/header.c"
for dialect in c99 c11 c17; do
    # shellcheck disable=SC2086
    "$CC" -std=$dialect -pedantic "${warnings[@]}" $cflags -fsyntax-only "$out/header.c"
done
for dialect in c++11 c++14 c++17 c++20; do
    # shellcheck disable=SC2086
    "$CXX" -x c++ -std=$dialect -pedantic "${warnings[@]}" $cflags -fsyntax-only "$out/header.c"
done
rm "$out/header.c"

# shellcheck disable=SC2086
{
    "$CC" -std=c99 -pedantic -O2 "${warnings[@]}" $cflags abi.c -o "$out/abi" $libs
    c errno.c -o "$out/errno" $libs
    c ioctl.c -o "$out/ioctl" $libs
    c counters.c -o "$out/counters" $libs
    c children.c -o "$out/children" $libs
    c -pthread pair.c -o "$out/pair" $libs
    c -pthread pair.c -o "$out/pair-static" $static_libs
    c -pthread law.c -o "$out/law" $libs -ldl
    c -pthread -DLINKED_STATICALLY=1 law.c -o "$out/law-static" $static_libs -ldl
    c dl.c -o "$out/dl" -ldl
    "$CXX" -std=c++17 -O2 -g -pthread "${warnings[@]}" $cflags pair.cc -o "$out/pair-cc" $libs
}
printf '%s\n' "$libdir" >"$out/libdir"
