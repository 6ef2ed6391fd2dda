#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# kernel/test/build.sh VERSION FOLDER: builds the module for a Debian kernel, and the module that the tests need, into FOLDER,
# and puts how tests end next to them.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../ci/lib.sh"
. "$ROOT/ci/kernels.sh"
folder=$(realpath "$2")
cd "$ROOT"

headers=$(ci/guest.sh headers "$1")
# Out of the tree: several versions, and no leftovers.
rm -rf "$folder/build"
mkdir "$folder/build"
make -s -C kernel dkms-source DESTDIR="$folder/build"
with_compiler "$1" "$folder" make -s -C "$folder"/build/usr/src/rmap-* KDIR="$headers"
cp "$folder"/build/usr/src/rmap-*/rmap.ko "$folder/rmap.ko"
cp -r kernel/test/kthread "$folder/build/kthread"
with_compiler "$1" "$folder" make -s -C "$headers" M="$folder/build/kthread" modules
cp "$folder/build/kthread/rmap_test_kthread.ko" kernel/test/guest-end.sh "$folder"
