#!/usr/bin/env bash
# A part of `make test-kernel` that takes a few minutes, on Debian's kernel 6.1: what is most likely to fail if the module, or
# the engine on top of it, is broken. Downloads that kernel into target/guest.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

# What boots the kernel, and what builds modules for it.
ci/apt.sh qemu-system-x86 seabios busybox-static cpio kmod xz-utils libelf-dev bc

kernel/test/run.sh 6.1 -- arguments_are_checked rights_over stores_through loads_and_stores hole_is munmap_and_mmap \
    dontneed fork_of userfaultfd mirror_of huge_pages partial_munmap pinning_is kernel_threads target_ mutual importers_become swap_is
RMAP_ENGINES=mirror RMAP_TEST_USERS=65534 ci/test-engines.sh 6.1 -- basic engines
