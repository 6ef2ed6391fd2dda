//! Processes that have no descriptor left: the library, which has its own, serves them, and others, all the same.

use nix::sys::{signal::Signal, wait::WaitStatus};
use rmap_tests::pattern::Seen;
use rmap_tests::{Actor, PAGE, RDWR, Stage, application_descriptors, library_descriptors};

const MAPPED: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Takes all descriptors of an actor that it may have.
fn exhaust(actor: &mut Actor) -> Vec<usize> {
    // A limit of 200, as two words.
    let limit = actor.number("text c800000000000000c800000000000000");
    actor.sys(libc::SYS_prlimit64, &[0, libc::RLIMIT_NOFILE as usize, limit, 0]).unwrap();
    let taken: Vec<usize> = std::iter::from_fn(|| actor.sys(libc::SYS_dup, &[0]).ok()).collect();
    assert_eq!(actor.sys(libc::SYS_dup, &[0]), Err(libc::EMFILE));
    taken
}

fn relieve(actor: &mut Actor, taken: &[usize]) {
    for descriptor in taken {
        actor.sys(libc::SYS_close, &[*descriptor]).unwrap();
    }
}

#[test]
fn an_exporter_is_followed() {
    let stage = Stage::new("an_exporter_is_followed", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(32 * PAGE);
    exporter.fill(address, 16, 20);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, address, 32 * PAGE);
    importer.check(here, 16, 20);
    exhaust(&mut exporter);
    for round in 1..20 {
        let stamp = 1000 * round;
        exporter.anon_at(address, 8 * PAGE);
        exporter.fill(address, 8, stamp);
        importer.check(here, 8, stamp);
        exporter.munmap(address, 4 * PAGE);
        assert_eq!(importer.look(here, 4), [Seen::Hole; 4]);
        exporter.madvise(address + 4 * PAGE, 2 * PAGE, libc::MADV_DONTNEED);
        assert_eq!(importer.look(here + 4 * PAGE, 2), [Seen::Stamp(0); 2]);
        let moves = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let (from, to) = (address + 6 * PAGE, address + 20 * PAGE);
        exporter.mremap(from, 2 * PAGE, 2 * PAGE, moves, to).unwrap();
        assert_eq!(importer.look(here + 6 * PAGE, 2), [Seen::Hole; 2]);
        importer.check(here + 20 * PAGE, 2, stamp + 6);
        importer.check(here + 8 * PAGE, 8, 28);
        // It is the same memory.
        importer.store(here + 20 * PAGE, round).unwrap();
        assert_eq!(exporter.load(to), Ok(round));
    }
}

#[test]
fn an_exporter_shows_what_nobody_has_seen() {
    let stage = Stage::new("an_exporter_shows_what_nobody_has_seen", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let private = exporter.anon(16 * PAGE);
    exporter.fill(private, 8, 20);
    let file = exporter.memfd(8 * PAGE);
    let shared = exporter.mmap(0, 8 * PAGE, MAPPED, libc::MAP_SHARED, file, 0);
    exporter.fill(shared, 8, 40);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    exhaust(&mut exporter);
    let here = importer.attach(apid, private, 16 * PAGE);
    importer.check(here, 8, 20);
    let here = importer.attach(apid, shared, 8 * PAGE);
    importer.check(here, 8, 40);
    exporter.anon_at(shared, 8 * PAGE);
    exporter.fill(shared, 8, 60);
    importer.check(here, 8, 60);
    exporter.munmap(shared, 8 * PAGE);
    assert_eq!(importer.look(here, 8), [Seen::Hole; 8]);
}

#[test]
fn a_permit_from_an_exporter() {
    let stage = Stage::new("a_permit_from_an_exporter", 60);
    let (mut exporter, mut first, mut second) = (stage.actor(), stage.actor(), stage.actor());
    let address = exporter.anon(4 * PAGE);
    exporter.fill(address, 4, 20);
    let known = exporter.make(address, 4 * PAGE);
    let new = exporter.make(address, 2 * PAGE);
    let here = first.get_attach(known, 0, 4 * PAGE);
    exhaust(&mut exporter);
    for _ in 0..20 {
        let apid = first.get(new);
        let here = first.attach(apid, 0, 2 * PAGE);
        first.check(here, 2, 20);
        let apid = second.get(known);
        let there = second.attach(apid, 0, 4 * PAGE);
        second.check(there, 4, 20);
    }
    first.check(here, 4, 20);
    let newer = exporter.make(address, 3 * PAGE);
    let here = second.get_attach(newer, 0, 3 * PAGE);
    second.check(here, 3, 20);
    assert_eq!(exporter.remove(newer), Ok(0));
}

#[test]
fn a_permit_for_a_process_without_descriptors() {
    let stage = Stage::new("a_permit_for_a_process_without_descriptors", 60);
    let (mut exporter, mut other, mut importer) = (stage.actor(), stage.actor(), stage.actor());
    let address = exporter.anon(4 * PAGE);
    exporter.fill(address, 4, 20);
    let first = exporter.make(address, 4 * PAGE);
    let second = exporter.make(address, 2 * PAGE);
    let elsewhere = other.make(address, PAGE);
    importer.get(first);
    let taken = exhaust(&mut importer);
    // The connection is there.
    let here = importer.get_attach(second, 0, 2 * PAGE);
    importer.check(here, 2, 20);
    // One to another exporter is made in the application's name, and takes one of its descriptors.
    assert_eq!(importer.try_get(elsewhere, RDWR), Err(libc::EMFILE));
    relieve(&mut importer, &taken);
    importer.get(elsewhere);
}

#[test]
fn an_application_has_no_descriptor_of_the_library() {
    let stage = Stage::new("an_application_has_no_descriptor_of_the_library", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let before = [&exporter, &importer].map(|actor| application_descriptors(actor.pid()));
    let address = exporter.anon(16 * PAGE);
    exporter.fill(address, 16, 20);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, address, 16 * PAGE);
    importer.check(here, 16, 20);
    for (actor, before) in [&exporter, &importer].into_iter().zip(before) {
        assert_eq!(application_descriptors(actor.pid()), before);
        assert!(library_descriptors(actor.pid()).len() > 5, "the library has them elsewhere");
    }
    // What the application has is not in the library's table either: whoever reads from a pipe sees its end.
    let theirs: Vec<_> = library_descriptors(exporter.pid()).into_iter().map(|(_, file)| file).collect();
    for (number, file) in application_descriptors(exporter.pid()) {
        assert!(number < 3 || !theirs.contains(&file), "the library has {file:?}");
    }
}

#[test]
fn an_importer_finds_what_is_there() {
    let stage = Stage::new("an_importer_finds_what_is_there", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let private = exporter.anon(16 * PAGE);
    exporter.fill(private, 8, 20);
    let file = exporter.memfd(8 * PAGE);
    let shared = exporter.mmap(0, 8 * PAGE, MAPPED, libc::MAP_SHARED, file, 0);
    exporter.fill(shared, 8, 40);
    let constant = exporter.anon(4 * PAGE);
    exporter.fill(constant, 4, 80);
    exporter.mprotect(constant, 4 * PAGE, libc::PROT_READ);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    exhaust(&mut importer);
    let here = importer.attach(apid, private, 16 * PAGE);
    importer.check(here, 8, 20);
    let there = importer.attach(apid, shared, 8 * PAGE);
    importer.check(there, 8, 40);
    // An object that it does not know yet.
    let protected = importer.attach(apid, constant, 4 * PAGE);
    importer.check(protected, 4, 80);
    assert_eq!(importer.store(protected, 1).unwrap_err().signal, libc::SIGSEGV);
    exporter.munmap(shared, 4 * PAGE);
    assert_eq!(importer.look(there, 4), [Seen::Hole; 4]);
    importer.check(there + 4 * PAGE, 4, 44);
    exporter.munmap(private, 4 * PAGE);
    assert_eq!(importer.look(here, 4), [Seen::Hole; 4]);
    importer.check(here + 4 * PAGE, 4, 24);
    exporter.anon_at(private, 4 * PAGE);
    exporter.fill(private, 4, 90);
    importer.check(here, 4, 90);
}

#[test]
fn a_hole_for_an_importer_that_blocks_sigbus() {
    let stage = Stage::new("a_hole_for_an_importer_that_blocks_sigbus", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(2 * PAGE);
    exporter.munmap(address, PAGE);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, address, 2 * PAGE);
    // The set is the bit of signal 7, as a word.
    let set = importer.number("text 4000000000000000");
    importer.sys(libc::SYS_rt_sigprocmask, &[0, set, 0, 8]).unwrap();
    exhaust(&mut importer);
    importer.tell(&format!("load {here:#x}"));
    assert_eq!(importer.answer_if_alive(), None);
    let status = importer.wait_end();
    assert!(matches!(status, Some(WaitStatus::Signaled(_, Signal::SIGBUS, _))), "{status:?}");
    exporter.exit();
}

#[test]
fn a_child_keeps_what_the_application_has_in_place_of_the_librarys() {
    let stage = Stage::new("a_child_keeps_what_the_application_has", 60);
    let mut exporter = stage.actor();
    exporter.make_all();
    let numbers = |actor: &Actor| -> Vec<u32> {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", actor.pid())).unwrap();
        let mut numbers: Vec<u32> =
            entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
        numbers.sort_unstable();
        numbers
    };
    let last = *numbers(&exporter).last().unwrap();
    exporter.sys(libc::SYS_close_range, &[3, u32::MAX as usize, 0]).unwrap();
    while exporter.sys(libc::SYS_dup, &[0]).unwrap() < last as usize {}
    let child = exporter.fork();
    assert_eq!(numbers(&child), (0..=last).collect::<Vec<_>>());
}
