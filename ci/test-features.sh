#!/usr/bin/env bash
# The tests of XPMEM's semantics once more for each feature of the kernel that the library can do without (docs/kernels.md), forced off in all processes,
# and without all of them. As root each test program runs as root and as an ordinary user: two hours on two cores.
#
#   ci/test-features.sh [NAME...]    without these features, each for itself (`all`: without all of them at once)
#   ci/test-features.sh --short      a few test programs, without all of them
#   RMAP_FEATURE_TESTS="basic"       which test programs
#   RMAP_TEST_AS="user"              as whom: root, user, or both
#   RMAP_TEST_LIB=PATH               the C library to test (the release build)
#   RMAP_TEST_TIMEOUT=SECONDS        limit for one test program (900)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"
make_scratch

[ "${1:-}" != --short ] || { set -- all; RMAP_FEATURE_TESTS="basic follow kinds"; }
read -ra tests <<<"${RMAP_FEATURE_TESTS:-basic follow kinds adoption huge windows rights first_class passed_on matrix threads oracle}"
[ "$(id -u)" != 0 ] || read -ra identities <<<"${RMAP_TEST_AS:-root user}"
export RMAP_TEST_TIMEOUT=${RMAP_TEST_TIMEOUT:-900}

# The ordinary user may not be able to enter the checkout.
mkdir "$scratch/tests"
put_tests "$scratch/tests" "${tests[@]}"
cargo build -q -p rmap-cli

# The optional ones, as the library itself lists them.
mapfile -t features < <("$TARGET/debug/rmap" info --json | awk '
    /"features"/ { on = 1 }  /"limits"/ { on = 0 }
    on && /"name"/ { gsub(/[",]/, ""); name = $2 }
    on && /"required": false/ { print name }')
[ ${#features[@]} -gt 5 ] || die "rmap info lists no features"
[ $# -gt 0 ] || set -- all "${features[@]}"

export RMAP_TEST_LIB=$scratch/tests/libxpmem.so RMAP_TEST_ACTOR=$scratch/tests/rmap-test-actor
cd "$scratch/tests"
passed=0 failed=()
for feature in "$@"; do
    without=$feature
    [ "$feature" != all ] || without=$(IFS=,; echo "${features[*]}")
    for name in "${tests[@]}"; do
        for identity in "${identities[@]}"; do
            say "$name without $feature as $identity"
            if run_as "$identity" env CARGO_MANIFEST_DIR="$PWD" RMAP_DISABLE="$without" "./$name" -q; then
                passed=$((passed + 1))
            else
                failed+=("$name without $feature as $identity")
            fi
        done
    done
done

echo
[ ${#failed[@]} = 0 ] || printf 'FAILED: %s\n' "${failed[@]}"
echo "test programs: $passed passed, ${#failed[@]} failed"
[ ${#failed[@]} = 0 ]
