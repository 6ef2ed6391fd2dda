# shellcheck shell=bash disable=SC2034
# Shared by the scripts of this folder: where things are. Sourced, not run.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${RMAP_MPI_CACHE:-$ROOT/target/mpi}
XPMEM_PREFIX=${XPMEM_PREFIX:-$CACHE/prefix}
for folder in CACHE XPMEM_PREFIX; do
    case ${!folder} in /*) ;; *) printf -v "$folder" %s "$PWD/${!folder}" ;; esac
done
CONSUMERS=(ompi-vader ompi-ucx mpich-ucx impi)
