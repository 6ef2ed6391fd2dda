//! Putting a trapped mapping in place of another while threads use it.
//!
//! A mapping can be trapped only after it was made. In between, a thread that touches a missing page would put a page of zeroes into
//! the exporter's memory, or, of a mapping without access, die. So it is made and trapped where nobody knows it, and `mremap` moves
//! it into place, trap and all, in one step.
//!
//! `mremap` of trapped memory holds its caller until the report of the move is read. The service thread reads it, so
//! a sibling makes the call.

use super::Importer;
use crate::own::OwnMemory;
use crate::sys::memory::{self, PAGE, ProtFlags};
use crate::sys::spare::{self, Temporary};
use crate::sys::thread::{self, Sibling};
use crate::sys::uffd::Event;
use crate::sys::{Errno, SysResult, event};
use core::ffi::c_void;
use core::sync::atomic::{AtomicU32, Ordering};
use std::os::fd::AsFd;

/// The stack and the orders of the sibling.
#[derive(Debug)]
pub(crate) struct Swapper {
    order: OwnMemory,
    stack: OwnMemory,
}

struct Order {
    from: usize,
    len: usize,
    to: usize,
    errno: AtomicU32,
}

impl Swapper {
    pub(crate) fn new() -> SysResult<Self> {
        const STACK: usize = 16 << 10;
        let stack = OwnMemory::new(STACK + PAGE)?;
        // SAFETY: the guard page of a stack that is not in use.
        unsafe { memory::protect(stack.addr(), PAGE, ProtFlags::empty()) }?;
        Ok(Self { order: OwnMemory::new(size_of::<Order>())?, stack })
    }
}

impl Importer {
    /// Moves the trapped mapping at `staged` to `place`, over what is there. Removes it if that fails.
    ///
    /// Faults that are reported meanwhile are noted, and must be asked for afterwards.
    pub(super) fn put_in_place(&mut self, staged: usize, len: usize, place: usize) -> SysResult<()> {
        let order: *mut Order = core::ptr::with_exposed_provenance_mut(self.swapper.order.addr());
        // SAFETY: own memory with room for an order; the sibling of the last one has been reaped.
        let order = unsafe {
            order.write(Order { from: staged, len, to: place, errno: AtomicU32::new(0) });
            &*order
        };
        let top = self.swapper.stack.addr() + self.swapper.stack.len();
        let argument = core::ptr::from_ref(order).cast_mut().cast();
        // SAFETY: the stack is ours and idle; `sibling_main` makes raw system calls only.
        let started =
            spare::instead_of_one(|| unsafe { Sibling::spawn_with_end(top, sibling_main, argument) });
        let moved = started.and_then(|(sibling, end)| {
            let end = Temporary::from(end);
            self.read_until_moved(staged, &end);
            sibling.reap();
            match order.errno.load(Ordering::Acquire) {
                0 => Ok(()),
                errno => Err(Errno::from_raw_os_error(errno.cast_signed())),
            }
        });
        moved.inspect_err(|_| {
            // SAFETY: nobody knows the staged mapping, and it has not moved.
            let _ = unsafe { memory::unmap(staged, len) };
        })
    }

    /// Reads reports until the one of the move has come, or the sibling has ended without.
    fn read_until_moved(&mut self, staged: usize, end: &Temporary) {
        loop {
            // Before the last look at the reports: an end after the move must not be taken for an end without.
            let ended = event::is_readable(end);
            while let Ok(Some(report)) = self.trap.read() {
                match report {
                    Event::Moved { from, .. } if from == staged => return,
                    report => self.note_fault(report),
                }
            }
            if ended {
                return;
            }
            event::wait_for_either(self.trap.as_fd(), end);
        }
    }
}

extern "C" fn sibling_main(order: *mut c_void) -> i32 {
    // SAFETY: `move_by_sibling` passes its order, and waits for the end of the sibling.
    let order = unsafe { &*order.cast::<Order>() };
    thread::die_with_parent();
    // SAFETY: the staged mapping is nobody's; what is at the target is the service thread's to replace.
    if let Err(errno) = unsafe { memory::move_over(order.from, order.len, order.to) } {
        order.errno.store(errno.raw_os_error().cast_unsigned(), Ordering::Release);
    }
    0
}
