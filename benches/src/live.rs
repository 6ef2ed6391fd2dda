//! Many attachments that stay, so that it shows whether a call depends on how many there are.

use crate::Library;
use rmap_tests::{Actor, PAGE};
use std::io;

/// The pieces lie this far apart in the exporter: a heap's blocks, not one run of pages.
pub const APART: usize = 16 * PAGE;

/// Reserves room for so many pieces in an exporter and gives its address. None of it is touched.
pub fn reserve(exporter: &mut Actor, pieces: usize) -> usize {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    exporter.mmap(0, pieces * APART, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
}

/// Attachments of one page each.
#[derive(Debug)]
pub struct Live {
    library: Library,
    apid: i64,
    heap: usize,
    attached: Vec<usize>,
}

impl Live {
    /// None yet, of the pieces at `heap`.
    pub fn new(library: Library, apid: i64, heap: usize) -> Self {
        Self { library, apid, heap, attached: Vec::new() }
    }

    /// Attaches further pieces until there are so many.
    ///
    /// # Errors
    ///
    /// The errno of the first attach that fails; what is attached by then stays.
    pub fn grow_to(&mut self, count: usize) -> io::Result<()> {
        while self.attached.len() < count {
            let offset = self.heap + self.attached.len() * APART;
            self.attached.push(self.library.attach(self.apid, offset, PAGE)?);
        }
        Ok(())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.attached.len()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        for address in self.attached.drain(..) {
            // A detach that fails leaves the attachment until the process ends, which is soon.
            let _ = self.library.detach(address);
        }
    }
}
