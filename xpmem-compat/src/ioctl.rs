//! The device's commands, as `xpmem_ioctl` takes them.
//!
//! The structs are copied in and out by the kernel, so that a bad pointer is `EFAULT`.

use super::{XpmemAddr, set_errno, xpmem_attach, xpmem_detach, xpmem_get, xpmem_make, xpmem_release};
use super::{xpmem_remove, xpmem_version};
use core::ffi::{c_int, c_void};
use core::ptr;
use rmap_core::abi::{self, Attach, Get, Make};
use rmap_core::process;

fn pointer(addr: u64) -> *mut c_void {
    ptr::with_exposed_provenance_mut(addr as usize)
}

/// Copies a struct between this process's memory and itself through the kernel, which checks the address.
fn copy<T>(from: *const T, to: *mut T) -> bool {
    let local = libc::iovec { iov_base: to.cast(), iov_len: size_of::<T>() };
    let remote = libc::iovec { iov_base: from.cast_mut().cast(), iov_len: size_of::<T>() };
    // SAFETY: the kernel checks both sides; one is a live local of this module, the other the caller's.
    let copied = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    if copied == size_of::<T>() as isize {
        return true;
    }
    refuse(libc::EFAULT, "no argument is at that address");
    false
}

/// Fails with this errno.
fn refuse(errno: c_int, why: &'static str) -> c_int {
    process::note_refusal("xpmem_ioctl", why);
    set_errno(errno);
    -1
}

fn read<T: Copy>(argument: *mut c_void) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: all bytes were copied, and every struct here is made of integers.
    copy(argument.cast_const().cast(), value.as_mut_ptr()).then(|| unsafe { value.assume_init() })
}

/// # Safety
/// As [`super::xpmem_ioctl`].
pub(super) unsafe fn perform(command: c_int, argument: *mut c_void) -> c_int {
    match command.cast_unsigned() {
        abi::VERSION => xpmem_version(),
        abi::MAKE => read::<Make>(argument).map_or(-1, |mut make| {
            make.segid =
                xpmem_make(pointer(make.vaddr), make.size, make.permit_type, pointer(make.permit_value));
            give_back(make.segid, &make, argument, || xpmem_remove(make.segid))
        }),
        abi::REMOVE => read::<i64>(argument).map_or(-1, |segid| xpmem_remove(segid)),
        abi::GET => read::<Get>(argument).map_or(-1, |mut get| {
            if get.permit_value != 0 {
                return refuse(libc::EINVAL, "the permit value of GET is not 0");
            }
            get.apid = xpmem_get(get.segid, get.flags, get.permit_type, ptr::null_mut());
            give_back(get.apid, &get, argument, || xpmem_release(get.apid))
        }),
        abi::RELEASE => read::<i64>(argument).map_or(-1, |apid| xpmem_release(apid)),
        abi::ATTACH => read::<Attach>(argument).map_or(-1, |mut attach| {
            let addr = XpmemAddr { apid: attach.apid, offset: attach.offset };
            // SAFETY: the caller's promise.
            let base = unsafe { xpmem_attach(addr, attach.size, pointer(attach.vaddr)) };
            attach.vaddr = base.addr() as u64;
            // SAFETY: undone at once, so nobody has used it.
            give_back(base.addr() as i64, &attach, argument, || unsafe { xpmem_detach(base) })
        }),
        // SAFETY: the caller's promise.
        abi::DETACH => read::<u64>(argument).map_or(-1, |vaddr| unsafe { xpmem_detach(pointer(vaddr)) }),
        abi::FORK_BEGIN | abi::FORK_END => 0,
        _ => refuse(libc::ENOTTY, "no such command"),
    }
}

/// Copies a result out; undoes the call where that fails.
fn give_back<T>(result: i64, value: &T, argument: *mut c_void, undo: impl FnOnce() -> c_int) -> c_int {
    if result == -1 {
        return -1;
    }
    if !copy(value, argument.cast()) {
        undo();
        set_errno(libc::EFAULT);
        return -1;
    }
    0
}
