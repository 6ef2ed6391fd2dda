//! Where processes meet: an engine listens on an abstract Unix socket, and who has an id of its segments can tell the socket's name.

use super::Kind;
use super::secret::{Key, NAME_LEN};
use crate::error::{Error, Result, failed};
use crate::id::Endpoint;
use crate::sys::{Errno, SysResult, socket};
use std::os::fd::OwnedFd;

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

    /// Connects, without waiting.
    pub(crate) fn connect_at_once(self) -> SysResult<OwnedFd> {
        socket::connect_at_once(&self.0)
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
pub(crate) fn listen(kind: Kind) -> Result<(Endpoint, Key, OwnedFd)> {
    loop {
        let endpoint = Endpoint::from_random(kind, random()?);
        let key = Key::of(endpoint.to_raw());
        match socket::listen(&Name::of(kind, key).0) {
            Ok(fd) => return Ok((endpoint, key, fd)),
            Err(Errno::ADDRINUSE) => {}
            Err(errno) => return Err(failed("bind of a Unix socket")(errno)),
        }
    }
}

/// Connects to whoever listens under the name that an endpoint has. That it is who made the id is still to be proven.
///
/// # Errors
/// [`Error::NoSuchId`] if nobody has it.
pub(crate) fn connect(endpoint: Endpoint) -> Result<(Key, OwnedFd)> {
    let key = Key::of(endpoint.to_raw());
    let connected = socket::connect(&Name::of(endpoint.kind(), key).0);
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
