#!/usr/bin/env bash
# Looks into processes that do not cooperate. On this machine, as root and as an ordinary user: into a QEMU, for the kernel log
# of what runs in it. On a Debian kernel in QEMU with the module of kernel/: the same, and everything that rmap-inspect and
# `rmap attach` do by the module.
#
#   ci/test-introspection.sh [VERSION]    of the kernel (6.1)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"
version=${1:-6.1}
make_scratch
work=$scratch/work
mkdir "$work"

library=${RMAP_TEST_LIB:-$TARGET/release/libxpmem.so}
[ -e "$library" ] || make -s all
say "compiling"
cargo build -q -p rmap-cli -p rmap-inspect --bins --examples
program=$(cargo test -p rmap-tests --test inspect_module --no-run --message-format=json-render-diagnostics |
    sed -n '/"profile":{[^}]*"test":true/ s|.*"executable":"\([^"]*/inspect_module-[^"]*\)".*|\1|p')
[ -n "$program" ] || die "no test program found"
cp "$program" "$work/inspect_module"
cp "$library" "$work/libxpmem.so"
built=${program%/deps/*}
cp "$built"/{rmap,rmap-test-actor,examples/guest_log,examples/watch} kernel/test/guest-log.sh "$work"
headers=$(ci/guest.sh headers "$version")
cp "${headers%/usr/src/*}/boot/vmlinuz-${headers##*/linux-headers-}" "$work/vmlinuz"
kernel/test/build.sh "$version" "$work"
rm -rf "$work/build"

for identity in "${identities[@]}"; do
    say "the log of a machine, as $identity"
    run_as "$identity" "$work/guest-log.sh" "$work/guest_log" "$work/vmlinuz"
done

cat >"$work/run" <<'END'
set -uo pipefail
. ./guest-end.sh
# From the memory of the guest, not from a file system of the host.
cp -r /run/work /tmp/inspect
cd /tmp/inspect
insmod ./rmap.ko || exit 1
{ modprobe -d "$GUEST_KERNEL" kvm_amd || modprobe -d "$GUEST_KERNEL" kvm_intel; } 2>/dev/null && chmod 666 /dev/kvm
export RMAP_TEST_LIB=$PWD/libxpmem.so RMAP_TEST_ACTOR=$PWD/rmap-test-actor RMAP_TEST_PATIENCE=8
failed=()
for user in 0 65534; do
    as_user=(setpriv --reuid "$user" --regid "$user" --clear-groups env HOME=/tmp)
    check() {
        echo "== $1, user $user"
        "${as_user[@]}" timeout -k 10 900 "${@:2}" || failed+=("$1/$user")
    }
    check "rmap-inspect by the module" ./inspect_module -q
    check "the example that watches a list" ./watch
    check "rmap attach" bash -c '
        coproc other { exec cat; }
        # It is cat by now.
        echo hello >&${other[1]} && read -r _ <&${other[0]}
        stack=$(sed -n "s/^\([0-9a-f]*\)-\([0-9a-f]*\) .*\[stack\]$/0x\1 0x\2/p" /proc/$other_PID/maps)
        ./rmap attach $other_PID ${stack% *} $((${stack#* } - ${stack% *})) >/tmp/seen.$$ 2>/tmp/how.$$
        grep -q "through /dev/rmap" /tmp/how.$$ && grep -q "[0-9a-f][0-9a-f] [0-9a-f][0-9a-f]" /tmp/seen.$$ ||
            { tail /tmp/how.$$ /tmp/seen.$$; exit 1; }'
    check "the log of a machine" ./guest-log.sh ./guest_log vmlinuz
done
finish
END
say "kernel $version"
RMAP_GUEST_LIMIT=${RMAP_GUEST_LIMIT:-1800} ci/guest.sh run "$version" "$work" '. ./run'
