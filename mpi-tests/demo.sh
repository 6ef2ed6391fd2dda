#!/usr/bin/env bash
# Unmodified MPI runtimes over libxpmem.so.0, run as an ordinary user.
#
# Called by root: installs and builds what is missing (setup.sh), then goes on as user 65534 without any capability. Per consumer:
# data checks with two and four ranks, then the bandwidth of two ranks through XPMEM, through CMA and through copy-in-copy-out,
# and the runtime's own statement that XPMEM was the transport.
# Exit status 1 if a job failed or a statement is missing.
#
#   demo.sh [CONSUMER ...]
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/env.sh"

if [ "$(id -u)" = 0 ]; then
    . "$here/user.sh"
    prepare_user
    cd /
    "${as_user[@]}" "$scripts/demo.sh" "$@"
    exit
fi

[ $# -eq 0 ] || CONSUMERS=("$@")
export MPI_TIMEOUT=${MPI_TIMEOUT:-90}
declare -A title=(
    [ompi-vader]="Open MPI $(dpkg-query -W -f '${source:Version}' libopenmpi3 2>/dev/null || true), its own shared-memory component (vader)"
    [ompi-ucx]="Open MPI over UCX $(dpkg-query -W -f '${source:Version}' libucx0 2>/dev/null || true)"
    [mpich-ucx]="MPICH $(dpkg-query -W -f '${source:Version}' libmpich12 2>/dev/null || true) over UCX"
    [impi]="Intel MPI $(cut -d' ' -f2 "$CACHE/impi.stamp")"
)
out=$(mktemp -d "${MPI_TMP:-/tmp}/rmap-mpi-demo.XXXXXX")
trap 'rm -rf "$out"' EXIT
failed=0

# run LOG CONSUMER TRANSPORT NP PROGRAM: one job; shows the end of its output if it failed.
run() {
    local log=$1 status=0
    shift
    "$here/run.sh" "$@" >"$log" 2>&1 || status=$?
    [ "$status" != 0 ] || return 0
    failed=$((failed + 1))
    echo "  FAIL $* (status $status)"
    tail -n 15 "$log" | sed 's/^/    /'
    return 0
}

column() { awk -v size="$2" -v field="$3" '$1 == size && $3 == "MB/s" { print $field }' "$1"; }

echo "user $(id -u), capabilities $(awk '/^CapEff/ { print $2 }' /proc/self/status), $(nproc) cores, kernel $(uname -r)"
for consumer in "${CONSUMERS[@]}"; do
    printf '\n%s: %s\n' "$consumer" "${title[$consumer]:-}"
    for np in 2 4; do
        run "$out/exchange" "$consumer" xpmem "$np" exchange
        sed -n 's/^ok /  data checks: /p' "$out/exchange"
    done
    for transport in xpmem cma copy; do run "$out/$transport" "$consumer" "$transport" 2 bandwidth; done
    printf '  %10s  %29s  %29s\n' '' 'MB/s' 'usec'
    printf '  %10s  %9s %9s %9s  %9s %9s %9s\n' size xpmem cma copy xpmem cma copy
    for ((size = 4096; size <= 64 << 20; size *= 2)); do
        label="$((size >> 10)) KiB"
        [ $size -lt $((1 << 20)) ] || label="$((size >> 20)) MiB"
        row=()
        for field in 2 4; do
            for transport in xpmem cma copy; do
                value=$(column "$out/$transport" $size $field)
                row+=("${value:--}")
            done
        done
        printf '  %10s  %9s %9s %9s  %9s %9s %9s\n' "$label" "${row[@]}"
    done
    # The statement is from the job of the xpmem columns.
    sed -n 's/^proof: /  proof: /p' "$out/xpmem"
done
echo
if [ "$failed" != 0 ]; then
    echo "$failed jobs failed"
    exit 1
fi
echo "all jobs passed in $SECONDS s"
