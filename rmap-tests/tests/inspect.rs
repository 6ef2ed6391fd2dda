//! Memory of processes that do not cooperate: they never use the library.

use rmap_inspect::{Error, Inspection, Way};
use rmap_tests::pattern::{self, Page, stamp};
use rmap_tests::{Actor, PAGE, Stage};
use std::process::{Command, Stdio};

fn open(actor: &Actor, start: usize, pages: usize) -> Inspection {
    Inspection::open(actor.pid(), start..start + pages * PAGE, true).unwrap()
}

/// The stamp of the page at `address`, `None` if there is none or a hole.
fn look(inspection: &Inspection, address: usize) -> Option<u64> {
    let mut page: Page = [0; PAGE];
    inspection.read(address, &mut page).ok()?;
    stamp(&page)
}

fn draw(inspection: &Inspection, address: usize, stamp: u64) {
    let mut page: Page = [0; PAGE];
    pattern::draw(stamp, &mut page);
    inspection.write(address, &page).unwrap();
}

fn is_private(actor: &Actor, address: usize) -> bool {
    let maps = rmap_tests::maps(actor.pid());
    maps.iter().any(|map| map.range.contains(&address) && map.flags.ends_with('p'))
}

#[test]
fn private_memory_both_ways_and_back() {
    let stage = Stage::new("private_memory_both_ways_and_back", 60);
    let mut actor = stage.actor();
    let address = actor.anon(600 * PAGE);
    actor.fill(address, 300, 20);
    let inspection = open(&actor, address, 600);
    assert!(inspection.pieces().iter().all(|piece| piece.way == Way::Moved));
    for page in [0, 1, 150, 299] {
        assert_eq!(look(&inspection, address + page * PAGE), Some(20 + page as u64));
    }
    // What was never touched is zeroes, and takes no memory.
    assert_eq!(look(&inspection, address + 500 * PAGE), Some(0));
    actor.fill(address + 100 * PAGE, 1, 70);
    assert_eq!(look(&inspection, address + 100 * PAGE), Some(70));
    draw(&inspection, address + 200 * PAGE, 90);
    draw(&inspection, address + 400 * PAGE, 91);
    actor.check(address + 200 * PAGE, 1, 90);
    actor.check(address + 400 * PAGE, 1, 91);
    inspection.close().unwrap();
    assert!(is_private(&actor, address));
    actor.check(address, 100, 20);
    actor.check(address + 100 * PAGE, 1, 70);
    actor.check(address + 200 * PAGE, 1, 90);
    actor.check(address + 201 * PAGE, 99, 221);
    actor.check(address + 400 * PAGE, 1, 91);
    // Its own again: a child has a copy.
    let mut child = actor.fork();
    actor.fill(address, 1, 5);
    child.check(address, 1, 20);
    child.exit();
    actor.exit();
}

#[test]
fn all_of_a_program() {
    let stage = Stage::new("all_of_a_program", 60);
    let mut actor = stage.actor();
    let threads: Vec<usize> =
        ["heap 1", "heap 2", "naps", "threads", "block nanosleep", "block futex_timed", "block read"]
            .into_iter()
            .map(|work| actor.start(work))
            .collect();
    for kind in ["data", "bss", "rodata", "text", "stack"] {
        let place = actor.ok(&format!("place {kind}"));
        let mut words = place.split(' ').map(|word| word.parse::<usize>().unwrap());
        let (start, len) = (words.next().unwrap(), words.next().unwrap());
        let pages = start / PAGE * PAGE..(start + len).next_multiple_of(PAGE);
        let before = actor.oracle(pages.start, 1);
        let inspection = open(&actor, pages.start, pages.len() / PAGE);
        assert!(!inspection.pieces().is_empty());
        let (mut here, mut there) = ([0; 8], [0; 8]);
        inspection.read(start, &mut here).unwrap();
        there.copy_from_slice(&actor.page(pages.start).unwrap()[start - pages.start..][..8]);
        assert_eq!(here, there, "{kind}");
        drop(inspection);
        assert_eq!(actor.oracle(pages.start, 1), before, "{kind}");
    }
    // Whole arenas, while threads allocate in them and run on stacks beside them.
    let maps = rmap_tests::maps(actor.pid());
    let anonymous =
        maps.iter().filter(|map| map.writable() && map.flags.ends_with('p') && map.range.len() < 256 << 20);
    for map in anonymous {
        match Inspection::open(actor.pid(), map.range.clone(), true) {
            Ok(inspection) => inspection.close().unwrap(),
            // Threads come and go, with their stacks.
            Err(Error::Hole(_) | Error::Unsuitable { .. }) => {}
            Err(error) => panic!("{:x?}: {error}", map.range),
        }
    }
    for thread in threads {
        let report = actor.stop(thread);
        assert_eq!(report.get("wrong").copied().unwrap_or(0), 0, "{report:?}");
        assert_eq!(report.get("short").copied().unwrap_or(0), 0, "{report:?}");
    }
    actor.exit();
}

#[test]
fn shared_memory_is_mapped_as_it_is() {
    let stage = Stage::new("shared_memory_is_mapped_as_it_is", 60);
    let mut actor = stage.actor();
    let memfd = actor.memfd(8 * PAGE);
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let address = actor.place(8 * PAGE);
    actor.mmap(address, 4 * PAGE, protection, libc::MAP_SHARED | libc::MAP_FIXED, memfd, 2 * PAGE);
    actor.fill(address, 4, 30);
    let inspection = open(&actor, address, 8);
    let pieces = inspection.pieces();
    assert_eq!((pieces.len(), pieces[0].way), (1, Way::Descriptor));
    assert_eq!(pieces[0].range, address..address + 4 * PAGE);
    assert_eq!(look(&inspection, address + 3 * PAGE), Some(33));
    assert_eq!(look(&inspection, address + 4 * PAGE), None);
    draw(&inspection, address + PAGE, 77);
    actor.check(address + PAGE, 1, 77);
    drop(inspection);
    actor.check(address + 2 * PAGE, 2, 32);
    actor.exit();
}

#[test]
fn memory_that_is_attached_is_mapped_as_it_is() {
    let stage = Stage::new("memory_that_is_attached_is_mapped_as_it_is", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(4 * PAGE);
    exporter.fill(address, 4, 30);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, address, 4 * PAGE);
    importer.check(here, 4, 30);
    // It is in a file that only the library's thread has open.
    let inspection = open(&exporter, address, 4);
    assert!(inspection.pieces().iter().all(|piece| piece.way == Way::Descriptor));
    assert_eq!(look(&inspection, address + 3 * PAGE), Some(33));
    draw(&inspection, address + PAGE, 77);
    importer.check(here + PAGE, 1, 77);
    exporter.check(address + PAGE, 1, 77);
    drop(inspection);
    importer.fill(here, 4, 90);
    exporter.check(address, 4, 90);
    exporter.exit();
    importer.exit();
}

#[test]
fn what_is_replaced_is_forgotten() {
    let stage = Stage::new("what_is_replaced_is_forgotten", 60);
    let mut actor = stage.actor();
    let address = actor.anon(9 * PAGE);
    actor.fill(address, 9, 40);
    let mut inspection = open(&actor, address, 9);
    actor.munmap(address + 3 * PAGE, PAGE);
    actor.anon_at(address + 5 * PAGE, PAGE);
    actor.fill(address + 5 * PAGE, 1, 80);
    inspection.refresh().unwrap();
    let seen: Vec<_> = (0..9).map(|page| look(&inspection, address + page * PAGE)).collect();
    let expected = [40, 41, 42, 0, 44, 0, 46, 47, 48].map(|stamp| (stamp != 0).then_some(stamp));
    assert_eq!(seen, expected);
    assert_eq!(inspection.pieces().len(), 3);
    assert!(inspection.as_ptr(address + 3 * PAGE).is_null());
    assert!(matches!(inspection.write(address + 5 * PAGE, b"x"), Err(Error::Hole(_))));
    inspection.close().unwrap();
    actor.check(address, 3, 40);
    actor.check(address + 5 * PAGE, 1, 80);
    actor.check(address + 6 * PAGE, 3, 46);
    assert!(is_private(&actor, address) && is_private(&actor, address + 8 * PAGE));
    actor.exit();
}

#[test]
fn read_only_looks_change_nothing() {
    let stage = Stage::new("read_only_looks_change_nothing", 60);
    let mut actor = stage.actor();
    let address = actor.anon(2 * PAGE);
    actor.fill(address, 2, 50);
    actor.mprotect(address, PAGE, libc::PROT_NONE);
    let inspection = Inspection::open(actor.pid(), address..address + 2 * PAGE, false).unwrap();
    // As a debugger, it sees what the process itself may not read.
    assert_eq!(look(&inspection, address), Some(50));
    assert!(matches!(inspection.write(address, b"x"), Err(Error::Hole(_))));
    inspection.close().unwrap();
    let map = rmap_tests::maps(actor.pid()).into_iter().find(|map| map.range.contains(&address));
    assert!(map.is_some_and(|map| !map.readable()));
    actor.mprotect(address, PAGE, libc::PROT_READ);
    actor.check(address, 2, 50);
    actor.exit();
}

#[test]
fn the_process_may_end_first() {
    let stage = Stage::new("the_process_may_end_first", 60);
    let mut actor = stage.actor();
    let address = actor.anon(2 * PAGE);
    actor.fill(address, 2, 60);
    let pid = actor.pid();
    let mut inspection = open(&actor, address, 2);
    actor.kill();
    assert!(!inspection.is_alive());
    // What it had last.
    assert_eq!(look(&inspection, address + PAGE), Some(61));
    assert_eq!(inspection.refresh(), Err(Error::NoProcess(pid)));
    inspection.close().unwrap();
}

#[test]
fn refusals() {
    let stage = Stage::new("refusals", 60);
    let mut actor = stage.actor();
    let (pid, address) = (actor.pid(), actor.anon(2 * PAGE));
    let error = |pid, start: usize| Inspection::open(pid, start..start + PAGE, true).unwrap_err();
    assert_eq!(error(0, address), Error::NoProcess(0));
    assert_eq!(error(i32::MAX, address), Error::NoProcess(i32::MAX));
    assert_eq!(error(pid, PAGE * 16), Error::Hole(PAGE * 16));
    assert_eq!(Inspection::open(pid, address..address, true).unwrap_err(), Error::NoRange);
    let vvar = rmap_tests::maps(pid).into_iter().find(|map| map.name == "[vvar]").unwrap();
    assert!(matches!(error(pid, vvar.range.start), Error::Unsuitable { .. }));
    // A filter that allows everything is a filter.
    const SET_NO_NEW_PRIVS: usize = libc::PR_SET_NO_NEW_PRIVS as usize;
    actor.sys(libc::SYS_prctl, &[SET_NO_NEW_PRIVS, 1, 0, 0, 0]).unwrap();
    // One instruction, and behind it the program: their number and where they are.
    const ALLOW: &str = "060000000000ff7f";
    let allow = actor.number(&format!("text {ALLOW}"));
    let program = actor.number(&format!("text {ALLOW}0100000000000000{}", hex(allow))) + 8;
    actor.sys(libc::SYS_seccomp, &[libc::SECCOMP_SET_MODE_FILTER as usize, 0, program]).unwrap();
    assert_eq!(error(pid, address), Error::Filtered(pid));
    actor.exit();
}

fn hex(address: usize) -> String {
    address.to_ne_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_program_that_was_never_told() {
    let _stage = Stage::new("a_program_that_was_never_told", 60);
    let mut child =
        Command::new("sh").args(["-c", "read word; exit $((0$word))"]).stdin(Stdio::piped()).spawn().unwrap();
    let pid = child.id().cast_signed();
    let stack = loop {
        let maps = rmap_tests::maps(pid);
        let waits = rmap_tests::task_blocked_in(pid, pid) == Some(libc::SYS_read);
        match maps.into_iter().find(|map| map.name == "[stack]").filter(|_| waits) {
            Some(map) => break map.range,
            None => std::thread::yield_now(),
        }
    };
    for _ in 0..20 {
        let inspection = Inspection::open(pid, stack.start..stack.end, true).unwrap();
        let mut bytes = vec![0; PAGE];
        inspection.read(stack.end - PAGE, &mut bytes).unwrap();
        assert!(bytes.windows(9).any(|text| text == b"read word"));
    }
    // It sleeps in the same call, and goes on from there.
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"7\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(7));
}
