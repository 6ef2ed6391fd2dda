//! What importers and exporters say to each other: messages of one fixed size, each over a Unix socket.
//!
//! Numbers travel in the machine's byte order: both ends are on one machine. A message of another size, version or kind, or
//! with a range that is not one, is refused as a whole, and the connection with it.

use crate::range::Range;

/// Bytes of a message.
pub(crate) const SIZE: usize = 64;
const VERSION: u32 = 0x726d_0004;

/// What a permit allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadOnly,
    ReadWrite,
}

/// How the memory behind an answer is mapped by the importer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// From an object of the exporter, at the offset equal to the exporter's address.
    Object { serial: u32 },
    /// From the file that the exporter itself maps; the descriptor comes with the message.
    File { offset: u64 },
    /// From a System V segment. The IPC namespace that it is in comes with the message.
    SystemV { id: u32, offset: u64 },
    /// From an object of a third process, which the exporter has attached. As with its own, what is missing in it is asked for; as with a
    /// file, the descriptor comes with the message.
    Foreign { offset: u64 },
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// Importer, first: I know the id, and have drawn this number.
    Hello { number: u64, proof: u64 },
    /// Exporter, first: I know it, too.
    Proof { proof: u64 },
    /// Importer: a permit for the segment, please.
    Get { request: u32, segment: u32, access: Access },
    /// Exporter: here it is; the base object of the segment comes with the message.
    Granted { request: u32, grant: u32, serial: u32, range: Range },
    /// Exporter: no; the number is an errno.
    Refused { request: u32, errno: u32 },
    /// Importer: a thread waits for the page at `addr`, in an attachment of `attached`. `run` says how many requests before
    /// this one went on where the last had ended; `store`, that the thread stores to a page that it may only read; `hops`, how many
    /// processes have passed the question on, each of which has attached what it is asked for.
    Resolve { request: u32, grant: u32, addr: usize, attached: Range, run: u32, store: bool, hops: u32 },
    /// Exporter: these pages are there now. An object that the importer does not know yet comes with the
    /// message.
    Resolved { request: u32, range: Range, source: Source, writable: bool },
    /// Exporter: there is nothing at that address.
    Hole { request: u32 },
    /// Exporter: there is something at that address, but this process itself may not write it.
    ReadOnly { request: u32 },
    /// Importer: the permit is not needed any more.
    Release { grant: u32 },
    /// Exporter: what was mapped from files in this range is not there any more; nor, with `objects`, is what was mapped from those.
    Stale { range: Range, number: u32, objects: bool },
    /// Exporter: here is memory now that an importer has reached. It may be told once for a block of many pages, or not at all.
    Adopted { range: Range },
    /// Exporter: the segment behind this permit was removed.
    Removed { grant: u32, number: u32 },
    /// Exporter: no answer names this object any more, nor does a permit that has not been removed.
    Closed { serial: u32 },
    /// Exporter: my status word, before the first permit; its page comes with the message.
    Status,
    /// Importer: nothing is mapped any more that this or an earlier notice told of.
    Seen { number: u32 },
    /// Anybody of the same user: what this process has counted, please.
    Survey { request: u32 },
    /// Exporter: it is in the file that comes with the message.
    Surveyed { request: u32 },
}

struct Writer {
    bytes: [u8; SIZE],
    at: usize,
}

impl Writer {
    fn u32(mut self, value: u32) -> Self {
        self.bytes[self.at..self.at + 4].copy_from_slice(&value.to_ne_bytes());
        self.at += 4;
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.bytes[self.at..self.at + 8].copy_from_slice(&value.to_ne_bytes());
        self.at += 8;
        self
    }

    fn range(self, range: Range) -> Self {
        self.u64(range.start() as u64).u64(range.end() as u64)
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn u32(&mut self) -> Option<u32> {
        let (head, rest) = self.bytes.split_first_chunk()?;
        self.bytes = rest;
        Some(u32::from_ne_bytes(*head))
    }

    fn u64(&mut self) -> Option<u64> {
        let (head, rest) = self.bytes.split_first_chunk()?;
        self.bytes = rest;
        Some(u64::from_ne_bytes(*head))
    }

    fn flag(&mut self) -> Option<bool> {
        match self.u32()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn range(&mut self) -> Option<Range> {
        Range::between(self.u64()? as usize, self.u64()? as usize)
    }
}

impl Message {
    /// The bytes to send.
    pub(crate) fn encode(&self) -> [u8; SIZE] {
        let start = |kind| Writer { bytes: [0; SIZE], at: 0 }.u32(VERSION).u32(kind);
        match *self {
            Self::Hello { number, proof } => start(16).u64(number).u64(proof),
            Self::Proof { proof } => start(17).u64(proof),
            Self::Get { request, segment, access } => {
                start(1).u32(request).u32(segment).u32(u32::from(access == Access::ReadWrite))
            }
            Self::Granted { request, grant, serial, range } => {
                start(2).u32(request).u32(grant).u32(serial).range(range)
            }
            Self::Refused { request, errno } => start(3).u32(request).u32(errno),
            Self::Resolve { request, grant, addr, attached, run, store, hops } => start(4)
                .u32(request)
                .u32(grant)
                .u32(run)
                .u64(addr as u64)
                .range(attached)
                .u32(u32::from(store))
                .u32(hops),
            Self::Resolved { request, range, source, writable } => {
                let (kind, id, offset) = match source {
                    Source::Object { serial } => (0, serial, 0),
                    Source::File { offset } => (1, 0, offset),
                    Source::SystemV { id, offset } => (2, id, offset),
                    Source::Foreign { offset } => (3, 0, offset),
                };
                start(5).u32(request).u32(u32::from(writable)).range(range).u32(kind).u32(id).u64(offset)
            }
            Self::Hole { request } => start(6).u32(request),
            Self::Release { grant } => start(7).u32(grant),
            Self::Stale { range, number, objects } => {
                start(8).range(range).u32(number).u32(u32::from(objects))
            }
            Self::Adopted { range } => start(18).range(range),
            Self::Removed { grant, number } => start(9).u32(grant).u32(number),
            Self::Status => start(13),
            Self::Seen { number } => start(11).u32(number),
            Self::Survey { request } => start(14).u32(request),
            Self::Surveyed { request } => start(15).u32(request),
            Self::Closed { serial } => start(12).u32(serial),
            Self::ReadOnly { request } => start(10).u32(request),
        }
        .bytes
    }

    /// The message in `bytes`; `None` if it is not one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != SIZE {
            return None;
        }
        let mut from = Reader { bytes };
        if from.u32()? != VERSION {
            return None;
        }
        Some(match from.u32()? {
            1 => Self::Get {
                request: from.u32()?,
                segment: from.u32()?,
                access: if from.flag()? { Access::ReadWrite } else { Access::ReadOnly },
            },
            2 => Self::Granted {
                request: from.u32()?,
                grant: from.u32()?,
                serial: from.u32()?,
                range: from.range()?,
            },
            3 => Self::Refused { request: from.u32()?, errno: from.u32()? },
            4 => {
                let (request, grant, run) = (from.u32()?, from.u32()?, from.u32()?);
                let (addr, attached) = (from.u64()? as usize, from.range()?);
                Self::Resolve { request, grant, addr, attached, run, store: from.flag()?, hops: from.u32()? }
            }
            5 => {
                let (request, writable, range) = (from.u32()?, from.flag()?, from.range()?);
                let (kind, id, offset) = (from.u32()?, from.u32()?, from.u64()?);
                let source = match kind {
                    0 => Source::Object { serial: id },
                    1 => Source::File { offset },
                    2 => Source::SystemV { id, offset },
                    3 => Source::Foreign { offset },
                    _ => return None,
                };
                Self::Resolved { request, range, source, writable }
            }
            6 => Self::Hole { request: from.u32()? },
            7 => Self::Release { grant: from.u32()? },
            8 => Self::Stale { range: from.range()?, number: from.u32()?, objects: from.flag()? },
            18 => Self::Adopted { range: from.range()? },
            9 => Self::Removed { grant: from.u32()?, number: from.u32()? },
            13 => Self::Status,
            11 => Self::Seen { number: from.u32()? },
            14 => Self::Survey { request: from.u32()? },
            15 => Self::Surveyed { request: from.u32()? },
            10 => Self::ReadOnly { request: from.u32()? },
            12 => Self::Closed { serial: from.u32()? },
            16 => Self::Hello { number: from.u64()?, proof: from.u64()? },
            17 => Self::Proof { proof: from.u64()? },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memory::PAGE;
    use proptest::prelude::*;

    fn ranges() -> impl Strategy<Value = Range> {
        (0usize..1 << 35, 1usize..1 << 35).prop_map(|(at, n)| Range::new(at * PAGE, n * PAGE).unwrap())
    }

    fn messages() -> impl Strategy<Value = Message> {
        let access = prop_oneof![Just(Access::ReadOnly), Just(Access::ReadWrite)];
        let source = prop_oneof![
            any::<u32>().prop_map(|serial| Source::Object { serial }),
            any::<u64>().prop_map(|offset| Source::File { offset }),
            any::<(u32, u64)>().prop_map(|(id, offset)| Source::SystemV { id, offset }),
            any::<u64>().prop_map(|offset| Source::Foreign { offset }),
        ];
        prop_oneof![
            (any::<(u32, u32)>(), access).prop_map(|((request, segment), access)| Message::Get {
                request,
                segment,
                access
            }),
            (any::<(u32, u32, u32)>(), ranges()).prop_map(|((request, grant, serial), range)| {
                Message::Granted { request, grant, serial, range }
            }),
            any::<(u32, u32)>().prop_map(|(request, errno)| Message::Refused { request, errno }),
            (any::<(u32, u32, usize, u32, bool, u32)>(), ranges()).prop_map(
                |((request, grant, addr, run, store, hops), attached)| {
                    Message::Resolve { request, grant, addr, attached, run, store, hops }
                }
            ),
            (any::<(u32, bool)>(), ranges(), source).prop_map(|((request, writable), range, source)| {
                Message::Resolved { request, range, source, writable }
            }),
            any::<u32>().prop_map(|request| Message::Hole { request }),
            any::<u32>().prop_map(|request| Message::ReadOnly { request }),
            any::<u32>().prop_map(|grant| Message::Release { grant }),
            (ranges(), any::<(u32, bool)>()).prop_map(|(range, (number, objects))| Message::Stale {
                range,
                number,
                objects
            }),
            ranges().prop_map(|range| Message::Adopted { range }),
            any::<(u32, u32)>().prop_map(|(grant, number)| Message::Removed { grant, number }),
            any::<u32>().prop_map(|number| Message::Seen { number }),
            any::<u32>().prop_map(|serial| Message::Closed { serial }),
            any::<u32>().prop_map(|request| Message::Survey { request }),
            any::<u32>().prop_map(|request| Message::Surveyed { request }),
            any::<(u64, u64)>().prop_map(|(number, proof)| Message::Hello { number, proof }),
            any::<u64>().prop_map(|proof| Message::Proof { proof }),
            Just(Message::Status),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(message in messages()) {
            prop_assert_eq!(Message::decode(&message.encode()), Some(message));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = Message::decode(&bytes);
        }

        #[test]
        fn arbitrary_fields_never_panic(kind in 0u32..20, fields in any::<[u8; SIZE - 8]>()) {
            let mut bytes = [0; SIZE];
            bytes[..4].copy_from_slice(&VERSION.to_ne_bytes());
            bytes[4..8].copy_from_slice(&kind.to_ne_bytes());
            bytes[8..].copy_from_slice(&fields);
            if let Some(message) = Message::decode(&bytes) {
                prop_assert_eq!(Message::decode(&message.encode()), Some(message));
            }
        }
    }
}
