//! What forked children have, and what their parents and the importers keep.

use rmap_tests::pattern::Seen;
use rmap_tests::{Actor, Engine, PAGE, Report, Setup, Stage, compare, rounds, skip, vm_flags};

const ARENA: usize = 0x2100_0000_0000;
/// Areas are so far apart that each becomes shared by itself.
const STRIDE: usize = 64 << 20;
const AREAS: usize = 16;

fn pages_of_zeroes(pages: usize) -> Vec<Seen> {
    vec![Seen::Stamp(0); pages]
}

/// An exporter with some pages, and an importer that has read them.
fn attached(
    stage: &Stage,
    pages: usize,
    prepare: impl FnOnce(&mut Actor, usize),
) -> (Actor, Actor, usize, usize) {
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(pages * PAGE);
    prepare(&mut exporter, address);
    exporter.fill(address, pages, 20);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, address, pages * PAGE);
    importer.check(here, pages, 20);
    (exporter, importer, address, here)
}

#[test]
fn memory_to_be_wiped_is_wiped_in_every_child() {
    let stage = Stage::new("memory_to_be_wiped_is_wiped_in_every_child", 60);
    let wipe = |actor: &mut Actor, address| actor.madvise(address, 8 * PAGE, libc::MADV_WIPEONFORK);
    let (mut exporter, mut importer, address, here) = attached(&stage, 8, wipe);
    for _ in 0..2 {
        let mut child = exporter.fork();
        assert_eq!(child.look(address, 8), pages_of_zeroes(8));
        // A child of the child, too.
        child.fill(address, 8, 70);
        let mut grandchild = child.fork();
        assert_eq!(grandchild.look(address, 8), pages_of_zeroes(8));
        child.check(address, 8, 70);
        // Shared once more, and it must be known again the next time.
        exporter.check(address, 8, 20);
        importer.check(here, 8, 20);
    }
    // It stays so at another place.
    let place = exporter.place(8 * PAGE);
    let moves = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    exporter.mremap(address, 8 * PAGE, 8 * PAGE, moves, place).unwrap();
    let mut child = exporter.fork();
    assert_eq!(child.look(place, 8), pages_of_zeroes(8));
    exporter.check(place, 8, 20);
}

#[test]
fn memory_kept_from_children_stays_shared() {
    let stage = Stage::new("memory_kept_from_children_stays_shared", 60);
    let keep = |actor: &mut Actor, address| actor.madvise(address, 4 * PAGE, libc::MADV_DONTFORK);
    let (mut exporter, mut importer, address, here) = attached(&stage, 8, keep);
    let child = exporter.fork();
    assert_eq!(child.oracle(address, 4), vec![None; 4]);
    assert_eq!(child.oracle(address + 4 * PAGE, 1), vec![Some(Seen::Stamp(24))]);
    importer.check(here, 8, 20);
    importer.fill(here, 8, 60);
    exporter.check(address, 8, 60);
    // Until the application changes its mind.
    exporter.madvise(address, 4 * PAGE, libc::MADV_DOFORK);
    let mut child = exporter.fork();
    child.check(address, 8, 60);
    child.fill(address, 8, 80);
    exporter.check(address, 8, 60);
    importer.check(here, 8, 60);
}

#[test]
fn a_child_that_the_library_does_not_know_of_shares_nothing() {
    if !Engine::of_actors().shares_ordinary_memory() {
        return skip("a child that the library does not know of", "this engine needs to know of none");
    }
    let stage = Stage::new("a_child_that_the_library_does_not_know_of_shares_nothing", 60);
    let (mut exporter, mut importer, address, here) = attached(&stage, 8, |_, _| {});
    let other = exporter.anon(PAGE);
    exporter.store(other, 5).unwrap();
    // What no importer has touched it has as ever.
    assert_eq!(exporter.ok(&format!("rawfork {other:#x}")), "5");
    assert_eq!(exporter.ok(&format!("rawfork {address:#x}")), (-libc::SIGSEGV).to_string());
    exporter.check(address, 8, 20);
    importer.check(here, 8, 20);
    let mut child = exporter.fork();
    child.check(address, 8, 20);
    // After a fork it is as before.
    importer.check(here, 8, 20);
    assert_eq!(exporter.ok(&format!("rawfork {address:#x}")), (-libc::SIGSEGV).to_string());
}

#[test]
fn advice_to_merge_pages_is_kept() {
    let stage = Stage::new("advice_to_merge_pages_is_kept", 60);
    let mut probe = stage.actor();
    let page = probe.anon(PAGE);
    if probe.sys(libc::SYS_madvise, &[page, PAGE, libc::MADV_MERGEABLE.unsigned_abs() as usize]).is_err() {
        return skip("advice_to_merge_pages_is_kept", "the kernel has no KSM");
    }
    let merge = |actor: &mut Actor, address| actor.madvise(address, 4 * PAGE, libc::MADV_MERGEABLE);
    let (mut exporter, mut importer, address, here) = attached(&stage, 4, merge);
    let child = exporter.fork();
    for actor in [&exporter, &child] {
        let flags = vm_flags(actor.pid(), address);
        assert!(flags.contains(" mg "), "it was advised before the memory was shared:{flags}");
    }
    importer.check(here, 4, 20);
    compare(&exporter, &mut importer, address, here, 4).unwrap();
}

#[track_caller]
fn expect_none(work: &str, report: &Report, counts: &[&str]) {
    for count in counts {
        assert_eq!(report[*count], 0, "{count} of `{work}`: {report:?}");
    }
}

/// Waits until each thread has done so many steps more.
fn progress(actor: &mut Actor, threads: &[usize], steps: usize) {
    for thread in threads {
        let now = |actor: &mut Actor| actor.number(&format!("progress {thread}"));
        let before = now(actor);
        while now(actor) < before + steps {
            std::thread::yield_now();
        }
    }
}

/// Threads of the exporter count across memory of which every other piece is attached, and allocate; importers count in theirs. Children are
/// forked meanwhile, and each must find one moment of it. Nothing is lost to the parent and the importers.
#[test]
fn children_of_a_busy_exporter_have_a_moment_of_it() {
    let stage = Stage::new("children_of_a_busy_exporter_have_a_moment_of_it", 120);
    let (mut exporter, mut importers) = (stage.actor(), stage.actors(2));
    for area in 0..AREAS {
        exporter.anon_at(ARENA + area * STRIDE, PAGE);
    }
    let segid = exporter.make_all();
    let word = |importer: usize, area: usize| area * STRIDE + (100 + importer) * 8;
    let mut works: Vec<String> =
        (0..2).map(|slot| format!("inc {ARENA:#x} {AREAS} {STRIDE} {slot}")).collect();
    works.extend(["heap 1".into(), "heap 2".into(), "threads".into()]);
    works.push(format!("cuts {ARENA:#x} {AREAS} {STRIDE} 2"));
    let ours: Vec<usize> = works.iter().map(|work| exporter.start(work)).collect();
    let mut theirs = Vec::new();
    for (number, importer) in importers.iter_mut().enumerate() {
        let here = importer.get_attach(segid, ARENA, AREAS * STRIDE);
        let areas = (0..AREAS).step_by(4);
        theirs.push(
            areas
                .map(|area| {
                    let place = word(number, area + 2 * number);
                    (importer.start(&format!("add {:#x}", here + place)), place)
                })
                .collect::<Vec<_>>(),
        );
    }
    progress(&mut exporter, &ours[ours.len() - 1..], 20 * rounds(1));
    progress(&mut exporter, &ours, 1);
    let mut added = Vec::new();
    for (importer, threads) in importers.iter_mut().zip(theirs) {
        for (thread, place) in threads {
            let report = importer.stop(thread);
            expect_none("add", &report, &["faults"]);
            added.push((place, report["done"]));
        }
    }
    let reports: Vec<Report> = ours.into_iter().map(|thread| exporter.stop(thread)).collect();
    for (work, report) in works.iter().zip(&reports) {
        match work.split(' ').next() {
            Some("inc") => expect_none(work, report, &["lost"]),
            Some("cuts") => expect_none(work, report, &["torn", "changed", "other"]),
            _ => expect_none(work, report, &["wrong"]),
        }
    }
    for (place, done) in added {
        assert_eq!(exporter.load(ARENA + place), Ok(done), "what an importer has added at {place:#x}");
    }
    exporter.exit();
}

/// What importers store while memory leaves its object for a fork reaches the exporter.
#[test]
fn no_store_of_an_importer_is_lost_to_a_fork() {
    const PAGES: usize = 2048;
    let stage = Stage::new("no_store_of_an_importer_is_lost_to_a_fork", 120);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(PAGES * PAGE);
    exporter.fill_same(address, PAGES, 1);
    let words = [0, 700, PAGES - 1].map(|page| page * PAGE + 8);
    for word in words {
        exporter.store(address + word, 0).unwrap();
    }
    exporter.anon_at(ARENA, PAGE);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, address, PAGES * PAGE);
    let works = [format!("inc {ARENA:#x} 1 {PAGE} 0"), format!("cuts {ARENA:#x} 1 {PAGE} 1")];
    let ours = works.map(|work| exporter.start(&work));
    let theirs = words.map(|word| importer.start(&format!("add {:#x}", here + word)));
    progress(&mut exporter, &ours[1..], 20 * rounds(1));
    for (thread, word) in theirs.into_iter().zip(words) {
        let report = importer.stop(thread);
        expect_none("add", &report, &["faults"]);
        assert_eq!(
            exporter.load(address + word),
            Ok(report["done"]),
            "what an importer has added at {word:#x}"
        );
    }
    expect_none("cuts", &exporter.stop(ours[1]), &["torn", "changed", "other"]);
    exporter.stop(ours[0]);
    exporter.exit();
}

/// Pages of a large buffer: more than a heap of the C library has, and than stays with ended threads.
const LARGE: usize = (96 << 20) / PAGE;
/// Pages of it that are looked at, not near its upper end.
const LOOKED_AT: usize = 4096;

/// An exporter with a large buffer and a small one, and an importer that has read some of both: where they have them.
struct Buffers {
    exporter: Actor,
    importer: Actor,
    large: [usize; 2],
    small: [usize; 2],
}

impl Buffers {
    fn new(stage: &Stage, policy: &str) -> Self {
        let mut exporter = stage.actor_with(&Setup::with_env("RMAP_FORK", policy));
        let mut importer = stage.actor();
        let (large, small) = (exporter.anon(LARGE * PAGE), exporter.anon(8 * PAGE));
        exporter.fill(large, LOOKED_AT, 1000);
        exporter.fill(small, 8, 20);
        let apid = importer.get(exporter.make_all());
        let large = [large, importer.attach(apid, large, LARGE * PAGE)];
        let small = [small, importer.attach(apid, small, 8 * PAGE)];
        importer.check(large[1], LOOKED_AT, 1000);
        importer.check(small[1], 8, 20);
        Self { exporter, importer, large, small }
    }

    /// Whether the large buffer is shared with importers now, and not only when they ask again.
    fn large_is_adopted(&self) -> bool {
        let all = rmap_tests::maps(self.exporter.pid());
        let first = all.iter().find(|mapping| mapping.range.contains(&self.large[0]));
        first.is_some_and(|mapping| mapping.name.contains("memfd:rmap"))
    }

    /// What every child has, whatever the policy.
    fn check_child(&mut self, child: &mut Actor) {
        child.check(self.small[0], 8, 20);
        child.fill(self.small[0], 8, 500);
        self.exporter.check(self.small[0], 8, 20);
        // Its own heap, threads and stacks, and the library.
        let block = child.number("malloc 3000000");
        child.store(block, 7).unwrap();
        child.ok("worker 1 hello");
        let thread = child.start("heap 1");
        progress(child, &[thread], 5);
        expect_none("heap", &child.stop(thread), &["wrong"]);
        child.ok("spawn exit 0");
        let fresh = child.anon(4 * PAGE);
        child.fill(fresh, 4, 70);
        let segid = child.make_all();
        let here = self.importer.get_attach(segid, fresh, 4 * PAGE);
        self.importer.check(here, 4, 70);
        child.fork().exit();
    }

    /// Parent and importer share as before.
    fn check_sharing(&mut self, stamp: u64) {
        self.exporter.fill(self.large[0], LOOKED_AT, stamp);
        self.importer.check(self.large[1], LOOKED_AT, stamp);
        self.importer.fill(self.large[1], 8, 3);
        self.exporter.check(self.large[0], 8, 3);
        self.importer.fill(self.small[1], 8, 20);
        self.exporter.check(self.small[0], 8, 20);
    }
}

#[test]
fn children_get_copies_of_large_buffers() {
    let stage = Stage::new("children_get_copies_of_large_buffers", 120);
    let mut buffers = Buffers::new(&stage, "copy");
    let mut child = buffers.exporter.fork();
    assert!(!buffers.large_is_adopted());
    buffers.check_sharing(9000);
    child.check(buffers.large[0], LOOKED_AT, 1000);
    child.fill(buffers.large[0], LOOKED_AT, 4000);
    buffers.exporter.check(buffers.large[0] + 8 * PAGE, LOOKED_AT - 8, 9008);
    buffers.check_child(&mut child);
    child.exit();
    buffers.exporter.exit();
}

#[test]
fn children_share_large_buffers_until_they_store() {
    if !Engine::of_actors().shares_ordinary_memory() {
        return skip(
            "children_share_large_buffers_until_they_store",
            "this engine leaves forks to the kernel",
        );
    }
    let stage = Stage::new("children_share_large_buffers_until_they_store", 120);
    let mut buffers = Buffers::new(&stage, "share");
    for round in 0..2 {
        buffers.exporter.fill(buffers.large[0], LOOKED_AT, 1000);
        let mut child = buffers.exporter.fork();
        assert!(buffers.large_is_adopted());
        child.check(buffers.large[0], LOOKED_AT, 1000);
        // What the child stores is its own.
        child.fill(buffers.large[0], 8, 4000);
        buffers.exporter.check(buffers.large[0], LOOKED_AT, 1000);
        buffers.importer.check(buffers.large[1], LOOKED_AT, 1000);
        buffers.check_sharing(9000 + round);
        child.check(buffers.large[0], 8, 4000);
        // What it has not stored to is the parent's.
        child.check(buffers.large[0] + 8 * PAGE, LOOKED_AT - 8, 9008 + round);
        buffers.check_child(&mut child);
        child.exit();
    }
    // From another thread than the first, while others run.
    let thread = buffers.exporter.start("heap 1");
    let cutter = buffers.exporter.start(&format!("cuts {:#x} 1 {PAGE} 1", buffers.large[0] + 16 * PAGE));
    let counter = buffers.exporter.start(&format!("inc {:#x} 1 {PAGE} 0", buffers.large[0] + 16 * PAGE));
    progress(&mut buffers.exporter, &[cutter, thread, counter], 3);
    // Children see the counter go on: that is what sharing means.
    expect_none("cuts", &buffers.exporter.stop(cutter), &["torn", "other"]);
    expect_none("heap", &buffers.exporter.stop(thread), &["wrong"]);
    expect_none("inc", &buffers.exporter.stop(counter), &["lost"]);
    buffers.exporter.exit();
}

#[test]
fn children_do_without_large_buffers() {
    if !Engine::of_actors().shares_ordinary_memory() {
        return skip("children_do_without_large_buffers", "this engine leaves forks to the kernel");
    }
    let stage = Stage::new("children_do_without_large_buffers", 120);
    let mut buffers = Buffers::new(&stage, "drop");
    for round in 0..2 {
        let mut child = buffers.exporter.fork();
        assert!(buffers.large_is_adopted());
        assert_eq!(child.oracle(buffers.large[0], 4), vec![None; 4]);
        buffers.check_sharing(9000 + round);
        buffers.check_child(&mut child);
        child.exit();
    }
    buffers.exporter.exit();
}

/// A stack may be as long as a buffer, and lie in what looks like one.
#[test]
fn children_get_copies_of_long_stacks() {
    for policy in ["share", "drop"] {
        let stage = Stage::new("children_get_copies_of_long_stacks", 120);
        let mut buffers = Buffers::new(&stage, policy);
        let (address, len) = (buffers.large[0], LARGE * PAGE);
        let thread = buffers.exporter.start(&format!("on {address:#x} {len:#x} ticking 500 recurse"));
        progress(&mut buffers.exporter, &[thread], 10);
        let mut child = buffers.exporter.fork();
        child.check(address, LOOKED_AT, 1000);
        child.fill(address, 8, 4000);
        buffers.exporter.check(address, 8, 1000);
        child.exit();
        expect_none("recurse", &buffers.exporter.stop(thread), &["wrong"]);
        buffers.exporter.exit();
    }
}
