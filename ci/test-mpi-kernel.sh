#!/usr/bin/env bash
# MPI jobs that check every byte, over the engines that need a kernel module, on a Debian kernel in QEMU: as an ordinary user. `rmap doctor`
# must say that they used the library, and by which engine.
#
#   ci/test-mpi-kernel.sh [VERSION]    of the kernel (6.1)
#   RMAP_ENGINES="mirror driver"       which engines
#   RMAP_MPI_CONSUMERS="ompi-vader"    over what (mpi-tests/run.sh)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"
version=${1:-6.1}

make -s local-install
export XPMEM_PREFIX=$TARGET/prefix
say "preparing the MPI tests"
mpi-tests/setup.sh
cache=${RMAP_MPI_CACHE:-$TARGET/mpi}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
kernel/test/build.sh "$version" "$work"
rm -rf "$work/build"
# What the jobs need of the cache, so that it does not matter where that lies.
mkdir "$work/cache"
cp -r "$cache"/{bin,vader,ucx} "$work/cache"
cp -r "$XPMEM_PREFIX" "$work/prefix"
cp -r mpi-tests "$work"

cat >"$work/run" <<'END'
set -uo pipefail
. ./guest-end.sh
# From the memory of the guest, not from a file system of the host.
cp -r /run/work /tmp/mpi
cd /tmp/mpi
insmod ./rmap.ko xpmem=1 || exit 1
export RMAP_MPI_CACHE=$PWD/cache XPMEM_PREFIX=$PWD/prefix MPI_TIMEOUT=900
failed=()
for engine in $engines; do
    for consumer in $consumers; do
        # Messages of up to 8 MiB, in all kinds of memory.
        echo "== $consumer: $engine engine"
        RMAP_ENGINE=$engine setpriv --reuid 65534 --regid 65534 --clear-groups prefix/bin/rmap doctor -- \
            mpi-tests/run.sh "$consumer" xpmem 2 exchange 8192 2>doctor || failed+=("$consumer/$engine")
        cat doctor
        grep -q "^the library was USED: 2 processes .*(engine $engine)\$" doctor || failed+=("doctor/$consumer/$engine")
    done
done
finish
END
say "kernel $version"
RMAP_GUEST_LIMIT=${RMAP_GUEST_LIMIT:-3600} ci/guest.sh run "$version" "$work" \
    "engines='${RMAP_ENGINES:-mirror driver}' consumers='${RMAP_MPI_CONSUMERS:-ompi-vader}'; . ./run"
