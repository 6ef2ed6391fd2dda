//! What a process counts of itself.

use rmap_core::{Access, Error, Permit, Segment, counters, process};
use std::thread;

const LEN: usize = 16 * 4096;
/// As it was when this was compiled: whoever runs it may not be able to enter the checkout.
const HEADER: &str = include_str!("../../ffi/include/rmap.h");

fn of_header() -> Vec<String> {
    let fields = HEADER.lines().filter_map(|line| line.trim().strip_prefix("uint64_t ")?.split(';').next());
    fields.map(str::to_owned).collect()
}

#[test]
fn the_header_has_the_counters_of_the_library_in_their_order() {
    let mut expected = vec!["size".to_owned(), "stalls_by_length[RMAP_STALL_LENGTHS]".to_owned()];
    expected.extend(counters::TABLE.iter().map(|counter| counter.name.to_owned()));
    assert_eq!(of_header(), expected);
    let lengths = format!("#define RMAP_STALL_LENGTHS {}", counters::STALL_LENGTHS);
    assert!(HEADER.lines().any(|line| line == lengths));
}

/// All in one test: the counters are the process's.
#[test]
fn every_attachment_is_counted_once() {
    assert_eq!(process::counters(), rmap_core::Counters::default());
    let memory = vec![1u8; LEN + 4096];
    let start = memory.as_ptr().addr().next_multiple_of(4096) as u64;
    let segment = Segment::whole_address_space(0o600).unwrap();
    let permit = Permit::get(segment.id(), Access::ReadOnly).unwrap();
    const THREADS: u64 = 100;
    const ROUNDS: u64 = 1000;
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    let attachment = permit.attach(start, LEN).unwrap();
                    let mut byte = [0];
                    attachment.read(5000, &mut byte).unwrap();
                    assert_eq!(byte, [1]);
                }
            });
        }
    });
    let now = process::counters();
    assert_eq!(now.attach_hits + now.attach_misses, THREADS * ROUNDS);
    assert_eq!(now.detach_hits + now.detach_misses, THREADS * ROUNDS);
    assert!(now.attach_misses >= 1 && now.attach_hits > now.attach_misses, "{now:?}");
    assert_eq!((now.segments, now.importers, now.exporters, now.permits_held), (1, 1, 1, 1));
    assert_eq!(now.errors_no_such_id, 0);
    assert!(permit.attach(0, 0).is_err());
    drop(permit);
    let id = segment.id();
    drop(segment);
    assert_eq!(Permit::get(id, Access::ReadOnly).unwrap_err(), Error::NoSuchId);
    let then = process::counters();
    assert_eq!((then.segments, then.importers, then.exporters, then.permits_held), (0, 0, 0, 0));
    assert_eq!((then.errors_invalid, then.errors_no_such_id, then.permits_refused), (1, 1, 1));
    assert_eq!(then.segments_removed, 1);
}
