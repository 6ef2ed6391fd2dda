//! Slots: threads hand calls to one other thread, and sleep until it has answered.
//!
//! A caller claims a free slot, puts its call there, posts it, rings and sleeps on the slot; the other side takes posted calls, and
//! answers each when it can. There is no lock: a caller that is stopped in between holds up nobody but itself. When all slots
//! are in use, callers wait for one.
//!
//! `tests/call_slots.rs` goes through the interleavings.

use super::handed::Handed;
use crate::detector;
use crate::sys::futex::{self, Word};
use core::sync::atomic::Ordering;

const FREE: u32 = 0;
const CLAIMED: u32 = 1;
const POSTED: u32 = 2;
const TAKEN: u32 = 3;
const DONE: u32 = 4;

#[repr(align(128))]
struct Slot<C, A> {
    /// Says whose the other two are: of the caller that has CLAIMED it, of the other side while it is TAKEN, of the caller
    /// again when DONE. POSTED, it is of whoever changes that first.
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
    /// Makes a call and waits for its answer. `ring` tells the other side; `None` if it cannot, and the call has not been taken.
    pub(crate) fn post(&self, call: C, ring: impl FnOnce() -> bool) -> Option<A> {
        let slot = self.claim();
        // SAFETY: the slot is CLAIMED, by this thread.
        unsafe { slot.call.put(call) };
        detector::tell();
        slot.state.store(POSTED, Ordering::Release);
        let taken_back =
            || slot.state.compare_exchange(POSTED, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if !ring() && taken_back() {
            // SAFETY: the slot is CLAIMED again, and the call was put in before.
            drop(unsafe { slot.call.take() });
            self.give_back(slot);
            return None;
        }
        loop {
            let state = slot.state.load(Ordering::Acquire);
            if state == DONE {
                break;
            }
            futex::wait(&slot.state, state, None);
        }
        detector::hear();
        // SAFETY: the slot is DONE: the answer was put in before, and the other side does not come back to it.
        let answer = unsafe { slot.answer.take() };
        self.give_back(slot);
        Some(answer)
    }

    fn give_back(&self, slot: &Slot<C, A>) {
        slot.state.store(FREE, Ordering::Release);
        self.freed.fetch_add(1, Ordering::Release);
        futex::wake(&self.freed);
    }

    fn claim(&self) -> &Slot<C, A> {
        loop {
            let freed = self.freed.load(Ordering::Acquire);
            for slot in &self.slots {
                if slot.state.compare_exchange(FREE, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    return slot;
                }
            }
            futex::wait(&self.freed, freed, None);
        }
    }

    /// Takes a posted call. For one thread only.
    pub(crate) fn take(&self) -> Option<(Ticket, C)> {
        let taken = |slot: &Slot<C, A>| {
            slot.state.load(Ordering::Relaxed) == POSTED
                // Its caller may take the call back at this moment.
                && slot.state.compare_exchange(POSTED, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        let index = self.slots.iter().position(taken)?;
        // SAFETY: the slot is TAKEN: its caller has put the call in, and waits.
        let call = unsafe { self.slots[index].call.take() };
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
