#!/usr/bin/env bash
# The tests with many threads, with library and test processes built for ThreadSanitizer: it must have nothing to report.
#
#   ci/tsan.sh [TEST...]         which test programs of rmap-tests (threads)
#   RMAP_SOAK_SECONDS=SECONDS    random tests for so long
#
# The sanitizer comes with Rust, behind a switch that is not stable; the compiler is the same. The standard library is not built for it:
# rmap-core/src/detector.rs says what follows. Programs that fork are left out: the sanitizer holds its locks while it forks, and our handlers wait for the
# service thread meanwhile.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"
make_scratch

tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(threads)
triple=x86_64-unknown-linux-gnu
built=$TARGET/tsan/$triple/release

say "compiling library and actors for ThreadSanitizer"
flags="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer --cfg rmap_race_detector -Clink-arg=-rdynamic"
RUSTC_BOOTSTRAP=1 RUSTFLAGS="$flags" cargo build -q --release -p xpmem-compat -p rmap-tests --config profile.release.lto=\"thin\" \
    --target "$triple" --target-dir "$TARGET/tsan"
say "compiling the tests"
names=()
for name in "${tests[@]}"; do names+=(--test "$name"); done
cargo test -p rmap-tests "${names[@]}" --no-run --message-format=json-render-diagnostics >"$scratch/messages"
for name in "${tests[@]}"; do
    program=$(sed -n '/"profile":{[^}]*"test":true/ s|.*"executable":"\([^"]*/'"$name"'-[^"]*\)".*|\1|p' "$scratch/messages")
    [ -n "$program" ] || die "no test program $name found"
    cp "$program" "$scratch/$name"
done
cp "$built/libxpmem.so" "$built/rmap-test-actor" "$scratch"

failed=()
for identity in "${identities[@]}"; do
    for name in "${tests[@]}"; do
        say "$name as $identity, under ThreadSanitizer"
        mkdir -m 777 "$scratch/home/$identity-$name"
        reports=$scratch/home/$identity-$name
        # An actor that has something to report ends with status 66.
        run_as "$identity" env RMAP_TEST_LIB="$scratch/libxpmem.so" RMAP_TEST_ACTOR="$scratch/rmap-test-actor" RMAP_TEST_PATIENCE=8 \
            TSAN_OPTIONS="log_path=$reports/report:second_deadlock_stack=1" "$scratch/$name" || failed+=("$name as $identity")
        find "$reports" -type f -size +0 | while read -r report; do
            cat "$report"
            exit 1
        done || failed+=("$name as $identity: races")
    done
done

echo
if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
echo "ThreadSanitizer: nothing to report"
