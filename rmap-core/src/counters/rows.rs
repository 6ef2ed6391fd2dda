//! Rows of segments, importers and exporters in the file with the numbers, which grow.

use super::sheet::{
    ALONE, EXPORTERS_AT, IMPORTERS_AT, ROW, ROW_BYTES, SEGMENTS_AT, file, head, peer, segment, set_head,
};
use crate::own::OwnVec;
use crate::sys::memory::{self, MapFlags, PAGE, ProtFlags};
use crate::sys::{Errno, SysResult};
use core::sync::atomic::{AtomicU64, Ordering};

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

    fn word(&self, row: usize, column: usize) -> Option<&AtomicU64> {
        let words: *const AtomicU64 = core::ptr::with_exposed_provenance(self.view);
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
        Self { rows: Rows::new(SEGMENTS_AT, SEGMENTS_AT + ALONE, head::SEGMENT_ROWS), free: OwnVec::new() }
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
            (segment::USED, segment::COUNTED),
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
        Self {
            rows: Rows::new(EXPORTERS_AT, EXPORTERS_AT + ALONE, head::EXPORTER_ROWS),
            former: OwnVec::new(),
        }
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
