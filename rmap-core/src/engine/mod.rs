//! Engines: implementations of the remote-mapping interface.
//!
//! The interface is: offer a range of this process to others; open an offered range of another process under its rules; map parts of it,
//! such that the mapping shows what is at those addresses there, now and as it changes. What an engine does to keep the
//! mapping true is its own business.
//!
//! | engine | how | needs |
//! |---|---|---|
//! | [`clone`] | the exporter's pages move into a memfd, which importers map | nothing |
//! | [`mirror`] | the kernel shows the exporter's pages, whatever they are | `/dev/rmap` |
//! | [`driver`] | XPMEM's own driver is asked | `/dev/xpmem` |
//!
//! The driver has ids and rights of its own, so it is no [`Engine`]: whole calls go to it. The other two meet at sockets
//! ([`rendezvous`]), speak one [`protocol`] and have one idea of [`rights`].

pub(crate) mod clone;
pub(crate) mod directory;
pub(crate) mod driver;
pub(crate) mod mirror;
mod protocol;
pub(crate) mod rendezvous;
pub(crate) mod rights;
pub(crate) mod secret;
mod siphash;

use crate::counters::alone::Party;
use crate::error::Result;
use crate::id::{Endpoint, Id};
use crate::range::Range;

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Clone,
    Mirror,
    Driver,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Clone => "clone",
            Self::Mirror => "mirror",
            Self::Driver => "driver",
        }
    }

    /// How it shares memory.
    pub(crate) fn how(self) -> &'static str {
        match self {
            Self::Clone => "memory moves into files that others map; on any kernel",
            Self::Mirror => "the kernel mirrors the memory; with rmap's module",
            Self::Driver => "XPMEM's own driver",
        }
    }
}

impl core::fmt::Display for Kind {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a permit allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Loads only.
    ReadOnly,
    /// Loads, stores and atomics.
    ReadWrite,
}

/// An opened range of another process, or of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    /// The engine's name for it.
    pub(crate) grant: u32,
    /// The exporter's addresses.
    pub(crate) range: Range,
    /// Who that is, to be counted where the engine does not itself.
    pub(crate) exporter: Party,
}

/// The remote-mapping interface.
pub(crate) trait Engine: Send + Sync {
    /// Names this process, as the ids of its segments do.
    fn endpoint(&self) -> Endpoint;

    /// Offers a range; returns the counter of its id.
    fn offer(&self, range: Range, mode: u32) -> Result<u32>;

    /// Ends an offer: mappings of it show nothing when this returns.
    fn withdraw(&self, counter: u32) -> Result<()>;

    /// Opens an offered range.
    fn open(&self, segment: Id, access: Access) -> Result<Opened>;

    /// Whether an opened range can still be mapped.
    ///
    /// # Errors
    /// [`Error::NoSuchId`](crate::Error::NoSuchId) if the offer has ended or the exporter is gone.
    fn check(&self, grant: u32) -> Result<()>;

    /// Closes an opened range and removes its mappings.
    fn close(&self, grant: u32);

    /// What [`Self::map`] would give for `len` bytes at this offset of what this permit opened, if that needs nothing to be done and the range
    /// is certain to be there; it is counted as a mapping.
    fn map_known(&self, permit: Id, offset: u64, len: usize) -> Option<usize> {
        let _ = (permit, offset, len);
        None
    }

    /// Undoes one mapping at `addr` if that needs nothing to be done; true if it did.
    fn unmap_known(&self, addr: usize) -> bool {
        let _ = addr;
        false
    }

    /// Maps part of an opened range: where the engine likes, or over `place`. The same part may be at the same address every time.
    fn map(&self, grant: u32, remote: Range, place: Option<usize>) -> Result<usize>;

    /// Gives up the mapping that covers `addr`; false if there is none. The last one may stay mapped for a while.
    fn unmap(&self, addr: usize) -> Result<bool>;

    /// Brings the counters up to date that say how it is now.
    fn survey(&self) {}

    /// Makes the next `fork` give the child a copy of this process's memory.
    fn before_fork(&'static self);

    /// The fork is over, in the parent.
    fn after_fork_in_parent(&self);

    /// The fork is over, in the child: gives up what belongs to the parent.
    fn after_fork_in_child(&self);
}
