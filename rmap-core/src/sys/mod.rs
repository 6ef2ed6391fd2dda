//! Thin, safe wrappers over one system call each. No policy lives here.
//!
//! The service thread runs on these alone: none of them allocates, takes a lock, or touches `errno`.

pub(crate) mod bell;
pub(crate) mod device;
pub(crate) mod event;
pub(crate) mod fd;
pub(crate) mod features;
pub(crate) mod futex;
pub(crate) mod maps;
pub(crate) mod memory;
pub(crate) mod numa;
pub(crate) mod pagemap;
pub(crate) mod pipe;
pub(crate) mod procfs;
pub(crate) mod program;
pub(crate) mod ptrace;
pub(crate) mod raw;
mod said;
pub(crate) mod signal;
pub(crate) mod socket;
pub(crate) mod stderr;
pub(crate) mod sysv;
pub(crate) mod thread;
pub(crate) mod uffd;
pub(crate) mod userns;

pub(crate) use rustix::io::Errno;
pub(crate) use said::Said;

/// Result of a system call.
pub(crate) type SysResult<T> = core::result::Result<T, Errno>;
