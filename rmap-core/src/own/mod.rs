//! Memory of the library's own, which is never exported and never adopted.
//!
//! The service thread must make progress while any thread of the application sleeps in a fault or holds any lock,
//! the lock of `malloc` among them, so everything that it keeps is here: shared mappings of one memfd, which
//! `/proc/thread-self/maps` tells apart from the application's memory. A forked child does not inherit them.

mod table;
mod vec;

pub(crate) use table::{RangeTable, Span};
pub(crate) use vec::OwnVec;

use crate::sys::fd::Kept;
use crate::sys::maps::FileId;
use crate::sys::memory::{self, MapFlags, PAGE, ProtFlags};
use crate::sys::{Errno, SysResult};
use core::sync::atomic::{AtomicU64, Ordering};
use std::os::fd::BorrowedFd;

/// The memfd behind all of it, in the table of the service thread, from the first use in a process on.
static FILE: Kept = Kept::none();
/// Bytes of the sparse file.
const SIZE: u64 = 1 << 46;
/// Offset of a byte that may be written and that nobody reads.
pub(crate) const SCRATCH: u64 = SIZE - PAGE as u64;
/// Where the lowest offset is that was used. Offsets are not used twice, and go down, as the addresses do that the kernel chooses: so pieces
/// that follow each other are one mapping to the kernel, of which a process may not have many.
static LOWEST: AtomicU64 = AtomicU64::new(SCRATCH);

fn file() -> SysResult<BorrowedFd<'static>> {
    if FILE.get().is_none() {
        memory::check_file_limit(SIZE)?;
        let new = rustix::fs::memfd_create(c"rmap-own", rustix::fs::MemfdFlags::CLOEXEC)?;
        // Never grown again: two threads that did so at once could shrink it.
        rustix::fs::ftruncate(&new, SIZE)?;
        FILE.keep(new)?;
    }
    FILE.get().ok_or(Errno::BADF)
}

/// The file that marks own memory in the maps, if there is any.
pub(crate) fn file_id() -> Option<FileId> {
    FILE.file()
}

/// A piece of own memory: zeroed, page-aligned, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct OwnMemory {
    addr: usize,
    len: usize,
    offset: u64,
}

impl OwnMemory {
    /// Maps at least `len` bytes. Pages take memory only once touched.
    pub(crate) fn new(len: usize) -> SysResult<Self> {
        let len = len.max(1).checked_next_multiple_of(PAGE).ok_or(Errno::NOMEM)?;
        let file = file()?;
        let below = |lowest: u64| lowest.checked_sub(len as u64);
        let lowest = LOWEST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below);
        let offset = lowest.ok().and_then(below).ok_or(Errno::NOMEM)?;
        let addr = memory::map(len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, offset)?;
        memory::advise(addr, len, libc::MADV_DONTFORK)?;
        Ok(Self { addr, len, offset })
    }

    pub(crate) fn addr(&self) -> usize {
        self.addr
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for OwnMemory {
    fn drop(&mut self) {
        // SAFETY: the owner of the piece is gone, so nobody uses it.
        let _ = unsafe { memory::unmap(self.addr, self.len) };
        if let Ok(file) = file() {
            let _ = memory::punch(file, self.offset, self.len as u64);
        }
    }
}

/// Forgets the file: its descriptor belongs to nobody any more. What comes next is in another.
pub(crate) fn forget() {
    FILE.forget();
    LOWEST.store(SCRATCH, Ordering::Relaxed);
}

/// Closes the file, which nothing needs.
pub(crate) fn close() {
    FILE.close();
    forget();
}

/// A file that may be written at [`SCRATCH`].
pub(crate) fn scratch() -> SysResult<BorrowedFd<'static>> {
    file()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::maps::Maps;
    use core::ops::ControlFlow;

    #[test]
    fn pieces_are_not_mappings_each() {
        let pieces: Vec<_> = (0..64).map(|_| OwnMemory::new(PAGE).unwrap()).collect();
        let mut mappings = 0;
        let count = |vma: &crate::sys::maps::Vma, _: &[u8]| {
            let shown = |piece: &OwnMemory| (vma.start..vma.end).contains(&piece.addr());
            mappings += usize::from(vma.file == file_id() && pieces.iter().any(shown));
            ControlFlow::Continue(())
        };
        Maps::new().unwrap().each_vma(count).unwrap();
        assert!(mappings < pieces.len() / 2, "{mappings} mappings of {} pieces", pieces.len());
    }
}
