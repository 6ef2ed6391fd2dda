//! The file with the numbers, as anybody else reads it: with `pread`, and nothing in it is believed.

use super::Counters;
use super::sheet::{
    self, ALONE, CELLS, EXPORTERS_AT, HEAD, IMPORTERS_AT, LINES, LINES_AT, MAGIC, ROW, ROW_BYTES,
    SEGMENTS_AT, SIZE, head, line, peer, segment,
};
use crate::error::{Error, Result, failed};
use crate::range::Range;
use core::time::Duration;
use rustix::fs::SealFlags;
use std::os::fd::AsFd;

/// A segment of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its id, as C has it.
    pub id: i64,
    /// The addresses.
    pub range: Range,
    /// Its permission bits.
    pub mode: u32,
    /// Permits that others hold; `None` where the kernel gives them (the engines `mirror` and `driver`), and nobody counts.
    pub permits: Option<u64>,
}

/// A process that one shares memory with, or did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Whether it is connected.
    pub connected: bool,
    /// Its id, as the process sees it that this is about; 0 if it cannot be seen from there.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Permits that are held now.
    pub permits: u64,
    /// Permits that were ever.
    pub permits_ever: u64,
    /// Bytes of address space that first touches were answered with.
    pub bytes: u64,
    /// How many first touches there were.
    pub touches: u64,
}

/// What a process has counted, and whom it shares what with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sheet {
    /// The process, as it sees itself.
    pub pid: u32,
    /// Its effective user, as it sees it.
    pub uid: u32,
    /// The name of its program, of at most 15 bytes.
    pub name: String,
    /// When it began, by the clock that goes on from the machine's start.
    pub started: Duration,
    /// What the ids of its segments begin with, in hexadecimal.
    pub endpoint: String,
    /// What it has counted.
    pub counters: Counters,
    /// Its segments; no more than are asked for.
    pub segments: Vec<Segment>,
    /// Those that have permits of it, or had; no more than are asked for.
    pub importers: Vec<Peer>,
    /// Those of which it has permits, or had; no more than are asked for.
    pub exporters: Vec<Peer>,
}

fn read_words(file: impl AsFd, at: u64, count: usize) -> Result<Vec<u64>> {
    let mut bytes = vec![0u8; count * 8];
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(&file, &mut bytes[done..], at + done as u64) {
            Ok(0) => return Err(Error::Invalid("a sheet of counters that ends early")),
            Ok(count) => done += count,
            Err(crate::sys::Errno::INTR) => {}
            Err(errno) => return Err(failed("pread")(errno)),
        }
    }
    let words = bytes.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_ne_bytes));
    Ok(words.collect())
}

fn read_rows(file: impl AsFd, at: u64, end: u64, count: u64, most: usize) -> Result<Vec<[u64; ROW]>> {
    let room = (end - at) / ROW_BYTES as u64;
    let count = usize::try_from(count.min(room)).map_or(most, |count| count.min(most));
    let words = read_words(file, at, count * ROW)?;
    Ok(words.chunks_exact(ROW).filter_map(|row| row.try_into().ok()).collect())
}

impl Sheet {
    /// Reads what a process has given, with at most so many rows of segments and of processes.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is something else, or of another version.
    pub fn read(file: impl AsFd, most: usize) -> Result<Self> {
        let invalid = Error::Invalid("not a sheet of counters");
        let stat = rustix::fs::fstat(&file).map_err(failed("fstat"))?;
        // A file in memory, that cannot get shorter: reading it cannot wait for anybody.
        let seals = rustix::fs::fcntl_get_seals(&file).unwrap_or(SealFlags::empty());
        if !seals.contains(SealFlags::SHRINK) || u64::try_from(stat.st_size) != Ok(SIZE) {
            return Err(invalid);
        }
        let words = read_words(&file, 0, HEAD / 8)?;
        if words[head::MAGIC] != MAGIC {
            return Err(invalid);
        }
        let lines = read_words(&file, LINES_AT, LINES * ROW)?;
        let sum =
            |column: usize| lines.chunks_exact(ROW).fold(0u64, |sum, line| sum.wrapping_add(line[column]));
        // One of another version may have fewer counters, or more.
        let known = usize::try_from(words[head::CELLS]).map_or(CELLS, |count| count.min(CELLS));
        let cell = |cell: usize| if cell < known { words[head::FIRST_CELL + cell] } else { 0 };
        let counters = sheet::with_lines(cell, sum(line::ATTACHED), sum(line::DETACHED));
        let counters = sheet::with_alone(counters, |index| words[index]);
        let name: Vec<u8> = words[head::NAME..head::NAME + 2].iter().flat_map(|w| w.to_ne_bytes()).collect();
        let rows = |at, end, count: usize| read_rows(&file, at, end, words[count], most);
        let mut segments = rows(SEGMENTS_AT, SEGMENTS_AT + ALONE, head::SEGMENT_ROWS)?;
        segments.extend(rows(SEGMENTS_AT + ALONE, IMPORTERS_AT, head::ALONE_SEGMENT_ROWS)?);
        let importers = rows(IMPORTERS_AT, EXPORTERS_AT, head::IMPORTER_ROWS)?;
        let mut exporters = rows(EXPORTERS_AT, EXPORTERS_AT + ALONE, head::EXPORTER_ROWS)?;
        exporters.extend(rows(EXPORTERS_AT + ALONE, SIZE, head::ALONE_EXPORTER_ROWS)?);
        Ok(Self {
            pid: words[head::PID] as u32,
            uid: words[head::UID] as u32,
            name: plain(&name),
            started: Duration::from_nanos(words[head::STARTED]),
            endpoint: format!("{:09x}", words[head::ENDPOINT]),
            counters,
            segments: segments.iter().filter_map(Segment::from_row).take(most).collect(),
            importers: importers.iter().filter_map(Peer::from_row).collect(),
            exporters: exporters.iter().filter_map(Peer::from_row).take(most).collect(),
        })
    }
}

impl Sheet {
    /// Adds those of `others` that have, or had, permits of this process where it does not know: where the kernel gives them. Processes are told
    /// apart by how they number themselves.
    pub fn add_importers<'a>(&mut self, others: impl IntoIterator<Item = &'a Self>) {
        for importer in others {
            if self.importers.iter().any(|peer| peer.pid == importer.pid) {
                continue;
            }
            let of_this = |peer: &&Peer| peer.pid == self.pid && peer.permits_ever > 0;
            for peer in importer.exporters.iter().filter(of_this) {
                self.importers.push(Peer { pid: importer.pid, uid: importer.uid, ..*peer });
                self.counters.importers += u64::from(peer.permits > 0);
                self.counters.permits_given_now += peer.permits;
            }
        }
    }
}

/// A name that does nothing to a terminal.
fn plain(name: &[u8]) -> String {
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

impl Segment {
    fn from_row(row: &[u64; ROW]) -> Option<Self> {
        let range = Range::between(row[segment::START] as usize, row[segment::END] as usize)?;
        let used = [segment::COUNTED, segment::UNCOUNTED].contains(&row[segment::USED]);
        used.then_some(Self {
            id: row[segment::ID].cast_signed(),
            range,
            mode: row[segment::MODE] as u32 & 0o777,
            permits: (row[segment::USED] == segment::COUNTED).then_some(row[segment::PERMITS]),
        })
    }
}

impl Peer {
    fn from_row(row: &[u64; ROW]) -> Option<Self> {
        matches!(row[peer::STATE], peer::CONNECTED | peer::GONE).then_some(Self {
            connected: row[peer::STATE] == peer::CONNECTED,
            pid: row[peer::PID] as u32,
            uid: row[peer::UID] as u32,
            permits: row[peer::PERMITS],
            permits_ever: row[peer::PERMITS_EVER],
            bytes: row[peer::BYTES],
            touches: row[peer::TOUCHES],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memory;
    use proptest::prelude::*;

    fn file_with(parts: &[(u64, Vec<u64>)]) -> std::os::fd::OwnedFd {
        let file = memory::sealed_memfd(c"test", SIZE).unwrap();
        for (at, words) in parts {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            assert_eq!(rustix::io::pwrite(&file, &bytes, *at), Ok(bytes.len()));
        }
        file
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_sheet_is_read_or_refused(
            mut head in proptest::collection::vec(any::<u64>(), HEAD / 8),
            rows in proptest::collection::vec(prop_oneof![0u64..3, any::<u64>()], 64),
            known in any::<bool>(),
        ) {
            if known {
                head[head::MAGIC] = MAGIC;
            }
            let file = file_with(&[(0, head), (SEGMENTS_AT, rows.clone()), (IMPORTERS_AT, rows)]);
            let read = Sheet::read(&file, 16);
            prop_assert_eq!(read.is_ok(), known);
            if let Ok(sheet) = read {
                prop_assert!(sheet.segments.len() <= 16 && sheet.importers.len() <= 16);
                prop_assert!(!sheet.name.chars().any(char::is_control));
            }
        }
    }

    #[test]
    fn other_files_are_refused() {
        let pipe = std::io::pipe().unwrap().0;
        assert!(Sheet::read(&pipe, 16).is_err());
        let open = rustix::fs::memfd_create(c"test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&open, SIZE).unwrap();
        assert!(Sheet::read(&open, 16).is_err());
        let short = memory::sealed_memfd(c"test", 4096).unwrap();
        assert!(Sheet::read(&short, 16).is_err());
    }
}
