//! Huge pages for adopted memory: where to try, and for how long not to.
//!
//! Holes are left alone: collapsing a block with one would turn it into memory, and fails anyway while an importer's window traps
//! missing pages there.

use crate::counters::{self, Cell};
use crate::log::log;
use crate::range::Range;
use crate::sys::maps::{Attributes, HugePageAdvice};
use crate::sys::memory::{self, HUGE_PAGE};
use crate::sys::{Said, SysResult};

/// Remembers failures: an old kernel, no memory in one piece. Trying takes time, and threads stand still.
#[derive(Debug)]
pub(crate) struct HugePages {
    /// So many chunks are left as they are before the next try.
    skip: u32,
    /// So many were after the last failure.
    skipped: u32,
}

/// The most chunks to skip.
const MOST: u32 = 256;

impl HugePages {
    pub(crate) const fn new() -> Self {
        Self { skip: 0, skipped: 0 }
    }

    /// Whether the blocks of `range` that have all their pages are to be huge pages.
    pub(crate) fn are_wanted(&mut self, range: Range, attributes: &Attributes) -> bool {
        let Some(blocks) = range.blocks(HUGE_PAGE) else {
            return false;
        };
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        match attributes.huge_pages {
            HugePageAdvice::Neutral | HugePageAdvice::Wanted => true,
            HugePageAdvice::Refused => false,
            HugePageAdvice::Unasked => memory::may_collapse(blocks.start()).unwrap_or(false),
        }
    }

    /// How it went.
    pub(crate) fn note(&mut self, range: Range, result: SysResult<()>) {
        match result {
            Ok(()) => self.skipped = 0,
            Err(errno) => {
                self.skipped = (2 * self.skipped).clamp(1, MOST);
                self.skip = self.skipped;
                counters::count(Cell::HugePagesFailed);
                log!(Debug, "no huge pages for {range}: {errno}", errno = Said(errno));
            }
        }
    }
}
