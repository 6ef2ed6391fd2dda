//! What the processes may have runs out: descriptors, address space, mappings, processes, locked memory, memory. What fails says so, the
//! exporter's memory stays as it is, and once there is more, all works.

use nix::sys::{signal::Signal, wait::WaitStatus};
use rmap_tests::pattern::Seen;
use rmap_tests::{Actor, Log, PAGE, RDWR, Random, Setup, Stage, is_root, seed, skip};

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

const PAGES: usize = 64;

/// An exporter and an importer that log to one place.
fn logged(stage: &Stage) -> (Log, Actor, Actor) {
    let log = Log::new();
    let setup = Setup::logging("debug", &log);
    let [exporter, importer] = [(); 2].map(|()| {
        let mut actor = stage.actor_with(&setup);
        // So that its heap has room for what it has to say.
        let room = actor.number("malloc 100000");
        actor.ok(&format!("free {room:#x}"));
        actor
    });
    (log, exporter, importer)
}

/// Pages with stamps.
fn memory(actor: &mut Actor, stamp: u64) -> usize {
    let address = actor.anon(PAGES * PAGE);
    actor.fill(address, PAGES, stamp);
    address
}

/// Limits a resource as long as something is done.
fn under<T>(actor: &mut Actor, resource: u32, limit: u64, what: impl FnOnce(&mut Actor) -> T) -> T {
    let before = actor.limit(resource, limit);
    let result = what(actor);
    actor.limit(resource, before);
    result
}

/// A call has failed for want of something, and the log says which call.
#[track_caller]
fn is_explained<T: std::fmt::Debug>(log: &Log, call: &str, result: &Result<T, i32>, errnos: &[i32]) {
    let errno = result.as_ref().expect_err("there is not enough for it");
    assert!(errnos.contains(errno), "errno {errno}\n{}", log.text());
    let said = log.lines_with(&format!("{call} fails"));
    assert!(said.iter().any(|line| line.contains(&format!("os error {errno}"))), "{}", log.text());
}

/// The memory is as it was, for its own process and as the kernel reads it.
#[track_caller]
fn is_whole(exporter: &mut Actor, address: usize, stamp: u64) {
    exporter.check(address, PAGES, stamp);
    let wanted: Vec<_> = (0..PAGES as u64).map(|page| Some(Seen::Stamp(stamp + page))).collect();
    assert_eq!(exporter.oracle(address, PAGES), wanted);
}

/// Each page is a hole that the log explains, or right; whatever it is, it is right once there is more.
#[track_caller]
fn sees_holes_at_most(log: &Log, importer: &mut Actor, here: usize, stamp: u64) {
    let seen = importer.look(here, PAGES);
    let mut holes = 0;
    for (page, seen) in seen.into_iter().enumerate() {
        holes += usize::from(seen == Seen::Hole);
        assert!(seen == Seen::Hole || seen == Seen::Stamp(stamp + page as u64), "page {page}: {seen:?}");
    }
    assert!(holes == 0 || !log.lines_with("os error").is_empty(), "{}", log.text());
}

#[test]
fn no_descriptor_for_the_first_call() {
    let stage = Stage::new("no_descriptor_for_the_first_call", 60);
    let (log, mut exporter, mut importer) = logged(&stage);
    let address = memory(&mut exporter, 100);
    for room in [0, 1, 2, 4, 8, 12, 16, 20] {
        let used = rmap_tests::application_descriptors(exporter.pid()).len() as u64;
        let made = under(&mut exporter, libc::RLIMIT_NOFILE, used + room, |exporter| {
            exporter.try_make(address, PAGES * PAGE, 0o600)
        });
        if let Ok(segid) = made {
            assert_eq!(exporter.remove(segid), Ok(0));
            break;
        }
        is_explained(&log, "xpmem_make", &made, &[libc::EMFILE]);
    }
    let segid = exporter.make(address, PAGES * PAGE);
    for room in [0, 2, 8, 16] {
        let used = rmap_tests::application_descriptors(importer.pid()).len() as u64;
        let got = under(&mut importer, libc::RLIMIT_NOFILE, used + room, |i| i.try_get(segid, RDWR));
        if got.is_ok() {
            break;
        }
        is_explained(&log, "xpmem_get", &got, &[libc::EMFILE]);
    }
    let here = importer.get_attach(segid, 0, PAGES * PAGE);
    importer.check(here, PAGES, 100);
}

#[test]
fn no_address_space_for_the_first_call() {
    let stage = Stage::new("no_address_space_for_the_first_call", 60);
    let (log, mut exporter, mut importer) = logged(&stage);
    let address = memory(&mut exporter, 100);
    let size = exporter.status_kib("VmSize") << 10;
    let made = under(&mut exporter, libc::RLIMIT_AS, size, |exporter| {
        exporter.try_make(address, PAGES * PAGE, 0o600)
    });
    is_explained(&log, "xpmem_make", &made, &[libc::ENOMEM, libc::EAGAIN]);
    let segid = exporter.make(address, PAGES * PAGE);
    let size = importer.status_kib("VmSize") << 10;
    let got = under(&mut importer, libc::RLIMIT_AS, size, |importer| importer.try_get(segid, RDWR));
    is_explained(&log, "xpmem_get", &got, &[libc::ENOMEM, libc::EAGAIN]);
    let here = importer.get_attach(segid, 0, PAGES * PAGE);
    importer.check(here, PAGES, 100);
    is_whole(&mut exporter, address, 100);
}

#[test]
fn no_address_space_left() {
    let stage = Stage::new("no_address_space_left", 60);
    let (log, mut exporter, mut importer) = logged(&stage);
    let (first, second) = (memory(&mut exporter, 100), memory(&mut exporter, 500));
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    // An importer that has none for another window.
    let size = importer.status_kib("VmSize") << 10;
    let attached = under(&mut importer, libc::RLIMIT_AS, size, |i| i.try_attach(apid, first, PAGES * PAGE));
    is_explained(&log, "xpmem_attach", &attached, &[libc::ENOMEM]);
    let here = importer.attach(apid, first, PAGES * PAGE);
    let there = importer.attach(apid, second, PAGES * PAGE);
    let size = importer.status_kib("VmSize") << 10;
    under(&mut importer, libc::RLIMIT_AS, size, |i| sees_holes_at_most(&log, i, here, 100));
    importer.check(here, PAGES, 100);
    // And an exporter.
    let size = exporter.status_kib("VmSize") << 10;
    under(&mut exporter, libc::RLIMIT_AS, size, |exporter| {
        sees_holes_at_most(&log, &mut importer, there, 500);
        is_whole(exporter, second, 500);
        exporter.munmap(first, PAGE);
        let seen = importer.look(here, 1);
        assert_eq!(seen, [Seen::Hole], "{}", log.text());
        exporter.madvise(first + PAGE, PAGE, libc::MADV_DONTNEED);
        let seen = importer.look(here + PAGE, 1);
        assert_eq!(seen, [Seen::Stamp(0)], "{}", log.text());
    });
    importer.check(there, PAGES, 500);
    is_whole(&mut exporter, second, 500);
    importer.check(here + 2 * PAGE, PAGES - 2, 102);
}

/// Takes all but so many of the mappings that a process may have.
fn crowd(actor: &mut Actor) -> (usize, usize) {
    const ROOM: usize = 1 << 16;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let address = actor.mmap(0, ROOM * PAGE, libc::PROT_NONE, flags, -1, 0);
    (address, actor.number(&format!("crowd {address:#x} {ROOM}")))
}

fn too_many_mappings(test: &str) -> bool {
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").expect("the limit on mappings");
    let limit: usize = limit.trim().parse().expect("a number");
    if limit > 1 << 16 {
        skip(test, "vm.max_map_count is larger than what is quickly filled");
    }
    limit > 1 << 16
}

#[test]
fn no_mapping_for_an_exporter() {
    if too_many_mappings("no_mapping_for_an_exporter") {
        return;
    }
    let stage = Stage::new("no_mapping_for_an_exporter", 120);
    let (log, mut exporter, mut importer) = logged(&stage);
    let known = memory(&mut exporter, 100);
    let all: Vec<usize> = (0..8).map(|number| memory(&mut exporter, 1000 * (number + 1))).collect();
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let here = importer.attach(apid, known, PAGES * PAGE);
    importer.check(here, PAGES, 100);
    let (crowd, count) = crowd(&mut exporter);
    let mut left = count;
    let mut shown = Vec::new();
    for (number, address) in all.into_iter().enumerate() {
        let stamp = 1000 * (number as u64 + 1);
        let there = importer.attach(apid, address, PAGES * PAGE);
        sees_holes_at_most(&log, &mut importer, there, stamp);
        is_whole(&mut exporter, address, stamp);
        shown.push((address, there, stamp));
        // Two more mappings for each.
        left -= 2;
        exporter.munmap(crowd + left * PAGE, 2 * PAGE);
        exporter.madvise(known, PAGE, libc::MADV_DONTNEED);
        assert_eq!(importer.look(here, 1), [Seen::Stamp(0)]);
        exporter.fill(known, 1, 100);
        importer.check(here, PAGES, 100);
    }
    // Whole mappings can always be unmapped.
    if exporter.sys(libc::SYS_munmap, &[known, PAGES * PAGE]).is_ok() {
        assert_eq!(importer.look(here, 2), [Seen::Hole; 2]);
    }
    exporter.munmap(crowd, left * PAGE);
    for (address, there, stamp) in shown {
        importer.check(there, PAGES, stamp);
        is_whole(&mut exporter, address, stamp);
    }
    let fresh = exporter.make(0, PAGE);
    assert_eq!(exporter.remove(fresh), Ok(0));
    assert_eq!(exporter.remove(segid), Ok(0));
}

#[test]
fn no_mapping_for_an_importer() {
    if too_many_mappings("no_mapping_for_an_importer") {
        return;
    }
    let stage = Stage::new("no_mapping_for_an_importer", 120);
    let (log, mut exporter, mut importer) = logged(&stage);
    let private = memory(&mut exporter, 100);
    let file = exporter.memfd(PAGES * PAGE);
    let shared =
        exporter.mmap(0, PAGES * PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file, 0);
    exporter.fill(shared, PAGES, 500);
    let other = exporter.make(private, PAGE);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let here = importer.attach(apid, private, PAGES * PAGE);
    let there = importer.attach(apid, shared, PAGES * PAGE);
    let narrow = importer.get(other);
    let (crowd, count) = crowd(&mut importer);
    let mut left = count;
    for _ in 0..6 {
        let attached = importer.try_attach(narrow, 0, PAGE);
        if let Ok(address) = attached {
            importer.detach(address);
        } else {
            is_explained(&log, "xpmem_attach", &attached, &[libc::ENOMEM, libc::EAGAIN]);
        }
        sees_holes_at_most(&log, &mut importer, here, 100);
        sees_holes_at_most(&log, &mut importer, there, 500);
        left -= 2;
        importer.munmap(crowd + left * PAGE, 2 * PAGE);
    }
    importer.munmap(crowd, left * PAGE);
    importer.check(here, PAGES, 100);
    importer.check(there, PAGES, 500);
    exporter.munmap(shared, PAGES * PAGE);
    assert_eq!(importer.look(there, 4), [Seen::Hole; 4]);
    let here = importer.attach(narrow, 0, PAGE);
    importer.check(here, 1, 100);
}

#[test]
fn no_large_files() {
    let stage = Stage::new("no_large_files", 60);
    let (log, mut exporter, mut importer) = logged(&stage);
    let mut limited = stage.actor_with(&Setup::logging("debug", &log));
    limited.limit(libc::RLIMIT_FSIZE, 1 << 30);
    // Nothing can be served.
    assert_eq!(limited.try_make(0, PAGE, 0o600), Err(libc::ENOENT));
    assert!(!log.lines_with("RLIMIT_FSIZE").is_empty(), "{}", log.text());
    // A limit that comes later.
    let address = memory(&mut exporter, 100);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, address, PAGES * PAGE);
    under(&mut exporter, libc::RLIMIT_FSIZE, 1 << 20, |exporter| {
        sees_holes_at_most(&log, &mut importer, here, 100);
        is_whole(exporter, address, 100);
    });
    importer.check(here, PAGES, 100);
    exporter.exit();
}

#[test]
fn no_processes() {
    if is_root() {
        return skip("no_processes", "root may have any number of processes");
    }
    let stage = Stage::new("no_processes", 60);
    let (log, mut exporter, mut importer) = logged(&stage);
    let (first, second) = (memory(&mut exporter, 100), memory(&mut exporter, 500));
    let made = under(&mut exporter, libc::RLIMIT_NPROC, 1, |exporter| exporter.try_make(0, PAGE, 0o600));
    is_explained(&log, "xpmem_make", &made, &[libc::EAGAIN]);
    let segid = exporter.make_all();
    let got = under(&mut importer, libc::RLIMIT_NPROC, 1, |importer| importer.try_get(segid, RDWR));
    is_explained(&log, "xpmem_get", &got, &[libc::EAGAIN]);
    let apid = importer.get(segid);
    let here = importer.attach(apid, first, PAGES * PAGE);
    let there = importer.attach(apid, second, PAGES * PAGE);
    // Threads cannot be stopped.
    under(&mut exporter, libc::RLIMIT_NPROC, 1, |exporter| {
        sees_holes_at_most(&log, &mut importer, here, 100);
        is_whole(exporter, first, 100);
    });
    importer.check(here, PAGES, 100);
    // No signal can be raised as the kernel would, but it can be sent; and nothing is copied by two.
    under(&mut importer, libc::RLIMIT_NPROC, 1, |importer| importer.check(there, PAGES, 500));
    exporter.munmap(first, PAGE);
    under(&mut importer, libc::RLIMIT_NPROC, 1, |importer| {
        let fault = importer.load(here).expect_err("a hole");
        assert!(fault.is_hole_at(here), "{fault:?}");
    });
}

#[test]
fn no_locked_memory() {
    const ALL: usize = (libc::MCL_CURRENT | libc::MCL_FUTURE) as usize;
    let stage = Stage::new("no_locked_memory", 60);
    let (log, mut exporter, mut importer) = logged(&stage);
    if exporter.limit(libc::RLIMIT_MEMLOCK, u64::MAX) < 64 << 10 && !is_root() {
        return skip("no_locked_memory", "this user may lock no memory");
    }
    let address = memory(&mut exporter, 100);
    exporter.sys(libc::SYS_mlock, &[address, 8 * PAGE]).expect("mlock");
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, address, PAGES * PAGE);
    under(&mut exporter, libc::RLIMIT_MEMLOCK, 0, |exporter| {
        sees_holes_at_most(&log, &mut importer, here, 100);
        is_whole(exporter, address, 100);
    });
    importer.check(here, PAGES, 100);
    // What a process maps from now on must be locked, and may not be.
    let mut locked = stage.actor_with(&Setup::logging("debug", &log));
    let address = memory(&mut locked, 700);
    if locked.sys(libc::SYS_mlockall, &[ALL]).is_err() {
        return skip("no_locked_memory", "this user may not lock a whole process");
    }
    let made = under(&mut locked, libc::RLIMIT_MEMLOCK, 0, |locked| locked.try_make(0, PAGE, 0o600));
    if is_root() {
        assert!(made.is_ok(), "root may lock any amount of memory");
    } else {
        is_explained(&log, "xpmem_make", &made, &[libc::EAGAIN, libc::ENOMEM]);
    }
    locked.sys(libc::SYS_munlockall, &[]).expect("munlockall");
    let segid = locked.make_all();
    let there = importer.get_attach(segid, address, PAGES * PAGE);
    importer.check(there, PAGES, 700);
}

#[test]
fn attachers_without_end() {
    const ATTACHERS: usize = 64;
    let stage = Stage::new("attachers_without_end", 120);
    let (log, mut exporter, mut importer) = logged(&stage);
    let address = memory(&mut exporter, 100);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let mut random = Random::new(seed());
    let before = exporter.limit(libc::RLIMIT_NOFILE, 64);
    let mut attachers = stage.actors(ATTACHERS);
    for attacher in &mut attachers {
        attacher.tell(&format!("xpmem get {segid} {RDWR} 1 0"));
    }
    // Half of them die on the way.
    for number in random.order(ATTACHERS).into_iter().take(ATTACHERS / 2) {
        attachers[number].signal(Signal::SIGKILL);
    }
    let mut served = 0;
    for mut attacher in attachers {
        let reply = attacher.answer_if_alive();
        let Some(rmap_tests::Reply::Ok(words)) = reply else { continue };
        match words.split_once(' ').expect("result and errno") {
            ("-1", errno) => assert!(["24", "2"].contains(&errno), "errno {errno}\n{}", log.text()),
            (apid, _) => {
                let apid: i64 = apid.parse().expect("an id");
                let reply = attacher.ask_if_alive(&format!("xpmem attach {apid} {address:#x} 0x40000 0"));
                served += usize::from(reply.is_some());
            }
        }
    }
    assert!(served > 0, "nobody was served");
    exporter.limit(libc::RLIMIT_NOFILE, before);
    let here = importer.attach(apid, address, PAGES * PAGE);
    importer.check(here, PAGES, 100);
    is_whole(&mut exporter, address, 100);
    let mut last = stage.actor();
    let here = last.get_attach(segid, address, PAGES * PAGE);
    last.check(here, PAGES, 100);
}

/// A memory cgroup of a test's own.
struct Cgroup(PathBuf);

impl Cgroup {
    /// One with a limit in bytes.
    ///
    /// # Errors
    /// Why there can be none.
    fn new(limit: u64) -> Result<Self, String> {
        let (root, file) =
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
                .into_iter()
                .find(|(root, _)| Path::new(root).join("cgroup.procs").exists())
                .ok_or("there are no cgroups")?;
        let group = Self(Path::new(root).join(format!("rmap-tests-{}-{limit}", std::process::id())));
        let why = |error: std::io::Error| format!("{}: {error}", group.0.display());
        fs::create_dir(&group.0).map_err(why)?;
        // Pages that are swapped out would not count.
        let _ = fs::write(group.0.join("memory.swap.max"), "0");
        fs::write(group.0.join(file), limit.to_string()).map_err(why)?;
        Ok(group)
    }

    fn take(&self, actor: &Actor) {
        fs::write(self.0.join("cgroup.procs"), actor.pid().to_string()).expect("a process moves to a cgroup");
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Not before its processes are gone, which the kernel says late.
        for _ in 0..1000 {
            if fs::remove_dir(&self.0).is_ok() || !self.0.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn the_kernel_kills_an_exporter_for_its_memory() {
    const LIMIT: usize = 48 << 20;
    let stage = Stage::new("the_kernel_kills_an_exporter_for_its_memory", 120);
    let group = match Cgroup::new(LIMIT as u64) {
        Ok(group) => group,
        Err(why) => return skip("the_kernel_kills_an_exporter_for_its_memory", &why),
    };
    let (_, mut exporter, mut importer) = logged(&stage);
    group.take(&exporter);
    // Most of what it may have, and adopted: each page is there twice only for as long as it is copied.
    let pages = LIMIT / PAGE * 2 / 3;
    let address = exporter.anon(pages * PAGE);
    exporter.fill(address, pages, 100);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let here = importer.attach(apid, address, pages * PAGE);
    importer.check(here, 512, 100);
    // More than it may have, while it is asked for the rest.
    let more = exporter.anon(LIMIT);
    exporter.tell(&format!("fill {more:#x} {} 1 1", LIMIT / PAGE));
    importer.look(here, pages);
    assert_eq!(exporter.answer_if_alive(), None, "it lives");
    let status = exporter.wait_end();
    assert!(matches!(status, Some(WaitStatus::Signaled(_, Signal::SIGKILL, _))), "{status:?}");
    // Whoever was asking goes on, with others.
    importer.detach(here);
    assert_eq!(importer.release(apid), Ok(0));
    let mut other = stage.actor();
    let address = memory(&mut other, 700);
    let segid = other.make_all();
    let there = importer.get_attach(segid, address, PAGES * PAGE);
    importer.check(there, PAGES, 700);
}

#[test]
fn an_importer_has_no_memory_left() {
    let stage = Stage::new("an_importer_has_no_memory_left", 120);
    let group = match Cgroup::new(24 << 20) {
        Ok(group) => group,
        Err(why) => return skip("an_importer_has_no_memory_left", &why),
    };
    let (_, mut exporter, mut importer) = logged(&stage);
    let address = memory(&mut exporter, 100);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, address, PAGES * PAGE);
    importer.check(here, PAGES, 100);
    group.take(&importer);
    let more = importer.anon(48 << 20);
    importer.tell(&format!("fill {more:#x} {} 1 1", (48 << 20) / PAGE));
    assert_eq!(importer.answer_if_alive(), None, "it lives");
    // The memory was not its own.
    is_whole(&mut exporter, address, 100);
    exporter.munmap(address, PAGE);
    let mut other = stage.actor();
    let there = other.get_attach(segid, address, PAGES * PAGE);
    other.check(there + PAGE, PAGES - 1, 101);
}
