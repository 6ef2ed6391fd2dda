//! What is to be done so that an importer can reach an address.

use super::object::MAPS_PATH;
use super::status;
use crate::counters::sheet;
use crate::own::file_id;
use crate::range::Range;
use crate::sys::SysResult;
use crate::sys::maps::{FileId, Maps, Name, Vma};
use crate::sys::memory::{HUGE_PAGE, ProtFlags};
use crate::sys::pagemap::Pagemap;
use core::ops::ControlFlow;

/// The mapping at an address, with its name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    pub(crate) vma: Vma,
    name: Name,
}

impl Mapping {
    /// The mapping that covers `addr`.
    pub(crate) fn at(maps: &Maps, addr: usize) -> SysResult<Option<Self>> {
        Ok(maps.named_at(addr)?.map(|(vma, name)| Self { vma, name }))
    }

    pub(crate) fn path(&self) -> &[u8] {
        self.name.as_bytes()
    }
}

/// How a range is shown to importers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Nothing is there, or nothing that can be shown; the text says what.
    Hole(&'static str),
    /// Move it into an object, in place.
    Adopt { range: Range, protected: bool },
    /// Copy it into an object: it does not change.
    Copy { range: Range, file: FileId },
    /// The importer maps the same file.
    Share { range: Range, vma: Vma },
    /// The importer maps the same System V segment.
    ShareSystemV { range: Range, id: u32, offset: u64, writable: bool },
}

/// The 2 MiB around `addr`, or more upwards when requests run on, inside both limits.
fn chunk(addr: usize, run: u32, vma: &Vma, limit: Range) -> Option<Range> {
    const LONGEST: usize = 32 << 20;
    let start = addr & !(HUGE_PAGE - 1);
    let len = LONGEST.min(HUGE_PAGE << run.min(4));
    let block = Range::new(start, len)?;
    let mapped = Range::between(vma.start, vma.end)?;
    block.intersection(mapped)?.intersection(limit)
}

/// Decides about `addr`. Nothing outside `limit` is touched.
pub(crate) fn plan(
    mapping: &Mapping,
    addr: usize,
    run: u32,
    limit: Range,
    maps: &Maps,
    pagemap: &Pagemap,
) -> SysResult<Plan> {
    let vma = &mapping.vma;
    if vma.file.is_some() && vma.file == file_id() {
        return Ok(Plan::Hole("the library's own memory"));
    }
    if mapping.path() == status::MAPS_PATH {
        return Ok(Plan::Hole("a status word"));
    }
    if mapping.path() == sheet::MAPS_PATH {
        return Ok(Plan::Hole("the library's counters"));
    }
    if mapping.path() == MAPS_PATH {
        return Ok(Plan::Hole("an attachment of another process"));
    }
    if !vma.prot.contains(ProtFlags::READ) {
        return Ok(Plan::Hole("not readable in the exporter"));
    }
    let Some(range) = chunk(addr, run, vma, limit) else {
        return Ok(Plan::Hole("outside the attachment"));
    };
    let writable = vma.prot.contains(ProtFlags::WRITE);
    let path = mapping.path();
    if path.starts_with(b"[v") {
        return Ok(Plan::Hole("a page of the kernel's"));
    }
    if path.starts_with(b"/anon_hugepage") {
        return Ok(Plan::Hole("private hugetlb memory"));
    }
    if !vma.shared {
        let Some(file) = vma.file else {
            return Ok(Plan::Adopt { range, protected: !writable });
        };
        if path.starts_with(b"/dev/") && path != b"/dev/zero" && !path.starts_with(b"/dev/shm/") {
            return Ok(Plan::Hole("a device"));
        }
        if writable {
            return Ok(Plan::Adopt { range, protected: false });
        }
        let mut written = false;
        pagemap.each_page(range.start(), range.end(), |_, page| written |= page.is_private_copy())?;
        // Text and constants of programs stay as they are, for profilers and debuggers; a file that is only data may
        // be made writable, and is followed.
        return Ok(if written || !is_program(maps, file)? {
            Plan::Adopt { range, protected: true }
        } else {
            Plan::Copy { range, file }
        });
    }
    let whole = Range::between(vma.start, vma.end).and_then(|all| all.intersection(limit)).unwrap_or(range);
    if path.starts_with(b"/SYSV") {
        let (id, offset) = (vma.file.map_or(0, |file| file.inode as u32), vma.offset_of(whole.start()));
        return Ok(Plan::ShareSystemV { range: whole, id, offset, writable });
    }
    if path.starts_with(b"/dev/") && !path.starts_with(b"/dev/shm/") && !path.starts_with(b"/dev/zero") {
        return Ok(Plan::Hole("a device"));
    }
    if path.starts_with(b"anon_inode:") {
        return Ok(Plan::Hole("a device"));
    }
    Ok(Plan::Share { range: whole, vma: *vma })
}

/// Whether a file is mapped to be executed.
fn is_program(maps: &Maps, file: FileId) -> SysResult<bool> {
    let mut executable = false;
    maps.each_vma(|vma, _| {
        executable = vma.file == Some(file) && vma.prot.contains(ProtFlags::EXEC);
        if executable { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(executable)
}

/// Whether somebody else maps pages of a shared range.
pub(crate) fn is_shared_with_others(range: Range, pagemap: &Pagemap) -> bool {
    let mut shared = false;
    let asked = pagemap.each_page(range.start(), range.end(), |_, page| shared |= page.mapped_elsewhere());
    shared || asked.is_err()
}
