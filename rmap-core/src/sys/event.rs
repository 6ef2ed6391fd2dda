//! epoll and eventfd.

use super::{Errno, SysResult, raw};
use core::time::Duration;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// An epoll instance whose entries carry a 64-bit token.
#[derive(Debug)]
pub(crate) struct Poller(OwnedFd);

const INPUT: i32 = libc::EPOLLIN | libc::EPOLLRDHUP;

/// One ready descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    pub(crate) token: u64,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    pub(crate) hung_up: bool,
}

impl Poller {
    pub(crate) fn new() -> SysResult<Self> {
        Ok(Self(rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC)?))
    }

    fn control(&self, op: i32, fd: impl AsFd, token: u64, events: i32) -> SysResult<()> {
        let fd = fd.as_fd().as_raw_fd();
        let event = libc::epoll_event { events: events as u32, u64: token };
        let args = [
            self.0.as_raw_fd() as usize,
            op as usize,
            fd as usize,
            core::ptr::from_ref(&event).expose_provenance(),
            0,
            0,
        ];
        // SAFETY: the event lives through the call.
        unsafe { raw::syscall(libc::SYS_epoll_ctl, args) }.map(drop)
    }

    /// Watches `fd` for input.
    pub(crate) fn add(&self, fd: impl AsFd, token: u64) -> SysResult<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, INPUT)
    }

    /// Watches `fd` for input and, if `writable`, for room to write.
    pub(crate) fn change(&self, fd: impl AsFd, token: u64, writable: bool) -> SysResult<()> {
        let events = INPUT | if writable { libc::EPOLLOUT } else { 0 };
        self.control(libc::EPOLL_CTL_MOD, fd, token, events)
    }

    /// Tells nothing of `fd` until [`Self::change`] but that the other end has hung up. Unlike removing and adding it, this takes no memory.
    pub(crate) fn pause(&self, fd: impl AsFd, token: u64) -> SysResult<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, 0)
    }

    /// Watches `fd` no more.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        let _ = self.control(libc::EPOLL_CTL_DEL, fd, 0, 0);
    }

    /// Sleeps until something is ready, at most for `limit`; calls `each` for every ready descriptor.
    pub(crate) fn wait(&self, limit: Option<Duration>, mut each: impl FnMut(Ready)) -> SysResult<()> {
        const BATCH: usize = 32;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
        // Rounded up, so that the limit has passed when the call returns for it.
        let timeout = limit.map_or(-1, |d| d.as_micros().div_ceil(1000).min(i32::MAX as u128) as isize);
        let args = [
            self.0.as_raw_fd() as usize,
            events.as_mut_ptr().expose_provenance(),
            BATCH,
            timeout as usize,
            0,
            8,
        ];
        // SAFETY: the array has room for BATCH events.
        let count = unsafe { raw::syscall(libc::SYS_epoll_pwait, args) }?;
        for event in &events[..count.min(BATCH)] {
            let bits = event.events as i32;
            each(Ready {
                token: event.u64,
                readable: bits & libc::EPOLLIN != 0,
                writable: bits & libc::EPOLLOUT != 0,
                hung_up: bits & (libc::EPOLLHUP | libc::EPOLLERR | libc::EPOLLRDHUP) != 0,
            });
        }
        Ok(())
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn poll(fds: &mut [PollFd<'_>], limit: Option<&Timespec>) -> SysResult<usize> {
    loop {
        match rustix::event::poll(fds, limit) {
            Err(Errno::INTR) => {}
            polled => return polled,
        }
    }
}

/// Whether a read of `fd` would give something now.
pub(crate) fn is_readable(fd: impl AsFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Sleeps until `fd` is readable, at most for `limit`; false if the limit passed.
pub(crate) fn wait_until_readable(fd: impl AsFd, limit: Duration) -> bool {
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)) != Ok(0)
}

/// Sleeps until one of the descriptors is readable.
pub(crate) fn wait_for_any<const N: usize>(fds: [BorrowedFd<'_>; N]) {
    let _ = poll(&mut fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)), None);
}

/// A counter that wakes a [`Poller`], of those who share its table of descriptors.
#[derive(Debug)]
pub(crate) struct Doorbell(OwnedFd);

impl Doorbell {
    pub(crate) fn new() -> SysResult<Self> {
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        Ok(Self(rustix::event::eventfd(0, flags)?))
    }

    pub(crate) fn clear(&self) {
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.0, &mut count);
    }
}

/// Rings the doorbell with descriptor number `fd`.
pub(crate) fn ring_raw(fd: i32) {
    let one = 1u64;
    // SAFETY: eight bytes are read from the stack.
    let _ = unsafe {
        raw::syscall(
            libc::SYS_write,
            [fd as usize, core::ptr::from_ref(&one).expose_provenance(), 8, 0, 0, 0],
        )
    };
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
