#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# kernel/test/check.sh [HEADERS...]: builds the module with all warnings, for each folder of kernel headers, and through
# sparse; checks its style with checkpatch, which is part of the kernel's source: CHECKPATCH=.../scripts/checkpatch.pl
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

if [ -z "${CHECKPATCH-}" ]; then
    echo "SKIPPED: checkpatch (set CHECKPATCH)"
    exit
fi
say "checkpatch"
# The interface header is for user space, and compat.h is about versions.
perl "$CHECKPATCH" --no-tree --strict --terse --ignore BIT_MACRO,LINUX_VERSION_CODE,CONSTANT_COMPARISON \
    -f kernel/*.c kernel/*.h kernel/test/kthread/*.c ffi/include/linux-rmap/rmap.h | tee "$scratch/log"
! grep -E ': (ERROR|WARNING|CHECK):' "$scratch/log"
