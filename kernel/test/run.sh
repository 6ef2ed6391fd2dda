#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# kernel/test/run.sh [VERSION...] [-- TEST...]: builds the module for each kernel (6.1 6.12; 7, 6.1-debug, 6.12-debug), boots it, and runs the
# tests on it: as root, as an ordinary user, and unloading the module. The kernel's log must be clean.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../ci/lib.sh"
cd "$ROOT"

versions=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    versions+=("$1")
    shift
done
[ $# = 0 ] || shift
[ ${#versions[@]} -gt 0 ] || versions=(6.1 6.12)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

gcc -std=gnu11 -O1 -g -static -pthread -Wall -Wextra -Wno-unused-parameter -Werror -Iffi/include \
    -o "$work/conformance" kernel/test/*.c
cp kernel/test/guest-tests.sh "$work"

failed=()
for version in "${versions[@]}"; do
    say "kernel $version"
    # Off by default before 6.5.
    append="secretmem.enable=1 ${RMAP_GUEST_APPEND-}"
    # Routing interrupts by ACPI takes it longer than the kernel lets such a program run; without, it has one processor.
    # An emulated core that the host does not run looks stuck.
    [ "$version" = "${version%-debug}" ] || append+=" page_poison=1 kmemleak=on acpi=noirq nosoftlockup"
    kernel/test/build.sh "$version" "$work"
    RMAP_GUEST_LIMIT=${RMAP_GUEST_LIMIT:-3600} RMAP_GUEST_APPEND=$append RMAP_GUEST_NODES=2 RMAP_GUEST_MEMORY=3G \
        ci/guest.sh run "$version" "$work" "./guest-tests.sh $*" || failed+=("$version: status $?")
done

[ ${#failed[@]} = 0 ] || die "FAILED: ${failed[*]}"
echo "module tests passed on: ${versions[*]}"
