#!/usr/bin/env bash
# ci/test-mpi.sh [PREFIX]: the MPI tests against an installation; as root, they run as root and as an ordinary user.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"
make_scratch
export XPMEM_PREFIX=${1:-$TARGET/prefix}
# A whole MPI suite takes longer than one test program.
export RMAP_TEST_TIMEOUT=${RMAP_MPI_TIMEOUT:-900}

scripts=$ROOT/mpi-tests
if [ "$(id -u)" = 0 ] && ! user_can_read "$scripts/check.sh"; then
    say "the ordinary user cannot enter $ROOT: it uses copies"
    cp -a "$scripts" "$XPMEM_PREFIX" "$scratch"
    scripts=$scratch/mpi-tests XPMEM_PREFIX=$scratch/${XPMEM_PREFIX##*/}
    # What has been built stays for the next run.
    export RMAP_MPI_CACHE=${RMAP_MPI_CACHE:-/var/tmp/rmap-mpi}
fi

say "preparing the MPI tests"
"$scripts/setup.sh"
failed=0
for identity in "${identities[@]}"; do
    say "MPI tests as $identity"
    run_as "$identity" "$scripts/check.sh" || failed=1
    # What `make plots` runs, on a few small messages; every consumer takes the same path through it.
    run_as "$identity" "$scripts/run.sh" ompi-vader xpmem 2 measure -l 65536 -f 16 -m 2 \
        latency bandwidth bibandwidth rate bcast allreduce alltoall >"$scratch/measure" 2>&1 &&
        grep -q '^result alltoall 2 65536 ' "$scratch/measure" || { cat "$scratch/measure"; failed=1; }
    # What `rmap doctor` says of jobs that use the library, and of one that does not.
    for job in "ompi-vader xpmem 3 0" "ompi-ucx xpmem 2 0" "mpich-ucx xpmem 2 0" "ompi-vader copy 2 3"; do
        read -r consumer transport ranks wanted <<<"$job"
        status=0
        run_as "$identity" "$XPMEM_PREFIX/bin/rmap" doctor -- \
            "$scripts/run.sh" "$consumer" "$transport" "$ranks" exchange >"$scratch/job" 2>"$scratch/doctor" || status=$?
        verdict="the library was USED: $ranks processes"
        [ "$transport" = xpmem ] || verdict="the library was NOT USED"
        if [ $status = "$wanted" ] && grep -q "^$verdict" "$scratch/doctor"; then
            echo "ok - rmap doctor: $consumer, $transport"
        else
            cat "$scratch/job" "$scratch/doctor"
            echo "not ok - rmap doctor: $consumer, $transport (status $status)"
            failed=1
        fi
    done
done
exit $failed
