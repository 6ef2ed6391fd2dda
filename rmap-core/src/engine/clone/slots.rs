//! Slots: threads hand calls to one other thread, and sleep until it has answered.
//!
//! A caller claims a free slot, puts its call there, posts it, rings and sleeps on the slot; the other side takes posted calls, and
//! answers each when it can. There is no lock: a caller that is stopped in between holds up nobody but itself. When all slots
//! are in use, callers wait for one.
//!
//! `tests/call_slots.rs` goes through the interleavings.

use super::handed::Handed;
use crate::sys::futex::{self, Word};
use core::sync::atomic::Ordering;
use core::time::Duration;

const FREE: u32 = 0;
const CLAIMED: u32 = 1;
const POSTED: u32 = 2;
const TAKEN: u32 = 3;
const DONE: u32 = 4;

/// How often a caller that waits looks whether the other side is there at all: it has no event for its end.
const NOW_AND_THEN: Duration = Duration::from_secs(1);

#[repr(align(128))]
struct Slot<C, A> {
    /// Says whose the other two are: of the caller that has CLAIMED it, of the other side while it is POSTED or TAKEN, of the caller
    /// again when DONE.
    state: Word,
    call: Handed<C>,
    answer: Handed<A>,
}

/// So many slots. All-zero ones are free.
#[repr(C)]
pub(crate) struct Slots<C, A, const COUNT: usize> {
    /// Counts slots given back, so that a caller who found none free can sleep.
    freed: Word,
    slots: [Slot<C, A>; COUNT],
}

// SAFETY: the cells of a slot are used only by the side that its state names.
unsafe impl<C: Send, A: Send, const COUNT: usize> Sync for Slots<C, A, COUNT> {}

/// Names a call that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(usize);

impl<C, A, const COUNT: usize> Default for Slots<C, A, COUNT> {
    fn default() -> Self {
        let free = |_| Slot { state: Word::new(FREE), call: Handed::new(), answer: Handed::new() };
        Self { freed: Word::new(0), slots: core::array::from_fn(free) }
    }
}

impl<C, A, const COUNT: usize> Slots<C, A, COUNT> {
    /// Makes a call and waits for its answer. `ring` tells the other side. `None` if `is_gone` finds, now and then, that nobody is
    /// there to answer: the slot is not used again then.
    pub(crate) fn post(&self, call: C, ring: impl FnOnce(), is_gone: impl Fn() -> bool) -> Option<A> {
        let slot = self.claim(&is_gone)?;
        // SAFETY: the slot is CLAIMED, by this thread.
        unsafe { slot.call.put(call) };
        slot.state.store(POSTED, Ordering::Release);
        ring();
        loop {
            let state = slot.state.load(Ordering::Acquire);
            if state == DONE {
                break;
            }
            if futex::wait(&slot.state, state, Some(NOW_AND_THEN)) && is_gone() {
                return None;
            }
        }
        // SAFETY: the slot is DONE: the answer was put in before, and the other side does not come back to it.
        let answer = unsafe { slot.answer.take() };
        slot.state.store(FREE, Ordering::Release);
        self.freed.fetch_add(1, Ordering::Release);
        futex::wake(&self.freed);
        Some(answer)
    }

    fn claim(&self, is_gone: &impl Fn() -> bool) -> Option<&Slot<C, A>> {
        loop {
            let freed = self.freed.load(Ordering::Acquire);
            for slot in &self.slots {
                if slot.state.compare_exchange(FREE, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    return Some(slot);
                }
            }
            if futex::wait(&self.freed, freed, Some(NOW_AND_THEN)) && is_gone() {
                return None;
            }
        }
    }

    /// Takes a posted call. For one thread only.
    pub(crate) fn take(&self) -> Option<(Ticket, C)> {
        let posted = |slot: &Slot<C, A>| slot.state.load(Ordering::Acquire) == POSTED;
        let index = self.slots.iter().position(posted)?;
        let slot = &self.slots[index];
        // SAFETY: the slot is POSTED: its caller has put the call in, and waits.
        let call = unsafe { slot.call.take() };
        slot.state.store(TAKEN, Ordering::Relaxed);
        Some((Ticket(index), call))
    }

    /// Answers a call. For the thread that takes them.
    pub(crate) fn answer(&self, ticket: Ticket, answer: A) {
        let slot = &self.slots[ticket.0];
        debug_assert_eq!(slot.state.load(Ordering::Relaxed), TAKEN);
        // SAFETY: the slot is TAKEN: it is this thread's until it says DONE.
        unsafe { slot.answer.put(answer) };
        slot.state.store(DONE, Ordering::Release);
        futex::wake(&slot.state);
    }
}
