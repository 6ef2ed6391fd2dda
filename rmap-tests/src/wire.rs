//! The library's sockets without the library: what any program can do with them.

use nix::{
    cmsg_space,
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{
            AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
            UnixAddr, accept4, bind, connect, listen, recvmsg, sendmsg, setsockopt, socket,
            sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike as _},
    },
};
use std::{
    io::{IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    time::Duration,
};

/// Bits of an id that count; those above name the socket of the process that made it.
const COUNTER_BITS: u32 = 27;

fn address(endpoint: u64) -> UnixAddr {
    UnixAddr::new_abstract(format!("rmap-{endpoint:09x}").as_bytes()).expect("a short name")
}

fn seqpacket(flags: SockFlag) -> OwnedFd {
    socket(AddressFamily::Unix, SockType::SeqPacket, flags | SockFlag::SOCK_CLOEXEC, None).expect("a socket")
}

/// The number that an id has among those of its process.
pub fn counter(id: i64) -> u32 {
    (id & ((1 << COUNTER_BITS) - 1)) as u32
}

/// What came over a wire.
#[derive(Debug)]
pub struct Parcel {
    /// The message.
    pub bytes: Vec<u8>,
    /// What came with it.
    pub descriptors: Vec<OwnedFd>,
}

/// A connection.
#[derive(Debug)]
pub struct Wire(OwnedFd);

impl Wire {
    /// Connects to the process that made a segment. Waits while its queue is full.
    ///
    /// # Errors
    ///
    /// `ECONNREFUSED` if there is no such process.
    pub fn to(segid: i64) -> Result<Self, Errno> {
        let socket = seqpacket(SockFlag::empty());
        connect(socket.as_raw_fd(), &address(segid.cast_unsigned() >> COUNTER_BITS))?;
        Ok(Self(socket))
    }

    /// As [`Wire::to`], but does not wait.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if the queue is full.
    pub fn try_to(segid: i64) -> Result<Self, Errno> {
        let socket = seqpacket(SockFlag::SOCK_NONBLOCK);
        connect(socket.as_raw_fd(), &address(segid.cast_unsigned() >> COUNTER_BITS))?;
        Ok(Self(socket))
    }

    /// Sends one message, without waiting.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if the other side does not read, `EPIPE` or `ECONNRESET` if it has hung up.
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let numbers: Vec<RawFd> = descriptors.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let rights = if numbers.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        sendmsg::<UnixAddr>(self.0.as_raw_fd(), &[IoSlice::new(bytes)], rights, flags, None).map(drop)
    }

    /// The next message, waiting so long at most. `None` if the other side has hung up.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if there is none.
    pub fn receive(&self, limit: Duration) -> Result<Option<Parcel>, Errno> {
        // A limit of 0 would be none at all.
        let flags = if limit.is_zero() { MsgFlags::MSG_DONTWAIT } else { MsgFlags::empty() };
        let limit = TimeVal::microseconds(limit.as_micros().max(1) as i64);
        setsockopt(&self.0, ReceiveTimeout, &limit)?;
        let mut bytes = vec![0; 4096];
        let mut space = cmsg_space!([RawFd; 253]);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = loop {
            match recvmsg::<UnixAddr>(self.0.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET | Errno::EPIPE) => return Ok(None),
                other => break other?,
            }
        };
        let mut descriptors = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                // SAFETY: the kernel has just made these descriptors for this process.
                descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
            }
        }
        let len = message.bytes;
        bytes.truncate(len);
        Ok((len > 0).then_some(Parcel { bytes, descriptors }))
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A socket that others take for a process with segments.
#[derive(Debug)]
pub struct Door {
    socket: OwnedFd,
    endpoint: u64,
}

impl Door {
    /// Listens under the name that all ids of one process have.
    ///
    /// # Errors
    ///
    /// `EADDRINUSE` if that process lives.
    pub fn named_like(id: i64) -> Result<Self, Errno> {
        let endpoint = id.cast_unsigned() >> COUNTER_BITS;
        let socket = seqpacket(SockFlag::empty());
        bind(socket.as_raw_fd(), &address(endpoint))?;
        listen(&socket, Backlog::new(100)?)?;
        Ok(Self { socket, endpoint })
    }

    /// Listens under a name that depends on the number of this process and on `salt`.
    ///
    /// # Panics
    ///
    /// If somebody else has it.
    pub fn new(salt: u8) -> Self {
        // The highest bit says that the id is not one of XPMEM's driver, the next would be the mirror engine's.
        let endpoint = 1 << 35 | u64::from(std::process::id()) << 8 | u64::from(salt);
        Self::named_like((endpoint << COUNTER_BITS | 1).cast_signed()).expect("a name of its own")
    }

    /// The id of a segment behind this door.
    pub fn id(&self, counter: u32) -> i64 {
        (self.endpoint << COUNTER_BITS | u64::from(counter)).cast_signed()
    }

    /// Lets in who comes, waiting so long at most.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if nobody does.
    pub fn open(&self, limit: Duration) -> Result<Wire, Errno> {
        let mut entries = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit).map_err(|_| Errno::EINVAL)?;
        if poll(&mut entries, limit)? == 0 {
            return Err(Errno::EAGAIN);
        }
        let number = accept4(self.socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: a new descriptor.
        Ok(Wire(unsafe { OwnedFd::from_raw_fd(number) }))
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
