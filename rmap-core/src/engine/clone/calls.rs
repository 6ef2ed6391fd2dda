//! How the application's threads ask the service thread for something: a slot per call under way, in own memory.

use super::heritage::Heritage;
use super::protocol::Access;
use super::secret::Key;
use super::slots::Slots;
pub(crate) use super::slots::Ticket;
use crate::error::{Error, Result, failed};
use crate::id::Id;
use crate::own::OwnMemory;
use crate::range::Range;
use crate::sys::SysResult;
use crate::sys::bell::Bell;
use crate::sys::fd::Lent;

/// A request of the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Share a range of this process; answered with the segment's counter.
    Offer { range: Range, mode: u32 },
    /// Stop sharing it.
    Withdraw { segment: u32 },
    /// Get a permit, over the connection of this identity to the exporter.
    Open { segment: Id, access: Access, identity: u64 },
    /// Take over a connection of this identity to the exporter, if there is none yet, and get a permit over it.
    Connect { segment: Id, key: Key, access: Access, identity: u64, socket: Lent },
    /// Ask whether a permit is good for anything.
    Check { grant: u32 },
    /// Give a permit back, with what was mapped by it.
    Close { grant: u32 },
    /// Map a range of the exporter.
    Map { grant: u32, remote: Range, place: Option<usize> },
    /// Give up what `Map` gave, the part that covers this address.
    Unmap { addr: usize },
    /// Make all memory that a forked child copies private again, and keep it so.
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
    /// There is no connection to the exporter yet: make one, and call with it.
    NeedSocket,
    Granted {
        grant: u32,
        range: Range,
    },
    Mapped(usize),
    /// A fork may go on, and this is for the child.
    Fork(Heritage),
}

const SLOTS: usize = 128;

type Board = Slots<Call, Result<Answer>, SLOTS>;

/// The calls under way.
#[derive(Debug)]
pub(crate) struct Calls {
    memory: OwnMemory,
    bell: Bell,
}

impl Calls {
    /// Calls for the calling thread to serve.
    pub(crate) fn new() -> SysResult<Self> {
        Ok(Self { memory: OwnMemory::new(size_of::<Board>())?, bell: Bell::of_this_thread()? })
    }

    /// What wakes the thread that serves them.
    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }

    fn slots(&self) -> &Board {
        let board: *const Board = core::ptr::with_exposed_provenance(self.memory.addr());
        // SAFETY: the memory has room for the slots, was all-zero at first, which free slots are, and lives as long as `self`.
        unsafe { &*board }
    }

    /// Makes a call and waits for its answer.
    ///
    /// # Errors
    /// Those of the call; and [`Error::OutOfResources`] if the service thread cannot be woken.
    pub(crate) fn post(&self, call: Call) -> Result<Answer> {
        let mut rung = Ok(());
        let ring = || {
            rung = self.bell.ring();
            rung.is_ok()
        };
        let answer = self.slots().post(call, ring);
        answer.unwrap_or_else(|| rung.map_err(failed("tgkill")).and(Err(Error::NoSuchId)))
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
    use crate::sys::event;
    use crate::sys::memory::{self, MapFlags, ProtFlags};
    use crate::sys::thread;
    use core::ffi::c_void;
    use std::os::fd::AsFd;
    use std::sync::mpsc::Sender;

    const THE_LAST: Call = Call::ForkEnd;

    extern "C" fn serve(sender: *mut c_void) -> *mut c_void {
        // SAFETY: what the test passes.
        let sender = unsafe { Box::from_raw(sender.cast::<Sender<&'static Calls>>()) };
        let calls: &'static Calls = Box::leak(Box::new(Calls::new().unwrap()));
        sender.send(calls).unwrap();
        loop {
            event::wait_for_any([calls.bell().as_fd()]);
            calls.bell().clear();
            while let Some((ticket, call)) = calls.take() {
                match call {
                    Call::Withdraw { segment } => calls.answer(ticket, Ok(Answer::Segment(segment))),
                    call => {
                        assert_eq!(call, THE_LAST);
                        calls.answer(ticket, Ok(Answer::Done));
                        return core::ptr::null_mut();
                    }
                }
            }
        }
    }

    #[test]
    fn every_caller_gets_its_own_answer_even_when_slots_run_out() {
        const STACK: usize = 256 << 10;
        let (sender, receiver) = std::sync::mpsc::channel::<&'static Calls>();
        let rw = ProtFlags::READ | ProtFlags::WRITE;
        let stack = memory::map_anonymous(STACK, rw, MapFlags::empty()).unwrap();
        let argument = Box::into_raw(Box::new(sender)).cast();
        // SAFETY: the stack is fresh, and never unmapped.
        let service = unsafe { thread::spawn(stack, STACK, serve, argument) }.unwrap();
        let calls = receiver.recv().unwrap();
        let callers: Vec<_> = (0..2 * SLOTS as u32)
            .map(|n| {
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
        assert_eq!(calls.post(THE_LAST), Ok(Answer::Done));
        service.join();
        // Nobody is there to be woken, once the kernel is through with the thread.
        while calls.bell().ring().is_ok() {
            std::thread::yield_now();
        }
        for _ in 0..2 * SLOTS {
            let refused = calls.post(THE_LAST);
            assert_eq!(refused, Err(failed("tgkill")(crate::sys::Errno::SRCH)));
        }
    }
}
