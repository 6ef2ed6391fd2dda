#!/usr/bin/env bash
# Lints and documentation: no warning is left.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"
say "clippy"
cargo clippy --workspace --all-targets -- -D warnings
cargo clippy --manifest-path fuzz/Cargo.toml --target-dir "$TARGET/fuzz" --lib --bins -- -D warnings
say "rustdoc"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items
if command -v groff >/dev/null; then
    say "man pages"
    for page in packaging/man/*; do
        warnings=$(groff -ww -man -Tutf8 -z "$page" 2>&1)
        [ -z "$warnings" ] || { printf '%s\n' "$warnings"; exit 1; }
    done
fi
