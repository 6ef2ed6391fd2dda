//! ptrace (`man 2 ptrace`) as the freezer uses it: stop a thread without a signal, and let it go.

use super::features::Feature;
use super::{Errno, SysResult, raw};

const SEIZE: usize = 0x4206;
const INTERRUPT: usize = 0x4207;
const DETACH: usize = 17;
const CONT: usize = 7;
const SETSIGINFO: usize = 0x4203;
const PEEKUSER: usize = 3;
const POKEUSER: usize = 6;

/// Offsets of registers in `struct user` (x86-64).
const RAX: usize = 10 * 8;
const ORIG_RAX: usize = 15 * 8;
const RIP: usize = 16 * 8;
const RSP: usize = 19 * 8;
const FS_BASE: usize = 21 * 8;

/// The instruction that a stopped thread goes on with.
pub(crate) fn instruction(tid: u32) -> SysResult<usize> {
    peek(tid, RIP).map(isize::cast_unsigned)
}

/// Where a stopped thread has its stack, and its thread-local storage.
pub(crate) fn stack_and_storage(tid: u32) -> SysResult<(usize, usize)> {
    Ok((peek(tid, RSP)?.cast_unsigned(), peek(tid, FS_BASE)?.cast_unsigned()))
}

/// The kernel's own code for "restart this call unless a signal handler runs".
const ERESTARTNOHAND: isize = 514;

fn ptrace(request: usize, tid: u32, addr: usize, data: usize) -> SysResult<usize> {
    // SAFETY: none of the requests of this module writes to this process's memory, except PEEKUSER, which is
    // given a live word.
    unsafe { raw::syscall(libc::SYS_ptrace, [request, tid as usize, addr, data, 0, 0]) }
}

/// Becomes the tracer of `tid` without stopping it.
pub(crate) fn seize(tid: u32) -> SysResult<()> {
    Feature::Ptrace.check()?;
    ptrace(SEIZE, tid, 0, 0).map(drop)
}

/// Stops `tid` at the next chance.
pub(crate) fn interrupt(tid: u32) -> SysResult<()> {
    ptrace(INTERRUPT, tid, 0, 0).map(drop)
}

/// Lets `tid` go on, with `signal` if that is not zero.
pub(crate) fn detach(tid: u32, signal: i32) -> SysResult<()> {
    ptrace(DETACH, tid, 0, signal as usize).map(drop)
}

/// Lets `tid` go on, still traced, with `signal` if that is not zero.
pub(crate) fn resume(tid: u32, signal: i32) -> SysResult<()> {
    ptrace(CONT, tid, 0, signal as usize).map(drop)
}

/// Changes the siginfo of the signal that `tid` has stopped on its way to.
pub(crate) fn set_signal_info(tid: u32, info: usize) -> SysResult<()> {
    ptrace(SETSIGINFO, tid, 0, info).map(drop)
}

fn peek(tid: u32, offset: usize) -> SysResult<isize> {
    let mut word = 0isize;
    ptrace(PEEKUSER, tid, offset, core::ptr::from_mut(&mut word).expose_provenance())?;
    Ok(word)
}

/// Calls that return `EINTR` when stopped in their sleep although no handler ran (`man 7 signal`), and that
/// have no effect before they return it.
const RESTARTABLE: [libc::c_long; 20] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_io_getevents,
    333, // io_pgetevents
    libc::SYS_io_uring_enter,
];

/// Makes a stopped thread restart its system call, where the kernel alone would let it return `EINTR`.
pub(crate) fn hide_interruption(tid: u32) {
    if peek(tid, RAX) != Ok(-(libc::EINTR as isize)) {
        return;
    }
    let Ok(call) = peek(tid, ORIG_RAX) else { return };
    if RESTARTABLE.contains(&(call as libc::c_long)) {
        let _ = ptrace(POKEUSER, tid, RAX, ERESTARTNOHAND.wrapping_neg() as usize);
    }
}

/// A change of a traced thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Stopped as asked, or by job control; nothing to deliver.
    Stopped,
    /// Stopped on its way to a signal, which [`detach`] must pass on.
    AtSignal(i32),
    /// Gone.
    Gone,
}

/// Waits for the next change of any traced thread.
pub(crate) fn wait() -> SysResult<(u32, Change)> {
    const PTRACE_EVENT_STOP: i32 = 128;
    let mut status = 0i32;
    let args = [
        -1isize as usize,
        core::ptr::from_mut(&mut status).expose_provenance(),
        libc::__WALL as usize,
        0,
        0,
        0,
    ];
    loop {
        // SAFETY: wait4 writes the status word.
        match unsafe { raw::syscall(libc::SYS_wait4, args) } {
            Ok(tid) => {
                let change = if !libc::WIFSTOPPED(status) {
                    Change::Gone
                } else if status >> 16 == PTRACE_EVENT_STOP {
                    Change::Stopped
                } else {
                    Change::AtSignal(libc::WSTOPSIG(status))
                };
                return Ok((tid as u32, change));
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Tells Yama which process may trace this one; 0 takes the exception back.
pub(crate) fn allow_tracer(pid: u32) {
    // SAFETY: sets an attribute of this process.
    let _ =
        unsafe { raw::syscall(libc::SYS_prctl, [libc::PR_SET_PTRACER as usize, pid as usize, 0, 0, 0, 0]) };
}
