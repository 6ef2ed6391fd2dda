//! `libxpmem.so.0`: XPMEM's C interface over [`rmap_core::process`]. Nothing is decided here.
//!
//! Every function fails with -1 and `errno`, and leaves `errno` alone when it succeeds. None panics across the
//! boundary: the release profile aborts on a panic, which would be a defect.

use core::ffi::{c_int, c_void};
use core::ptr;
use rmap_core::{Error, Result, process};

mod counters;
mod ioctl;

/// `struct xpmem_addr`, passed by value in two registers.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct XpmemAddr {
    /// The permit.
    pub apid: i64,
    /// Bytes from the start of the segment.
    pub offset: libc::off_t,
}

fn set_errno(errno: c_int) {
    // SAFETY: glibc's errno of the calling thread.
    unsafe { *libc::__errno_location() = errno };
}

/// Runs a call such that `errno` changes only if it fails.
fn keeping_errno<T>(call: impl FnOnce() -> Result<T>) -> core::result::Result<T, ()> {
    // SAFETY: glibc's errno of the calling thread.
    let before = unsafe { *libc::__errno_location() };
    let result = call();
    set_errno(result.as_ref().map_or_else(Error::errno, |_| before));
    result.map_err(|_| ())
}

fn status(call: impl FnOnce() -> Result<()>) -> c_int {
    keeping_errno(call).map_or(-1, |()| 0)
}

fn id(call: impl FnOnce() -> Result<rmap_core::Id>) -> i64 {
    keeping_errno(call).map_or(-1, rmap_core::Id::to_raw)
}

/// The version of XPMEM whose behaviour the library has.
#[unsafe(no_mangle)]
pub extern "C" fn xpmem_version() -> c_int {
    keeping_errno(process::version).unwrap_or(-1)
}

/// Readies the library; the other calls do so themselves. Configure scripts look for this symbol.
#[unsafe(no_mangle)]
pub extern "C" fn xpmem_init() -> c_int {
    status(|| process::version().map(drop))
}

/// Offers a range of this process to others.
#[unsafe(no_mangle)]
pub extern "C" fn xpmem_make(
    vaddr: *mut c_void,
    size: usize,
    permit_type: c_int,
    permit_value: *mut c_void,
) -> i64 {
    id(|| process::make(vaddr.addr(), size, permit_type, permit_value.addr()))
}

/// Ends a segment.
#[unsafe(no_mangle)]
pub extern "C" fn xpmem_remove(segid: i64) -> c_int {
    status(|| process::remove(segid))
}

/// Gets a permit for a segment. The permit value is not looked at, as in XPMEM's library.
#[unsafe(no_mangle)]
pub extern "C" fn xpmem_get(segid: i64, flags: c_int, permit_type: c_int, _permit_value: *mut c_void) -> i64 {
    id(|| process::get(segid, flags, permit_type))
}

/// Gives a permit back, with its attachments.
#[unsafe(no_mangle)]
pub extern "C" fn xpmem_release(apid: i64) -> c_int {
    status(|| process::release(apid))
}

/// Maps part of a segment, over whatever is at `vaddr` unless that is null.
///
/// # Safety
/// With a `vaddr`, nobody may rely on what is mapped there now.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xpmem_attach(addr: XpmemAddr, size: usize, vaddr: *mut c_void) -> *mut c_void {
    if vaddr.is_null()
        && let Some(base) = process::attach_known(addr.apid, addr.offset, size)
    {
        return ptr::with_exposed_provenance_mut(base);
    }
    // SAFETY: the caller's promise.
    let attached = keeping_errno(|| unsafe { process::attach(addr.apid, addr.offset, size, vaddr.addr()) });
    attached.map_or(ptr::without_provenance_mut(usize::MAX), ptr::with_exposed_provenance_mut)
}

/// Removes the attachment that covers `vaddr`.
///
/// # Safety
/// Nobody may use the attachment afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xpmem_detach(vaddr: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    if unsafe { process::detach_known(vaddr.addr()) } {
        return 0;
    }
    // SAFETY: the caller's promise.
    status(|| unsafe { process::detach(vaddr.addr()) })
}

/// The commands that XPMEM's library sends to its device, for callers that send them by themselves.
///
/// # Safety
/// `argument` points to the argument struct of the command, and for ATTACH and DETACH what
/// [`xpmem_attach`] and [`xpmem_detach`] ask for holds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xpmem_ioctl(command: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { ioctl::perform(command, argument) }
}

/// Fills in the counters of this process.
///
/// # Safety
/// `counters` points to a `struct rmap_counters` whose size says how many bytes it has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rmap_counters(counters: *mut u64) -> c_int {
    // SAFETY: glibc's errno of the calling thread.
    let before = unsafe { *libc::__errno_location() };
    // SAFETY: the caller's promise.
    let filled = unsafe { counters::fill(counters) };
    set_errno(filled.err().unwrap_or(before));
    if filled.is_ok() { 0 } else { -1 }
}
