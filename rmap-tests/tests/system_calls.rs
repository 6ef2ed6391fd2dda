//! How many system calls the library makes for one call, in all threads of the importer. Counts, not times.

use rmap_tests::{Actor, Entered, PAGE, Reply, Stage, Tracer, maps};

const PAGES: usize = 16;

/// An exporter, an importer with a permit, and memory that another importer has had adopted.
fn scene(stage: &Stage) -> ([Actor; 2], Actor, (i64, i64), usize) {
    let (mut exporter, mut importer, mut other) = (stage.actor(), stage.actor(), stage.actor());
    let address = exporter.anon(PAGES * PAGE);
    exporter.fill(address, PAGES, 1);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let there = other.get_attach(segid, address, PAGES * PAGE);
    other.check(there, PAGES, 1);
    ([exporter, other], importer, (segid, apid), address)
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

/// Waits until a process has made a window onto an exporter's memory, and is through with that.
fn wait_for_window(importer: &mut Actor, segid: i64) {
    importer
        .wait_until("a window", || maps(importer.pid()).iter().any(|mapping| mapping.name == "/memfd:rmap"));
    // The same thread answers this call.
    importer.get(segid);
}

#[test]
fn first_attach_of_adopted_memory() {
    let stage = Stage::new("first_attach_of_adopted_memory", 60);
    let (_others, mut importer, (segid, apid), address) = scene(&stage);
    // It is told that there is such memory, and makes the window ahead.
    wait_for_window(&mut importer, segid);
    let half = PAGES / 2 * PAGE;
    let mut tracer = Tracer::new(&importer);
    for offset in [0, half] {
        let (here, mut calls) = attach(&mut tracer, &mut importer, apid, address + offset, half);
        let (loaded, more) = tracer.watch(&mut importer, &format!("load {here:#x}"));
        assert!(matches!(loaded, Reply::Ok(_)), "{loaded:?}");
        calls.extend(more);
        assert!(calls.is_empty(), "{}", describe(&importer, &calls));
    }
}

#[test]
fn first_attach_of_memory_that_was_adopted_before_the_permit() {
    let stage = Stage::new("first_attach_of_memory_that_was_adopted_before_the_permit", 60);
    let (mut exporter, mut importer, mut other) = (stage.actor(), stage.actor(), stage.actor());
    let address = exporter.anon(PAGES * PAGE);
    exporter.fill(address, PAGES, 1);
    let segid = exporter.make_all();
    let there = other.get_attach(segid, address, PAGES * PAGE);
    other.check(there, PAGES, 1);
    let apid = importer.get(segid);
    wait_for_window(&mut importer, segid);
    let mut tracer = Tracer::new(&importer);
    let (here, calls) = attach(&mut tracer, &mut importer, apid, address, PAGES * PAGE);
    assert!(calls.is_empty(), "{}", describe(&importer, &calls));
    let (loaded, calls) = tracer.watch(&mut importer, &format!("load {here:#x}"));
    assert_eq!(loaded, Reply::Ok("1".into()));
    assert!(calls.is_empty(), "{}", describe(&importer, &calls));
}

#[test]
fn first_attach_of_what_nobody_has_reached() {
    let stage = Stage::new("first_attach_of_what_nobody_has_reached", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(PAGES * PAGE);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let mut tracer = Tracer::new(&importer);
    // The window is made, by the service thread, without a message.
    let (here, calls) = attach(&mut tracer, &mut importer, apid, address, PAGES * PAGE);
    assert!(!calls.iter().any(Entered::is_message), "{}", describe(&importer, &calls));
    let own = calls.iter().filter(|call| call.tid == importer.pid()).count();
    assert!((1..=4).contains(&own), "{}", describe(&importer, &calls));
    let (loaded, _) = tracer.watch(&mut importer, &format!("load {here:#x}"));
    assert_eq!(loaded, Reply::Ok("0".into()));
    // The next in the same GiB has it.
    let (_, calls) = attach(&mut tracer, &mut importer, apid, address + PAGE, PAGE);
    assert!(calls.is_empty(), "{}", describe(&importer, &calls));
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
    let (_others, mut importer, (_, apid), address) = scene(&stage);
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
