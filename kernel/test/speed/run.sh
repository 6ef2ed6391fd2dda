#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# kernel/test/speed/run.sh [VERSION...]: counts the instructions of mapping, touching and unmapping 64 MiB, on each Debian
# kernel (6.1 6.12), and fails if they are above the limits (speed.c). The numbers repeat to three digits.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../../ci/lib.sh"
cd "$ROOT"
[ $# -gt 0 ] || set -- 6.1 6.12

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
gcc -std=gnu11 -D_GNU_SOURCE -O2 -g -static -Wall -Wextra -Werror -Iffi/include -o "$work/speed" kernel/test/speed/speed.c
failed=()
for version in "$@"; do
    say "kernel $version"
    kernel/test/build.sh "$version" "$work"
    RMAP_GUEST_CLOCK=instructions ci/guest.sh run "$version" "$work" '
        cp speed /tmp
        insmod ./rmap.ko huge_pages=1 && /tmp/speed memfd small huge' || failed+=("$version")
done
[ ${#failed[@]} = 0 ] || die "FAILED: ${failed[*]}"
