//! Huge pages for adopted memory.
//!
//! The kernel fills a memfd with small pages unless `shmem_enabled` says otherwise, which it rarely does. So blocks that were filled
//! whole are collapsed: the kernel copies each to a huge page and frees the small ones. Holes are left alone: collapsing one would
//! turn it into memory, and fails anyway while an importer's window traps missing pages there.

use super::collapse::{Collapser, collapse};
use super::numa::Placement;
use super::object::Object;
use crate::log::log;
use crate::range::Range;
use crate::sys::maps::Attributes;
use crate::sys::memory::HUGE_PAGE;
use crate::sys::{Errno, SysResult};

/// Decides where to try, and for how long not to.
#[derive(Debug)]
pub(crate) struct HugePages {
    collapser: Collapser,
    /// So many chunks are left as they are before the next try.
    skip: u32,
    /// So many were after the last failure.
    skipped: u32,
}

/// The most chunks to skip.
const MOST: u32 = 256;

/// Fewer blocks are not worth a sibling.
const FEW: usize = 4 * HUGE_PAGE;

impl HugePages {
    pub(crate) fn new() -> SysResult<Self> {
        Ok(Self { collapser: Collapser::new()?, skip: 0, skipped: 0 })
    }

    /// The blocks of `range` that are to be huge pages and worth being made so while they are filled: if all their pages exist.
    pub(crate) fn blocks_to_fill(&self, range: Range, attributes: &Attributes) -> Option<Range> {
        range.blocks(HUGE_PAGE).filter(|blocks| {
            (FEW..=Collapser::MOST).contains(&blocks.len()) && self.skip == 0 && !attributes.no_huge_pages
        })
    }

    /// Has `fill` fill each of the blocks, and makes those huge pages of which it says so.
    ///
    /// # Errors
    /// What `fill` fails with.
    pub(crate) fn fill(
        &mut self,
        object: &Object,
        blocks: Range,
        fill: impl FnMut(Range) -> SysResult<bool>,
    ) -> SysResult<()> {
        match self.collapser.fill(object, blocks, fill)? {
            Ok(()) => self.skipped = 0,
            Err(errno) => self.note_failure(blocks, errno),
        }
        Ok(())
    }

    /// An old kernel, no memory in one piece: trying takes time, and threads stand still.
    fn note_failure(&mut self, blocks: Range, errno: Errno) {
        self.skipped = (2 * self.skipped).clamp(1, MOST);
        self.skip = self.skipped;
        log!(Debug, "no huge pages for {blocks}: {errno}");
    }

    /// Gives the blocks of `range` that have all their pages huge ones, where `range` maps them and the application has not asked for
    /// small ones. That it does not work is no error.
    pub(crate) fn make(
        &mut self,
        object: &Object,
        range: Range,
        attributes: &Attributes,
        placement: &Placement,
    ) {
        if attributes.no_huge_pages {
            return;
        }
        let mut rest = range.blocks(HUGE_PAGE);
        while let Some(data) = rest.and_then(|rest| object.next_data(rest)) {
            if let Some(blocks) = data.blocks(HUGE_PAGE) {
                if self.skip > 0 {
                    self.skip -= 1;
                    return;
                }
                match placement.uniform(blocks, collapse) {
                    Ok(()) => self.skipped = 0,
                    // Somebody has a page in hand: the rest is huge.
                    Err(Errno::AGAIN) => {}
                    Err(errno) => return self.note_failure(blocks, errno),
                }
            }
            rest = rest.and_then(|rest| Range::between(data.end(), rest.end()));
        }
    }
}
