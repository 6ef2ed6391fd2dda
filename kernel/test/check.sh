#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# kernel/test/check.sh [HEADERS...]: builds the module with all warnings, for each folder of kernel headers, and through
# sparse; checks its style with checkpatch, and that the tests that its README names exist.
#
#   CHECKPATCH=.../scripts/checkpatch.pl    part of the kernel's source (that of the debug kernel, if it has been built)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../ci/lib.sh"
cd "$ROOT"

[ $# -gt 0 ] || set -- "$(ci/guest.sh headers 6.1)" "$(ci/guest.sh headers 6.12)"

sparse=()
if command -v sparse >/dev/null; then
    sparse=(C=2)
else
    echo "SKIPPED: sparse is not installed"
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for headers in "$@"; do
    say "build with $headers"
    rm -rf "$scratch/tree"
    make -s -C kernel dkms-source DESTDIR="$scratch/tree"
    make -s -C "$scratch"/tree/usr/src/rmap-* KDIR="$headers" KCFLAGS=-Werror W=1 "${sparse[@]}" 2>&1 |
        sed '/^Skipping BTF/d' | tee "$scratch/log"
    ! grep -E 'warning|error' "$scratch/log"
done

say "tests that the README names"
sed -n '/^## Tests/,$ s/^| [^|]* | \(`.*\) |$/\1/p' kernel/README.md | grep -o '`[a-z_0-9]*`' | tr -d '`' >"$scratch/named"
[ -s "$scratch/named" ]
while read -r name; do
    grep -qx "TEST($name)" kernel/test/*.c || die "kernel/README.md names a test that is not there: $name"
done <"$scratch/named"

. ci/kernels.sh
[ -n "${CHECKPATCH-}" ] || CHECKPATCH=$(find "$cache" -maxdepth 4 -path '*-debug/source/scripts/checkpatch.pl' | head -n 1)
if [ -z "$CHECKPATCH" ]; then
    echo "SKIPPED: checkpatch (set CHECKPATCH, or make test-kernel-debug)"
    exit
fi
say "checkpatch"
# The interface header is for user space, and compat.h is about versions.
perl "$CHECKPATCH" --no-tree --strict --terse --ignore BIT_MACRO,LINUX_VERSION_CODE,CONSTANT_COMPARISON \
    -f kernel/*.c kernel/*.h kernel/test/kthread/*.c ffi/include/linux-rmap/rmap.h | tee "$scratch/log"
! grep -E ': (ERROR|WARNING|CHECK):' "$scratch/log"
