//! Memory that a device may write to while it is adopted.
//!
//! A device that reads a file for `O_DIRECT` writes to pages, not to addresses: what it writes after the copy was taken goes to the
//! old page and is lost. Synchronous reads do no harm, because their thread does not stop before they are done; but those of io_uring
//! and libaio go on by themselves, and so does RDMA. The kernel counts who has pinned a page, and `UFFDIO_MOVE` (Linux 6.8) refuses
//! to move a page that may be pinned. So where such reads are possible, the old pages are kept aside when the object takes their
//! place, and are moved once more. If one cannot be, all are put back.
//!
//! They are asked after, not before: from then on nobody finds the old pages any more to pin them. And what a device has written
//! between the copy and the answer is copied once more.

use super::adopt;
use super::object::Object;
use crate::error::{Error, Result, failed};
use crate::range::Range;
use crate::sys::maps::{Attributes, Maps, Vma};
use crate::sys::memory::{self, HUGE_PAGE, PAGE, ProtFlags};
use crate::sys::pagemap::Pagemap;
use crate::sys::uffd::Userfaultfd;
use crate::sys::{Errno, SysResult, procfs};

/// Whether devices may write to memory of this process while no thread waits for it, as far as is known. `known` as in
/// [`Maps::any_shared_file`].
pub(crate) fn possible(maps: &Maps, known: impl Fn(&Vma) -> Option<usize>) -> bool {
    counted() || has_rings(maps, known)
}

/// Whether pages are pinned for long.
pub(crate) fn counted() -> bool {
    let mut buffer = [0; 4096];
    procfs::read_small(c"/proc/thread-self/status", &mut buffer)
        .map_or(true, |text| procfs::field(text, b"VmPin:", 10).is_some_and(|kib| kib > 0))
}

/// Whether the process has a ring of io_uring or a context of libaio.
fn has_rings(maps: &Maps, known: impl Fn(&Vma) -> Option<usize>) -> bool {
    let is_ring = |path: &[u8]| path.starts_with(b"anon_inode:[io_uring]") || path.starts_with(b"/[aio]");
    maps.any_shared_file(known, is_ring).unwrap_or(true)
}

/// The old pages of a private anonymous range, out of everybody's reach.
#[derive(Debug)]
pub(crate) struct OldPages {
    /// Where they were.
    home: Range,
    /// Our own area: room for the pages, and behind it room for those that have been moved once more.
    area: Range,
    old: usize,
    moved: usize,
}

/// How often the kernel may say that it is busy with a page. A huge page that is pinned looks like this, too.
const PATIENCE: u32 = 64;

impl OldPages {
    /// Takes the pages of `home` away. Nothing is mapped there then.
    ///
    /// # Safety
    /// `home` must be private anonymous memory that nobody uses until something is mapped there again.
    pub(crate) unsafe fn take(home: Range) -> SysResult<Self> {
        let room = home.len().next_multiple_of(HUGE_PAGE);
        // Huge pages move whole between addresses that agree.
        let all = ProtFlags::READ | ProtFlags::WRITE;
        let old = memory::map_agreeing(2 * room, home.start(), all)?;
        let area = Range::new(old, 2 * room).ok_or(Errno::INVAL)?;
        let pages = Self { home, area, old, moved: old + room };
        // SAFETY: the target is inside our own area; for the source see above.
        unsafe { memory::move_over(home.start(), home.len(), old) }?;
        Ok(pages)
    }

    /// Whether a device may write to one of the pages.
    ///
    /// # Errors
    /// It cannot be found out.
    pub(crate) fn any_is_pinned(
        &self,
        attributes: &Attributes,
        pagemap: &Pagemap,
        mover: &Userfaultfd,
    ) -> SysResult<bool> {
        let len = self.home.len();
        // Pages move between mappings of the same kind only.
        if attributes.locked {
            memory::unlock(self.old, len)?;
        }
        let all = ProtFlags::READ | ProtFlags::WRITE;
        if attributes.protection_key == 0 {
            // SAFETY: our own area.
            unsafe { memory::protect(self.old, len, all) }?;
        } else {
            // SAFETY: the same.
            unsafe { memory::protect_with_key(self.old, len, all, 0) }?;
        }
        mover.trap(self.moved, len)?;
        let (mut done, mut alone, mut busy) = (0, None, 0);
        while done < len {
            // SAFETY: both are in our own area.
            match unsafe { mover.move_pages(self.old + done, self.moved + done, len - done) } {
                Ok(count) => (done, busy) = (done + count, 0),
                Err(Errno::AGAIN) if busy < PATIENCE => busy += 1,
                Err(Errno::AGAIN) => return Ok(true),
                Err(Errno::BUSY) => {
                    // A page that a forked child has too is not pinned: the kernel would have given the child a copy.
                    let shared = self.shared_from(done, pagemap)?;
                    if shared > 0 {
                        done += shared;
                    } else if alone == Some(done) {
                        return Ok(true);
                    } else {
                        // Perhaps there was such a child, and nobody has stored to the page since.
                        memory::populate_for_stores(self.old + done, PAGE)?;
                        alone = Some(done);
                    }
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(false)
    }

    /// Copies the pages to the object once more.
    pub(crate) fn copy_again(&self, object: &Object, pagemap: &Pagemap) -> Result<()> {
        for start in [self.old, self.moved] {
            let place = Range::new(start, self.home.len()).ok_or(Error::Invalid("no range"))?;
            adopt::each_run(place, pagemap, |run| {
                let to = run.shifted(start, self.home.start()).ok_or(Errno::INVAL)?;
                adopt::copy_to(object, run.start(), to)
            })
            .map_err(failed("pwrite"))?;
        }
        Ok(())
    }

    /// For how many bytes from `from` on the pages are not there or not this process's alone.
    fn shared_from(&self, from: usize, pagemap: &Pagemap) -> SysResult<usize> {
        let (start, end) = (self.old + from, self.old + self.home.len());
        let mut until = start;
        pagemap.each_page(start, end.min(start + HUGE_PAGE), |addr, page| {
            if until == addr && (page.mapped_elsewhere() || !page.is_present()) {
                until += PAGE;
            }
        })?;
        Ok(until - start)
    }

    /// Puts everything back as it was but for the attributes, in place of what is mapped there now.
    ///
    /// # Errors
    /// What is mapped there now stays.
    ///
    /// # Safety
    /// Nobody may have stored to the range meanwhile.
    pub(crate) unsafe fn put_back(&self, object: &Object, prot: ProtFlags, pagemap: &Pagemap) -> Result<()> {
        // Those that have been moved once more are not pinned: a copy is as good. The one in the object may be older than they are.
        self.copy_again(object, pagemap)?;
        let mut result = Ok(());
        let (start, end) = (self.moved, self.moved + self.home.len());
        let asked = pagemap.each_page(start, end, |addr, page| {
            if page.exists() && result.is_ok() {
                let at = addr - self.moved;
                // SAFETY: the target is a page of our own area that is not there.
                let read = unsafe {
                    memory::read_to(object.own(), self.old + at, PAGE, (self.home.start() + at) as u64)
                };
                result = read.and_then(|count| if count == PAGE { Ok(()) } else { Err(Errno::IO) });
            }
        });
        asked.and(result).map_err(failed("pread"))?;
        // SAFETY: our own area.
        unsafe { memory::protect(self.old, self.home.len(), prot) }.map_err(failed("mprotect"))?;
        // SAFETY: from our own area to where the pages were, with the same bytes.
        unsafe { memory::move_over(self.old, self.home.len(), self.home.start()) }.map_err(failed("mremap"))
    }
}

impl Drop for OldPages {
    fn drop(&mut self) {
        // SAFETY: our own area. What is still there nobody needs: the object has it.
        let _ = unsafe { memory::unmap(self.area.start(), self.area.len()) };
    }
}
