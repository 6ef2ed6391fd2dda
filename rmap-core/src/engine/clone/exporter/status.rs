//! What importers read to know, without asking, that all is as it was: a word in a page that they can only read.
//!
//! Its lower half is the id of the service thread. It is on the robust futex list of that thread, so the kernel marks it when
//! the process dies or calls `exec`, however it ends. Its upper half counts the segments that were removed.

use crate::error::{self, Result};
use crate::own::OwnMemory;
use crate::sys::features::Feature;
use crate::sys::memory::{self, MapFlags, PAGE, ProtFlags};
use crate::sys::{Said, fd, thread};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use rustix::fs::{MemfdFlags, SealFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The name in `/proc/PID/maps`.
pub(crate) const MAPS_PATH: &[u8] = b"/memfd:rmap-status (deleted)";

/// The page with the word.
#[derive(Debug)]
pub(crate) struct Status {
    view: usize,
    read_only: OwnedFd,
    robust: OwnMemory,
}

impl Status {
    pub(crate) fn new() -> Result<Self> {
        let missing = error::missing("a sealed memfd (Linux 5.1)");
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create(c"rmap-status", flags).map_err(&missing)?;
        rustix::fs::ftruncate(&fd, PAGE as u64).map_err(&missing)?;
        let robust = OwnMemory::new(PAGE).map_err(&missing)?;
        let rw = ProtFlags::READ | ProtFlags::WRITE;
        let view = memory::map(PAGE, rw, MapFlags::SHARED, fd.as_fd(), 0).map_err(&missing)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        let ready = memory::advise(view, PAGE, libc::MADV_DONTFORK)
            .and_then(|()| Feature::SealedMemory.check())
            .and_then(|()| rustix::fs::fcntl_add_seals(&fd, seals))
            .and_then(|()| fd::reopen(&fd, false));
        match ready {
            Ok(read_only) => Ok(Self { view, read_only, robust }),
            Err(errno) => {
                // SAFETY: nobody else knows the view.
                let _ = unsafe { memory::unmap(view, PAGE) };
                Err(missing(errno))
            }
        }
    }

    fn word(&self) -> &AtomicU64 {
        let word: *const AtomicU64 = core::ptr::with_exposed_provenance(self.view);
        // SAFETY: the view is mapped as long as `self` lives, and any bytes are an atomic.
        unsafe { &*word }
    }

    /// Has the word live as long as the calling thread, the service thread.
    pub(crate) fn live_with_this_thread(&self) {
        self.word().store(u64::from(thread::id()), Ordering::Release);
        let futex: *const AtomicU32 = core::ptr::with_exposed_provenance(self.view);
        // SAFETY: the word is the service thread's for as long as it lives, and the list is in own memory, which is never unmapped
        // while the service runs.
        if let Err(errno) = unsafe { thread::set_robust_futex(self.robust.addr(), futex) } {
            crate::log::log!(
                Warn,
                "set_robust_list: {errno}; importers learn of this process's end a moment later",
                errno = Said(errno)
            );
        }
    }

    /// Importers must look again before they attach anything.
    pub(crate) fn segment_removed(&self) {
        self.word().fetch_add(1 << 32, Ordering::Release);
    }

    /// The descriptor for importers.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.read_only.as_fd()
    }
}

impl Drop for Status {
    fn drop(&mut self) {
        // SAFETY: the owner is gone, and the service thread with it, which never ends before the process.
        let _ = unsafe { memory::unmap(self.view, PAGE) };
    }
}
