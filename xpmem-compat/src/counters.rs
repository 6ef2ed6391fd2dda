//! `rmap_counters`, of `rmap.h`.

use core::ffi::c_int;
use rmap_core::process;

/// Fills in a `struct rmap_counters`, of which the first word says how many bytes it has.
///
/// # Safety
/// `counters` points to as many bytes as it says, writable and aligned.
pub(crate) unsafe fn fill(counters: *mut u64) -> Result<(), c_int> {
    let invalid = |why| {
        process::note_refusal("rmap_counters", why);
        Err(libc::EINVAL)
    };
    if counters.is_null() {
        return invalid("there is no struct");
    }
    // SAFETY: the caller's promise.
    let size = unsafe { counters.read() } as usize;
    if size < size_of::<u64>() || !size.is_multiple_of(size_of::<u64>()) {
        return invalid("the struct does not say its size");
    }
    let room = size / size_of::<u64>() - 1;
    let words = process::counters().words();
    let known = words.len().min(room);
    for index in 0..room {
        let word = words.get(index).copied().unwrap_or(0);
        // SAFETY: inside the bytes of the caller.
        unsafe { counters.add(index + 1).write(word) };
    }
    // SAFETY: as above.
    unsafe { counters.write(((known + 1) * size_of::<u64>()) as u64) };
    Ok(())
}
