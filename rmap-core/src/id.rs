//! Ids of segments and permits.

use core::num::NonZeroU64;

/// Bits of an id that count; those above name the process's endpoint.
const COUNTER_BITS: u32 = 27;
const ENDPOINT_BITS: u32 = 63 - COUNTER_BITS;

/// The random name under which a process is met. A process draws a new one after fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Endpoint(u64);

/// Bytes of the name of an endpoint's socket.
const NAME_LEN: usize = 14;

impl Endpoint {
    /// Takes its bits from `random`.
    pub(crate) fn from_random(random: u64) -> Self {
        Self(random >> (64 - ENDPOINT_BITS))
    }

    /// The abstract socket name.
    pub(crate) fn name(self) -> [u8; NAME_LEN] {
        let mut name = *b"rmap-000000000";
        let mut rest = self.0;
        for digit in name[5..].iter_mut().rev() {
            *digit = b"0123456789abcdef"[(rest & 15) as usize];
            rest >>= 4;
        }
        name
    }
}

/// A 63-bit positive id: an endpoint and a counter, which a process never uses twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(NonZeroU64);

impl Id {
    pub(crate) const MAX_COUNTER: u32 = (1 << COUNTER_BITS) - 1;

    pub(crate) fn new(endpoint: Endpoint, counter: u32) -> Option<Self> {
        if counter == 0 || counter > Self::MAX_COUNTER {
            return None;
        }
        NonZeroU64::new(endpoint.0 << COUNTER_BITS | u64::from(counter)).map(Self)
    }

    /// The id that C calls `raw`; `None` unless it is positive.
    #[must_use]
    pub fn from_raw(raw: i64) -> Option<Self> {
        u64::try_from(raw).ok().and_then(NonZeroU64::new).map(Self)
    }

    /// The id as C sees it: positive.
    #[must_use]
    pub fn to_raw(self) -> i64 {
        self.0.get().cast_signed()
    }

    pub(crate) fn endpoint(self) -> Endpoint {
        Endpoint(self.0.get() >> COUNTER_BITS)
    }

    pub(crate) fn counter(self) -> u32 {
        self.0.get() as u32 & Self::MAX_COUNTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_positive_and_come_apart_again() {
        for random in [0, 1 << 40, u64::MAX] {
            let endpoint = Endpoint::from_random(random);
            for counter in [1, 77, Id::MAX_COUNTER] {
                let id = Id::new(endpoint, counter).unwrap();
                assert!(id.to_raw() > 0);
                assert_eq!(Id::from_raw(id.to_raw()), Some(id));
                assert_eq!((id.endpoint(), id.counter()), (endpoint, counter));
            }
            assert_eq!(Id::new(endpoint, 0), None);
            assert_eq!(Id::new(endpoint, Id::MAX_COUNTER + 1), None);
        }
        assert_eq!(Id::from_raw(0), None);
        assert_eq!(Id::from_raw(-1), None);
    }

    #[test]
    fn names_show_the_whole_endpoint() {
        assert_eq!(&Endpoint::from_random(u64::MAX).name(), b"rmap-fffffffff");
        assert_eq!(&Endpoint::from_random(0).name(), b"rmap-000000000");
    }
}
