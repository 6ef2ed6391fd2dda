//! Shared anonymous memory that the application has unmapped while importers have it.
//!
//! Whoever maps shared memory keeps it, whatever the others unmap. Open MPI counts on that: a rank that is through `MPI_Finalize` unmaps the
//! segment that slower ranks still poll. So what importers may have attached stays theirs, for as long as nothing else comes to its addresses.
//! The kernel sees to that, because the range stays mapped, without any rights.

use super::adopt::{self, Backing, Origin};
use super::object::Object;
use super::{Exporter, Shared};
use crate::log::log;
use crate::own::{OwnVec, RangeTable, Span};
use crate::range::Range;
use crate::sys::maps::FileId;
use crate::sys::memory::{self, MapFlags, ProtFlags};
use crate::sys::{Errno, SysResult, fd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How much of the address space is kept from the application for this.
const MOST: usize = 64 << 20;

/// What is left of mappings that are gone.
#[derive(Debug)]
pub(super) struct Left {
    ranges: RangeTable<()>,
    /// Anonymous files that importers have been given, to map them once more.
    files: OwnVec<(FileId, OwnedFd)>,
}

impl Left {
    pub(super) const fn new() -> Self {
        Self { ranges: RangeTable::new(), files: OwnVec::new() }
    }

    /// Keeps the descriptor of a file that nobody can open again when it is not mapped any more.
    pub(super) fn note_file(&mut self, path: &[u8], file: FileId, descriptor: impl AsFd) {
        let anonymous = path.starts_with(b"/dev/zero") || path.starts_with(adopt::OWN_FILES_PATH);
        if !anonymous || self.file(file).is_some() {
            return;
        }
        let copy = rustix::io::fcntl_dupfd_cloexec(descriptor, 0).and_then(fd::to_last);
        // Without it the memory goes when it is unmapped.
        if let Ok(copy) = copy {
            let _ = self.files.push((file, copy));
        }
    }

    fn file(&self, file: FileId) -> Option<BorrowedFd<'_>> {
        self.files.iter().find(|(known, _)| *known == file).map(|(_, fd)| fd.as_fd())
    }

    /// Takes a range that has been unmapped. False if it was left before, which ends now, or if there is too much already.
    fn admits(&mut self, range: Range) -> bool {
        if self.ranges.next_in(range).is_some() {
            let _ = self.ranges.remove(range);
            return false;
        }
        self.ranges.iter().map(|span| span.range.len()).sum::<usize>() + range.len() <= MOST
    }

    /// Closes the files that importers do not map any more: a descriptor keeps their memory.
    pub(super) fn close_files(&mut self, shared: &RangeTable<Shared>) {
        self.files.retain(|(file, _)| shared.iter().any(|span| span.value.file == *file));
    }

    /// Nothing is left there any more.
    pub(super) fn forget(&mut self, range: Range) {
        let _ = self.ranges.remove(range);
    }
}

/// Maps a file over a range where nothing is mapped, without rights.
fn keep_mapped(range: Range, file: BorrowedFd<'_>, offset: u64) -> SysResult<()> {
    let flags = MapFlags::SHARED | MapFlags::NORESERVE;
    memory::map_where_nothing_is(range.start(), range.len(), ProtFlags::empty(), flags, file, offset)
}

impl Exporter {
    fn is_seen(&self, range: Range) -> bool {
        self.clients.iter().any(|client| client.sees(range))
    }

    /// Whether importers keep what the application has unmapped, which an object shows.
    pub(super) fn leaves_adopted(&mut self, span: &Span<Backing>) -> bool {
        let range = span.range;
        if span.value.origin != Origin::Shared || !self.left.admits(range) || !self.is_seen(range) {
            return false;
        }
        let object = self.objects.get(span.value.serial).map(Object::own);
        let kept = object.map_or(Err(Errno::NOENT), |own| keep_mapped(range, own, range.start() as u64));
        // So that no child gets a copy.
        let backing = Backing { wishes: span.value.wishes.without_children(), ..span.value };
        kept.is_ok() && self.has_left(range, |exporter| exporter.backed.insert(range, backing))
    }

    /// Whether importers keep what the application has unmapped, which they map from a file.
    pub(super) fn leaves_file(&mut self, range: Range, shared: Shared) -> bool {
        if self.left.file(shared.file).is_none() || !self.left.admits(range) || !self.is_seen(range) {
            return false;
        }
        let offset = shared.origin.wrapping_add(range.start() as u64);
        let file = self.left.file(shared.file);
        file.is_some_and(|file| keep_mapped(range, file, offset).is_ok()) && self.has_left(range, |_| Ok(()))
    }

    /// Notes what has been mapped again, or takes it back.
    fn has_left(&mut self, range: Range, note: impl FnOnce(&mut Self) -> SysResult<()>) -> bool {
        let noted = memory::advise(range.start(), range.len(), libc::MADV_DONTFORK)
            .and_then(|()| self.watchers.watch(range))
            .and_then(|()| self.left.ranges.insert(range, ()))
            .and_then(|()| note(self));
        if noted.is_err() {
            self.left.forget(range);
            let _ = self.watchers.forget(range);
            // SAFETY: our own mapping. The call that has unmapped the range has not returned yet: nobody can mean to have another there.
            let _ = unsafe { memory::unmap(range.start(), range.len()) };
            return false;
        }
        log!(Debug, "{range} is unmapped here, and stays with the importers");
        true
    }

    /// Frees what is left and nobody can see any more. Its addresses stay taken until all threads stand still.
    pub(super) fn free_unseen(&self) {
        for span in self.left.ranges.iter().filter(|span| !self.is_seen(span.range)) {
            self.punch_left(span.range);
        }
    }

    fn punch_left(&self, range: Range) {
        for backed in self.backed.within(range) {
            if let Some(object) = self.objects.get(backed.value.serial) {
                let _ = object.punch(backed.range);
            }
        }
    }

    /// Gives the addresses back where something is left that nobody can see any more. All threads stand still.
    pub(super) fn give_back_unseen(&mut self) {
        let mut unseen = OwnVec::new();
        for span in self.left.ranges.iter().filter(|span| !self.is_seen(span.range)) {
            if unseen.push(span.range).is_err() {
                break;
            }
        }
        for range in unseen.iter() {
            self.take_left(*range);
        }
    }

    /// Takes what is left in a range from the importers. All threads stand still.
    pub(super) fn take_left(&mut self, range: Range) {
        let mut taken = OwnVec::new();
        for span in self.left.ranges.within(range) {
            if taken.push(span.range).is_err() {
                return;
            }
        }
        for range in taken.iter().copied() {
            self.unmap_left(range);
            self.punch_left(range);
            let _ = self.backed.remove(range);
            if self.shared.next_in(range).is_some() {
                let _ = self.shared.remove(range);
                self.tell_stale(range);
            }
            self.left.forget(range);
        }
    }

    fn unmap_left(&self, range: Range) {
        if self.watchers.forget(range).is_err() {
            return;
        }
        let mut addr = range.start();
        while let Some(vma) = self.maps.at_or_after(addr).filter(|vma| vma.start < range.end()) {
            addr = vma.end;
            let mapped = Range::between(vma.start, vma.end).and_then(|all| all.intersection(range));
            if let Some(ours) = mapped.filter(|_| vma.shared && vma.prot.is_empty()) {
                // SAFETY: our own mapping, without rights; nobody runs who could have put another in its place.
                let _ = unsafe { memory::unmap(ours.start(), ours.len()) };
            }
        }
    }
}
