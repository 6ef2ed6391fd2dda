//! The signal for a thread that has touched a hole, or stored to memory that is read-only in the exporter.

use crate::own::OwnMemory;
use crate::sys::memory::{self, PAGE, ProtFlags};
use crate::sys::thread::{self, Sibling};
use crate::sys::{Errno, SysResult, futex, signal};
use core::ffi::c_void;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

/// Raises SIGBUS and SIGSEGV as the kernel would.
///
/// No thread may claim a fault of another's, but a tracer may say what a signal tells, so a sibling traces the thread for a moment.
#[derive(Debug)]
pub(crate) struct FaultSignals {
    order: OwnMemory,
    stack: OwnMemory,
}

struct Order {
    done: AtomicU32,
    succeeded: AtomicU32,
    signal: i32,
    pid: u32,
    thread: u32,
    addr: usize,
    instruction: usize,
}

impl FaultSignals {
    pub(crate) fn new() -> SysResult<Self> {
        const STACK: usize = 32 << 10;
        let stack = OwnMemory::new(STACK + PAGE)?;
        // SAFETY: the guard page of a stack that is not in use.
        unsafe { memory::protect(stack.addr(), PAGE, ProtFlags::empty()) }?;
        Ok(Self { order: OwnMemory::new(size_of::<Order>())?, stack })
    }

    /// Raises `signal` with `si_addr` `addr` at a thread that sleeps in a fault.
    ///
    /// Where somebody else traces the thread, `si_code` is `SI_QUEUE` instead of the fault's.
    pub(crate) fn raise(&self, signal: i32, thread: u32, addr: usize, instruction: usize) -> SysResult<()> {
        let pid = rustix::process::getpid().as_raw_nonzero().get() as u32;
        let order: *mut Order = core::ptr::with_exposed_provenance_mut(self.order.addr());
        // SAFETY: own memory with room for an order; the sibling of the last one has been reaped.
        let order = unsafe {
            order.write(Order {
                done: AtomicU32::new(0),
                succeeded: AtomicU32::new(0),
                signal,
                pid,
                thread,
                addr,
                instruction,
            });
            &*order
        };
        let top = self.stack.addr() + self.stack.len();
        let argument = core::ptr::from_ref(order).cast_mut().cast();
        // SAFETY: the stack is ours and idle; `sibling_main` makes raw system calls only.
        if let Ok(sibling) = unsafe { Sibling::spawn(top, sibling_main, argument) } {
            // The thread sleeps where a signal wakes it, so this is short; but nothing may hold this thread up.
            while order.done.load(Ordering::Acquire) == 0 {
                if futex::wait(&order.done, 0, Some(Duration::from_secs(1))) || !sibling.is_alive() {
                    break;
                }
            }
            sibling.kill();
            sibling.reap();
        }
        match order.succeeded.load(Ordering::Acquire) {
            0 => signal::queue_fault(signal, pid, thread, addr).or_else(|errno| match errno {
                Errno::SRCH => Ok(()),
                errno => Err(errno),
            }),
            _ => Ok(()),
        }
    }
}

extern "C" fn sibling_main(order: *mut c_void) -> i32 {
    // SAFETY: `raise` passes its order, and waits for the end of the sibling.
    let order = unsafe { &*order.cast::<Order>() };
    thread::die_with_parent();
    let raised = signal::raise_fault(order.signal, order.pid, order.thread, order.addr, order.instruction);
    // A thread that is gone needs no signal.
    order.succeeded.store(u32::from(matches!(raised, Ok(()) | Err(Errno::SRCH))), Ordering::Release);
    order.done.store(1, Ordering::Release);
    futex::wake(&order.done);
    0
}
