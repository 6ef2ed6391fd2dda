//! What is mapped in a range, and how it can be shown.

use crate::error::{Error, Result};
use crate::process::{PAGE, Process};
use core::ops::Range;
use procfs::process::{MMPermissions, MemoryMap, VmFlags};

/// A file as the kernel's maps name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) device: (i32, i32),
    pub(crate) inode: u64,
}

/// Where the bytes of a part are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// In a file that others can map; the part starts at this offset.
    Shared { file: FileId, offset: u64 },
    /// In pages of the process alone.
    Private,
}

/// A part of one mapping.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) range: Range<usize>,
    /// As `mmap` takes it.
    pub(crate) protection: i32,
    pub(crate) flags: VmFlags,
    pub(crate) source: Source,
    /// Private memory that a file lies behind: pages exist that were never touched.
    pub(crate) file_backed: bool,
}

/// What a mapping maps, if that is a file.
pub(crate) fn file_of(map: &MemoryMap) -> Option<FileId> {
    (map.inode != 0).then_some(FileId { device: map.dev, inode: map.inode })
}

/// The parts of a range that can be shown.
///
/// # Errors
/// [`Error::Unsuitable`] or [`Error::Hole`] if there is none.
pub(crate) fn parts(process: &Process, range: &Range<usize>) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    let mut reason = Error::Hole(range.start);
    for map in process.mappings(range)? {
        let (start, end) = (map.address.0 as usize, map.address.1 as usize);
        let mut part = start.max(range.start)..end.min(range.end);
        match source(&map, &mut part) {
            Ok(source) => parts.push(Part {
                protection: protection(map.perms),
                flags: map.extension.vm_flags,
                range: part,
                source,
                file_backed: map.inode != 0,
            }),
            Err(why) => reason = Error::Unsuitable { range: part, why },
        }
    }
    if parts.is_empty() { Err(reason) } else { Ok(parts) }
}

fn source(map: &MemoryMap, part: &mut Range<usize>) -> core::result::Result<Source, &'static str> {
    let flags = map.extension.vm_flags;
    if flags.intersects(VmFlags::IO | VmFlags::PF | VmFlags::MM) {
        return Err("memory of a device or of the kernel");
    }
    if map.perms.contains(MMPermissions::SHARED) {
        let file = file_of(map).ok_or("shared memory without a file")?;
        let offset = map.offset + (part.start as u64 - map.address.0);
        return Ok(Source::Shared { file, offset });
    }
    if flags.contains(VmFlags::HT) {
        return Err("private huge pages of hugetlbfs");
    }
    if flags.intersects(VmFlags::UM | VmFlags::UW) {
        return Err("memory whose pages the process provides itself (userfaultfd)");
    }
    if flags.contains(VmFlags::GD) && part.start == map.address.0 as usize {
        // The lowest page stays, so that the kernel can let the stack grow from there.
        part.start += PAGE;
        if part.start == part.end {
            return Err("the lowest page of a stack");
        }
    }
    Ok(Source::Private)
}

pub(crate) fn protection(permissions: MMPermissions) -> i32 {
    let has = |permission, flag| if permissions.contains(permission) { flag } else { 0 };
    has(MMPermissions::READ, libc::PROT_READ)
        | has(MMPermissions::WRITE, libc::PROT_WRITE)
        | has(MMPermissions::EXECUTE, libc::PROT_EXEC)
}
