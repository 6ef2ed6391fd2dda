#!/usr/bin/env bash
# The tests that need two NUMA nodes, on a machine in QEMU that has them: as root and as an ordinary user.
#
#   ci/test-numa.sh [VERSION]    of the kernel (6.1)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"
library=${RMAP_TEST_LIB:-$TARGET/release/libxpmem.so}
[ -e "$library" ] || make -s all

say "compiling the tests"
program=$(cargo test -p rmap-tests --test numa --no-run --message-format=json-render-diagnostics |
    sed -n '/"profile":{[^}]*"test":true/ s|.*"executable":"\([^"]*/numa-[^"]*\)".*|\1|p')
[ -n "$program" ] || die "no test program found"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cp "$library" "$work/libxpmem.so"
cp "$program" "$work/numa"
cp "${program%/deps/*}/rmap-test-actor" "$work"
cat >"$work/run" <<'END'
set -euo pipefail
# From the memory of the guest, not from a file system of the host.
cp -r /run/work /tmp/numa
cd /tmp/numa
export RMAP_TEST_LIB=$PWD/libxpmem.so RMAP_TEST_ACTOR=$PWD/rmap-test-actor
# So that blocks of several nodes are left alone by the kernel, not by advice against huge pages.
echo madvise >/sys/kernel/mm/transparent_hugepage/enabled
status=0
for user in 0 65534; do
    echo "as user $user"
    setpriv --reuid $user --regid $user --clear-groups ./numa --test-threads=1 2>&1 | tee output || status=1
    # A test that does not find two nodes passes.
    ! grep -q '^skipped:' output || status=1
done
exit $status
END

say "kernel ${1:-6.1}, two nodes"
RMAP_GUEST_NODES=2 ci/guest.sh run "${1:-6.1}" "$work" '. ./run'
