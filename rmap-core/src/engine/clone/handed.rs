//! A place for a value that two threads hand to each other.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;

/// Memory for one value, in nobody's hands at first. An all-zero one is as good as new.
///
/// `tests/call_slots.rs` has another of the same interface, which finds out when two threads use it at once.
pub(crate) struct Handed<T>(UnsafeCell<MaybeUninit<T>>);

impl<T> Handed<T> {
    pub(crate) fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::uninit()))
    }

    /// Puts a value in.
    ///
    /// # Safety
    /// No other thread uses the place meanwhile.
    pub(crate) unsafe fn put(&self, value: T) {
        // SAFETY: the caller's promise.
        unsafe { (*self.0.get()).write(value) };
    }

    /// Takes the value out.
    ///
    /// # Safety
    /// It has been put in before, which this thread has learned of since, and no other thread uses the place meanwhile.
    pub(crate) unsafe fn take(&self) -> T {
        // SAFETY: the caller's promise.
        unsafe { (*self.0.get()).assume_init_read() }
    }
}
