# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
# Sourced in the guest by what has loaded the module: how all tests there end. `failed` lists what has failed so far.

# All spaces go when their files have gone, in a worker: nothing tells when. The kernel refuses until then.
unload() {
    local _
    for _ in $(seq 100); do
        rmmod rmap 2>/dev/null && break
        sleep 0.1
    done
    ! grep '^rmap ' /proc/modules || failed+=("the module is still in use")
}

# The module goes, and on a debug kernel nothing is lost, and lockdep has looked until now: it stops at its first report.
finish() {
    local leaks=/sys/kernel/debug/kmemleak
    unload
    if [ -w $leaks ]; then
        # What has just moved is found by the second.
        echo scan >$leaks
        echo scan >$leaks
        ! grep -A 30 '^unreferenced' $leaks || failed+=("memory is lost")
    fi
    [ ! -e /proc/lockdep_stats ] || grep -q 'debug_locks: *1$' /proc/lockdep_stats || failed+=("lockdep has stopped")
    [ ${#failed[@]} = 0 ] || { printf 'FAILED: %s\n' "${failed[@]}"; exit 1; }
    exit 0
}
