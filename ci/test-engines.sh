#!/usr/bin/env bash
# The tests of XPMEM's semantics, once for each engine, on a Debian kernel in QEMU with the module of kernel/: as root and as an ordinary user,
# each in a guest of their own at the same time, for a guest that waits for a test does not use both of its cores.
# Programs that are linked to no library of ours run on the module's /dev/xpmem. The kernel's log must be clean, and the module must go.
#
#   ci/test-engines.sh [VERSION] [-- TEST...]    of the kernel (6.1); which test programs (those of `conformance`)
#   RMAP_ENGINES="mirror driver"                 which engines (clone mirror driver)
#   RMAP_TEST_USERS="65534"                      which users (0 65534)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

# What is said about all engines. The others are about how the clone engine works.
conformance=(basic engines seen pinnable rights follow kinds matrix threads oracle death)
version=6.1
if [ $# -gt 0 ] && [ "$1" != -- ]; then
    version=$1
    shift
fi
[ $# = 0 ] || shift
[ $# = 0 ] || conformance=("$@")

work=$(mktemp -d)
guests=()
trap 'for guest in "${guests[@]}"; do kill -- "-$guest" 2>/dev/null || true; done; rm -rf "$work"' EXIT
chmod 755 "$work"

put_tests "$work" "${conformance[@]}"
for name in errno ioctl pair; do
    gcc -std=gnu11 -D_GNU_SOURCE -O2 -g -Wall -Wextra -Werror -static -pthread -DON_DEVICE=1 -Iffi/include \
        -o "$work/$name-device" "tests/c/$name.c" tests/c/device.c
done

say "building the module for kernel $version"
kernel/test/build.sh "$version" "$work"
rm -rf "$work/build"

cat >"$work/run" <<'END'
set -uo pipefail
. ./guest-end.sh
# From the memory of the guest, not from a file system of the host.
cp -r /run/work /tmp/engines
cd /tmp/engines
insmod ./rmap.ko xpmem=1 || exit 1
# For hugetlbfs.
echo 64 >/proc/sys/vm/nr_hugepages
export RMAP_TEST_LIB=$PWD/libxpmem.so RMAP_TEST_ACTOR=$PWD/rmap-test-actor RMAP_TEST_PATIENCE=8 RUST_BACKTRACE=0
failed=()
as_user=(setpriv --reuid "$user" --regid "$user" --clear-groups env HOME=/tmp)
for engine in $engines; do
    for name in $tests; do
        echo "== $name: $engine engine"
        # Each event of the clone engine's is several switches of tasks, which take long where the processor is emulated.
        divisor=1
        [ "$engine" != clone ] || divisor=4
        RMAP_TEST_DIVISOR=$divisor RMAP_ENGINE=$engine "${as_user[@]}" timeout -k 10 600 "./$name" --test-threads=2 -q || failed+=("$name/$engine")
    done
done
for name in errno ioctl pair; do
    echo "== $name: linked to no library"
    "${as_user[@]}" timeout -k 10 300 "./$name-device" || failed+=("$name-device")
done
finish
END
say "kernel $version"
# Each a process group of its own, which ends with this script.
set -m
for user in ${RMAP_TEST_USERS:-0 65534}; do
    RMAP_GUEST_LIMIT=${RMAP_GUEST_LIMIT:-3600} ci/guest.sh run "$version" "$work" \
        "user=$user engines='${RMAP_ENGINES:-clone mirror driver}' tests='${conformance[*]}'; . ./run" \
        > >(sed -u "s/^/user $user: /") 2>&1 &
    guests+=($!)
done
status=0
for guest in "${guests[@]}"; do
    wait "$guest" || status=$?
done
guests=()
exit "$status"
