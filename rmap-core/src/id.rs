//! Ids of segments and permits.

use core::num::NonZeroU64;

use crate::engine::Kind;

/// Bits of an id that count; those above are the process's endpoint.
const COUNTER_BITS: u32 = 27;
const ENDPOINT_BITS: u32 = 63 - COUNTER_BITS;
/// Set in all endpoints, and in no id of XPMEM's driver: that counts to 2^30 above the 32 bits of a process id.
const NOT_THE_DRIVERS: u64 = 1 << (ENDPOINT_BITS - 1);
/// Set in endpoints of the mirror engine.
const MIRRORS: u64 = 1 << (ENDPOINT_BITS - 2);

/// What all ids of an engine of a process have in common: random bits, and what engine it is. A process draws new ones after fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Endpoint(u64);

impl Endpoint {
    /// Takes its bits from `random`.
    pub(crate) fn from_random(kind: Kind, random: u64) -> Self {
        let name = random >> (64 - ENDPOINT_BITS) & !(NOT_THE_DRIVERS | MIRRORS);
        Self(name | NOT_THE_DRIVERS | if kind == Kind::Mirror { MIRRORS } else { 0 })
    }

    pub(crate) fn kind(self) -> Kind {
        match (self.0 & NOT_THE_DRIVERS, self.0 & MIRRORS) {
            (0, _) => Kind::Driver,
            (_, 0) => Kind::Clone,
            _ => Kind::Mirror,
        }
    }

    /// Its bits.
    pub(crate) fn to_raw(self) -> u64 {
        self.0
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

    /// The engine that made it.
    pub(crate) fn kind(self) -> Kind {
        self.endpoint().kind()
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
        let kinds = [Kind::Clone, Kind::Mirror];
        for (random, kind) in [0, 1 << 40, u64::MAX].into_iter().flat_map(|n| kinds.map(|kind| (n, kind))) {
            let endpoint = Endpoint::from_random(kind, random);
            for counter in [1, 77, Id::MAX_COUNTER] {
                let id = Id::new(endpoint, counter).unwrap();
                assert!(id.to_raw() > 0);
                assert_eq!(Id::from_raw(id.to_raw()), Some(id));
                assert_eq!((id.endpoint(), id.counter()), (endpoint, counter));
                assert_eq!(id.kind(), kind);
            }
            assert_eq!(Id::new(endpoint, 0), None);
            assert_eq!(Id::new(endpoint, Id::MAX_COUNTER + 1), None);
        }
        assert_eq!(Id::from_raw(0), None);
        assert_eq!(Id::from_raw(-1), None);
    }

    #[test]
    fn ids_of_the_driver_are_told_apart() {
        // Counter and process id, the largest of each.
        for raw in [1 << 32 | 4660, 12345, 0x3fff_ffff << 32 | 0xffff_ffff] {
            assert_eq!(Id::from_raw(raw).map(Id::kind), Some(Kind::Driver));
        }
    }
}
