//! Objects: memfds that hold adopted memory, at the offset equal to its address.
//!
//! The identity layout makes most tables needless: whether a page is there is what the page cache says, an importer maps any
//! stretch with one call, and memory that comes back to an address comes back to its offset. A mapping that
//! `mremap` grows in place grows into the offsets that belong to it.

use crate::error::{Result, failed};
use crate::own::{OwnVec, RangeTable};
use crate::range::Range;
use crate::sys::maps::{FileId, Vma};
use crate::sys::memory::HUGE_PAGE;
use crate::sys::{SysResult, fd, memory};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The name in `/proc/PID/maps`: `/memfd:rmap (deleted)`.
pub(crate) const MAPS_PATH: &[u8] = b"/memfd:rmap (deleted)";

/// When importers map an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// In their windows, from the start, holes and all, and they trap the holes. There the kernel makes no huge pages but of small ones that are all
    /// there already.
    FromTheStart,
    /// Where they are told to, and not before what was put there is all there. From then on they trap its holes; for what comes later there is
    /// another object.
    WhenTold,
}

/// One object.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) serial: u32,
    /// Only memory inside is ever in the object, so whoever has a permit for all of it may have the object.
    pub(crate) domain: Range,
    /// Importers get it read-only: it holds memory that this process itself may not write.
    pub(crate) protected: bool,
    pub(crate) shown: Shown,
    pub(crate) file: FileId,
    /// Where importers may see it, if they are told.
    used: RangeTable<()>,
    /// Parts of huge pages that could not be freed. Importers have been told.
    strays: RangeTable<()>,
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

    /// The same, also of parts of huge pages. Returns where there are pages still, with zeroes, and were none before: somebody has them in hand,
    /// so that the kernel cannot split them. Importers may be seeing them.
    pub(crate) fn free(&mut self, range: Range) -> SysResult<Option<Range>> {
        /// A thread that has just had a fault has its page in hand for a moment.
        const TRIES: usize = 3;
        self.punch(range)?;
        let mut stays: Option<Range> = None;
        for part in range.ends(HUGE_PAGE) {
            let mut left = self.next_data(part);
            for _ in 1..TRIES {
                if left.is_none() {
                    break;
                }
                self.punch(part)?;
                left = self.next_data(part);
            }
            let known = left
                .is_some_and(|left| self.strays.at(left.start()).is_some_and(|span| span.range.covers(left)));
            match left {
                Some(_) if known => {}
                Some(left) => {
                    self.strays.insert(left, ())?;
                    stays = Some(stays.map_or(left, |stays| stays.join(left)));
                }
                None => self.strays.remove(part)?,
            }
        }
        Ok(stays)
    }

    /// Where it has zeroes that nobody is to see.
    pub(crate) fn strays(&self) -> impl Iterator<Item = Range> + '_ {
        self.strays.iter().map(|span| span.range)
    }

    /// Importers may be told of a range.
    pub(crate) fn note_used(&mut self, range: Range) -> SysResult<()> {
        if self.shown == Shown::WhenTold { self.used.insert(range, ()) } else { Ok(()) }
    }

    /// Importers are to see what it has in a range.
    pub(crate) fn shows(&mut self, range: Range) -> SysResult<()> {
        self.strays.remove(range)
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
        if !range.contains(start) {
            return None;
        }
        let end = rustix::fs::seek(&self.fd, SeekFrom::Hole(start as u64)).ok()? as usize;
        Range::between(start, end.min(range.end()))
    }

    fn is_of(&self, domain: Range, protected: bool, shown: Shown) -> bool {
        (self.domain, self.protected, self.shown) == (domain, protected, shown)
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

    pub(crate) fn get_mut(&mut self, serial: u32) -> Option<&mut Object> {
        self.all.iter_mut().find(|object| object.serial == serial)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Object> {
        self.all.iter()
    }

    /// The first object made after the one of this serial that may have something in `range`.
    pub(crate) fn serial_after(&self, serial: u32, range: Range) -> Option<u32> {
        // They are in the order in which they were made.
        let later = self.all.iter().filter(|object| object.serial > serial);
        later
            .map(|object| (object.serial, object.domain))
            .find(|(_, domain)| domain.overlaps(range))
            .map(|(serial, _)| serial)
    }

    pub(crate) fn of_file(&self, file: FileId) -> Option<&Object> {
        self.all.iter().find(|object| object.file == file)
    }

    /// The object for memory of this domain, made if there is none.
    pub(crate) fn for_domain(&mut self, domain: Range, protected: bool) -> Result<&Object> {
        let found = self.all.iter().position(|object| object.is_of(domain, protected, Shown::FromTheStart));
        self.found_or_new(found, domain, protected, Shown::FromTheStart)
    }

    fn unused(&self, domain: Range, protected: bool, part: Range) -> Option<usize> {
        let fits = |o: &Object| o.is_of(domain, protected, Shown::WhenTold) && o.used.next_in(part).is_none();
        self.all.iter().position(fits)
    }

    /// Whether there is an object of which nobody sees a part of this domain yet.
    pub(crate) fn has_unseen_for(&self, domain: Range, protected: bool, part: Range) -> bool {
        self.unused(domain, protected, part).is_some()
    }

    /// The object for a part of this domain that nobody is to see yet, made if there is none. Where there are too many, somebody may see it, or it is
    /// `None`.
    pub(crate) fn for_unseen(
        &mut self,
        domain: Range,
        protected: bool,
        part: Range,
    ) -> Result<Option<&Object>> {
        /// Each takes descriptors, here and in the importers.
        const MOST: usize = 8;
        let of_domain = |object: &Object| object.is_of(domain, protected, Shown::WhenTold);
        let mut found = self.unused(domain, protected, part);
        if found.is_none() && self.all.iter().filter(|object| object.shown == Shown::WhenTold).count() >= MOST
        {
            // For huge pages it is slower.
            found = self.all.iter().rposition(of_domain);
            if found.is_none() {
                return Ok(None);
            }
        }
        self.found_or_new(found, domain, protected, Shown::WhenTold).map(Some)
    }

    fn found_or_new(
        &mut self,
        found: Option<usize>,
        domain: Range,
        protected: bool,
        shown: Shown,
    ) -> Result<&Object> {
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
                let used = RangeTable::new();
                let strays = RangeTable::new();
                let object =
                    Object { serial, domain, protected, shown, file, used, strays, fd, writable, read_only };
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
