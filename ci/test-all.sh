#!/usr/bin/env bash
# ci/test-all.sh [PREFIX]: all tests, also when one fails. PREFIX is an installation (target/prefix).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"
prefix=${1:-$TARGET/prefix}

failed=()
step() {
    local start=$SECONDS
    say "$*"
    "$@" || failed+=("$1")
    echo "$1: $((SECONDS - start)) s"
}
step ci/abi.sh "$prefix"
step ci/test-rust.sh
step ci/test-features.sh --short
step ci/tsan.sh
step ci/fuzz.sh
step ci/bench-instructions.sh
step ci/test-c.sh
step ci/test-mpi.sh "$prefix"
step ci/test-kernel-short.sh

echo
if [ ${#failed[@]} -gt 0 ]; then
    echo "FAILED: ${failed[*]}"
    exit 1
fi
echo "all tests passed"
