//! Raising a signal at a thread of this process as the kernel would.

use super::{SysResult, raw};

/// Sends `SIGBUS` to thread `tid` with `si_addr` `addr`.
///
/// `si_code` is `SI_QUEUE`: the kernel lets nobody but a thread itself claim `BUS_ADRERR` (`man 2
/// rt_tgsigqueueinfo`).
pub(crate) fn bus_error(tid: u32, addr: usize) -> SysResult<()> {
    const SIGINFO: usize = 128;
    let mut info = [0u8; SIGINFO];
    info[0..4].copy_from_slice(&libc::SIGBUS.to_ne_bytes());
    info[8..12].copy_from_slice(&libc::SI_QUEUE.to_ne_bytes());
    info[16..24].copy_from_slice(&addr.to_ne_bytes());
    let pid = rustix::process::getpid().as_raw_nonzero().get() as usize;
    let args = [
        pid,
        tid as usize,
        libc::SIGBUS as usize,
        info.as_ptr().expose_provenance(),
        0,
        0,
    ];
    // SAFETY: the kernel reads the siginfo.
    unsafe { raw::syscall(libc::SYS_rt_tgsigqueueinfo, args) }.map(drop)
}
