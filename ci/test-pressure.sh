#!/usr/bin/env bash
# The oracle and what depends on where pages are, on a machine in QEMU that has too little memory: pages are swapped out to zram, merged by
# KSM and collapsed by khugepaged all the time. As root and as an ordinary user.
#
#   ci/test-pressure.sh [VERSION] [-- TEST...]    of the kernel (6.12); which test programs
#   RMAP_TEST_USERS="65534"                       which users (0 65534)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

tests=(basic oracle adoption follow)
version=6.12
if [ $# -gt 0 ] && [ "$1" != -- ]; then
    version=$1
    shift
fi
[ $# = 0 ] || shift
[ $# = 0 ] || tests=("$@")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

put_tests "$work" "${tests[@]}"

cat >"$work/run" <<'END'
set -uo pipefail
# From the memory of the guest, not from a file system of the host.
cp -r /run/work /tmp/pressure
cd /tmp/pressure
export RMAP_TEST_LIB=$PWD/libxpmem.so RMAP_TEST_ACTOR=$PWD/rmap-test-actor RMAP_TEST_PATIENCE=16 RUST_BACKTRACE=0
modprobe -d "$GUEST_KERNEL" zram || exit 1
echo 2G >/sys/block/zram0/disksize
mkswap /dev/zram0 >/dev/null && swapon /dev/zram0 || exit 1
echo 200 >/proc/sys/vm/swappiness 2>/dev/null || echo 100 >/proc/sys/vm/swappiness
cd /sys/kernel/mm/ksm
# Often, but the tests need the cores, too.
echo 500 >pages_to_scan
echo 10 >sleep_millisecs
echo 1 >run
cd /sys/kernel/mm/transparent_hugepage
echo always >enabled
echo advise >shmem_enabled
echo 10 >khugepaged/scan_sleep_millisecs
echo 10 >khugepaged/alloc_sleep_millisecs
echo 4096 >khugepaged/pages_to_scan
cd /tmp/pressure
# More than there is, in use all the time. Of zeros, which take no room in zram.
mkdir hog
mount -t tmpfs -o size=4G hog hog
head -c $(($(awk '/^MemAvailable/ { print $2 }' /proc/meminfo) * 1024 * 3 / 2)) /dev/zero >hog/pages
(while :; do cat hog/pages && sleep 1; done >/dev/null) &
hog=$!
failed=()
for user in $users; do
    as_user=(setpriv --reuid "$user" --regid "$user" --clear-groups env HOME=/tmp)
    for name in $tests; do
        echo "== $name, user $user"
        # PR_SET_MEMORY_MERGE (Linux 6.4, and kept by exec since 6.9): KSM looks at all memory of the processes.
        perl -e 'syscall(157, 67, 1, 0, 0, 0) == 0 or warn "no PR_SET_MEMORY_MERGE: $!\n"; exec @ARGV' \
            "${as_user[@]}" timeout -k 10 1500 "./$name" --test-threads=1 -q || failed+=("$name/$user")
    done
done
kill "$hog"
awk '/^(pswpout|pswpin|cow_ksm|thp_collapse_alloc) / { print $1 ": " $2 }' /proc/vmstat
[ ${#failed[@]} = 0 ] || { printf 'FAILED: %s\n' "${failed[@]}"; exit 1; }
END
say "kernel $version, little memory"
# An emulated core that the host does not run looks stuck.
RMAP_GUEST_APPEND=nosoftlockup RMAP_GUEST_MEMORY=${RMAP_GUEST_MEMORY:-768M} RMAP_GUEST_LIMIT=${RMAP_GUEST_LIMIT:-7200} ci/guest.sh run "$version" "$work" \
    "users='${RMAP_TEST_USERS:-0 65534}' tests='${tests[*]}'; . ./run"
