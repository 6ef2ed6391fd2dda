#!/usr/bin/env bash
# Formatting of the Rust code.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"
cargo fmt --all --check
cargo fmt --manifest-path fuzz/Cargo.toml --check
