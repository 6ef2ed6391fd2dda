//! Futexes on words in the library's own memory, private to the process (`man 2 futex`).

use super::{Errno, raw};
use core::sync::atomic::AtomicU32;
/// What threads sleep on.
pub(crate) use core::sync::atomic::AtomicU32 as Word;
use core::time::Duration;

const WAIT: usize = libc::FUTEX_WAIT as usize | libc::FUTEX_PRIVATE_FLAG as usize;
const WAKE: usize = libc::FUTEX_WAKE as usize | libc::FUTEX_PRIVATE_FLAG as usize;

/// Sleeps while `word` holds `expected`, at most for `limit`. Returns also when woken for no reason.
///
/// True if the limit passed.
pub(crate) fn wait(word: &AtomicU32, expected: u32, limit: Option<Duration>) -> bool {
    let timeout =
        limit.map(|d| libc::timespec { tv_sec: d.as_secs() as i64, tv_nsec: i64::from(d.subsec_nanos()) });
    let timeout = timeout.as_ref().map_or(0, |t| core::ptr::from_ref(t).addr());
    // SAFETY: the word and the timeout live through the call; FUTEX_WAIT only reads them.
    let result = unsafe {
        raw::syscall(
            libc::SYS_futex,
            [core::ptr::from_ref(word).expose_provenance(), WAIT, expected as usize, timeout, 0, 0],
        )
    };
    result == Err(Errno::TIMEDOUT)
}

/// Wakes everyone who sleeps on `word`.
pub(crate) fn wake(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE does not access the word.
    let _ = unsafe {
        raw::syscall(
            libc::SYS_futex,
            [core::ptr::from_ref(word).expose_provenance(), WAKE, i32::MAX as usize, 0, 0, 0],
        )
    };
}
