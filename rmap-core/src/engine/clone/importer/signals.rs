//! The signal for a thread that has touched a hole, or stored to memory that is read-only in the exporter.

use crate::engine::clone::errand::Errand;
use crate::sys::thread;
use crate::sys::{Errno, SysResult, futex, signal};
use core::ffi::c_void;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

/// Raises SIGBUS and SIGSEGV as the kernel would.
///
/// No thread may claim a fault of another's, but a tracer may say what a signal tells, so a sibling traces the thread for a moment.
#[derive(Debug)]
pub(crate) struct FaultSignals(Errand<Order>);

#[derive(Debug)]
struct Order {
    done: AtomicU32,
    succeeded: AtomicU32,
    /// How far the signal is.
    progress: AtomicU32,
    signal: i32,
    pid: u32,
    thread: u32,
    addr: usize,
    instruction: usize,
}

const UNSENT: u32 = 0;
const ON_ITS_WAY: u32 = 1;
const SENT: u32 = 2;

impl FaultSignals {
    pub(crate) fn new() -> SysResult<Self> {
        Errand::new(32 << 10).map(Self)
    }

    /// Raises `signal` with `si_addr` `addr` at a thread that sleeps in a fault.
    ///
    /// Where somebody else traces the thread, or the sibling was stopped, `si_code` is `SI_QUEUE` instead of the fault's.
    ///
    /// # Errors
    /// The thread gets no signal, or nobody knows whether it does.
    pub(crate) fn raise(&self, signal: i32, thread: u32, addr: usize, instruction: usize) -> SysResult<()> {
        let pid = rustix::process::getpid().as_raw_nonzero().get() as u32;
        // SAFETY: every sibling is reaped below.
        let order = unsafe {
            self.0.give(Order {
                done: AtomicU32::new(0),
                succeeded: AtomicU32::new(0),
                progress: AtomicU32::new(UNSENT),
                signal,
                pid,
                thread,
                addr,
                instruction,
            })
        };
        // SAFETY: the last sibling is reaped; `sibling_main` makes raw system calls only.
        let sibling = unsafe { self.0.send(sibling_main) };
        if let Ok(sibling) = sibling {
            // The thread sleeps where a signal wakes it, so this is short; but nothing may hold this thread up.
            while order.done.load(Ordering::Acquire) == 0 {
                if futex::wait(&order.done, 0, Some(Duration::from_secs(1))) || !sibling.is_alive() {
                    break;
                }
            }
            sibling.kill();
            sibling.reap();
        }
        match (order.succeeded.load(Ordering::Acquire), order.progress.load(Ordering::Acquire)) {
            // A second one would come out of nowhere.
            (1, _) | (_, SENT) => Ok(()),
            (_, ON_ITS_WAY) => Err(Errno::AGAIN),
            _ => signal::queue_fault(signal, pid, thread, addr).or_else(|errno| match errno {
                Errno::SRCH => Ok(()),
                errno => Err(errno),
            }),
        }
    }
}

extern "C" fn sibling_main(order: *mut c_void) -> i32 {
    // SAFETY: `raise` passes its order, and waits for the end of the sibling.
    let order = unsafe { &*order.cast::<Order>() };
    thread::die_with_parent();
    let queue = || {
        order.progress.store(ON_ITS_WAY, Ordering::Release);
        let queued = signal::queue_fault(order.signal, order.pid, order.thread, order.addr);
        order.progress.store(if queued.is_ok() { SENT } else { UNSENT }, Ordering::Release);
        queued
    };
    let raised = signal::raise_fault(order.signal, order.thread, order.addr, order.instruction, queue);
    // A thread that is gone needs no signal.
    order.succeeded.store(u32::from(matches!(raised, Ok(()) | Err(Errno::SRCH))), Ordering::Release);
    order.done.store(1, Ordering::Release);
    futex::wake(&order.done);
    0
}
