//! What the engines `mirror` and `driver` have now: the kernel serves, so no thread has all of it in its hands, and the threads that call note it, one at a time.
//!
//! It is noted for others to see. Nothing is decided by it.

use super::sheet::{
    ALONE, EXPORTERS_AT, ROW, ROW_BYTES, SEGMENTS_AT, head, peer, segment, set_head, write_row,
};
use crate::id::Id;
use crate::range::Range;
use crate::sys::memory::PAGE;
use std::collections::{BTreeMap, HashMap};

/// Rows of one kind, of which those that are given back are used again.
#[derive(Debug, Default)]
struct Places {
    free: Vec<u64>,
    len: u64,
}

impl Places {
    fn take(&mut self, count: usize) -> u64 {
        self.free.pop().unwrap_or_else(|| {
            self.len += 1;
            set_head(count, self.len);
            self.len - 1
        })
    }
}

/// Where a row is; `None` beyond the room for them.
fn at(table: u64, row: u64) -> Option<u64> {
    let offset = row.checked_mul(ROW_BYTES as u64).filter(|offset| *offset < ALONE)?;
    Some(table + ALONE + offset)
}

/// A process that permits were got of.
#[derive(Debug)]
struct Exporter {
    row: u64,
    permits: u64,
    ever: u64,
}

/// A process, as this one sees it, and its user.
pub(crate) type Party = (u32, u32);

/// What this process has by engines without a service thread.
#[derive(Debug, Default)]
pub(crate) struct Alone {
    segment_rows: Places,
    segments: HashMap<Id, u64>,
    exporters: HashMap<Party, Exporter>,
    permits: HashMap<Id, Party>,
    /// By address: how long, and by which permit.
    attached: BTreeMap<usize, (usize, Id)>,
    attached_bytes: u64,
    /// Exporters of which there are permits.
    connected: u64,
}

impl Alone {
    /// Notes a segment.
    pub(crate) fn made(&mut self, id: Id, range: Range, mode: u32) {
        let row = self.segment_rows.take(head::ALONE_SEGMENT_ROWS);
        self.segments.insert(id, row);
        let (start, end) = (range.start() as u64, range.end() as u64);
        let id = id.to_raw().cast_unsigned();
        if let Some(at) = at(SEGMENTS_AT, row) {
            let row = [
                (segment::USED, segment::UNCOUNTED),
                (segment::ID, id),
                (segment::START, start),
                (segment::END, end),
                (segment::MODE, u64::from(mode)),
            ];
            write_row(at, &row_of(&row));
        }
        set_head(head::ALONE_SEGMENTS, self.segments.len() as u64);
    }

    /// A segment is removed.
    pub(crate) fn removed(&mut self, id: Id) {
        if let Some(row) = self.segments.remove(&id) {
            if let Some(at) = at(SEGMENTS_AT, row) {
                write_row(at, &[0; ROW]);
            }
            self.segment_rows.free.push(row);
            set_head(head::ALONE_SEGMENTS, self.segments.len() as u64);
        }
    }

    /// Notes a permit.
    pub(crate) fn got(&mut self, permit: Id, exporter: Party) {
        let row = self.exporters.len() as u64;
        let entry = self.exporters.entry(exporter).or_insert(Exporter { row, permits: 0, ever: 0 });
        self.connected += u64::from(entry.permits == 0);
        (entry.permits, entry.ever) = (entry.permits + 1, entry.ever + 1);
        self.permits.insert(permit, exporter);
        set_head(head::ALONE_EXPORTER_ROWS, self.exporters.len() as u64);
        self.show(exporter);
    }

    /// A permit is given back, and what was attached by it is gone.
    pub(crate) fn released(&mut self, permit: Id) {
        if let Some(exporter) = self.permits.remove(&permit) {
            if let Some(entry) = self.exporters.get_mut(&exporter) {
                entry.permits -= 1;
                self.connected -= u64::from(entry.permits == 0);
            }
            self.show(exporter);
        }
        let of_it = |(base, (_, by)): (&usize, &(usize, Id))| (*by == permit).then_some(*base);
        let gone: Vec<usize> = self.attached.iter().filter_map(of_it).collect();
        gone.into_iter().for_each(|base| self.forget(base));
        self.show_attached();
    }

    /// Notes an attachment, in place of what was noted there.
    pub(crate) fn attached(&mut self, permit: Id, here: Range) {
        while let Some(base) = self.overlapping(here) {
            self.forget(base);
        }
        self.attached.insert(here.start(), (here.len(), permit));
        self.attached_bytes += here.len() as u64;
        self.show_attached();
    }

    /// The attachment is gone that covers an address.
    pub(crate) fn detached(&mut self, addr: usize) {
        let page = Range::new(addr & !(PAGE - 1), PAGE);
        if let Some(base) = page.and_then(|page| self.overlapping(page)) {
            self.forget(base);
            self.show_attached();
        }
    }

    fn forget(&mut self, base: usize) {
        if let Some((len, _)) = self.attached.remove(&base) {
            self.attached_bytes -= len as u64;
        }
    }

    fn overlapping(&self, range: Range) -> Option<usize> {
        let (base, (len, _)) = self.attached.range(..range.end()).next_back()?;
        (base + len > range.start()).then_some(*base)
    }

    fn show(&self, exporter: Party) {
        let Some(entry) = self.exporters.get(&exporter) else { return };
        if let Some(at) = at(EXPORTERS_AT, entry.row) {
            let (pid, uid) = exporter;
            let row = [
                (peer::STATE, if entry.permits > 0 { peer::CONNECTED } else { peer::GONE }),
                (peer::PID, u64::from(pid)),
                (peer::UID, u64::from(uid)),
                (peer::PERMITS, entry.permits),
                (peer::PERMITS_EVER, entry.ever),
            ];
            write_row(at, &row_of(&row));
        }
        set_head(head::ALONE_PERMITS, self.permits.len() as u64);
        set_head(head::ALONE_EXPORTERS, self.connected);
    }

    fn show_attached(&self) {
        set_head(head::ALONE_WINDOWS, self.attached.len() as u64);
        set_head(head::ALONE_WINDOW_BYTES, self.attached_bytes);
    }
}

fn row_of(values: &[(usize, u64)]) -> [u64; ROW] {
    let mut row = [0; ROW];
    for (column, value) in values {
        row[*column] = *value;
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: usize, pages: usize) -> Range {
        Range::new(start * PAGE, pages * PAGE).unwrap()
    }

    #[test]
    fn what_is_attached_is_counted_once() {
        let mut alone = Alone::default();
        let [first, second] = [1, 2].map(|raw| Id::from_raw(raw).unwrap());
        alone.got(first, (7, 0));
        alone.got(second, (7, 0));
        assert_eq!((alone.connected, alone.exporters.len()), (1, 1));
        alone.attached(first, range(10, 4));
        alone.attached(second, range(20, 2));
        assert_eq!(alone.attached_bytes, 6 * PAGE as u64);
        // The application has unmapped the first by itself.
        alone.attached(second, range(12, 4));
        assert_eq!(alone.attached_bytes, 6 * PAGE as u64);
        alone.detached(21 * PAGE + 5);
        alone.detached(30 * PAGE);
        assert_eq!(alone.attached_bytes, 4 * PAGE as u64);
        alone.released(first);
        assert_eq!((alone.connected, alone.attached_bytes), (1, 4 * PAGE as u64));
        alone.released(second);
        assert_eq!((alone.connected, alone.attached_bytes), (0, 0));
        alone.released(second);
        assert_eq!(alone.connected, 0);
    }

    #[test]
    fn rows_are_used_again() {
        let mut alone = Alone::default();
        let ids = [1, 2, 3].map(|raw| Id::from_raw(raw).unwrap());
        alone.made(ids[0], range(0, 1), 0o600);
        alone.made(ids[1], range(0, 1), 0o600);
        alone.removed(ids[0]);
        alone.made(ids[2], range(0, 1), 0o600);
        assert_eq!(alone.segment_rows.len, 2);
        assert_eq!(alone.segments[&ids[2]], 0);
        assert_eq!(at(SEGMENTS_AT, ALONE / ROW_BYTES as u64), None);
    }
}
