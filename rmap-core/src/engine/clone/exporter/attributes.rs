//! What the application has said of a mapping, found without `smaps`.
//!
//! The kernel says it in that text alone, and to write it walks the page tables of the mapping and of all below: 13 ms for each GiB of
//! small pages, and some microseconds for each mapping. But it keeps memory of other attributes in another mapping. So a page is
//! given the attributes of plain memory: if the mapping around it is still whole, it had them all, and nothing has changed. If not, the
//! page was split off; then each attribute is tried by itself at the other end of the mapping, and the page gets what is found.
//!
//! All threads stand still meanwhile, so nobody else changes the mapping.

use super::{Exporter, adopt};
use crate::error::{Result, failed, is_passing};
use crate::range::Range;
use crate::sys::maps::{Attributes, HugePageAdvice, Maps, Vma};
use crate::sys::memory::{self, PAGE, ProtFlags};
use crate::sys::{Errno, SysResult};

/// An advice and the one that takes it back.
struct Advice {
    given: libc::c_int,
    taken_back: libc::c_int,
    set: fn(&mut Attributes),
}

const ADVICES: [Advice; 4] = [
    Advice {
        given: libc::MADV_WIPEONFORK,
        taken_back: libc::MADV_KEEPONFORK,
        set: |found| found.wipe_on_fork = true,
    },
    Advice {
        given: libc::MADV_MERGEABLE,
        taken_back: libc::MADV_UNMERGEABLE,
        set: |found| found.mergeable = true,
    },
    Advice { given: libc::MADV_DONTFORK, taken_back: libc::MADV_DOFORK, set: |found| found.dont_fork = true },
    Advice { given: libc::MADV_DONTDUMP, taken_back: libc::MADV_DODUMP, set: |found| found.dont_dump = true },
];

impl Advice {
    fn take_back(&self, page: usize) -> SysResult<()> {
        match memory::advise(page, PAGE, self.taken_back) {
            // A kernel that merges no pages.
            Err(Errno::INVAL) if self.given == libc::MADV_MERGEABLE => Ok(()),
            done => done,
        }
    }
}

/// Protection keys of x86-64.
const KEYS: u32 = 16;

/// Whether the mapping is long enough: a page that is taken from it must leave one that another can be taken from.
pub(super) fn can_be_asked(vma: &Vma) -> bool {
    vma.end - vma.start > 2 * PAGE
}

/// Whether the mapping at `page` is exactly this range.
///
/// # Errors
/// It cannot be found out, also when asked twice: an attribute that a page was just robbed of would be taken for one that it had, or not.
fn is_whole(maps: &Maps, range: Range, page: usize) -> SysResult<bool> {
    let vma = maps.find_at(page).or_else(|_| maps.find_at(page))?;
    Ok(vma.is_some_and(|vma| vma.start == range.start() && vma.end == range.end()))
}

/// The attributes of the mapping at `addr`. That of huge pages is left to [`huge_page_advice`].
///
/// # Errors
/// `EOPNOTSUPP`: the mapping is too short to be asked. Others: the kernel did not play along. The first page of the mapping may have lost
/// attributes then, the last has what it had.
pub(super) fn ask(maps: &Maps, addr: usize) -> SysResult<Attributes> {
    let vma = maps.find_at(addr)?.ok_or(Errno::NOENT)?;
    let whole = Range::between(vma.start, vma.end).ok_or(Errno::NOENT)?;
    let rest = Range::between(whole.start() + PAGE, whole.end()).filter(|_| can_be_asked(&vma));
    let rest = rest.ok_or(Errno::OPNOTSUPP)?;
    let (first, last) = (whole.start(), whole.end() - PAGE);
    let mut found = Attributes {
        locked: memory::is_locked(first)?,
        grows_down: memory::grows_down(first, vma.prot)?,
        huge_pages: HugePageAdvice::Unasked,
        ..Attributes::default()
    };
    for advice in &ADVICES {
        advice.take_back(first)?;
    }
    set_key(first, vma.prot, 0)?;
    if is_whole(maps, whole, first)? {
        return Ok(found);
    }
    for advice in &ADVICES {
        advice.take_back(last)?;
        if !is_whole(maps, rest, last)? {
            (advice.set)(&mut found);
            memory::advise(last, PAGE, advice.given)?;
            // What stays apart would seem to have all the others as well.
            if !is_whole(maps, rest, last)? {
                return Err(Errno::AGAIN);
            }
        }
    }
    // A key that nobody has allocated is refused, and not the one.
    let is_key =
        |key: &u32| set_key(last, vma.prot, *key).is_ok() && is_whole(maps, rest, last).unwrap_or(false);
    found.protection_key = (0..KEYS).find(is_key).ok_or(Errno::INVAL)?;
    adopt::restore_attributes(Range::page_at(first), &found, vma.prot);
    Ok(found)
}

/// Gives a page a protection key besides the protection that it has.
fn set_key(page: usize, prot: ProtFlags, key: u32) -> SysResult<()> {
    // SAFETY: the protection stays, and nobody runs who could use the page before it has its key again.
    match unsafe { memory::protect_with_key(page, PAGE, prot, key) } {
        // A kernel or a processor without keys.
        Err(Errno::NOSYS | Errno::INVAL) if key == 0 => Ok(()),
        set => set,
    }
}

/// What has been said of huge pages in the mapping of `range`, which is about to be replaced: its first page has other advice afterwards.
pub(super) fn huge_page_advice(maps: &Maps, range: Range) -> HugePageAdvice {
    let page = range.start();
    let whole = maps.at(page).and_then(|vma| Range::between(vma.start, vma.end));
    // With the advice that it had, the page becomes part of its mapping again.
    let had = |advice| {
        memory::advise(page, PAGE, advice).is_ok()
            && whole.is_some_and(|whole| whole.len() > PAGE && is_whole(maps, whole, page).unwrap_or(false))
    };
    if had(libc::MADV_NOHUGEPAGE) {
        HugePageAdvice::Refused
    } else if had(libc::MADV_HUGEPAGE) {
        HugePageAdvice::Wanted
    } else {
        HugePageAdvice::Neutral
    }
}

impl Exporter {
    /// Reads the attributes of a mapping where asking is not enough: while the threads run, because it is slow.
    pub(super) fn read_attributes(&mut self, vma: &Vma) {
        let Some(range) = Range::between(vma.start, vma.end) else { return };
        if !self.attributes.is_some_and(|(known, _)| known.covers(range)) {
            self.attributes = self.smaps.attributes(vma.start).ok().map(|attributes| (range, attributes));
        }
    }

    /// The attributes of a mapping: those that were read, else what it says now, while all threads stand still.
    pub(super) fn attributes_of(&self, vma: &Vma) -> SysResult<Attributes> {
        let range = Range::between(vma.start, vma.end).ok_or(Errno::NOENT)?;
        match self.attributes {
            Some((known, attributes)) if known.covers(range) => Ok(attributes),
            _ => ask(&self.maps, vma.start).or_else(|_| self.attributes_in_text(range, vma.prot)),
        }
    }

    /// The same for a range that is replaced next, inside one mapping.
    ///
    /// # Errors
    /// They are not to be found out now. That is not to be taken for none.
    pub(super) fn attributes_to_keep(&self, range: Range) -> Result<Attributes> {
        let vma = self.maps.find_at(range.start()).and_then(|vma| vma.ok_or(Errno::NOENT));
        let mut found = match vma.and_then(|vma| self.attributes_of(&vma)) {
            Err(errno) if is_passing(errno) => {
                return Err(failed("read of /proc/thread-self/smaps")(errno));
            }
            found => found.unwrap_or_default(),
        };
        if found.huge_pages == HugePageAdvice::Unasked {
            found.huge_pages = huge_page_advice(&self.maps, range);
        }
        Ok(found)
    }

    /// The attributes of a mapping whose first page may have lost them.
    fn attributes_in_text(&self, range: Range, prot: ProtFlags) -> SysResult<Attributes> {
        let found = self.smaps.attributes(range.end() - PAGE)?;
        adopt::restore_attributes(Range::page_at(range.start()), &found, prot);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::maps::Smaps;
    use crate::sys::memory::{HUGE_PAGE, MapFlags};
    use std::os::fd::AsFd;

    const ALL: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

    /// A mapping of the process's own, with nothing beside it that it could become one with.
    fn mapping(pages: usize, shared: bool) -> Range {
        let (len, hem) = (pages * PAGE, 2 * HUGE_PAGE);
        let area = memory::map_agreeing(len + 2 * hem, 0, ProtFlags::empty()).unwrap();
        let fd = rustix::fs::memfd_create(c"mapping", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, len as u64).unwrap();
        if shared {
            // SAFETY: inside an area that nobody knows.
            unsafe { memory::map_over(area + hem, len, ALL, MapFlags::SHARED, fd.as_fd(), 0) }.unwrap();
        } else {
            // SAFETY: as above.
            unsafe { memory::protect(area + hem, len, ALL) }.unwrap();
        }
        memory::populate_for_stores(area + hem, len).unwrap();
        Range::new(area + hem, len).unwrap()
    }

    fn allocate_key() -> Option<u32> {
        // SAFETY: no memory is touched.
        let key = unsafe { crate::sys::raw::syscall(libc::SYS_pkey_alloc, [0; 6]) };
        key.ok().and_then(|key| u32::try_from(key).ok())
    }

    /// All that can be said of a mapping, together with how it is said.
    fn combinations() -> Vec<Attributes> {
        let keys = [0].into_iter().chain(allocate_key());
        let mut all = Vec::new();
        for protection_key in keys {
            for bits in 0..32 {
                for huge_pages in [HugePageAdvice::Neutral, HugePageAdvice::Wanted, HugePageAdvice::Refused] {
                    all.push(Attributes {
                        dont_fork: bits & 1 != 0,
                        dont_dump: bits & 2 != 0,
                        locked: bits & 4 != 0,
                        wipe_on_fork: bits & 8 != 0,
                        mergeable: bits & 16 != 0,
                        huge_pages,
                        protection_key,
                        ..Attributes::default()
                    });
                }
            }
        }
        all
    }

    #[test]
    fn the_answers_are_those_of_smaps() {
        let (maps, smaps) = (Maps::new().unwrap(), Smaps::new().unwrap());
        for (pages, shared) in [(3, false), (700, false), (3, true), (700, true)] {
            for wanted in combinations() {
                let range = mapping(pages, shared);
                adopt::restore_attributes(range, &wanted, ALL);
                let said = smaps.attributes(range.start()).unwrap();
                let mut asked = ask(&maps, range.start() + PAGE).unwrap();
                assert!(is_whole(&maps, range, range.start()).unwrap(), "{wanted:?} is split");
                assert_eq!(smaps.attributes(range.start()).unwrap(), said, "asking has changed {wanted:?}");
                // Of one page, of some, and of all.
                let part = [PAGE, 2 * PAGE, range.len()][wanted.protection_key as usize % 3];
                asked.huge_pages = huge_page_advice(&maps, Range::new(range.end() - part, part).unwrap());
                asked.page_size = said.page_size;
                assert_eq!(asked, said, "{pages} pages, shared: {shared}");
                // SAFETY: our own.
                unsafe { memory::unmap(range.start(), range.len()) }.unwrap();
            }
        }
    }

    #[test]
    fn a_stack_grows_down() {
        let maps = Maps::new().unwrap();
        let mut stack = None;
        maps.each_vma(|vma, path| {
            stack = stack.or((path == b"[stack]").then_some(*vma));
            core::ops::ControlFlow::Continue(())
        })
        .unwrap();
        let stack = stack.unwrap();
        assert_eq!(memory::grows_down(stack.end - PAGE, stack.prot), Ok(true));
        let range = mapping(3, false);
        assert_eq!(memory::grows_down(range.start(), ALL), Ok(false));
    }

    #[test]
    fn refused_huge_pages_are_noticed() {
        if memory::can_collapse().is_err() {
            println!("skipped: this kernel does not know MADV_COLLAPSE");
            return;
        }
        let range = mapping(3 * HUGE_PAGE / PAGE, false);
        let block = range.blocks(HUGE_PAGE).unwrap().start();
        assert_eq!(memory::may_collapse(block), Ok(true));
        memory::advise(range.start(), range.len(), libc::MADV_NOHUGEPAGE).unwrap();
        assert_eq!(memory::may_collapse(block), Ok(false));
    }

    #[test]
    fn short_mappings_are_not_asked() {
        let maps = Maps::new().unwrap();
        for pages in [1, 2] {
            let range = mapping(pages, false);
            assert_eq!(ask(&maps, range.start()), Err(Errno::OPNOTSUPP));
        }
    }
}
