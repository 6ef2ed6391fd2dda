//! Telling importers where memory has been adopted, so that they make their windows before anybody waits for one.
//!
//! Nothing depends on it: who is not told makes the window at the first attach.

use super::Exporter;
use crate::engine::clone::BLOCK;
use crate::range::Range;

/// Blocks that a new permit comes with.
const MOST: usize = 8;

impl Exporter {
    /// Whether nothing is adopted yet in the block of a page.
    pub(super) fn is_new_block(&self, page: Range) -> bool {
        self.backed.next_in(page.around(BLOCK)).is_none()
    }

    /// Tells the importers of the first adopted memory of a block, but for the one that had it adopted.
    pub(super) fn hint(&mut self, page: Range, asker: u32) {
        for client in self.clients.iter_mut().filter(|client| client.number != asker) {
            client.hint(page);
        }
    }

    /// Tells one that has got a permit where there is adopted memory.
    pub(super) fn hint_all(&mut self, client: usize, range: Range) {
        let mut from = Some(range);
        for _ in 0..MOST {
            let Some(span) = from.and_then(|rest| self.backed.next_in(rest)) else { break };
            let Some(part) = span.range.intersection(range) else { break };
            let page = Range::page_at(part.start());
            self.clients[client].hint(page);
            from = Range::between(page.around(BLOCK).end(), range.end());
        }
    }
}
