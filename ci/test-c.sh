#!/usr/bin/env bash
# The C and C++ tests against an installation made for them; as root, they run as root and as an ordinary user. Also: what
# `make install` and `make uninstall` do.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"
make_scratch

say "make install, make uninstall"
make -s install DESTDIR="$scratch/stage" PREFIX=/opt/rmap LIBDIR=/opt/rmap/lib64
files=$(cd "$scratch/stage" && find . ! -type d | LC_ALL=C sort)
wanted="./opt/rmap/bin/rmap
./opt/rmap/bin/with-rmap
./opt/rmap/include/linux-rmap/rmap.h
./opt/rmap/include/rmap.h
./opt/rmap/include/xpmem.h
./opt/rmap/lib64/libxpmem.a
./opt/rmap/lib64/libxpmem.so
./opt/rmap/lib64/libxpmem.so.0
./opt/rmap/lib64/libxpmem.so.0.0.0
./opt/rmap/lib64/pkgconfig/cray-xpmem.pc
./opt/rmap/lib64/pkgconfig/xpmem.pc
./opt/rmap/share/bash-completion/completions/rmap
./opt/rmap/share/fish/vendor_completions.d/rmap.fish
./opt/rmap/share/man/man1/rmap.1
./opt/rmap/share/man/man3/rmap_counters.3
./opt/rmap/share/man/man3/xpmem_attach.3
./opt/rmap/share/man/man3/xpmem_detach.3
./opt/rmap/share/man/man3/xpmem_get.3
./opt/rmap/share/man/man3/xpmem_make.3
./opt/rmap/share/man/man3/xpmem_release.3
./opt/rmap/share/man/man3/xpmem_remove.3
./opt/rmap/share/man/man3/xpmem_version.3
./opt/rmap/share/man/man7/xpmem.7
./opt/rmap/share/modulefiles/xpmem/rmap
./opt/rmap/share/zsh/site-functions/_rmap"
diff <(echo "$wanted") <(echo "$files") || die "make install: other files than expected"
if grep -rlE "@[A-Z_]+@|$scratch" "$scratch/stage" --include='*.pc' --include=rmap --include=with-rmap; then
    die "make install: a placeholder or DESTDIR is left in a file"
fi
pc() { PKG_CONFIG_PATH=$scratch/stage/opt/rmap/lib64/pkgconfig pkg-config "$@" cray-xpmem; }
[ "$(pc --modversion) $(pc --variable=prefix) $(pc --variable=exec_prefix) $(pc --variable=libdir) $(pc --variable=includedir)" = \
    "2.7.4 /opt/rmap /opt/rmap /opt/rmap/lib64 /opt/rmap/include" ] || die "cray-xpmem.pc: unexpected values"
[ "$(readlink "$scratch/stage/opt/rmap/lib64/libxpmem.so.0")" = libxpmem.so.0.0.0 ] || die "libxpmem.so.0: wrong link"
make -s uninstall DESTDIR="$scratch/stage" PREFIX=/opt/rmap LIBDIR=/opt/rmap/lib64
left=$(find "$scratch/stage" ! -type d)
[ -z "$left" ] || die "make uninstall leaves: $left"
echo "as expected"

say "compiling the C and C++ tests"
make -s install PREFIX="$scratch/prefix"
cp tests/c/run.sh "$scratch"
tests/c/build.sh "$scratch/prefix" "$scratch/bin"

# with-rmap puts the library first and passes arguments and status on.
with_rmap() {
    local status=0 path
    path=$(LD_LIBRARY_PATH=/elsewhere "$scratch/prefix/bin/with-rmap" sh -c 'echo "$LD_LIBRARY_PATH" "$@"; exit 3' - "a b" c) ||
        status=$?
    [ "$status $path" = "3 $scratch/prefix/lib:/elsewhere a b c" ]
}
with_rmap || die "with-rmap does not work"

failed=0
for identity in "${identities[@]}"; do
    say "C and C++ tests as $identity"
    run_as "$identity" "$scratch/run.sh" "$scratch/bin" || failed=1
done
exit $failed
