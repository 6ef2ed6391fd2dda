//! Waking one thread of this process out of `epoll` from any other.
//!
//! Who rings needs no descriptor: those of the application's threads are the application's to close, and to use up. So it is a signal,
//! which the thread blocks and has reported by a descriptor of its own.

use super::{Errno, SysResult, raw, thread};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// The kernel never sends it, and programs do not use it. Not a real-time signal: of those only so many may wait (`RLIMIT_SIGPENDING`).
const SIGNAL: i32 = libc::SIGSTKFLT;

/// The bell of one thread.
#[derive(Debug)]
pub(crate) struct Bell {
    fd: OwnedFd,
    process: u32,
    thread: u32,
}

impl Bell {
    /// For the calling thread, which blocks all signals.
    pub(crate) fn of_this_thread() -> SysResult<Self> {
        let set = 1u64 << (SIGNAL - 1);
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        let args = [
            -1isize as usize,
            core::ptr::from_ref(&set).expose_provenance(),
            size_of_val(&set),
            flags as usize,
            0,
            0,
        ];
        // SAFETY: the kernel reads the set, and makes a descriptor.
        let fd = unsafe { raw::syscall(libc::SYS_signalfd4, args) }?;
        // SAFETY: the kernel just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let process = rustix::process::getpid().as_raw_nonzero().get() as u32;
        Ok(Self { fd, process, thread: thread::id() })
    }

    /// Wakes the thread. Rings together are one.
    ///
    /// # Errors
    /// `ESRCH` if the thread is not of this process: after a `fork`. Others where a sandbox forbids it.
    pub(crate) fn ring(&self) -> SysResult<()> {
        let args = [self.process as usize, self.thread as usize, SIGNAL as usize, 0, 0, 0];
        // SAFETY: the thread blocks the signal, so it interrupts nothing.
        unsafe { raw::syscall(libc::SYS_tgkill, args) }.map(drop)
    }

    /// Takes what has been rung so far. For the thread itself.
    pub(crate) fn clear(&self) {
        const ONE: usize = 128;
        let mut report = [0u8; ONE];
        while !matches!(rustix::io::read(&self.fd, &mut report), Err(errno) if errno != Errno::INTR) {}
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
