//! Nothing is lost that importers store while the library moves memory from one place to another.

use rmap_tests::{Action, Actor, Call, Caller, Engine, PAGE, Plan, Report, Stage, Supervisor, Watch, rounds, skip};

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

/// An adoption that fails half way gives back what importers have stored to the half that was done.
#[test]
fn no_store_is_lost_to_an_adoption_that_fails() {
    let name = "no_store_is_lost_to_an_adoption_that_fails";
    let stage = Stage::new(name, 60);
    if Engine::of_actors() != Engine::Clone {
        return skip(name, "nothing of the library's moves memory");
    }
    const SOME: usize = 8;
    const HOLE: usize = 3;
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let write = Call { caller: Caller::Service, name: "pwrite64".into() };
    let plan = Plan { call: write, nth: 1, times: 1, action: Action::Hold(libc::ENOMEM) };
    let supervisor = Supervisor::new(&mut exporter, Some(plan));
    let place = exporter.place(4 * SOME * PAGE);
    let [first, second] = [place, place + 2 * SOME * PAGE];
    for address in [first, second] {
        exporter.anon_at(address, SOME * PAGE);
    }
    exporter.fill(first, SOME, 10);
    // Two runs of pages, which are copied one after the other.
    exporter.fill(second, HOLE, 20);
    exporter.fill(second + (HOLE + 1) * PAGE, SOME - HOLE - 1, 20 + HOLE as u64 + 1);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let [first, there] = [first, second].map(|address| importer.attach(apid, address, SOME * PAGE));
    // From here on the importer maps the object.
    importer.check(first, SOME, 10);
    supervisor.watch(Watch::Library);
    let last = there + (SOME - 1) * PAGE;
    let asking = importer.start(&format!("add {last:#x}"));
    while !supervisor.has_happened() {
        std::thread::yield_now();
    }
    importer.store(there, 7).unwrap();
    supervisor.let_go();
    // It may have been answered twice: that there is nothing, and then the page.
    importer.stop(asking);
    assert_eq!(word(&exporter, second), 7);
    // The rest is as it was, and can be had now.
    exporter.check(second + PAGE, HOLE - 1, 21);
    importer.check(there + PAGE, HOLE - 1, 21);
    assert_eq!(importer.load(there), Ok(7));
    exporter.exit();
}
