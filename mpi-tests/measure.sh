#!/usr/bin/env bash
# Measures every consumer through XPMEM, through CMA and through copy-in-copy-out, as an ordinary user; and through XPMEM with the
# settings that docs/tuning.md recommends, where it does.
#
#   measure.sh [CONSUMER ...]
#
# Results go to a folder, a file for each job; plot.py reads them. A job that is there already is not run again: a run that was
# interrupted goes on where it stopped, and a finished one has nothing to do. All are removed if the library, the programs or
# the settings below have changed. Exit status 1 if a job failed or if its runtime did not show that it used the mechanism.
#
#   RMAP_PLOT_FOLDER   the folder (default: target/plots; target/plots-quick for a quick pass)
#   RMAP_PLOT_FRESH=1  measure everything again
#   RMAP_PLOT_QUICK=1  a quick pass: fewer sizes, two repetitions
#   RMAP_PLOT_REPEATS  repetitions (default: 3)
#   RMAP_PLOT_RANKS    ranks of message rate and collective operations (default: 4)
#   RMAP_MPI_CACHE, XPMEM_PREFIX  see setup.sh
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/env.sh"
. "$here/user.sh"
[ $# -eq 0 ] || CONSUMERS=("$@")

if [ -n "${RMAP_PLOT_QUICK:-}" ]; then
    folder=$ROOT/target/plots-quick repeats=2 sizes=(-f 4 -m 20)
else
    folder=$ROOT/target/plots repeats=3 sizes=(-f 2 -m 30)
fi
folder=${RMAP_PLOT_FOLDER:-$folder} repeats=${RMAP_PLOT_REPEATS:-$repeats} ranks=${RMAP_PLOT_RANKS:-4}
case $folder in /*) ;; *) folder=$PWD/$folder ;; esac
export MPI_TIMEOUT=${MPI_TIMEOUT:-120}

declare -A recommended=(
    [ompi-ucx]="UCX_RNDV_THRESH=4k"
    [mpich-ucx]="UCX_RNDV_THRESH=4k"
)

prepare_user
key="$(cat "$XPMEM_PREFIX/lib/libxpmem.so.0" "$CACHE/programs.stamp" "$here/run.sh" "$here/measure.sh" | sha256sum) ${sizes[*]} $ranks $(nproc)"
mkdir -p "$folder"
if [ -n "${RMAP_PLOT_FRESH:-}" ] || [ "$(cat "$folder/key" 2>/dev/null || true)" != "$key" ]; then
    rm -f "$folder"/*.job "$folder/conditions"
    printf '%s\n' "$key" >"$folder/key"
fi

package() { dpkg-query -W -f '${source:Version}' "$1" 2>/dev/null || echo unknown; }
# What the figures hold for. No names of machines or people.
{
    echo "date=$(date -u +%Y-%m-%d)"
    echo "cores=$(nproc)"
    echo "processor=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"
    echo "virtual=$(grep -qw hypervisor /proc/cpuinfo && echo yes || echo no)"
    echo "kernel=$(uname -r | grep -oE '^[0-9]+\.[0-9]+')"
    echo "rmap=$(sed -n 's/^version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml" | head -n 1)"
    echo "openmpi=$(package libopenmpi3)"
    echo "ucx=$(package libucx0)"
    echo "mpich=$(package libmpich12)"
    echo "impi=$(cut -d' ' -f2 "$CACHE/impi.stamp")"
    echo "repeats=$repeats"
    echo "ranks=$ranks"
    for consumer in "${!recommended[@]}"; do echo "tuned.$consumer=${recommended[$consumer]}"; done
} >"$folder/conditions"

# Jobs wait for batches on two separate cores if what was measured so far tells those from others.
boundary() { cat "$folder"/*.job 2>/dev/null | awk '$1 == "result" { print $7; print $8 }' | placement_boundary; }

cd /
failed=0
# job NAME CONSUMER TRANSPORT RANKS MEASUREMENT ...; the file appears when the job has ended well.
job() {
    local file=$folder/$1.job transport=$3 status=0 settings=()
    [ ! -e "$file" ] || return 0
    if [ "$transport" = tuned ]; then
        transport=xpmem
        read -r -a settings <<<"${recommended[$2]}"
    fi
    env "${settings[@]}" "${as_user[@]}" "$scripts/run.sh" "$2" "$transport" "$4" \
        measure "${sizes[@]}" -w "$(boundary)" "${@:5}" >"$file.part" 2>&1 || status=$?
    if [ "$status" = 0 ]; then
        mv "$file.part" "$file"
        return 0
    fi
    failed=$((failed + 1))
    echo "FAIL $1 (status $status)"
    tail -n 15 "$file.part" | sed 's/^/    /'
}

# measure REPETITION CONSUMER TRANSPORT KIND
measure() {
    local many=$ranks
    if [ "$4" = two ]; then
        job "$1.$2.$3.$4" "$2" "$3" 2 latency bandwidth bibandwidth
        return
    fi
    # MPICH does not yield: no more ranks than cores, or it waits for the scheduler.
    if [ "$2" = mpich-ucx ] && [ "$many" -gt "$(nproc)" ]; then many=$(($(nproc) < 2 ? 2 : $(nproc))); fi
    job "$1.$2.$3.$4" "$2" "$3" "$many" rate bcast allreduce alltoall
}

for ((repeat = 1; repeat <= repeats; repeat++)); do
    for consumer in "${CONSUMERS[@]}"; do
        mechanisms=(xpmem cma copy)
        [ -z "${recommended[$consumer]:-}" ] || mechanisms+=(tuned)
        for kind in two many; do
            # The mechanisms take turns, so that what else the machine does meets all of them.
            for transport in "${mechanisms[@]}"; do measure "$repeat" "$consumer" "$transport" "$kind"; done
        done
    done
    echo "repetition $repeat of $repeats: $SECONDS s"
done
# Where no batch was made on the cores that the others were made on, again, a few times at most.
for ((repeat = repeats + 1; repeat <= repeats + 3; repeat++)); do
    mapfile -t gaps < <(/usr/bin/python3 "$here/report.py" "$folder")
    [ ${#gaps[@]} -gt 0 ] || break
    for gap in "${gaps[@]}"; do
        read -r consumer transport kind <<<"$gap"
        measure "$repeat" "$consumer" "$transport" "$kind"
    done
    echo "gaps filled: $SECONDS s"
done
rm -f "$folder"/*.part
[ "$failed" = 0 ] || { echo "$failed jobs failed; the others are kept"; exit 1; }
