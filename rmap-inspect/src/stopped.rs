//! Stopping all threads of another process, without a signal.

use crate::error::{Error, Result, failed};
use crate::process::Process;
use core::marker::PhantomData;
use rustix::io::Errno;

/// `PTRACE_EVENT_STOP`, in the upper bits of a wait status.
const EVENT_STOP: i32 = 128;

/// All threads of a process, stopped, until this is dropped.
///
/// The kernel takes the requests of the thread alone that has stopped them.
#[derive(Debug)]
pub(crate) struct Stopped {
    threads: Vec<i32>,
    of_this_thread: PhantomData<*const ()>,
}

/// Makes a request that needs no memory of this process's.
pub(crate) fn request(request: libc::c_uint, tid: i32, addr: usize, data: usize) -> rustix::io::Result<()> {
    // SAFETY: the callers pass numbers, or the addresses of live variables that the request reads or fills.
    let result = unsafe { libc::ptrace(request, tid, addr, data) };
    if result == -1 { Err(last_errno()) } else { Ok(()) }
}

pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Why a thread stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// As it was told, or because the whole process is stopped.
    Interrupted,
    /// On its way into or out of a system call.
    SystemCall,
    /// On its way to this signal.
    Signal(i32),
}

/// Waits until a thread stands still; `None` if it has ended.
pub(crate) fn wait(tid: i32) -> Result<Option<Stop>> {
    let mut status = 0;
    loop {
        // SAFETY: the status is a live variable.
        match unsafe { libc::waitpid(tid, &mut status, libc::__WALL) } {
            -1 => match last_errno() {
                Errno::INTR => {}
                Errno::CHILD => return Ok(None),
                errno => return Err(failed("waitpid")(errno)),
            },
            _ if !libc::WIFSTOPPED(status) => return Ok(None),
            _ if status >> 16 == EVENT_STOP => return Ok(Some(Stop::Interrupted)),
            _ if libc::WSTOPSIG(status) == libc::SIGTRAP | 0x80 => return Ok(Some(Stop::SystemCall)),
            _ => return Ok(Some(Stop::Signal(libc::WSTOPSIG(status)))),
        }
    }
}

/// Stops one thread, whatever signals come first; false if it has ended.
pub(crate) fn interrupt(tid: i32) -> Result<bool> {
    if request(libc::PTRACE_INTERRUPT, tid, 0, 0).is_err() {
        return Ok(false);
    }
    loop {
        match wait(tid)? {
            Some(Stop::Interrupted) => return Ok(true),
            Some(Stop::Signal(signal)) => drop(request(libc::PTRACE_CONT, tid, 0, signal as usize)),
            Some(Stop::SystemCall) => drop(request(libc::PTRACE_CONT, tid, 0, 0)),
            None => return Ok(false),
        }
    }
}

impl Stopped {
    /// Stops them all.
    pub(crate) fn all(process: &Process) -> Result<Self> {
        let mut stopped = Self { threads: Vec::new(), of_this_thread: PhantomData };
        loop {
            // A thread that runs may start others. Once a look finds none that runs, there can be no more.
            let mut new = process.threads()?;
            new.retain(|tid| !stopped.threads.contains(tid) && !process.has_exited(*tid));
            if new.is_empty() {
                break;
            }
            for tid in new {
                match request(libc::PTRACE_SEIZE, tid, 0, libc::PTRACE_O_TRACESYSGOOD as usize) {
                    Ok(()) => {
                        stopped.threads.push(tid);
                        interrupt(tid)?;
                    }
                    Err(Errno::SRCH) => {}
                    // The kernel says the same of a thread that is on its way out.
                    Err(Errno::PERM) if process.has_exited(tid) => {}
                    Err(Errno::PERM) => {
                        process.check_movable()?;
                        return Err(Error::NotAllowed(process.pid));
                    }
                    Err(errno) => return Err(failed("PTRACE_SEIZE")(errno)),
                }
            }
        }
        if stopped.threads.is_empty() { Err(Error::NoProcess(process.pid)) } else { Ok(stopped) }
    }

    /// They, by their ids.
    pub(crate) fn threads(&self) -> &[i32] {
        &self.threads
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for tid in &self.threads {
            let _ = request(libc::PTRACE_DETACH, *tid, 0, 0);
        }
    }
}
