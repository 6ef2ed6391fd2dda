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
    sort -n | awk '{ v[NR] = $1 }
        END { a = v[int(NR / 20) + 1]; b = v[NR - int(NR / 20)]; print (NR && a > 0 && b > 2.5 * a) ? int(sqrt(a * b)) : 0 }'
}
