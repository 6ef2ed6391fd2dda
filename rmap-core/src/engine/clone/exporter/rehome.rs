//! Moving pages from one object to another, or to other offsets: of memory that a narrower permit needs, that has become writable, or
//! that `mremap` has moved.
//!
//! A block at a time leaves its old place, as [`extract`](super::extract) does it, and is written to the new one from memory of the library's. At every moment
//! importers find a page at one of the two, or wait for it, so nothing is lost that they store.

use super::adopt::{copy_to, map_home};
use super::extract::{Extract, Order, end_of_block};
use super::numa::Placement;
use super::object::Object;
use super::watch::Watchers;
use crate::error::{Error, Result, failed};
use crate::log::log;
use crate::range::Range;
use crate::sys::memory::{self, HUGE_PAGE, ProtFlags};

/// Which pages move where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer<'a> {
    pub(crate) source: &'a Object,
    /// Offsets there.
    pub(crate) from: Range,
    pub(crate) home: &'a Object,
    /// Offsets at home, as many.
    pub(crate) to: Range,
}

impl Transfer<'_> {
    fn back(self) -> Self {
        let Self { source, from, home, to } = self;
        Self { source: home, from: to, home: source, to: from }
    }
}

/// Moves pages to where the address says that maps them: the addresses of `to` map the source until then, and the home afterwards.
///
/// All threads stand still, or the only one that knows the new address is held in `mremap`. The range is not watched afterwards. What is copied first stays
/// in the source as well, until the caller punches.
///
/// # Errors
/// The source has its pages, is mapped, and is watched, as before.
pub(crate) fn rehome(
    transfer: Transfer<'_>,
    order: Order,
    prot: ProtFlags,
    watchers: &Watchers,
    placement: &Placement,
) -> Result<()> {
    let Transfer { home, to, .. } = transfer;
    let policy = placement.begin(home, to);
    home.punch(to).map_err(failed("fallocate"))?;
    let carrier = Carrier::new(to.len().min(HUGE_PAGE))?;
    watchers.forget(to).map_err(failed("UFFDIO_UNREGISTER"))?;
    let moved = carrier.carry(transfer, to, order, placement).and_then(|()| {
        // SAFETY: the home shows the same bytes, and nobody can have changed them.
        unsafe { map_home(home, to, prot) }.map_err(failed("mmap"))
    });
    if let Err(error) = moved {
        // With what importers have stored to it at home.
        if order == Order::TakeFirst
            && let Err(error) = carrier.carry(transfer.back(), to, order, placement)
        {
            log!(Error, "{to} is lost: {error}");
        }
        let _ = watchers.watch(to);
        return Err(error);
    }
    placement.give(to, policy);
    Ok(())
}

/// Memory of the library's, through which blocks go.
#[derive(Debug)]
struct Carrier {
    start: usize,
    len: usize,
}

impl Carrier {
    /// For blocks of this length at most.
    fn new(len: usize) -> Result<Self> {
        let all = ProtFlags::READ | ProtFlags::WRITE;
        let start = memory::map_agreeing(len, 0, all).map_err(failed("mmap"))?;
        Ok(Self { start, len })
    }

    /// Moves what there is, while `mapped` maps one of the two.
    ///
    /// # Errors
    /// Some of it has moved.
    fn carry(
        &self,
        transfer: Transfer<'_>,
        mapped: Range,
        order: Order,
        placement: &Placement,
    ) -> Result<()> {
        const ELSEWHERE: Error = Error::Invalid("moved from nowhere");
        let Transfer { source, from, home, to } = transfer;
        let mut rest = Some(from);
        while let Some(data) = rest.and_then(|rest| source.next_data(rest)) {
            let end = end_of_block(data.start()).min(data.end());
            let block = Range::between(data.start(), end).ok_or(ELSEWHERE)?;
            let there = block.shifted(from.start(), mapped.start()).ok_or(ELSEWHERE)?;
            let target = block.shifted(from.start(), to.start()).ok_or(ELSEWHERE)?;
            let copy = Range::new(self.start, block.len().min(self.len)).ok_or(ELSEWHERE)?;
            // SAFETY: a block is no longer than the memory, which nobody else uses.
            let extract = unsafe { Extract::take(source, block, there, self.start, order, placement) }?;
            let written = placement.copy(copy, |part| {
                let target = part.shifted(copy.start(), target.start()).ok_or(crate::sys::Errno::INVAL)?;
                copy_to(home, part.start(), target)
            });
            if let Err(errno) = written {
                extract.put_back();
                return Err(failed("pwrite")(errno));
            }
            rest = Range::between(block.end(), from.end());
        }
        Ok(())
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        let _ = unsafe { memory::unmap(self.start, self.len) };
    }
}
