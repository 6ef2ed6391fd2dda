//! Status words of exporters, where the application's threads can look at them.

use crate::error::{Error, Result, failed};
use crate::own::OwnVec;
use crate::sys::memory::{self, MapFlags, PAGE, ProtFlags};
use core::sync::atomic::{AtomicU64, Ordering};
use rustix::fs::SealFlags;
use std::os::fd::{AsFd, OwnedFd};

/// The mark that the kernel makes when the exporter ends (`FUTEX_OWNER_DIED`).
const ENDED: u64 = 0x4000_0000;

/// An exporter's status word, mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StatusWord(usize);

impl StatusWord {
    pub(crate) fn address(self) -> usize {
        self.0
    }

    pub(crate) fn read(self) -> u64 {
        let word: *const AtomicU64 = core::ptr::with_exposed_provenance(self.0);
        // SAFETY: pages of status words are never unmapped.
        unsafe { (*word).load(Ordering::Acquire) }
    }

    /// Whether the exporter is known to have ended.
    pub(crate) fn has_ended(self) -> bool {
        self.read() & ENDED != 0
    }
}

/// The pages that status words are mapped at. They are used again, but never unmapped: a thread may be late to look.
#[derive(Debug)]
pub(crate) struct StatusPages {
    free: OwnVec<StatusWord>,
}

impl StatusPages {
    pub(crate) const fn new() -> Self {
        Self { free: OwnVec::new() }
    }

    /// Maps a status word that an exporter has sent.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it could take the page away again.
    pub(crate) fn map(&mut self, fd: &OwnedFd) -> Result<StatusWord> {
        super::regular(fd)?;
        let size = rustix::fs::fstat(fd).map_err(failed("fstat"))?.st_size;
        let seals = rustix::fs::fcntl_get_seals(fd).unwrap_or(SealFlags::empty());
        if size < PAGE as i64 || !seals.contains(SealFlags::SHRINK) {
            return Err(Error::Invalid("a status word that may vanish"));
        }
        // So that giving it back cannot fail.
        self.free.reserve(1).map_err(failed("mmap"))?;
        let word = match self.free.remove(self.free.len().wrapping_sub(1)) {
            Some(word) => {
                // SAFETY: the page of an exporter that nobody holds a permit of.
                unsafe { memory::map_over(word.0, PAGE, ProtFlags::READ, MapFlags::SHARED, fd.as_fd(), 0) }
                    .map_err(failed("mmap"))?;
                word
            }
            None => StatusWord(
                memory::map(PAGE, ProtFlags::READ, MapFlags::SHARED, fd.as_fd(), 0)
                    .map_err(failed("mmap"))?,
            ),
        };
        memory::advise(word.0, PAGE, libc::MADV_DONTFORK).map_err(failed("madvise"))?;
        Ok(word)
    }

    /// Nobody holds a permit of this exporter any more.
    pub(crate) fn give_back(&mut self, word: StatusWord) {
        let _ = self.free.push(word);
    }
}
