//! Files behind private mappings that were adopted: after `MADV_DONTNEED` such a mapping shows its file again, not
//! zeroes.

use super::Shared;
use super::adopt;
use super::object::Object;
use crate::log::log;
use crate::own::{OwnVec, RangeTable};
use crate::range::Range;
use crate::sys::maps::{FileId, Vma};
use crate::sys::memory::{self, MapFlags, PAGE, ProtFlags};
use crate::sys::{Said, SysResult, fd};
use std::os::fd::{AsFd, OwnedFd};

/// Which file each such address showed.
#[derive(Debug)]
pub(super) struct PrivateFiles {
    open: OwnVec<(FileId, OwnedFd)>,
    mapped: RangeTable<Shared>,
}

impl PrivateFiles {
    pub(super) const fn new() -> Self {
        Self { open: OwnVec::new(), mapped: RangeTable::new() }
    }

    /// Notes that `range`, about to be adopted, shows what `vma` maps from the file at `path`.
    pub(super) fn note(&mut self, range: Range, vma: &Vma, path: &[u8]) {
        let Some(shared) = Shared::of(vma).filter(|_| !vma.shared) else { return self.forget(range) };
        if let Err(errno) = self.try_note(range, vma, shared, path) {
            log!(
                Info,
                "the file behind {range} cannot be kept: {errno}; dropped pages will be zero",
                errno = Said(errno)
            );
        }
    }

    fn try_note(&mut self, range: Range, vma: &Vma, shared: Shared, path: &[u8]) -> SysResult<()> {
        if !self.open.iter().any(|(file, _)| *file == shared.file) {
            let opened = fd::of_mapping(path, shared.file, (vma.start, vma.end), false)?;
            self.open.push((shared.file, opened))?;
        }
        self.mapped.insert(range, shared)
    }

    /// The range shows no file any more.
    pub(super) fn forget(&mut self, range: Range) {
        if self.mapped.next_in(range).is_some() {
            let _ = self.mapped.remove(range);
            let mapped = &self.mapped;
            self.open.retain(|(file, _)| mapped.iter().any(|span| span.value.file == *file));
        }
    }

    /// What showed a file at `from` shows it at `to` now.
    pub(super) fn moved(&mut self, from: Range, to: Range) {
        let mut moved = OwnVec::new();
        for span in self.mapped.within(from) {
            let Some(target) = span.range.shifted(from.start(), to.start()) else { continue };
            let origin = span.value.origin.wrapping_add(from.start() as u64).wrapping_sub(to.start() as u64);
            let _ = moved.push((target, Shared { origin, ..span.value }));
        }
        for (target, shared) in moved.iter() {
            let _ = self.mapped.insert(*target, *shared);
        }
    }

    /// Puts the bytes of the files back where pages of `range` were dropped from the object.
    pub(super) fn refill(&self, object: &Object, range: Range) {
        for span in self.mapped.within(range) {
            let Some((_, fd)) = self.open.iter().find(|(file, _)| *file == span.value.file) else { continue };
            let offset = span.value.origin.wrapping_add(span.range.start() as u64);
            if let Err(errno) = copy_file(fd, offset, object, span.range) {
                log!(Error, "reading the file behind {}: {errno}", span.range, errno = Said(errno));
            }
        }
    }
}

/// Copies as much of the file as there is; what is mapped beyond its end cannot be read anyway.
fn copy_file(file: &OwnedFd, offset: u64, object: &Object, to: Range) -> SysResult<()> {
    let size = rustix::fs::fstat(file)?.st_size.unsigned_abs();
    let len = size.saturating_sub(offset).min(to.len() as u64) as usize;
    let Some(part) = Range::new(to.start(), len.next_multiple_of(PAGE)) else { return Ok(()) };
    let view = memory::map(part.len(), ProtFlags::READ, MapFlags::PRIVATE, file.as_fd(), offset)?;
    let copied = adopt::copy_to(object, view, part);
    // SAFETY: the view is ours.
    let _ = unsafe { memory::unmap(view, part.len()) };
    copied
}
