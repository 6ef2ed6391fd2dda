//! How the application's threads ask the service thread for something: a slot per call under way, in own memory.

use super::protocol::Access;
use super::slots::Slots;
pub(crate) use super::slots::Ticket;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::own::OwnMemory;
use crate::range::Range;
use crate::sys::event::Doorbell;
use crate::sys::{Errno, SysResult};
use core::sync::atomic::{AtomicBool, Ordering};

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
    /// Give a permit back, with what was mapped by it.
    Close { grant: u32 },
    /// Map a range of the exporter.
    Map { grant: u32, remote: Range, place: Option<usize> },
    /// Give up what `Map` gave, the part that covers this address.
    Unmap { addr: usize },
    /// Make all memory that a forked child copies private again, and keep it so; answered with the descriptors that the child must close.
    ForkBegin,
    /// The fork is over.
    ForkEnd,
    /// Bring the counters up to date that say how it is now.
    Survey,
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

const SLOTS: usize = 128;

type Board = Slots<Call, Result<Answer>, SLOTS>;

/// The calls under way.
#[derive(Debug)]
pub(crate) struct Calls {
    memory: OwnMemory,
    doorbell: Doorbell,
    /// Nobody answers any more.
    closed: AtomicBool,
}

impl Calls {
    pub(crate) fn new() -> SysResult<Self> {
        Ok(Self {
            memory: OwnMemory::new(size_of::<Board>())?,
            doorbell: Doorbell::new()?,
            closed: AtomicBool::new(false),
        })
    }

    pub(crate) fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    fn slots(&self) -> &Board {
        let board: *const Board = core::ptr::with_exposed_provenance(self.memory.addr());
        // SAFETY: the memory has room for the slots, was all-zero at first, which free slots are, and lives as long as `self`.
        unsafe { &*board }
    }

    /// Makes a call and waits for its answer.
    ///
    /// # Errors
    /// Those of the call; and [`Error::Unsupported`] if the application has closed the library's descriptors.
    pub(crate) fn post(&self, call: Call) -> Result<Answer> {
        let gone = Error::Unsupported { what: "a descriptor of this library's own", errno: Errno::BADF };
        if self.is_gone() {
            return Err(gone);
        }
        self.slots().post(call, || self.doorbell.ring(), || self.is_gone()).unwrap_or(Err(gone))
    }

    fn is_gone(&self) -> bool {
        if !self.closed.load(Ordering::Relaxed) && !self.doorbell.is_there() {
            self.close();
        }
        self.closed.load(Ordering::Relaxed)
    }

    /// Nobody will answer any more: callers get an error, those that wait within a second.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Takes a posted call. For the service thread.
    pub(crate) fn take(&self) -> Option<(Ticket, Call)> {
        self.slots().take()
    }

    /// Answers a call. For the service thread.
    pub(crate) fn answer(&self, ticket: Ticket, answer: Result<Answer>) {
        self.slots().answer(ticket, answer);
    }

    /// Answers with an error.
    pub(crate) fn fail(&self, ticket: Ticket, error: Error) {
        self.answer(ticket, Err(error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

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
