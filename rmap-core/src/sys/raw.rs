//! The system call instruction itself, for calls that neither rustix nor std offer.
//!
//! libc's `syscall()` writes `errno`, which is thread-local storage: the freezer's helper process has none.

use super::{Errno, SysResult};
use core::arch::asm;

/// Makes system call `number` with up to six arguments (`man 2 syscall`, x86-64 convention).
///
/// # Errors
/// Whatever the call returns.
///
/// # Safety
/// The arguments must satisfy the contract of that system call.
pub(crate) unsafe fn syscall(number: libc::c_long, args: [usize; 6]) -> SysResult<usize> {
    let result: isize;
    // SAFETY: the x86-64 kernel clobbers rcx and r11 only; memory effects are the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    if (-4095..0).contains(&result) {
        Err(Errno::from_raw_os_error(-(result as i32)))
    } else {
        Ok(result as usize)
    }
}
