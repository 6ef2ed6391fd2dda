#!/usr/bin/env bash
# Data checks through XPMEM over every MPI consumer, as the user that calls it. Needs setup.sh.
#
#   check.sh [CONSUMER ...]
#
# One line per job: "ok NAME (seconds)" or "FAIL NAME (reason)", and the totals. Exit status 1 if anything failed. A job fails if
# a byte is wrong, if it does not end, or if the runtime does not show that XPMEM was its transport.
# MPI_TRANSPORT=cma or copy runs the same jobs without XPMEM, to check the checks.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/env.sh"
transport=${MPI_TRANSPORT:-xpmem}
[ $# -eq 0 ] || CONSUMERS=("$@")
export MPI_TIMEOUT=${MPI_TIMEOUT:-90}

log=$(mktemp "${MPI_TMP:-/tmp}/rmap-mpi-check.XXXXXX")
trap 'rm -f "$log"' EXIT
passed=0 failed=0

reason() {
    local line
    case $1 in
    124 | 137) echo "no end after $MPI_TIMEOUT s" ;;
    *)
        line=$(grep -m1 '^FAIL ' "$log" || grep -m1 '^proof: none' "$log" || true)
        echo "status $1${line:+: ${line#FAIL }}"
        ;;
    esac
}

# job NAME CONSUMER NP PROGRAM [ARGUMENTS]; the environment of the call is that of the job.
job() {
    local name=$1 status=0 begin=$SECONDS
    shift
    "$here/run.sh" "$1" "$transport" "${@:2}" >"$log" 2>&1 || status=$?
    if [ "$status" = 0 ]; then
        passed=$((passed + 1))
        echo "ok $name ($((SECONDS - begin)) s)"
    else
        failed=$((failed + 1))
        echo "FAIL $name ($(reason "$status"))"
        tail -n 25 "$log" | sed 's/^/    /' >&2
    fi
}

for consumer in "${CONSUMERS[@]}"; do
    job "$consumer exchange, 2 ranks" "$consumer" 2 exchange
    job "$consumer exchange, 4 ranks" "$consumer" 4 exchange
    # Open MPI 4.1.4 crashes in an atomic operation of a rank on itself over vader (every transport): no counters there.
    rounds=100
    [ "$consumer" != ompi-vader ] || rounds=0
    job "$consumer onesided, 2 ranks" "$consumer" 2 onesided $rounds
    job "$consumer onesided, 4 ranks" "$consumer" 4 onesided $rounds
    job "$consumer reuse" "$consumer" 2 reuse
    # Nearly every block is a mapping of its own, given back by free.
    MALLOC_MMAP_THRESHOLD_=8192 MALLOC_TRIM_THRESHOLD_=4096 MALLOC_TOP_PAD_=0 \
        job "$consumer reuse, low thresholds" "$consumer" 2 reuse
    # All blocks are in the heap, which goes up and down with every block.
    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4096 MALLOC_TOP_PAD_=0 \
        job "$consumer reuse, heap only" "$consumer" 2 reuse
    # Other runtimes do not poll memory that another rank may have unmapped.
    [ "${consumer%%-*}" != ompi ] || job "$consumer one rank late in MPI_Finalize" "$consumer" 4 late
    job "$consumer pool of forked Python processes" "$consumer" 2 pool.py
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
