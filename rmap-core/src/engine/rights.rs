//! Who is who, and who may have a permit: XPMEM's rules, which are System V IPC's.
//!
//! The kernel says who a peer is, in numbers of the user namespace of who asks. A namespace need not have a number for everybody: those
//! without one all look like the overflow user (65534), whom it may have, too. So that number alone proves nothing there. And the
//! capabilities of a process are good in its own user namespace, which anybody can make.

use super::protocol::Access;
use crate::sys::socket;
use crate::sys::userns::{self, IdMap, Kind};
use crate::sys::{Errno, SysResult, procfs};
use std::os::fd::AsFd;

/// The numbers that may stand for several users, or groups, in the user namespace of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shared {
    pub(crate) user: Option<u32>,
    group: Option<u32>,
}

impl Shared {
    pub(crate) fn of_this_process() -> Self {
        let shared = |kind| {
            let whole = IdMap::own(kind).is_ok_and(|map| map.is_none_or(|map| map.is_whole()));
            (!whole).then(|| userns::overflow(kind))
        };
        Self { user: shared(Kind::User), group: shared(Kind::Group) }
    }
}

/// The user of another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct User {
    number: u32,
    /// The number is nobody else's.
    certain: bool,
}

impl User {
    /// Whether it is certainly the user of this number.
    pub(crate) fn is(self, number: u32) -> bool {
        self.certain && self.number == number
    }

    /// Whether it is certainly the effective user of this process.
    pub(crate) fn is_own(self) -> bool {
        self.is(rustix::process::geteuid().as_raw())
    }

    /// What it looks like.
    pub(crate) fn number(self) -> u32 {
        self.number
    }

    #[cfg(test)]
    pub(crate) fn known(number: u32) -> Self {
        Self { number, certain: true }
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Party {
    /// As this process numbers it; 0 if it does not see it.
    pub(crate) pid: u32,
    pub(crate) user: User,
    /// None if the number may stand for several.
    group: Option<u32>,
}

impl Party {
    /// Who is at the other end of `connection`.
    pub(crate) fn at(connection: impl AsFd, shared: Shared) -> SysResult<Self> {
        let peer = socket::peer(&connection)?;
        let unsure = shared.user == Some(peer.uid) || shared.group == Some(peer.gid);
        let certain = !unsure || is_like_this_process(&connection);
        Ok(Self {
            pid: peer.pid,
            user: User { number: peer.uid, certain: certain || shared.user != Some(peer.uid) },
            group: Some(peer.gid).filter(|group| certain || shared.group != Some(*group)),
        })
    }
}

/// Whether the peer certainly has the users and groups of this process, whatever they look like, and is in its user namespace: the kernel
/// compares them when one looks at another's.
fn is_like_this_process(connection: impl AsFd) -> bool {
    // It lets those with this capability look at others, too.
    const CAP_SYS_PTRACE: u32 = 19;
    if procfs::has_capability(format_args!("thread-self"), CAP_SYS_PTRACE) {
        return false;
    }
    // Without a handle, it could be another process by now.
    let Ok(handle) = socket::peer_handle(connection) else { return false };
    let pid = procfs::number_of(&handle);
    pid.is_some_and(procfs::may_look_at) && procfs::number_of(&handle) == pid
}

/// Real user and group of this process when it first used the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Creator {
    uid: u32,
    gid: u32,
    pub(crate) shared: Shared,
}

impl Creator {
    pub(crate) fn of_this_process() -> Self {
        Self {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            shared: Shared::of_this_process(),
        }
    }

    /// Whether the peer at `connection` may have `access` to a segment of this mode.
    ///
    /// The class is exclusive: an owner whom the owner bits refuse is not asked again as group or other.
    pub(crate) fn allows(&self, mode: u32, party: &Party, connection: impl AsFd, access: Access) -> bool {
        let in_group =
            || self.shared.group != Some(self.gid) && socket::peer_has_group(&connection, self.gid);
        let shift = if party.user.is(self.uid) {
            6
        } else if party.group == Some(self.gid) || in_group() {
            3
        } else {
            0
        };
        let wanted = match access {
            Access::ReadOnly => 0o4,
            Access::ReadWrite => 0o6,
        };
        (mode >> shift) & wanted == wanted || self.must_yield_to(party, &connection)
    }

    /// Whether the peer is user 0 here, and has `CAP_IPC_OWNER` in a user namespace that has this process's user and group: the kernel's
    /// own rule for files. A namespace that somebody has made for itself has nobody else in it.
    fn must_yield_to(&self, party: &Party, connection: impl AsFd) -> bool {
        const CAP_IPC_OWNER: u32 = 15;
        if !party.user.is(0) {
            return false;
        }
        let yields = |pid: u32| {
            procfs::has_capability(format_args!("{pid}"), CAP_IPC_OWNER)
                && extends_to(pid, Kind::User, self.uid)
                && extends_to(pid, Kind::Group, self.gid)
        };
        match socket::peer_handle(connection) {
            Ok(handle) => {
                let pid = procfs::number_of(&handle);
                // It was that process all the time if it still is.
                pid.is_some_and(yields) && procfs::number_of(&handle) == pid
            }
            Err(Errno::NOPROTOOPT) => {
                let mut buffer = [0; 4096];
                let status = procfs::read_small(c"/proc/thread-self/status", &mut buffer);
                party.pid != 0 && status.is_ok_and(procfs::numbers_as_here) && yields(party.pid)
            }
            Err(_) => false,
        }
    }
}

/// Whether the user namespace of a process has what is `number` here.
fn extends_to(pid: u32, kind: Kind, number: u32) -> bool {
    match IdMap::own(kind) {
        Ok(Some(own)) => IdMap::of(pid, kind).is_ok_and(|theirs| theirs.has(&own, number)),
        Ok(None) => true,
        Err(_) => false,
    }
}
