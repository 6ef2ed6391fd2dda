#!/usr/bin/env bash
# ci/soak.sh: the random tests, RMAP_SOAK_SECONDS seconds each (600) and with new seeds, those of many threads under ThreadSanitizer, too, and the C tests RMAP_SOAK_ROUNDS times (20).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

export RMAP_SOAK_SECONDS=${RMAP_SOAK_SECONDS:-600}
export PROPTEST_CASES=${PROPTEST_CASES:-5000}
export RMAP_TEST_TIMEOUT=${RMAP_TEST_TIMEOUT:-$((RMAP_SOAK_SECONDS * 6 + 600))}

ci/test-rust.sh
ci/tsan.sh threads windows
make_scratch
for ((round = 1; round <= ${RMAP_SOAK_ROUNDS:-20}; round++)); do
    if ! ci/test-c.sh >"$scratch/log" 2>&1; then
        cat "$scratch/log"
        die "ci/test-c.sh failed in round $round"
    fi
    echo "ci/test-c.sh: round $round passed"
done
