#!/usr/bin/env bash
# tests/c/run.sh [FOLDER]: runs the C and C++ tests as the calling user.
#
# FOLDER has been filled by build.sh. Without it, the library is built, installed into a temporary folder, and the tests
# are compiled there. The last line is "N passed, N failed"; the exit status is not 0 if a check failed.
set -euo pipefail
umask 022

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
limit=${RMAP_TEST_TIMEOUT:-120}
unset RMAP_DISABLE

if [ $# = 0 ]; then
    temporary=$(mktemp -d)
    trap 'rm -rf "$temporary"' EXIT
    make -s -C "$here/../.." install PREFIX="$temporary/prefix" >&2
    "$here/build.sh" "$temporary/prefix" "$temporary/bin"
    set -- "$temporary/bin"
fi
folder=$(cd "$1" && pwd)
libdir=$(cat "$folder/libdir")

passed=0 failed=0 skipped=0

# Counts the lines of one program's output. A program that dies, hangs or stops early counts as one failure.
program() {
    local name=$1 output status=0 good bad skip plan
    echo "# $name"
    output=$(LD_LIBRARY_PATH=$libdir timeout -k 10 "$limit" "$folder/$name" 2>&1) || status=$?
    printf '%s\n' "$output"
    good=$(grep -c '^ok ' <<<"$output" || true)
    bad=$(grep -c '^not ok ' <<<"$output" || true)
    skip=$(grep -c '^ok .* # skip ' <<<"$output" || true)
    plan=$(sed -n 's/^1\.\.\([0-9]*\)$/\1/p' <<<"$output")
    if [ "${plan:-none}" != $((good + bad)) ]; then
        echo "not ok - $name ended early, status $status"
        bad=$((bad + 1))
    elif [ "$status" != 0 ] && [ "$bad" = 0 ]; then
        echo "not ok - $name ended with status $status"
        bad=$((bad + 1))
    fi
    passed=$((passed + good - skip)) failed=$((failed + bad)) skipped=$((skipped + skip))
}

# One check made by a command.
command_check() {
    local text=$1
    shift
    if "$@"; then
        echo "ok - $text"
        passed=$((passed + 1))
    else
        echo "not ok - $text"
        failed=$((failed + 1))
    fi
}

libraries() { LD_LIBRARY_PATH=$libdir ldd "$folder/$1"; }
needs_shared() { [[ $(libraries "$1") == *"libxpmem.so.0 => $libdir/libxpmem.so.0 "* ]]; }
needs_none() { [[ $(libraries "$1") != *libxpmem* ]]; }

echo "# linking"
for name in abi errno ioctl counters children law pair pair-cc; do
    command_check "$name needs libxpmem.so.0 and finds the installed one" needs_shared "$name"
done
for name in pair-static law-static dl; do
    command_check "$name does not need libxpmem.so.0" needs_none "$name"
done
for name in abi dl ioctl counters children errno law law-static pair pair-static pair-cc; do
    program "$name"
done

[ "$skipped" = 0 ] || echo "$skipped skipped, see \"# skip\" above"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
