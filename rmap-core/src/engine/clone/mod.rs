//! The clone engine, for stock kernels: the exporter's pages move into a memfd, importers map that, and both follow the exporter's
//! address space.
//!
//! ```text
//! application threads            service thread                      service thread, peer
//!   segment, permit, attachment    exporter: segments, objects  <---  importer: permits, windows
//!        | calls (slots, futex)    importer: permits, windows   --->  exporter
//!        +------------------------> one epoll loop, own memory   Unix sockets, protocol
//! ```

mod atomics;
mod calls;
mod errand;
mod exporter;
mod gate;
mod handed;
mod heritage;
mod importer;

mod service;
mod slots;
mod surveyor;
mod windows;

pub(crate) use service::{probe, probe_stopping};
pub(crate) use surveyor::processes;
pub use surveyor::{Process, Silence};

use super::{Access, Engine, Opened, protocol, rendezvous, rights, secret};
use crate::config::Config;
use crate::counters::alone::Party;
use crate::error::{Error, Result, failed};
use crate::id::{Endpoint, Id};
use crate::range::Range;
use crate::sys::fd::Lent;
use crate::sys::memory::PAGE;
use calls::{Answer, Call};
use core::sync::atomic::{AtomicUsize, Ordering};
use heritage::Heritage;
use service::Running;
use std::hash::{Hash, Hasher};

/// A window shows so much of an exporter, and is made where memory was adopted in so much.
pub(crate) const BLOCK: usize = 1 << 30;

/// The engine of this process.
#[derive(Debug)]
pub(crate) struct CloneEngine {
    service: Running,
    /// The list of what the child of the fork under way takes over; 0 if it takes over nothing.
    heritage: AtomicUsize,
}

fn unexpected() -> Error {
    Error::Invalid("an answer to another call")
}

/// Tells connections made under different users and groups apart: rights are checked against those of the connection.
fn identity() -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    rustix::process::geteuid().as_raw().hash(&mut hasher);
    rustix::process::getegid().as_raw().hash(&mut hasher);
    for group in rustix::process::getgroups().unwrap_or_default() {
        group.as_raw().hash(&mut hasher);
    }
    hasher.finish()
}

impl CloneEngine {
    /// Starts the engine for this process.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the kernel does not offer what it needs.
    pub(crate) fn start(config: Config) -> Result<Self> {
        service::start(config).map(|service| Self { service, heritage: AtomicUsize::new(0) })
    }

    fn done(&self, call: Call) -> Result<()> {
        match self.service.calls.post(call)? {
            Answer::Done => Ok(()),
            _ => Err(unexpected()),
        }
    }
}

impl Engine for CloneEngine {
    fn endpoint(&self) -> Endpoint {
        self.service.endpoint
    }

    fn offer(&self, range: Range, mode: u32) -> Result<u32> {
        match self.service.calls.post(Call::Offer { range, mode })? {
            Answer::Segment(counter) => Ok(counter),
            _ => Err(unexpected()),
        }
    }

    fn withdraw(&self, counter: u32) -> Result<()> {
        self.done(Call::Withdraw { segment: counter })
    }

    fn open(&self, segment: Id, access: Access) -> Result<Opened> {
        let access = match access {
            Access::ReadOnly => protocol::Access::ReadOnly,
            Access::ReadWrite => protocol::Access::ReadWrite,
        };
        let identity = identity();
        let mut answer = self.service.calls.post(Call::Open { segment, access, identity })?;
        if answer == Answer::NeedSocket {
            // The application's thread connects: that may wait, and carries its credentials.
            let (key, fd) = rendezvous::connect(segment.endpoint())?;
            let socket = Lent::by_this_thread(&fd).map_err(failed("fstat"))?;
            // With the question: whoever has connected and asks nothing may be sent away.
            let answered = self.service.calls.post(Call::Connect { segment, key, access, identity, socket });
            socket.end(fd);
            answer = answered?;
        }
        match answer {
            Answer::Granted { grant, range } => Ok(Opened { grant, range, exporter: Party::default() }),
            _ => Err(unexpected()),
        }
    }

    fn check(&self, grant: u32) -> Result<()> {
        self.done(Call::Check { grant })
    }

    fn close(&self, grant: u32) {
        let _ = self.done(Call::Close { grant });
    }

    fn map_known(&self, permit: Id, offset: u64, len: usize) -> Option<usize> {
        if permit.endpoint() != self.service.endpoint || !offset.is_multiple_of(PAGE as u64) {
            return None;
        }
        self.service.windows.attach(permit.counter(), offset as usize, len)
    }

    fn unmap_known(&self, addr: usize) -> bool {
        self.service.windows.detach(addr)
    }

    fn map(&self, grant: u32, remote: Range, place: Option<usize>) -> Result<usize> {
        match self.service.calls.post(Call::Map { grant, remote, place })? {
            Answer::Mapped(base) => Ok(base),
            _ => Err(unexpected()),
        }
    }

    fn unmap(&self, addr: usize) -> Result<bool> {
        match self.done(Call::Unmap { addr }) {
            Err(Error::NoSuchId) => Ok(false),
            done => done.map(|()| true),
        }
    }

    fn survey(&self) {
        let _ = self.done(Call::Survey);
    }

    fn before_fork(&'static self) {
        // If it fails, the log says so.
        if let Ok(Answer::Fork(heritage)) = self.service.calls.post(Call::ForkBegin) {
            self.heritage.store(heritage.addr(), Ordering::Relaxed);
        }
    }

    fn after_fork_in_parent(&self) {
        if let Some(heritage) = Heritage::at(self.heritage.swap(0, Ordering::Relaxed)) {
            heritage.give_up();
        }
        let _ = self.done(Call::ForkEnd);
    }

    fn after_fork_in_child(&self) {
        if let Some(heritage) = Heritage::at(self.heritage.swap(0, Ordering::Relaxed)) {
            heritage.take();
        }
    }
}
