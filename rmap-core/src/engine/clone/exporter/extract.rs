//! Taking pages out of an object such that nothing is lost that importers store meanwhile.
//!
//! A page that is copied first and taken from importers then loses what they have stored between the two. So it is taken first: a
//! pipe holds the page while it leaves the file. From then on nobody reaches it but through the pipe, and what comes out is what was stored last.
//!
//! The kernel clears a part of a huge page that leaves the file for itself. So blocks leave whole, and a huge page of which a part leaves is
//! made small pages before ([`dissolve`]), or split while threads run. Where that fails, there is a copy from before: it counts where a page comes out as
//! zeroes.

use super::numa::Placement;
use super::object::Object;
use crate::error::{Error, Result, failed};
use crate::log::log;
use crate::own::OwnVec;
use crate::range::Range;
use crate::sys::memory::{self, HUGE_PAGE, MapFlags, PAGE, ProtFlags};
use crate::sys::pipe::Pipe;
use crate::sys::thread;
use crate::sys::{Errno, Said, SysResult};
use std::time::Duration;

/// A pipe that an ordinary user may have holds half a block (`/proc/sys/fs/pipe-max-size`).
const PIPES: usize = 2;

/// In which order pages leave an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Nothing that importers store is lost. For a moment nothing is mapped where the pages are.
    TakeFirst,
    /// The pages stay in the object as well, until the caller punches: for memory that the service thread itself needs.
    CopyFirst,
}

/// Pages that have left an object, and are in memory of the library's now.
#[derive(Debug)]
pub(crate) struct Extract<'a> {
    object: &'a Object,
    /// The offsets that were to be taken.
    from: Range,
    /// Where the copy of the first is.
    staging: usize,
    /// Offsets of what was taken.
    taken: OwnVec<Range>,
}

impl<'a> Extract<'a> {
    /// Moves the pages that the object has in `from`, and that `mapped` maps, to the memory at `staging`. Who touches `mapped` before something else is
    /// mapped there finds zeroes, unless they are copied first.
    ///
    /// # Errors
    /// The object has its pages still, or again.
    ///
    /// # Safety
    /// `staging` is as long as the range, and nobody else uses it.
    pub(crate) unsafe fn take(
        object: &'a Object,
        from: Range,
        mapped: Range,
        staging: usize,
        order: Order,
        placement: &Placement,
    ) -> Result<Self> {
        let mut extract = Self { object, from, staging, taken: OwnVec::new() };
        match extract.take_all(mapped, order, placement) {
            Ok(()) => Ok(extract),
            Err(errno) => {
                extract.put_back();
                Err(failed("taking pages out of a memfd")(errno))
            }
        }
    }

    fn take_all(&mut self, mapped: Range, order: Order, placement: &Placement) -> SysResult<()> {
        let pipes = Pipes::new(self.from.len());
        let mut rest = Some(self.from);
        while let Some(data) = rest.and_then(|rest| self.object.next_data(rest)) {
            let there = data.shifted(self.from.start(), mapped.start()).ok_or(Errno::INVAL)?;
            placement.copy(there, |part| {
                let part = part.shifted(mapped.start(), self.from.start()).ok_or(Errno::INVAL)?;
                if order == Order::CopyFirst {
                    return copy(self.object, part, self.place_of(part.start()));
                }
                let mut start = part.start();
                while let Some(block) = Range::between(start, end_of_block(start).min(part.end())) {
                    self.take_block(&pipes, block, mapped.start() + (start - self.from.start()))?;
                    start = block.end();
                }
                Ok(())
            })?;
            rest = Range::between(data.end(), self.from.end());
        }
        Ok(())
    }

    fn place_of(&self, offset: usize) -> usize {
        self.staging + (offset - self.from.start())
    }

    /// Takes a block, or what there is of it, which is mapped at `mapped`.
    fn take_block(&mut self, pipes: &Pipes, block: Range, mapped: usize) -> SysResult<()> {
        self.taken.reserve(1)?;
        let place = self.place_of(block.start());
        // Pages that were allocated and never touched are holes to a pipe, until somebody touches them: now, not in the middle.
        let _ = memory::populate_for_loads(mapped, block.len());
        let whole = block.len() == HUGE_PAGE;
        // There must be room before the pages leave the object.
        let populated = whole && memory::populate_for_stores(place, block.len()).is_ok();
        if !populated {
            copy(self.object, block, place)?;
        }
        if !whole {
            split(self.object, block, place);
        }
        let held = pipes.hold(self.object, block);
        if !held && populated {
            copy(self.object, block, place)?;
        }
        self.object.punch(block)?;
        let _ = self.taken.push(block);
        if held { pipes.release(block.len(), place, whole) } else { Ok(()) }
    }

    /// Copies what was taken to the addresses that are its offsets.
    ///
    /// # Safety
    /// Nobody else uses the memory there.
    unsafe fn copy_home(&self) -> SysResult<()> {
        for part in self.taken.iter() {
            let mut at = part.start();
            while at < part.end() {
                // SAFETY: the caller's promise.
                match unsafe { memory::copy_by_kernel(self.place_of(at), at, part.end() - at) }? {
                    0 => return Err(Errno::FAULT),
                    count => at += count,
                }
            }
        }
        Ok(())
    }

    /// Gives the object its pages back: the staging area must be readable, and has them no more afterwards. Their memory was just freed, so want of it is
    /// passing, and waited out: all threads that could miss them stand still.
    pub(crate) fn put_back(&self) {
        /// Nothing tells when there is memory.
        const PAUSE: Duration = Duration::from_millis(1);
        const MANY: u32 = 1000;
        let mut failures = 0;
        for range in self.taken.iter() {
            let mut at = range.start();
            while at < range.end() {
                // All at once; and from a failure on page by page, each of which makes room for the next.
                let len = if failures == 0 { range.end() - at } else { PAGE.min(range.end() - at) };
                let from = self.place_of(at);
                let errno = match memory::write_from(self.object.own(), from, len, at as u64) {
                    Ok(count) if count > 0 => {
                        at += count;
                        if failures > 0 && count == PAGE {
                            // SAFETY: in the staging area, and written.
                            let _ = unsafe { memory::discard(from, PAGE) };
                        }
                        continue;
                    }
                    Ok(_) => Errno::IO,
                    Err(Errno::INTR) => continue,
                    Err(errno) => errno,
                };
                failures += 1;
                if matches!(errno, Errno::NOMEM | Errno::NOSPC | Errno::AGAIN) {
                    if failures % MANY == 0 {
                        log!(Error, "{range} waits for memory: {errno}", errno = Said(errno));
                    }
                    if failures > 1 {
                        thread::pause(PAUSE);
                    }
                } else {
                    log!(Error, "a page of {range} is lost: {errno}", errno = Said(errno));
                    at += len.min(PAGE);
                }
            }
        }
    }
}

/// Puts what importers have stored to copies of pages into the memory at `range` that they were copied from, at their offsets, and takes the copies out
/// of the object: those that the object has are whole. Only the kernel touches the memory: it is the application's.
///
/// # Errors
/// Some of the memory has what it had.
///
/// # Safety
/// Nobody else uses the memory, which is not the object's.
pub(super) unsafe fn give_back(object: &Object, range: Range, placement: &Placement) -> SysResult<()> {
    let staging = memory::map_agreeing(HUGE_PAGE, 0, ProtFlags::READ | ProtFlags::WRITE)?;
    let (mut given, mut start) = (Ok(()), range.start());
    while let Some(block) = Range::between(start, end_of_block(start).min(range.end())) {
        let mut extract = Extract { object, from: block, staging, taken: OwnVec::new() };
        let mapped = Range::new(staging, block.len()).ok_or(Errno::INVAL);
        let taken = mapped.and_then(|mapped| extract.take_all(mapped, Order::TakeFirst, placement));
        // SAFETY: the caller's promise.
        given = given.and(taken.and_then(|()| unsafe { extract.copy_home() }));
        start = block.end();
    }
    // SAFETY: the staging area is ours.
    let _ = unsafe { memory::unmap(staging, HUGE_PAGE) };
    given
}

/// Makes small pages of a block that may be one huge page: it leaves whole, which always works, and comes back. Splitting a huge page fails where somebody
/// has it in hand, and importers may touch it all the time.
///
/// # Errors
/// It is as it was.
///
/// # Safety
/// Nobody but importers touches the block meanwhile, neither the service thread.
pub(super) unsafe fn dissolve(object: &Object, block: Range, placement: &Placement) -> Result<()> {
    if !Pipes::new(block.len()).have_room_for(block) {
        return Err(failed("fcntl of a pipe")(Errno::NOSPC));
    }
    let all = ProtFlags::READ | ProtFlags::WRITE;
    let offset = block.start() as u64;
    let view = memory::map(block.len(), ProtFlags::READ, MapFlags::SHARED, object.own(), offset);
    let view = view.map_err(failed("mmap"))?;
    let taken = memory::map_agreeing(block.len(), 0, all).map_err(failed("mmap")).and_then(|staging| {
        let mapped = Range::new(view, block.len()).ok_or(Error::Invalid("no range"))?;
        // SAFETY: the staging area is ours, and as long.
        let extract = unsafe { Extract::take(object, block, mapped, staging, Order::TakeFirst, placement) };
        let taken = extract.map(|extract| extract.put_back());
        // SAFETY: as above.
        let _ = unsafe { memory::unmap(staging, block.len()) };
        taken
    });
    // SAFETY: the view is ours.
    let _ = unsafe { memory::unmap(view, block.len()) };
    taken
}

/// Where the block ends that `start` is in.
pub(super) fn end_of_block(start: usize) -> usize {
    (start + 1).next_multiple_of(HUGE_PAGE)
}

/// Copies a part of an object to memory of the library's.
fn copy(object: &Object, range: Range, to: usize) -> SysResult<()> {
    let mut done = 0;
    while done < range.len() {
        let offset = (range.start() + done) as u64;
        // SAFETY: the target is in the staging area.
        match unsafe { memory::read_to(object.own(), to + done, range.len() - done, offset) } {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Has the kernel split a huge page of which `part` is to leave, at the borders of the part. It does so where the smallest part of one is
/// cleared: a byte is, that is zero already. `copied` is where a copy of the part is.
fn split(object: &Object, part: Range, copied: usize) {
    let first = part.start() & !(HUGE_PAGE - 1);
    let Some(block) = Range::new(first, HUGE_PAGE).filter(|block| object.next_data(*block) == Some(*block))
    else {
        // Some of it is missing, so it is not one page.
        return;
    };
    let pages = || (0..part.len()).step_by(PAGE);
    let zero_in = |page| zero_byte(copied + page).map(|at| part.start() + page + at);
    // Linux 6.15 leaves pages as large as can be beside the byte, older ones only small ones.
    let below = (part.start() > block.start()).then(|| pages().find_map(zero_in)).flatten();
    let above = (part.end() < block.end()).then(|| pages().rev().find_map(zero_in)).flatten();
    for offset in below.into_iter().chain(above) {
        // An importer may use it by now.
        let mut byte = [1u8];
        let to = byte.as_mut_ptr().expose_provenance();
        // SAFETY: the buffer is here.
        let read = unsafe { memory::read_to(object.own(), to, byte.len(), offset as u64) };
        if read == Ok(byte.len()) && byte == [0] {
            let _ = object.clear_byte(offset);
        }
    }
}

/// Where a page of a copy has a byte that is zero: the last of a word that is, if there is one.
fn zero_byte(page: usize) -> Option<usize> {
    const WORD: usize = size_of::<u64>();
    // SAFETY: in the copy, which nobody else uses.
    let words = unsafe { core::ptr::with_exposed_provenance::<[u64; PAGE / WORD]>(page).as_ref() }?;
    let in_word = |word: u64| word.to_le_bytes().iter().rposition(|byte| *byte == 0);
    let index = words
        .iter()
        .position(|word| *word == 0)
        .or_else(|| words.iter().position(|word| in_word(*word).is_some()))?;
    Some(index * WORD + in_word(words[index])?)
}

/// Copies what a pipe holds of pages that are nowhere else. There is room for them, so a failure is no more than an interruption.
///
/// # Safety
/// As [`Pipe::copy_to`].
unsafe fn copy_surely(pipe: &Pipe, to: usize, len: usize) -> SysResult<usize> {
    const TRIES: usize = 100;
    let mut outcome = Err(Errno::IO);
    for _ in 0..TRIES {
        // SAFETY: the caller's promise.
        outcome = unsafe { pipe.copy_to(to, len) };
        if let Ok(count) = outcome {
            return if count > 0 && count.is_multiple_of(PAGE) { outcome } else { Err(Errno::IO) };
        }
    }
    outcome
}

/// What holds a block on its way.
#[derive(Debug)]
struct Pipes {
    all: [Option<Pipe>; PIPES],
}

impl Pipes {
    /// For blocks of a range of this length.
    fn new(len: usize) -> Self {
        let each = HUGE_PAGE / PIPES;
        let mut left = len.min(HUGE_PAGE);
        let all = [(); PIPES].map(|()| {
            let bytes = left.min(each);
            left -= bytes;
            (bytes > 0).then(|| Pipe::new(bytes).ok()).flatten()
        });
        Self { all }
    }

    fn have_room_for(&self, block: Range) -> bool {
        self.all.iter().flatten().map(Pipe::capacity).sum::<usize>() >= block.len()
    }

    /// Takes hold of all pages of a block. False if that is not possible: the pipes are empty then.
    fn hold(&self, object: &Object, block: Range) -> bool {
        if !self.have_room_for(block) {
            return false;
        }
        let mut start = block.start();
        for pipe in self.all.iter().flatten() {
            let mut room = pipe.capacity().min(block.end() - start);
            while room > 0 {
                match pipe.hold(object.own(), start as u64, room) {
                    Ok(count) if count > 0 => (start, room) = (start + count, room - count),
                    _ => break,
                }
            }
        }
        let held = start == block.end();
        if !held {
            self.empty();
        }
        held
    }

    /// Has all pages come out at `place`; in a part of a block, those that the kernel has not cleared.
    fn release(&self, len: usize, place: usize, whole: bool) -> SysResult<()> {
        let mut page = [0u64; PAGE / size_of::<u64>()];
        let mut at = place;
        for pipe in self.all.iter().flatten() {
            let mut left = pipe.capacity().min(place + len - at);
            while left > 0 {
                let (to, most) =
                    if whole { (at, left) } else { (page.as_mut_ptr().expose_provenance(), PAGE) };
                // SAFETY: the staging area, of which so much is left, or the buffer.
                let count = unsafe { copy_surely(pipe, to, most) }?;
                if !whole && page.iter().any(|word| *word != 0) {
                    let target = core::ptr::with_exposed_provenance_mut::<u64>(at);
                    // SAFETY: a page of the staging area, which nobody else uses.
                    unsafe { target.copy_from_nonoverlapping(page.as_ptr(), page.len()) };
                }
                (at, left) = (at + count, left - count);
            }
        }
        Ok(())
    }

    fn empty(&self) {
        let mut page = [0u64; PAGE / size_of::<u64>()];
        for pipe in self.all.iter().flatten() {
            // SAFETY: the buffer is here.
            while unsafe { pipe.copy_to(page.as_mut_ptr().expose_provenance(), PAGE) }
                .is_ok_and(|count| count > 0)
            {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_of_a_word_of_zeroes_comes_first() {
        let mut page = Box::new([u64::MAX; PAGE / size_of::<u64>()]);
        let found = |page: &[u64]| zero_byte(page.as_ptr().expose_provenance());
        assert_eq!(found(&page[..]), None);
        page[3] = 0x1100_2233_4400_5566;
        assert_eq!(found(&page[..]), Some(3 * 8 + 6));
        page[400] = 0;
        assert_eq!(found(&page[..]), Some(400 * 8 + 7));
    }
}
