#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
# Runs in the guest, as root, next to rmap.ko and the test program. Arguments: which tests.
set -uo pipefail

. ./guest-end.sh
failed=()
uname -r

# Something to swap to, which the tests of swap need.
if modprobe -d "$GUEST_KERNEL" zram && echo 512M >/sys/block/zram0/disksize; then
    mkswap /dev/zram0 >/dev/null && swapon /dev/zram0
    # And a device to write to.
    number=$(cat /sys/class/zram-control/hot_add) && echo 1M >"/sys/block/zram$number/disksize" &&
        chmod 666 "/dev/zram$number"
fi
# Virtual machines in this one, where the processor has them.
{ modprobe -d "$GUEST_KERNEL" kvm_amd || modprobe -d "$GUEST_KERNEL" kvm_intel; } 2>/dev/null && chmod 666 /dev/kvm
# It takes pages away from all tests.
echo 0 >/proc/sys/kernel/numa_balancing

echo 8 >/proc/sys/vm/nr_hugepages

# On a debug kernel: what is lost from here on.
leaks=/sys/kernel/debug/kmemleak
[ ! -w $leaks ] || echo clear >$leaks
insmod ./rmap_test_kthread.ko || exit 1
insmod ./rmap.ko || exit 1
echo "== as root"
./conformance "$@" || failed+=("as root")
# Only root can start it.
echo 10000 >/sys/kernel/mm/ksm/pages_to_scan
echo 1 >/sys/kernel/mm/ksm/run
echo "== as an ordinary user"
setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set=-all ./conformance "$@" || failed+=("as an ordinary user")

# Who asks for a part does without the rest.
if [ $# = 0 ]; then
    echo "== balancing nodes, soon and often"
    for knob in scan_delay_ms scan_period_min_ms; do echo 10 >"/sys/kernel/debug/sched/numa_balancing/$knob"; done
    echo 1 >/proc/sys/kernel/numa_balancing
    ./conformance pages_that_change_nodes || failed+=("balancing")
    echo 0 >/proc/sys/kernel/numa_balancing
fi

[ $# = 0 ] || finish

unload
# Where huge pages are off by default: they work all the same.
echo "== huge pages on"
echo 1 >/proc/sys/vm/compact_memory
insmod ./rmap.ko huge_pages=1 || exit 1
./conformance huge no_stale partial pages_that mutual importers_become || failed+=("with huge pages")
finish
