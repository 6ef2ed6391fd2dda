#!/usr/bin/env bash
# Boots a Debian kernel in QEMU and runs a command on it. Nothing of the guest outlives the command.
#
#   ci/guest.sh headers VERSION                the folder for `make -C`
#   ci/guest.sh run VERSION FOLDER COMMAND     the command sees this machine's files, read-only, and FOLDER at
#                                              /run/work, writable; it runs as root in /run/work. The exit status
#                                              is the command's. For the kernel's modules: modprobe -d "$GUEST_KERNEL".
#
# VERSION is one of kernels.sh: 6.1, 6.12, 7, 6.1-debug, 6.12-debug.
#
#   RMAP_GUEST_MEMORY     of the guest                    (2G)
#   RMAP_GUEST_NODES      2: half of its memory and one of its processors are on another NUMA node
#   RMAP_GUEST_CLOCK      instructions: one processor, whose clock counts its instructions as nanoseconds
#   RMAP_GUEST_LIMIT      seconds until it is given up    (900)
#   RMAP_GUEST_APPEND     more kernel parameters
#   RMAP_GUEST_QEMU       more arguments of QEMU, of no spaces within
#
# Exit status 97: the guest died. 98: the command succeeded, but the kernel complained. 124: time is up.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$ROOT/ci/kernels.sh"

# What a sound kernel does not say. Taint by a module that is not signed is no complaint.
complaint='WARNING:|BUG[: ]|Oops|general protection fault|Kernel panic|blocked for more than|soft lockup|refcount_t:'
complaint+='|Bad page|Bad rss|self-detected stall|page allocation failure|UBSAN:|KFENCE:|KASAN:|possible recursive locking'
complaint+='|detected stalls|trying to register non-static key|ODEBUG:|pagealloc: '

# busybox and what it takes to mount this machine's files.
make_initramfs() {
    local tree=$1/tree module number=10
    mkdir -p "$tree"/{bin,dev,proc,sys,modules,root}
    cp "$(command -v busybox)" "$tree/bin/busybox"
    for module in virtio_pci 9pnet_virtio 9p; do
        # Built in, if not found.
        modprobe -d "$cache/$release" -S "$release" --show-depends "$module" || true
    done 2>/dev/null | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r module; do
        number=$((number + 1))
        case $module in
        *.xz) xz -dc "$module" ;;
        *.zst) zstd -qdc "$module" ;;
        *) cat "$module" ;;
        esac >"$tree/modules/$number.ko"
    done
    echo "$cache/$release" >"$tree/kernel"
    cat >"$tree/init" <<'END'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module"; done
share() { mount -t 9p -o "trans=virtio,version=9p2000.L,msize=262144,$3" "$1" "$2"; }
share files /root ro,cache=loose || poweroff -f
cd /root
mount -t proc proc proc
mount -t sysfs sys sys
mount -t cgroup2 cgroup sys/fs/cgroup
mount -t debugfs debug sys/kernel/debug
mount -t devtmpfs dev dev
mkdir -p dev/shm dev/pts
mount -t tmpfs shm dev/shm
mount -t devpts pts dev/pts
mount -t tmpfs run run
mkdir run/work run/guest run/kernel
# First: it may lie in /tmp.
mount -o bind ".$(cat /kernel)" run/kernel
mount -t tmpfs -o mode=1777 tmp tmp
share work run/work cache=none
share guest run/guest cache=none
ip link set lo up
hostname guest
stty -F /dev/ttyS1 raw
chroot . /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp \
    GUEST_KERNEL=/run/kernel /bin/bash -c 'cd /run/work && exec /bin/bash /run/guest/command' <dev/null >dev/ttyS1 2>&1
status=$?
dmesg >run/guest/dmesg
echo $status >run/guest/status
sync
poweroff -f
END
    chmod 755 "$tree/init"
    (cd "$tree" && find . | cpio -o -H newc --quiet | gzip -1) >"$1/initramfs"
    rm -rf "$tree"
}

run() {
    local version=$1 folder state status=97 qemu=0 machine node
    folder=$(realpath "$2")
    shift 2
    need "$version"
    # Not `trap`: the shell that this is may have its own.
    state=$(mktemp -d)
    printf '%s\n' "$*" >"$state/command"
    make_initramfs "$state"
    # `rep movsb` is emulated byte by byte: without erms the kernel does not use it.
    if [ "${RMAP_GUEST_CLOCK-}" = instructions ]; then
        machine=(-accel tcg,thread=single -icount "shift=0,sleep=off" -cpu "max,-erms" -smp 1)
    # Only a processor's own virtualisation: a kernel emulated by KVM in software is slower than QEMU's emulation.
    elif [ -w /dev/kvm ] && [ -d /sys/module/kvm_intel -o -d /sys/module/kvm_amd ]; then
        machine=(-accel kvm -cpu host -smp 2)
    else
        machine=(-accel "tcg,thread=multi" -cpu "max,-erms" -smp 2)
    fi
    if [ "${RMAP_GUEST_NODES-}" = 2 ]; then
        # Cores of one socket on two nodes would be no sound machine.
        machine+=(-smp sockets=2)
        for node in 0 1; do
            machine+=(-object "memory-backend-ram,id=m$node,size=$(($(numfmt --from=iec "${RMAP_GUEST_MEMORY:-2G}") / 2))"
                -numa "node,nodeid=$node,memdev=m$node,cpus=$node")
        done
    fi
    share() { # NAME FOLDER [OPTIONS]
        printf -- '-fsdev local,id=%s,path=%s,security_model=none,multidevs=remap%s ' "$1" "$2" "${3-}"
        printf -- '-device virtio-9p-pci,fsdev=%s,mount_tag=%s ' "$1" "$1"
    }
    # shellcheck disable=SC2046,SC2086 # the shares and further arguments are words
    timeout --foreground -k 10 "${RMAP_GUEST_LIMIT:-900}" qemu-system-x86_64 "${machine[@]}" \
        -m "${RMAP_GUEST_MEMORY:-2G}" -nodefaults -no-user-config -display none -no-reboot \
        -serial "file:$state/console" -chardev stdio,id=output,signal=off -serial chardev:output \
        -kernel "$cache/$release/boot/vmlinuz-$release" -initrd "$state/initramfs" \
        -append "console=ttyS0 loglevel=5 panic=-1 tsc=reliable no_timer_check mitigations=off ${RMAP_GUEST_APPEND-}" \
        $(share files / ,readonly=on) $(share work "$folder") $(share guest "$state") \
        ${RMAP_GUEST_QEMU-} </dev/null || qemu=$?
    if [ -s "$state/status" ]; then
        status=$(cat "$state/status")
    else
        [ "$qemu" != 124 ] || status=124
        echo "${0##*/}: the guest did not finish (status $qemu of qemu)" >&2
        tail -n 60 "$state/console" >&2
    fi
    if cat "$state/console" "$state/dmesg" 2>/dev/null | tr -d '\r' |
        grep -aE -m 3 -A 40 "$complaint" >"$state/complaints"; then
        echo "${0##*/}: the kernel complained:" >&2
        cat "$state/complaints" >&2
        [ "$status" != 0 ] || status=98
    fi
    rm -rf "$state"
    return "$status"
}

for program in qemu-system-x86_64 busybox cpio depmod xz; do
    command -v "$program" >/dev/null ||
        die "no $program (apt-get install qemu-system-x86 seabios busybox-static cpio kmod xz-utils)"
done
case ${1-} in
headers)
    need "$2"
    echo "$cache/$release/usr/src/linux-headers-$release"
    ;;
run)
    shift
    run "$@"
    ;;
*) die "usage: ci/guest.sh headers VERSION | run VERSION FOLDER COMMAND" ;;
esac
