//! Huge pages for adopted memory: where to try, and for how long not to.
//!
//! Only blocks that have all their pages become huge: a hole would turn into memory.

use crate::counters::{self, Cell};
use crate::log::log;
use crate::range::Range;
use crate::sys::maps::{Attributes, HugePageAdvice};
use crate::sys::memory::{self, HUGE_PAGE};
use crate::sys::pagemap::Pagemap;
use crate::sys::{Said, SysResult};

/// The part of `range` around `page` that is whole blocks with all their pages, or that has none, and whether it is the former. With
/// `complete`, all pages are there.
pub(crate) fn part_around(
    page: usize,
    range: Range,
    complete: bool,
    pagemap: &Pagemap,
) -> SysResult<(Range, bool)> {
    let mut found = Parts { page, rest: range, whole: None };
    if complete {
        found.run(range);
    } else {
        let mut last: Option<Range> = None;
        pagemap.each_run(range.start(), range.end(), |start, end| {
            let Some(run) = Range::between(start, end) else { return Ok(()) };
            last = match last {
                // Neighbours may come as two runs.
                Some(last) if last.end() == run.start() => Some(last.join(run)),
                Some(last) => {
                    found.run(last);
                    Some(run)
                }
                None => Some(run),
            };
            Ok(())
        })?;
        if let Some(last) = last {
            found.run(last);
        }
    }
    Ok(found.whole.map_or((found.rest, false), |whole| (whole, true)))
}

/// What is known of the surroundings of a page.
struct Parts {
    page: usize,
    rest: Range,
    whole: Option<Range>,
}

impl Parts {
    /// Notes a run of pages that are there.
    fn run(&mut self, run: Range) {
        let Some(blocks) = run.blocks(HUGE_PAGE) else { return };
        if blocks.contains(self.page) {
            self.whole = Some(blocks);
        } else if blocks.end() <= self.page {
            self.rest =
                Range::between(blocks.end().max(self.rest.start()), self.rest.end()).unwrap_or(self.rest);
        } else {
            self.rest =
                Range::between(self.rest.start(), blocks.start().min(self.rest.end())).unwrap_or(self.rest);
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memory::PAGE;

    /// What is around `page` in a range of five blocks, with these runs of pages; all in pages.
    fn around(page: usize, runs: &[(usize, usize)]) -> ((usize, usize), bool) {
        const BASE: usize = 8 * HUGE_PAGE;
        let range = |(start, end)| Range::between(BASE + start * PAGE, BASE + end * PAGE).unwrap();
        let mut parts = Parts { page: BASE + page * PAGE, rest: range((0, 5 * 512)), whole: None };
        for run in runs {
            parts.run(range(*run));
        }
        let found = parts.whole.unwrap_or(parts.rest);
        let page_of = |addr: usize| (addr - BASE) / PAGE;
        ((page_of(found.start()), page_of(found.end())), parts.whole.is_some())
    }

    #[test]
    fn whole_blocks_are_found_around_a_page() {
        assert_eq!(around(700, &[(0, 2560)]), ((0, 2560), true));
        assert_eq!(around(700, &[(10, 1600)]), ((512, 1536), true));
        assert_eq!(around(700, &[(512, 1024), (1100, 2560)]), ((512, 1024), true));
    }

    #[test]
    fn other_parts_end_at_whole_blocks() {
        assert_eq!(around(700, &[(0, 699)]), ((512, 2560), false));
        assert_eq!(around(700, &[(0, 699), (800, 2560)]), ((512, 1024), false));
        assert_eq!(around(700, &[]), ((0, 2560), false));
        assert_eq!(around(5, &[(10, 1600)]), ((0, 512), false));
        assert_eq!(around(2559, &[(0, 2559)]), ((2048, 2560), false));
    }
}
