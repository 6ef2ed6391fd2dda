//! The mirror engine, for kernels with the module of `kernel/`: the kernel shows importers the exporter's pages, whatever they are, and
//! takes them away before they change.
//!
//! ```text
//! exporter                                        importer
//!   /dev/rmap: one space for each segment           connects, asks for a permit
//!   one thread answers requests for permits  -----> an access descriptor of the space
//!                                                   mmap: the kernel keeps it true
//! ```
//!
//! Nothing is adopted, trapped or followed here, and no thread of anybody's waits for the library once it has a permit. The thread that answers
//! may use memory and locks as any other: nothing in the kernel waits for it.

mod exporter;
mod importer;

pub(crate) use exporter::probe;

use super::{Access, Engine, Opened};
use crate::config::Config;
use crate::error::Result;
use crate::id::{Endpoint, Id};
use crate::range::Range;
use exporter::Exporter;
use importer::Importer;

/// The engine of this process.
#[derive(Debug)]
pub(crate) struct MirrorEngine {
    exporter: &'static Exporter,
    importer: Importer,
}

impl MirrorEngine {
    /// Starts the engine for this process. Importing takes no device: what exporters hand out is enough.
    ///
    /// # Errors
    /// [`Error::OutOfResources`](crate::Error::OutOfResources).
    pub(crate) fn start(config: Config) -> Result<Self> {
        Ok(Self { exporter: Exporter::start()?, importer: Importer::new(config) })
    }
}

impl Engine for MirrorEngine {
    fn endpoint(&self) -> Endpoint {
        self.exporter.endpoint()
    }

    fn offer(&self, range: Range, mode: u32) -> Result<u32> {
        self.exporter.offer(range, mode)
    }

    fn withdraw(&self, counter: u32) -> Result<()> {
        self.exporter.withdraw(counter)
    }

    fn open(&self, segment: Id, access: Access) -> Result<Opened> {
        self.importer.open(segment, access)
    }

    fn check(&self, grant: u32) -> Result<()> {
        self.importer.check(grant)
    }

    fn close(&self, grant: u32) {
        self.importer.close(grant);
    }

    fn map(&self, grant: u32, remote: Range, place: Option<usize>) -> Result<usize> {
        self.importer.map(grant, remote, place)
    }

    fn unmap(&self, addr: usize) -> Result<bool> {
        self.importer.unmap(addr)
    }

    fn before_fork(&'static self) {
        self.exporter.before_fork();
        self.importer.before_fork();
    }

    fn after_fork_in_parent(&self) {
        self.importer.after_fork_in_parent();
        self.exporter.after_fork_in_parent();
    }

    fn after_fork_in_child(&self) {
        self.importer.after_fork_in_child();
        self.exporter.after_fork_in_child();
    }
}
