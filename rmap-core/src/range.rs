//! Page-aligned address ranges.

use crate::sys::memory::PAGE;

/// A non-empty, page-aligned range of addresses below 2^63.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    start: usize,
    end: usize,
}

const LIMIT: usize = 1 << 63;

impl Range {
    /// All addresses.
    pub(crate) const EVERYTHING: Self = Self { start: 0, end: LIMIT };

    /// The range of `len` bytes from `start`; `None` if either is not a multiple of the page size, the range is
    /// empty, or it runs past 2^63.
    #[must_use]
    pub fn new(start: usize, len: usize) -> Option<Self> {
        Self::between(start, start.checked_add(len)?)
    }

    /// The range from `start` up to `end`, under the same conditions.
    #[must_use]
    pub fn between(start: usize, end: usize) -> Option<Self> {
        let valid = start < end && end <= LIMIT && start.is_multiple_of(PAGE) && end.is_multiple_of(PAGE);
        valid.then_some(Self { start, end })
    }

    /// The page that holds `addr`.
    pub(crate) fn page_at(addr: usize) -> Self {
        let start = addr.min(LIMIT - 1) & !(PAGE - 1);
        Self { start, end: start + PAGE }
    }

    /// The first address.
    #[must_use]
    pub fn start(self) -> usize {
        self.start
    }

    /// The first address behind the range.
    #[must_use]
    pub fn end(self) -> usize {
        self.end
    }

    /// Bytes in the range.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    #[must_use]
    pub fn len(self) -> usize {
        self.end - self.start
    }

    /// Whether `addr` lies inside.
    #[must_use]
    pub fn contains(self, addr: usize) -> bool {
        (self.start..self.end).contains(&addr)
    }

    /// Whether all of `other` lies inside.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Whether the two share a page.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// What the two share.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::between(self.start.max(other.start), self.end.min(other.end))
    }

    /// The blocks of `size` bytes that lie inside whole.
    pub(crate) fn blocks(self, size: usize) -> Option<Self> {
        let start = self.start.checked_next_multiple_of(size)?;
        Self::between(start, self.end / size * size)
    }

    /// The blocks of `size` bytes, a power of two, that have a part of it.
    pub(crate) fn around(self, size: usize) -> Self {
        let end = self.end.checked_next_multiple_of(size).unwrap_or(self.end);
        Self { start: self.start & !(size - 1), end }
    }

    /// The parts of it that share a block of `size` bytes, a power of two, with what is not in it.
    pub(crate) fn ends(self, size: usize) -> impl Iterator<Item = Self> {
        let around = self.around(size);
        let first = Self { start: around.start, end: around.start + size };
        let last = Self { start: around.end - size, end: around.end };
        let parts = [first.intersection(self), last.intersection(self).filter(|_| first != last)];
        parts.into_iter().flatten().filter(move |part| part.len() < size)
    }

    /// The smallest range that covers both.
    pub(crate) fn join(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// The same range, `to - from` higher.
    pub(crate) fn shifted(self, from: usize, to: usize) -> Option<Self> {
        let start = self.start.wrapping_sub(from).wrapping_add(to);
        Self::new(start, self.len())
    }
}

impl core::fmt::Debug for Range {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.end)
    }
}

impl core::fmt::Display for Range {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_blocks_count() {
        let range = |start, len| Range::new(start, len).unwrap();
        let size = 8 * PAGE;
        assert_eq!(range(PAGE, size).blocks(size), None);
        assert_eq!(range(0, size - PAGE).blocks(size), None);
        assert_eq!(range(size, size).blocks(size), Some(range(size, size)));
        assert_eq!(range(size - PAGE, 3 * size).blocks(size), Some(range(size, 2 * size)));
    }

    #[test]
    fn ends_are_parts_of_blocks() {
        let size = 8 * PAGE;
        let ends = |start, end| {
            let range = Range::between(start * PAGE, end * PAGE).unwrap();
            range.ends(size).map(|part| (part.start() / PAGE, part.end() / PAGE)).collect::<Vec<_>>()
        };
        assert_eq!(ends(8, 32), []);
        assert_eq!(ends(9, 11), [(9, 11)]);
        assert_eq!(ends(8, 11), [(8, 11)]);
        assert_eq!(ends(11, 16), [(11, 16)]);
        assert_eq!(ends(11, 20), [(11, 16), (16, 20)]);
        assert_eq!(ends(11, 32), [(11, 16)]);
        assert_eq!(ends(8, 44), [(40, 44)]);
    }

    #[test]
    fn only_aligned_non_empty_ranges_exist() {
        assert_eq!(Range::new(0, 0), None);
        assert_eq!(Range::new(1, PAGE), None);
        assert_eq!(Range::new(0, 1), None);
        assert_eq!(Range::new(usize::MAX & !(PAGE - 1), PAGE), None);
        assert_eq!(Range::new(PAGE, PAGE).unwrap().end(), 2 * PAGE);
    }
}
