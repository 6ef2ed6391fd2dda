//! What every user of the library does: make, get, attach, use, detach, release, remove, in several processes.

use nix::sys::{signal::Signal, wait::WaitStatus};
use rmap_tests::{Actor, Engine, MAXADDR, PAGE, PERMIT_MODE, RDONLY, RDWR, Stage, is_root, pattern::Seen};

/// Addresses that nothing else uses.
const ARENA: usize = 0x2000_0000_0000;

/// Integers in a page.
const INTS: usize = PAGE / 4;

fn write_ints(actor: &mut Actor, address: usize, pages: usize, factor: u32, add: u32) {
    actor.ok(&format!("ints {address:#x} {} {factor} {add}", pages * INTS));
}

fn add_ints(actor: &mut Actor, address: usize, pages: usize, factor: u32, add: u32) {
    actor.ok(&format!("addints {address:#x} {} {factor} {add}", pages * INTS));
}

#[track_caller]
fn expect_ints(actor: &mut Actor, address: usize, pages: usize, factor: u32, add: u32) {
    let wrong = actor.number(&format!("checkints {address:#x} {} {factor} {add}", pages * INTS));
    assert_eq!(wrong, 0, "integers that are not i * {factor} + {add}");
}

/// Four pages of an exporter with integers set to their index.
fn four_pages(exporter: &mut Actor) -> usize {
    let address = exporter.anon(4 * PAGE);
    write_ints(exporter, address, 4, 1, 0);
    address
}

#[test]
fn version_and_hidden_functions() {
    let stage = Stage::new("version_and_hidden_functions", 60);
    let mut actor = stage.actor();
    assert_eq!(actor.xpmem("version"), Ok(0x0002_7004));
    assert_eq!(actor.xpmem("init"), Ok(0));
    actor.exit();
}

#[test]
fn a_peer_reads_and_writes_a_segment() {
    let stage = Stage::new("a_peer_reads_and_writes_a_segment", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = four_pages(&mut exporter);
    let segid = exporter.try_make(address, 4 * PAGE, 0o666).unwrap();
    assert!(segid > 0);
    let apid = importer.get(segid);
    assert!(apid > 0);
    let here = importer.attach(apid, 0, 4 * PAGE);
    assert_eq!(here % PAGE, 0);
    expect_ints(&mut importer, here, 4, 1, 0);
    add_ints(&mut importer, here, 4, 0, 1);
    expect_ints(&mut exporter, address, 4, 1, 1);
    importer.detach(here);
    assert_eq!(importer.release(apid), Ok(0));
    assert_eq!(exporter.remove(segid), Ok(0));
    importer.exit();
    exporter.exit();
}

#[test]
fn one_segment_attached_twice() {
    let stage = Stage::new("one_segment_attached_twice", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = four_pages(&mut exporter);
    let segid = exporter.try_make(address, 4 * PAGE, 0o666).unwrap();
    let here = [importer.get_attach(segid, 0, 4 * PAGE), importer.get_attach(segid, 0, 4 * PAGE)];
    assert_ne!(here[0], here[1]);
    add_ints(&mut importer, here[0], 4, 0, 1);
    add_ints(&mut importer, here[1], 4, 0, 1);
    expect_ints(&mut exporter, address, 4, 1, 2);
    importer.detach(here[0]);
    expect_ints(&mut importer, here[1], 4, 1, 2);
}

#[test]
fn two_segments_of_one_process() {
    let stage = Stage::new("two_segments_of_one_process", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let addresses = [four_pages(&mut exporter), four_pages(&mut exporter)];
    for address in addresses {
        let segid = exporter.try_make(address, 4 * PAGE, 0o666).unwrap();
        let here = importer.get_attach(segid, 0, 4 * PAGE);
        add_ints(&mut importer, here, 4, 0, 1);
    }
    for address in addresses {
        expect_ints(&mut exporter, address, 4, 1, 1);
    }
}

#[test]
fn an_exporter_forks_and_keeps_sharing() {
    let stage = Stage::new("an_exporter_forks_and_keeps_sharing", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = four_pages(&mut exporter);
    let segid = exporter.try_make(address, 4 * PAGE, 0o666).unwrap();
    let here = importer.get_attach(segid, PAGE, PAGE);
    assert_eq!(importer.number(&format!("checkints {here:#x} {INTS} 1 {INTS}")), 0);
    let mut child = exporter.fork();
    add_ints(&mut exporter, address, 4, 0, 1);
    add_ints(&mut importer, here, 1, 0, 1);
    expect_ints(&mut exporter, address, 1, 1, 1);
    expect_ints(&mut exporter, address + PAGE, 1, 1, INTS as u32 + 2);
    expect_ints(&mut exporter, address + 2 * PAGE, 2, 1, 2 * INTS as u32 + 1);
    // The child has what was there at the fork.
    expect_ints(&mut child, address, 4, 1, 0);
    add_ints(&mut child, address, 4, 0, 7);
    expect_ints(&mut exporter, address, 1, 1, 1);
    expect_ints(&mut importer, here, 1, 1, INTS as u32 + 2);
}

#[test]
fn make_checks_its_arguments() {
    let stage = Stage::new("make_checks_its_arguments", 60);
    let mut actor = stage.actor();
    let segid = actor.xpmem(&format!("make 0 0x10000 {PERMIT_MODE} 0o600")).unwrap();
    assert_eq!(actor.remove(segid), Ok(0));
    let bad = [
        format!("make 12 0x1000 {PERMIT_MODE} 0o600"),
        "make 0 0x10000 0 0o600".to_owned(),
        "make 0 0x10000 2 0o600".to_owned(),
        format!("make 0 0x10000 {PERMIT_MODE} 0o1000"),
        format!("make 0 0 {PERMIT_MODE} 0o600"),
        format!("make 0 100 {PERMIT_MODE} 0o600"),
        format!("make {:#x} 0x1000 {PERMIT_MODE} 0o600", usize::MAX - 1),
        format!("make 0x1000 {MAXADDR:#x} {PERMIT_MODE} 0o600"),
        format!("make 0 {:#x} {PERMIT_MODE} 0o600", 1_usize << 62),
    ];
    for call in bad {
        assert_eq!(actor.xpmem(&call), Err(libc::EINVAL), "{call}");
    }
}

#[test]
fn remove_checks_its_argument() {
    let stage = Stage::new("remove_checks_its_argument", 60);
    let mut actor = stage.actor();
    let segid = actor.make(0, 16 * PAGE);
    assert_eq!(actor.remove(-1), Err(libc::EINVAL));
    assert_eq!(actor.remove(0), Err(libc::EINVAL));
    assert_eq!(actor.remove(12345), Err(libc::ENOENT));
    assert_eq!(actor.remove(segid), Ok(0));
    assert_eq!(actor.remove(segid), Err(libc::ENOENT));
}

#[test]
fn get_checks_its_arguments() {
    let stage = Stage::new("get_checks_its_arguments", 60);
    let (mut actor, mut other) = (stage.actor(), stage.actor());
    let segid = other.make(0, 16 * PAGE);
    assert_eq!(actor.try_get(-1, RDWR), Err(libc::EINVAL));
    assert_eq!(actor.try_get(0, RDWR), Err(libc::EINVAL));
    assert_eq!(actor.try_get(12345, RDWR), Err(libc::ENOENT));
    for flags in [3, 4, 9999, -1] {
        assert_eq!(actor.try_get(segid, flags), Err(libc::EINVAL), "flags {flags}");
    }
    assert_eq!(actor.xpmem(&format!("get {segid} {RDWR} 0 0")), Err(libc::EINVAL));
    // The permit value is not looked at.
    for value in ["0o600", "0", "0o777777"] {
        let apid = actor.xpmem(&format!("get {segid} {RDWR} {PERMIT_MODE} {value}")).unwrap();
        assert_eq!(actor.release(apid), Ok(0));
        assert_eq!(actor.release(apid), Err(libc::ENOENT));
    }
    assert_eq!(actor.release(0), Err(libc::EINVAL));
    assert_eq!(actor.release(-5), Err(libc::EINVAL));
    assert_eq!(actor.release(12345), Err(libc::ENOENT));
    assert_eq!(other.remove(segid), Ok(0));
    assert_eq!(actor.try_get(segid, RDWR), Err(libc::ENOENT));
}

#[test]
fn attach_checks_its_arguments() {
    let stage = Stage::new("attach_checks_its_arguments", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(16 * PAGE);
    let segid = exporter.make(address, 16 * PAGE);
    let apid = importer.get(segid);
    assert_eq!(importer.try_attach(0, 0, PAGE), Err(libc::EINVAL));
    assert_eq!(importer.try_attach(-1, 0, PAGE), Err(libc::EINVAL));
    assert_eq!(importer.try_attach(12345, 0, PAGE), Err(libc::ENOENT));
    let bad = [
        (0, 0, 0),
        (12, PAGE, 0),
        (0, 17 * PAGE, 0),
        (0, 16 * PAGE + 1, 0),
        (16 * PAGE, PAGE, 0),
        (15 * PAGE, 2 * PAGE, 0),
        (0, usize::MAX, 0),
        (0, PAGE, 12),
        // The end of the address space, with five levels of page tables too.
        (0, PAGE, 0xff_ffff_ffff_f000),
    ];
    for (offset, len, at) in bad {
        assert_eq!(
            importer.try_attach_at(apid, offset, len, at),
            Err(libc::EINVAL),
            "{offset:#x} {len:#x} {at:#x}"
        );
    }
    assert_eq!(importer.xpmem(&format!("attach {apid} -4096 {PAGE} 0")), Err(libc::EINVAL));
    // A size is rounded up to pages, up to the end of the segment.
    let here = importer.attach(apid, 15 * PAGE, 1);
    exporter.fill(address + 15 * PAGE, 1, 7);
    importer.check(here, 1, 7);
    // A permit is its owner's.
    assert_eq!(exporter.try_attach(apid, 0, PAGE), Err(libc::EACCES));
    assert_eq!(exporter.release(apid), Err(libc::EACCES));
    assert_eq!(importer.remove(segid), Err(libc::EACCES));
    assert_eq!(exporter.remove(segid), Ok(0));
    assert_eq!(importer.try_attach(apid, 0, PAGE), Err(libc::ENOENT));
}

#[test]
fn attach_at_a_chosen_address() {
    let stage = Stage::new("attach_at_a_chosen_address", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(8 * PAGE);
    exporter.fill(address, 8, 100);
    let segid = exporter.make(address, 8 * PAGE);
    let apid = importer.get(segid);
    // Ordinary memory gives way.
    let place = importer.anon(32 * PAGE);
    importer.fill(place, 32, 5000);
    assert_eq!(importer.try_attach_at(apid, 0, 8 * PAGE, place + 4 * PAGE), Ok(place + 4 * PAGE));
    importer.check(place, 4, 5000);
    importer.check(place + 4 * PAGE, 8, 100);
    importer.check(place + 12 * PAGE, 20, 5012);
    // An attachment does not.
    assert_eq!(importer.try_attach_at(apid, 0, 8 * PAGE, place + 4 * PAGE), Err(libc::EINVAL));
    assert_eq!(importer.try_attach_at(apid, 0, PAGE, place + 11 * PAGE), Err(libc::EINVAL));
    importer.check(place + 4 * PAGE, 8, 100);
    importer.detach(place + 4 * PAGE);
    assert_eq!(importer.try_attach_at(apid, 0, PAGE, place + 4 * PAGE), Ok(place + 4 * PAGE));
    // Memory that others have attached gives way, too: there is nothing any more at its addresses that is its owner's.
    let shared = importer.anon(16 * PAGE);
    importer.fill(shared, 16, 300);
    let view = {
        let segid = importer.make(shared, 16 * PAGE);
        exporter.get_attach(segid, 0, 16 * PAGE)
    };
    exporter.check(view, 16, 300);
    assert_eq!(importer.try_attach_at(apid, 0, 4 * PAGE, shared + 6 * PAGE), Ok(shared + 6 * PAGE));
    importer.check(shared + 6 * PAGE, 4, 100);
    importer.check(shared, 6, 300);
    exporter.check(view, 6, 300);
    exporter.check(view + 10 * PAGE, 6, 310);
    importer.detach(shared + 6 * PAGE);
    // Nor does the source of an attachment of one's own memory.
    let own = exporter.get(segid);
    assert_eq!(exporter.try_attach_at(own, 0, 4 * PAGE, address + 2 * PAGE), Err(libc::EINVAL));
    exporter.check(address, 8, 100);
}

#[test]
fn a_mode_decides_what_a_process_of_the_same_user_gets() {
    let stage = Stage::new("a_mode_decides_what_a_process_of_the_same_user_gets", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(PAGE);
    for (mode, flags) in [(0o600, RDWR), (0o600, RDONLY), (0o400, RDONLY), (0o600, 0), (0o400, 0)] {
        let segid = exporter.try_make(address, PAGE, mode).unwrap();
        assert!(importer.try_get(segid, flags).is_ok(), "mode {mode:o} flags {flags}");
    }
    // Root may do what it likes, the owner of the bits may not.
    for (mode, flags) in
        [(0o400, RDWR), (0o200, RDWR), (0o200, RDONLY), (0, RDWR), (0, RDONLY), (0o066, RDONLY)]
    {
        let segid = exporter.try_make(address, PAGE, mode).unwrap();
        let expected = if is_root() { None } else { Some(libc::EACCES) };
        assert_eq!(importer.try_get(segid, flags).err(), expected, "mode {mode:o} flags {flags}");
    }
}

#[test]
fn a_segment_with_space_around_a_mapping() {
    let stage = Stage::new("a_segment_with_space_around_a_mapping", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = ARENA + 8 * PAGE;
    exporter.anon_at(address, 10 * PAGE);
    let segid = exporter.make(address - 3 * PAGE, 15 * PAGE);
    let here = importer.get_attach(segid, PAGE, 12 * PAGE);
    for page in 0..10 {
        importer.store(here + (2 + page) * PAGE, page as u64 + 1).unwrap();
        assert_eq!(exporter.load(address + page * PAGE), Ok(page as u64 + 1));
    }
    for hole in [here, here + PAGE] {
        assert!(importer.load(hole).unwrap_err().is_hole_at(hole));
        assert!(importer.store(hole, 1).unwrap_err().is_hole_at(hole));
    }
}

#[test]
fn a_hole_tells_the_exact_address() {
    let stage = Stage::new("a_hole_tells_the_exact_address", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(PAGE);
    exporter.munmap(address, PAGE);
    let segid = exporter.make(address, PAGE);
    let here = importer.get_attach(segid, 0, PAGE);
    let fault = importer.load(here + 0x128).unwrap_err();
    assert!(fault.is_hole_at(here), "{fault:?}");
    let exact = !rmap_tests::goes_without("exact-address");
    assert_eq!(fault.address, if exact { here + 0x128 } else { here });
}

#[test]
fn an_access_to_a_hole_kills_with_sigbus() {
    let stage = Stage::new("an_access_to_a_hole_kills_with_sigbus", 60);
    let mut exporter = stage.actor();
    let address = exporter.anon(16 * PAGE);
    exporter.munmap(address + 4 * PAGE, 2 * PAGE);
    let segid = exporter.make_all();
    for command in ["bareload", "barestore"] {
        let mut importer = stage.actor();
        let here = importer.get_attach(segid, address, 16 * PAGE);
        importer.store(here + 3 * PAGE, 5).unwrap();
        importer.tell(&format!("{command} {:#x}", here + 4 * PAGE));
        assert_eq!(importer.answer_if_alive(), None);
        let status = importer.wait_end();
        assert!(matches!(status, Some(WaitStatus::Signaled(_, Signal::SIGBUS, _))), "{status:?}");
        assert_eq!(exporter.load(address + 3 * PAGE), Ok(5));
    }
}

#[test]
fn a_process_attaches_its_own_memory() {
    let stage = Stage::new("a_process_attaches_its_own_memory", 60);
    let mut actor = stage.actor();
    let address = actor.anon(64 * PAGE);
    actor.fill(address, 64, 1);
    let segid = actor.make_all();
    let apid = actor.get(segid);
    let here = actor.attach(apid, address, 64 * PAGE);
    actor.check(here, 64, 1);
    actor.fill(here, 64, 900);
    actor.check(address, 64, 900);
    actor.fill(address, 32, 70);
    actor.check(here, 32, 70);
    actor.munmap(address, 4 * PAGE);
    assert!(actor.load(here).unwrap_err().is_hole_at(here));
    actor.tell(&format!("bareload {here:#x}"));
    assert_eq!(actor.answer_if_alive(), None);
    let status = actor.wait_end();
    assert!(matches!(status, Some(WaitStatus::Signaled(_, Signal::SIGBUS, _))), "{status:?}");
}

#[test]
fn system_calls_take_attached_memory() {
    let stage = Stage::new("system_calls_take_attached_memory", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(16 * PAGE);
    exporter.fill(address, 8, 50);
    let segid = exporter.make(address, 16 * PAGE);
    let here = importer.get_attach(segid, 0, 16 * PAGE);
    let file = importer.memfd(16 * PAGE) as usize;
    let copy = importer.mmap(0, 16 * PAGE, libc::PROT_READ, libc::MAP_SHARED, file as i32, 0);
    // Out of memory that has been touched through the attachment.
    importer.check(here, 4, 50);
    assert_eq!(importer.sys(libc::SYS_pwrite64, &[file, here, 4 * PAGE, 0]), Ok(4 * PAGE));
    importer.check(copy, 4, 50);
    // Into it.
    importer.store(here + 8 * PAGE, 1).unwrap();
    assert_eq!(importer.sys(libc::SYS_pread64, &[file, here + 8 * PAGE, PAGE, 2 * PAGE]), Ok(PAGE));
    exporter.check(address + 8 * PAGE, 1, 52);
    // The same with memory that has not been touched.
    assert_eq!(importer.sys(libc::SYS_pwrite64, &[file, here + 4 * PAGE, 4 * PAGE, 4 * PAGE]), Ok(4 * PAGE));
    importer.check(copy + 4 * PAGE, 4, 54);
    assert_eq!(importer.sys(libc::SYS_pread64, &[file, here + 12 * PAGE, 2 * PAGE, 0]), Ok(2 * PAGE));
    exporter.check(address + 12 * PAGE, 2, 50);
}

#[test]
fn direct_input_and_output_with_attached_memory() {
    let name = "direct_input_and_output_with_attached_memory";
    if !Engine::of_actors().shares_ordinary_memory() {
        return rmap_tests::skip(name, "mirrors cannot be pinned");
    }
    let stage = Stage::new(name, 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = importer.text(file.path().to_str().unwrap());
    let at = libc::AT_FDCWD as isize as usize;
    let Ok(fd) = importer.sys(libc::SYS_openat, &[at, path, (libc::O_RDWR | libc::O_DIRECT) as usize]) else {
        return rmap_tests::skip(name, "the file system of temporary files does not know O_DIRECT");
    };
    let address = exporter.anon(8 * PAGE);
    exporter.fill(address, 4, 30);
    let segid = exporter.make(address, 8 * PAGE);
    let here = importer.get_attach(segid, 0, 8 * PAGE);
    importer.check(here, 4, 30);
    importer.store(here + 4 * PAGE, 1).unwrap();
    let written = importer.sys(libc::SYS_pwrite64, &[fd, here, 4 * PAGE, 0]);
    if !Engine::of_actors().shares_ordinary_memory() {
        return assert_eq!(written, Err(libc::EFAULT));
    }
    assert_eq!(written, Ok(4 * PAGE));
    assert_eq!(importer.sys(libc::SYS_pread64, &[fd, here + 4 * PAGE, PAGE, 2 * PAGE]), Ok(PAGE));
    exporter.check(address + 4 * PAGE, 1, 32);
}

#[test]
fn a_futex_works_across_an_attachment() {
    let stage = Stage::new("a_futex_works_across_an_attachment", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(PAGE);
    let segid = exporter.make(address, PAGE);
    let here = importer.get_attach(segid, 0, PAGE);
    assert_eq!(importer.load(here), Ok(0));
    let thread = exporter.start(&format!("block futexat {address:#x}"));
    exporter.wait_blocked(thread, libc::SYS_futex);
    importer.store(here, 1).unwrap();
    let woken = importer.sys(libc::SYS_futex, &[here, libc::FUTEX_WAKE as usize, 10]);
    if !Engine::of_actors().shares_ordinary_memory() {
        return assert_eq!(woken, Err(libc::EFAULT));
    }
    assert_eq!(woken, Ok(1));
    let report = exporter.stop(thread);
    assert_eq!(report["eintr"], 0, "{report:?}");
}

#[test]
fn ten_thousand_attachments() {
    let stage = Stage::new("ten_thousand_attachments", 120);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(64 * PAGE);
    for page in 0..64 {
        exporter.store(address + page * PAGE, (address + page * PAGE) as u64).unwrap();
    }
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let mut all = Vec::new();
    for number in 0..10_000 {
        let page = number % 64;
        let here = importer.attach(apid, address + page * PAGE, PAGE);
        if number % 100 == 0 {
            assert_eq!(importer.load(here), Ok((address + page * PAGE) as u64));
        }
        all.push(here);
    }
    let last = all.len() - 1;
    for number in [0, 1, last] {
        assert_eq!(importer.load(all[number]), Ok((address + number % 64 * PAGE) as u64));
    }
    for here in all.drain(..100) {
        importer.detach(here);
    }
    assert_eq!(importer.release(apid), Ok(0));
    for here in all.into_iter().step_by(100) {
        let seen = importer.look(here, 1)[0];
        assert_ne!(seen, Seen::Hole);
    }
}

#[test]
fn exec_ends_what_a_process_shared() {
    let stage = Stage::new("exec_ends_what_a_process_shared", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(2 * PAGE);
    exporter.fill(address, 2, 3);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let here = importer.attach(apid, address, 2 * PAGE);
    importer.check(here, 1, 3);
    exporter.ok("exec");
    exporter.ok("hello");
    assert_eq!(importer.try_get(segid, RDWR), Err(libc::ENOENT));
    assert_eq!(importer.try_attach(apid, address, PAGE), Err(libc::ENOENT));
    importer.detach(here);
    assert_eq!(importer.release(apid), Ok(0));
    // The new program shares under new ids.
    let address = exporter.anon(PAGE);
    exporter.fill(address, 1, 9);
    let again = exporter.make_all();
    assert_eq!(again == segid, !Engine::of_actors().draws_ids(), "{again}");
    let here = importer.get_attach(again, address, PAGE);
    importer.check(here, 1, 9);
}

#[test]
fn a_forked_child_has_segments_of_its_own() {
    let stage = Stage::new("a_forked_child_has_segments_of_its_own", 60);
    let (mut parent, mut importer) = (stage.actor(), stage.actor());
    let address = parent.anon(4 * PAGE);
    parent.fill(address, 4, 20);
    let segid = parent.make_all();
    let apid = importer.get(segid);
    let here = importer.attach(apid, address, 4 * PAGE);
    importer.check(here, 4, 20);
    let mut child = parent.fork();
    // What the parent has is not the child's.
    assert_eq!(child.remove(segid), Err(libc::EACCES));
    let own = child.make_all();
    assert_ne!(own, segid);
    child.fill(address, 2, 70);
    let there = importer.get_attach(own, address, 4 * PAGE);
    importer.check(there, 2, 70);
    importer.check(there + 2 * PAGE, 2, 22);
    importer.fill(there + 3 * PAGE, 1, 88);
    child.check(address + 3 * PAGE, 1, 88);
    parent.check(address, 4, 20);
    importer.check(here, 4, 20);
    // And the child can import from the parent.
    let back = child.get_attach(segid, address, 4 * PAGE);
    child.check(back, 4, 20);
    child.exit();
    parent.check(address, 4, 20);
    if Engine::of_actors().shares_ordinary_memory() {
        importer.check(there, 2, 70);
    } else {
        assert!(importer.load(there).unwrap_err().is_hole_at(there));
    }
    importer.check(here, 4, 20);
}

#[test]
fn an_importer_forks_and_keeps_its_attachments() {
    let stage = Stage::new("an_importer_forks_and_keeps_its_attachments", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(8 * PAGE);
    exporter.fill(address, 8, 20);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let here = importer.attach(apid, address, 8 * PAGE);
    importer.check(here, 4, 20);
    let mut child = importer.fork();
    // Not inherited.
    child.expect_gone(here, 8, 20);
    child.detach(here);
    assert_eq!(child.release(apid), Err(libc::EACCES));
    assert_eq!(child.try_attach(apid, address, PAGE), Err(libc::EACCES));
    importer.check(here, 8, 20);
    let own = child.get_attach(segid, address, 8 * PAGE);
    child.fill(own, 1, 99);
    importer.check(here, 1, 99);
    exporter.munmap(address, PAGE);
    assert!(importer.load(here).unwrap_err().is_hole_at(here));
    assert!(child.load(own).unwrap_err().is_hole_at(own));
    child.exit();
    importer.check(here + PAGE, 7, 21);
}

#[test]
fn programs_started_by_an_exporter_disturb_nothing() {
    let stage = Stage::new("programs_started_by_an_exporter_disturb_nothing", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(64 * PAGE);
    exporter.fill(address, 64, 20);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, address, 64 * PAGE);
    importer.check(here, 32, 20);
    assert_eq!(exporter.ok("shell exit 3"), (3 << 8).to_string());
    assert_eq!(exporter.ok("spawn exit 4"), "4");
    importer.fill(here, 4, 700);
    exporter.check(address, 4, 700);
    importer.check(here + 4 * PAGE, 60, 24);
}
