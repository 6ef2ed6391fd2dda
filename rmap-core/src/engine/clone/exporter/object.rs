//! Objects: memfds that hold adopted memory, at the offset equal to its address.
//!
//! The identity layout makes most tables needless: whether a page is there is what the page cache says, an importer maps any
//! stretch with one call, and memory that comes back to an address comes back to its offset. A mapping that
//! `mremap` grows in place grows into the offsets that belong to it.

use crate::error::{Result, failed};
use crate::own::OwnVec;
use crate::range::Range;
use crate::sys::maps::{FileId, Vma};
use crate::sys::{SysResult, fd, memory};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The name in `/proc/PID/maps`: `/memfd:rmap (deleted)`.
pub(crate) const MAPS_PATH: &[u8] = b"/memfd:rmap (deleted)";

/// One object.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) serial: u32,
    /// Only memory inside is ever in the object, so whoever has a permit for all of it may have the object.
    pub(crate) domain: Range,
    /// Importers get it read-only: it holds memory that this process itself may not write.
    pub(crate) protected: bool,
    pub(crate) file: FileId,
    fd: OwnedFd,
    /// For importers. Opened anew, because flags (`O_APPEND`) are shared by all who have the same open file.
    writable: OwnedFd,
    read_only: OwnedFd,
}

impl Object {
    /// The descriptor for an importer.
    pub(crate) fn descriptor(&self, writable: bool) -> BorrowedFd<'_> {
        if writable && !self.protected { self.writable.as_fd() } else { self.read_only.as_fd() }
    }

    /// The descriptor for this process.
    pub(crate) fn own(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Frees the pages of a range; every importer loses them before this returns.
    pub(crate) fn punch(&self, range: Range) -> SysResult<()> {
        memory::punch(&self.fd, range.start() as u64, range.len() as u64)
    }

    /// Sets a byte to zero. A huge page that it is in becomes small ones, unless somebody has it pinned.
    pub(crate) fn clear_byte(&self, offset: usize) -> SysResult<()> {
        memory::punch(&self.fd, offset as u64, 1)
    }

    /// Gives a range zeroed pages where it has none.
    pub(crate) fn allocate(&self, range: Range) -> SysResult<()> {
        memory::allocate(&self.fd, range.start() as u64, range.len() as u64)
    }

    /// How much memory it takes.
    pub(crate) fn bytes(&self) -> SysResult<u64> {
        Ok(rustix::fs::fstat(&self.fd)?.st_blocks.cast_unsigned() * 512)
    }

    /// The next part of `range` that has pages.
    pub(crate) fn next_data(&self, range: Range) -> Option<Range> {
        use rustix::fs::SeekFrom;
        let start = rustix::fs::seek(&self.fd, SeekFrom::Data(range.start() as u64)).ok()? as usize;
        let end = rustix::fs::seek(&self.fd, SeekFrom::Hole(start as u64)).ok()? as usize;
        Range::between(start, end.min(range.end())).filter(|data| data.start() >= range.start())
    }

    /// Whether `vma` maps this object where it belongs.
    pub(crate) fn is_at_home(&self, vma: &Vma) -> bool {
        vma.shared && vma.file == Some(self.file) && vma.offset == vma.start as u64
    }
}

/// The objects of this process.
#[derive(Debug)]
pub(crate) struct Objects {
    all: OwnVec<Object>,
    next_serial: u32,
    size: u64,
}

impl Objects {
    pub(crate) fn new() -> Self {
        Self { all: OwnVec::new(), next_serial: 1, size: memory::task_size() as u64 + memory::PAGE as u64 }
    }

    pub(crate) fn get(&self, serial: u32) -> Option<&Object> {
        self.all.iter().find(|object| object.serial == serial)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Object> {
        self.all.iter()
    }

    pub(crate) fn of_file(&self, file: FileId) -> Option<&Object> {
        self.all.iter().find(|object| object.file == file)
    }

    /// The object for memory of this domain, made if there is none.
    pub(crate) fn for_domain(&mut self, domain: Range, protected: bool) -> Result<&Object> {
        let found = self.all.iter().position(|o| o.domain == domain && o.protected == protected);
        let index = match found {
            Some(index) => index,
            None => {
                let fd = memory::sealed_memfd(c"rmap", self.size).map_err(failed("memfd_create"))?;
                let writable = fd::reopen(&fd, true).map_err(failed("open of a memfd"))?;
                let read_only = fd::reopen(&fd, false).and_then(fd::to_last);
                let read_only = read_only.map_err(failed("open of a memfd"))?;
                let file = FileId::of(&fd).map_err(failed("fstat"))?;
                let serial = self.next_serial;
                self.next_serial += 1;
                let object = Object { serial, domain, protected, file, fd, writable, read_only };
                self.all.push(object).map_err(failed("mmap"))?;
                self.all.len() - 1
            }
        };
        Ok(&self.all[index])
    }

    /// Where addresses end.
    pub(crate) fn end(&self) -> usize {
        self.size as usize
    }

    /// Closes the objects that `keep` refuses. Importers keep what they have mapped.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&Object) -> bool) {
        self.all.retain(|object| keep(object));
    }
}
