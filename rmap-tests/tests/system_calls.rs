//! How many system calls the library makes for one call, in all threads of the importer. Counts, not times.

use rmap_tests::{Actor, Entered, PAGE, Reply, Stage, Tracer};

const PAGES: usize = 16;

/// An exporter, an importer with a permit, and memory that another importer has had adopted.
fn scene(stage: &Stage) -> ([Actor; 2], Actor, i64, usize) {
    let (mut exporter, mut importer, mut other) = (stage.actor(), stage.actor(), stage.actor());
    let address = exporter.anon(PAGES * PAGE);
    exporter.fill(address, PAGES, 1);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let there = other.get_attach(segid, address, PAGES * PAGE);
    other.check(there, PAGES, 1);
    ([exporter, other], importer, apid, address)
}

/// Attaches, and gives the address and the system calls.
fn attach(
    tracer: &mut Tracer,
    importer: &mut Actor,
    apid: i64,
    address: usize,
    len: usize,
) -> (usize, Vec<Entered>) {
    let command = format!("xpmem attach {apid} {address:#x} {len:#x} 0");
    let (reply, calls) = tracer.watch(importer, &command);
    let Reply::Ok(words) = reply else { panic!("{reply:?} to {command}") };
    let (here, _) = words.split_once(' ').expect("an address and an errno");
    (here.parse().expect("an address"), calls)
}

fn describe(importer: &Actor, calls: &[Entered]) -> String {
    let thread = |call: &Entered| if call.tid == importer.pid() { "" } else { "service: " };
    let words: Vec<String> = calls.iter().map(|call| format!("{}{}", thread(call), call.name())).collect();
    format!("{} system calls: {}", calls.len(), words.join(", "))
}

#[test]
fn first_attach_of_adopted_memory() {
    let stage = Stage::new("first_attach_of_adopted_memory", 60);
    let (_others, mut importer, apid, address) = scene(&stage);
    let half = PAGES / 2 * PAGE;
    let mut tracer = Tracer::new(&importer);
    // The first in a GiB of the exporter's makes the window. The bytes come with it.
    for (offset, made) in [(0, true), (half, false)] {
        let (here, mut calls) = attach(&mut tracer, &mut importer, apid, address + offset, half);
        let (loaded, more) = tracer.watch(&mut importer, &format!("load {here:#x}"));
        assert!(matches!(loaded, Reply::Ok(_)), "{loaded:?}");
        calls.extend(more);
        let messages = calls.iter().filter(|call| call.is_message()).count();
        assert_eq!(messages, 0, "{}", describe(&importer, &calls));
        assert_eq!(!calls.is_empty(), made, "{}", describe(&importer, &calls));
    }
}

#[test]
fn first_attach_of_huge_pages() {
    const HUGE: usize = 2 << 20;
    const BLOCKS: usize = 4;
    let stage = Stage::new("first_attach_of_huge_pages", 60);
    let (mut exporter, mut importer, mut other) = (stage.actor(), stage.actor(), stage.actor());
    let address = exporter.place((BLOCKS + 1) * HUGE).next_multiple_of(HUGE);
    exporter.anon_at(address, BLOCKS * HUGE);
    exporter.fill(address, BLOCKS * HUGE / PAGE, 1);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let there = other.get_attach(segid, address, BLOCKS * HUGE);
    other.check(there, BLOCKS * HUGE / PAGE, 1);
    let mut tracer = Tracer::new(&importer);
    let (here, mut calls) = attach(&mut tracer, &mut importer, apid, address, BLOCKS * HUGE);
    for block in 0..BLOCKS {
        let (loaded, more) = tracer.watch(&mut importer, &format!("load {:#x}", here + block * HUGE));
        assert_eq!(loaded, Reply::Ok((1 + block * HUGE / PAGE).to_string()));
        calls.extend(more);
    }
    // Where the huge pages are, for all of them, if that is not where its window looks anyway.
    let messages = calls.iter().filter(|call| call.is_message()).count();
    assert!(messages <= 1, "{}", describe(&importer, &calls));
}

#[test]
fn attach_and_detach_of_memory_attached_before() {
    let stage = Stage::new("attach_and_detach_of_memory_attached_before", 60);
    let (_others, mut importer, apid, address) = scene(&stage);
    let first = importer.attach(apid, address, PAGES * PAGE);
    importer.check(first, PAGES, 1);
    importer.detach(first);
    let mut tracer = Tracer::new(&importer);
    for _ in 0..3 {
        let (here, calls) = attach(&mut tracer, &mut importer, apid, address, PAGES * PAGE);
        assert!(calls.is_empty(), "attach: {}", describe(&importer, &calls));
        let (loaded, calls) = tracer.watch(&mut importer, &format!("load {here:#x}"));
        assert_eq!(loaded, Reply::Ok("1".into()));
        assert!(calls.is_empty(), "load: {}", describe(&importer, &calls));
        let (detached, calls) = tracer.watch(&mut importer, &format!("xpmem detach {here:#x}"));
        assert_eq!(detached, Reply::Ok("0 0".into()));
        assert!(calls.is_empty(), "detach: {}", describe(&importer, &calls));
    }
}
