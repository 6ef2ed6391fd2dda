//! A map from address ranges to values, in own memory.

use super::OwnVec;
use crate::range::Range;
use crate::sys::SysResult;

/// A range and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span<V> {
    pub(crate) range: Range,
    pub(crate) value: V,
}

/// Disjoint ranges in order of address. Neighbours with equal values are one range.
///
/// Finding is logarithmic; changing moves the spans behind the change.
#[derive(Debug)]
pub(crate) struct RangeTable<V> {
    spans: OwnVec<Span<V>>,
}

impl<V: Copy + PartialEq> RangeTable<V> {
    pub(crate) const fn new() -> Self {
        Self { spans: OwnVec::new() }
    }

    /// Index of the first span that ends above `addr`.
    fn index_from(&self, addr: usize) -> usize {
        self.spans.partition_point(|span| span.range.end() <= addr)
    }

    /// The span that covers `addr`.
    pub(crate) fn at(&self, addr: usize) -> Option<Span<V>> {
        self.next_in(Range::page_at(addr)).filter(|span| span.range.contains(addr))
    }

    /// The first span that overlaps `range`, whole.
    pub(crate) fn next_in(&self, range: Range) -> Option<Span<V>> {
        self.spans.get(self.index_from(range.start())).copied().filter(|span| span.range.overlaps(range))
    }

    /// The parts of spans inside `range`, in order.
    pub(crate) fn within(&self, range: Range) -> impl Iterator<Item = Span<V>> + '_ {
        self.spans[self.index_from(range.start())..]
            .iter()
            .map_while(move |span| Some(Span { range: span.range.intersection(range)?, value: span.value }))
    }

    /// Where the spans end that follow each other from `addr` on without a gap; `None` if none covers it.
    pub(crate) fn end_of_run(&self, addr: usize) -> Option<usize> {
        let mut end = None;
        for span in &self.spans[self.index_from(addr)..] {
            if span.range.start() > end.unwrap_or(addr) {
                break;
            }
            end = Some(span.range.end());
        }
        end
    }

    /// All spans, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Span<V>> + '_ {
        self.spans.iter().copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Takes `range` out.
    ///
    /// # Errors
    /// `ENOMEM` when a span must be split and there is no room; nothing changed then.
    pub(crate) fn remove(&mut self, range: Range) -> SysResult<()> {
        let mut index = self.index_from(range.start());
        if !self.spans.get(index).is_some_and(|span| span.range.overlaps(range)) {
            return Ok(());
        }
        self.spans.reserve(1)?;
        while let Some(span) = self.spans.get(index).copied() {
            if !span.range.overlaps(range) {
                break;
            }
            let below = Range::between(span.range.start(), range.start());
            let above = Range::between(range.end(), span.range.end());
            match (below, above) {
                (None, None) => {
                    let _ = self.spans.remove(index);
                }
                (Some(rest), None) => {
                    self.spans[index].range = rest;
                    index += 1;
                }
                (None, Some(rest)) => {
                    self.spans[index].range = rest;
                    index += 1;
                }
                (Some(below), Some(above)) => {
                    self.spans[index].range = below;
                    self.spans.insert(index + 1, Span { range: above, value: span.value })?;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Gives `range` a value, in place of what it had.
    ///
    /// # Errors
    /// `ENOMEM`; nothing changed then.
    pub(crate) fn insert(&mut self, range: Range, value: V) -> SysResult<()> {
        self.spans.reserve(2)?;
        self.remove(range)?;
        let mut index = self.index_from(range.start());
        let mut range = range;
        let below = index.checked_sub(1).and_then(|below| self.spans.get(below)).copied();
        if let Some(span) = below.filter(|s| s.range.end() == range.start() && s.value == value) {
            range = span.range.join(range);
            index -= 1;
            let _ = self.spans.remove(index);
        }
        let above = self.spans.get(index).copied();
        if let Some(span) = above.filter(|s| s.range.start() == range.end() && s.value == value) {
            range = range.join(span.range);
            let _ = self.spans.remove(index);
        }
        self.spans.insert(index, Span { range, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memory::PAGE;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_map_of_pages(
            changes in proptest::collection::vec((0usize..64, 1usize..20, proptest::option::of(0u8..3)), 1..60)
        ) {
            let mut table = RangeTable::new();
            let mut model = [None; 96];
            for (first, pages, value) in changes {
                let range = Range::new(first * PAGE, pages * PAGE).unwrap();
                match value {
                    Some(value) => table.insert(range, value).unwrap(),
                    None => table.remove(range).unwrap(),
                }
                model[first..first + pages].fill(value);
                for (page, value) in model.iter().enumerate() {
                    prop_assert_eq!(table.at(page * PAGE).map(|s| s.value), *value);
                }
                for (left, right) in table.iter().zip(table.iter().skip(1)) {
                    prop_assert!(left.range.end() <= right.range.start());
                    prop_assert!(left.range.end() < right.range.start() || left.value != right.value);
                }
                for page in 0..model.len() {
                    let run = model[page..].iter().take_while(|value| value.is_some()).count();
                    let end = (run > 0).then_some((page + run) * PAGE);
                    prop_assert_eq!(table.end_of_run(page * PAGE), end);
                }
                let window = Range::new(8 * PAGE, 40 * PAGE).unwrap();
                let pages: usize = table.within(window).map(|s| s.range.len() / PAGE).sum();
                prop_assert_eq!(pages, model[8..48].iter().flatten().count());
            }
        }
    }
}
