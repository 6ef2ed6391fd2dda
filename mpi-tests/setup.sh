#!/usr/bin/env bash
# Installs and builds what the MPI tests need, on a bare Debian 12, as root:
#
#   vader     the shared-memory component of Debian's Open MPI 4.1, from Debian's unmodified source, configured with XPMEM
#   ucx       the XPMEM transport of Debian's UCX 1.13, from Debian's unmodified source
#   impi      Intel MPI from PyPI (nothing to compile; it opens libxpmem.so.0 by itself)
#   python    mpi4py from PyPI (nothing to compile; it opens the library of each MPI)
#   programs  the test programs of this folder, once per MPI
#
#   setup.sh [plots] [profile]
#
# "plots" and "profile" add the packages that plots.sh and profile.sh need. All products go below one cache folder. Each part has a
# stamp file with the versions it was made from, so a second run does nothing. The system's apt configuration is not changed: sources are fetched with a private configuration.
#
#   RMAP_MPI_CACHE  cache folder (default: target/mpi in the source tree)
#   XPMEM_PREFIX    installation that holds include/xpmem.h and lib/libxpmem.so.0 (default: a folder of links to this tree's
#                   release build, made here)
set -euo pipefail
umask 022

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/env.sh"
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

IMPI_VERSION=2021.19.0
MPI4PY_VERSION=4.1.2
PACKAGES=(openmpi-bin libopenmpi-dev mpich libmpich-dev libucx-dev ucx-utils gcc libc6-dev make autoconf automake libtool
    pkg-config dpkg-dev xz-utils bzip2 python3 python3-venv ca-certificates)
for more in "$@"; do
    case $more in
    plots) PACKAGES+=(python3-matplotlib) ;;
    profile) PACKAGES+=(linux-perf) ;;
    *) echo "mpi-tests/setup: no part $more" >&2; exit 2 ;;
    esac
done

say() { printf 'mpi-tests/setup: %s\n' "$*"; }
die() { printf 'mpi-tests/setup: %s\n' "$*" >&2; exit 1; }

# A part is done when its stamp holds the key.
is_done() { [ -f "$CACHE/$1.stamp" ] && [ "$(cat "$CACHE/$1.stamp")" = "$2" ]; }
mark_done() { printf '%s\n' "$2" >"$CACHE/$1.stamp"; }

# Runs a command with its output in a log file; shows the end of the log if it fails.
logged() {
    local log=$CACHE/log/$1; shift
    "$@" >>"$log" 2>&1 || { tail -n 30 "$log" >&2; die "failed: $* (see $log)"; }
}

missing_packages() {
    local p
    for p in "${PACKAGES[@]}"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)" = installed ] || printf '%s\n' "$p"
    done
}

install_packages() {
    local missing
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || die "not installed: ${missing[*]} (run this as root)"
    say "installing ${missing[*]}"
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -y -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=2)
    local install=("${apt[@]}" install --no-install-recommends "${missing[@]}")
    # The first attempt uses the package lists as they are. The second one, after a pause, has fresh lists; a source of
    # packages that cannot be reached does not matter if the packages are found in another one.
    if ! "${install[@]}" >>"$CACHE/log/apt" 2>&1; then
        say "apt-get failed; reading the package lists again"
        "${apt[@]}" update >>"$CACHE/log/apt" 2>&1 || true
        "${install[@]}" >>"$CACHE/log/apt" 2>&1 || {
            tail -n 20 "$CACHE/log/apt" >&2
            die "cannot install ${missing[*]}"
        }
    fi
}

# Fetches a Debian source package into the current folder, from the mirror that the system's own files name.
fetch_source() {
    local package=$1 version=$2 folder=$CACHE/apt uri suite
    if [ ! -f "$folder/ready" ]; then
        uri=$(awk '/^URIs:/ { print $2; exit }' /etc/apt/sources.list.d/debian.sources 2>/dev/null || true)
        [ -n "$uri" ] || uri=$(awk '$1 == "deb" { for (i = 2; i <= NF; i++) if ($i ~ /:\/\//) { print $i; exit } }' \
            /etc/apt/sources.list 2>/dev/null || true)
        [ -n "$uri" ] || die "no Debian mirror found in the system's apt sources"
        suite=$(. /etc/os-release; printf '%s' "${VERSION_CODENAME:-bookworm}")
        mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
        printf 'deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$uri" "$suite" \
            >"$folder/sources.list"
        printf '%s\n' "Dir::Etc::sourcelist \"$folder/sources.list\";" 'Dir::Etc::sourceparts "-";' \
            "Dir::State::lists \"$folder/lists\";" "Dir::Cache \"$folder/cache\";" 'Dir::Cache::pkgcache "";' \
            'Dir::Cache::srcpkgcache "";' 'APT::Sandbox::User "root";' 'Acquire::Retries "2";' >"$folder/apt.conf"
        APT_CONFIG=$folder/apt.conf apt-get update -qq >>"$CACHE/log/apt" 2>&1 ||
            APT_CONFIG=$folder/apt.conf apt-get update -qq >>"$CACHE/log/apt" 2>&1 ||
            { tail -n 20 "$CACHE/log/apt" >&2; die "cannot read the source package lists"; }
        touch "$folder/ready"
    fi
    local get=(apt-get source -qq --download-only "$package=$version")
    APT_CONFIG=$folder/apt.conf "${get[@]}" >>"$CACHE/log/apt" 2>&1 ||
        APT_CONFIG=$folder/apt.conf "${get[@]}" >>"$CACHE/log/apt" 2>&1 ||
        { tail -n 20 "$CACHE/log/apt" >&2; die "cannot fetch the source of $package $version"; }
}

# A prefix made of links to the release build, for use before `make install`.
link_prefix() {
    [ "$XPMEM_PREFIX" = "$CACHE/prefix" ] || return 0
    local library=$ROOT/target/release/libxpmem.so header=$ROOT/ffi/include/xpmem.h
    mkdir -p "$XPMEM_PREFIX/lib" "$XPMEM_PREFIX/include"
    [ "$(readlink "$XPMEM_PREFIX/lib/libxpmem.so.0" || true)" = "$library" ] ||
        ln -sfn "$library" "$XPMEM_PREFIX/lib/libxpmem.so.0"
    [ "$(readlink "$XPMEM_PREFIX/lib/libxpmem.so" || true)" = "$library" ] ||
        ln -sfn "$library" "$XPMEM_PREFIX/lib/libxpmem.so"
    [ "$(readlink "$XPMEM_PREFIX/include/xpmem.h" || true)" = "$header" ] ||
        ln -sfn "$header" "$XPMEM_PREFIX/include/xpmem.h"
}

# Debian's Open MPI is built without XPMEM. Its component is compiled again from Debian's source, with the two definitions
# that its own configure script would have written had it found xpmem.h.
build_vader() {
    local version key work multiarch ompi
    version=$(dpkg-query -W -f '${source:Version}' libopenmpi-dev)
    key="openmpi $version $HEADER_SUM cx16"
    ! is_done vader "$key" || return 0
    say "building the vader component of Open MPI $version"
    work=$CACHE/work/vader
    multiarch=$(dpkg-architecture -qDEB_HOST_MULTIARCH)
    ompi=/usr/lib/$multiarch/openmpi
    rm -rf "$work"; mkdir -p "$work/inc" "$CACHE/vader"
    cd "$work"
    fetch_source openmpi "$version"
    tar xf openmpi_*.orig.tar.* --wildcards '*/opal/mca/btl/vader/*' '*/opal/include/opal/align.h'
    printf '%s\n' '#include_next <opal_config.h>' '#undef OPAL_BTL_VADER_HAVE_XPMEM' \
        '#define OPAL_BTL_VADER_HAVE_XPMEM 1' '#define HAVE_XPMEM_H 1' >inc/opal_config.h
    cd openmpi-*/opal/mca/btl/vader
    # With threads Open MPI's lists need an atomic operation on 16 bytes, in line.
    logged vader gcc -O2 -mcx16 -w -std=gnu99 -fPIC -shared -pthread -DHAVE_CONFIG_H -I"$work/inc" -I"$XPMEM_PREFIX/include" \
        -I"$ompi/include/openmpi" -I"$ompi/include" -I../../../.. btl_vader_*.c -o "$CACHE/vader/mca_btl_vader.so" \
        -L"$ompi/lib" -L"$XPMEM_PREFIX/lib" -lopen-pal -lxpmem
    printf '%s\n' "$ompi/lib/openmpi3" >"$CACHE/vader/components"
    cd "$CACHE"; rm -rf "$work"
    mark_done vader "$key"
}

# Debian's UCX is built without XPMEM too, and the list of its modules is fixed. The transport is compiled from Debian's
# source as a library that is preloaded; its constructor registers it with UCX.
build_ucx() {
    local version key work
    version=$(dpkg-query -W -f '${source:Version}' libucx-dev)
    key="ucx $version $HEADER_SUM"
    ! is_done ucx "$key" || return 0
    say "building the XPMEM transport of UCX $version"
    work=$CACHE/work/ucx
    rm -rf "$work"; mkdir -p "$work" "$CACHE/ucx"
    cd "$work"
    fetch_source ucx "$version"
    logged ucx dpkg-source --no-check -x ucx_*.dsc ucx
    cd ucx
    logged ucx ./autogen.sh
    logged ucx ./configure --enable-mt --disable-logging --disable-numa --without-verbs --without-rdmacm --without-java \
        --without-go --without-cuda --without-rocm --without-gdrcopy --without-knem --disable-doxygen-doc \
        --with-xpmem="$XPMEM_PREFIX"
    logged ucx gcc -O2 -w -std=gnu11 -fPIC -shared -DHAVE_CONFIG_H '-DCPU_FLAGS=""' -I. -Isrc -I"$XPMEM_PREFIX/include" \
        src/uct/sm/mm/xpmem/mm_xpmem.c -o "$CACHE/ucx/libuct_xpmem.so.0" -Wl,-soname,libuct_xpmem.so.0 -Wl,-z,defs \
        -L"$XPMEM_PREFIX/lib" -lxpmem -luct -lucs
    cd "$CACHE"; rm -rf "$work"
    mark_done ucx "$key"
}

install_impi() {
    local key="impi $IMPI_VERSION $CACHE"
    ! is_done impi "$key" || return 0
    say "installing Intel MPI $IMPI_VERSION"
    rm -rf "$CACHE/impi"
    logged impi /usr/bin/python3 -m venv "$CACHE/impi"
    # Without --no-deps pip asks for a package that is not on PyPI; the shared-memory fabric does not need it.
    local pip=("$CACHE/impi/bin/pip" install -q --no-deps "impi-rt==$IMPI_VERSION" "impi-devel==$IMPI_VERSION")
    "${pip[@]}" >>"$CACHE/log/impi" 2>&1 || logged impi "${pip[@]}"
    mark_done impi "$key"
}

install_mpi4py() {
    local key="mpi4py $MPI4PY_VERSION mpich $(/usr/bin/python3 --version) $CACHE"
    ! is_done python "$key" || return 0
    say "installing mpi4py $MPI4PY_VERSION"
    rm -rf "$CACHE/python"
    logged python /usr/bin/python3 -m venv "$CACHE/python"
    local pip=("$CACHE/python/bin/pip" install -q --no-deps --only-binary :all: "mpi4py==$MPI4PY_VERSION")
    "${pip[@]}" >>"$CACHE/log/python" 2>&1 || logged python "${pip[@]}"
    # It looks for MPICH's library by the name that MPICH, but not Debian, gives it.
    mkdir "$CACHE/python/mpich"
    ln -s "/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH)/libmpich.so.12" "$CACHE/python/mpich/libmpi.so.12"
    mark_done python "$key"
}

build_programs() {
    local key name
    key="$(cat "$here"/programs/*.[ch] | sha256sum) $(cat "$CACHE"/{vader,ucx,impi}.stamp | sha256sum) $(gcc -dumpfullversion)"
    ! is_done programs "$key" || return 0
    say "compiling the test programs"
    mkdir -p "$CACHE"/bin/{ompi,mpich,impi}
    local flags=(-O2 -g -Wall -Wextra -std=gnu11)
    for name in exchange bandwidth measure pingpong reuse onesided late; do
        # Debian's mpicc.mpich hands on the packager's link-time optimisation; MPI_STATUSES_IGNORE is a null pointer there,
        # which the compiler takes for an array of no elements.
        logged programs mpicc.openmpi "${flags[@]}" -o "$CACHE/bin/ompi/$name" "$here/programs/$name.c"
        logged programs mpicc.mpich "${flags[@]}" -fno-lto -Wno-stringop-overflow -o "$CACHE/bin/mpich/$name" "$here/programs/$name.c"
        logged programs gcc "${flags[@]}" -Wno-stringop-overflow -I"$CACHE/impi/include" -o "$CACHE/bin/impi/$name" "$here/programs/$name.c" \
            -L"$CACHE/impi/lib" -Wl,-rpath-link,"$CACHE/impi/lib" -lmpi
    done
    mark_done programs "$key"
}

mkdir -p "$CACHE/log" "$CACHE/work" 2>/dev/null || [ -d "$CACHE/log" ] || die "cannot write to $CACHE"
if [ -w "$CACHE" ]; then
    exec 9>"$CACHE/lock"
    flock 9
fi
install_packages
link_prefix
[ -e "$XPMEM_PREFIX/lib/libxpmem.so.0" ] || die "no $XPMEM_PREFIX/lib/libxpmem.so.0 (build the library first, or set XPMEM_PREFIX)"
[ -e "$XPMEM_PREFIX/include/xpmem.h" ] || die "no $XPMEM_PREFIX/include/xpmem.h"
# What was compiled depends on the declarations in the header, not on its comments.
HEADER_SUM=$(gcc -E -P "$XPMEM_PREFIX/include/xpmem.h" | sha256sum | cut -c1-16)
build_vader
build_ucx
install_impi
install_mpi4py
build_programs
say "ready in $CACHE"
