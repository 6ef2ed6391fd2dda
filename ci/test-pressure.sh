#!/usr/bin/env bash
# The oracle and what depends on where pages are, on a machine in QEMU that has too little memory: pages are swapped out to zram, merged by
# KSM and collapsed by khugepaged all the time. As root and as an ordinary user.
#
#   ci/test-pressure.sh [VERSION] [-- TEST...]    of the kernel (6.12); which test programs
#   RMAP_TEST_USERS="65534"                       which users (0 65534)
#   RMAP_TEST_SECONDS=600                         of random programs (60)
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
export RMAP_TEST_LIB=$PWD/libxpmem.so RMAP_TEST_ACTOR=$PWD/rmap-test-actor RMAP_TEST_PATIENCE=16 RMAP_TEST_DIVISOR=1000 RUST_BACKTRACE=0
modprobe -d "$GUEST_KERNEL" zram || exit 1
echo 2G >/sys/block/zram0/disksize
mkswap /dev/zram0 >/dev/null && swapon /dev/zram0 || exit 1
echo 200 >/proc/sys/vm/swappiness 2>/dev/null || echo 100 >/proc/sys/vm/swappiness
# All of it goes on all the time, and leaves most of two emulated cores to the tests: 4 MiB a second for KSM, and a block in 50 ms for khugepaged.
cd /sys/kernel/mm/ksm
echo 100 >pages_to_scan
echo 100 >sleep_millisecs
echo 1 >run
cd /sys/kernel/mm/transparent_hugepage
echo always >enabled
echo advise >shmem_enabled
echo 50 >khugepaged/scan_sleep_millisecs
echo 50 >khugepaged/alloc_sleep_millisecs
echo 512 >khugepaged/pages_to_scan
cd /tmp/pressure
# More than there is, and a part of it in use at any time: reading it drives out other pages. Of zeros, which take no room in zram.
mkdir hog
mount -t tmpfs -o size=4G hog hog
mib=$(($(awk '/^MemAvailable/ { print $2 }' /proc/meminfo) * 5 / 4 / 1024))
head -c "${mib}M" /dev/zero >hog/pages
(while :; do
    for ((at = 0; at < mib; at += 16)); do
        dd if=hog/pages of=/dev/null bs=1M skip=$at count=16 status=none
        sleep 0.3
    done
done) &
hog=$!
failed=()
# Emulated, all takes a hundred times as long. So: random programs for so long, always the same ones; each round once; and not what takes minutes then.
declare -A settings=([oracle]="RMAP_TEST_SEED=1 RMAP_SOAK_SECONDS=$seconds")
declare -A arguments=(
    [oracle]="--exact random_programs"
    [adoption]="--skip many_system_calls --skip everything_at_once --skip busy_heap --skip forks_while --skip 16"
    [follow]="--skip nothing_old"
)
for user in $users; do
    as_user=(setpriv --reuid "$user" --regid "$user" --clear-groups env HOME=/tmp)
    for name in $tests; do
        echo "== $name, user $user"
        # PR_SET_MEMORY_MERGE (Linux 6.4, and kept by exec since 6.9): KSM looks at all memory of the processes.
        perl -e 'syscall(157, 67, 1, 0, 0, 0) == 0 or warn "no PR_SET_MEMORY_MERGE: $!\n"; exec @ARGV' \
            "${as_user[@]}" ${settings[$name]-} timeout -k 10 1500 "./$name" --test-threads=1 \
            ${arguments[$name]-} || failed+=("$name/$user")
        echo "$name, user $user: after $SECONDS s"
    done
done
kill "$hog"
# It was real.
for event in pswpout pswpin cow_ksm ksm_swpin_copy thp_collapse_alloc; do
    count=$(awk -v "event=$event" '$1 == event { print $2 }' /proc/vmstat)
    echo "$event: ${count:-not known}"
done
for counter in full_scans pages_sharing; do echo "KSM $counter: $(cat /sys/kernel/mm/ksm/$counter)"; done
for event in pswpout pswpin cow_ksm; do
    grep -q "^$event [1-9]" /proc/vmstat || failed+=("no pressure: $event is 0")
done
[ ${#failed[@]} = 0 ] || { printf 'FAILED: %s\n' "${failed[@]}"; exit 1; }
END
say "kernel $version, little memory"
# An emulated core that the host does not run looks stuck.
RMAP_GUEST_APPEND=nosoftlockup RMAP_GUEST_MEMORY=${RMAP_GUEST_MEMORY:-768M} RMAP_GUEST_LIMIT=${RMAP_GUEST_LIMIT:-7200} ci/guest.sh run "$version" "$work" \
    "users='${RMAP_TEST_USERS:-0 65534}' seconds=${RMAP_TEST_SECONDS:-60} tests='${tests[*]}'; . ./run"
