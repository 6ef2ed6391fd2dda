//! Signal handlers that leave to libFuzzer what is not for them.

use std::ffi::c_void;
use std::sync::OnceLock;
use std::{mem, ptr};

type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void);

/// The handler of the trapped accesses, and those that were there before it.
static TRAP: OnceLock<Handler> = OnceLock::new();
static BEFORE: [OnceLock<libc::sigaction>; 32] = [const { OnceLock::new() }; 32];

unsafe extern "C" {
    fn rmap_trap_start();
    fn rmap_trap_end();
}

extern "C" fn handler(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid context.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize].cast_unsigned() as usize;
    let trapped = (rmap_trap_start as *const () as usize..rmap_trap_end as *const () as usize).contains(&at);
    if let Some(trap) = TRAP.get().filter(|_| trapped) {
        return trap(signal, info, context);
    }
    let before = BEFORE[signal.unsigned_abs() as usize].get();
    if let Some(before) = before.filter(|before| before.sa_sigaction > libc::SIG_IGN) {
        // SAFETY: libFuzzer's handlers are of this type.
        let before: Handler = unsafe { mem::transmute(before.sa_sigaction) };
        return before(signal, info, context);
    }
    // SAFETY: SIG_DFL is a valid action.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Has the handler of the trapped accesses called for them, and the one before it for all else.
pub(crate) fn on_signal(signal: i32, trap: usize, flags: i32) {
    if flags & libc::SA_SIGINFO != 0 {
        // SAFETY: `trap` says that this is a handler of that type.
        let _ = TRAP.set(unsafe { mem::transmute::<usize, Handler>(trap) });
    }
    // SAFETY: all zero is a valid sigaction.
    let (mut action, mut before): (libc::sigaction, libc::sigaction) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: a valid handler.
    let result = unsafe { libc::sigaction(signal, ptr::from_ref(&action), ptr::from_mut(&mut before)) };
    assert_eq!(result, 0, "sigaction");
    let _ = BEFORE[signal.unsigned_abs() as usize].set(before);
}
