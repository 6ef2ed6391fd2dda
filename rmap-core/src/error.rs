//! Everything that can go wrong, one variant for each thing that a person can act on.

use crate::range::Range;
use crate::sys::{Errno, Said};

/// Why a call failed. Each variant has one errno, XPMEM's where XPMEM has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument is outside what the call accepts (`EINVAL`).
    #[error("{0}")]
    Invalid(&'static str),
    /// The id names nothing that exists now: never made, removed, released, or its owner is gone (`ENOENT`).
    #[error("no such segment or permit")]
    NoSuchId,
    /// The segment's mode does not allow it, or the id belongs to another process (`EACCES`).
    #[error("not allowed by the segment's mode, or the id belongs to another process")]
    Denied,
    /// This process has used up its ids (`EBUSY`).
    #[error("this process has used up its ids")]
    OutOfIds,
    /// Memory, address space, mappings or descriptors ran out (the errno says which).
    #[error("{call} failed: {}", Said(*.errno))]
    OutOfResources {
        /// The call that failed.
        call: &'static str,
        /// Its errno.
        errno: Errno,
    },
    /// The address range asked for is taken by another attachment or by the segment itself (`EINVAL`).
    #[error("{0} is taken by an attachment, or by the segment itself")]
    RangeTaken(Range),
    /// This system cannot serve the process; the text says what is missing (`ENOENT`, as without `/dev/xpmem`).
    #[error("{what} is not available: {}", Said(*.errno))]
    Unsupported {
        /// What is missing.
        what: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
    /// Switched off by the environment (`ENOENT`).
    #[error("switched off by RMAP_DISABLE")]
    Disabled,
    /// The exporter did not answer within `RMAP_PEER_TIMEOUT` (`ETIMEDOUT`).
    #[error("the exporter did not answer within RMAP_PEER_TIMEOUT")]
    TimedOut,
}

impl Error {
    /// The errno that the C ABI reports.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Invalid(_) | Self::RangeTaken(_) => libc::EINVAL,
            Self::NoSuchId | Self::Unsupported { .. } | Self::Disabled => libc::ENOENT,
            Self::Denied => libc::EACCES,
            Self::OutOfIds => libc::EBUSY,
            Self::OutOfResources { errno, .. } => errno.raw_os_error(),
            Self::TimedOut => libc::ETIMEDOUT,
        }
    }
}

/// Result of the calls of this crate.
pub type Result<T> = core::result::Result<T, Error>;

impl Error {
    /// Whether the same may work in a moment.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::OutOfResources { errno, .. } if is_passing(*errno))
    }
}

/// Whether the kernel lacks something now, or was disturbed. (`EAGAIN`: also of a sibling that somebody has killed.)
pub(crate) fn is_passing(errno: Errno) -> bool {
    [
        Errno::NOMEM,
        Errno::MFILE,
        Errno::NFILE,
        Errno::AGAIN,
        Errno::NOBUFS,
        Errno::NOSPC,
        Errno::TOOMANYREFS,
        Errno::INTR,
    ]
    .contains(&errno)
}

/// Names the call in an error of the kernel's.
pub(crate) fn failed(call: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::OutOfResources { call, errno }
}

/// Names what is tried in an error of the kernel's that tells whether it is there.
pub(crate) fn missing(what: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| if is_passing(errno) { failed(what)(errno) } else { Error::Unsupported { what, errno } }
}
