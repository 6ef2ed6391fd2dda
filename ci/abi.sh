#!/usr/bin/env bash
# ci/abi.sh [PREFIX]: the installed library is what programs that were built for XPMEM's own one expect.
# Without PREFIX: the release build.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

if [ $# -gt 0 ]; then
    library=$1/lib/libxpmem.so.0.0.0 archive=$1/lib/libxpmem.a include=$1/include
else
    library=$TARGET/release/libxpmem.so archive=$TARGET/release/libxpmem.a include=ffi/include
fi
[ -e "$library" ] || die "no $library (run make first)"

bad=0
expect() { # WHAT WANTED GOT
    if [ "$2" = "$3" ]; then
        echo "ok - $1"
    else
        echo "not ok - $1"
        diff <(printf '%s\n' "$2") <(printf '%s\n' "$3") || true
        bad=1
    fi
}

dynamic=$(readelf -dW "$library")
expect "exports XPMEM's nine functions, rmap_counters and nothing else" "$(cat ci/symbols.txt)" \
    "$(nm -D --defined-only "$library" | awk '{ print $NF }' | LC_ALL=C sort)"
expect "all are functions" "T" "$(nm -D --defined-only "$library" | awk '{ print $(NF - 1) }' | sort -u)"
expect "SONAME" "libxpmem.so.0" "$(sed -n 's/.*(SONAME).*\[\(.*\)\].*/\1/p' <<<"$dynamic")"
expect "defines no symbol versions" "" "$(grep VERDEF <<<"$dynamic" || true)"
expect "needs the C library and libgcc_s only" "" \
    "$(sed -n 's/.*(NEEDED).*\[\(.*\)\].*/\1/p' <<<"$dynamic" | grep -vxE 'libc\.so\.6|libgcc_s\.so\.1|ld-linux-.*\.so\.[0-9]' || true)"
expect "has no RPATH, no RUNPATH and no text relocations" "" "$(grep -E 'RPATH|RUNPATH|TEXTREL' <<<"$dynamic" || true)"
expect "has no executable stack" "" "$(readelf -lW "$library" | awk '$1 == "GNU_STACK" && /E/ && $7 ~ /E/' || true)"
expect "stays in the process once loaded (NODELETE)" "NODELETE" "$(grep -o NODELETE <<<"$dynamic" | head -n 1 || true)"
expect "the archive has the same functions" "$(cat ci/symbols.txt)" \
    "$(nm --defined-only "$archive" 2>/dev/null | awk '$2 == "T" && $3 ~ /^(xpmem|rmap)_/ { print $3 }' | LC_ALL=C sort -u)"

constants() { # PROGRAM: what the preprocessor and the compiler make of the header
    printf '#include <xpmem.h>\n#include <stdio.h>\nint main(void) { printf("%%zx %%d %%d %%d %%d %%zu\\n", XPMEM_MAXADDR_SIZE, XPMEM_RDONLY, XPMEM_RDWR, XPMEM_PERMIT_MODE, XPMEM_ERRNO_NOPROC, sizeof(struct xpmem_addr)); return 0; }\n' |
        "${CC:-cc}" -I"$include" -x c -o "$1" -
    "$1"
}
make_scratch
expect "constants of the header" "ffffffffffffffff 1 2 1 2004 16" "$(constants "$scratch/constants")"
echo "needs $(objdump -T "$library" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1) or later"
exit $bad
