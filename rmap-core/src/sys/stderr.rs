//! Standard error, for lines that must not hold anybody up.

use super::{Errno, SysResult, raw};
use core::sync::atomic::{AtomicU64, Ordering};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::FileType;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Which file it was.
static DEVICE: AtomicU64 = AtomicU64::new(0);
static INODE: AtomicU64 = AtomicU64::new(0);

/// Remembers which file it is, for all lines to come; false if there is none.
pub(crate) fn remember() -> bool {
    let Ok(file) = rustix::fs::fstat(rustix::stdio::stderr()) else { return false };
    DEVICE.store(file.st_dev, Ordering::Relaxed);
    INODE.store(file.st_ino, Ordering::Relaxed);
    true
}

/// Writes a line of at most `PIPE_BUF` bytes, whole, if that takes no waiting.
///
/// # Errors
/// `EAGAIN` if it does: a pipe that nobody reads, a terminal that is stopped. `EPIPE`, without a signal, if the reader is gone. `ESTALE` if what
/// has its number now is another file.
pub(crate) fn write_at_once(line: &[u8]) -> SysResult<()> {
    let to = rustix::stdio::stderr();
    let file = rustix::fs::fstat(to)?;
    if (file.st_dev, file.st_ino) != (DEVICE.load(Ordering::Relaxed), INODE.load(Ordering::Relaxed)) {
        return Err(Errno::STALE);
    }
    let mut polled = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
    rustix::event::poll(&mut polled, Some(&Timespec::default()))?;
    let state = polled[0].revents();
    if state.intersects(PollFlags::ERR | PollFlags::NVAL) {
        return Err(Errno::PIPE);
    }
    if !state.contains(PollFlags::OUT) {
        return Err(Errno::AGAIN);
    }
    // There was room. Others may have filled it since: that pipes and sockets can be told not to wait for.
    match FileType::from_raw_mode(file.st_mode) {
        FileType::Socket => send(to, line),
        FileType::Fifo => match write_without_waiting(to, line) {
            // Before Linux 6.4.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => write(to, line),
            written => written,
        },
        _ => write(to, line),
    }
}

fn write(to: BorrowedFd<'_>, line: &[u8]) -> SysResult<()> {
    rustix::io::write(to, line).map(drop)
}

fn send(to: BorrowedFd<'_>, line: &[u8]) -> SysResult<()> {
    use rustix::net::SendFlags;
    rustix::net::send(to, line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).map(drop)
}

fn write_without_waiting(to: BorrowedFd<'_>, line: &[u8]) -> SysResult<()> {
    const NO_WAIT: usize = 8;
    let vector = [line.as_ptr().expose_provenance(), line.len()];
    let (at, vector) = (usize::MAX, vector.as_ptr().expose_provenance());
    let args = [to.as_raw_fd() as usize, vector, 1, at, at, NO_WAIT];
    // SAFETY: the kernel reads the vector and the line.
    unsafe { raw::syscall(libc::SYS_pwritev2, args) }.map(drop)
}
