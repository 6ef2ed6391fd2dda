//! Changing windows while threads use them.
//!
//! A mapping can be trapped only after it was made. In between, a thread that touches a missing page would put a page of zeroes into
//! the exporter's memory, or, of a mapping without access, die. So it is made and trapped where nobody knows it, and `mremap` moves
//! it into place, trap and all, in one step.
//!
//! Whoever moves, replaces or unmaps a window is held until the report of it is read. The service thread reads the reports, so
//! a sibling makes the call.

use super::Importer;
use crate::range::Range;
use crate::sys::memory;
use crate::sys::thread;
use crate::sys::uffd::Event;
use crate::sys::{Errno, SysResult, event};
use core::ffi::c_void;
use core::sync::atomic::{AtomicU32, Ordering};
use std::os::fd::{AsFd, OwnedFd};

/// A mapping to move, or to unmap.
#[derive(Debug)]
pub(crate) struct Order {
    from: Range,
    to: Option<Range>,
    /// 0 if it is done. `EAGAIN` until the sibling has said something.
    errno: AtomicU32,
}

impl Order {
    /// Whether a report is of what the sibling did.
    fn explains(&self, report: Event) -> bool {
        let within = |start, end| {
            let inside = |range: Range| Range::between(start, end).is_some_and(|gone| range.covers(gone));
            inside(self.from) || self.to.is_some_and(inside)
        };
        match report {
            Event::Moved { from, .. } => from == self.from.start(),
            Event::Unmapped { start, end } => within(start, end),
            _ => false,
        }
    }
}

impl Importer {
    /// Moves the mapping at `staged` to `place`, over what is there. Removes it if that fails.
    ///
    /// Faults that are reported meanwhile are noted, and must be asked for afterwards.
    pub(super) fn put_in_place(&mut self, staged: Range, place: Range) -> SysResult<()> {
        self.order(staged, Some(place)).inspect_err(|_| {
            // Nobody knows the staged mapping, and it has not moved.
            let _ = self.unmap_own(staged);
        })
    }

    /// Unmaps a range that nobody else has taken: a part of a window, or a mapping that did not become one.
    pub(super) fn unmap_own(&mut self, range: Range) -> SysResult<()> {
        // Either all of the range is without reports then, or the kernel has refused and nothing has changed.
        if self.trap.forget(range.start(), range.len()).is_ok() {
            // SAFETY: the caller gives the range up.
            return unsafe { memory::unmap(range.start(), range.len()) };
        }
        self.order(range, None)
    }

    fn order(&mut self, from: Range, to: Option<Range>) -> SysResult<()> {
        // SAFETY: every sibling is reaped below.
        let order = unsafe {
            self.swapper.give(Order {
                from,
                to,
                errno: AtomicU32::new(Errno::AGAIN.raw_os_error().cast_unsigned()),
            })
        };
        // SAFETY: the last sibling is reaped; `sibling_main` makes raw system calls only.
        let (sibling, end) = unsafe { self.swapper.send_with_end(sibling_main) }?;
        self.read_until_ended(order, &end);
        sibling.reap();
        match order.errno.load(Ordering::Acquire) {
            0 => Ok(()),
            errno => Err(Errno::from_raw_os_error(errno.cast_signed())),
        }
    }

    /// Reads reports until the sibling has ended: it is held by some of them.
    fn read_until_ended(&mut self, order: &Order, end: &OwnedFd) {
        while !event::is_readable(end) {
            self.take_reports(|report| order.explains(report));
            event::wait_for_any([self.trap.as_fd(), self.follower.as_fd(), end.as_fd()]);
        }
    }
}

extern "C" fn sibling_main(order: *mut c_void) -> i32 {
    // SAFETY: `Importer::order` passes its order, and waits for the end of the sibling.
    let order = unsafe { &*order.cast::<Order>() };
    thread::die_with_parent();
    // SAFETY: what is moved or unmapped is the library's own, and what is at the target is the service thread's to replace.
    let done = unsafe {
        match order.to {
            Some(to) => memory::move_over(order.from.start(), order.from.len(), to.start()),
            None => memory::unmap(order.from.start(), order.from.len()),
        }
    };
    let errno = done.map_or_else(|errno| errno.raw_os_error().cast_unsigned(), |()| 0);
    order.errno.store(errno, Ordering::Release);
    0
}
