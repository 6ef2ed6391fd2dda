#!/usr/bin/env bash
# libFuzzer on what peers may send (fuzz/): a short pass with fixed seeds, or RMAP_FUZZ_SECONDS for each target.
#
#   ci/fuzz.sh [TARGET...]       decode, exporter, importer
#   RMAP_FUZZ_SECONDS=SECONDS    that long, with new seeds, and with what earlier runs have found (fuzz/corpus)
#
# An input that fails is left in target/fuzz-failures; `target/fuzz/.../TARGET FILE` runs it again.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"
make_scratch

targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(decode exporter importer)
triple=x86_64-unknown-linux-gnu
seconds=${RMAP_FUZZ_SECONDS:-}

say "compiling the fuzz targets"
# What `cargo fuzz --sanitizer none` sets. All of it is stable.
flags="-Cpasses=sancov-module -Ccodegen-units=1 --cfg fuzzing"
for arg in level=4 inline-8bit-counters pc-table trace-compares; do
    flags+=" -Cllvm-args=-sanitizer-coverage-$arg"
done
RUSTFLAGS="$flags" cargo build -q --release --manifest-path fuzz/Cargo.toml --target "$triple" --target-dir "$TARGET/fuzz"

options=(-max_len=600 -len_control=0 -timeout=60 -print_final_stats=1)
failed=()
for target in "${targets[@]}"; do
    # Where everybody can run it.
    cp "$TARGET/fuzz/$triple/release/$target" "$scratch/$target"
    for identity in "${identities[@]}"; do
        say "fuzz target $target as $identity"
        work=$scratch/home/$identity-$target
        mkdir -p "$work"
        chmod 777 "$work"
        run=("${options[@]}" "-artifact_prefix=$work/")
        limit=300
        if [ -n "$seconds" ]; then
            mkdir -p "fuzz/corpus/$target"
            cp -r "fuzz/corpus/$target" "$work/corpus"
            chmod -R a+rwX "$work/corpus"
            run+=("-max_total_time=$seconds" "$work/corpus")
            limit=$((seconds + 300))
        else
            case $target in
            decode) run+=(-seed=1 -runs=300000) ;;
            *) run+=(-seed=1 -runs=3000 -max_total_time=12) ;;
            esac
        fi
        status=0
        (cd "$work" && RMAP_TEST_TIMEOUT=$limit run_as "$identity" env "RMAP_FUZZ_LAST=$work/last" "$scratch/$target" "${run[@]}") \
            >"$work/log" 2>&1 || status=$?
        if [ -n "$seconds" ]; then
            cp -r --update=none "$work/corpus/." "fuzz/corpus/$target"
        fi
        grep -a '^stat::number_of_executed_units\|^stat::new_units_added' "$work/log" || true
        if [ $status != 0 ]; then
            tail -n 60 "$work/log"
            kept=$TARGET/fuzz-failures/$target-$identity
            mkdir -p "$kept"
            find "$work" -maxdepth 1 -type f -exec cp -t "$kept" {} +
            failed+=("$target as $identity ($status): see $kept")
        fi
    done
done

echo
if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
echo "fuzz targets: all inputs were borne"
