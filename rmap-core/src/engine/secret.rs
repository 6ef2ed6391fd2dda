//! What ids know and the name of a socket does not tell: so who sees the name can neither ask for the process's segments nor pose as it.
//!
//! A key is made of the bits that all ids of a process share. The name of its socket comes from the key, and so do the proofs by which an
//! importer and an exporter show each other that they know it. None of that leads back but by trying all ids, and each try takes
//! as long as it takes a process to find another: see `ROUNDS`.

use super::siphash::siphash;

/// What ids of one process have in common, stretched.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key([u64; 2]);

/// How often the key is changed: about 0.1 ms, once for each two processes that meet. An id has 34 random bits, so who looks for the one behind a
/// name takes a core three weeks to try them all.
const ROUNDS: usize = 4096;

/// Bytes of a name.
pub(crate) const NAME_LEN: usize = 23;

/// Who proves that it knows the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Importer = 1,
    Exporter,
}

impl core::fmt::Debug for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// The key of the ids that have these bits in common.
    pub(crate) fn of(bits: u64) -> Self {
        let mut key = [bits, 0];
        for _ in 0..ROUNDS {
            key = [siphash(key, &[0]), siphash(key, &[1])];
        }
        Self(key)
    }

    /// The name of the socket. The letter says which engine listens there.
    pub(crate) fn name(self, letter: u8) -> [u8; NAME_LEN] {
        let mut name = *b"rmap-?-0000000000000000";
        name[5] = letter;
        let mut rest = siphash(self.0, &[2]);
        for digit in name[7..].iter_mut().rev() {
            *digit = b"0123456789abcdef"[(rest & 15) as usize];
            rest >>= 4;
        }
        name
    }

    /// Shows to the other side that this one knows the key. The importer has drawn the number.
    pub(crate) fn proof(self, side: Side, number: u64) -> u64 {
        siphash(self.0, &[3, side as u64, number])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_same_everywhere() {
        // Processes meet whose libraries were compiled at different times.
        let key = Key::of(0x8_1234_5678);
        assert_eq!(core::str::from_utf8(&key.name(b'c')), Ok("rmap-c-ac39f7eab249a346"));
        assert_eq!(key.proof(Side::Importer, 7), 0xd6dd_faa6_8c5b_3413);
    }

    #[test]
    fn nothing_is_the_same_for_two_keys() {
        let (one, other) = (Key::of(1 << 35), Key::of(1 << 35 | 1));
        assert_ne!(one.name(b'c'), other.name(b'c'));
        assert_ne!(one.proof(Side::Exporter, 1), other.proof(Side::Exporter, 1));
        assert_ne!(one.proof(Side::Exporter, 1), one.proof(Side::Importer, 1));
        assert_ne!(one.proof(Side::Exporter, 1), one.proof(Side::Exporter, 2));
    }
}
