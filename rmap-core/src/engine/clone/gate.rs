//! How threads use tables that one thread changes, and count themselves in to what they found, without a lock.
//!
//! A reader passes the gate, looks up, counts itself in, and looks whether the gate was shut since: if so, it takes the count back and
//! starts over. The other side shuts the gate before it looks at the counts. Both sides write first and read then, in the one order
//! that all sequentially consistent accesses have: so either the other side sees the count, or the reader sees the gate.
//!
//! `tests/gate.rs` goes through the interleavings.

use super::atomics::{AtomicI32, AtomicUsize, Ordering, PATIENCE, fence, spin_loop};

/// An odd number while it is shut. Zeroed memory is an open gate.
#[derive(Debug)]
pub(crate) struct Gate {
    sequence: AtomicUsize,
}

impl From<AtomicUsize> for Gate {
    fn from(sequence: AtomicUsize) -> Self {
        Self { sequence }
    }
}

/// When a reader passed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass(usize);

/// A time in which the gate is shut.
#[derive(Debug)]
#[must_use = "it must be ended"]
pub(crate) struct Shut {
    outermost: bool,
}

impl Gate {
    /// Before the tables are read; `None` if the gate stays shut.
    pub(crate) fn pass(&self) -> Option<Pass> {
        (0..PATIENCE).find_map(|_| {
            let sequence = self.sequence.load(Ordering::Acquire);
            if sequence.is_multiple_of(2) {
                return Some(Pass(sequence));
            }
            spin_loop();
            None
        })
    }

    /// Whether what was read since is of one time.
    pub(crate) fn is_valid(&self, pass: Pass) -> bool {
        fence(Ordering::Acquire);
        self.sequence.load(Ordering::Relaxed) == pass.0
    }

    /// Counts the caller in to what it has found since, unless the gate was shut: then what was found may be gone.
    pub(crate) fn count_in(&self, pass: Pass, count: &AtomicI32) -> bool {
        count.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::Acquire);
        let valid = self.sequence.load(Ordering::SeqCst) == pass.0;
        if !valid {
            take_back(count);
        }
        valid
    }

    /// Shuts the gate for readers until [`open`](Self::open). For one thread only.
    pub(crate) fn shut(&self) -> Shut {
        let before = self.sequence.load(Ordering::Relaxed);
        let outermost = before.is_multiple_of(2);
        if outermost {
            self.sequence.swap(before.wrapping_add(1), Ordering::SeqCst);
            // What is written to the tables from now on is not seen by who does not see the gate.
            fence(Ordering::SeqCst);
        }
        Shut { outermost }
    }

    /// Ends what [`shut`](Self::shut) began.
    pub(crate) fn open(&self, shut: Shut) {
        if shut.outermost {
            let before = self.sequence.load(Ordering::Relaxed);
            self.sequence.store(before.wrapping_add(1), Ordering::Release);
        }
    }
}

/// Takes one off a count that the caller had put there.
pub(crate) fn take_back(count: &AtomicI32) {
    count.fetch_sub(1, Ordering::Release);
}

/// Counts one out; false if nobody is counted here.
pub(crate) fn count_out(count: &AtomicI32) -> bool {
    let counted = count.fetch_sub(1, Ordering::Release) > 0;
    if !counted {
        count.fetch_add(1, Ordering::Relaxed);
    }
    counted
}

/// How many are counted in; to be asked with the gate shut.
pub(crate) fn total<'a>(counts: impl Iterator<Item = &'a AtomicI32>) -> i32 {
    counts.fold(0, |sum, count| sum.wrapping_add(count.load(Ordering::SeqCst)))
}
