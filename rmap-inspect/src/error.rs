//! What can go wrong, one variant for each thing that a person can act on.

use core::ops::Range;
use rustix::io::Errno;

/// Why memory cannot be shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such process, or it has ended.
    #[error("there is no process {0}")]
    NoProcess(i32),
    /// The kernel does not allow this user to trace it.
    #[error("tracing process {0} is not allowed: another user's, not dumpable, or kernel.yama.ptrace_scope")]
    NotAllowed(i32),
    /// A debugger or strace has it.
    #[error("process {0} has a tracer already")]
    Traced(i32),
    /// A filter might kill it for the system calls that it would be led through.
    #[error("process {0} has a seccomp filter; its private memory cannot be moved")]
    Filtered(i32),
    /// It does not run 64-bit code.
    #[error("process {0} does not run 64-bit code")]
    OtherMachine(i32),
    /// A device may be writing to its memory: registered buffers, io_uring, libaio.
    #[error("process {0} has memory that a device may be writing to")]
    Pinned(i32),
    /// Not a range of addresses.
    #[error("not a range of addresses")]
    NoRange,
    /// Nothing in the range can be shown; the text says why of the first mapping.
    #[error("{start:#x}-{end:#x} cannot be shown: {why}", start = range.start, end = range.end)]
    Unsuitable {
        /// The mapping, cut at the range.
        range: Range<usize>,
        /// Why.
        why: &'static str,
    },
    /// What was asked for is not there (any more).
    #[error("nothing is shown at {0:#x}")]
    Hole(usize),
    /// The kernel refused a call.
    #[error("{call}: {errno}")]
    Failed {
        /// The call.
        call: &'static str,
        /// What it said.
        errno: Errno,
    },
}

/// Result of the calls of this crate.
pub type Result<T> = core::result::Result<T, Error>;

/// Names the call in an error of the kernel's.
pub(crate) fn failed(call: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::Failed { call, errno }
}

/// The same for an error of the standard library's.
pub(crate) fn failed_io(call: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::Failed { call, errno: Errno::from_io_error(&error).unwrap_or(Errno::IO) }
}
