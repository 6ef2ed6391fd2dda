#!/usr/bin/env bash
# Where the time of a ping-pong through XPMEM goes: times, system calls and page faults of each thread, samples of where it computes.
#
#   profile.sh [CONSUMER ...]        (default: ompi-vader ompi-ucx)
#
# Needs root, because perf needs it to see system calls; the job is an ordinary user's. perf only watches: it does not stop threads,
# as strace does, and the library can adopt memory under it. Raw figures go to target/profile (RMAP_PROFILE_FOLDER); profile.py makes
# the tables between the marks in docs/profile.md of them (RMAP_PROFILE_DOCUMENT). Settings are those that docs/tuning.md recommends.
#
#   RMAP_MPI_CACHE, XPMEM_PREFIX  see setup.sh
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/env.sh"
. "$here/user.sh"
consumers=(ompi-vader ompi-ucx)
[ $# -eq 0 ] || consumers=("$@")
die() { printf 'mpi-tests/profile: %s\n' "$*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die "needs root: perf shows system calls to root only"
folder=${RMAP_PROFILE_FOLDER:-$ROOT/target/profile}
document=${RMAP_PROFILE_DOCUMENT:-$ROOT/docs/profile.md}
rounds=${RMAP_PROFILE_ROUNDS:-60}
export MPI_TIMEOUT=${MPI_TIMEOUT:-600} UCX_RNDV_THRESH=${UCX_RNDV_THRESH:-4k}
prepare_user profile
rm -rf "$folder"; mkdir -p "$folder"
[ -e /sys/kernel/tracing/events/raw_syscalls/sys_enter ] || mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null || true
perf record -q -e raw_syscalls:sys_enter -o "$folder/try" true >/dev/null 2>&1 || die "perf cannot see system calls here"
rm -f "$folder/try"
work=$(mktemp -d "${MPI_TMP:-/tmp}/rmap-profile.XXXXXX")
job=
clean_up() {
    [ -z "$job" ] || kill "$job" 2>/dev/null || true
    rm -rf "$work"
    [ "$scripts" = "$here" ] || rm -rf "${scripts%/scripts}"
}
trap clean_up EXIT
chmod 711 "$work"
mkfifo "$work"/{command,answer}.{0,1} "$work"/{control,acknowledge}
chmod 666 "$work"/{command,answer}.{0,1}
# Opened for both, so that no end of a pipe has to wait for the other.
exec 3<>"$work/command.0" 4<>"$work/command.1" 5<>"$work/answer.0" 6<>"$work/answer.1" 7<>"$work/control" 8<>"$work/acknowledge"

hear() {
    local rank fd line
    for rank in 0 1; do
        fd=$((5 + rank))
        read -r -t 60 -u "$fd" line || { cat "$work/log" >&2; die "rank $rank does not answer"; }
        answer[rank]=$line
        echo "$rank $line" >>"$out.answers"
    done
}
tell() {
    echo "$*" >&3
    echo "$*" >&4
    hear
}
control() {
    local line
    echo "$1" >&7
    read -r -t 60 -u 8 line || die "perf does not answer"
}

# watched NAME COMMAND FIELDS OPTIONS OF perf record: one command of the ranks, watched by perf from just before to just after.
watched() {
    local name=$1 command=$2 fields=$3 perf
    shift 3
    perf record -q -D -1 --control "fifo:$work/control,$work/acknowledge" -p "$pids" -o "$work/data" "$@" >"$work/perf" 2>&1 &
    perf=$!
    control enable
    printf '%s watched\n' 0 1 >>"$out.answers"
    tell "$command"
    control disable
    kill -INT "$perf"
    wait "$perf" || true
    ! grep -q LOST "$work/perf" || die "perf lost events"
    perf script -i "$work/data" -F "$fields" >"$out.$name" 2>"$work/perf" || { cat "$work/perf" >&2; die "perf script failed"; }
}

# Rallies between which something is measured: profile.py uses what lies between two on separate cores.
rally() {
    tell rally
    last=${answer[0]#rally }
    echo "$last" >>"$folder/rallies"
}
measure_times() {
    rally
    tell "steady $((count / 20))"
    rally
    tell "floor $((count / 20))"
    tell "copy $((count / 20))"
    rally
}
measure_first() {
    tell "fresh 16"
    rally
    tell "first 16"
    rally
    tell "drop 16"
}
# until_separate COUNT FUNCTION: until COUNT calls have ended on separate cores, or for a while.
until_separate() {
    local good=0 begin=$SECONDS between
    while [ "$good" -lt "$1" ] && [ $((SECONDS - begin)) -lt 20 ]; do
        "$2"
        between=$(placement_boundary <"$folder/rallies")
        [ "$last" -lt "$between" ] || good=$((good + 1))
    done
}

cd /
for consumer in "${consumers[@]}"; do
    for size in 65536 1048576; do
        out=$folder/$consumer.$size
        count=$((size > 65536 ? 400 : 4000)) answer=()
        "${as_user[@]}" "$scripts/run.sh" "$consumer" xpmem 2 pingpong "$work" "$size" >"$work/log" 2>&1 &
        job=$!
        hear
        pids=${answer[0]#pid },${answer[1]#pid }
        # The library's thread is the one that blocks all signals.
        for pid in ${pids/,/ }; do
            for thread in "/proc/$pid/task"/*; do
                echo "$pid ${thread##*/} $(sed -n 's/^SigBlk:\t//p' "$thread/status")"
            done
        done >"$out.threads"
        tell "steady $count"
        until_separate "$rounds" measure_times
        syscalls=("pid,tid,event,trace" -c 1 -e raw_syscalls:sys_enter -e page-faults)
        watched none "steady 0" "${syscalls[@]}"
        watched steady "steady $count" "${syscalls[@]}"
        until_separate $((rounds / 4)) measure_first
        tell "fresh 16"
        watched first "first 16" "${syscalls[@]}"
        tell "drop 16"
        watched samples "steady $((count * 8))" pid,tid,ip,dso,sym -F 9973 -e cpu-clock
        echo end >&3
        echo end >&4
        wait "$job" || { cat "$work/log" >&2; die "$consumer failed"; }
        job=
        grep '^proof: ' "$work/log" >"$out.proof"
        echo "$consumer, $((size >> 10)) KiB: $SECONDS s"
    done
done
/usr/bin/python3 "$here/profile.py" "$folder" "$document"
