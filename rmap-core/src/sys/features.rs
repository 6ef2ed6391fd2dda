//! What kernels and containers differ in.
//!
//! A feature that is forced off fails as on a kernel that does not have it, in the wrapper of the call that needs it: so what the library
//! does without it can be tried anywhere.

use super::{Errno, SysResult};
use core::sync::atomic::{AtomicU32, Ordering};

/// What may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feature {
    Userfaultfd,
    UserfaultfdDevice,
    Ptrace,
    SealedMemory,
    ExactAddress,
    WatchAny,
    MovePages,
    PagemapScan,
    ProcmapQuery,
    Collapse,
    Populate,
    Numa,
    PeerGroups,
    PeerHandle,
    PassRights,
}

static FORCED_OFF: AtomicU32 = AtomicU32::new(0);

impl Feature {
    fn bit(self) -> u32 {
        1 << self as u32
    }

    /// Has this process do without it from now on.
    pub(crate) fn force_off(self) {
        FORCED_OFF.fetch_or(self.bit(), Ordering::Relaxed);
    }

    pub(crate) fn is_forced_off(self) -> bool {
        FORCED_OFF.load(Ordering::Relaxed) & self.bit() != 0
    }

    /// Fails if it is forced off.
    ///
    /// # Errors
    /// What a kernel without it says.
    pub(crate) fn check(self) -> SysResult<()> {
        if !self.is_forced_off() {
            return Ok(());
        }
        Err(match self {
            Self::Userfaultfd | Self::Numa => Errno::NOSYS,
            Self::UserfaultfdDevice => Errno::NOENT,
            Self::Ptrace => Errno::PERM,
            Self::PagemapScan | Self::ProcmapQuery => Errno::NOTTY,
            Self::PeerGroups | Self::PeerHandle | Self::PassRights => Errno::NOPROTOOPT,
            Self::SealedMemory | Self::ExactAddress | Self::WatchAny => Errno::INVAL,
            Self::MovePages | Self::Collapse | Self::Populate => Errno::INVAL,
        })
    }
}
