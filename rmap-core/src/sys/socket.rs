//! Unix sockets of whole messages with descriptors.

use super::features::Feature;
use super::{Errno, SysResult};
use core::mem::MaybeUninit;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Who is at the other end: as the kernel saw it when the connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) pid: u32,
    /// Effective user and group.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// An abstract name; or a path, if it begins like one.
fn address(name: &[u8]) -> SysResult<SocketAddrUnix> {
    if name.starts_with(b"/") { SocketAddrUnix::new(name) } else { SocketAddrUnix::new_abstract_name(name) }
}

/// Listens under an abstract name.
///
/// # Errors
/// `EADDRINUSE` if the name is taken.
pub(crate) fn listen(name: &[u8]) -> SysResult<OwnedFd> {
    listen_with(name, |fd| {
        // Nothing can be done about it before Linux 6.16.
        let _ = refuse_descriptors(fd);
        Ok(())
    })
}

/// Listens at a path. Its file has no mode: nobody can connect before it is given one.
///
/// # Errors
/// `EADDRINUSE` if the path is taken.
pub(crate) fn listen_without_mode(path: &[u8]) -> SysResult<OwnedFd> {
    listen_with(path, |fd| {
        let _ = refuse_descriptors(fd);
        rustix::fs::fchmod(fd, rustix::fs::Mode::empty())
    })
}

/// Listens under an abstract name, for those who send descriptors.
///
/// # Errors
/// `EADDRINUSE` if the name is taken.
pub(crate) fn listen_for_descriptors(name: &[u8]) -> SysResult<OwnedFd> {
    listen_with(name, |_| Ok(()))
}

fn listen_with(name: &[u8], prepare: impl FnOnce(&OwnedFd) -> SysResult<()>) -> SysResult<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    prepare(&fd)?;
    rustix::net::bind(&fd, &address(name)?)?;
    rustix::net::listen(&fd, 4096)?;
    Ok(fd)
}

/// Has the kernel refuse messages with descriptors, for connections that `listener` accepts as well: closing what somebody has sent may
/// take for ever. (`SO_PASSRIGHTS`, Linux 6.16.)
fn refuse_descriptors(listener: &OwnedFd) -> SysResult<()> {
    Feature::PassRights.check()?;
    const SO_PASSRIGHTS: usize = 83;
    let off = 0i32;
    let args = [
        listener.as_raw_fd() as usize,
        libc::SOL_SOCKET as usize,
        SO_PASSRIGHTS,
        core::ptr::from_ref(&off).expose_provenance(),
        size_of_val(&off),
        0,
    ];
    // SAFETY: the value lives through the call, which only reads it.
    unsafe { super::raw::syscall(libc::SYS_setsockopt, args) }.map(drop)
}

/// Connects to an abstract name. Waits, killably, while the listener's queue is full.
///
/// # Errors
/// `ECONNREFUSED` if nobody listens.
pub(crate) fn connect(name: &[u8]) -> SysResult<OwnedFd> {
    let fd =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let address = address(name)?;
    loop {
        match rustix::net::connect(&fd, &address) {
            Ok(()) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

/// Connects to an abstract name, without waiting.
///
/// # Errors
/// `ECONNREFUSED` if nobody listens, `EAGAIN` while the listener's queue is full.
pub(crate) fn connect_at_once(name: &[u8]) -> SysResult<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&fd, &address(name)?)?;
    Ok(fd)
}

/// Takes the next connection, if there is one.
pub(crate) fn accept(listener: impl AsFd) -> SysResult<Option<OwnedFd>> {
    match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn option(fd: impl AsFd, name: i32, into: usize, len: &mut u32) -> SysResult<()> {
    let args = [
        fd.as_fd().as_raw_fd() as usize,
        libc::SOL_SOCKET as usize,
        name as usize,
        into,
        core::ptr::from_mut(len).expose_provenance(),
        0,
    ];
    // SAFETY: all callers pass a live buffer of `len` bytes.
    unsafe { super::raw::syscall(libc::SYS_getsockopt, args) }.map(drop)
}

/// Who connected to, or listens at, the other end. The process id is 0 where the peer's is not visible here.
pub(crate) fn peer(fd: impl AsFd) -> SysResult<Peer> {
    let mut credentials = [0u32; 3];
    let mut len = size_of_val(&credentials) as u32;
    option(fd, libc::SO_PEERCRED, credentials.as_mut_ptr().expose_provenance(), &mut len)?;
    let [pid, uid, gid] = credentials;
    Ok(Peer { pid, uid, gid })
}

/// A handle (a pidfd) of the process that connected, or listens: its number may have become another's (`SO_PEERPIDFD`, Linux 6.5).
pub(crate) fn peer_handle(fd: impl AsFd) -> SysResult<OwnedFd> {
    Feature::PeerHandle.check()?;
    const SO_PEERPIDFD: i32 = 77;
    let mut handle = -1i32;
    let mut len = size_of_val(&handle) as u32;
    option(fd, SO_PEERPIDFD, core::ptr::from_mut(&mut handle).expose_provenance(), &mut len)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(handle) })
}

/// Whether the kernel gives handles of peers.
pub(crate) fn tells_handles() -> SysResult<()> {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let (one, _other) = rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)?;
    peer_handle(one).map(drop)
}

const SO_PEERGROUPS: i32 = 59;

/// Whether the kernel tells the supplementary groups of a peer.
pub(crate) fn tells_groups() -> SysResult<()> {
    Feature::PeerGroups.check()?;
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let (one, _other) = rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)?;
    let mut len = 0;
    match option(one, SO_PEERGROUPS, 0, &mut len) {
        // There are some.
        Ok(()) | Err(Errno::RANGE) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Whether the kernel refuses descriptors for us.
pub(crate) fn can_refuse_descriptors() -> SysResult<()> {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    refuse_descriptors(&rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?)
}

/// Whether `group` is among the supplementary groups of the peer (`SO_PEERGROUPS`, Linux 4.13).
pub(crate) fn peer_has_group(fd: impl AsFd, group: u32) -> bool {
    // NGROUPS_MAX is 65536; the kernel says ERANGE for more than fit here, which counts as no.
    let mut groups = [0u32; 1024];
    let mut len = size_of_val(&groups) as u32;
    let result = Feature::PeerGroups
        .check()
        .and_then(|()| option(fd, SO_PEERGROUPS, groups.as_mut_ptr().expose_provenance(), &mut len));
    result.is_ok() && groups[..(len as usize / 4).min(groups.len())].contains(&group)
}

/// Sends one message, with a descriptor if given, without waiting.
///
/// # Errors
/// `EAGAIN` if the peer does not read, `EPIPE` or `ECONNRESET` if it is gone.
pub(crate) fn send(fd: impl AsFd, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> SysResult<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.map(|fd| [fd]);
    if let Some(descriptors) = &descriptors {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    loop {
        match rustix::net::sendmsg(&fd, &[IoSlice::new(bytes)], &mut ancillary, flags) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// The length of all messages together that can be received now.
pub(crate) fn bytes_received(fd: impl AsFd) -> SysResult<usize> {
    rustix::io::ioctl_fionread(fd).map(|bytes| bytes as usize)
}

/// Receives one message of at most `buffer.len()` bytes, with its descriptor, without waiting. Further descriptors
/// are closed.
///
/// Returns the length of the message, 0 at the end of the connection.
pub(crate) fn receive(fd: impl AsFd, buffer: &mut [u8]) -> SysResult<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = loop {
        match rustix::net::recvmsg(&fd, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags) {
            Ok(received) => break received,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    };
    let mut descriptor = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            for fd in descriptors {
                descriptor.get_or_insert(fd);
            }
        }
    }
    Ok((received.bytes, descriptor))
}
