#!/usr/bin/env bash
# ci/apt.sh [PACKAGE...]: installs what building and testing need on Debian 12, and these packages. Does nothing if all is
# there. mpi-tests/setup.sh installs its own.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

packages=(gcc g++ libc6-dev make binutils pkg-config util-linux procps groff ca-certificates "$@")

missing=()
for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || die "not installed: ${missing[*]} (run this as root)"
    apt=(env DEBIAN_FRONTEND=noninteractive apt-get -y -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=2)
    # With the package lists as they are first, then with fresh ones.
    "${apt[@]}" install --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || {
        "${apt[@]}" update || true
        "${apt[@]}" install --no-install-recommends "${missing[@]}"
    }
fi
command -v cargo >/dev/null ||
    die "no cargo. Install Rust with rustup (Debian 12's own Rust is too old: see rust-version in Cargo.toml)"
