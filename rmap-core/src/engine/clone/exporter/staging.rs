//! Filling an object: in a mapping of our own, which then takes the range's place, page tables and all.
//!
//! `UFFDIO_COPY` allocates a page, copies to it and maps it in one step: without zeroing it first, and without the lock on the file that
//! `pwrite` takes. So two can fill at once: a sibling helps, for the cores of the threads that stand still are free. And the
//! application has no fault for any of the pages afterwards.
//!
//! The kernel fills a memfd with small pages unless `shmem_enabled` says otherwise, which it rarely does; but it makes a huge page of a block
//! that has one small page and holes. So a block that is to be huge gets its first page, is collapsed, and then is filled: one allocation
//! for 512. It takes a third of the time of small pages.

use super::super::errand::Errand;
use super::adopt::fill_by_descriptor;
use super::object::Object;
use crate::counters::{self, Cell};
use crate::range::Range;
use crate::sys::memory::{self, HUGE_PAGE, MapFlags, PAGE, ProtFlags};
use crate::sys::thread;
use crate::sys::uffd::Userfaultfd;
use crate::sys::{Errno, SysResult};
use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// Less is copied sooner than a mapping is made.
const SHORTEST: usize = 16 * PAGE;

/// What one of the two takes at a time. It must be enough to be worth a sibling.
const SHARE: usize = HUGE_PAGE / 2;

/// The same of huge pages: two, because each collapse has the kernel empty the lists of all cores.
const SHARE_OF_BLOCKS: usize = 2 * HUGE_PAGE;

/// Who fills.
#[derive(Debug)]
pub(crate) struct Stager {
    pages: Userfaultfd,
    errand: Errand<Order>,
}

impl Stager {
    pub(crate) fn new(pages: Userfaultfd) -> SysResult<Self> {
        Ok(Self { pages, errand: Errand::new(16 << 10)? })
    }

    /// What tells whether a page is pinned; `None` before Linux 6.8.
    pub(crate) fn mover(&self) -> Option<&Userfaultfd> {
        Some(&self.pages).filter(|pages| pages.moves_pages())
    }

    /// Makes a staging area for `home`, whose pages the object does not have; with `huge`, all blocks are to become huge pages, which works where
    /// nobody maps the object. `None` if that is not worth it, or there is no room.
    pub(crate) fn stage<'a>(&'a self, object: &'a Object, home: Range, huge: bool) -> Option<Staging<'a>> {
        if home.len() < SHORTEST {
            return None;
        }
        let start = memory::map_agreeing(home.len(), home.start(), ProtFlags::empty()).ok()?;
        let view = Range::new(start, home.len())?;
        let staging = Staging { stager: self, object, home, view, huge, collapsed: Ok(()) };
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::NORESERVE);
        // SAFETY: our own reservation.
        unsafe { memory::map_over(start, home.len(), prot, flags, object.own(), home.start() as u64) }
            .ok()?;
        // Nothing is collapsed where holes are trapped.
        if !huge {
            self.pages.trap(start, home.len()).ok()?;
        }
        Some(staging)
    }
}

/// A mapping of the object, to be filled and then to be put in place.
#[derive(Debug)]
pub(crate) struct Staging<'a> {
    stager: &'a Stager,
    object: &'a Object,
    home: Range,
    view: Range,
    huge: bool,
    collapsed: SysResult<()>,
}

impl Staging<'_> {
    /// Copies a part of the home.
    ///
    /// # Errors
    /// Some pages are there then; those of blocks that are to be huge may be zeroes. Whether there are huge pages [`collapsed`](Self::collapsed) tells.
    pub(crate) fn fill(&mut self, part: Range) -> SysResult<()> {
        let huge = self.huge;
        let Some(to) = part.shifted(self.home.start(), self.view.start()) else { return Err(Errno::INVAL) };
        // SAFETY: every sibling is reaped below.
        let order = unsafe {
            self.stager.errand.give(Order {
                pages: &raw const self.stager.pages,
                object: self.object.own().as_raw_fd(),
                from: part,
                to: to.start(),
                share: if huge { SHARE_OF_BLOCKS } else { SHARE },
                huge,
                collapse: AtomicBool::new(self.collapsed.is_ok()),
                next: AtomicUsize::new(part.start()),
                copied: AtomicUsize::new(0),
                failed: AtomicI32::new(0),
                not_collapsed: AtomicI32::new(0),
                huge_pages: AtomicUsize::new(0),
            })
        };
        let mut sibling = None;
        if order.is_for_two() {
            // SAFETY: the last sibling is reaped; `sibling_main` makes raw system calls only. Without a sibling all is done here.
            sibling = unsafe { self.stager.errand.send(sibling_main) }.ok();
        }
        order.work();
        if let Some(sibling) = sibling {
            sibling.reap();
        }
        self.collapsed = self.collapsed.and(outcome(&order.not_collapsed));
        counters::add(Cell::HugePages, order.huge_pages.load(Ordering::Relaxed) as u64);
        outcome(&order.failed)?;
        // A sibling that was killed has not copied what it had claimed.
        if order.copied.load(Ordering::Acquire) == part.len() { Ok(()) } else { Err(Errno::AGAIN) }
    }

    /// Whether all the blocks that were to be huge pages are.
    ///
    /// # Errors
    /// What the kernel said of the first that is not.
    pub(crate) fn collapsed(&self) -> SysResult<()> {
        self.collapsed
    }

    /// Replaces what is mapped at the home.
    ///
    /// # Errors
    /// What was mapped there may be gone if the kernel has no memory.
    ///
    /// # Safety
    /// The object must show there what was there, and nobody may store to it meanwhile.
    pub(crate) unsafe fn put_in_place(self, prot: ProtFlags) -> SysResult<()> {
        let (view, home) = (self.view, self.home);
        if !self.huge {
            self.stager.pages.forget(view.start(), view.len())?;
        }
        if !prot.contains(ProtFlags::READ | ProtFlags::WRITE) {
            // SAFETY: our own mapping.
            unsafe { memory::protect(view.start(), view.len(), prot) }?;
        }
        // SAFETY: the caller's promise.
        unsafe { memory::move_over(view.start(), view.len(), home.start()) }?;
        core::mem::forget(self);
        Ok(())
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which has not been moved.
        let _ = unsafe { memory::unmap(self.view.start(), self.view.len()) };
    }
}

/// Work for both.
#[derive(Debug)]
struct Order {
    pages: *const Userfaultfd,
    object: RawFd,
    from: Range,
    /// Where the copy of its start goes.
    to: usize,
    /// Shares end at multiples of this many bytes.
    share: usize,
    huge: bool,
    /// Until it fails once.
    collapse: AtomicBool,
    /// What is before this address is copied, or somebody's work.
    next: AtomicUsize,
    /// Bytes that are copied.
    copied: AtomicUsize,
    failed: AtomicI32,
    not_collapsed: AtomicI32,
    /// How many blocks were collapsed.
    huge_pages: AtomicUsize,
}

fn outcome(errno: &AtomicI32) -> SysResult<()> {
    match errno.load(Ordering::Relaxed) {
        0 => Ok(()),
        errno => Err(Errno::from_raw_os_error(errno)),
    }
}

impl Order {
    fn is_for_two(&self) -> bool {
        self.share_at(self.from.start()).end() < self.from.end()
    }

    fn share_at(&self, start: usize) -> Range {
        let end = (start + 1).next_multiple_of(self.share).min(self.from.end());
        Range::between(start, end).unwrap_or(self.from)
    }

    fn claim(&self) -> Option<Range> {
        let next = |start| (start < self.from.end()).then(|| self.share_at(start).end());
        let claimed = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        claimed.ok().map(|start| self.share_at(start))
    }

    fn work(&self) {
        while let Some(share) = self.claim() {
            let blocks = share.blocks(HUGE_PAGE).filter(|blocks| self.huge && *blocks == share);
            let copied = match blocks {
                Some(blocks) => self.copy_blocks(blocks),
                // Of a block on two nodes each part is copied for itself.
                None if self.huge => self.write(share),
                None => self.copy(share),
            };
            if let Err(errno) = copied {
                self.failed.store(errno.raw_os_error(), Ordering::Relaxed);
                self.next.store(self.from.end(), Ordering::Relaxed);
                return;
            }
            self.copied.fetch_add(share.len(), Ordering::Release);
        }
    }

    fn place_of(&self, addr: usize) -> usize {
        self.to + (addr - self.from.start())
    }

    fn copy(&self, share: Range) -> SysResult<()> {
        // SAFETY: whoever gave the order lends it for as long.
        let pages = unsafe { &*self.pages };
        let mut at = share.start();
        while at < share.end() {
            // SAFETY: the target is in the staging area.
            match unsafe { pages.copy_pages(at, self.place_of(at), share.end() - at) } {
                Ok(count) => at += count,
                // There is a page: an importer has put it there, or the application has all its mappings locked.
                Err(_) => {
                    let page = Range::page_at(at);
                    self.write(page)?;
                    at = page.end();
                }
            }
        }
        Ok(())
    }

    fn write(&self, range: Range) -> SysResult<()> {
        // SAFETY: as above.
        let object = unsafe { BorrowedFd::borrow_raw(self.object) };
        fill_by_descriptor(object, range)
    }

    fn copy_blocks(&self, blocks: Range) -> SysResult<()> {
        if !self.collapse.load(Ordering::Relaxed) {
            return self.write(blocks);
        }
        // The kernel collapses nothing that is empty.
        for start in (blocks.start()..blocks.end()).step_by(HUGE_PAGE) {
            self.write(Range::page_at(start))?;
        }
        let collapsed = match self.collapse(blocks) {
            Ok(()) => {
                self.copy_to_view(blocks)?;
                Ok(())
            }
            // Perhaps because an importer traps the holes: what it had there before has come back. Then small pages do it.
            Err(_) => {
                self.write(blocks)?;
                self.collapse(blocks)
            }
        };
        match collapsed {
            Ok(()) => {
                self.huge_pages.fetch_add(blocks.len() / HUGE_PAGE, Ordering::Relaxed);
            }
            Err(errno) => {
                self.not_collapsed.store(errno.raw_os_error(), Ordering::Relaxed);
                self.collapse.store(false, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Copies to pages that are mapped, without the lock on the file; by the file where a sandbox refuses that.
    fn copy_to_view(&self, range: Range) -> SysResult<()> {
        let mut at = range.start();
        while at < range.end() {
            // SAFETY: the target is in the staging area.
            match unsafe { memory::copy_by_kernel(at, self.place_of(at), range.end() - at) } {
                Ok(count) if count > 0 => at += count,
                _ => return Range::between(at, range.end()).map_or(Ok(()), |rest| self.write(rest)),
            }
        }
        Ok(())
    }

    fn collapse(&self, blocks: Range) -> SysResult<()> {
        let collapse = || memory::collapse(self.place_of(blocks.start()), blocks.len());
        match collapse().or_else(|errno| if errno == Errno::AGAIN { collapse() } else { Err(errno) }) {
            // Pages were on their way to a list of another core, or somebody has one in hand: the rest is huge.
            Err(Errno::AGAIN) => Ok(()),
            collapsed => collapsed,
        }
    }
}

extern "C" fn sibling_main(order: *mut c_void) -> i32 {
    // SAFETY: `Staging::fill` passes its order, and waits for the end of the sibling.
    let order = unsafe { &*order.cast::<Order>() };
    thread::die_with_parent();
    order.work();
    0
}
