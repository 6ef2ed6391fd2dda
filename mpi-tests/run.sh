#!/usr/bin/env bash
# Runs one MPI job and asks the runtime which transport it used.
#
#   run.sh CONSUMER TRANSPORT NP PROGRAM [ARGUMENTS]
#
#   CONSUMER   ompi-vader  Open MPI, its own shared-memory component
#              ompi-ucx    Open MPI over UCX
#              mpich-ucx   MPICH over UCX
#              impi        Intel MPI
#   TRANSPORT  xpmem       through libxpmem.so.0 of XPMEM_PREFIX
#              cma         process_vm_readv and process_vm_writev
#              copy        copy in and out of a shared segment
#   PROGRAM    a name from programs/; one in Python with its .py
#
# Exit status: that of the job; 124 if it took longer than MPI_TIMEOUT seconds (default 120); 3 if it ended well but the
# runtime did not show that it used TRANSPORT. The last line, "proof: ...", is the runtime's own statement.
# Needs setup.sh. Works as any user. MPI_VERBOSE=1 shows the runtime's messages as well.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/env.sh"

die() { printf 'mpi-tests/run: %s\n' "$*" >&2; exit 2; }
[ $# -ge 4 ] || die "usage: run.sh CONSUMER TRANSPORT NP PROGRAM [ARGUMENTS]"
consumer=$1 transport=$2 np=$3 program=$4
shift 4
case $transport in xpmem | cma | copy) ;; *) die "no transport $transport" ;; esac
case $consumer in
ompi-*) binary=$CACHE/bin/ompi/$program python_abi=openmpi python_library=libmpi.so.40 ;;
mpich-ucx) binary=$CACHE/bin/mpich/$program python_abi=mpich python_library=libmpich.so.12 ;;
impi) binary=$CACHE/bin/impi/$program python_abi=mpich python_library=$CACHE/impi/lib/libmpi.so.12 ;;
*) die "no consumer $consumer" ;;
esac
case $program in
*.py)
    binary=$CACHE/python/bin/python
    set -- "$here/programs/$program" "$@"
    ;;
esac
[ -x "$binary" ] || die "no $binary (run setup.sh first)"
[ -e "$XPMEM_PREFIX/lib/libxpmem.so.0" ] || die "no $XPMEM_PREFIX/lib/libxpmem.so.0"

# Everything the job writes goes below two folders of its own, which are removed at the end.
unset TMPDIR
work=$(mktemp -d "${MPI_TMP:-/tmp}/rmap-mpi.XXXXXX")
shm=$work
if [ -w /dev/shm ]; then shm=$(mktemp -d /dev/shm/rmap-mpi.XXXXXX); fi
export HOME=$work TMPDIR=$work TMP=$work TEMP=$work RMAP_MPI_JOB=$work

# shellcheck disable=SC2317 # Called by the trap.
# The processes of this job carry its mark in the environment they were started with (this script does not: it set the mark
# later). None is left after a job that ended by itself.
job_processes() {
    local p
    for p in /proc/[0-9]*; do
        [ -O "$p" ] || continue
        ! tr '\0' '\n' <"$p/environ" | grep -qxF "RMAP_MPI_JOB=$work" || printf '%s\n' "${p#/proc/}"
    done 2>/dev/null
}

# shellcheck disable=SC2317 # Called by the trap.
clean_up() {
    local pid file
    for pid in $(job_processes); do kill -KILL "$pid" 2>/dev/null || true; done
    # Runtimes that ignore the folder above: their segments are named after the job or a process. Only those of this user
    # that are newer than the job and that no process has mapped are removed.
    for file in /dev/shm/{Intel_MPI_,mpich_shar_tmp,vader_segment.,ucx_shm_posix_}*; do
        if [ -O "$file" ] && [ "$file" -nt "$work/start" ] && ! grep -qsF "$file" /proc/[0-9]*/maps; then rm -f "$file"; fi
    done
    rm -rf "$work" "$shm"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
touch "$work/start"

export LD_LIBRARY_PATH=$XPMEM_PREFIX/lib
# Some start-up looks up the host's own name, which on a machine without a name server may take long.
export RES_OPTIONS='timeout:1 attempts:1'
launch=()

# Ranks that wait give their core away, because there may be more of them than cores. Where times are measured they do not as long
# as each has a core.
yield=1
case $program in bandwidth | measure | pingpong) [ "$np" -gt "$(nproc)" ] || yield=0 ;; esac

# What the two users of UCX have in common. UCX uses nothing but the transports named here. self is a rank's own loopback:
# it reaches no other process. So with "xpmem,self" two ranks can only talk through XPMEM, or not at all.
ucx_environment() {
    preload=$CACHE/ucx/libuct_xpmem.so.0
    export UCX_LOG_LEVEL=info UCX_LOG_FILE=$work/ucx.%p UCX_WARN_UNUSED_ENV_VARS=n UCX_POSIX_DIR=$shm
    case $transport in
    xpmem) export UCX_TLS=xpmem,self ;;
    cma) export UCX_TLS=posix,cma,self ;;
    copy) export UCX_TLS=posix,self ;;
    esac
}

case $consumer in
ompi-*)
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    # There may be more ranks than cores: no binding. No remote launcher, no network.
    launch=(mpirun.openmpi -np "$np" --oversubscribe --bind-to none --mca plm isolated --mca oob_tcp_if_include lo
        --mca mpi_yield_when_idle "$yield" --mca orte_tmpdir_base "$work" --mca btl_vader_backing_directory "$shm")
    ;;&
ompi-vader)
    # The component compiled by setup.sh is found before Debian's own.
    launch+=(--mca mca_base_component_path "$CACHE/vader:$(cat "$CACHE/vader/components")" --mca pml ob1 --mca btl "vader,self")
    case $transport in
    xpmem | cma) launch+=(--mca btl_vader_single_copy_mechanism "$transport") ;;
    copy) launch+=(--mca btl_vader_single_copy_mechanism none --mca osc pt2pt) ;;
    esac
    ;;
ompi-ucx)
    ucx_environment
    # Without the last two settings Open MPI refuses UCX where there is no network device for it.
    launch+=(-x LD_PRELOAD="$preload" --mca pml ucx --mca opal_common_ucx_tls any
        --mca opal_common_ucx_devices any)
    ;;
mpich-ucx)
    ucx_environment
    launch=(mpiexec.mpich -launcher fork -iface lo -n "$np" -env LD_PRELOAD "$preload")
    ;;
impi)
    export I_MPI_ROOT=$CACHE/impi LD_LIBRARY_PATH=$CACHE/impi/lib:$LD_LIBRARY_PATH
    export I_MPI_FABRICS=shm I_MPI_DEBUG=5 I_MPI_PIN=0 I_MPI_HYDRA_BOOTSTRAP=fork I_MPI_HYDRA_IFACE=lo I_MPI_TMPDIR=$work
    # 3: a rank that waits sleeps a little, 2: it only yields.
    case $yield-$program in
    0-*) ;;
    *-measure) export I_MPI_THREAD_YIELD=2 ;;
    *) export I_MPI_THREAD_YIELD=3 ;;
    esac
    case $transport in
    xpmem) export I_MPI_SHM_XPMEM=1 I_MPI_SHM_CMA=0 ;;
    cma) export I_MPI_SHM_XPMEM=0 I_MPI_SHM_CMA=1 ;;
    copy) export I_MPI_SHM_XPMEM=0 I_MPI_SHM_CMA=0 ;;
    esac
    launch=("$CACHE/impi/bin/mpiexec.hydra" -n "$np")
    ;;
esac

case $program in
*.py)
    # mpi4py is built for all of them and opens the one that is named.
    export MPI4PY_MPIABI=$python_abi MPI4PY_LIBMPI=$python_library PYTHONDONTWRITEBYTECODE=1
    [ "$consumer" != mpich-ucx ] || export LD_LIBRARY_PATH=$CACHE/python/mpich:$LD_LIBRARY_PATH
    ;;
esac

# Prints the runtime's statement if it shows that all ranks used the transport.
proof() {
    local lines count
    case $consumer in
    ompi-vader)
        # Each rank reads, after its last message, the variable in which vader keeps the mechanism in use (the program does,
        # by MPI_T). When xpmem_make fails vader overwrites it with the next mechanism. With "xpmem" it makes no shared
        # file at all: even its queues are in private mappings that peers can only reach by xpmem_attach.
        local word=$transport
        [ "$word" != copy ] || word=none
        lines=$(grep -ow "runtime: rank [0-9]*: btl_vader_single_copy_mechanism = $word" "$work/output" | sort -u || true)
        count=$(grep -c . <<<"$lines" || true)
        [ "$count" = "$np" ] || return 1
        printf 'btl_vader_single_copy_mechanism = %s on all %s ranks after the last message' "$word" "$np"
        ;;
    *-ucx)
        # UCX names the transports of each kind of connection it makes, once per process. Required: every process has one
        # to a peer with the transport, and no process has one with anything that is not in UCX_TLS.
        local word=$transport only='self/|xpmem/'
        case $transport in
        cma) word=posix only='self/|posix/|cma/' ;;
        copy) word=posix only='self/|posix/' ;;
        esac
        lines=$(grep -oE 'ep_cfg\[.*' "$work"/ucx.* /dev/null | sed -E 's|^.*/ucx\.([0-9]+):|\1 |' || true)
        count=$(grep -F "($word/" <<<"$lines" | cut -d' ' -f1 | sort -u | grep -c . || true)
        [ "$count" = "$np" ] || return 1
        [ "$transport" != cma ] || grep -qF '(posix/memory cma/memory)' <<<"$lines" || return 1
        ! grep -oE '[a-z0-9_]+/[a-z0-9_:]+' <<<"$lines" | grep -qvE "^($only)" || return 1
        printf 'UCX_TLS=%s, %s processes report %s' "$UCX_TLS" "$count" \
            "$(grep -F "($word/" <<<"$lines" | head -n 1 | cut -d' ' -f2-)"
        ;;
    impi)
        # The runtime prints this after all ranks have agreed that xpmem_make worked on each; otherwise it prints
        # "disabled" with the reason. CMA is off then, so messages from the threshold on have no other single-copy path.
        case $transport in
        xpmem)
            lines=$(grep -m1 -o 'XPMEM: enabled.*' "$work/output" || true)
            [ -n "$lines" ] && ! grep -q 'XPMEM: disabled' "$work/output" || return 1
            printf '%s' "$lines"
            ;;
        *)
            # For the other two, which are here for comparison, it only repeats what it was told.
            lines=$(grep -m1 -xF "[0] MPI startup(): I_MPI_SHM_CMA=$I_MPI_SHM_CMA" "$work/output" || true)
            [ -n "$lines" ] && ! grep -q 'XPMEM: enabled' "$work/output" || return 1
            printf 'I_MPI_FABRICS=shm, I_MPI_SHM_CMA=%s, I_MPI_SHM_XPMEM=0' "$I_MPI_SHM_CMA"
            ;;
        esac
        ;;
    esac
}

status=0
# In the background, so that a signal to this script ends the job at once and not after it.
(cd "$work" && exec timeout -k 5 "${MPI_TIMEOUT:-120}" "${launch[@]}" "$binary" "$@") >"$work/output" 2>&1 </dev/null &
wait $! || status=$?
if [ "$status" != 0 ] || [ -n "${MPI_VERBOSE:-}" ]; then
    cat "$work/output"
    find "$work" -maxdepth 1 -name 'ucx.*' -exec cat {} +
else
    grep -vE '^runtime: |^\[[0-9]+\] MPI startup|^ *$' "$work/output" || true
fi
[ "$status" = 0 ] || grep -q '^FAIL ' "$work/output" || cat "$work"/failure.* 2>/dev/null || true
if [ "$status" = 124 ] || [ "$status" = 137 ]; then
    echo "mpi-tests/run: $consumer $transport $program: no end after ${MPI_TIMEOUT:-120} s" >&2
fi
if evidence=$(proof); then
    echo "proof: $evidence"
else
    echo "proof: none: the runtime did not report $transport"
    [ "$status" != 0 ] || status=3
fi
exit "$status"
