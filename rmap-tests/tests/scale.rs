//! Many attachments, many processes: what is shared stays right, and mappings and descriptors stay within bounds.

use rmap_tests::{Actor, PAGE, Reply, Stage, maps};

fn descriptors(actor: &Actor) -> usize {
    rmap_tests::library_descriptors(actor.pid()).len()
}

/// A million pairs over a heap of ten thousand pieces, and two importers that do so. `vm.max_map_count` is 65530 where nobody has
/// raised it.
#[test]
fn a_million_pairs_leave_few_mappings() {
    const PIECES: usize = 10_000;
    const PAGES: usize = 3;
    const CYCLES: usize = 1_000_000;
    /// Those of one command, which has a time limit.
    const AT_ONCE: usize = 5_000;
    let stage = Stage::new("a_million_pairs_leave_few_mappings", 600);
    let (mut exporter, mut importers) = (stage.actor(), stage.actors(2));
    let heap = exporter.anon(PIECES * PAGES * PAGE);
    exporter.fill(heap, PIECES * PAGES, 1);
    let segid = exporter.make_all();
    let apids: Vec<i64> = importers.iter_mut().map(|importer| importer.get(segid)).collect();
    let before = [maps(exporter.pid()).len(), maps(importers[0].pid()).len()];
    for round in 0..CYCLES / AT_ONCE / importers.len() {
        for (importer, apid) in importers.iter_mut().zip(&apids) {
            importer.tell(&format!("cycle {apid} {heap:#x} {PIECES} {PAGES} {AT_ONCE} {round}"));
        }
        for importer in &mut importers {
            assert_eq!(importer.answer(), Reply::Ok(String::new()));
        }
    }
    // In the exporter one mapping for what is adopted in a piece, if nothing merges.
    let here = maps(exporter.pid()).len();
    assert!(here < before[0] + PIECES, "the exporter has {here} mappings, had {}", before[0]);
    // In an importer nothing is attached; the library may keep what it can use again.
    for importer in &importers {
        let there = maps(importer.pid()).len();
        assert!(there < before[1] + PIECES, "an importer has {there} mappings, had {}", before[1]);
    }
}

/// One buffer, and many processes that attach it at once, come and go.
#[test]
fn sixty_four_importers_of_one_exporter() {
    const IMPORTERS: usize = 64;
    const PAGES: usize = 64;
    let stage = Stage::new("sixty_four_importers_of_one_exporter", 120);
    let mut exporter = stage.actor();
    let address = exporter.anon(PAGES * PAGE);
    exporter.fill(address, PAGES, 7);
    let segid = exporter.make_all();
    let mut first = stage.actor();
    first.get_attach(segid, address, PAGE);
    let before = descriptors(&exporter);
    let mut importers = stage.actors(IMPORTERS);
    // All of them ask at the same time.
    for importer in &mut importers {
        importer.tell(&format!("xpmem get {segid} {} {} 0", rmap_tests::RDWR, rmap_tests::PERMIT_MODE));
    }
    let apids: Vec<i64> = importers.iter_mut().map(|importer| number(importer.answer())).collect();
    for (importer, apid) in importers.iter_mut().zip(&apids) {
        importer.tell(&format!("xpmem attach {apid} {address:#x} {:#x} 0", PAGES * PAGE));
    }
    let attached: Vec<usize> =
        importers.iter_mut().map(|importer| number(importer.answer()).cast_unsigned() as usize).collect();
    for (importer, here) in importers.iter_mut().zip(&attached) {
        importer.tell(&format!("check {here:#x} {PAGES} 7 1"));
    }
    for importer in &mut importers {
        assert_eq!(importer.answer(), Reply::Ok(String::new()));
    }
    // What one stores all see.
    for (number, (importer, here)) in importers.iter_mut().zip(&attached).enumerate() {
        assert_eq!(importer.store(here + number * PAGE, 1000 + number as u64), Ok(()));
    }
    for (importer, here) in importers.iter_mut().zip(&attached) {
        for number in [0, 31, IMPORTERS - 1] {
            assert_eq!(importer.load(here + number * PAGE), Ok(1000 + number as u64));
        }
    }
    let more = descriptors(&exporter) - before;
    assert!(more <= 2 * IMPORTERS, "{more} more descriptors for {IMPORTERS} importers");
    for importer in importers {
        importer.exit();
    }
    exporter.wait_until("the exporter lets go of those that have ended", || descriptors(&exporter) <= before);
    assert_eq!(exporter.load(address + 5 * PAGE), Ok(1005));
}

fn number(reply: Reply) -> i64 {
    let Reply::Ok(words) = reply else { panic!("{reply:?}") };
    words.split(' ').next().and_then(|word| word.parse().ok()).expect("a number")
}

/// Everybody shows everybody else a page.
#[test]
fn all_to_all_among_thirty_two() {
    const PROCESSES: usize = 32;
    let stage = Stage::new("all_to_all_among_thirty_two", 120);
    let mut actors = stage.actors(PROCESSES);
    let mut pages = Vec::new();
    for (number, actor) in actors.iter_mut().enumerate() {
        let page = actor.anon(PAGE);
        actor.fill(page, 1, 1 + number as u64);
        pages.push((actor.make_all(), page));
    }
    // A round has each process work with another one, all at the same time.
    let turns = |number: usize, round: usize| (number + round) % PROCESSES;
    for round in 1..PROCESSES {
        let mut tell = |command: &dyn Fn(usize) -> String| -> Vec<i64> {
            for (number, actor) in actors.iter_mut().enumerate() {
                actor.tell(&command(number));
            }
            actors.iter_mut().map(|actor| self::number(actor.answer())).collect()
        };
        let (rw, mode) = (rmap_tests::RDWR, rmap_tests::PERMIT_MODE);
        let apids = tell(&|at| format!("xpmem get {} {rw} {mode} 0", pages[turns(at, round)].0));
        let here =
            tell(&|at| format!("xpmem attach {} {:#x} {PAGE} 0", apids[at], pages[turns(at, round)].1));
        let found = tell(&|at| format!("load {:#x}", here[at]));
        for (number, found) in found.into_iter().enumerate() {
            assert_eq!(found, 1 + turns(number, round) as i64, "process {number} in round {round}");
        }
    }
    for actor in &actors {
        let open = descriptors(actor);
        // One for who has a permit of this process, two for whose permit it has, and about 20.
        assert!(open <= 3 * PROCESSES + 64, "{open} descriptors for {PROCESSES} processes");
    }
}

/// Pieces of a heap of which each is an attachment by itself, all at the same time.
#[test]
fn twenty_thousand_attachments() {
    const PIECES: usize = 20_000;
    const APART: usize = 2 * PAGE;
    let stage = Stage::new("twenty_thousand_attachments", 120);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let heap = exporter.anon(PIECES * APART);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let mut attached = Vec::with_capacity(PIECES);
    for piece in 0..PIECES {
        attached.push(importer.attach(apid, heap + piece * APART, PAGE));
    }
    for piece in [0, 1, PIECES / 2, PIECES - 1] {
        exporter.store(heap + piece * APART, piece as u64 + 1).expect("memory of the exporter's");
        assert_eq!(importer.load(attached[piece]), Ok(piece as u64 + 1));
    }
    let most = maps(importer.pid()).len();
    assert!(most < PIECES + 1000, "{most} mappings for {PIECES} attachments");
    for here in attached {
        importer.detach(here);
    }
    // It goes on as before.
    let here = importer.attach(apid, heap, PAGE);
    assert_eq!(importer.load(here), Ok(1));
}
