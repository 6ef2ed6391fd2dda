//! Who may have a permit: XPMEM's rules, which are System V IPC's.

use super::protocol::Access;
use crate::sys::procfs::{self, PathBuffer};
use crate::sys::socket::{self, Peer};
use std::os::fd::AsFd;

/// Real user and group of this process when it first used the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Creator {
    uid: u32,
    gid: u32,
}

impl Creator {
    pub(crate) fn of_this_process() -> Self {
        Self { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw() }
    }

    /// Whether the peer at `connection` may have `access` to a segment of this mode.
    ///
    /// The class is exclusive: an owner whom the owner bits refuse is not asked again as group or other.
    pub(crate) fn allows(&self, mode: u32, peer: &Peer, connection: impl AsFd, access: Access) -> bool {
        let shift = if peer.uid == self.uid {
            6
        } else if peer.gid == self.gid || socket::peer_has_group(connection, self.gid) {
            3
        } else {
            0
        };
        let wanted = match access {
            Access::ReadOnly => 0o4,
            Access::ReadWrite => 0o6,
        };
        (mode >> shift) & wanted == wanted || may_override(peer)
    }
}

/// `CAP_IPC_OWNER`, where user 0 of this user namespace has it. A namespace of somebody else's gives no right here: its
/// root is not user 0 to us.
fn may_override(peer: &Peer) -> bool {
    const CAP_IPC_OWNER: u32 = 15;
    if peer.uid != 0 || peer.pid == 0 {
        return false;
    }
    let path = PathBuffer::format(format_args!("/proc/{}/status", peer.pid));
    let mut buffer = [0; 4096];
    let Ok(text) = procfs::read_small(path.as_c_str(), &mut buffer) else {
        return false;
    };
    procfs::field(text, b"CapEff:", 16).is_some_and(|caps| caps >> CAP_IPC_OWNER & 1 == 1)
}
