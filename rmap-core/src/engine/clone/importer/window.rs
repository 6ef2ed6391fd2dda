//! Windows: mappings of an exporter's memory.
//!
//! A window maps the base object of its permit at the offset equal to the exporter's address, whole, holes and all, and is
//! trapped: what is not there is asked for when touched. Pieces of it map other objects or files, where the exporter says
//! so.

use super::super::protocol::{Access, Source};
use super::keep::Mapped;
use super::{Importer, Permit};
use crate::counters::{self, Cell};
use crate::error::{Error, Result, failed};
use crate::log::log;
use crate::own::OwnVec;
use crate::range::Range;
use crate::sys::maps::FileId;
use crate::sys::memory::{self, MapFlags, ProtFlags};
use crate::sys::uffd::Userfaultfd;
use crate::sys::{Errno, SysResult, sysv};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A mapping of a stretch of an exporter's address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) range: Range,
    /// The exporter's address that the window starts at.
    pub(crate) remote: usize,
    pub(crate) permit: u32,
    /// As it was made. The application may have unmapped a part since, and then several windows are what is left.
    pub(crate) whole: Range,
    /// Where the last answer ended, and how many answers have run on to there.
    pub(crate) run_end: usize,
    pub(crate) run: u32,
    /// Where its attachments are counted, if it is kept when nobody is attached to it.
    pub(crate) slot: Option<u32>,
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

    /// Where the part of `remote` is that the window shows at `local`.
    pub(super) fn cut(self, source: Source, remote: Range, local: Range) -> Source {
        source.moved(self.to_remote(local.start()).wrapping_sub(remote.start()))
    }
}

impl Source {
    /// Where what comes so many bytes later is.
    pub(crate) fn moved(self, by: usize) -> Self {
        let later = |offset: u64| offset.wrapping_add(by as u64);
        match self {
            Self::Object { serial } => Self::Object { serial },
            Self::File { offset } => Self::File { offset: later(offset) },
            Self::SystemV { id, offset } => Self::SystemV { id, offset: later(offset) },
            Self::Foreign { offset } => Self::Foreign { offset: later(offset) },
        }
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

impl Stores {
    /// In a mapping that may be written or not, of a permit.
    fn to(writable: bool, access: Access) -> Self {
        match (writable, access) {
            (true, _) => Self::Allowed,
            (false, Access::ReadOnly) => Self::Refused,
            // The exporter may make the memory writable later, so a store is a question, not an error.
            (false, Access::ReadWrite) => Self::Trapped,
        }
    }
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
    /// An object that the exporter has attached; `origin` is the offset in it that address 0 would have.
    Foreign { file: FileId, origin: u64, writable: bool },
    /// What was there is gone, although the object has it still: whoever touches it asks.
    Blank,
    /// Nothing: a thread that holds SIGBUS back must be made to see it.
    Nothing,
}

impl Piece {
    /// It is not the exporter's, so that the exporter says when it is not there any more.
    pub(super) fn needs_notice(self) -> bool {
        matches!(self, Self::File | Self::Foreign { .. })
    }

    /// It is a third process's.
    pub(super) fn is_foreign(self) -> bool {
        matches!(self, Self::Foreign { .. })
    }
}

fn protection(writable: bool) -> ProtFlags {
    if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ }
}

/// Makes a mapping with `map`, at a place that nobody knows yet and that agrees with `other`.
fn stage(len: usize, other: usize, map: impl FnOnce(Range) -> SysResult<()>) -> SysResult<Range> {
    let at = memory::map_agreeing(len, other, ProtFlags::empty())?;
    let at = Range::new(at, len).ok_or(Errno::NOMEM)?;
    map(at).map(|()| at).inspect_err(|_| {
        // SAFETY: our own reservation.
        let _ = unsafe { memory::unmap(at.start(), len) };
    })
}

/// Makes a trapped mapping over a reservation.
fn map_trapped(trap: &Userfaultfd, at: Range, source: Trapped<'_>) -> SysResult<()> {
    let Trapped { file, offset, stores, holes } = source;
    let (start, len) = (at.start(), at.len());
    // A read-only descriptor cannot be trapped when mapped shared. Mapped private it shows the same pages for as
    // long as nobody writes, and what a thread that lifts the protection writes stays its own.
    let kind = if stores == Stores::Allowed { MapFlags::SHARED } else { MapFlags::PRIVATE };
    // Without access until it is trapped: where all memory is locked (`mlockall`), mapping it would fill the
    // exporter's holes with zeroes.
    let (none, flags) = (ProtFlags::empty(), kind | MapFlags::NORESERVE);
    // SAFETY: a reservation that nobody knows.
    unsafe { memory::map_over(start, len, none, flags, file, offset) }?;
    memory::advise(start, len, libc::MADV_DONTFORK)?;
    memory::advise(start, len, libc::MADV_DONTDUMP)?;
    if stores == Stores::Trapped {
        trap.trap_stores(start, len, holes)?;
    } else {
        trap.trap(start, len)?;
    }
    // SAFETY: allows more.
    unsafe { memory::protect(start, len, protection(stores != Stores::Refused)) }.inspect_err(|_| {
        // Unmapping it must hold nobody.
        let _ = trap.forget(start, len);
    })
}

/// Maps a file, at a place that nobody knows yet, to be put at `local`.
fn stage_file(local: Range, writable: bool, file: BorrowedFd<'_>, offset: u64) -> SysResult<Range> {
    stage(local.len(), local.start(), |at| {
        let (prot, flags) = (protection(writable), MapFlags::SHARED);
        // SAFETY: a reservation that nobody knows.
        unsafe { memory::map_over(at.start(), at.len(), prot, flags, file, offset) }?;
        memory::advise(at.start(), at.len(), libc::MADV_DONTFORK)
    })
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
        if permit.removed || !self.hosts[host].is_alive() { Err(Error::NoSuchId) } else { Ok(()) }
    }

    /// Maps a range of the exporter, at `place` if given, over whatever is there.
    pub(crate) fn map(&mut self, permit: u32, remote: Range, place: Option<usize>) -> Result<Mapped> {
        self.check(permit)?;
        let permit = *self.permit(permit).and_then(|i| self.permits.get(i)).ok_or(Error::NoSuchId)?;
        if !permit.range.covers(remote) {
            return Err(Error::Invalid("outside the segment"));
        }
        if place.is_none() && self.config.window_limit > 0 {
            return self.map_kept(&permit, remote);
        }
        while let Some(range) = place.and_then(|place| Range::new(place, remote.len())) {
            let Some(index) = self.windows.iter().position(|window| window.range.overlaps(range)) else {
                break;
            };
            if !self.give_back_window(index) {
                return Err(Error::RangeTaken(range));
            }
        }
        let window = self.make_window(&permit, remote, place)?;
        Ok(Mapped { base: window.range.start(), made: Some(window.range) })
    }

    /// Makes a window, at `place` if given, over whatever is there.
    pub(super) fn make_window(
        &mut self,
        permit: &Permit,
        remote: Range,
        place: Option<usize>,
    ) -> Result<Window> {
        self.windows.reserve(1).map_err(failed("mmap"))?;
        // So that noting its end cannot fail.
        self.removed.reserve(self.windows.len() + 1).map_err(failed("mmap"))?;
        let place = match place {
            Some(place) => Some(Range::new(place, remote.len()).ok_or(Error::Invalid("no such address"))?),
            None => None,
        };
        let mut range = self.stage_base(remote, permit)?;
        if let Some(place) = place {
            self.put_in_place(range, place).map_err(failed("mremap"))?;
            range = place;
        }
        let index = self.windows.partition_point(|window| window.range.start() < range.start());
        let (remote_start, permit_host, permit) = (remote.start(), permit.host, permit.number);
        let window =
            Window { range, remote: remote_start, permit, whole: range, run_end: 0, run: 0, slot: None };
        self.windows.insert(index, window).map_err(failed("mmap"))?;
        counters::count(Cell::WindowsMade);
        log!(Debug, "window {range} shows {remote}");
        self.blank_parts(permit_host, &window).inspect_err(|_| {
            if let Some(index) = self.window_at(range.start()) {
                let _ = self.remove_window(index);
            }
        })?;
        Ok(window)
    }

    /// What the base object has and nobody is to see is to be asked for in a new window.
    fn blank_parts(&mut self, host: u32, window: &Window) -> Result<()> {
        let all = Range::new(window.remote, window.range.len()).ok_or(Error::Invalid("no range"))?;
        let mut from = Some(all);
        while let Some(blank) = from.and_then(|rest| self.hosts[self.host(host)?].next_blank(rest)) {
            self.blank_part(window, blank)?;
            from = Range::between(blank.end(), all.end());
        }
        Ok(())
    }

    /// Makes a trapped mapping of the base object, at a place that nobody knows yet.
    fn stage_base(&self, remote: Range, permit: &Permit) -> Result<Range> {
        let writable = permit.access == Access::ReadWrite;
        let host = self.host(permit.host).ok_or(Error::NoSuchId)?;
        let object = self.hosts[host].object(permit.base, writable).ok_or(Error::NoSuchId)?;
        let stores = if writable { Stores::Allowed } else { Stores::Refused };
        let source = Trapped { file: object, offset: remote.start() as u64, stores, holes: true };
        self.stage_trapped(remote, source)
    }

    /// Makes a trapped mapping, at a place that nobody knows yet and that agrees with `range`.
    fn stage_trapped(&self, range: Range, source: Trapped<'_>) -> Result<Range> {
        let trap = &self.trap;
        stage(range.len(), range.start(), |at| map_trapped(trap, at, source)).map_err(failed("mmap"))
    }

    /// Has the application's unmapping of a part that is not trapped reported, too.
    fn follow(&mut self, local: Range) {
        if self.follower.watch(local.start(), local.len()).is_ok() {
            return;
        }
        // Nobody must be given a window that may not be there any more.
        if let Some(slot) = self.window_at(local.start()).and_then(|index| self.windows[index].slot) {
            self.listing.close_one(slot);
        }
    }

    /// Removes a window.
    pub(super) fn remove_window(&mut self, index: usize) -> Result<()> {
        let window = self.windows.remove(index).ok_or(Error::NoSuchId)?;
        let range = window.range;
        counters::count(Cell::WindowsRemoved);
        self.pieces.remove(range).map_err(failed("mmap"))?;
        self.unmap_own(range).map_err(failed("munmap"))?;
        self.waiters.retain(|waiter| !range.contains(waiter.page()));
        let _ = self.trap.wake(range.start(), range.len());
        // There is room: see `make_window`.
        let _ = self.removed.push(range);
        Ok(())
    }

    /// The part of `local` around `page` that does not map this piece yet; `None` if the page does.
    fn not_mapped_yet(&self, local: Range, page: usize, piece: Piece) -> Option<Range> {
        let (mut start, mut end) = (local.start(), local.end());
        for span in self.pieces.within(local).filter(|span| span.value == piece) {
            if span.range.end() <= page {
                start = span.range.end();
            } else if span.range.start() > page {
                end = end.min(span.range.start());
            } else {
                return None;
            }
        }
        Range::between(start, end)
    }

    /// Maps what the exporter says over a part of a window, unless it is mapped there already.
    pub(super) fn map_piece(
        &mut self,
        window: Window,
        (page, local): (usize, Range),
        source: Source,
        writable: bool,
        descriptor: Option<OwnedFd>,
    ) -> Result<()> {
        let permit = *self.permit(window.permit).and_then(|i| self.permits.get(i)).ok_or(Error::NoSuchId)?;
        let host = self.host(permit.host).ok_or(Error::NoSuchId)?;
        let writable = writable && permit.access == Access::ReadWrite;
        match source {
            Source::Object { serial } => {
                if let Some(fd) = descriptor {
                    self.hosts[host].learn(serial, writable, fd)?;
                }
                let piece = Piece::Object { serial };
                if serial == permit.base && self.pieces.next_in(local).is_none() {
                    return Ok(());
                }
                let Some(local) = self.not_mapped_yet(local, page, piece) else { return Ok(()) };
                let remote = window.to_remote(local.start());
                let object = self.hosts[host].object(serial, writable);
                let object = object.ok_or(Error::Invalid("an object that was not sent"))?;
                let (offset, stores) = (remote as u64, Stores::to(writable, permit.access));
                let staged =
                    self.stage_trapped(local, Trapped { file: object, offset, stores, holes: true })?;
                self.put_in_place(staged, local).map_err(failed("mremap"))?;
                let noted = if serial == permit.base {
                    let shown = Range::new(remote, local.len()).ok_or(Error::Invalid("no range"))?;
                    self.hosts[host].is_not_blank(shown).and_then(|()| self.pieces.remove(local))
                } else {
                    self.pieces.insert(local, piece)
                };
                noted.map_err(failed("mmap"))
            }
            Source::File { offset } => {
                let fd = descriptor.ok_or(Error::Invalid("a file that was not sent"))?;
                super::regular(&fd)?;
                self.pieces.insert(local, Piece::File).map_err(failed("mmap"))?;
                if !writable && permit.access == Access::ReadWrite {
                    let (trap, file, stores) = (&self.trap, fd.as_fd(), Stores::Trapped);
                    let source = Trapped { file, offset, stores, holes: false };
                    // Only shared memory can be trapped. Of other files a store gets SIGSEGV, also if it would be allowed by now.
                    let staged = stage(local.len(), local.start(), |at| map_trapped(trap, at, source));
                    if let Ok(staged) = staged {
                        return self.put_in_place(staged, local).map_err(failed("mremap"));
                    }
                }
                self.put_piece(local, stage_file(local, writable, fd.as_fd(), offset))
            }
            Source::Foreign { offset } => {
                let fd = descriptor.ok_or(Error::Invalid("an object that was not sent"))?;
                let (file, origin) = (super::regular(&fd)?, offset.wrapping_sub(local.start() as u64));
                let piece = Piece::Foreign { file, origin, writable };
                if self.pieces.at(local.start()).is_some_and(|s| s.value == piece && s.range.covers(local)) {
                    return Ok(());
                }
                // Whatever happens now, a notice must find it; but what is not mapped must not be taken for what is.
                self.pieces.insert(local, Piece::File).map_err(failed("mmap"))?;
                let (file, stores) = (fd.as_fd(), Stores::to(writable, permit.access));
                let staged = self.stage_trapped(local, Trapped { file, offset, stores, holes: true })?;
                self.put_in_place(staged, local).map_err(failed("mremap"))?;
                // Else it is mapped again next time.
                let _ = self.pieces.insert(local, piece);
                Ok(())
            }
            Source::SystemV { id, offset } => {
                let here = sysv::is_in(descriptor.as_ref()).map_err(failed("open of the IPC namespace"))?;
                if !here {
                    // The number may be another segment's.
                    let what = "System V memory of another IPC namespace";
                    return Err(Error::Unsupported { what, errno: Errno::XDEV });
                }
                let info = sysv::info(id).map_err(failed("shmctl"))?;
                let user = self.hosts[host].user();
                // A stranger must not make this process write to a segment of its own user.
                if !user.is(info.owner) && !user.is(info.creator) {
                    return Err(Error::Invalid("a System V segment that is not the exporter's"));
                }
                self.pieces.insert(local, Piece::File).map_err(failed("mmap"))?;
                let staged = stage(local.len(), local.start(), |at| {
                    // SAFETY: a reservation that nobody knows.
                    unsafe { sysv::map_over(id, offset as usize, at.len(), at.start(), writable) }?;
                    memory::advise(at.start(), at.len(), libc::MADV_DONTFORK)
                });
                self.put_piece(local, staged)
            }
        }
    }

    /// Makes a page of a window give SIGBUS to whoever touches it, without asking.
    pub(super) fn map_nothing(&mut self, page: usize) -> Result<()> {
        let range = Range::page_at(page);
        self.pieces.insert(range, Piece::Nothing).map_err(failed("mmap"))?;
        let staged = stage_file(range, false, self.nothing.as_fd(), 0);
        self.put_piece(range, staged)
    }

    /// Has a part of a window show what was mapped for it, which is not trapped.
    fn put_piece(&mut self, local: Range, staged: SysResult<Range>) -> Result<()> {
        self.put_in_place(staged.map_err(failed("mmap"))?, local).map_err(failed("mremap"))?;
        self.follow(local);
        Ok(())
    }

    /// What windows onto this exporter map in a range, of these kinds, is mapped from the base object again: to be asked for
    /// when touched.
    pub(super) fn make_stale(
        &mut self,
        host: u32,
        remote: Range,
        is_stale: impl Fn(Piece) -> bool,
    ) -> Result<()> {
        let mut stale = OwnVec::new();
        for window in self.windows.iter() {
            let permit = self.permit(window.permit).map(|index| self.permits[index]);
            let Some(permit) = permit.filter(|permit| permit.host == host) else {
                continue;
            };
            let Some(local) = window.to_local(remote) else {
                continue;
            };
            for span in self.pieces.within(local).filter(|span| is_stale(span.value)) {
                let remote = window.to_remote(span.range.start());
                stale.push((span.range, remote, permit)).map_err(failed("mmap"))?;
            }
        }
        for (range, remote, permit) in stale.iter() {
            self.changed.push(*range).map_err(failed("mmap"))?;
            let shown = Range::new(*remote, range.len()).ok_or(Error::Invalid("no range"))?;
            let staged = self.stage_base(shown, permit)?;
            self.put_in_place(staged, *range).map_err(failed("mremap"))?;
            self.pieces.remove(*range).map_err(failed("mmap"))?;
        }
        Ok(())
    }

    /// Whatever windows onto this exporter map in a range is to be asked for when touched, whether the objects have it or not.
    pub(super) fn make_blank(&mut self, host: u32, remote: Range) -> Result<()> {
        let number = self.host(host).ok_or(Error::NoSuchId)?;
        self.hosts[number].note_blank(remote).map_err(failed("mmap"))?;
        for index in 0..self.windows.len() {
            let Some(window) = self.windows.get(index).copied() else { break };
            if self.permit_of(&window).is_some_and(|permit| permit.host == host) {
                self.blank_part(&window, remote)?;
            }
        }
        Ok(())
    }

    fn permit_of(&self, window: &Window) -> Option<Permit> {
        self.permits.get(self.permit(window.permit)?).copied()
    }

    fn blank_part(&mut self, window: &Window, remote: Range) -> Result<()> {
        let (Some(permit), Some(local)) = (self.permit_of(window), window.to_local(remote)) else {
            return Ok(());
        };
        self.changed.push(local).map_err(failed("mmap"))?;
        self.pieces.insert(local, Piece::Blank).map_err(failed("mmap"))?;
        let stores = Stores::to(permit.access == Access::ReadWrite, permit.access);
        let (file, offset) = (self.blank.as_fd(), local.start() as u64);
        let staged = self.stage_trapped(local, Trapped { file, offset, stores, holes: true })?;
        self.put_in_place(staged, local).map_err(failed("mremap"))
    }

    /// Notes that windows of a permit show nothing any more.
    pub(super) fn note_changed(&mut self, permit: u32) -> Result<()> {
        for window in self.windows.iter().filter(|window| window.permit == permit) {
            self.changed.push(window.range).map_err(failed("mmap"))?;
        }
        Ok(())
    }
}
