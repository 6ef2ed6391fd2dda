#!/usr/bin/env bash
# The tests of XPMEM's semantics once more for each feature of the kernel that the library can do without (docs/kernels.md), forced off in all processes,
# and without all of them. As the calling user: what they are as root and as an ordinary user, ci/test-rust.sh says. An hour on two cores.
#
#   ci/test-features.sh [NAME...]    without these features, each for itself (`all`: without all of them at once)
#   ci/test-features.sh --short      a few test programs, without all of them
#   RMAP_FEATURE_TESTS="basic"       which test programs
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"
make_scratch

[ "${1:-}" != --short ] || { set -- all; RMAP_FEATURE_TESTS="basic follow kinds"; }
read -ra tests <<<"${RMAP_FEATURE_TESTS:-basic follow kinds adoption huge windows rights first_class matrix threads oracle}"
library=${RMAP_TEST_LIB:-$TARGET/release/libxpmem.so}
[ -e "$library" ] || make -s all

say "compiling the tests"
cargo build -q -p rmap-cli
names=()
for name in "${tests[@]}"; do names+=(--test "$name"); done
cargo test -p rmap-tests "${names[@]}" --no-run --message-format=json-render-diagnostics >"$scratch/messages"

# The optional ones, as the library itself lists them.
mapfile -t features < <("$TARGET/debug/rmap" info --json | awk '
    /"features"/ { on = 1 }  /"limits"/ { on = 0 }
    on && /"name"/ { gsub(/[",]/, ""); name = $2 }
    on && /"required": false/ { print name }')
[ ${#features[@]} -gt 5 ] || die "rmap info lists no features"
[ $# -gt 0 ] || set -- all "${features[@]}"

passed=0 failed=()
for feature in "$@"; do
    without=$feature
    [ "$feature" != all ] || without=$(IFS=,; echo "${features[*]}")
    for name in "${tests[@]}"; do
        program=$(sed -n '/"profile":{[^}]*"test":true/ s|.*"executable":"\([^"]*/'"$name"'-[^"]*\)".*|\1|p' "$scratch/messages")
        [ -n "$program" ] || die "no test program $name found"
        say "$name without $feature"
        if (cd rmap-tests && RMAP_TEST_TIMEOUT=${RMAP_TEST_TIMEOUT:-900} run_as self env RMAP_TEST_LIB="$library" RMAP_DISABLE="$without" "$program" -q); then
            passed=$((passed + 1))
        else
            failed+=("$name without $feature")
        fi
    done
done

echo
[ ${#failed[@]} = 0 ] || printf 'FAILED: %s\n' "${failed[@]}"
echo "test programs: $passed passed, ${#failed[@]} failed"
[ ${#failed[@]} = 0 ]
