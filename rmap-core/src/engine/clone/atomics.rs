//! What the models of lock-free code replace.

pub(crate) use core::hint::spin_loop;
pub(crate) use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering, fence};

/// How often to look again before giving up on another thread's being done in a moment.
pub(crate) const PATIENCE: usize = 100;
