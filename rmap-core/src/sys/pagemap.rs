//! `/proc/thread-self/pagemap`: which pages of a range exist (`Documentation/admin-guide/mm/pagemap.rst`).

use super::features::Feature;
use super::memory::PAGE;
use super::{Errno, SysResult, procfs, raw};
use core::sync::atomic::{AtomicBool, Ordering};
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
pub(crate) struct Pagemap {
    fd: OwnedFd,
    scans: AtomicBool,
}

#[repr(C)]
#[derive(Default)]
struct ScanArgs {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

const SCAN: usize = 0xc060_6610;
const PRESENT_OR_SWAPPED: u64 = 1 << 3 | 1 << 4;

impl Pagemap {
    pub(crate) fn new() -> SysResult<Self> {
        Ok(Self { fd: procfs::open(c"/proc/thread-self/pagemap")?, scans: AtomicBool::new(true) })
    }

    /// Calls `each` with start and end of every run of pages that exist, until it fails. Neighbours may come as two runs.
    pub(crate) fn each_run(
        &self,
        start: usize,
        end: usize,
        mut each: impl FnMut(usize, usize) -> SysResult<()>,
    ) -> SysResult<()> {
        let mut from = start;
        while from < end && self.scans.load(Ordering::Relaxed) {
            match self.scan(from, end, &mut each) {
                Ok(walked) => from = walked,
                // Before Linux 6.7. The first call finds out.
                Err(Errno::NOTTY | Errno::INVAL) if from == start => {
                    self.scans.store(false, Ordering::Relaxed)
                }
                Err(errno) => return Err(errno),
            }
        }
        if from >= end {
            return Ok(());
        }
        let mut run: Option<(usize, usize)> = None;
        let mut result = Ok(());
        self.each_page(from, end, |addr, page| {
            if result.is_err() || !page.exists() {
                return;
            }
            run = Some(match run {
                Some((start, end)) if end == addr => (start, addr + PAGE),
                Some((start, end)) => {
                    result = each(start, end);
                    (addr, addr + PAGE)
                }
                None => (addr, addr + PAGE),
            });
        })?;
        result?;
        run.map_or(Ok(()), |(start, end)| each(start, end))
    }

    /// Whether runs are found without a look at every page (Linux 6.7).
    pub(crate) fn can_scan(&self) -> SysResult<()> {
        self.scan(0, PAGE, &mut |_, _| Ok(())).map(drop)
    }

    /// Finds some runs from `start` on; returns how far it came.
    fn scan(
        &self,
        start: usize,
        end: usize,
        each: &mut impl FnMut(usize, usize) -> SysResult<()>,
    ) -> SysResult<usize> {
        Feature::PagemapScan.check()?;
        let mut regions = [Region::default(); 32];
        let mut args = ScanArgs {
            size: size_of::<ScanArgs>() as u64,
            start: start as u64,
            end: end as u64,
            vec: regions.as_mut_ptr().expose_provenance() as u64,
            vec_len: regions.len() as u64,
            category_anyof_mask: PRESENT_OR_SWAPPED,
            return_mask: PRESENT_OR_SWAPPED,
            ..ScanArgs::default()
        };
        let pointer = core::ptr::from_mut(&mut args).expose_provenance();
        // SAFETY: PAGEMAP_SCAN fills the struct and the array, whose sizes it is told.
        let count =
            unsafe { raw::syscall(libc::SYS_ioctl, [self.fd.as_raw_fd() as usize, SCAN, pointer, 0, 0, 0]) }?;
        for region in &regions[..count.min(regions.len())] {
            each(region.start as usize, region.end as usize)?;
        }
        let walked = args.walk_end as usize;
        if walked > start { Ok(walked) } else { Err(Errno::IO) }
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
            let count = match rustix::io::pread(&self.fd, &mut buffer[..wanted], (addr / PAGE * 8) as u64) {
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
