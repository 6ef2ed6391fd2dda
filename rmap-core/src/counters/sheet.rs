//! The file with the numbers, as the process writes it that they are about.
//!
//! It is a file in memory of its own, not a part of the library's other memory, so that its descriptor can be given away, for reading. One thread writes
//! all of it but for the lines of the application's threads and the counts of failed calls. What is written here is never read to decide anything.
//!
//! ```text
//! 0        a head of words: what this is, and about whom; then the counters
//! 4 KiB    a line for each thread that attaches: attachments and detachments that were found without asking
//! 1 GiB    a row for each segment
//! 2 GiB    a row for each process that has had permits of this one
//! 3 GiB    a row for each process of which this one has had permits
//! ```

use super::{Cell, LENGTHS, STALL_LENGTHS};
use crate::error::{Error, Result};
use crate::own::OwnVec;
use crate::sys::fd::Kept;
use crate::sys::memory::{self, MapFlags, PAGE, ProtFlags};
use crate::sys::spare::{self, Temporary};
use crate::sys::{Errno, SysResult, fd, procfs, thread};
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::os::fd::{AsFd, BorrowedFd};

/// The name in `/proc/PID/maps`.
pub(crate) const MAPS_PATH: &[u8] = b"/memfd:rmap-counters (deleted)";

/// Words of the head.
pub(super) mod head {
    pub(in super::super) const MAGIC: usize = 0;
    pub(in super::super) const CELLS: usize = 1;
    pub(in super::super) const PID: usize = 2;
    pub(in super::super) const UID: usize = 3;
    pub(in super::super) const STARTED: usize = 4;
    pub(in super::super) const NAME: usize = 5;
    pub(in super::super) const ENDPOINT: usize = 7;
    pub(in super::super) const SEGMENT_ROWS: usize = 8;
    pub(in super::super) const IMPORTER_ROWS: usize = 9;
    pub(in super::super) const EXPORTER_ROWS: usize = 10;
    pub(in super::super) const FIRST_CELL: usize = 16;
}

/// What the first word is: a name, and the version of what is behind it. Counters may be added without another.
pub(super) const MAGIC: u64 = u64::from_ne_bytes(*b"rmapcnt1");
/// Bytes of the head.
pub(super) const HEAD: usize = PAGE;
/// Words of it that count.
pub(super) const CELLS: usize = LENGTHS + STALL_LENGTHS;

/// Threads that have a line for themselves.
const OWN_LINES: usize = 4096;
/// Lines that all others share.
const SHARED_LINES: usize = 64;
pub(super) const LINES: usize = OWN_LINES + SHARED_LINES;
/// Words of a line or row.
pub(super) const ROW: usize = 8;
pub(super) const ROW_BYTES: usize = ROW * 8;
pub(super) const LINES_AT: u64 = HEAD as u64;
pub(super) const SEGMENTS_AT: u64 = 1 << 30;
pub(super) const IMPORTERS_AT: u64 = 2 << 30;
pub(super) const EXPORTERS_AT: u64 = 3 << 30;
pub(super) const SIZE: u64 = 4 << 30;

/// Words of a thread's line.
pub(super) mod line {
    pub(in super::super) const ATTACHED: usize = 0;
    pub(in super::super) const DETACHED: usize = 1;
}

/// Words of a segment's row.
pub(super) mod segment {
    pub(in super::super) const USED: usize = 0;
    pub(in super::super) const ID: usize = 1;
    pub(in super::super) const START: usize = 2;
    pub(in super::super) const END: usize = 3;
    pub(in super::super) const MODE: usize = 4;
    pub(in super::super) const PERMITS: usize = 5;
}

/// Words of a row for another process.
pub(super) mod peer {
    pub(in super::super) const STATE: usize = 0;
    pub(in super::super) const PID: usize = 1;
    pub(in super::super) const UID: usize = 2;
    pub(in super::super) const PERMITS: usize = 3;
    pub(in super::super) const PERMITS_EVER: usize = 4;
    pub(in super::super) const BYTES: usize = 5;
    pub(in super::super) const TOUCHES: usize = 6;

    pub(in super::super) const CONNECTED: u64 = 1;
    pub(in super::super) const GONE: u64 = 2;
}

const _: () = assert!((head::FIRST_CELL + CELLS) * 8 <= HEAD);

type Word = AtomicU64;

/// Where the head is mapped in this process; null before it is made.
static HEAD_AT: AtomicPtr<Word> = AtomicPtr::new(core::ptr::null_mut());
/// The file, once it is made.
static FILE: Kept = Kept::none();
/// How many threads have asked for a line.
static THREADS: AtomicUsize = AtomicUsize::new(0);

fn word(index: usize) -> Option<&'static Word> {
    let head = HEAD_AT.load(Ordering::Relaxed);
    // SAFETY: null, or the head and the lines behind it, mapped for the life of the process. Callers stay inside the two.
    unsafe { (!head.is_null()).then(|| &*head.add(index)) }
}

/// Changes a counter. For the service thread alone.
pub(super) fn update(cell: usize, change: impl FnOnce(u64) -> u64) {
    if let Some(word) = word(head::FIRST_CELL + cell) {
        word.store(change(word.load(Ordering::Relaxed)), Ordering::Relaxed);
    }
}

pub(super) fn add_anywhere(cell: usize) {
    if let Some(word) = word(head::FIRST_CELL + cell) {
        word.fetch_add(1, Ordering::Relaxed);
    }
}

/// The next thread's number.
pub(crate) fn number_thread() -> usize {
    THREADS.fetch_add(1, Ordering::Relaxed)
}

/// Where attachments and detachments of the application's threads are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lines(usize);

impl Lines {
    /// Those of this process.
    pub(crate) fn of_this_process() -> Self {
        Self(word(HEAD / 8).map_or(0, |word| core::ptr::from_ref(word).expose_provenance()))
    }

    pub(crate) fn address(self) -> usize {
        self.0
    }

    /// From [`Self::address`].
    ///
    /// # Safety
    /// Nothing else.
    pub(crate) unsafe fn at(address: usize) -> Self {
        Self(address)
    }

    /// Counts an attachment of the thread with this number.
    #[inline]
    pub(crate) fn attached(self, thread: usize) {
        self.count(thread, line::ATTACHED);
    }

    /// Counts a detachment.
    #[inline]
    pub(crate) fn detached(self, thread: usize) {
        self.count(thread, line::DETACHED);
    }

    #[inline]
    fn count(self, thread: usize, column: usize) {
        if self.0 == 0 {
            return;
        }
        let lines: *const Word = core::ptr::with_exposed_provenance(self.0);
        let alone = thread < OWN_LINES;
        let line = if alone { thread } else { OWN_LINES + thread % SHARED_LINES };
        // SAFETY: inside the lines, which are never unmapped.
        let word = unsafe { &*lines.add(line * ROW + column) };
        if alone {
            // Nobody else writes here, so this is as good as an addition in one step, which takes longer than all else.
            word.store(word.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        } else {
            word.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Makes the file for this process. For the thread that is about to start the service thread.
///
/// # Errors
/// [`Error::OutOfResources`].
pub(crate) fn start() -> Result<()> {
    make().map_err(|errno| Error::OutOfResources { call: "making a file for counters", errno })
}

fn make() -> SysResult<()> {
    if !HEAD_AT.load(Ordering::Relaxed).is_null() {
        return Ok(());
    }
    let file = memory::sealed_memfd(c"rmap-counters", SIZE)?;
    let len = HEAD + LINES * ROW_BYTES;
    let rw = ProtFlags::READ | ProtFlags::WRITE;
    let at = memory::map(len, rw, MapFlags::SHARED, file.as_fd(), 0)?;
    memory::advise(at, len, libc::MADV_DONTFORK)?;
    FILE.keep(file)?;
    HEAD_AT.store(core::ptr::with_exposed_provenance_mut(at), Ordering::Release);
    let mut name = [0; 16];
    let _ = procfs::read_small(c"/proc/self/comm", &mut name);
    let end = name.iter().position(|byte| *byte == b'\n').unwrap_or(name.len());
    name[end..].fill(0);
    let (first, second) = name.split_at(8);
    let text = |half: &[u8]| half.try_into().map_or(0, u64::from_ne_bytes);
    let about = [
        (head::CELLS, CELLS as u64),
        (head::PID, u64::from(std::process::id())),
        (head::UID, u64::from(rustix::process::geteuid().as_raw())),
        (head::STARTED, u64::try_from(thread::time().as_nanos()).unwrap_or(0)),
        (head::NAME, text(first)),
        (head::NAME + 1, text(second)),
        (head::MAGIC, MAGIC),
    ];
    for (index, value) in about {
        set_head(index, value);
    }
    Ok(())
}

fn set_head(index: usize, value: u64) {
    if let Some(word) = word(index) {
        word.store(value, Ordering::Release);
    }
}

/// Under which name this process is met.
pub(crate) fn set_endpoint(endpoint: u64) {
    set_head(head::ENDPOINT, endpoint);
}

/// The file, if the application has not put another in its place.
fn file() -> SysResult<BorrowedFd<'static>> {
    FILE.get_if_there().ok_or(Errno::BADF)
}

/// A descriptor to give away: it can only be read. In place of a spare one, if there is no other room.
pub(crate) fn to_be_read() -> SysResult<Temporary> {
    let file = file()?;
    spare::instead_of_one(|| fd::reopen(file, false)).map(Temporary::from)
}

/// A forked child has not inherited the mapping, and counts from the start.
pub(crate) fn forget_after_fork() {
    HEAD_AT.store(core::ptr::null_mut(), Ordering::Release);
    FILE.close_after_fork();
}

/// Rows that grow.
#[derive(Debug)]
struct Rows {
    /// Where in the file they begin, and how many there may be.
    offset: u64,
    most: usize,
    /// Where in the head their number is.
    count: usize,
    view: usize,
    room: usize,
    len: usize,
}

impl Rows {
    const fn new(offset: u64, end: u64, count: usize) -> Self {
        Self { offset, most: (end - offset) as usize / ROW_BYTES, count, view: 0, room: 0, len: 0 }
    }

    /// One row more.
    fn push(&mut self) -> SysResult<usize> {
        if self.len == self.most {
            return Err(Errno::NOSPC);
        }
        if self.len == self.room {
            let room = (self.room * 2).max(PAGE / ROW_BYTES);
            let rw = ProtFlags::READ | ProtFlags::WRITE;
            let view = memory::map(room * ROW_BYTES, rw, MapFlags::SHARED, file()?, self.offset)?;
            memory::advise(view, room * ROW_BYTES, libc::MADV_DONTFORK)?;
            self.unmap();
            (self.view, self.room) = (view, room);
        }
        self.len += 1;
        set_head(self.count, self.len as u64);
        Ok(self.len - 1)
    }

    fn word(&self, row: usize, column: usize) -> Option<&Word> {
        let words: *const Word = core::ptr::with_exposed_provenance(self.view);
        // SAFETY: inside the view.
        (row < self.len && column < ROW).then(|| unsafe { &*words.add(row * ROW + column) })
    }

    fn set(&self, row: usize, column: usize, value: u64) {
        if let Some(word) = self.word(row, column) {
            word.store(value, Ordering::Release);
        }
    }

    fn add(&self, row: usize, column: usize, more: u64) {
        if let Some(word) = self.word(row, column) {
            word.store(word.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
        }
    }

    fn unmap(&self) {
        if self.room > 0 {
            // SAFETY: our own view, which nobody but `self` refers to.
            let _ = unsafe { memory::unmap(self.view, self.room * ROW_BYTES) };
        }
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        self.unmap();
    }
}

/// The segments of this process, for others to see.
#[derive(Debug)]
pub(crate) struct SegmentRows {
    rows: Rows,
    free: OwnVec<usize>,
}

/// A row; none where there was no room for one.
pub(crate) type Row = Option<usize>;

impl SegmentRows {
    pub(crate) fn new() -> Self {
        Self { rows: Rows::new(SEGMENTS_AT, IMPORTERS_AT, head::SEGMENT_ROWS), free: OwnVec::new() }
    }

    /// Notes a segment.
    pub(crate) fn insert(&mut self, id: u64, start: usize, end: usize, mode: u32) -> Row {
        // So that giving it back cannot fail.
        self.free.reserve(self.rows.len + 1).ok()?;
        let free = self.free.remove(self.free.len().wrapping_sub(1));
        let row = free.map_or_else(|| self.rows.push(), Ok).ok()?;
        let values = [
            (segment::ID, id),
            (segment::START, start as u64),
            (segment::END, end as u64),
            (segment::MODE, u64::from(mode)),
            (segment::PERMITS, 0),
            (segment::USED, 1),
        ];
        for (column, value) in values {
            self.rows.set(row, column, value);
        }
        Some(row)
    }

    pub(crate) fn remove(&mut self, row: Row) {
        if let Some(row) = row {
            self.rows.set(row, segment::USED, 0);
            let _ = self.free.push(row);
        }
    }

    /// Notes how many hold permits of it.
    pub(crate) fn set_permits(&self, row: Row, permits: u64) {
        if let Some(row) = row {
            self.rows.set(row, segment::PERMITS, permits);
        }
    }
}

/// What a row says of a process that is gone, so that it can go on where the process, or one like it, comes back.
#[derive(Clone, Copy, Debug)]
struct Former {
    row: usize,
    pid: u32,
    uid: u32,
}

/// Processes that this one shares memory with, or did.
#[derive(Debug)]
pub(crate) struct PeerRows {
    rows: Rows,
    former: OwnVec<Former>,
}

/// So many of those that are gone are remembered. A job has fewer on one machine.
const FORMER: usize = 1 << 14;

impl PeerRows {
    /// For processes that have permits of this one.
    pub(crate) fn of_importers() -> Self {
        Self { rows: Rows::new(IMPORTERS_AT, EXPORTERS_AT, head::IMPORTER_ROWS), former: OwnVec::new() }
    }

    /// For processes of which this one has permits.
    pub(crate) fn of_exporters() -> Self {
        Self { rows: Rows::new(EXPORTERS_AT, SIZE, head::EXPORTER_ROWS), former: OwnVec::new() }
    }

    /// Notes a process. One that was here before goes on with what it had.
    pub(crate) fn insert(&mut self, pid: u32, uid: u32) -> Row {
        let former = &mut self.former;
        let same = former.iter().position(|former| (former.pid, former.uid) == (pid, uid));
        if let Some(former) = same.and_then(|index| former.remove(index)) {
            self.rows.set(former.row, peer::STATE, peer::CONNECTED);
            return Some(former.row);
        }
        let oldest = if former.len() >= FORMER { former.remove(0) } else { None };
        let row = oldest.map_or_else(|| self.rows.push(), |former| Ok(former.row)).ok()?;
        let values = [
            (peer::STATE, 0),
            (peer::PID, u64::from(pid)),
            (peer::UID, u64::from(uid)),
            (peer::PERMITS, 0),
            (peer::PERMITS_EVER, 0),
            (peer::BYTES, 0),
            (peer::TOUCHES, 0),
            (peer::STATE, peer::CONNECTED),
        ];
        for (column, value) in values {
            self.rows.set(row, column, value);
        }
        Some(row)
    }

    /// The process is gone.
    pub(crate) fn remove(&mut self, row: Row, pid: u32, uid: u32) {
        if let Some(row) = row {
            self.rows.set(row, peer::STATE, peer::GONE);
            self.rows.set(row, peer::PERMITS, 0);
            let _ = self.former.push(Former { row, pid, uid });
        }
    }

    /// It has got a permit.
    pub(crate) fn permit(&self, row: Row) {
        if let Some(row) = row {
            self.rows.add(row, peer::PERMITS, 1);
            self.rows.add(row, peer::PERMITS_EVER, 1);
        }
    }

    /// It holds so many.
    pub(crate) fn set_permits(&self, row: Row, permits: u64) {
        if let Some(row) = row {
            self.rows.set(row, peer::PERMITS, permits);
        }
    }

    /// A question was answered, with so many bytes.
    pub(crate) fn answer(&self, row: Row, bytes: u64) {
        if let Some(row) = row {
            self.rows.add(row, peer::BYTES, bytes);
            self.rows.add(row, peer::TOUCHES, 1);
        }
    }
}

/// What this process has counted.
pub(crate) fn counters() -> super::Counters {
    let read = |index: usize| word(index).map_or(0, |word| word.load(Ordering::Relaxed));
    let lines = THREADS.load(Ordering::Relaxed);
    let lines = (0..lines.min(OWN_LINES)).chain(OWN_LINES..if lines > OWN_LINES { LINES } else { OWN_LINES });
    let (mut attached, mut detached) = (0u64, 0u64);
    for line in lines {
        attached = attached.wrapping_add(read(HEAD / 8 + line * ROW + line::ATTACHED));
        detached = detached.wrapping_add(read(HEAD / 8 + line * ROW + line::DETACHED));
    }
    with_lines(|cell| read(head::FIRST_CELL + cell), attached, detached)
}

/// Counters, with what the lines of the threads say together.
pub(super) fn with_lines(cells: impl Fn(usize) -> u64, attached: u64, detached: u64) -> super::Counters {
    super::Counters::from_cells(|cell| match cell {
        cell if cell == Cell::AttachHits as usize => attached,
        cell if cell == Cell::DetachHits as usize => detached,
        cell => cells(cell),
    })
}
