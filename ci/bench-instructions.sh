#!/usr/bin/env bash
# The guard of the fast path: instructions of xpmem_attach and xpmem_detach for memory that was attached before.
# Counts, not times: what else the machine does plays no part.
#
#   ci/bench-instructions.sh             at most 400 instructions and no system call, with 1 and 100000 other attachments
#   RMAP_BENCH_INSTRUCTIONS=NUMBER       another limit
#   ci/bench-instructions.sh COUNT...    with these numbers of other attachments
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"
make_scratch
say "building"
cargo build --release --quiet
library=${RMAP_TEST_LIB:-$TARGET/release/libxpmem.so}
actor=${RMAP_TEST_ACTOR:-$TARGET/release/rmap-test-actor}
program=$TARGET/release/rmap-bench-instructions

# Where only root can enter the checkout, the ordinary user gets copies.
if [ "$(id -u)" = 0 ] && ! user_can_read "$library"; then
    cp "$library" "$actor" "$program" "$scratch"
    library=$scratch/${library##*/} actor=$scratch/${actor##*/} program=$scratch/${program##*/}
fi
failed=0
for identity in "${identities[@]}"; do
    say "instructions as $identity"
    run_as "$identity" env RMAP_TEST_LIB="$library" RMAP_TEST_ACTOR="$actor" \
        "$program" --limit "${RMAP_BENCH_INSTRUCTIONS:-400}" --calls 0 "$@" || failed=1
done
[ $failed = 0 ]
