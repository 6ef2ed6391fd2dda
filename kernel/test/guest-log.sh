#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# kernel/test/guest-log.sh GUEST_LOG VMLINUZ: runs a virtual machine, and reads its kernel log with the example guest_log of
# rmap-inspect while it runs. Its memory is private to QEMU where /dev/rmap is there, and shared if not.
set -euo pipefail
program=$(realpath "$1")
kernel=$(realpath "$2")

work=$(mktemp -d)
# shellcheck disable=SC2317 # called by the trap
clean_up() {
    [ -z "${qemu-}" ] || { kill "$qemu" && wait "$qemu"; } || true
    rm -rf "$work"
}
trap clean_up EXIT
cd "$work"

# It counts, on its console and in its log.
mkdir -p tree/bin tree/dev
cp "$(command -v busybox)" tree/bin/busybox
cat >tree/init <<'EOF'
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
n=0
while :; do
    n=$((n + 1))
    echo "the machine counts $n" >/dev/kmsg
    /bin/busybox sleep 1
done
EOF
chmod 755 tree/init
(cd tree && find . | cpio -o -H newc --quiet | gzip -1) >initramfs

memory=(-object memory-backend-memfd,id=ram,size=192M,share=on)
[ ! -w /dev/rmap ] || memory=(-object memory-backend-ram,id=ram,size=192M)
accel=(-accel tcg -cpu max,-erms)
if [ -w /dev/kvm ] && [ -d /sys/module/kvm_intel -o -d /sys/module/kvm_amd ]; then accel=(-accel kvm -cpu host); fi
mkfifo console
qemu-system-x86_64 "${accel[@]}" -machine memory-backend=ram "${memory[@]}" -m 192M -nodefaults -no-user-config \
    -display none -no-reboot -serial file:console -kernel "$kernel" -initrd initramfs \
    -append "console=ttyS0 loglevel=8 panic=-1 tsc=reliable no_timer_check mitigations=off" </dev/null &
qemu=$!

# Until the console has said this, or has ended with the machine.
said() {
    local line
    while read -r -t 300 line <&3; do
        printf '%s\n' "$line" >>seen
        case $line in *"$1"*) return ;; esac
    done
    tail -n 20 seen >&2
    echo "the machine did not say: $1" >&2
    return 1
}
exec 3<console
said "counts 2"
"$program" "$qemu" >first
said "counts 5"
"$program" "$qemu" >second

status=0
has() { grep -qaF -- "$2" "$1" || { echo "not in the log: $2" >&2; status=1; }; }
has first "Linux version $(strings "$kernel" | sed -n 's/^\([0-9][0-9.]*[-+.a-z0-9]*\) (.*/\1/p' | head -n 1)"
has first "the machine counts 2"
has second "the machine counts 5"
! grep -qaF "the machine counts 5" first || { echo "the first look came too late" >&2; status=1; }
# All that was on the console before the first look.
sed -n '/counts 2/q; p' seen | tr -d '\r' | sed -n 's/^\[[ 0-9.]*\] \(.*[^ ]\) *$/\1/p' >said
while IFS= read -r line; do has first "$line"; done <said
[ -s said ] || { echo "nothing was on the console" >&2; status=1; }
echo "$(wc -l <first) lines of the log read, $(wc -l <said) of them compared with the console"
exit $status
