//! What the tests write into pages, and how they tell whose page they see.
//!
//! A page carries a stamp: a number that decides all its words. Stamp 0 is the page of zeros. The pattern does
//! not depend on the address, so that a page keeps its stamp when it is moved.

use crate::PAGE;

/// The bytes of one page.
pub type Page = [u8; PAGE];

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Word `index` of a page with this stamp.
pub fn word(stamp: u64, index: usize) -> u64 {
    if stamp == 0 { 0 } else { stamp.wrapping_add((index as u64).wrapping_mul(stamp.wrapping_mul(STEP) | 1)) }
}

/// Fills a page with the pattern of a stamp.
pub fn draw(stamp: u64, page: &mut Page) {
    for (index, bytes) in page.chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&word(stamp, index).to_ne_bytes());
    }
}

/// The stamp of a page, or `None` if it is not the pattern of any stamp.
pub fn stamp(page: &Page) -> Option<u64> {
    let mut words = page.chunks_exact(8).map(|bytes| u64::from_ne_bytes(bytes.try_into().expect("8 bytes")));
    let first = words.next()?;
    words.enumerate().all(|(index, found)| found == word(first, index + 1)).then_some(first)
}

/// What was found at the address of a page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The pattern of this stamp.
    Stamp(u64),
    /// Memory that is no stamp's pattern.
    Other,
    /// SIGBUS with an address in the page, as for a hole.
    Hole,
    /// Any other fault.
    Fault,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stamp(0) => f.write_str("zeros"),
            Self::Stamp(stamp) => write!(f, "stamp {stamp:#x}"),
            Self::Other => f.write_str("other bytes"),
            Self::Hole => f.write_str("hole"),
            Self::Fault => f.write_str("another fault"),
        }
    }
}

impl Seen {
    /// What a page shows.
    pub fn of(page: &Page) -> Self {
        stamp(page).map_or(Self::Other, Self::Stamp)
    }

    /// As a word of an answer.
    pub fn token(self) -> String {
        match self {
            Self::Stamp(stamp) => format!("{stamp:x}"),
            Self::Other => "o".into(),
            Self::Hole => "h".into(),
            Self::Fault => "x".into(),
        }
    }

    /// From a word of an answer.
    pub fn parse(token: &str) -> Option<Self> {
        match token {
            "o" => Some(Self::Other),
            "h" => Some(Self::Hole),
            "x" => Some(Self::Fault),
            hex => u64::from_str_radix(hex, 16).ok().map(Self::Stamp),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawn_page_shows_its_stamp() {
        let mut page = [0; PAGE];
        assert_eq!(stamp(&page), Some(0));
        for number in [1, 2, 0x7fff_1234_5678, u64::MAX] {
            draw(number, &mut page);
            assert_eq!(stamp(&page), Some(number));
            page[100] ^= 1;
            assert_eq!(stamp(&page), None);
        }
    }
}
