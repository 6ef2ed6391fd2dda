//! This process: its memory, its descriptors, its last words.

use rmap_core::Range;
use rmap_tests::{PAGE, library_descriptors};
use std::os::unix::fs::FileExt as _;
use std::sync::OnceLock;
use std::{fs::File, ptr};

/// Private memory at an address, in place of what is there: zeroes.
pub(crate) fn renew(range: Range) {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let at = ptr::with_exposed_provenance_mut(range.start());
    // SAFETY: the arenas are far from all that the kernel places by itself, and used by number only.
    let mapped = unsafe { libc::mmap(at, range.len(), prot, flags | libc::MAP_FIXED, -1, 0) };
    assert_eq!(mapped, at, "mmap of {range}");
}

/// `count` pages from page `first` of an arena.
pub(crate) fn pages(arena: Range, first: usize, count: usize) -> Range {
    Range::new(arena.start() + first * PAGE, count * PAGE).expect("a range")
}

/// How many descriptors are open: this process's, and those of the library, which only its own thread has.
pub(crate) fn descriptors() -> usize {
    let own = std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd").count();
    own + library_descriptors(std::process::id().cast_signed()).len()
}

/// How many mappings there are.
pub(crate) fn mappings() -> usize {
    let maps = std::fs::read("/proc/self/maps").expect("/proc/self/maps");
    maps.iter().filter(|byte| **byte == b'\n').count()
}

/// Keeps the input, in case that nobody else can any more.
pub(crate) fn keep(data: &[u8]) {
    static LAST: OnceLock<Option<File>> = OnceLock::new();
    let last = LAST.get_or_init(|| {
        let path = std::env::var_os("RMAP_FUZZ_LAST")?;
        Some(File::create(path).expect("RMAP_FUZZ_LAST can be written"))
    });
    if let Some(last) = last {
        last.set_len(data.len() as u64).and_then(|()| last.write_all_at(data, 0)).expect("a write");
    }
}
