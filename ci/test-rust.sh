#!/usr/bin/env bash
# The Rust tests. Compiled once, by the calling user; as root, each test program then runs as root and as an ordinary user.
#
#   ci/test-rust.sh [FILTER]     only tests whose name contains FILTER
#   RMAP_PROFILE=release         compile the tests with optimisation
#   RMAP_TEST_LIB=PATH           the C library to test (the release build)
#   RMAP_TEST_TIMEOUT=SECONDS    limit for one test program (300)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"
make_scratch

profile=()
[ "${RMAP_PROFILE:-dev}" = dev ] || profile=(--profile "$RMAP_PROFILE")

if [ -z "${RMAP_TEST_LIB:-}" ]; then
    say "building the C library"
    make -s all
    RMAP_TEST_LIB=$TARGET/release/libxpmem.so
fi
export RMAP_TEST_LIB

say "compiling the Rust tests"
cargo test --workspace --no-run "${profile[@]}" --message-format=json-render-diagnostics >"$scratch/messages"

# One line per test program: the folder of its package, and its path.
sed -n '/"reason":"compiler-artifact"/ { /"profile":{[^}]*"test":true/ {
    s|.*"manifest_path":"\([^"]*\)/Cargo.toml".*"executable":"\([^"]*\)".*|\1 \2|p
} }' "$scratch/messages" | sort >"$scratch/programs"
[ -s "$scratch/programs" ] || die "no test programs found"

# Where only root can enter the checkout, the ordinary user gets copies, and so do the ordinary users among the processes of root's tests.
copies=()
if [ "$(id -u)" = 0 ] && ! user_can_read "$RMAP_TEST_LIB"; then
    say "the ordinary user cannot enter $ROOT: copies are run"
    mkdir "$scratch/copies"
    read -r _ program <"$scratch/programs"
    programs=${program%/deps/*}
    cp "$RMAP_TEST_LIB" "$programs/rmap-test-actor" "$programs/rmap" "$scratch/copies"
    copies=("RMAP_TEST_LIB=$scratch/copies/${RMAP_TEST_LIB##*/}" "RMAP_TEST_ACTOR=$scratch/copies/rmap-test-actor"
        "RMAP_TEST_CLI=$scratch/copies/rmap")
fi

passed=0 failed=0
for identity in "${identities[@]}"; do
    while read -r package program <&3; do
        name=${program##*/}
        run=("CARGO_MANIFEST_DIR=$package" "$program")
        if [ ${#copies[@]} -gt 0 ]; then
            cp "$program" "$scratch/copies"
            package=$scratch/copies
            run=("${copies[@]}" "$scratch/copies/$name")
        fi
        say "${name%-*} as $identity"
        status=0
        (cd "$package" && run_as "$identity" env "${run[@]}" "$@") || status=$?
        if [ $status = 0 ]; then
            passed=$((passed + 1))
        else
            failed=$((failed + 1))
            [ $status != 124 ] || status="time limit"
            echo "FAILED: ${name%-*} as $identity ($status)" | tee -a "$scratch/failed"
        fi
    done 3<"$scratch/programs"
done

say "documentation examples"
if cargo test --workspace --doc "${profile[@]}" -q; then
    passed=$((passed + 1))
else
    failed=$((failed + 1))
    echo "FAILED: documentation examples" | tee -a "$scratch/failed"
fi

echo
[ $failed = 0 ] || cat "$scratch/failed"
echo "test programs: $passed passed, $failed failed"
[ $failed = 0 ]
