//! `/proc/thread-self/pagemap`: which pages of a range exist (`Documentation/admin-guide/mm/pagemap.rst`).

use super::memory::PAGE;
use super::{Errno, SysResult, procfs};
use std::os::fd::{AsRawFd, OwnedFd};

/// What is known about one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Page(u64);

impl Page {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const FILE_OR_SHARED: u64 = 1 << 61;
    const EXCLUSIVE: u64 = 1 << 56;

    /// The process has this page, in memory or in swap.
    pub(crate) fn exists(self) -> bool {
        self.0 & (Self::PRESENT | Self::SWAPPED) != 0
    }

    /// The page is in memory.
    pub(crate) fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }

    /// The page was written to and is the process's own (not a file's).
    pub(crate) fn is_private_copy(self) -> bool {
        self.exists() && self.0 & Self::FILE_OR_SHARED == 0
    }

    /// Somebody else maps the page too.
    pub(crate) fn mapped_elsewhere(self) -> bool {
        self.0 & Self::PRESENT != 0 && self.0 & Self::EXCLUSIVE == 0
    }
}

/// The page map of this process.
#[derive(Debug)]
pub(crate) struct Pagemap(OwnedFd);

impl Pagemap {
    pub(crate) fn new() -> SysResult<Self> {
        Ok(Self(procfs::open(c"/proc/thread-self/pagemap")?))
    }

    pub(crate) fn descriptor(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Calls `each` with the address and state of every page of a page-aligned range.
    pub(crate) fn each_page(
        &self,
        start: usize,
        end: usize,
        mut each: impl FnMut(usize, Page),
    ) -> SysResult<()> {
        let mut addr = start;
        let mut buffer = [0u8; 4096];
        while addr < end {
            let wanted = ((end - addr) / PAGE * 8).min(buffer.len());
            let count = match rustix::io::pread(&self.0, &mut buffer[..wanted], (addr / PAGE * 8) as u64) {
                Ok(0) => return Err(Errno::IO),
                Ok(count) => count / 8,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno),
            };
            for entry in buffer[..count * 8].chunks_exact(8) {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(entry);
                each(addr, Page(u64::from_ne_bytes(bytes)));
                addr += PAGE;
            }
        }
        Ok(())
    }
}
