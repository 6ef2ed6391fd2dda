#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
# Runs in the guest, as root, next to rmap.ko and the test program. Arguments: which tests.
set -uo pipefail

status=0
uname -r

# Something to swap to, which the tests of swap need.
if modprobe -d "$GUEST_KERNEL" zram && echo 512M >/sys/block/zram0/disksize; then
    mkswap /dev/zram0 >/dev/null && swapon /dev/zram0
fi

echo 8 >/proc/sys/vm/nr_hugepages

insmod ./rmap_test_kthread.ko || exit 1
insmod ./rmap.ko || exit 1
echo "== as root"
./conformance "$@" || status=1
# Only root can start it.
echo 10000 >/sys/kernel/mm/ksm/pages_to_scan
echo 1 >/sys/kernel/mm/ksm/run
echo "== as an ordinary user"
setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set=-all ./conformance "$@" || status=1

# All spaces go when their files have gone, in a worker: nothing tells when. The kernel refuses until then.
for _ in $(seq 100); do
    rmmod rmap 2>/dev/null && break
    sleep 0.1
done
if grep -q '^rmap ' /proc/modules; then
    echo "the module is still in use: $(grep '^rmap ' /proc/modules)"
    status=1
fi

# Where huge pages are off by default: they work all the same.
echo "== huge pages on"
insmod ./rmap.ko huge_pages=1 || exit 1
./conformance huge no_stale partial pages_that mutual || status=1
exit $status
