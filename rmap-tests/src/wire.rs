//! The library's sockets without the library: what any program can do with them.

use crate::secret::{Key, Side};
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
    path::Path,
    time::Duration,
};

/// Bits of an id that count; those above are the same for all ids of the process that made it.
const COUNTER_BITS: u32 = 27;

/// First words of the messages by which two processes meet.
const VERSION: u32 = 0x726d_0004;
const HELLO: u32 = 16;
const PROOF: u32 = 17;
/// Bytes of a message.
const SIZE: usize = 64;
/// No peer takes this long to prove something.
const PATIENCE: Duration = Duration::from_secs(30);

fn key(id: i64) -> Key {
    Key::of(id.cast_unsigned() >> COUNTER_BITS)
}

/// The name of the socket behind an id of the clone engine, or of the mirror engine.
pub fn socket_name(id: i64) -> String {
    const MIRRORS: i64 = 1 << 61;
    let letter = if id & MIRRORS == 0 { b'c' } else { b'm' };
    String::from_utf8(key(id).name(letter).to_vec()).expect("a name")
}

fn address(name: &str) -> UnixAddr {
    UnixAddr::new_abstract(name.as_bytes()).expect("a short name")
}

fn message(kind: u32, numbers: &[u64]) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    bytes[..4].copy_from_slice(&VERSION.to_ne_bytes());
    bytes[4..8].copy_from_slice(&kind.to_ne_bytes());
    for (place, number) in bytes[8..].chunks_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_ne_bytes());
    }
    bytes
}

/// The numbers in a message of this kind.
fn numbers(bytes: &[u8], kind: u32) -> Option<[u64; 2]> {
    let [number, proof] = [8, 16].map(|at| bytes.get(at..at + 8).and_then(|word| word.try_into().ok()));
    (bytes.len() == SIZE && bytes[..8] == message(kind, &[])[..8])
        .then_some([u64::from_ne_bytes(number?), u64::from_ne_bytes(proof?)])
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
    /// Connects to the process that made a segment, and shows that it knows the id. Waits while its queue is full.
    ///
    /// # Errors
    ///
    /// `ECONNREFUSED` if there is no such process, `EPIPE` if it hangs up.
    pub fn to(segid: i64) -> Result<Self, Errno> {
        let wire = Self::to_name(&socket_name(segid))?;
        let number = u64::from(std::process::id());
        wire.say_hello(segid, number)?;
        let proof = wire.hear_proof()?;
        assert_eq!(proof, Some(key(segid).proof(Side::Exporter, number)), "a proof");
        Ok(wire)
    }

    /// Connects to whoever listens under a name, and says nothing.
    ///
    /// # Errors
    ///
    /// `ECONNREFUSED` if nobody does.
    pub fn to_name(name: &str) -> Result<Self, Errno> {
        let socket = seqpacket(SockFlag::empty());
        connect(socket.as_raw_fd(), &address(name))?;
        Ok(Self(socket))
    }

    /// Says that it knows this id.
    ///
    /// # Errors
    ///
    /// `EPIPE` if the other side has hung up.
    pub fn say_hello(&self, id: i64, number: u64) -> Result<(), Errno> {
        self.send(&message(HELLO, &[number, key(id).proof(Side::Importer, number)]), &[])
    }

    /// What the other side says as a proof. `None` if it hangs up.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if it says nothing.
    pub fn hear_proof(&self) -> Result<Option<u64>, Errno> {
        let parcel = self.receive(PATIENCE)?;
        Ok(parcel.map(|parcel| numbers(&parcel.bytes, PROOF).expect("a proof")[0]))
    }

    /// Says something as a proof.
    ///
    /// # Errors
    ///
    /// `EPIPE` if the other side has hung up.
    pub fn say_proof(&self, proof: u64) -> Result<(), Errno> {
        self.send(&message(PROOF, &[proof]), &[])
    }

    /// The number that an importer has drawn, and its proof. `None` if it hangs up.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if it says nothing.
    pub fn hear_hello(&self) -> Result<Option<[u64; 2]>, Errno> {
        let parcel = self.receive(PATIENCE)?;
        Ok(parcel.map(|parcel| numbers(&parcel.bytes, HELLO).expect("a greeting")))
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
    /// The first of the ids behind it.
    id: i64,
}

impl Door {
    /// Listens where who has an id of a process looks for it.
    ///
    /// # Errors
    ///
    /// `EADDRINUSE` if that process lives.
    pub fn named_like(id: i64) -> Result<Self, Errno> {
        Self::bound(&address(&socket_name(id)), id)
    }

    /// Listens at a path.
    ///
    /// # Panics
    ///
    /// If it is too long, or taken.
    pub fn at(path: &Path, id: i64) -> Self {
        Self::bound(&UnixAddr::new(path).expect("a short path"), id).expect("a free path")
    }

    fn bound(address: &UnixAddr, id: i64) -> Result<Self, Errno> {
        let socket = seqpacket(SockFlag::empty());
        bind(socket.as_raw_fd(), address)?;
        listen(&socket, Backlog::new(100)?)?;
        Ok(Self { socket, id })
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
        self.id >> COUNTER_BITS << COUNTER_BITS | i64::from(counter)
    }

    /// Lets in who comes, waiting so long at most, and shows to it that this is who made the id.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if nobody does.
    ///
    /// # Panics
    ///
    /// If somebody comes who does not know the id.
    pub fn open(&self, limit: Duration) -> Result<Wire, Errno> {
        let wire = self.open_silently(limit)?;
        if let Some([number, proof]) = wire.hear_hello()? {
            assert_eq!(proof, key(self.id).proof(Side::Importer, number), "a proof");
            let _ = wire.say_proof(key(self.id).proof(Side::Exporter, number));
        }
        Ok(wire)
    }

    /// Lets in who comes, waiting so long at most.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if nobody does.
    pub fn open_silently(&self, limit: Duration) -> Result<Wire, Errno> {
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
