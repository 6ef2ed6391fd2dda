//! Processes die and stop at any moment. Nobody hangs, nothing stays behind.

use nix::sys::signal::Signal;
use rmap_tests::{
    Actor, Engine, PAGE, RDWR, Random, Setup, Stage, application_descriptors, library_descriptors,
    maps_if_alive, parent_of, pattern::Seen, rounds, seed, state_of,
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

const ARENA: usize = 0x2000_0000_0000;
const PAGES: usize = 64;

/// What a process has that could stay behind.
#[derive(Debug)]
struct Traces {
    since: SystemTime,
    sockets: BTreeSet<String>,
    files: BTreeSet<PathBuf>,
    helpers: BTreeSet<i32>,
}

impl Traces {
    fn new() -> Self {
        let (sockets, files, helpers) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        Self { since: SystemTime::now(), sockets, files, helpers }
    }

    fn note(&mut self, pid: i32) {
        // The first three are the test's own.
        let application = application_descriptors(pid).into_iter().filter(|(number, _)| *number > 2);
        for (_, target) in application.chain(library_descriptors(pid)) {
            let text = target.to_string_lossy().into_owned();
            if let Some(inode) = text.strip_prefix("socket:[") {
                self.sockets.insert(inode.trim_end_matches(']').to_owned());
            } else {
                self.note_file(&target);
            }
        }
        for mapping in maps_if_alive(pid).into_iter().flatten() {
            self.note_file(Path::new(&mapping.name));
        }
        // Helpers of the library are children or share the process's parent.
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(other) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if parent_of(other) == Some(pid) {
                self.helpers.insert(other);
            }
        }
    }

    /// Files of before are not the library's.
    fn note_file(&mut self, path: &Path) {
        let folders = ["/dev/shm", "/tmp", "/run", "/var/run", "/var/tmp"];
        let modified = path.metadata().and_then(|data| data.modified());
        if folders.iter().any(|folder| path.starts_with(folder))
            && modified.is_ok_and(|time| time >= self.since)
        {
            self.files.insert(path.to_owned());
        }
    }

    /// What of it is still there.
    fn left(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        let open = table.lines().filter_map(|line| line.split_whitespace().nth(6));
        let sockets =
            open.filter(|inode| self.sockets.contains(*inode)).map(|inode| format!("socket {inode}"));
        let files =
            self.files.iter().filter(|path| path.exists()).map(|path| format!("file {}", path.display()));
        let alive = |pid: &&i32| !matches!(state_of(**pid), None | Some('Z' | 'X'));
        let helpers = self.helpers.iter().filter(alive).map(|pid| format!("process {pid}"));
        sockets.chain(files).chain(helpers).collect()
    }

    fn expect_none_left(&self) {
        let until = Instant::now() + Duration::from_secs(10);
        while !self.left().is_empty() {
            assert!(Instant::now() < until, "left behind: {:?}", self.left());
            std::thread::yield_now();
        }
    }
}

/// Lets some time pass: a death has no moment of its own.
fn some_time(random: &mut Random) {
    let until = Instant::now() + Duration::from_micros(random.below(4000) as u64);
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// An exporter whose threads map, unmap and count.
fn busy_exporter(stage: &Stage) -> (Actor, i64) {
    let mut exporter = stage.actor();
    let segid = exporter.make_all();
    exporter.start(&format!("churn {ARENA:#x} {PAGES} 1"));
    exporter.anon_at(ARENA + (64 << 20), PAGES * PAGE);
    exporter.start(&format!("inc {:#x} {PAGES} {PAGE} 3", ARENA + (64 << 20)));
    (exporter, segid)
}

/// Has an importer look at all that a busy exporter changes.
fn look_around(importer: &mut Actor, segid: i64) {
    for area in [ARENA, ARENA + (64 << 20)] {
        let Ok(apid) = importer.try_get(segid, RDWR) else {
            return;
        };
        let Ok(here) = importer.try_attach(apid, area, PAGES * PAGE) else {
            return;
        };
        importer.start(&format!("scan {here:#x} {PAGES} 5"));
    }
    importer.start(&format!("api {} {segid} {ARENA} {PAGES}", seed()));
}

#[test]
fn exporters_are_killed() {
    let stage = Stage::new("exporters_are_killed", 240);
    let mut random = Random::new(seed());
    let mut importer = stage.actor();
    for _ in 0..rounds(60) {
        let mut traces = Traces::new();
        let (exporter, segid) = busy_exporter(&stage);
        let mut other = stage.actor();
        look_around(&mut other, segid);
        let apid = importer.get(segid);
        let here = importer.attach(apid, ARENA, PAGES * PAGE);
        importer.tell(&format!("look {here:#x} {PAGES}"));
        some_time(&mut random);
        traces.note(exporter.pid());
        exporter.kill();
        importer.answer();
        // Known pages stay, others are holes; nothing else happens.
        let shown = importer.look(here, PAGES);
        assert!(!shown.contains(&Seen::Fault), "{shown:?}");
        let again = importer.look(here, PAGES);
        assert_eq!(shown, again, "what a dead process leaves does not change");
        assert_eq!(importer.try_attach(apid, ARENA, PAGE), Err(libc::ENOENT));
        assert_eq!(importer.try_get(segid, RDWR), Err(libc::ENOENT));
        importer.detach(here);
        assert_eq!(importer.release(apid), Ok(0));
        traces.note(other.pid());
        other.exit();
        traces.expect_none_left();
    }
    importer.exit();
}

#[test]
fn importers_are_killed() {
    let stage = Stage::new("importers_are_killed", 240);
    let mut random = Random::new(seed());
    let (mut exporter, segid) = busy_exporter(&stage);
    let start = exporter.number("progress 0");
    for _ in 0..rounds(100) {
        let mut traces = Traces::new();
        let mut importer = stage.actor();
        look_around(&mut importer, segid);
        some_time(&mut random);
        traces.note(importer.pid());
        importer.kill();
        traces.expect_none_left();
        exporter.ok("hello");
    }
    assert!(exporter.number("progress 0") > start, "the exporter goes on");
    let report = exporter.stop(0);
    assert_eq!((report["wrong"], report["errno"]), (0, 0), "{report:?}");
    let report = exporter.stop(1);
    assert_eq!(report["lost"], 0, "{report:?}");
    // It does not collect descriptors either.
    let open = library_descriptors(exporter.pid()).len();
    assert!(open < 60, "{open} descriptors after 100 importers");
    exporter.exit();
}

#[test]
fn both_are_killed_in_the_middle_of_calls() {
    let stage = Stage::new("both_are_killed_in_the_middle_of_calls", 240);
    let mut random = Random::new(seed() + 7);
    for round in 0..rounds(80) {
        let mut traces = Traces::new();
        let (mut exporter, segid) = busy_exporter(&stage);
        let mut importer = stage.actor();
        importer.anon_at(ARENA, PAGES * PAGE);
        importer.tell(&format!("start api {round} {segid} {ARENA} {PAGES}"));
        exporter.tell("fork nobody-listens");
        some_time(&mut random);
        traces.note(exporter.pid());
        traces.note(importer.pid());
        let (first, second) = if round % 2 == 0 { (exporter, importer) } else { (importer, exporter) };
        first.kill();
        some_time(&mut random);
        second.kill();
        traces.expect_none_left();
    }
}

/// What was reached stays, or nothing does.
fn expect_left_by_the_dead(importer: &mut Actor, here: usize, pages: usize, stamp: u64) {
    if !Engine::of_actors().shares_ordinary_memory() {
        return assert_eq!(importer.look(here, pages), vec![Seen::Hole; pages]);
    }
    importer.check(here, pages, stamp);
    importer.fill(here, 2, 50);
    importer.check(here, 2, 50);
}

#[test]
fn a_dead_exporter_leaves_what_was_seen() {
    let stage = Stage::new("a_dead_exporter_leaves_what_was_seen", 60);
    for orderly in [false, true] {
        let (mut exporter, mut importer) = (stage.actor(), stage.actor());
        let address = exporter.anon(8 * PAGE);
        exporter.fill(address, 8, 20);
        let far = exporter.anon(64 << 20);
        let segid = exporter.make_all();
        let apid = importer.get(segid);
        let here = importer.attach(apid, address, 8 * PAGE);
        let there = importer.attach(apid, far, 64 << 20);
        importer.check(here, 8, 20);
        if orderly {
            exporter.exit();
        } else {
            exporter.kill();
        }
        expect_left_by_the_dead(&mut importer, here, 8, 20);
        let untouched = there + (48 << 20);
        assert!(importer.load(untouched).unwrap_err().is_hole_at(untouched));
        assert_eq!(importer.try_attach(apid, address, PAGE), Err(libc::ENOENT));
        assert_eq!(importer.try_get(segid, RDWR), Err(libc::ENOENT));
        importer.detach(here);
        assert_eq!(importer.release(apid), Ok(0));
        importer.expect_gone(there, 1, 0);
        importer.exit();
    }
}

#[test]
fn an_orderly_end_leaves_nothing() {
    let stage = Stage::new("an_orderly_end_leaves_nothing", 60);
    let mut traces = Traces::new();
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(8 * PAGE);
    exporter.fill(address, 8, 20);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, address, 8 * PAGE);
    importer.check(here, 8, 20);
    traces.note(exporter.pid());
    traces.note(importer.pid());
    importer.exit();
    exporter.exit();
    traces.expect_none_left();
}

#[test]
fn a_stopped_exporter_is_waited_for() {
    let stage = Stage::new("a_stopped_exporter_is_waited_for", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(4 * PAGE);
    exporter.fill(address, 4, 20);
    let far = exporter.anon(64 << 20);
    exporter.fill(far + (48 << 20), 1, 99);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let here = importer.attach(apid, address, 4 * PAGE);
    let there = importer.attach(apid, far, 64 << 20);
    importer.check(here, 4, 20);
    exporter.freeze();
    // A worker asks for what is not known yet; what is known works meanwhile.
    importer.ok(&format!("send 1 look {:#x} 1", there + (48 << 20)));
    importer.ok(&format!("send 2 xpmem get {segid} {RDWR} 1 0"));
    importer.check(here, 4, 20);
    importer.fill(here + PAGE, 1, 7);
    for _ in 0..20 {
        importer.check(here + PAGE, 1, 7);
        if Engine::of_actors().asks_for_pages() {
            assert_eq!(importer.ok("finished 1"), "0", "nobody can know this page");
        }
        if Engine::of_actors().asks_for_permits() {
            assert_eq!(importer.ok("finished 2"), "0", "nobody has given this permit");
        }
    }
    if !Engine::of_actors().asks_for_pages() {
        assert_eq!(importer.ok("receive 1"), format!("{:x}", 99));
    }
    exporter.thaw();
    if Engine::of_actors().asks_for_pages() {
        assert_eq!(importer.ok("receive 1"), format!("{:x}", 99));
    }
    let words = importer.ok("receive 2");
    assert!(!words.starts_with('-'), "{words}");
    exporter.check(address + PAGE, 1, 7);
    exporter.exit();
}

#[test]
fn a_stopped_exporter_that_is_killed() {
    let stage = Stage::new("a_stopped_exporter_that_is_killed", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let far = exporter.anon(64 << 20);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let there = importer.attach(apid, far, 64 << 20);
    exporter.freeze();
    let engine = Engine::of_actors();
    if engine.asks_for_pages() {
        importer.ok(&format!("send 1 look {there:#x} 1"));
    }
    if engine.asks_for_permits() {
        importer.ok(&format!("send 2 xpmem get {segid} {RDWR} 1 0"));
    }
    exporter.kill();
    if engine.asks_for_pages() {
        assert_eq!(importer.ok("receive 1"), "h");
    }
    if engine.asks_for_permits() {
        assert_eq!(importer.ok("receive 2"), format!("-1 {}", libc::ENOENT));
    }
    assert!(importer.load(there).unwrap_err().is_hole_at(there));
    assert_eq!(importer.release(apid), Ok(0));
    importer.exit();
}

#[test]
fn a_wait_for_a_stopped_exporter_can_be_limited() {
    let stage = Stage::new("a_wait_for_a_stopped_exporter_can_be_limited", 60);
    let mut exporter = stage.actor();
    let limited = Setup::with_env("RMAP_PEER_TIMEOUT", "1");
    let mut importer = stage.actor_with(&limited);
    let address = exporter.anon(4 * PAGE);
    exporter.fill(address, 4, 20);
    let far = exporter.anon(64 << 20);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let here = importer.attach(apid, address, 4 * PAGE);
    let there = importer.attach(apid, far, 64 << 20);
    importer.check(here, 4, 20);
    exporter.freeze();
    if Engine::of_actors().asks_for_pages() {
        assert!(importer.load(there).unwrap_err().is_hole_at(there));
    } else {
        assert_eq!(importer.load(there), Ok(0));
    }
    let limited = importer.try_get(segid, RDWR).err();
    assert_eq!(limited, Engine::of_actors().asks_for_permits().then_some(libc::ETIMEDOUT));
    importer.check(here, 4, 20);
    exporter.thaw();
    // It answers again: all is well again.
    let apid = importer.get(segid);
    let here = importer.attach(apid, far, PAGE);
    assert_eq!(importer.load(here), Ok(0));
}

#[test]
fn an_importer_killed_while_it_waits() {
    let stage = Stage::new("an_importer_killed_while_it_waits", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let far = exporter.anon(64 << 20);
    let segid = exporter.make_all();
    let there = importer.get_attach(segid, far, 64 << 20);
    exporter.freeze();
    importer.ok(&format!("send 1 look {there:#x} 1"));
    importer.kill();
    exporter.thaw();
    exporter.fill(far, 4, 1);
    let mut next = stage.actor();
    let here = next.get_attach(segid, far, 4 * PAGE);
    next.check(here, 4, 1);
    exporter.exit();
}

#[test]
fn a_stopped_importer_holds_nobody_up() {
    let stage = Stage::new("a_stopped_importer_holds_nobody_up", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    exporter.anon_at(ARENA, 64 * PAGE);
    exporter.fill(ARENA, 64, 1);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, ARENA, 64 * PAGE);
    importer.check(here, 32, 1);
    importer.freeze();
    exporter.munmap(ARENA, 8 * PAGE);
    exporter.anon_at(ARENA, 4 * PAGE);
    exporter.fill(ARENA, 4, 500);
    exporter.madvise(ARENA + 16 * PAGE, 4 * PAGE, libc::MADV_DONTNEED);
    exporter
        .mremap(
            ARENA + 24 * PAGE,
            4 * PAGE,
            4 * PAGE,
            libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
            ARENA + 100 * PAGE,
        )
        .unwrap();
    exporter.ok("spawn exit 0");
    let mut child = exporter.fork();
    child.check(ARENA, 4, 500);
    child.exit();
    // Another importer is served meanwhile.
    let mut other = stage.actor();
    let there = other.get_attach(segid, ARENA, 64 * PAGE);
    rmap_tests::compare(&exporter, &mut other, ARENA, there, 64).unwrap();
    assert_eq!(exporter.remove(segid), Ok(0));
    let again = exporter.make_all();
    importer.thaw();
    assert!(importer.load(here).unwrap_err().is_hole_at(here), "its segment is gone");
    let here = importer.get_attach(again, ARENA, 64 * PAGE);
    rmap_tests::compare(&exporter, &mut importer, ARENA, here, 64).unwrap();
    exporter.exit();
}

#[test]
fn a_stopped_importer_of_a_file_holds_nobody_up() {
    let stage = Stage::new("a_stopped_importer_of_a_file_holds_nobody_up", 60);
    let (mut exporter, mut importer, mut other) = (stage.actor(), stage.actor(), stage.actor());
    let file = exporter.memfd(32 * PAGE);
    let (rw, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
    exporter.mmap(ARENA, 32 * PAGE, rw, flags, file, 0);
    exporter.fill(ARENA, 32, 1);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, ARENA, 64 * PAGE);
    let there = other.get_attach(segid, ARENA, 64 * PAGE);
    importer.check(here, 32, 1);
    other.check(there, 32, 1);
    importer.freeze();
    for page in 0..16 {
        exporter.anon_at(ARENA + page * PAGE, PAGE);
        exporter.fill(ARENA + page * PAGE, 1, 700 + page as u64);
        rmap_tests::compare(&exporter, &mut other, ARENA, there, 32).unwrap();
    }
    importer.thaw();
    // Its first look may come before it has read what it was told meanwhile; asking for a permit cannot.
    let again = importer.get_attach(segid, ARENA, 64 * PAGE);
    rmap_tests::compare(&exporter, &mut importer, ARENA, again, 32).unwrap();
    rmap_tests::compare(&exporter, &mut importer, ARENA, here, 32).unwrap();
    // And it is waited for again.
    exporter.anon_at(ARENA + 20 * PAGE, PAGE);
    rmap_tests::compare(&exporter, &mut importer, ARENA, here, 32).unwrap();
    exporter.munmap(ARENA + 24 * PAGE, 8 * PAGE);
    assert_eq!(exporter.remove(segid), Ok(0));
    assert!(importer.load(here + 22 * PAGE).unwrap_err().is_hole_at(here + 22 * PAGE), "its segment is gone");
    exporter.exit();
}

#[test]
fn an_exporter_ends_while_an_importer_is_stopped() {
    let stage = Stage::new("an_exporter_ends_while_an_importer_is_stopped", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(4 * PAGE);
    exporter.fill(address, 4, 1);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, address, 4 * PAGE);
    importer.check(here, 4, 1);
    importer.freeze();
    exporter.exit();
    importer.thaw();
    expect_left_by_the_dead(&mut importer, here, 4, 1);
    importer.exit();
}

#[test]
fn an_exporter_stopped_and_continued_again_and_again() {
    let stage = Stage::new("an_exporter_stopped_and_continued_again_and_again", 120);
    let mut random = Random::new(seed());
    let (mut exporter, segid) = busy_exporter(&stage);
    let mut importer = stage.actor();
    look_around(&mut importer, segid);
    for _ in 0..100 {
        exporter.signal(Signal::SIGSTOP);
        some_time(&mut random);
        exporter.signal(Signal::SIGCONT);
        importer.ok("hello");
    }
    let report = exporter.stop(0);
    assert_eq!((report["wrong"], report["errno"]), (0, 0), "{report:?}");
    let report = exporter.stop(1);
    assert_eq!(report["lost"], 0, "{report:?}");
    for thread in 0..2 {
        let report = importer.stop(thread);
        assert_eq!(report["faults"], 0, "{report:?}");
    }
    importer.exit();
    exporter.exit();
}
