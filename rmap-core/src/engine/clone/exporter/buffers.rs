//! Large buffers, which a child that is forked need not have (`RMAP_FORK`).
//!
//! Nobody says what memory is for. What a child cannot do without is small, or has a name, or a neighbour that gives it away: stacks have
//! a guard page below them, static data lies behind its file, heaps of the C library say so at their start. So a buffer is what is
//! left: a long run of anonymous memory without a name, with nothing private mapped directly below it, and without a stack or a
//! heap in it. Thread-local storage that the kernel has joined with it is cut out, and so is its upper end, where the dynamic linker keeps things.

use super::Exporter;
use super::adopt::Origin;
use crate::error::{Result, failed};
use crate::own::OwnVec;
use crate::range::Range;
use crate::sys::maps::Vma;
use crate::sys::memory::{self, ProtFlags};
use core::ops::ControlFlow;

/// The C library maps no heap and no block from a heap that is as long, and keeps no stacks of ended threads that are.
const SHORTEST: usize = 64 << 20;

/// What is cut out around thread-local storage, and at the upper end.
const MARGIN: usize = 1 << 20;

/// Heaps of the C library begin at multiples of this, and are no longer than [`SHORTEST`].
const HEAP_ALIGNMENT: usize = 8 << 20;

/// Finds long runs, told of all mappings in order of address.
struct Runs {
    found: OwnVec<Range>,
    run: Option<Range>,
    /// Something that may belong to the run is mapped directly below it.
    has_foot: bool,
    end: usize,
    end_is_private: bool,
    full: bool,
}

impl Runs {
    fn new() -> Self {
        Self { found: OwnVec::new(), run: None, has_foot: false, end: 0, end_is_private: false, full: false }
    }

    fn tell(&mut self, range: Range, plain: bool, private: bool) {
        let adjacent = self.end == range.start();
        match self.run.filter(|_| plain && adjacent) {
            Some(run) => self.run = Some(run.join(range)),
            None => {
                self.finish();
                self.has_foot = adjacent && self.end_is_private;
                self.run = Some(range).filter(|_| plain);
            }
        }
        (self.end, self.end_is_private) = (range.end(), private);
    }

    fn finish(&mut self) {
        if let Some(run) = self.run.take().filter(|run| run.len() >= SHORTEST && !self.has_foot) {
            self.full |= self.found.push(run).is_err();
        }
    }
}

/// Whether the C library has a heap at `addr` (`struct heap_info` of glibc: its arena, the heap before it, its size).
fn is_heap(addr: usize) -> bool {
    let Some([arena, before, size]) = memory::words_at(addr) else { return true };
    let shaped = size > 0
        && size <= SHORTEST
        && size.is_multiple_of(memory::PAGE)
        && before.is_multiple_of(HEAP_ALIGNMENT)
        && arena != 0;
    // The arena is in the first of its heaps.
    shaped && (arena.wrapping_sub(addr) < memory::PAGE || before != 0)
}

impl Exporter {
    /// What of the adopted memory is a part of large buffers, in order of address. All threads stand still.
    pub(super) fn buffers(&self) -> Result<OwnVec<Range>> {
        let mut runs = Runs::new();
        self.maps
            .each_vma(|vma, path| {
                self.tell_of(vma, path, &mut runs);
                if runs.full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .map_err(failed("read of /proc/thread-self/maps"))?;
        runs.finish();
        let mut adopted = OwnVec::new();
        for run in runs.found.iter().filter(|run| self.is_buffer(**run)) {
            for part in self.without_storage(*run)?.iter() {
                for span in self.backed.within(*part).filter(|span| span.value.origin == Origin::Plain) {
                    adopted.push(span.range).map_err(failed("mmap"))?;
                }
            }
        }
        Ok(adopted)
    }

    /// The parts of a run that are neither near a thread's storage nor at the upper end.
    fn without_storage(&self, run: Range) -> Result<OwnVec<Range>> {
        let mut storage = OwnVec::new();
        for (_, addr) in self.freezer.stacks().filter(|(_, addr)| run.contains(*addr)) {
            storage.push(Range::page_at(addr)).map_err(failed("mmap"))?;
        }
        storage.sort_unstable();
        let (mut parts, mut from, end) = (OwnVec::new(), run.start(), run.end() - MARGIN);
        for page in storage.iter() {
            if let Some(part) = Range::between(from, page.start().saturating_sub(MARGIN).min(end)) {
                parts.push(part).map_err(failed("mmap"))?;
            }
            from = from.max(page.end() + MARGIN);
        }
        if let Some(part) = Range::between(from, end) {
            parts.push(part).map_err(failed("mmap"))?;
        }
        Ok(parts)
    }

    fn tell_of(&self, vma: &Vma, path: &[u8], runs: &mut Runs) {
        let Some(range) = Range::between(vma.start, vma.end) else { return };
        let writable = vma.prot.contains(ProtFlags::READ | ProtFlags::WRITE);
        let is_object = self.objects.iter().any(|object| object.is_at_home(vma));
        if !is_object {
            return runs.tell(
                range,
                !vma.shared && vma.file.is_none() && path.is_empty() && writable,
                !vma.shared,
            );
        }
        let mut from = range.start();
        for span in self.backed.within(range) {
            if let Some(between) = Range::between(from, span.range.start()) {
                runs.tell(between, false, true);
            }
            runs.tell(span.range, writable && span.value.origin == Origin::Plain, true);
            from = span.range.end();
        }
        if let Some(rest) = Range::between(from, range.end()) {
            runs.tell(rest, false, true);
        }
    }

    fn is_buffer(&self, run: Range) -> bool {
        if self.freezer.stacks().any(|(stack, _)| run.contains(stack)) {
            return false;
        }
        let first = run.start().next_multiple_of(HEAP_ALIGNMENT);
        !(first..run.end()).step_by(HEAP_ALIGNMENT).any(is_heap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memory::MapFlags;

    const MIB: usize = 1 << 20;

    /// The runs among mappings: start and end in MiB, whether it is plain, whether it is private.
    fn runs(mappings: &[(usize, usize, bool, bool)]) -> Vec<(usize, usize)> {
        let mut runs = Runs::new();
        for (start, end, plain, private) in mappings {
            runs.tell(Range::between(start * MIB, end * MIB).unwrap(), *plain, *private);
        }
        runs.finish();
        runs.found.iter().map(|run| (run.start() / MIB, run.end() / MIB)).collect()
    }

    #[test]
    fn long_runs_without_a_foot_are_found() {
        let long = [(100, 130, true, true), (130, 170, true, true)];
        assert_eq!(runs(&long), [(100, 170)]);
        assert_eq!(runs(&long[..1]), []);
        // A gap.
        assert_eq!(runs(&[(100, 130, true, true), (131, 170, true, true)]), []);
        // Above a guard page, or static data; above a window of the library's.
        assert_eq!(runs(&[&[(99, 100, false, true)][..], &long].concat()), []);
        assert_eq!(runs(&[&[(99, 100, false, false)][..], &long].concat()), [(100, 170)]);
        // What is above does not matter.
        assert_eq!(runs(&[&long[..], &[(170, 171, false, true)]].concat()), [(100, 170)]);
    }

    #[test]
    fn heaps_of_the_c_library_are_known() {
        let both = ProtFlags::READ | ProtFlags::WRITE;
        let place = memory::map_anonymous(2 * HEAP_ALIGNMENT, both, MapFlags::NORESERVE).unwrap();
        let heap = place.next_multiple_of(HEAP_ALIGNMENT);
        assert!(!is_heap(heap));
        let write = |words: [usize; 3]| {
            let to: *mut [usize; 3] = core::ptr::with_exposed_provenance_mut(heap);
            // SAFETY: memory of this test's.
            unsafe { to.write_volatile(words) };
        };
        // The first of an arena, and another.
        write([heap + 48, 0, 132 << 10]);
        assert!(is_heap(heap));
        write([3 * HEAP_ALIGNMENT + 48, 3 * HEAP_ALIGNMENT, 132 << 10]);
        assert!(is_heap(heap));
        write([1, 2, 3]);
        assert!(!is_heap(heap));
    }
}
