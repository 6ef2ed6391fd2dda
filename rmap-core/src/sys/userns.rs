//! User namespaces: which numbers of users and groups a process sees, as the maps in `/proc` say.

use super::procfs::{self, PathBuffer};
use super::{Errno, SysResult};

/// Numbers of users, or of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    User,
    Group,
}

/// The kernel takes 340 lines of three numbers.
const LONGEST: usize = 340 * 33;

/// Which numbers a user namespace has, and what they are outside.
#[derive(Clone, Debug)]
pub(crate) struct IdMap {
    text: [u8; LONGEST],
    len: usize,
}

/// A run of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    inside: u64,
    /// In the namespace of the process that has read the map; in the one around it where they are the same.
    outside: u64,
    count: u64,
}

impl Extent {
    fn contains(self, number: u64) -> bool {
        number.checked_sub(self.inside).is_some_and(|at| at < self.count)
    }
}

impl IdMap {
    fn read(path: &core::ffi::CStr) -> SysResult<Self> {
        let mut map = Self { text: [0; LONGEST], len: 0 };
        map.len = procfs::read_small(path, &mut map.text)?.len();
        Ok(map)
    }

    /// That of this process. `None` where the kernel has no user namespaces.
    pub(crate) fn own(kind: Kind) -> SysResult<Option<Self>> {
        let path = match kind {
            Kind::User => c"/proc/thread-self/uid_map",
            Kind::Group => c"/proc/thread-self/gid_map",
        };
        match Self::read(path) {
            Err(Errno::NOENT) => Ok(None),
            map => map.map(Some),
        }
    }

    /// That of the process with this number in `/proc`.
    pub(crate) fn of(pid: u32, kind: Kind) -> SysResult<Self> {
        let letter = if kind == Kind::User { 'u' } else { 'g' };
        Self::read(PathBuffer::format(format_args!("/proc/{pid}/{letter}id_map")).as_c_str())
    }

    fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        self.text[..self.len].split(|byte| *byte == b'\n').filter_map(|line| {
            let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
            let mut number = || words.next().map(|word| procfs::number(word, 10));
            Some(Extent { inside: number()?, outside: number()?, count: number()? })
        })
    }

    /// Whether the namespace has all numbers there are, so that nobody is without one.
    pub(crate) fn is_whole(&self) -> bool {
        self.extents().map(|extent| extent.count).sum::<u64>() == u64::from(u32::MAX)
    }

    /// Whether the namespace of this map, which the process of the map `own` has read, has what is `number` there.
    pub(crate) fn has(&self, own: &Self, number: u32) -> bool {
        let number = u64::from(number);
        // The same namespace. Another whose map reads the same has the same numbers.
        if self.text[..self.len] == own.text[..own.len] {
            return own.extents().any(|extent| extent.contains(number));
        }
        // Only the first number of a run is translated, or said to be none.
        self.extents().filter(|extent| extent.outside != u64::from(u32::MAX)).any(|extent| {
            own.extents().filter(|own| own.contains(extent.outside)).any(|own| {
                let count = extent.count.min(own.inside + own.count - extent.outside);
                Extent { inside: extent.outside, count, ..extent }.contains(number)
            })
        })
    }
}

/// What a user or a group looks like that a namespace has no number for.
pub(crate) fn overflow(kind: Kind) -> u32 {
    const USUAL: u32 = 65534;
    let path = match kind {
        Kind::User => c"/proc/sys/kernel/overflowuid",
        Kind::Group => c"/proc/sys/kernel/overflowgid",
    };
    procfs::read_small(path, &mut [0; 16]).map_or(USUAL, |text| procfs::number(text, 10) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> IdMap {
        let mut map = IdMap { text: [0; LONGEST], len: text.len() };
        map.text[..text.len()].copy_from_slice(text.as_bytes());
        map
    }

    const ALL: &str = "         0          0 4294967295\n";

    #[test]
    fn a_map_is_whole_or_not() {
        assert!(map(ALL).is_whole());
        assert!(map("0 0 1\n1 1 4294967294\n").is_whole());
        for text in ["", "0 1000 1\n", "0 100000 65536\n", "0 0 4294967294\n", "x\n0 0\n"] {
            assert!(!map(text).is_whole(), "{text}");
        }
    }

    #[test]
    fn numbers_of_the_same_namespace() {
        let container = map("0 1000 1\n1 100000 65536\n");
        for (number, there) in [(0, true), (1, true), (65536, true), (65537, false), (100_000, false)] {
            assert_eq!(container.has(&container, number), there, "{number}");
        }
        assert!(map(ALL).has(&map(ALL), 1000));
    }

    #[test]
    fn numbers_of_a_namespace_inside() {
        let (outside, container) = (map(ALL), map("0 1000 1\n1 100000 10\n"));
        for (number, there) in [(0, false), (1000, true), (100_000, true), (100_009, true), (100_010, false)]
        {
            assert_eq!(container.has(&outside, number), there, "{number}");
        }
        assert!(!map("0 0 1\n").has(&outside, 1000), "root's own, with nobody else in it");
        assert!(!map("").has(&outside, 65534), "it has nobody yet");
    }

    #[test]
    fn numbers_of_a_namespace_that_cannot_be_translated() {
        let own = map("0 1000 1\n5 100000 10\n");
        // The one around it: what it has is none here.
        assert!(!map("0 4294967295 4294967295\n").has(&own, 0));
        // A run that goes on with others than here.
        let other = map("0 0 10\n");
        assert!(other.has(&own, 0) && !other.has(&own, 5));
        assert!(map("0 14 10\n").has(&own, 14) && !map("0 14 10\n").has(&own, 15));
    }
}
