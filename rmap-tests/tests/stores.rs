//! Nothing is lost that importers store while the library moves memory from one place to another.

use rmap_tests::{Actor, Engine, PAGE, Report, Stage, rounds, skip};

/// Several huge pages, so that a move takes a while.
const PAGES: usize = 2048;

/// Where threads of an importer add to words: in the first page, in the midst, and in the last huge page.
const WORDS: [usize; 3] = [8, 700 * PAGE + 16, (PAGES - 400) * PAGE + 24];

/// Memory of an exporter with words to add to.
fn memory(exporter: &mut Actor, pages: usize) -> usize {
    let address = exporter.anon(pages * PAGE);
    exporter.fill_same(address, pages, 1);
    for word in WORDS {
        exporter.store(address + word, 0).unwrap();
    }
    address
}

/// A word of a process as another sees it.
fn word(exporter: &Actor, address: usize) -> u64 {
    let page = exporter.page(address & !(PAGE - 1)).expect("a page");
    let at = address % PAGE;
    u64::from_ne_bytes(page[at..at + 8].try_into().expect("a word"))
}

fn stop_all(importer: &mut Actor, threads: [usize; 3]) -> [Report; 3] {
    threads.map(|thread| importer.stop(thread))
}

/// Waits until each thread has added more.
fn progress(importer: &mut Actor, threads: &[usize]) {
    for thread in threads {
        let now = |importer: &mut Actor| importer.number(&format!("progress {thread}"));
        let before = now(importer);
        while now(importer) < before + 100 {
            std::thread::yield_now();
        }
    }
}

/// Memory that a narrower permit needs moves to an object of that permit's.
#[test]
fn no_store_is_lost_to_a_narrower_permit() {
    let stage = Stage::new("no_store_is_lost_to_a_narrower_permit", 240);
    let (mut exporter, mut importer, mut other) = (stage.actor(), stage.actor(), stage.actor());
    let address = memory(&mut exporter, PAGES);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, address, PAGES * PAGE);
    let threads = WORDS.map(|word| importer.start(&format!("add {:#x}", here + word)));
    // Each is narrower than the last, and all end in a huge page. In the end all is private again, and the wide permit has it adopted anew.
    const NARROWER: usize = 8;
    const CUT: usize = 100;
    for _ in 0..rounds(8) {
        let mut segments = Vec::new();
        for cut in CUT..CUT + NARROWER {
            progress(&mut importer, &threads);
            let narrow = exporter.make(address, (PAGES - cut) * PAGE);
            let apid = other.get(narrow);
            let there = other.attach(apid, 0, (PAGES - cut) * PAGE);
            for word in WORDS {
                assert!(other.load(there + word).is_ok());
            }
            segments.push((narrow, apid));
        }
        for (narrow, apid) in segments {
            assert_eq!(other.release(apid), Ok(0));
            assert_eq!(exporter.remove(narrow), Ok(0));
        }
    }
    let reports = stop_all(&mut importer, threads);
    for (at, report) in WORDS.into_iter().zip(&reports) {
        assert_eq!(report["faults"], 0, "{report:?}");
        assert_eq!(word(&exporter, address + at), report["done"], "what was added at {at:#x}");
    }
    exporter.exit();
}

/// `mremap` takes memory along; its importers find it where it has gone.
#[test]
fn no_store_is_lost_to_a_move() {
    let name = "no_store_is_lost_to_a_move";
    let stage = Stage::new(name, 240);
    if Engine::of_actors() != Engine::Clone {
        return skip(name, "nothing of the library's moves memory");
    }
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let from = memory(&mut exporter, PAGES);
    let to = exporter.place(PAGES * PAGE);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let places = [from, to].map(|place| importer.attach(apid, place, PAGES * PAGE));
    // The kernel moves one mapping at a time: all of it is adopted.
    importer.look(places[0], PAGES);
    // Where nothing is now, they fault.
    let threads = places.map(|place| WORDS.map(|word| importer.start(&format!("add {:#x}", place + word))));
    let moves = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    for _ in 0..rounds(8) {
        for (number, (from, to)) in [(from, to), (to, from)].into_iter().enumerate() {
            progress(&mut importer, &threads[number]);
            exporter.mremap(from, PAGES * PAGE, PAGES * PAGE, moves, to).unwrap();
        }
    }
    let [here, there] = threads.map(|threads| stop_all(&mut importer, threads));
    for (at, (here, there)) in WORDS.into_iter().zip(here.iter().zip(&there)) {
        assert_eq!(word(&exporter, from + at), here["done"] + there["done"], "what was added at {at:#x}");
    }
    exporter.exit();
}
