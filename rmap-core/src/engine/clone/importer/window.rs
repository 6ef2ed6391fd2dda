//! Windows: mappings of an exporter's memory.
//!
//! A window maps the base object of its permit at the offset equal to the exporter's address, whole, holes and all, and is
//! trapped: what is not there is asked for when touched. Pieces of it map other objects or files, where the exporter says
//! so.

use super::super::protocol::{Access, Source};
use super::{Importer, Permit};
use crate::error::{Error, Result, failed};
use crate::log::log;
use crate::own::OwnVec;
use crate::range::Range;
use crate::sys::memory::{self, HUGE_PAGE, MapFlags, PAGE, ProtFlags};
use crate::sys::{SysResult, sysv};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A mapping of a stretch of an exporter's address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) range: Range,
    /// The exporter's address that the window starts at.
    pub(crate) remote: usize,
    pub(crate) permit: u32,
    /// Where the last answer ended, and how many answers have run on to there.
    pub(crate) run_end: usize,
    pub(crate) run: u32,
}

impl Window {
    /// The exporter's address shown at `addr`.
    pub(crate) fn to_remote(self, addr: usize) -> usize {
        addr.wrapping_sub(self.range.start()).wrapping_add(self.remote)
    }

    /// Where a range of the exporter's is shown.
    pub(crate) fn to_local(self, remote: Range) -> Option<Range> {
        let all = self.range.shifted(self.range.start(), self.remote)?;
        remote.intersection(all)?.shifted(self.remote, self.range.start())
    }
}

/// What becomes of a store to a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stores {
    Allowed,
    /// The permit is for reading.
    Refused,
    /// The exporter is asked.
    Trapped,
}

/// A mapping to make whose accesses are trapped.
#[derive(Clone, Copy, Debug)]
struct Trapped<'a> {
    file: BorrowedFd<'a>,
    offset: u64,
    stores: Stores,
    /// Whether a page that is missing in the file is one to ask for.
    holes: bool,
}

/// What a part of a window maps instead of the base object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Another object of the exporter's.
    Object { serial: u32 },
    /// A file or System V segment, which the exporter cannot punch.
    File,
    /// Nothing: a thread that holds SIGBUS back must be made to see it.
    Nothing,
}

fn protection(writable: bool) -> ProtFlags {
    if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ }
}

/// A place for a window: such that huge pages of the exporter's can be mapped as such.
fn reserve(len: usize, remote: usize) -> SysResult<usize> {
    let slack = if len >= HUGE_PAGE { HUGE_PAGE } else { 0 };
    let all = memory::map_anonymous(len + slack, ProtFlags::empty(), MapFlags::NORESERVE)?;
    if slack == 0 {
        return Ok(all);
    }
    let base = all + (remote.wrapping_sub(all) & (HUGE_PAGE - 1));
    for (start, end) in [(all, base), (base + len, all + len + slack)] {
        if start < end {
            // SAFETY: the ends of our own reservation.
            let _ = unsafe { memory::unmap(start, end - start) };
        }
    }
    Ok(base)
}

impl Importer {
    /// The window that shows `addr`.
    pub(super) fn window_at(&self, addr: usize) -> Option<usize> {
        let index = self.windows.partition_point(|window| window.range.end() <= addr);
        self.windows.get(index).filter(|window| window.range.contains(addr)).map(|_| index)
    }

    /// Whether a permit is good for anything.
    pub(crate) fn check(&self, permit: u32) -> Result<()> {
        let permit = self.permit(permit).and_then(|i| self.permits.get(i)).ok_or(Error::NoSuchId)?;
        let host = self.host(permit.host).ok_or(Error::NoSuchId)?;
        if permit.removed || !self.hosts[host].alive { Err(Error::NoSuchId) } else { Ok(()) }
    }

    /// Maps a range of the exporter, at `place` if given, over whatever is there.
    pub(crate) fn map(&mut self, permit: u32, remote: Range, place: Option<usize>) -> Result<Range> {
        self.check(permit)?;
        let permit = *self.permit(permit).and_then(|i| self.permits.get(i)).ok_or(Error::NoSuchId)?;
        if !permit.range.covers(remote) {
            return Err(Error::Invalid("outside the segment"));
        }
        self.windows.reserve(1).map_err(failed("mmap"))?;
        if let Some(range) = place.and_then(|place| Range::new(place, remote.len()))
            && self.windows.iter().any(|window| window.range.overlaps(range))
        {
            return Err(Error::RangeTaken(range));
        }
        let staged = self.stage_base(remote, &permit)?;
        if let Some(place) = place {
            self.put_in_place(staged, remote.len(), place).map_err(failed("mremap"))?;
        }
        let base = place.unwrap_or(staged);
        let range = Range::new(base, remote.len()).ok_or(Error::Invalid("no such address"))?;
        let index = self.windows.partition_point(|window| window.range.start() < range.start());
        let window = Window { range, remote: remote.start(), permit: permit.number, run_end: 0, run: 0 };
        self.windows.insert(index, window).map_err(failed("mmap"))?;
        log!(Debug, "window {range} shows {remote}");
        Ok(range)
    }

    /// Makes a trapped mapping of the base object, at a place that nobody knows yet.
    fn stage_base(&self, remote: Range, permit: &Permit) -> Result<usize> {
        let writable = permit.access == Access::ReadWrite;
        let host = self.host(permit.host).ok_or(Error::NoSuchId)?;
        let object = self.hosts[host].object(permit.base, writable).ok_or(Error::NoSuchId)?;
        let stores = if writable { Stores::Allowed } else { Stores::Refused };
        let source = Trapped { file: object, offset: remote.start() as u64, stores, holes: true };
        self.stage(remote.len(), source).map_err(failed("mmap"))
    }

    /// Makes a trapped mapping, at a place that nobody knows yet.
    fn stage(&self, len: usize, source: Trapped<'_>) -> SysResult<usize> {
        let at = reserve(len, source.offset as usize)?;
        let made = self.map_trapped(at, len, source);
        made.map(|()| at).inspect_err(|_| {
            // SAFETY: our own reservation.
            let _ = unsafe { memory::unmap(at, len) };
        })
    }

    fn map_trapped(&self, at: usize, len: usize, source: Trapped<'_>) -> SysResult<()> {
        let Trapped { file, offset, stores, holes } = source;
        // A read-only descriptor cannot be trapped when mapped shared. Mapped private it shows the same pages for as
        // long as nobody writes, and what a thread that lifts the protection writes stays its own.
        let kind = if stores == Stores::Allowed { MapFlags::SHARED } else { MapFlags::PRIVATE };
        // Without access until it is trapped: where all memory is locked (`mlockall`), mapping it would fill the
        // exporter's holes with zeroes.
        let (none, flags) = (ProtFlags::empty(), kind | MapFlags::NORESERVE);
        // SAFETY: a reservation that nobody knows.
        unsafe { memory::map_over(at, len, none, flags, file, offset) }?;
        memory::advise(at, len, libc::MADV_DONTFORK)?;
        memory::advise(at, len, libc::MADV_DONTDUMP)?;
        if stores == Stores::Trapped {
            self.trap.trap_stores(at, len, holes)?;
        } else {
            self.trap.trap(at, len)?;
        }
        // SAFETY: allows more.
        unsafe { memory::protect(at, len, protection(stores != Stores::Refused)) }
    }

    /// Removes a window.
    pub(crate) fn unmap(&mut self, base: usize) -> Result<Range> {
        let index = self.windows.binary_search_by_key(&base, |window| window.range.start());
        let window = index.ok().and_then(|index| self.windows.remove(index)).ok_or(Error::NoSuchId)?;
        let range = window.range;
        self.pieces.remove(range).map_err(failed("mmap"))?;
        // SAFETY: the caller of detach gives the range up.
        unsafe { memory::unmap(range.start(), range.len()) }.map_err(failed("munmap"))?;
        self.waiters.retain(|waiter| !range.contains(waiter.page));
        let _ = self.trap.wake(range.start(), range.len());
        Ok(range)
    }

    /// Maps what the exporter says over a part of a window, unless it is mapped there already.
    pub(super) fn map_piece(
        &mut self,
        window: Window,
        local: Range,
        source: Source,
        writable: bool,
        descriptor: Option<OwnedFd>,
    ) -> Result<()> {
        let permit = *self.permit(window.permit).and_then(|i| self.permits.get(i)).ok_or(Error::NoSuchId)?;
        let host = self.host(permit.host).ok_or(Error::NoSuchId)?;
        let remote = window.to_remote(local.start());
        let writable = writable && permit.access == Access::ReadWrite;
        match source {
            Source::Object { serial } => {
                if let Some(fd) = descriptor {
                    self.hosts[host].learn(serial, writable, fd)?;
                }
                if serial == permit.base && self.pieces.next_in(local).is_none() {
                    return Ok(());
                }
                let object = self.hosts[host].object(serial, writable);
                let object = object.ok_or(Error::Invalid("an object that was not sent"))?;
                let stores = match (writable, permit.access) {
                    (true, _) => Stores::Allowed,
                    (false, Access::ReadOnly) => Stores::Refused,
                    // The exporter may make the memory writable later, so a store is a question, not an error.
                    (false, Access::ReadWrite) => Stores::Trapped,
                };
                let source = Trapped { file: object, offset: remote as u64, stores, holes: true };
                let staged = self.stage(local.len(), source).map_err(failed("mmap"))?;
                self.put_in_place(staged, local.len(), local.start()).map_err(failed("mremap"))?;
                let noted = if serial == permit.base {
                    self.pieces.remove(local)
                } else {
                    self.pieces.insert(local, Piece::Object { serial })
                };
                noted.map_err(failed("mmap"))
            }
            Source::File { offset } => {
                let fd = descriptor.ok_or(Error::Invalid("a file that was not sent"))?;
                super::regular(&fd)?;
                self.pieces.insert(local, Piece::File).map_err(failed("mmap"))?;
                if !writable && permit.access == Access::ReadWrite {
                    let (file, stores) = (fd.as_fd(), Stores::Trapped);
                    // Only shared memory can be trapped. Of other files a store gets SIGSEGV, also if it would be allowed by now.
                    if let Ok(staged) =
                        self.stage(local.len(), Trapped { file, offset, stores, holes: false })
                    {
                        return self
                            .put_in_place(staged, local.len(), local.start())
                            .map_err(failed("mremap"));
                    }
                }
                // SAFETY: a part of a window.
                unsafe {
                    let flags = MapFlags::SHARED;
                    memory::map_over(
                        local.start(),
                        local.len(),
                        protection(writable),
                        flags,
                        fd.as_fd(),
                        offset,
                    )
                }
                .map_err(failed("mmap"))?;
                memory::advise(local.start(), local.len(), libc::MADV_DONTFORK).map_err(failed("madvise"))
            }
            Source::SystemV { id, offset } => {
                let info = sysv::info(id).map_err(failed("shmctl"))?;
                let uid = self.hosts[host].uid();
                // A stranger must not make this process write to a segment of its own user.
                if info.owner != uid && info.creator != uid {
                    return Err(Error::Invalid("a System V segment that is not the exporter's"));
                }
                self.pieces.insert(local, Piece::File).map_err(failed("mmap"))?;
                // SAFETY: a part of a window.
                unsafe { sysv::map_over(id, offset as usize, local.len(), local.start(), writable) }
                    .map_err(failed("shmat"))?;
                memory::advise(local.start(), local.len(), libc::MADV_DONTFORK).map_err(failed("madvise"))
            }
        }
    }

    /// Makes a page of a window give SIGBUS to whoever touches it, without asking.
    pub(super) fn map_nothing(&mut self, page: usize) -> Result<()> {
        let range = Range::page_at(page);
        self.pieces.insert(range, Piece::Nothing).map_err(failed("mmap"))?;
        // SAFETY: a page of a window.
        unsafe {
            let flags = MapFlags::SHARED;
            memory::map_over(range.start(), PAGE, ProtFlags::READ, flags, self.nothing.as_fd(), 0)
        }
        .map_err(failed("mmap"))
    }

    /// What windows onto this exporter map from files in a range is mapped from the base object again: to be asked for
    /// when touched.
    pub(super) fn make_stale(&mut self, host: u32, remote: Range) -> Result<()> {
        let mut stale = OwnVec::new();
        for window in self.windows.iter() {
            let permit = self.permit(window.permit).map(|index| self.permits[index]);
            let Some(permit) = permit.filter(|permit| permit.host == host) else {
                continue;
            };
            let Some(local) = window.to_local(remote) else {
                continue;
            };
            for span in self.pieces.within(local).filter(|span| span.value == Piece::File) {
                let remote = window.to_remote(span.range.start());
                stale.push((span.range, remote, permit)).map_err(failed("mmap"))?;
            }
        }
        for (range, remote, permit) in stale.iter() {
            let shown = Range::new(*remote, range.len()).ok_or(Error::Invalid("no range"))?;
            let staged = self.stage_base(shown, permit)?;
            self.put_in_place(staged, range.len(), range.start()).map_err(failed("mremap"))?;
            self.pieces.remove(*range).map_err(failed("mmap"))?;
        }
        Ok(())
    }
}
