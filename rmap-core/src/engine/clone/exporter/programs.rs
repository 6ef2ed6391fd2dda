//! Memory that the service thread itself needs all the time: the data of the library, of the C library and of the dynamic linker.

use super::extract::Order;
use crate::range::Range;
use crate::sys::program;

/// Where these are loaded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Programs([Option<Range>; 3]);

impl Programs {
    /// Finds them. Not for the service thread: it takes a lock.
    pub(crate) fn here() -> Self {
        let of_each =
            [Self::here as *const () as usize, libc::getpid as *const () as usize, program::dynamic_linker()];
        Self(
            of_each
                .map(|addr| program::loaded_around(addr).and_then(|(start, end)| Range::between(start, end))),
        )
    }

    /// The first part of a range that can leave an object in one way, and in which.
    pub(super) fn first_part(&self, range: Range) -> (Range, Order) {
        let mut end = range.end();
        for program in self.0.iter().flatten() {
            if program.contains(range.start()) {
                end = end.min(program.end());
                return (Range::between(range.start(), end).unwrap_or(range), Order::CopyFirst);
            }
            if range.contains(program.start()) {
                end = end.min(program.start());
            }
        }
        (Range::between(range.start(), end).unwrap_or(range), Order::TakeFirst)
    }

    /// Whether any of it is in a range.
    pub(super) fn are_in(&self, range: Range) -> bool {
        self.0.iter().flatten().any(|program| program.overlaps(range))
    }

    /// The part that `addr` is in.
    pub(super) fn part_with(&self, addr: usize, range: Range) -> (Range, Order) {
        let mut rest = range;
        loop {
            let (part, order) = self.first_part(rest);
            match Range::between(part.end(), range.end()).filter(|_| !part.contains(addr)) {
                Some(behind) => rest = behind,
                None => return (part, order),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memory::PAGE;

    #[test]
    fn a_part_is_found_by_an_address() {
        let pages = |start: usize, end: usize| Range::between(start * PAGE, end * PAGE).unwrap();
        let programs = Programs([Some(pages(20, 30)), None, Some(pages(10, 15))]);
        let at = |page: usize| programs.part_with(page * PAGE, pages(8, 40));
        assert_eq!(at(8), (pages(8, 10), Order::TakeFirst));
        assert_eq!(at(14), (pages(10, 15), Order::CopyFirst));
        assert_eq!(at(39), (pages(30, 40), Order::TakeFirst));
    }

    #[test]
    fn a_range_is_cut_at_the_borders_of_programs() {
        let pages = |start: usize, end: usize| Range::between(start * PAGE, end * PAGE).unwrap();
        let programs = Programs([Some(pages(20, 30)), None, Some(pages(10, 15))]);
        let (mut rest, mut parts) = (Some(pages(8, 40)), Vec::new());
        while let Some(range) = rest {
            let (part, order) = programs.first_part(range);
            parts.push((part, order));
            rest = Range::between(part.end(), range.end());
        }
        let expected = [
            (pages(8, 10), Order::TakeFirst),
            (pages(10, 15), Order::CopyFirst),
            (pages(15, 20), Order::TakeFirst),
            (pages(20, 30), Order::CopyFirst),
            (pages(30, 40), Order::TakeFirst),
        ];
        assert_eq!(parts, expected);
    }
}
