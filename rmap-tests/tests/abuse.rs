//! Programs that do what a library does not expect of them. None of it may hang, and none may harm the other side.

use nix::sys::{signal::Signal, wait::WaitStatus};
use rmap_tests::{PAGE, Reply, Setup, Stage, compare, library_descriptors, pattern::Seen};

/// Closes all descriptors but the first three.
const CLOSE_ALL: [usize; 3] = [3, u32::MAX as usize, 0];

#[test]
fn switched_off() {
    let stage = Stage::new("switched_off", 60);
    let off = Setup::with_env("RMAP_DISABLE", "1");
    let (mut exporter, mut disabled) = (stage.actor(), stage.actor_with(&off));
    let address = exporter.anon(PAGE);
    let segid = exporter.make(address, PAGE);
    assert_eq!(disabled.xpmem("version"), Err(libc::ENOENT));
    assert_eq!(disabled.try_make(0, PAGE, 0o600), Err(libc::ENOENT));
    assert!(disabled.try_get(segid, 2).is_err());
    disabled.exit();
}

#[test]
fn an_exporter_closes_all_descriptors() {
    let stage = Stage::new("an_exporter_closes_all_descriptors", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(16 * PAGE);
    exporter.fill(address, 16, 20);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let here = importer.attach(apid, address, 16 * PAGE);
    importer.check(here, 4, 20);
    exporter.sys(libc::SYS_close_range, &CLOSE_ALL).unwrap();
    // The library's are its own: all goes on.
    importer.check(here, 16, 20);
    exporter.munmap(address, 2 * PAGE);
    exporter.madvise(address + 2 * PAGE, PAGE, libc::MADV_DONTNEED);
    compare(&exporter, &mut importer, address, here, 16).unwrap();
    exporter.anon_at(address, PAGE);
    exporter.fill(address + 8 * PAGE, 4, 70);
    compare(&exporter, &mut importer, address, here, 16).unwrap();
    importer.detach(here);
    assert_eq!(importer.release(apid), Ok(0));
    exporter.ok("spawn exit 0");
    assert_eq!(exporter.remove(segid), Ok(0));
    exporter.exit();
    importer.exit();
}

#[test]
fn an_importer_closes_all_descriptors() {
    let stage = Stage::new("an_importer_closes_all_descriptors", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(16 * PAGE);
    exporter.fill(address, 16, 20);
    exporter.munmap(address + 15 * PAGE, PAGE);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let here = importer.attach(apid, address, 16 * PAGE);
    importer.check(here, 4, 20);
    importer.sys(libc::SYS_close_range, &CLOSE_ALL).unwrap();
    compare(&exporter, &mut importer, address, here, 16).unwrap();
    exporter.munmap(address, PAGE);
    compare(&exporter, &mut importer, address, here, 16).unwrap();
    let again = importer.attach(apid, address + 4 * PAGE, 4 * PAGE);
    importer.check(again, 4, 24);
    importer.munmap(here, 2 * PAGE);
    assert_eq!(importer.release(apid), Ok(0));
    let there = importer.get_attach(segid, address, 16 * PAGE);
    compare(&exporter, &mut importer, address, there, 16).unwrap();
    importer.exit();
    exporter.check(address + PAGE, 14, 21);
}

#[test]
fn a_child_closes_all_descriptors() {
    let stage = Stage::new("a_child_closes_all_descriptors", 60);
    let (mut parent, mut importer) = (stage.actor(), stage.actor());
    let address = parent.anon(16 * PAGE);
    parent.fill(address, 16, 20);
    let segid = parent.make_all();
    let here = importer.get_attach(segid, address, 16 * PAGE);
    importer.check(here, 4, 20);
    // A daemon in the making.
    let mut child = parent.fork();
    child.sys(libc::SYS_close_range, &CLOSE_ALL).unwrap();
    child.check(address, 16, 20);
    child.munmap(address, 4 * PAGE);
    child.fill(address + 4 * PAGE, 4, 300);
    let own = child.make_all();
    let there = importer.get_attach(own, address, 16 * PAGE);
    compare(&child, &mut importer, address, there, 16).unwrap();
    parent.check(address, 16, 20);
    importer.check(here, 16, 20);
    parent.munmap(address, PAGE);
    compare(&parent, &mut importer, address, here, 16).unwrap();
    child.exit();
    compare(&parent, &mut importer, address, here, 16).unwrap();
}

#[test]
fn a_hole_for_a_thread_that_blocks_sigbus() {
    let stage = Stage::new("a_hole_for_a_thread_that_blocks_sigbus", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(2 * PAGE);
    exporter.munmap(address, PAGE);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, address, 2 * PAGE);
    // The set is the bit of signal 7, as a word.
    let set = importer.number("text 4000000000000000");
    importer.sys(libc::SYS_rt_sigprocmask, &[0, set, 0, 8]).unwrap();
    importer.tell(&format!("load {here:#x}"));
    // As with a hole in any mapping: the kernel does not let that be blocked.
    assert_eq!(importer.answer_if_alive(), None);
    let status = importer.wait_end();
    assert!(matches!(status, Some(WaitStatus::Signaled(_, Signal::SIGBUS, _))), "{status:?}");
    exporter.exit();
}

#[test]
fn processes_whose_first_thread_is_gone() {
    let stage = Stage::new("processes_whose_first_thread_is_gone", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(16 * PAGE);
    exporter.fill(address, 16, 20);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, address, 16 * PAGE);
    importer.check(here, 8, 20);
    exporter.ok("endthread");
    importer.ok("endthread");
    exporter.check(address, 16, 20);
    importer.check(here, 16, 20);
    importer.fill(here, 4, 90);
    exporter.check(address, 4, 90);
    exporter.munmap(address, PAGE);
    assert_eq!(importer.look(here, 2), [Seen::Hole, Seen::Stamp(91)]);
    exporter.anon_at(address, PAGE);
    assert_eq!(importer.look(here, 1), [Seen::Stamp(0)]);
    exporter.madvise(address + 8 * PAGE, PAGE, libc::MADV_DONTNEED);
    assert_eq!(importer.look(here + 8 * PAGE, 2), [Seen::Stamp(0), Seen::Stamp(29)]);
    let moved =
        exporter.mremap(address + 10 * PAGE, PAGE, PAGE, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, address);
    assert_eq!(moved, Ok(address));
    assert_eq!(importer.look(here, 1), [Seen::Stamp(30)]);
    assert_eq!(importer.look(here + 10 * PAGE, 1), [Seen::Hole]);
}

#[test]
fn an_importer_drops_pages_of_its_attachment() {
    let stage = Stage::new("an_importer_drops_pages_of_its_attachment", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(16 * PAGE);
    exporter.fill(address, 16, 20);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, address, 16 * PAGE);
    importer.check(here, 8, 20);
    importer.madvise(here, 16 * PAGE, libc::MADV_DONTNEED);
    exporter.check(address, 16, 20);
    importer.check(here, 16, 20);
    importer.fill(here, 8, 60);
    importer.madvise(here, 16 * PAGE, libc::MADV_DONTNEED);
    importer.check(here, 8, 60);
    exporter.check(address, 8, 60);
}

#[test]
fn an_importer_that_locks_all_its_memory() {
    let stage = Stage::new("an_importer_that_locks_all_its_memory", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(16 * PAGE);
    exporter.fill(address, 16, 20);
    exporter.munmap(address + 12 * PAGE, PAGE);
    let segid = exporter.make_all();
    if !nix::unistd::geteuid().is_root() {
        return rmap_tests::skip(
            "an_importer_that_locks_all_its_memory",
            "RLIMIT_MEMLOCK is smaller than the tables",
        );
    }
    let flags = (libc::MCL_CURRENT | libc::MCL_FUTURE) as usize;
    if let Err(errno) = importer.sys(libc::SYS_mlockall, &[flags]) {
        return rmap_tests::skip(
            "an_importer_that_locks_all_its_memory",
            &format!("mlockall: errno {errno}"),
        );
    }
    let here = importer.get_attach(segid, address, 16 * PAGE);
    compare(&exporter, &mut importer, address, here, 16).unwrap();
    exporter.munmap(address, PAGE);
    compare(&exporter, &mut importer, address, here, 16).unwrap();
}

#[test]
fn an_exporter_that_locks_all_its_memory() {
    let stage = Stage::new("an_exporter_that_locks_all_its_memory", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    if !nix::unistd::geteuid().is_root() {
        return rmap_tests::skip(
            "an_exporter_that_locks_all_its_memory",
            "RLIMIT_MEMLOCK is smaller than the tables",
        );
    }
    let flags = (libc::MCL_CURRENT | libc::MCL_FUTURE) as usize;
    if let Err(errno) = exporter.sys(libc::SYS_mlockall, &[flags]) {
        return rmap_tests::skip(
            "an_exporter_that_locks_all_its_memory",
            &format!("mlockall: errno {errno}"),
        );
    }
    let address = exporter.anon(16 * PAGE);
    exporter.fill(address, 16, 20);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, address, 16 * PAGE);
    importer.check(here, 16, 20);
    importer.fill(here, 8, 60);
    exporter.check(address, 8, 60);
    exporter.munmap(address, PAGE);
    compare(&exporter, &mut importer, address, here, 16).unwrap();
}

#[test]
fn few_descriptors() {
    let stage = Stage::new("few_descriptors", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(16 * PAGE);
    exporter.fill(address, 16, 20);
    // A limit of 12 descriptors, as two words.
    let limit = importer.number("text 0c000000000000000c00000000000000");
    importer.sys(libc::SYS_prlimit64, &[0, libc::RLIMIT_NOFILE as usize, limit, 0]).unwrap();
    let segid = exporter.make_all();
    // It works or says why not; nobody hangs.
    if let Ok(apid) = importer.try_get(segid, 2)
        && let Ok(here) = importer.try_attach(apid, address, 16 * PAGE)
    {
        for seen in importer.look(here, 16) {
            assert_ne!(seen, Seen::Fault);
        }
    }
    importer.exit();
    exporter.check(address, 16, 20);
    exporter.exit();
}

#[test]
fn sizes_and_windows_of_the_runtimes() {
    let stage = Stage::new("sizes_and_windows_of_the_runtimes", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    // The same segment once more, as after a reconnect.
    let again = importer.get(segid);
    assert_ne!(apid, again);
    // 16 MiB of shared memory, and a byte.
    let len = 16 << 20;
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    let shared = exporter.mmap(0, len, prot, flags, -1, 0);
    let here = importer.attach(apid, shared, len + 1);
    exporter.fill(shared, 16, 5);
    importer.check(here, 16, 5);
    // 2 MiB around a small block, and a byte.
    let block = exporter.number("malloc 3000");
    exporter.store(block, 77).unwrap();
    let start = block >> 21 << 21;
    let here = importer.attach(again, start, (2 << 20) + 1);
    assert_eq!(importer.load(here + (block - start)), Ok(77));
    // All addresses up to the highest: a window that ends with the address space.
    let end = 0x7fff_ffff_f000;
    let here = importer.attach(apid, end - (8 << 20), 8 << 20);
    importer.look(here, 1);
    assert_eq!(importer.release(apid), Ok(0));
    let here = importer.attach(again, start, 2 << 20);
    assert_eq!(importer.load(here + (block - start)), Ok(77));
}

#[test]
fn calls_after_all_descriptors_are_closed() {
    let stage = Stage::new("calls_after_all_descriptors_are_closed", 60);
    let (mut exporter, mut actor, mut other) = (stage.actor(), stage.actor(), stage.actor());
    let theirs = exporter.anon(4 * PAGE);
    exporter.fill(theirs, 4, 50);
    let segid = exporter.make(theirs, 4 * PAGE);
    let address = actor.anon(16 * PAGE);
    actor.fill(address, 16, 20);
    let own = actor.make(address, 16 * PAGE);
    let there = other.get_attach(own, 0, 16 * PAGE);
    other.check(there, 4, 20);
    // A thread waits for an answer.
    exporter.freeze();
    // Other descriptors come and go: those of the last stop of all threads may be there still.
    let sockets = |pid| {
        let all = library_descriptors(pid);
        all.into_iter().filter(|(_, what)| what.to_string_lossy().starts_with("socket:")).count()
    };
    let before = sockets(actor.pid());
    actor.ok(&format!("send 1 xpmem get {segid} 2 1 0"));
    actor.wait_until("the library has the connection", || sockets(actor.pid()) > before);
    actor.sys(libc::SYS_close_range, &CLOSE_ALL).unwrap();
    // Counters of its own, and files, where a library might have had descriptors.
    let files: Vec<usize> =
        (0..40).map(|_| actor.sys(libc::SYS_eventfd2, &[0, libc::EFD_NONBLOCK as usize]).unwrap()).collect();
    let more: Vec<i32> = (0..40).map(|_| actor.memfd(PAGE)).collect();
    exporter.thaw();
    let Reply::Ok(words) = actor.ask("receive 1") else { panic!("no answer") };
    let apid: i64 = words.split(' ').next().unwrap().parse().unwrap();
    assert!(apid > 0, "{words}");
    let here = actor.attach(apid, 0, 4 * PAGE);
    actor.check(here, 4, 50);
    let segment = actor.make(address, 8 * PAGE);
    let second = other.get_attach(segment, 0, 8 * PAGE);
    other.check(second, 8, 20);
    assert_eq!(actor.remove(segment), Ok(0));
    actor.munmap(address, 4 * PAGE);
    compare(&actor, &mut other, address, there, 16).unwrap();
    // Nothing was written to them.
    let place = actor.number("text 0000000000000000");
    for number in files {
        assert_eq!(actor.sys(libc::SYS_read, &[number, place, 8]), Err(libc::EAGAIN));
    }
    for number in more {
        let bytes = std::fs::read(format!("/proc/{}/fd/{number}", actor.pid())).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0), "the library has written to descriptor {number}");
    }
    actor.ok("spawn exit 0");
    let mut child = actor.fork();
    let fresh = child.anon(PAGE);
    child.fill(fresh, 1, 28);
    let again = child.make(fresh, PAGE);
    let there = other.get_attach(again, 0, PAGE);
    other.check(there, 1, 28);
    child.exit();
    actor.exit();
    other.exit();
    exporter.exit();
}
