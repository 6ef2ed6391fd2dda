//! The file with the numbers, as the process writes it that they are about.
//!
//! It is a file in memory of its own, not a part of the library's other memory, so that its descriptor can be given away, for reading. The service thread writes
//! all of it but for the lines of the application's threads, the counts of failed calls, and what engines without one count. What is written here is never read to decide anything.
//!
//! ```text
//! 0        a head of words: what this is, and about whom; then the counters
//! 4 KiB    a line for each thread that attaches: attachments and detachments that were found without asking
//! 1 GiB    a row for each segment
//! 2 GiB    a row for each process that has had permits of this one
//! 3 GiB    a row for each process of which this one has had permits
//! ```
//!
//! Engines without a service thread ([`alone`](super::alone)) have the upper halves of the places for rows, and words of the head for themselves: in a process
//! with engines of both kinds both write.

use super::{Cell, LENGTHS, STALL_LENGTHS};
use crate::error::{Error, Result};
use crate::sys::fd::{self, Kept};
use crate::sys::memory::{self, MapFlags, PAGE, ProtFlags};
use crate::sys::{Errno, SysResult, procfs, thread};
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const NAME: &core::ffi::CStr = c"rmap-counters";
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
    /// From here on for engines without a service thread. Room is left for cells.
    pub(in super::super) const ALONE_SEGMENT_ROWS: usize = 256;
    pub(in super::super) const ALONE_EXPORTER_ROWS: usize = 257;
    pub(in super::super) const ALONE_SEGMENTS: usize = 258;
    pub(in super::super) const ALONE_PERMITS: usize = 259;
    pub(in super::super) const ALONE_EXPORTERS: usize = 260;
    pub(in super::super) const ALONE_WINDOWS: usize = 261;
    pub(in super::super) const ALONE_WINDOW_BYTES: usize = 262;
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
/// How far into the place for rows those of engines without a service thread begin.
pub(super) const ALONE: u64 = 512 << 20;

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

    pub(in super::super) const COUNTED: u64 = 1;
    /// It is not known who has permits.
    pub(in super::super) const UNCOUNTED: u64 = 2;
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

const _: () = assert!(head::FIRST_CELL + CELLS <= head::ALONE_SEGMENT_ROWS);
const _: () = assert!((head::ALONE_WINDOW_BYTES + 1) * 8 <= HEAD);

type Word = AtomicU64;

/// Where the head is mapped in this process; null before it is made.
static HEAD_AT: AtomicPtr<Word> = AtomicPtr::new(core::ptr::null_mut());
/// The file, once it is made: the service thread's descriptor.
static FILE: Kept = Kept::none();
/// The same file, among the application's descriptors, where an engine without a service thread has made it.
static OPEN: Kept = Kept::none();
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

const LEN: usize = HEAD + LINES * ROW_BYTES;

/// Makes the file where no thread has a table for its descriptor: it is among the application's, where others of its user find it. Failing to is not
/// worth failing for: then this process counts for itself.
pub(crate) fn start_alone() {
    if !HEAD_AT.load(Ordering::Acquire).is_null() {
        return;
    }
    let made = memory::sealed_memfd(NAME, SIZE).and_then(|file| Ok((map(file.as_fd())?, file)));
    let (at, file) = match made {
        Ok((at, file)) => (at, Some(file)),
        Err(_) => {
            let rw = ProtFlags::READ | ProtFlags::WRITE;
            let Ok(at) = memory::map_anonymous(LEN, rw, MapFlags::NORESERVE) else { return };
            (at, None)
        }
    };
    let new = core::ptr::with_exposed_provenance_mut(at);
    if HEAD_AT.compare_exchange(core::ptr::null_mut(), new, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        // SAFETY: just mapped, and nobody has seen it.
        let _ = unsafe { memory::unmap(at, LEN) };
    } else if let Some(file) = file {
        describe();
        let _ = OPEN.keep(file);
    }
}

fn map(file: BorrowedFd<'_>) -> SysResult<usize> {
    let rw = ProtFlags::READ | ProtFlags::WRITE;
    let at = memory::map(LEN, rw, MapFlags::SHARED, file, 0)?;
    memory::advise(at, LEN, libc::MADV_DONTFORK)?;
    Ok(at)
}

/// Writes a row of an engine without a service thread. Without the descriptor, which the application may have closed, there is none.
pub(super) fn write_row(at: u64, row: &[u64; ROW]) {
    let mut bytes = [0; ROW_BYTES];
    for (to, word) in bytes.chunks_exact_mut(8).zip(row) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    if let Some(file) = OPEN.get_if_there() {
        let _ = rustix::io::pwrite(file, &bytes, at);
    }
}

/// Makes the file for this process. For the service thread.
///
/// # Errors
/// [`Error::OutOfResources`].
pub(crate) fn start() -> Result<()> {
    make().map_err(|errno| Error::OutOfResources { call: "making a file for counters", errno })
}

fn make() -> SysResult<()> {
    if FILE.file().is_some() {
        return Ok(());
    }
    // What was made without this thread goes on.
    if let Ok(file) = OPEN.reopen_of_process() {
        return FILE.keep(file);
    }
    let file = memory::sealed_memfd(NAME, SIZE)?;
    let at = map(file.as_fd())?;
    FILE.keep(file)?;
    // What was counted alone. That memory stays mapped: somebody may be counting there.
    let counted: [u64; CELLS] = core::array::from_fn(|cell| {
        word(head::FIRST_CELL + cell).map_or(0, |word| word.load(Ordering::Relaxed))
    });
    HEAD_AT.store(core::ptr::with_exposed_provenance_mut(at), Ordering::Release);
    for (cell, count) in counted.into_iter().enumerate() {
        set_head(head::FIRST_CELL + cell, count);
    }
    describe();
    Ok(())
}

/// Says whose numbers these are.
fn describe() {
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
}

pub(super) fn set_head(index: usize, value: u64) {
    if let Some(word) = word(index) {
        word.store(value, Ordering::Release);
    }
}

/// Under which name this process is met.
pub(crate) fn set_endpoint(endpoint: u64) {
    set_head(head::ENDPOINT, endpoint);
}

/// The file. For the service thread.
pub(super) fn file() -> SysResult<BorrowedFd<'static>> {
    FILE.get().ok_or(Errno::BADF)
}

/// A descriptor to give away: it can only be read. For any thread.
pub(crate) fn to_be_read() -> SysResult<OwnedFd> {
    match OPEN.get_if_there() {
        Some(file) if FILE.file().is_none() => fd::reopen(file, false),
        _ => FILE.reopen_to_read(),
    }
}

/// The service thread is gone, with its descriptors.
pub(crate) fn forget_service() {
    FILE.forget();
    if OPEN.file().is_none() {
        HEAD_AT.store(core::ptr::null_mut(), Ordering::Release);
    }
}

/// Nothing is counted any more: a forked child has not inherited the mapping, and counts from the start.
pub(crate) fn forget() {
    HEAD_AT.store(core::ptr::null_mut(), Ordering::Release);
    FILE.forget();
    if OPEN.get_if_there().is_some() {
        OPEN.close();
    } else {
        OPEN.forget();
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
    with_alone(with_lines(|cell| read(head::FIRST_CELL + cell), attached, detached), read)
}

/// Counters, with how it is now in engines without a service thread.
pub(super) fn with_alone(mut counters: super::Counters, head: impl Fn(usize) -> u64) -> super::Counters {
    let more = [
        (&mut counters.segments, head::ALONE_SEGMENTS),
        (&mut counters.permits_held, head::ALONE_PERMITS),
        (&mut counters.exporters, head::ALONE_EXPORTERS),
        (&mut counters.windows, head::ALONE_WINDOWS),
        (&mut counters.window_bytes, head::ALONE_WINDOW_BYTES),
    ];
    for (number, index) in more {
        *number = number.wrapping_add(head(index));
    }
    counters
}

/// Counters, with what the lines of the threads say together.
pub(super) fn with_lines(cells: impl Fn(usize) -> u64, attached: u64, detached: u64) -> super::Counters {
    super::Counters::from_cells(|cell| match cell {
        cell if cell == Cell::AttachHits as usize => attached,
        cell if cell == Cell::DetachHits as usize => detached,
        cell => cells(cell),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_has_a_line() {
        let words: Vec<Word> = (0..LINES * ROW).map(|_| Word::new(0)).collect();
        // SAFETY: as long as all lines together.
        let lines = unsafe { Lines::at(words.as_ptr().expose_provenance()) };
        let threads = [0, 1, OWN_LINES - 1, OWN_LINES, LINES, usize::MAX - 1];
        for thread in threads {
            lines.attached(thread);
            lines.attached(thread);
            lines.detached(thread);
        }
        let column = |column: usize| -> u64 {
            words.chunks_exact(ROW).map(|line| line[column].load(Ordering::Relaxed)).sum()
        };
        assert_eq!((column(line::ATTACHED), column(line::DETACHED)), (12, 6));
        assert_eq!(words[(OWN_LINES - 1) * ROW].load(Ordering::Relaxed), 2);
        Lines(0).attached(0);
    }
}
