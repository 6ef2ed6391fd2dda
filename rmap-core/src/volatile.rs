//! Copies to and from memory that others write to meanwhile.
//!
//! Word by word and volatile: the compiler may neither invent nor drop an access, and an aligned word is never torn.

const WORD: usize = size_of::<u64>();

/// Copies `into.len()` bytes from `from`.
///
/// # Safety
/// The source must be mapped and readable.
pub(crate) unsafe fn read(from: *const u8, into: &mut [u8]) {
    let mut done = 0;
    while done < into.len() {
        let at = from.wrapping_add(done);
        let word: *const u64 = at.cast();
        if into.len() - done >= WORD && word.is_aligned() {
            // SAFETY: eight bytes are left, and the caller vouches for them.
            let value = unsafe { word.read_volatile() };
            into[done..done + WORD].copy_from_slice(&value.to_ne_bytes());
            done += WORD;
        } else {
            // SAFETY: one byte is left, and the caller vouches for it.
            into[done] = unsafe { at.read_volatile() };
            done += 1;
        }
    }
}

/// Copies `from` to `to`.
///
/// # Safety
/// The target must be mapped and writable.
pub(crate) unsafe fn write(to: *mut u8, from: &[u8]) {
    let mut rest = from;
    let mut at = to;
    while let Some((first, behind)) = rest.split_first() {
        let word: *mut u64 = at.cast();
        if let Some((bytes, behind)) = rest.split_first_chunk().filter(|_| word.is_aligned()) {
            // SAFETY: eight bytes are left, and the caller vouches for them.
            unsafe { word.write_volatile(u64::from_ne_bytes(*bytes)) };
            at = at.wrapping_add(WORD);
            rest = behind;
        } else {
            // SAFETY: one byte is left, and the caller vouches for it.
            unsafe { at.write_volatile(*first) };
            at = at.wrapping_add(1);
            rest = behind;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn copies_are_exact(bytes in proptest::collection::vec(any::<u8>(), 0..100), shift in 0usize..8) {
            let mut memory = [0xeeu8; 128];
            let mut back = vec![0; bytes.len()];
            // SAFETY: the array has room for 8 + 100 bytes.
            unsafe {
                super::write(memory.as_mut_ptr().wrapping_add(shift), &bytes);
                super::read(memory.as_ptr().wrapping_add(shift), &mut back);
            }
            prop_assert_eq!(&back, &bytes);
            prop_assert!(memory[..shift].iter().chain(&memory[shift + bytes.len()..]).all(|b| *b == 0xee));
        }
    }
}
