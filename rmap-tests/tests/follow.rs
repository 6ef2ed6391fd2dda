//! An attachment shows what the exporter has at these addresses now, whatever it had there before.

use rmap_tests::{Actor, PAGE, Stage, compare, pattern::Seen};

/// Addresses that nothing else uses.
const ARENA: usize = 0x2000_0000_0000;

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const MOVE_TO: i32 = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;

/// An exporter with an arena, and two importers that have all of it in view: one that has touched what is there
/// at the start, and one that has not.
struct Scene {
    exporter: Actor,
    early: Actor,
    late: Actor,
    /// Where the importers have the arena.
    here: [usize; 2],
    pages: usize,
    _stage: Stage,
}

impl Scene {
    /// An arena of 64 pages, of which the first 32 are private memory with stamps from 1.
    fn new(name: &str) -> Self {
        let stage = Stage::new(name, 60);
        let (mut exporter, mut early, mut late) = (stage.actor(), stage.actor(), stage.actor());
        let pages = 64;
        exporter.anon_at(ARENA, 32 * PAGE);
        exporter.fill(ARENA, 32, 1);
        let segid = exporter.make_all();
        let here =
            [early.get_attach(segid, ARENA, pages * PAGE), late.get_attach(segid, ARENA, pages * PAGE)];
        let mut scene = Self { exporter, early, late, here, pages, _stage: stage };
        let shown = scene.early.look(here[0], pages);
        for (page, seen) in shown.into_iter().enumerate() {
            let expected = if page < 32 { Seen::Stamp(page as u64 + 1) } else { Seen::Hole };
            assert_eq!(seen, expected, "page {page}");
        }
        scene
    }

    /// Checks both views against the exporter.
    #[track_caller]
    fn check(&mut self) {
        compare(&self.exporter, &mut self.early, ARENA, self.here[0], self.pages).unwrap();
        compare(&self.exporter, &mut self.late, ARENA, self.here[1], self.pages).unwrap();
    }

    /// Checks what one page of the arena is.
    #[track_caller]
    fn expect(&mut self, page: usize, expected: Seen) {
        let real = self.exporter.oracle(ARENA + page * PAGE, 1)[0].unwrap_or(Seen::Hole);
        assert_eq!(real, expected, "page {page} of the exporter");
        assert_eq!(self.early.look(self.here[0] + page * PAGE, 1), [expected], "page {page}, touched before");
        assert_eq!(
            self.late.look(self.here[1] + page * PAGE, 1),
            [expected],
            "page {page}, not touched before"
        );
    }

    /// Checks that stores through an attachment reach a page, and the other view.
    #[track_caller]
    fn expect_stores(&mut self, page: usize, stamp: u64) {
        self.early.fill(self.here[0] + page * PAGE, 1, stamp);
        self.exporter.check(ARENA + page * PAGE, 1, stamp);
        self.late.fill(self.here[1] + page * PAGE, 1, stamp + 1);
        self.exporter.check(ARENA + page * PAGE, 1, stamp + 1);
        self.early.check(self.here[0] + page * PAGE, 1, stamp + 1);
    }
}

/// The address of a page of the arena.
fn at(page: usize) -> usize {
    ARENA + page * PAGE
}

#[test]
fn unmapped_memory_is_a_hole() {
    let mut scene = Scene::new("unmapped_memory_is_a_hole");
    scene.exporter.munmap(at(4), 3 * PAGE);
    scene.expect(3, Seen::Stamp(4));
    scene.expect(4, Seen::Hole);
    scene.expect(6, Seen::Hole);
    scene.expect(7, Seen::Stamp(8));
    scene.exporter.munmap(at(0), 64 * PAGE);
    scene.expect(0, Seen::Hole);
    scene.check();
}

#[test]
fn memory_mapped_again_is_the_new_memory() {
    let mut scene = Scene::new("memory_mapped_again_is_the_new_memory");
    for round in 0..10 {
        scene.exporter.munmap(at(4), 8 * PAGE);
        scene.expect(5, Seen::Hole);
        scene.exporter.anon_at(at(4), 8 * PAGE);
        scene.expect(4, Seen::Stamp(0));
        scene.exporter.fill(at(4), 8, 1000 + round * 8);
        scene.check();
        scene.expect_stores(11, 70 + round);
    }
}

#[test]
fn memory_mapped_again_without_a_look_between() {
    let mut scene = Scene::new("memory_mapped_again_without_a_look_between");
    for round in 0..10 {
        scene.exporter.munmap(at(4), 8 * PAGE);
        scene.exporter.anon_at(at(4), 8 * PAGE);
        scene.exporter.fill(at(4), 8, 1000 + round * 8);
        scene.check();
    }
}

#[test]
fn memory_mapped_over_is_the_new_memory() {
    let mut scene = Scene::new("memory_mapped_over_is_the_new_memory");
    scene.exporter.anon_at(at(10), 4 * PAGE);
    scene.expect(10, Seen::Stamp(0));
    scene.expect(14, Seen::Stamp(15));
    scene.exporter.fill(at(10), 4, 500);
    scene.expect(11, Seen::Stamp(501));
    scene.expect_stores(12, 600);
    scene.check();
}

#[test]
fn memory_that_appears_in_a_hole() {
    let mut scene = Scene::new("memory_that_appears_in_a_hole");
    scene.exporter.anon_at(at(40), 8 * PAGE);
    scene.expect(40, Seen::Stamp(0));
    scene.exporter.fill(at(41), 7, 90);
    scene.check();
    scene.expect_stores(47, 200);
    scene.expect(48, Seen::Hole);
}

#[test]
fn moved_memory_is_found_where_it_went() {
    let mut scene = Scene::new("moved_memory_is_found_where_it_went");
    assert_eq!(scene.exporter.mremap(at(4), 4 * PAGE, 4 * PAGE, MOVE_TO, at(50)), Ok(at(50)));
    scene.expect(4, Seen::Hole);
    scene.expect(50, Seen::Stamp(5));
    scene.expect(53, Seen::Stamp(8));
    scene.check();
    scene.expect_stores(51, 300);
    // Back, one page further, over what is there.
    assert_eq!(scene.exporter.mremap(at(50), 4 * PAGE, 4 * PAGE, MOVE_TO, at(5)), Ok(at(5)));
    scene.expect(4, Seen::Hole);
    scene.expect(5, Seen::Stamp(5));
    scene.expect(6, Seen::Stamp(301));
    scene.expect(50, Seen::Hole);
    scene.check();
    // And something else in the place it left.
    scene.exporter.anon_at(at(50), 2 * PAGE);
    scene.exporter.fill(at(50), 2, 800);
    scene.check();
}

#[test]
fn moved_memory_that_nobody_looked_at_since() {
    let mut scene = Scene::new("moved_memory_that_nobody_looked_at_since");
    for (from, to) in [(4, 50), (50, 44), (44, 8)] {
        assert_eq!(scene.exporter.mremap(at(from), 4 * PAGE, 4 * PAGE, MOVE_TO, at(to)), Ok(at(to)));
    }
    scene.check();
    scene.expect(8, Seen::Stamp(5));
}

#[test]
fn memory_that_moved_keeps_its_bytes_when_only_half_was_shared() {
    let mut scene = Scene::new("memory_that_moved_keeps_its_bytes_when_only_half_was_shared");
    scene.exporter.anon_at(at(40), 8 * PAGE);
    scene.exporter.fill(at(40), 8, 2000);
    scene.early.check(scene.here[0] + 40 * PAGE, 1, 2000);
    scene.early.check(scene.here[0] + 46 * PAGE, 1, 2006);
    assert_eq!(scene.exporter.mremap(at(40), 8 * PAGE, 8 * PAGE, MOVE_TO, at(50)), Ok(at(50)));
    scene.exporter.check(at(50), 8, 2000);
    scene.check();
}

#[test]
fn memory_that_grows_in_place() {
    let mut scene = Scene::new("memory_that_grows_in_place");
    assert_eq!(scene.exporter.mremap(at(28), 4 * PAGE, 8 * PAGE, 0, 0), Ok(at(28)));
    scene.expect(31, Seen::Stamp(32));
    scene.expect(32, Seen::Stamp(0));
    scene.exporter.fill(at(32), 4, 400);
    scene.check();
    scene.expect_stores(35, 600);
    scene.expect(36, Seen::Hole);
}

#[test]
fn memory_that_grows_where_something_was_before() {
    let mut scene = Scene::new("memory_that_grows_where_something_was_before");
    // The place that it grows into held shared memory a moment ago.
    scene.exporter.munmap(at(8), 4 * PAGE);
    assert_eq!(scene.exporter.mremap(at(4), 4 * PAGE, 8 * PAGE, 0, 0), Ok(at(4)));
    scene.expect(7, Seen::Stamp(8));
    for page in 8..12 {
        scene.exporter.check(at(page), 1, 0);
        scene.expect(page, Seen::Stamp(0));
    }
    scene.check();
}

#[test]
fn memory_that_grows_elsewhere() {
    let mut scene = Scene::new("memory_that_grows_elsewhere");
    assert_eq!(scene.exporter.mremap(at(4), 4 * PAGE, 12 * PAGE, MOVE_TO, at(44)), Ok(at(44)));
    scene.expect(4, Seen::Hole);
    scene.expect(47, Seen::Stamp(8));
    scene.expect(48, Seen::Stamp(0));
    scene.exporter.fill(at(48), 8, 700);
    scene.check();
    scene.expect_stores(55, 800);
}

#[test]
fn memory_that_shrinks() {
    let mut scene = Scene::new("memory_that_shrinks");
    assert_eq!(scene.exporter.mremap(at(4), 8 * PAGE, 3 * PAGE, 0, 0), Ok(at(4)));
    scene.expect(6, Seen::Stamp(7));
    scene.expect(7, Seen::Hole);
    scene.expect(11, Seen::Hole);
    scene.expect(12, Seen::Stamp(13));
    // Shrunk and moved in one step.
    assert_eq!(scene.exporter.mremap(at(16), 8 * PAGE, 2 * PAGE, MOVE_TO, at(60)), Ok(at(60)));
    scene.expect(60, Seen::Stamp(17));
    scene.expect(62, Seen::Hole);
    scene.check();
}

#[test]
fn memory_that_moves_and_leaves_its_mapping() {
    let mut scene = Scene::new("memory_that_moves_and_leaves_its_mapping");
    let flags = MOVE_TO | libc::MREMAP_DONTUNMAP;
    assert_eq!(scene.exporter.mremap(at(4), 4 * PAGE, 4 * PAGE, flags, at(50)), Ok(at(50)));
    scene.exporter.check(at(50), 4, 5);
    for page in 4..8 {
        assert_eq!(scene.exporter.load(at(page)), Ok(0), "the mapping that was left is of zeros");
    }
    scene.expect(4, Seen::Stamp(0));
    scene.expect(51, Seen::Stamp(6));
    scene.exporter.fill(at(4), 4, 100);
    scene.exporter.check(at(50), 4, 5);
    scene.check();
}

#[test]
fn forgotten_memory_is_zero() {
    let mut scene = Scene::new("forgotten_memory_is_zero");
    scene.exporter.madvise(at(4), 4 * PAGE, libc::MADV_DONTNEED);
    scene.expect(4, Seen::Stamp(0));
    scene.expect(8, Seen::Stamp(9));
    scene.exporter.fill(at(5), 2, 700);
    scene.check();
    scene.expect_stores(7, 100);
    scene.exporter.madvise(at(0), 32 * PAGE, libc::MADV_DONTNEED);
    scene.exporter.check(at(31), 1, 0);
    scene.check();
}

#[test]
fn advice_that_keeps_the_bytes() {
    let mut scene = Scene::new("advice_that_keeps_the_bytes");
    let kept = [
        libc::MADV_NORMAL,
        libc::MADV_RANDOM,
        libc::MADV_WILLNEED,
        libc::MADV_COLD,
        libc::MADV_PAGEOUT,
        libc::MADV_HUGEPAGE,
        libc::MADV_NOHUGEPAGE,
        libc::MADV_DONTDUMP,
        libc::MADV_DODUMP,
        libc::MADV_DONTFORK,
        libc::MADV_DOFORK,
        libc::MADV_POPULATE_READ,
        libc::MADV_POPULATE_WRITE,
    ];
    for advice in kept {
        scene.exporter.madvise(at(0), 32 * PAGE, advice);
        scene.exporter.check(at(0), 32, 1);
        scene.check();
    }
    // Freed memory keeps its bytes or becomes zero, at the kernel's choice; what is written then stays. Memory that is
    // shared already cannot be freed so: the kernel says EINVAL.
    let _ = scene.exporter.sys(libc::SYS_madvise, &[at(0), 8 * PAGE, libc::MADV_FREE as usize]);
    scene.exporter.fill(at(0), 8, 50);
    scene.check();
    scene.expect(7, Seen::Stamp(57));
}

#[test]
fn protection_does_not_change_what_is_there() {
    let mut scene = Scene::new("protection_does_not_change_what_is_there");
    scene.exporter.mprotect(at(4), 4 * PAGE, libc::PROT_READ);
    scene.expect(4, Seen::Stamp(5));
    scene.exporter.mprotect(at(4), 2 * PAGE, libc::PROT_NONE);
    scene.exporter.mprotect(at(4), 4 * PAGE, RW);
    scene.exporter.check(at(4), 4, 5);
    scene.check();
    scene.expect_stores(5, 60);
    // Memory that was never to be read until now.
    let hidden = libc::PROT_NONE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    scene.exporter.mmap(at(40), 4 * PAGE, hidden, flags, -1, 0);
    // Whatever it shows now, it must not stick.
    scene.early.look(scene.here[0] + 40 * PAGE, 1);
    scene.exporter.mprotect(at(40), 4 * PAGE, RW);
    scene.exporter.fill(at(40), 4, 300);
    scene.check();
    scene.expect_stores(42, 310);
}

#[test]
fn memory_made_writable_after_it_was_read() {
    let mut scene = Scene::new("memory_made_writable_after_it_was_read");
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    scene.exporter.mmap(at(40), 4 * PAGE, libc::PROT_READ, flags, -1, 0);
    scene.expect(40, Seen::Stamp(0));
    scene.exporter.mprotect(at(40), 4 * PAGE, RW);
    scene.exporter.fill(at(40), 4, 300);
    scene.expect(40, Seen::Stamp(300));
    scene.expect(43, Seen::Stamp(303));
    scene.expect_stores(41, 400);
}

#[test]
fn the_heap_grows_and_shrinks() {
    let stage = Stage::new("the_heap_grows_and_shrinks", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let segid = exporter.make_all();
    let pages = 16;
    let end = exporter.number("sbrk 0").next_multiple_of(PAGE);
    let here = importer.get_attach(segid, end, 4 * pages * PAGE);
    for round in 1..20 {
        let start = exporter.number("sbrk 0");
        let grow = end + pages * PAGE - start;
        assert_eq!(exporter.number(&format!("sbrk {grow}")), start);
        exporter.fill(end, pages, round * 100);
        importer.check(here, pages, round * 100);
        importer.fill(here + 3 * PAGE, 1, 7 + round);
        exporter.check(end + 3 * PAGE, 1, 7 + round);
        assert!(importer.load(here + pages * PAGE).unwrap_err().is_hole_at(here + pages * PAGE));
        // Nobody else moved the end meanwhile, or this takes away what is in use.
        assert_eq!(exporter.number("sbrk 0"), end + pages * PAGE);
        exporter.ok(&format!("sbrk -{grow}"));
        for page in [0, 3, pages - 1] {
            assert!(
                importer.load(here + page * PAGE).unwrap_err().is_hole_at(here + page * PAGE),
                "round {round}"
            );
        }
        if round % 2 == 0 {
            exporter.ok(&format!("sbrk {grow}"));
            exporter.check(end, 1, 0);
            importer.check(here, 1, 0);
            exporter.ok(&format!("sbrk -{grow}"));
        }
    }
}

#[test]
fn blocks_of_malloc_behind_a_cached_window() {
    let stage = Stage::new("blocks_of_malloc_behind_a_cached_window", 120);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let window = 8 << 20;
    let mut cache: Vec<(usize, usize)> = Vec::new();
    let mut hits = 0;
    for round in 0..120_usize {
        let len = [60_000, 100_000, 140_000, 1 << 20, 5 << 20, 300_000][round % 6];
        let block = exporter.number(&format!("malloc {len}"));
        let first = block.next_multiple_of(PAGE);
        let pages = (block + len - first) / PAGE;
        exporter.fill(first, pages, (round * 10_000 + 1) as u64);
        let start = block / window * window;
        let end = (block + len).next_multiple_of(window);
        let known = cache.iter().find(|(remote, here)| *remote == start && *here != 0);
        let here = if let Some((_, here)) = known.filter(|_| end - start == window) {
            hits += 1;
            *here
        } else {
            let here = importer.attach(apid, start, end - start);
            if end - start == window {
                cache.push((start, here));
            }
            here
        };
        importer.check(here + (first - start), pages, (round * 10_000 + 1) as u64);
        importer.fill(here + (first - start), 1, 5);
        exporter.check(first, 1, 5);
        if round % 5 == 0 {
            let block = exporter.number(&format!("realloc {block:#x} {}", len * 2));
            exporter.ok(&format!("free {block:#x}"));
        } else {
            exporter.ok(&format!("free {block:#x}"));
        }
    }
    assert!(hits > 0, "this test is about cached windows: {hits}");
}

#[test]
fn memory_of_a_parent_after_its_child_changed_it() {
    let mut scene = Scene::new("memory_of_a_parent_after_its_child_changed_it");
    let mut child = scene.exporter.fork();
    child.check(at(0), 32, 1);
    child.munmap(at(0), 8 * PAGE);
    child.fill(at(8), 8, 9000);
    child.madvise(at(16), 4 * PAGE, libc::MADV_DONTNEED);
    scene.exporter.check(at(0), 32, 1);
    scene.check();
    scene.exporter.munmap(at(8), 2 * PAGE);
    scene.early.fill(scene.here[0] + 20 * PAGE, 2, 5);
    scene.check();
    child.check(at(8), 8, 9000);
    (16..20).for_each(|page| child.check(at(page), 1, 0));
    child.check(at(20), 12, 21);
    child.exit();
    scene.check();
}

#[test]
fn a_view_of_a_single_page() {
    let mut scene = Scene::new("a_view_of_a_single_page");
    let segid = scene.exporter.make(at(0), 64 * PAGE);
    let apid = scene.late.get(segid);
    let views: Vec<(usize, usize)> =
        [3, 12, 31, 32, 40].map(|page| (page, scene.late.attach(apid, page * PAGE, PAGE))).into();
    let check = |scene: &mut Scene| {
        for (page, here) in &views {
            compare(&scene.exporter, &mut scene.late, at(*page), *here, 1).unwrap();
        }
    };
    check(&mut scene);
    scene.exporter.munmap(at(2), 2 * PAGE);
    check(&mut scene);
    scene.exporter.anon_at(at(3), PAGE);
    scene.exporter.anon_at(at(32), 12 * PAGE);
    scene.exporter.fill(at(32), 12, 70);
    check(&mut scene);
    assert_eq!(scene.exporter.mremap(at(40), PAGE, PAGE, MOVE_TO, at(12)), Ok(at(12)));
    check(&mut scene);
    scene.check();
}

#[test]
fn other_threads_change_the_address_space() {
    let mut scene = Scene::new("other_threads_change_the_address_space");
    for worker in 1..=4_usize {
        let first = worker * 6;
        let unmap = format!("worker {worker} sys {} {:#x} {}", libc::SYS_munmap, at(first), PAGE);
        scene.exporter.ok(&unmap);
        scene.expect(first, Seen::Hole);
        let forget = format!("worker {worker} sys {} {:#x} {} 4", libc::SYS_madvise, at(first + 1), PAGE);
        scene.exporter.ok(&forget);
        scene.expect(first + 1, Seen::Stamp(0));
        scene.exporter.ok(&format!("worker {worker} fill {:#x} 2 {} 1", at(first + 2), worker * 100));
        scene.check();
    }
}

// ---- nothing old after the call ----

fn revocation(way: &str) {
    let stage = Stage::new(way, 120);
    let mut exporter = stage.actor();
    let segid = exporter.make_all();
    let address = at(9);
    let mut importers = stage.actors(2);
    let mut threads = Vec::new();
    for importer in &mut importers {
        let here = importer.get_attach(segid, at(0), 128 * PAGE) + 9 * PAGE;
        threads.push(importer.start(&format!("revoke {here:#x}")));
    }
    exporter.ok(&format!("rounds {way} {address:#x} 400"));
    let mut seen = 0;
    for (importer, thread) in importers.iter_mut().zip(threads) {
        let report = importer.stop(thread);
        seen += report["seen"];
        assert_eq!((report["late"], report["faults"]), (0, 0), "{report:?}");
        if way == "munmap-file" {
            // There are bytes at the address, or there is a hole; nothing in between.
            assert_eq!(report["zeros"], 0, "{report:?}");
        }
    }
    assert!(seen >= 400, "{seen}");
    exporter.exit();
}

#[test]
fn nothing_old_after_munmap() {
    revocation("munmap");
}

#[test]
fn nothing_old_after_madvise() {
    revocation("dontneed");
}

#[test]
fn nothing_old_after_mapping_over() {
    revocation("replace");
}

#[test]
fn nothing_old_after_mremap() {
    revocation("move");
}

#[test]
fn nothing_old_after_shrinking() {
    revocation("shrink");
}

#[test]
fn nothing_old_after_munmap_of_a_file() {
    revocation("munmap-file");
}

#[test]
fn nothing_old_after_mapping_over_a_file() {
    revocation("replace-file");
}
