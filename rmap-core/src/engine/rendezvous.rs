//! Where processes meet: an engine listens on an abstract Unix socket, and on one in a directory if there is one for that. Who has an id of
//! its segments can tell the sockets' name.

use super::Kind;
use super::directory::Directory;
use super::secret::{Key, NAME_LEN};
use crate::error::{Error, Result, failed};
use crate::id::Endpoint;
use crate::log::log;
use crate::sys::{Errno, SysResult, socket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The name of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name([u8; NAME_LEN]);

impl Name {
    fn of(kind: Kind, key: Key) -> Self {
        Self(key.name(if kind == Kind::Mirror { b'm' } else { b'c' }))
    }

    /// The name in this text, if it is one.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let name = Self(text.try_into().ok()?);
        let [start @ .., b'-'] = text.first_chunk::<7>()? else { return None };
        let hex = |digit: &u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(digit);
        (matches!(start, b"rmap-c" | b"rmap-m") && text[7..].iter().all(hex)).then_some(name)
    }

    /// The engine that listens there.
    pub(crate) fn kind(self) -> Kind {
        if self.0[5] == b'm' { Kind::Mirror } else { Kind::Clone }
    }

    /// Whether it is one of the names, a sixteenth of all, that a number stands for.
    pub(crate) fn is_chosen(self, choice: u64) -> bool {
        self.0[NAME_LEN - 1] == b"0123456789abcdef"[(choice & 15) as usize]
    }

    /// Connects; waits for room if that is said. What is in the directory comes first: nobody can take it from there.
    fn connect(self, wait: bool) -> SysResult<OwnedFd> {
        if let Some(directory) = Directory::open() {
            match directory.connect(&self, wait) {
                Err(Errno::NOENT | Errno::CONNREFUSED) => {}
                connected => return connected,
            }
        }
        if wait { socket::connect(&self.0) } else { socket::connect_at_once(&self.0) }
    }

    /// Connects, without waiting.
    pub(crate) fn connect_at_once(self) -> SysResult<OwnedFd> {
        self.connect(false)
    }
}

/// Where an engine listens.
#[derive(Debug)]
pub(crate) struct Doors {
    /// For who is in the same network namespace.
    pub(crate) by_name: OwnedFd,
    /// For who has the directory.
    in_directory: Option<OwnedFd>,
}

/// How many there may be.
pub(crate) const DOORS: u64 = 2;

impl Doors {
    /// The socket of a door, if there is one.
    pub(crate) fn listener(&self, door: u64) -> Option<BorrowedFd<'_>> {
        self.listeners().find_map(|(number, listener)| (number == door).then_some(listener))
    }

    /// The sockets that somebody may knock at, and their numbers.
    pub(crate) fn listeners(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>)> {
        let all = [Some(&self.by_name), self.in_directory.as_ref()];
        (0..DOORS).zip(all).filter_map(|(number, listener)| Some((number, listener?.as_fd())))
    }
}

impl core::fmt::Display for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(core::str::from_utf8(&self.0).unwrap_or_default())
    }
}

/// A number that nobody can foretell.
pub(crate) fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    loop {
        match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
            Err(Errno::INTR) => {}
            drawn => return drawn.map(|_| u64::from_ne_bytes(bytes)).map_err(failed("getrandom")),
        }
    }
}

/// Draws what the ids of an engine of this process have in common, and listens there.
pub(crate) fn listen(kind: Kind) -> Result<(Endpoint, Key, Doors)> {
    let directory = Directory::open();
    if let Some(directory) = &directory {
        directory.sweep(random()?);
    }
    loop {
        let endpoint = Endpoint::from_random(kind, random()?);
        let key = Key::of(endpoint.to_raw());
        let name = Name::of(kind, key);
        let by_name = match socket::listen(&name.0) {
            Ok(fd) => fd,
            Err(Errno::ADDRINUSE) => continue,
            Err(errno) => return Err(failed("bind of a Unix socket")(errno)),
        };
        let in_directory = match directory.as_ref().map(|directory| directory.listen(&name)).transpose() {
            Ok(fd) => fd,
            Err(Errno::ADDRINUSE) => continue,
            Err(errno) => {
                log!(Error, "no socket can be made in the directory of RMAP_RENDEZVOUS: {errno}");
                None
            }
        };
        return Ok((endpoint, key, Doors { by_name, in_directory }));
    }
}

/// Connects to whoever listens under the name that an endpoint has. That it is who made the id is still to be proven.
///
/// # Errors
/// [`Error::NoSuchId`] if nobody has it.
pub(crate) fn connect(endpoint: Endpoint) -> Result<(Key, OwnedFd)> {
    let key = Key::of(endpoint.to_raw());
    let connected = Name::of(endpoint.kind(), key).connect(true);
    connected.map(|socket| (key, socket)).map_err(|errno| match errno {
        Errno::CONNREFUSED | Errno::NOENT | Errno::CONNRESET => Error::NoSuchId,
        Errno::ACCESS | Errno::PERM => Error::Denied,
        errno => failed("connect")(errno),
    })
}

/// Connects again, without waiting.
pub(crate) fn connect_at_once(kind: Kind, key: Key) -> SysResult<OwnedFd> {
    Name::of(kind, key).connect_at_once()
}

/// Whether somebody listens under the name of this endpoint.
pub(crate) fn is_alive(endpoint: Endpoint) -> bool {
    connect(endpoint).is_ok()
}

/// The error behind an errno that an exporter has sent.
pub(crate) fn refusal(errno: u32) -> Error {
    match errno.cast_signed() {
        libc::EACCES => Error::Denied,
        libc::EBUSY => Error::OutOfIds,
        libc::ENOENT => Error::NoSuchId,
        libc::EINVAL => Error::Invalid("refused by the exporter"),
        errno if (1..4096).contains(&errno) => {
            Error::OutOfResources { call: "the exporter", errno: Errno::from_raw_os_error(errno) }
        }
        _ => Error::NoSuchId,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_others() {
        for kind in [Kind::Clone, Kind::Mirror] {
            let name = Name::of(kind, Key::of(7));
            assert_eq!(Name::parse(name.to_string().as_bytes()), Some(name));
            assert_eq!(name.kind(), kind);
        }
        for other in [
            "",
            "rmap-c-",
            "rmap-c-0123456789abcde",
            "rmap-c-0123456789abcdef0",
            "rmap-x-0123456789abcdef",
            "rmap-c_0123456789abcdef",
            "rmap-c-0123456789abcdeF",
            "rmap-report-1234-000000",
        ] {
            assert_eq!(Name::parse(other.as_bytes()), None, "{other}");
        }
    }
}
