# shellcheck shell=bash disable=SC2034
# Shared by the scripts of this folder: where things are. Sourced, not run.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${RMAP_MPI_CACHE:-$ROOT/target/mpi}
XPMEM_PREFIX=${XPMEM_PREFIX:-$CACHE/prefix}
for folder in CACHE XPMEM_PREFIX; do
    case ${!folder} in /*) ;; *) printf -v "$folder" %s "$PWD/${!folder}" ;; esac
done
CONSUMERS=(ompi-vader ompi-ucx mpich-ucx impi)

# Reads nanoseconds of round trips of a cache line between two ranks. Virtual cores may share a physical one at times, see
# programs/measure.c: if there are two kinds of round trips, prints a time between them, or else 0.
placement_boundary() {
    # What took longer than 1500 was interrupted.
    sort -n | awk '$1 < 1500 { v[++n] = $1 }
        END { a = v[int(n / 50) + 1]; b = v[n - int(n / 50)]; print (n && a > 0 && b > 2.5 * a) ? int(sqrt(a * b)) : 0 }'
}
