//! Telling somebody who has asked to be told that this process uses the library: what `rmap doctor` does for a job.
//!
//! `RMAP_REPORT` names a socket. A process says there that it has called the library, and gives the descriptor of its counters away when an engine
//! starts. That outlives the process, so nobody has to look at it while it runs, and nothing is lost when it is killed.

use crate::counters::{Sheet, sheet};
use crate::engine::rights::{Party, Shared};
use crate::error::{Error, Result, failed};
use crate::log::log;
use crate::sys::socket;
use crate::sys::{Errno, Said};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

/// The variable of the environment.
pub const VARIABLE: &str = "RMAP_REPORT";

const SERVED: &[u8] = b"rmap 1 served by ";
const NOT_SERVED: &[u8] = b"rmap 1 not served: ";
const STARTED: &[u8] = b"rmap 1 started";
/// Bytes of the longest message.
const LONGEST: usize = 512;

fn say(what: &[u8], detail: &str, descriptor: Option<BorrowedFd<'_>>) {
    let Some(name) = std::env::var_os(VARIABLE).filter(|name| !name.is_empty()) else { return };
    let mut message = what.to_vec();
    message.extend(detail.as_bytes());
    message.truncate(LONGEST);
    let said = socket::connect_at_once(name.as_bytes())
        .and_then(|socket| socket::send(&socket, &message, descriptor));
    if let Err(errno) = said {
        log!(Warn, "{VARIABLE}: {errno}", errno = Said(errno));
    }
}

/// The library was called for the first time: by which engine this process is served, or why it is not.
pub(crate) fn called(outcome: core::result::Result<&'static str, Error>) {
    match outcome {
        Ok(engine) => say(SERVED, engine, None),
        Err(error) => say(NOT_SERVED, &error.to_string(), None),
    }
}

/// An engine has started: from now on there is something to count.
pub(crate) fn started() {
    if std::env::var_os(VARIABLE).is_none() {
        return;
    }
    match sheet::to_be_read() {
        Ok(counters) => say(STARTED, "", Some(counters.as_fd())),
        Err(errno) => log!(Warn, "{VARIABLE}: {errno}", errno = Said(errno)),
    }
}

/// What a process has said.
#[derive(Debug)]
pub enum News {
    /// It has called the library, and is served by this engine once it shares memory.
    Served(String),
    /// It has called the library, and cannot be served for this reason.
    NotServed(String),
    /// It shares memory; what it counts is in this file, also when it has ended.
    Started(Counting),
}

/// The counters of a process.
#[derive(Debug)]
pub struct Counting(OwnedFd);

impl Counting {
    /// How they are now.
    ///
    /// # Errors
    /// As [`Sheet::read`].
    pub fn read(&self, rows: usize) -> Result<Sheet> {
        Sheet::read(&self.0, rows)
    }
}

/// A process that has said something.
#[derive(Debug)]
pub struct Report {
    /// Its id here; 0 if it is in a pid namespace that cannot be seen from here.
    pub pid: u32,
    /// What it has said.
    pub news: News,
}

/// Where processes report to.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    name: String,
}

impl Listener {
    /// Listens under a name of its own, in this network namespace.
    ///
    /// # Errors
    /// [`Error::OutOfResources`].
    pub fn new() -> Result<Self> {
        for number in 0u32.. {
            let name = format!("rmap-report-{}-{number}", std::process::id());
            match socket::listen_for_descriptors(name.as_bytes()) {
                Ok(socket) => return Ok(Self { socket, name }),
                Err(Errno::ADDRINUSE) => {}
                Err(errno) => return Err(failed("bind of a Unix socket")(errno)),
            }
        }
        Err(Error::OutOfIds)
    }

    /// What [`VARIABLE`] must be for those who are to report.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The next process that has something to say, if there is one.
    ///
    /// # Errors
    /// Descriptors have run out.
    pub fn accept(&self) -> Result<Option<Reporter>> {
        let socket = socket::accept(&self.socket).map_err(failed("accept"))?;
        // One that is gone at once has said all the same.
        Ok(socket
            .map(|socket| Reporter { party: Party::at(&socket, Shared::of_this_process()).ok(), socket }))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A connection of a process that has something to say.
#[derive(Debug)]
pub struct Reporter {
    socket: OwnedFd,
    party: Option<Party>,
}

impl Reporter {
    /// What it says: `None` if nothing yet, and nothing at all if it is not understood or of another user.
    #[must_use]
    pub fn hear(&self) -> Option<Option<Report>> {
        let mut bytes = [0; LONGEST + 1];
        match socket::receive(&self.socket, &mut bytes) {
            Err(Errno::AGAIN) => None,
            Err(_) => Some(None),
            Ok((len, descriptor)) => Some(self.understand(&bytes[..len], descriptor)),
        }
    }

    fn understand(&self, message: &[u8], descriptor: Option<OwnedFd>) -> Option<Report> {
        let own = rustix::process::geteuid().as_raw();
        let party = self.party.filter(|party| own == 0 || party.user.is_own())?;
        let text = |rest: &[u8]| {
            let text = String::from_utf8_lossy(rest);
            text.chars().filter(|c| !c.is_control()).collect::<String>()
        };
        let news = if let Some(engine) = message.strip_prefix(SERVED) {
            News::Served(text(engine))
        } else if let Some(why) = message.strip_prefix(NOT_SERVED) {
            News::NotServed(text(why))
        } else if message == STARTED {
            News::Started(Counting(descriptor?))
        } else {
            return None;
        };
        Some(Report { pid: party.pid, news })
    }
}

impl AsFd for Reporter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tell(listener: &Listener, message: &[u8], descriptor: Option<BorrowedFd<'_>>) -> Option<Report> {
        let socket = socket::connect_at_once(listener.name().as_bytes()).unwrap();
        let reporter = listener.accept().unwrap().expect("somebody");
        assert!(reporter.hear().is_none());
        socket::send(&socket, message, descriptor).unwrap();
        drop(socket);
        reporter.hear().expect("a message")
    }

    #[test]
    fn what_is_said_is_heard_and_the_rest_is_not() {
        let listener = Listener::new().unwrap();
        assert!(listener.accept().unwrap().is_none());
        let null = std::fs::File::open("/dev/null").unwrap();
        let report = tell(&listener, b"rmap 1 served by clone", None).unwrap();
        assert_eq!(report.pid, std::process::id());
        assert!(matches!(report.news, News::Served(engine) if engine == "clone"));
        let report = tell(&listener, b"rmap 1 not served: no \x1b[31m", None).unwrap();
        assert!(matches!(report.news, News::NotServed(why) if why == "no [31m"));
        let report = tell(&listener, STARTED, Some(null.as_fd())).unwrap();
        let News::Started(counting) = report.news else { panic!("{report:?}") };
        assert!(counting.read(1).is_err());
        assert!(tell(&listener, STARTED, None).is_none());
        assert!(tell(&listener, b"rmap 2 started", Some(null.as_fd())).is_none());
        assert!(tell(&listener, &[0xff; LONGEST + 100], None).is_none());
        let silent = socket::connect_at_once(listener.name().as_bytes()).unwrap();
        let reporter = listener.accept().unwrap().unwrap();
        drop(silent);
        assert!(matches!(reporter.hear(), Some(None)));
    }
}
