//! How the application's threads ask the service thread for something.
//!
//! A slot per call under way, in own memory. A caller claims a free slot, writes its call, posts it, rings the doorbell and
//! sleeps on the slot; the service thread takes posted calls, and answers each when it can. There is no lock: a caller
//! that is stopped, or killed, in between holds up nobody but itself. When all slots are in use, callers wait for one.

use super::protocol::Access;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::own::OwnMemory;
use crate::range::Range;
use crate::sys::event::Doorbell;
use crate::sys::{SysResult, futex};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

/// A request of the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Share a range of this process; answered with the segment's counter.
    Offer { range: Range, mode: u32 },
    /// Stop sharing it.
    Withdraw { segment: u32 },
    /// Get a permit, over the connection of this identity to the exporter, or over `socket`.
    Open { segment: Id, access: Access, identity: u64, socket: Option<i32> },
    /// Ask whether a permit is good for anything.
    Check { grant: u32 },
    /// Give a permit back.
    Close { grant: u32 },
    /// Map a range of the exporter.
    Map { grant: u32, remote: Range, place: Option<usize> },
    /// Remove a mapping made by `Map`.
    Unmap { base: usize },
    /// Make all memory that a forked child copies private again, and keep it so; answered with the descriptors that the child must close.
    ForkBegin,
    /// The fork is over.
    ForkEnd,
}

/// What a call gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    Segment(u32),
    /// There is no connection to the exporter yet: connect, and call again.
    NeedSocket,
    Granted {
        grant: u32,
        range: Range,
    },
    Mapped(usize),
    /// Where the numbers of the library's descriptors are, and how many.
    Descriptors {
        addr: usize,
        count: usize,
    },
}

const FREE: u32 = 0;
const CLAIMED: u32 = 1;
const POSTED: u32 = 2;
const TAKEN: u32 = 3;
const DONE: u32 = 4;

#[repr(align(128))]
struct Slot {
    state: AtomicU32,
    call: UnsafeCell<Call>,
    answer: UnsafeCell<Result<Answer>>,
}

const SLOTS: usize = 128;

#[repr(C)]
struct Board {
    /// Counts slots given back, so that a caller who found none free can sleep.
    freed: AtomicU32,
    slots: [Slot; SLOTS],
}

/// Names a call that the service thread has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(usize);

/// The slots.
#[derive(Debug)]
pub(crate) struct Calls {
    memory: OwnMemory,
    doorbell: Doorbell,
}

// SAFETY: a slot's cells are accessed only by the side that its state names (see `post` and `take`).
unsafe impl Sync for Calls {}

impl Calls {
    pub(crate) fn new() -> SysResult<Self> {
        // All-zero is a board of free slots: FREE is 0, and cells of other states are not read.
        Ok(Self { memory: OwnMemory::new(size_of::<Board>())?, doorbell: Doorbell::new()? })
    }

    pub(crate) fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    fn freed(&self) -> &AtomicU32 {
        let board: *const Board = core::ptr::with_exposed_provenance(self.memory.addr());
        // SAFETY: the memory has room for a board, lives as long as `self`, and an atomic may be all-zero.
        unsafe { &(*board).freed }
    }

    fn slot(&self, index: usize) -> SlotRef<'_> {
        let board: *const Board = core::ptr::with_exposed_provenance(self.memory.addr());
        // SAFETY: as above; only `addr_of` is taken of the cells, which may be uninitialised.
        unsafe {
            let slot = &raw const (*board).slots[index];
            SlotRef {
                state: &(*slot).state,
                call: (&raw const (*slot).call).cast(),
                answer: (&raw const (*slot).answer).cast(),
            }
        }
    }

    /// Makes a call and waits for its answer.
    pub(crate) fn post(&self, call: Call) -> Result<Answer> {
        let slot = self.claim();
        // SAFETY: the slot is CLAIMED, by this thread.
        unsafe { slot.call.cast_mut().write(call) };
        slot.state.store(POSTED, Ordering::Release);
        self.doorbell.ring();
        loop {
            let state = slot.state.load(Ordering::Acquire);
            if state == DONE {
                break;
            }
            futex::wait(slot.state, state, None);
        }
        // SAFETY: the slot is DONE: the answer was written before, and the service thread does not come back to it.
        let answer = unsafe { slot.answer.read() };
        slot.state.store(FREE, Ordering::Release);
        self.freed().fetch_add(1, Ordering::Release);
        futex::wake(self.freed());
        answer
    }

    fn claim(&self) -> SlotRef<'_> {
        loop {
            let freed = self.freed().load(Ordering::Acquire);
            for index in 0..SLOTS {
                let slot = self.slot(index);
                if slot.state.compare_exchange(FREE, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    return slot;
                }
            }
            futex::wait(self.freed(), freed, None);
        }
    }

    /// Takes a posted call. For the service thread.
    pub(crate) fn take(&self) -> Option<(Ticket, Call)> {
        (0..SLOTS).find_map(|index| {
            let slot = self.slot(index);
            if slot.state.load(Ordering::Acquire) != POSTED {
                return None;
            }
            // SAFETY: the slot is POSTED: its caller has written the call, and waits.
            let call = unsafe { slot.call.read() };
            slot.state.store(TAKEN, Ordering::Relaxed);
            Some((Ticket(index), call))
        })
    }

    /// Answers a call. For the service thread.
    pub(crate) fn answer(&self, ticket: Ticket, answer: Result<Answer>) {
        let slot = self.slot(ticket.0);
        debug_assert_eq!(slot.state.load(Ordering::Relaxed), TAKEN);
        // SAFETY: the slot is TAKEN: it is this thread's until it says DONE.
        unsafe { slot.answer.cast_mut().write(answer) };
        slot.state.store(DONE, Ordering::Release);
        futex::wake(slot.state);
    }

    /// Answers with an error.
    pub(crate) fn fail(&self, ticket: Ticket, error: Error) {
        self.answer(ticket, Err(error));
    }
}

struct SlotRef<'a> {
    state: &'a AtomicU32,
    call: *const Call,
    answer: *const Result<Answer>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn every_caller_gets_its_own_answer_even_when_slots_run_out() {
        let calls = Arc::new(Calls::new().unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let service = {
            let (calls, stop) = (calls.clone(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    while let Some((ticket, call)) = calls.take() {
                        let Call::Withdraw { segment } = call else { panic!("{call:?}") };
                        calls.answer(ticket, Ok(Answer::Segment(segment)));
                    }
                    std::thread::yield_now();
                }
            })
        };
        let callers: Vec<_> = (0..2 * SLOTS as u32)
            .map(|n| {
                let calls = calls.clone();
                std::thread::spawn(move || {
                    for k in 0..20 {
                        let segment = n * 1000 + k;
                        assert_eq!(calls.post(Call::Withdraw { segment }), Ok(Answer::Segment(segment)));
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.join().unwrap();
        }
        stop.store(true, Ordering::Release);
        service.join().unwrap();
    }
}
