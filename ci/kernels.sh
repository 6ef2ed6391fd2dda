# shellcheck shell=bash disable=SC2034
# The kernels that guest.sh boots. Sourced, after lib.sh.
#
# A version is the start of a Debian kernel's: 6.1, 6.12, 7. It comes from the Debian archive that this machine's apt uses.
# 6.1-debug, and 6.12-debug, is Debian's source of that version with kernel/test/debug.config, and takes some minutes to build. Below
# $cache/RELEASE there are boot/vmlinuz-RELEASE, lib/modules/RELEASE and usr/src/linux-headers-RELEASE.
#
#   RMAP_GUEST_CACHE      where kernels are kept          (target/guest)
#   RMAP_GUEST_SUITES     where to look for them          (bookworm bookworm-backports; from 7 on: sid)
cache=${RMAP_GUEST_CACHE:-$TARGET/guest}

# The addresses of the archive and of its security updates, as this machine's own apt has them.
archives() {
    env -u APT_CONFIG apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' 'Identifier: Packages' |
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
    for suite in $suites; do
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
    [ -n "$version" ] || die "no kernel $1 in: $suites"
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

# Builds a kernel from Debian's source of that version, where it stays: the build folder knows its place.
build_debug() {
    local package=linux-source-$1 new=$cache/new tree objects name
    for name in gcc make bc flex bison perl; do
        command -v "$name" >/dev/null ||
            die "no $name (apt-get install gcc make bc flex bison perl libelf-dev libssl-dev)"
    done
    apt_setup
    rm -rf "$new"
    mkdir -p "$new"
    (cd "$new" && apt-get download -qq "$package" && dpkg-deb -x ./*.deb . && tar xf "usr/src/$package.tar.xz")
    release=$(make -s -C "$new/$package" kernelversion)-debug
    tree=$cache/$release
    objects=$tree/usr/src/linux-headers-$release
    rm -rf "$tree"
    mkdir -p "$objects" "$tree/boot"
    mv "$new/$package" "$tree/source"
    rm -rf "$new"
    # What the file does not name is off.
    make -s -C "$tree/source" O="$objects" KCONFIG_ALLCONFIG="$ROOT/kernel/test/debug.config" allnoconfig
    while read -r name; do
        grep -qxF "$name" "$objects/.config" || die "kernel/test/debug.config: the kernel does not take $name"
    done < <(grep '^CONFIG' "$ROOT/kernel/test/debug.config")
    nice make -s -C "$objects" -j"$(nproc)" bzImage modules
    make -s -C "$objects" INSTALL_MOD_PATH="$tree" modules_install
    # Modules are built with the rest.
    find "$objects" -path "$objects/scripts" -prune -o -path "$objects/tools" -prune -o -name '*.[oa]' -exec rm {} +
    rm -f "$objects/vmlinux"
    # Last: what is there is whole.
    cp "$objects/arch/x86/boot/bzImage" "$tree/boot/vmlinuz-$release"
}

# Sets `release`, getting the kernel if it is not there.
need() {
    local kind=-amd64 get=fetch number=${1%-debug} found
    if [ "$number" != "$1" ]; then
        kind=-debug get=build_debug
    fi
    suites='bookworm bookworm-backports'
    [ "${number%%.*}" -lt 7 ] || suites=sid
    suites=${RMAP_GUEST_SUITES:-$suites}
    mkdir -p "$cache"
    find_kernel() {
        find "$cache" -maxdepth 3 -path "*/boot/vmlinuz-$number[.+-]*$kind" -printf '%f\n' 2>/dev/null |
            sed 's/^vmlinuz-//' | sort -V | tail -n 1
    }
    found=$(find_kernel)
    [ -n "$found" ] || { "$get" "$number" >&2; found=$(find_kernel); }
    release=$found
}

# with_compiler VERSION FOLDER COMMAND...: runs a command where the compiler of that kernel is, and what else its headers need: here, or, for
# root, in a root file system of that kernel's Debian, which is made when it is first needed. It sees this folder and the cache there.
with_compiler() {
    local folder=$2 compiler package root
    need "$1"
    shift 2
    compiler=$(sed -n 's/^CONFIG_CC_VERSION_TEXT="\([^ ]*\) .*/\1/p' "$cache/$release/usr/src/linux-headers-$release/.config")
    if command -v "$compiler" >/dev/null; then
        "$@"
        return
    fi
    command -v debootstrap >/dev/null || die "no $compiler, nor debootstrap (apt-get install debootstrap)"
    package=gcc${compiler##*gcc}
    root=$cache/root-$package
    if [ ! -e "$root" ]; then
        rm -rf "$root.new"
        debootstrap --variant=minbase --include="$package,make,libelf1t64,dwarves" "${suites##* }" "$root.new" \
            "$(archives | awk '$1 == "main" { print $2; exit }')" >"$cache/debootstrap.log" ||
            die "debootstrap failed: see $cache/debootstrap.log"
        mv "$root.new" "$root"
    fi
    mkdir -p "$root$cache" "$root$folder"
    # What is mounted goes with the command.
    unshare --mount bash -euc 'root=$1; shift
        for folder in "$1" "$2"; do mount --bind "$folder" "$root$folder"; done; shift 2
        mount -t proc proc "$root/proc"
        exec chroot "$root" "$@"' _ "$root" "$cache" "$folder" "$@"
    rmdir "$root$folder"
}
