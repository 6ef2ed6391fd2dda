//! A range that importers can pin is to be had whatever engine serves the process.

use rmap_core::{Access, Permit, Range, Segment};

const PAGE: usize = 4096;

fn memory() -> Range {
    // SAFETY: a new mapping, which stays.
    let at = unsafe {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        libc::mmap(std::ptr::null_mut(), 4 * PAGE, prot, flags, -1, 0)
    };
    assert_ne!(at, libc::MAP_FAILED);
    Range::new(at.expose_provenance(), 4 * PAGE).expect("whole pages")
}

/// What a wake of a process-shared futex says: the kernel looks for its page as for one that it pins.
fn wakes(attachment: &rmap_core::Attachment) -> Result<(), i32> {
    let word: *mut u32 = attachment.as_ptr().cast();
    // SAFETY: FUTEX_WAKE does not touch the word.
    match unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAKE, 1) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().raw_os_error().expect("an errno")),
    }
}

#[test]
fn one_range_by_two_engines() {
    let range = memory();
    let segments =
        [Segment::new(range, 0o600).expect("a segment"), Segment::pinnable(range, 0o600).expect("a segment")];
    let permits =
        segments.each_ref().map(|segment| Permit::get(segment.id(), Access::ReadWrite).expect("a permit"));
    assert!(permits[1].is_pinnable());
    let attachments = permits.each_ref().map(|permit| permit.attach(0, range.len()).expect("an attachment"));
    // Through one, then the other, and the memory itself: it is one and the same.
    for (turn, (writer, reader)) in [(0, 1), (1, 0), (0, 1)].into_iter().enumerate() {
        let text = [turn as u8 + 1; 16];
        attachments[writer].write(turn * PAGE, &text).expect("a store");
        let mut seen = [0; 16];
        attachments[reader].read(turn * PAGE, &mut seen).expect("a load");
        assert_eq!(seen, text, "turn {turn}");
        let own: *const u8 = std::ptr::with_exposed_provenance(range.start() + turn * PAGE);
        // SAFETY: inside the mapping.
        assert_eq!(unsafe { own.read_volatile() }, text[0]);
    }
    for (permit, attachment) in permits.iter().zip(&attachments) {
        let expected = if permit.is_pinnable() { Ok(()) } else { Err(libc::EFAULT) };
        assert_eq!(wakes(attachment), expected);
    }
}
