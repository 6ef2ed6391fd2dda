//! Raising SIGBUS and SIGSEGV at a thread of this process.

use super::ptrace::{self, Change};
use super::{Errno, SysResult, raw};

const SIGINFO: usize = 128;

/// The siginfo of a fault, with `si_addr`.
fn info(signal: i32, code: i32, addr: usize) -> [u8; SIGINFO] {
    let mut info = [0u8; SIGINFO];
    info[0..4].copy_from_slice(&signal.to_ne_bytes());
    info[8..12].copy_from_slice(&code.to_ne_bytes());
    info[16..24].copy_from_slice(&addr.to_ne_bytes());
    info
}

/// Sends a fault's signal to thread `tid` of process `pid`, with `si_addr` `addr` and `si_code` `SI_QUEUE`: the kernel lets nobody
/// but a thread itself claim more (`man 2 rt_tgsigqueueinfo`).
pub(crate) fn queue_fault(signal: i32, pid: u32, tid: u32, addr: usize) -> SysResult<()> {
    let info = info(signal, libc::SI_QUEUE, addr);
    let info = info.as_ptr().expose_provenance();
    let args = [pid as usize, tid as usize, signal as usize, info, 0, 0];
    // SAFETY: the kernel reads the siginfo.
    unsafe { raw::syscall(libc::SYS_rt_tgsigqueueinfo, args) }.map(drop)
}

/// Raises `SIGBUS` or `SIGSEGV` at a thread of another process as the kernel would; `queue` sends it by [`queue_fault`], and `si_code` becomes `BUS_ADRERR` or `SEGV_ACCERR`. The
/// caller becomes its tracer for the moment. A thread that is not at `instruction` any more has left its access for a signal
/// handler: it gets no signal, and if it comes back to the access, it asks again.
///
/// # Errors
/// `EPERM` while somebody else traces the thread; `ESRCH` if it is gone.
pub(crate) fn raise_fault(
    signal: i32,
    tid: u32,
    addr: usize,
    instruction: usize,
    queue: impl FnOnce() -> SysResult<()>,
) -> SysResult<()> {
    const BUS_ADRERR_OR_SEGV_ACCERR: i32 = 2;
    ptrace::seize(tid)?;
    queue()?;
    loop {
        match ptrace::wait()? {
            (_, Change::AtSignal(arrived)) if arrived == signal => {
                if ptrace::instruction(tid)? != instruction {
                    return ptrace::detach(tid, 0);
                }
                let info = info(signal, BUS_ADRERR_OR_SEGV_ACCERR, addr);
                ptrace::set_signal_info(tid, info.as_ptr().expose_provenance())?;
                return ptrace::detach(tid, signal);
            }
            (_, Change::AtSignal(other)) => ptrace::resume(tid, other)?,
            (_, Change::Stopped) => ptrace::resume(tid, 0)?,
            (_, Change::Gone) => return Err(Errno::SRCH),
        }
    }
}
