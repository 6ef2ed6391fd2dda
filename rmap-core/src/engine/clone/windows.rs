//! Windows that are mapped already, found without a system call, a message or a lock.
//!
//! The service thread writes the tables, the application's threads read them through a [`gate`]: a window is never unmapped
//! under somebody who has just attached to it.
//!
//! Counts are spread over shards, one for each thread where they suffice, so that threads which attach to one window share no line
//! that anybody writes. A count of one shard may be negative: a thread detaches what another has attached. Only the sum counts.
//!
//! A reader may follow a row while it changes. Whatever it reads then names memory that is still mapped: rows that are
//! outgrown, counts and status words stay where they are for the life of the process.

use super::gate::{self, Gate, Shut};
use crate::counters::sheet::{self, Lines};
use crate::own::{OwnMemory, OwnVec};
use crate::range::Range;
use crate::sys::memory::PAGE;
use crate::sys::{Errno, SysResult};
use core::cell::Cell;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};

const SHARDS: usize = 64;
/// Windows whose counts are in one piece of memory.
const CHUNK: usize = 512;
/// Bound on the windows that are found here: 2^20. The kernel lets a process have 2^16 mappings unless told otherwise.
const CHUNKS: usize = 2048;

/// The counts of some windows.
#[repr(C)]
struct Chunk {
    shards: [[AtomicI32; CHUNK]; SHARDS],
    /// When each was last attached to, in epochs.
    used: [AtomicU32; CHUNK],
}

type Row = [AtomicUsize; 8];

#[repr(C, align(64))]
struct RowsHead {
    len: AtomicUsize,
}

/// Windows of a permit that may be attached to, in order of permit and of offset in the segment: keys of the first page and of the
/// one behind the last, permit, address of the first page, status word, what it must hold, slot.
mod by_permit {
    pub(super) const START: usize = 0;
    pub(super) const END: usize = 1;
    pub(super) const PERMIT: usize = 2;
    pub(super) const LOCAL: usize = 3;
    pub(super) const STATUS: usize = 4;
    pub(super) const EXPECTED: usize = 5;
    pub(super) const SLOT: usize = 6;
}

/// All windows that are counted, in order of address: start, end, slot, permit, whether nobody attaches any more. A window of which a
/// part was unmapped has several rows with one slot.
mod by_address {
    pub(super) const START: usize = 0;
    pub(super) const END: usize = 1;
    pub(super) const SLOT: usize = 2;
    pub(super) const PERMIT: usize = 3;
    pub(super) const CLOSED: usize = 4;
}

/// What the application's threads read.
#[repr(C, align(128))]
#[derive(Debug)]
pub(crate) struct Windows {
    gate: Gate,
    by_permit: AtomicUsize,
    by_address: AtomicUsize,
    epoch: AtomicU32,
    /// Where threads count what they find.
    lines: AtomicUsize,
    chunks: [AtomicUsize; CHUNKS],
}

fn rows<'a>(at: usize) -> &'a [Row] {
    let head: *const RowsHead = core::ptr::with_exposed_provenance(at);
    // SAFETY: `Rows` publishes only memory that starts with a head, never unmaps it, and never lets `len` exceed the rows that it has.
    unsafe {
        let len = (*head).len.load(Ordering::Relaxed);
        core::slice::from_raw_parts(head.add(1).cast(), len)
    }
}

fn word(row: &Row, index: usize) -> usize {
    row[index].load(Ordering::Relaxed)
}

/// Offsets of memory that is found without asking: all that x86-64 has unless a program asks for more.
const REACH: usize = 1 << 47;

/// Permit and page in one word, in that order: permits have 27 bits.
fn key(permit: u32, page: usize) -> usize {
    const PAGE_BITS: u32 = 37;
    (permit as usize) << PAGE_BITS | page
}

/// How many rows at the start of a table have at most this value in a column by which they are ordered.
fn rows_up_to(rows: &[Row], column: usize, value: usize) -> usize {
    let (mut below, mut len) = (0, rows.len());
    while len > 0 {
        let half = len / 2;
        if rows.get(below + half).is_some_and(|row| word(row, column) <= value) {
            below += half + 1;
            len -= half + 1;
        } else {
            len = half;
        }
    }
    below
}

/// The number of the calling thread among those that have been here.
fn thread_number() -> usize {
    thread_local! {
        static NUMBER: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    let known = NUMBER.get();
    if known != usize::MAX {
        return known;
    }
    let new = sheet::number_thread();
    NUMBER.set(new);
    new
}

impl Windows {
    fn chunk(&self, slot: usize) -> Option<&Chunk> {
        let at = self.chunks.get(slot / CHUNK)?.load(Ordering::Acquire);
        let chunk: *const Chunk = core::ptr::with_exposed_provenance(at);
        // SAFETY: null, or a chunk that is never unmapped; all-zero is a chunk.
        unsafe { chunk.as_ref() }
    }

    /// Attaches to a window that shows these bytes of the permit's segment; `None` if there is none, or none of which it
    /// is certain that the segment and its process are still there.
    pub(crate) fn attach(&self, permit: u32, offset: usize, len: usize) -> Option<usize> {
        let thread = thread_number();
        let found = self.attach_in(thread % SHARDS, permit, offset, len)?;
        self.lines().attached(thread);
        Some(found)
    }

    fn lines(&self) -> Lines {
        // SAFETY: `Listing::new` has set it, and it is 0 before.
        unsafe { Lines::at(self.lines.load(Ordering::Relaxed)) }
    }

    fn attach_in(&self, shard: usize, permit: u32, offset: usize, len: usize) -> Option<usize> {
        let end = offset.checked_add(len).filter(|end| len > 0 && *end <= REACH)?;
        let (first, behind) = (key(permit, offset / PAGE), key(permit, end.div_ceil(PAGE)));
        loop {
            let pass = self.gate.pass()?;
            let rows = rows(self.by_permit.load(Ordering::Relaxed));
            let row = rows.get(rows_up_to(rows, by_permit::START, first).checked_sub(1)?)?;
            let start = word(row, by_permit::START);
            // That of a smaller permit ends below.
            if word(row, by_permit::END) < behind {
                return None;
            }
            let slot = word(row, by_permit::SLOT);
            let local =
                word(row, by_permit::LOCAL).wrapping_add(first.wrapping_sub(start).wrapping_mul(PAGE));
            let (status, expected) = (word(row, by_permit::STATUS), word(row, by_permit::EXPECTED) as u64);
            let chunk = self.chunk(slot)?;
            let count = &chunk.shards[shard][slot % CHUNK];
            if !self.gate.count_in(pass, count) {
                continue;
            }
            let status: *const AtomicU64 = core::ptr::with_exposed_provenance(status);
            // SAFETY: the row was read whole, and the addresses of status words stay mapped.
            if unsafe { (*status).load(Ordering::Acquire) } != expected {
                gate::take_back(count);
                return None;
            }
            let epoch = self.epoch.load(Ordering::Relaxed);
            let used = &chunk.used[slot % CHUNK];
            if used.load(Ordering::Relaxed) != epoch {
                used.store(epoch, Ordering::Relaxed);
            }
            return Some(local);
        }
    }

    /// Detaches from the window that covers `addr`; false if none is counted here, nobody is to attach to it again, the tables are
    /// changing, or another thread has attached: then it is for the service thread.
    pub(crate) fn detach(&self, addr: usize) -> bool {
        let thread = thread_number();
        loop {
            let Some(pass) = self.gate.pass() else { return false };
            let rows = rows(self.by_address.load(Ordering::Relaxed));
            let above = rows_up_to(rows, by_address::START, addr);
            let row = above.checked_sub(1).and_then(|below| rows.get(below));
            let open = |row: &&Row| addr < word(row, by_address::END) && word(row, by_address::CLOSED) == 0;
            let slot = row.filter(open).map(|row| word(row, by_address::SLOT));
            if !self.gate.is_valid(pass) {
                continue;
            }
            let Some((slot, chunk)) = slot.and_then(|slot| Some((slot, self.chunk(slot)?))) else {
                return false;
            };
            let counted = gate::count_out(&chunk.shards[thread % SHARDS][slot % CHUNK]);
            if counted {
                self.lines().detached(thread);
            }
            return counted;
        }
    }
}

/// Rows that grow.
#[derive(Debug)]
struct Rows {
    memory: OwnMemory,
    /// A reader may still be in them.
    outgrown: OwnVec<OwnMemory>,
}

impl Rows {
    fn new() -> SysResult<Self> {
        Ok(Self { memory: OwnMemory::new(crate::sys::memory::PAGE)?, outgrown: OwnVec::new() })
    }

    fn address(&self) -> usize {
        self.memory.addr()
    }

    fn all(&self) -> &[Row] {
        rows(self.memory.addr())
    }

    fn set_len(&self, len: usize) {
        let head: *const RowsHead = core::ptr::with_exposed_provenance(self.memory.addr());
        // SAFETY: the memory starts with a head.
        unsafe { (*head).len.store(len, Ordering::Relaxed) };
    }

    /// Makes room for one more row; what readers look at changes only when `published` is set to the new address.
    fn reserve(&mut self) -> SysResult<()> {
        let capacity = self.memory.len() / size_of::<Row>() - 1;
        let len = self.all().len();
        if len < capacity {
            return Ok(());
        }
        self.outgrown.reserve(1)?;
        let larger = OwnMemory::new(self.memory.len() * 2)?;
        let old = core::mem::replace(&mut self.memory, larger);
        let to: *mut Row = core::ptr::with_exposed_provenance_mut(self.memory.addr() + size_of::<RowsHead>());
        for (index, row) in rows(old.addr()).iter().enumerate() {
            for (column, word) in row.iter().enumerate() {
                // SAFETY: the new memory is larger, zeroed and nobody else's yet.
                unsafe { (*to.add(index))[column].store(word.load(Ordering::Relaxed), Ordering::Relaxed) };
            }
        }
        self.set_len(len);
        self.outgrown.push(old)
    }

    fn insert(&self, index: usize, new: [usize; 8]) {
        let len = self.all().len();
        self.set_len(len + 1);
        let all = self.all();
        for at in (index..len).rev() {
            copy(&all[at], &all[at + 1]);
        }
        for (word, value) in all[index].iter().zip(new) {
            word.store(value, Ordering::Relaxed);
        }
    }

    fn remove(&self, index: usize) -> [usize; 8] {
        let all = self.all();
        let removed = load(&all[index]);
        for at in index + 1..all.len() {
            copy(&all[at], &all[at - 1]);
        }
        self.set_len(all.len() - 1);
        removed
    }

    /// Sets a column of the rows that have a value in another.
    fn set_where(&self, (column, value): (usize, usize), (changed, new): (usize, usize)) {
        for row in self.all().iter().filter(|row| word(row, column) == value) {
            row[changed].store(new, Ordering::Relaxed);
        }
    }

    fn remove_where(&self, column: usize, value: usize) {
        let all = self.all();
        let mut kept = 0;
        for row in all {
            if word(row, column) != value {
                copy(row, &all[kept]);
                kept += 1;
            }
        }
        self.set_len(kept);
    }
}

fn load(row: &Row) -> [usize; 8] {
    core::array::from_fn(|column| word(row, column))
}

fn copy(from: &Row, to: &Row) {
    for (from, to) in from.iter().zip(to) {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// A window as it is listed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listed {
    pub(crate) permit: u32,
    /// Offset in the permit's segment that the window starts at.
    pub(crate) offset: usize,
    pub(crate) local: Range,
    /// Address of the exporter's status word, and what it holds as long as all is as it was.
    pub(crate) status: usize,
    pub(crate) expected: u64,
}

/// The service thread's side of the tables.
#[derive(Debug)]
pub(crate) struct Listing {
    shared: &'static Windows,
    by_permit: Rows,
    by_address: Rows,
    chunks: OwnVec<OwnMemory>,
    free: OwnVec<u32>,
    slots: usize,
}

impl Listing {
    /// Empty tables.
    pub(crate) fn new(shared: &'static Windows) -> SysResult<Self> {
        let (by_permit, by_address) = (Rows::new()?, Rows::new()?);
        shared.by_permit.store(by_permit.address(), Ordering::Relaxed);
        shared.lines.store(Lines::of_this_process().address(), Ordering::Relaxed);
        shared.by_address.store(by_address.address(), Ordering::Release);
        let mut listing =
            Self { shared, by_permit, by_address, chunks: OwnVec::new(), free: OwnVec::new(), slots: 0 };
        // What the first window would have to make room for.
        listing.free.reserve(1)?;
        listing.add_chunk()?;
        Ok(listing)
    }

    /// Makes room for the counts of more windows.
    fn add_chunk(&mut self) -> SysResult<()> {
        let memory = OwnMemory::new(size_of::<Chunk>())?;
        let (index, address) = (self.chunks.len(), memory.addr());
        self.chunks.push(memory)?;
        self.shared.chunks[index].store(address, Ordering::Release);
        Ok(())
    }

    /// Memory for the shared side; zeroed, it has no rows and no chunks.
    pub(crate) fn shared() -> SysResult<&'static Windows> {
        let memory = OwnMemory::new(size_of::<Windows>())?;
        let pointer: *const Windows = core::ptr::with_exposed_provenance(memory.addr());
        core::mem::forget(memory);
        // SAFETY: zeroed memory of the right size, page-aligned, never unmapped; all-zero atomics are valid.
        Ok(unsafe { &*pointer })
    }

    /// The shared side.
    pub(crate) fn windows(&self) -> &'static Windows {
        self.shared
    }

    /// As [`Windows::attach`], for the service thread, which has no thread-local storage.
    pub(crate) fn attach(&self, permit: u32, offset: usize, len: usize) -> Option<usize> {
        self.shared.attach_in(0, permit, offset, len)
    }

    /// Whether anybody is attached to a window.
    pub(crate) fn is_used(&self, slot: u32) -> bool {
        self.attachments(slot) > 0
    }

    /// Changes what readers see.
    fn change(&self, change: impl FnOnce()) {
        let shut = self.shared.gate.shut();
        change();
        self.shared.gate.open(shut);
    }

    /// Has everybody ask the service thread until [`resume`](Self::resume).
    pub(crate) fn suspend(&self) -> Shut {
        self.shared.gate.shut()
    }

    /// Ends what [`suspend`](Self::suspend) began.
    pub(crate) fn resume(&self, shut: Shut) {
        self.shared.gate.open(shut);
    }

    fn new_slot(&mut self) -> SysResult<u32> {
        if let Some(slot) = self.free.remove(self.free.len().wrapping_sub(1)) {
            return Ok(slot);
        }
        if self.slots == CHUNKS * CHUNK {
            return Err(Errno::NOSPC);
        }
        if self.slots == self.chunks.len() * CHUNK {
            self.add_chunk()?;
        }
        // So that giving it back cannot fail.
        self.free.reserve(self.slots + 1)?;
        self.slots += 1;
        Ok(self.slots as u32 - 1)
    }

    fn address_row(&self, addr: usize) -> usize {
        self.by_address.all().partition_point(|row| word(row, by_address::END) <= addr)
    }

    /// Lists a window, with one attachment. Windows that lie inside it are not attached to any more.
    pub(crate) fn insert(&mut self, window: &Listed) -> SysResult<u32> {
        self.by_permit.reserve()?;
        self.by_address.reserve()?;
        let slot = self.new_slot()?;
        let shared = self.shared;
        if let Some(chunk) = shared.chunk(slot as usize) {
            chunk.shards[0][slot as usize % CHUNK].fetch_add(1, Ordering::SeqCst);
            chunk.used[slot as usize % CHUNK].store(shared.epoch.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        let page = window.offset / PAGE;
        let start = key(window.permit, page);
        let end = key(window.permit, page + window.local.len() / PAGE);
        self.change(|| {
            shared.by_permit.store(self.by_permit.address(), Ordering::Relaxed);
            shared.by_address.store(self.by_address.address(), Ordering::Relaxed);
            let index = rows_up_to(self.by_permit.all(), by_permit::START, start.saturating_sub(1));
            while self.by_permit.all().get(index).is_some_and(|row| word(row, by_permit::END) <= end) {
                let slot = self.by_permit.remove(index)[by_permit::SLOT];
                self.by_address.set_where((by_address::SLOT, slot), (by_address::CLOSED, 1));
            }
            let (permit, local) = (window.permit as usize, window.local.start());
            let (status, expected) = (window.status, window.expected as usize);
            if page + window.local.len() / PAGE <= REACH / PAGE {
                self.by_permit.insert(index, [start, end, permit, local, status, expected, slot as usize, 0]);
            }
            let index = self.address_row(local);
            self.by_address.insert(index, [local, window.local.end(), slot as usize, permit, 0, 0, 0, 0]);
        });
        Ok(slot)
    }

    /// Has nobody attach to windows of this permit any more, and the service thread told of each detach.
    pub(crate) fn close(&self, permit: u32) {
        self.close_where(by_permit::PERMIT, by_address::PERMIT, permit);
    }

    /// Has nobody attach to this window any more, and the service thread told of each detach.
    pub(crate) fn close_one(&self, slot: u32) {
        self.close_where(by_permit::SLOT, by_address::SLOT, slot);
    }

    fn close_where(&self, permit_column: usize, address_column: usize, value: u32) {
        let value = value as usize;
        self.change(|| {
            self.by_permit.remove_where(permit_column, value);
            self.by_address.set_where((address_column, value), (by_address::CLOSED, 1));
        });
    }

    /// Whether nobody attaches to this window any more.
    pub(crate) fn is_closed(&self, slot: u32) -> bool {
        !self.by_permit.all().iter().any(|row| word(row, by_permit::SLOT) == slot as usize)
    }

    /// A part of a window is not there any more: nobody attaches to the rest again.
    ///
    /// # Errors
    /// `ENOMEM`: the window is not listed any more at all.
    pub(crate) fn cut(&mut self, slot: u32, gone: Range) -> SysResult<()> {
        let reserved = self.by_address.reserve();
        let shared = self.shared;
        self.change(|| {
            shared.by_address.store(self.by_address.address(), Ordering::Relaxed);
            self.by_permit.remove_where(by_permit::SLOT, slot as usize);
            let mut index = self.address_row(gone.start());
            while let Some(row) = self.by_address.all().get(index).map(load) {
                let (start, end) = (row[by_address::START], row[by_address::END]);
                if start >= gone.end() {
                    break;
                }
                if row[by_address::SLOT] != slot as usize {
                    index += 1;
                    continue;
                }
                self.by_address.remove(index);
                let rests = [(start, gone.start().min(end)), (gone.end().max(start), end)];
                for (start, end) in rests.into_iter().filter(|(start, end)| start < end && reserved.is_ok()) {
                    let mut rest = row;
                    rest[by_address::START] = start;
                    rest[by_address::END] = end;
                    rest[by_address::CLOSED] = 1;
                    self.by_address.insert(index, rest);
                    index += 1;
                }
            }
            self.by_address.set_where((by_address::SLOT, slot as usize), (by_address::CLOSED, 1));
        });
        reserved
    }

    /// What the status word at `status` must hold from now on.
    pub(crate) fn expect(&self, status: usize, expected: u64) {
        self.change(|| {
            self.by_permit.set_where((by_permit::STATUS, status), (by_permit::EXPECTED, expected as usize));
        });
    }

    fn attachments(&self, slot: u32) -> i32 {
        let slot = slot as usize;
        let chunk = self.shared.chunk(slot);
        chunk.map_or(0, |chunk| gate::total(chunk.shards.iter().map(|shard| &shard[slot % CHUNK])))
    }

    /// One attachment less, where the application's thread could not count it. Nobody is detached twice.
    pub(crate) fn detach(&self, slot: u32) {
        let (chunk, index) = (self.shared.chunk(slot as usize), slot as usize % CHUNK);
        let Some(chunk) = chunk.filter(|_| self.is_used(slot)) else { return };
        let counted = |shard: &&[AtomicI32; CHUNK]| shard[index].load(Ordering::Relaxed) > 0;
        let shard = chunk.shards.iter().find(counted).unwrap_or(&chunk.shards[0]);
        shard[index].fetch_sub(1, Ordering::SeqCst);
    }

    /// When a window was last attached to, as far as is known; a smaller number is longer ago.
    pub(crate) fn last_used(&self, slot: u32) -> u32 {
        let slot = slot as usize;
        self.shared.chunk(slot).map_or(0, |chunk| chunk.used[slot % CHUNK].load(Ordering::Relaxed))
    }

    /// Has later attachments tell from earlier ones.
    pub(crate) fn next_epoch(&self) -> u32 {
        self.shared.epoch.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes a window out, if nobody is attached to it or that does not matter; true if it is out.
    pub(crate) fn remove(&mut self, slot: u32, even_if_used: bool) -> bool {
        if !even_if_used && self.attachments(slot) > 0 {
            return false;
        }
        let mut removed = false;
        self.change(|| {
            // Whoever counts itself in from here on will find that the sequence has changed.
            if !even_if_used && self.attachments(slot) > 0 {
                return;
            }
            self.by_permit.remove_where(by_permit::SLOT, slot as usize);
            self.by_address.remove_where(by_address::SLOT, slot as usize);
            removed = true;
        });
        // A reader that came too late may yet take its count back, so counts are never set. Those of a slot that is given up while
        // it is used are not known, and it is not used again.
        if removed && !even_if_used {
            // There is room: see `new_slot`.
            let _ = self.free.push(slot);
        }
        removed
    }
}
