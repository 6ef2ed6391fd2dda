# shellcheck shell=bash disable=SC2034
# For scripts that root calls and whose jobs an ordinary user shall run. Sourced after env.sh.
#
# prepare_user [PART ...] installs and builds what is missing (setup.sh PART ...), as root, and sets:
#   as_user  what to put before a command: user 65534 without any capability; nothing if the caller is an ordinary user
#   scripts  this folder, as that user sees it
# XPMEM_PREFIX and RMAP_MPI_CACHE are exported for that user. May set a trap on EXIT.
prepare_user() {
    as_user=() scripts=$here
    export XPMEM_PREFIX RMAP_MPI_CACHE=$CACHE
    [ "$(id -u)" = 0 ] || return 0
    as_user=(setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set=-all --no-new-privs --)
    local copied=
    if ! (cd / && "${as_user[@]}" test -r "$here/run.sh"); then
        # The ordinary user cannot enter this tree: it gets copies.
        copied=$(mktemp -d "${MPI_TMP:-/tmp}/rmap-mpi-user.XXXXXX")
        # shellcheck disable=SC2064 # The name as it is now.
        trap "rm -rf '$copied'" EXIT
        chmod 755 "$copied"
        cp -r "$here" "$copied/scripts"
        scripts=$copied/scripts
        if [ "$CACHE" = "$ROOT/target/mpi" ]; then
            [ "$XPMEM_PREFIX" != "$CACHE/prefix" ] || XPMEM_PREFIX=/var/tmp/rmap-mpi/prefix
            CACHE=/var/tmp/rmap-mpi RMAP_MPI_CACHE=/var/tmp/rmap-mpi
        fi
    fi
    "$here/setup.sh" "$@"
    if [ -n "$copied" ]; then
        mkdir -p "$copied/prefix/lib"
        cp -L "$XPMEM_PREFIX"/lib/libxpmem.so* "$copied/prefix/lib/"
        XPMEM_PREFIX=$copied/prefix
    fi
}
