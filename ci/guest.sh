#!/usr/bin/env bash
# Boots a Debian kernel in QEMU and runs a command on it. Nothing of the guest outlives the command.
#
#   ci/guest.sh headers VERSION                the folder for `make -C`
#   ci/guest.sh run VERSION FOLDER COMMAND     the command sees this machine's files, read-only, and FOLDER at
#                                              /run/work, writable; it runs as root in /run/work. The exit status
#                                              is the command's. For the kernel's modules: modprobe -d "$GUEST_KERNEL".
#
# VERSION is the start of a Debian kernel version: 6.1, 6.12. Kernels come from the Debian archive that this machine's
# apt uses.
#
#   RMAP_GUEST_CACHE      where kernels are kept          (target/guest)
#   RMAP_GUEST_SUITES     where to look for them          (bookworm bookworm-backports)
#   RMAP_GUEST_MEMORY     of the guest                    (2G)
#   RMAP_GUEST_LIMIT      seconds until it is given up    (900)
#   RMAP_GUEST_APPEND     more kernel parameters
#   RMAP_GUEST_QEMU       more arguments of QEMU, of no spaces within
#
# Exit status 97: the guest died. 98: the command succeeded, but the kernel complained. 124: time is up.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cache=${RMAP_GUEST_CACHE:-$TARGET/guest}
# What a sound kernel does not say. Taint by a module that is not signed is no complaint.
complaint='WARNING:|BUG:|Oops|general protection fault|Kernel panic|blocked for more than|soft lockup|refcount_t:'
complaint+='|Bad page|Bad rss|self-detected stall|page allocation failure|UBSAN:|KFENCE:|KASAN:|possible recursive locking'

# ---- kernels ----

# The addresses of the archive and of its security updates, as apt has them.
archives() {
    apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' 'Identifier: Packages' |
        awk '$1 == "Debian" { print ($2 ~ /-security$/ ? "security" : "main"), $3 }' | sort -u
}

# An apt of our own: kernels of other suites are looked at without touching this machine's configuration.
apt_setup() {
    local suite main security
    main=$(archives | awk '$1 == "main" { print $2; exit }')
    security=$(archives | awk '$1 == "security" { print $2; exit }')
    [ -n "$main" ] || die "apt knows no Debian archive (apt-get update first)"
    mkdir -p "$cache"/apt/{lists,archives}/partial
    : >"$cache/apt/status"
    for suite in ${RMAP_GUEST_SUITES:-bookworm bookworm-backports}; do
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $main $suite main"
        case $suite in
        *-* | sid) ;;
        *) [ -z "$security" ] ||
            echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $security $suite-security main" ;;
        esac
    done >"$cache/apt/sources.list"
    cat >"$cache/apt/apt.conf" <<END
Dir::Etc::SourceList "$cache/apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$cache/apt/lists";
Dir::State::Status "$cache/apt/status";
Dir::Cache "$cache/apt";
APT::Sandbox::User "root";
Acquire::Languages "none";
END
    export APT_CONFIG=$cache/apt/apt.conf
    apt-get update -qq
}

# What a package depends on, with versions where they are exact, if it is part of the kernel.
kernel_depends() {
    apt-cache show "$1" | sed -n 's/^Depends: //p' | head -n 1 | tr , '\n' |
        sed -E 's/\|.*//; s/^ +//; s/ \(= ([^)]*)\)/=\1/; s/ .*//; s/:any//' |
        grep -E '^linux-(image|modules|binary|headers|kbuild)-' || true
}

fetch() {
    local version package todo done='' new=$cache/new release file
    apt_setup
    version=$(apt-cache madison linux-image-amd64 | awk '{ print $3 }' |
        grep -E "^${1//./\\.}([.~+-]|\$)" | sort -V | tail -n 1)
    [ -n "$version" ] || die "no kernel $1 in: ${RMAP_GUEST_SUITES:-bookworm bookworm-backports}"
    todo="linux-image-amd64=$version linux-headers-amd64=$version"
    while [ -n "$todo" ]; do
        package=${todo%% *}
        todo=${todo#"$package"}
        case " $done " in *" $package "*) ;; *)
            done+=" $package"
            todo+=" $(kernel_depends "$package" | tr '\n' ' ')"
            ;;
        esac
        todo=$(echo $todo)
    done
    rm -rf "$new"
    mkdir -p "$new/debs" "$new/root"
    # The two names to start from are empty packages.
    (cd "$new/debs" && printf '%s\n' $done | grep -vE '^linux-(image|headers)-amd64=' | xargs apt-get download -qq)
    for file in "$new"/debs/*.deb; do dpkg-deb -x "$file" "$new/root"; done
    rm -rf "$new/debs"
    [ -e "$new/root/lib/modules" ] || { mkdir -p "$new/root/lib" &&
        mv "$new/root/usr/lib/modules" "$new/root/lib/"; }
    release=$(basename "$(echo "$new"/root/lib/modules/*-amd64)")
    [ -e "$new/root/boot/vmlinuz-$release" ] || { mkdir -p "$new/root/boot" &&
        mv "$new/root/lib/modules/$release/vmlinuz" "$new/root/boot/vmlinuz-$release"; }
    depmod -b "$new/root" "$release"
    # The headers are used where they lie, not in /usr.
    find "$new"/root/usr/src -maxdepth 2 \( -name Makefile -o -name .kernelvariables \) -exec sed -i \
        -e "s|/usr/src/|$cache/$release/usr/src/|g" -e "s|/usr/lib/linux-kbuild|$cache/$release/usr/lib/linux-kbuild|g" {} +
    rm -rf "${cache:?}/$release"
    mv "$new/root" "$cache/$release"
    rm -rf "$new"
}

# Sets `release`, downloading the kernel if it is not there.
need() {
    local found
    mkdir -p "$cache"
    find_kernel() { find "$cache" -maxdepth 1 -name "$1[.+-]*-amd64" -printf '%f\n' 2>/dev/null | sort -V | tail -n 1; }
    found=$(find_kernel "$1")
    [ -n "$found" ] || { fetch "$1" >&2; found=$(find_kernel "$1"); }
    release=$found
}

# ---- the guest ----

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
    local version=$1 folder state status=97 qemu=0 machine
    folder=$(realpath "$2")
    shift 2
    need "$version"
    # Not `trap`: the shell that this is may have its own.
    state=$(mktemp -d)
    printf '%s\n' "$*" >"$state/command"
    make_initramfs "$state"
    # Only a processor's own virtualisation: a kernel emulated by KVM in software is slower than QEMU's emulation.
    if [ -w /dev/kvm ] && [ -d /sys/module/kvm_intel -o -d /sys/module/kvm_amd ]; then
        machine=(-accel kvm -cpu host)
    else
        # `rep movsb` is emulated byte by byte: without erms the kernel does not use it.
        machine=(-accel "tcg,thread=multi" -cpu "max,-erms")
    fi
    share() { # NAME FOLDER [OPTIONS]
        printf -- '-fsdev local,id=%s,path=%s,security_model=none,multidevs=remap%s ' "$1" "$2" "${3-}"
        printf -- '-device virtio-9p-pci,fsdev=%s,mount_tag=%s ' "$1" "$1"
    }
    # shellcheck disable=SC2046,SC2086 # the shares and further arguments are words
    timeout --foreground -k 10 "${RMAP_GUEST_LIMIT:-900}" qemu-system-x86_64 "${machine[@]}" \
        -smp 2 -m "${RMAP_GUEST_MEMORY:-2G}" -nodefaults -no-user-config -display none -no-reboot \
        -serial "file:$state/console" -chardev stdio,id=output,signal=off -serial chardev:output \
        -kernel "$cache/$release/boot/vmlinuz-$release" -initrd "$state/initramfs" \
        -append "console=ttyS0 loglevel=5 panic=-1 tsc=reliable mitigations=off ${RMAP_GUEST_APPEND-}" \
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
