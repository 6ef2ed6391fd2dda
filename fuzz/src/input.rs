//! Making decisions from bytes.

use crate::protocol::{Access, Message, Source};
use crate::range::Range;
use rmap_tests::PAGE;

/// Bytes that decide. At their end everything is zero.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn array<const LEN: usize>(&mut self) -> [u8; LEN] {
        let mut array = [0; LEN];
        let len = LEN.min(self.0.len());
        let (head, rest) = self.0.split_at(len);
        array[..len].copy_from_slice(head);
        self.0 = rest;
        array
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }

    /// So many bytes at most.
    pub(crate) fn bytes(&mut self, most: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(self.below(most + 1).min(self.0.len()));
        self.0 = rest;
        head
    }

    /// Mostly one of these numbers, or something near to one.
    pub(crate) fn number(&mut self, known: &[u32]) -> u32 {
        let choice = self.byte();
        let near = known.get(usize::from(choice) / 8 % known.len().max(1)).copied().unwrap_or(1);
        match choice % 8 {
            0 => 0,
            1 => u32::MAX,
            2 => u32::from_ne_bytes(self.array()),
            3 => near.wrapping_add_signed(i32::from(self.byte().cast_signed())),
            _ => near,
        }
    }

    /// Mostly an address in `around`, or a few pages beside it.
    pub(crate) fn address(&mut self, around: Range) -> usize {
        let pages = around.len() / PAGE;
        let choice = self.byte();
        match choice % 8 {
            0 => usize::from_ne_bytes(self.array()),
            1 => around.start().wrapping_add_signed(isize::from(self.byte().cast_signed()) * PAGE as isize),
            2 => around.end() - 1,
            3 => around.start() + self.below(pages) * PAGE + usize::from(choice),
            _ => around.start() + self.below(pages) * PAGE,
        }
    }

    /// A range; one at least is a range at all.
    pub(crate) fn range(&mut self, around: Range) -> Range {
        if self.byte().is_multiple_of(4) {
            return around;
        }
        let (from, to) = (self.address(around) & !(PAGE - 1), self.address(around) & !(PAGE - 1));
        Range::between(from.min(to), from.max(to).saturating_add(PAGE)).unwrap_or(around)
    }

    /// An offset in a file; mostly one that is in `around`.
    fn offset(&mut self, around: Range) -> u64 {
        match self.byte() % 4 {
            0 => u64::from_ne_bytes(self.array()),
            1 => self.address(around) as u64,
            _ => (self.below(16) * PAGE) as u64,
        }
    }

    fn access(&mut self) -> Access {
        if self.byte().is_multiple_of(4) { Access::ReadOnly } else { Access::ReadWrite }
    }

    /// A message, of every kind.
    pub(crate) fn message(&mut self, known: &Known<'_>) -> Message {
        let request = self.number(known.requests);
        match self.below(21) {
            0 => Message::Granted {
                request,
                grant: self.number(known.grants),
                serial: self.number(known.serials),
                range: self.range(known.around),
            },
            1 => Message::Refused { request, errno: self.number(&[2, 13, 22, 110]) },
            2 | 3 => {
                let source = match self.below(5) {
                    0 => Source::File { offset: self.offset(known.around) },
                    1 => {
                        Source::SystemV { id: self.number(known.system_v), offset: self.offset(known.around) }
                    }
                    2 => Source::Foreign { offset: self.offset(known.around) },
                    _ => Source::Object { serial: self.number(known.serials) },
                };
                let (range, writable) = (self.range(known.around), self.byte().is_multiple_of(2));
                Message::Resolved { request, range, source, writable }
            }
            4 => Message::Hole { request },
            5 => Message::ReadOnly { request },
            6 => Message::Stale {
                range: self.range(known.around),
                number: self.number(&[1]),
                objects: self.byte().is_multiple_of(2),
            },
            7 => Message::Removed { grant: self.number(known.grants), number: self.number(&[1]) },
            8 => Message::Release { grant: self.number(known.grants) },
            14 => Message::Seen { number: self.number(&[1]) },
            9 => Message::Adopted { range: self.range(known.around) },
            16 => Message::Status,
            17 => Message::Survey { request },
            18 => Message::Surveyed { request },
            19 => Message::Hello { number: 1, proof: u64::from_ne_bytes(self.array()) },
            20 => Message::Proof { proof: u64::from_ne_bytes(self.array()) },
            15 => Message::Closed { serial: self.number(known.serials) },
            10 => Message::Get { request, segment: self.number(known.segments), access: self.access() },
            _ => {
                let attached = self.range(known.around);
                let near = if self.byte().is_multiple_of(4) { known.around } else { attached };
                Message::Resolve {
                    request,
                    grant: self.number(known.grants),
                    addr: self.address(near),
                    attached,
                    run: self.number(&[1, 5, 100]),
                    store: self.byte().is_multiple_of(2),
                    hops: self.number(&[0, 1, 8]),
                }
            }
        }
    }
}

/// Numbers that mean something to the other side.
pub(crate) struct Known<'a> {
    pub(crate) requests: &'a [u32],
    pub(crate) grants: &'a [u32],
    pub(crate) serials: &'a [u32],
    pub(crate) segments: &'a [u32],
    pub(crate) system_v: &'a [u32],
    pub(crate) around: Range,
}
