//! Where processes meet: an engine listens on an abstract Unix socket whose name is in the ids of its segments.

use super::Kind;
use crate::error::{Error, Result, failed};
use crate::id::Endpoint;
use crate::sys::{Errno, socket};
use std::os::fd::OwnedFd;

fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    loop {
        match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
            Err(Errno::INTR) => {}
            drawn => return drawn.map(|_| u64::from_ne_bytes(bytes)).map_err(failed("getrandom")),
        }
    }
}

/// Draws a name for an engine of this process, and listens there.
pub(crate) fn listen(kind: Kind) -> Result<(Endpoint, OwnedFd)> {
    loop {
        let endpoint = Endpoint::from_random(kind, random()?);
        match socket::listen(&endpoint.name()) {
            Ok(fd) => return Ok((endpoint, fd)),
            Err(Errno::ADDRINUSE) => {}
            Err(errno) => return Err(failed("bind of a Unix socket")(errno)),
        }
    }
}

/// Connects to an endpoint.
///
/// # Errors
/// [`Error::NoSuchId`] if nobody has it.
pub(crate) fn connect(endpoint: Endpoint) -> Result<OwnedFd> {
    socket::connect(&endpoint.name()).map_err(|errno| match errno {
        Errno::CONNREFUSED | Errno::NOENT | Errno::CONNRESET => Error::NoSuchId,
        Errno::ACCESS | Errno::PERM => Error::Denied,
        errno => failed("connect")(errno),
    })
}

/// Whether a process with this endpoint lives.
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
