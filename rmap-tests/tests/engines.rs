//! Which engine serves a process: what it is told to use, and what is there.

use rmap_core::counters::{STALL_LENGTHS, TABLE};
use rmap_tests::{Actor, Engine, Log, PAGE, Setup, Stage};
use std::path::Path;

fn told(engine: &str) -> (Setup, Log) {
    let log = Log::new();
    let env = vec![("RMAP_ENGINE", engine.to_owned()), ("RMAP_LOG", "info".to_owned())];
    (Setup { env, log: Some(log.clone()), ..Setup::default() }, log)
}

#[test]
fn an_engine_that_is_not_there_is_named() {
    let stage = Stage::new("an_engine_that_is_not_there_is_named", 60);
    for (engine, device) in [("mirror", "/dev/rmap"), ("driver", "/dev/xpmem")] {
        if Path::new(device).exists() {
            // Then the other tests use it.
            assert_eq!(stage.actor_with(&told(engine).0).xpmem("init"), Ok(0), "{engine}");
            continue;
        }
        let (setup, log) = told(engine);
        let mut actor = stage.actor_with(&setup);
        let calls = [
            "version",
            "init",
            "make 0 4096 1 0o600",
            "get 77 2 1 0",
            "attach 77 0 4096 0",
            "detach 0",
            "remove 77",
        ];
        for call in calls {
            assert_eq!(actor.xpmem(call), Err(libc::ENOENT), "{engine}: {call}");
        }
        let text = log.text();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("cannot be served") && text.contains(device), "{text}");
    }
}

#[test]
fn an_unknown_engine_is_not_looked_at() {
    let stage = Stage::new("an_unknown_engine_is_not_looked_at", 60);
    let (setup, log) = told("fast");
    let mut actor = stage.actor_with(&setup);
    assert_eq!(actor.xpmem("init"), Ok(0));
    let text = log.text();
    assert!(text.contains("RMAP_ENGINE=fast is not auto, clone, mirror or driver"), "{text}");
    assert!(text.contains("engine: "), "{text}");
}

#[test]
fn processes_of_different_engines_share_memory() {
    let stage = Stage::new("processes_of_different_engines_share_memory", 60);
    let mut engines = vec!["auto", "clone"];
    let there = |device: &str| Path::new(device).exists();
    engines.extend(there("/dev/rmap").then_some("mirror"));
    engines.extend(there("/dev/xpmem").then_some("driver"));
    for (exports, imports) in engines.iter().flat_map(|one| engines.iter().map(move |other| (*one, *other))) {
        let (setup, said) = told(exports);
        let mut exporter = stage.actor_with(&setup);
        let (setup, heard) = told(imports);
        let mut importer = stage.actor_with(&setup);
        let address = exporter.anon(4 * PAGE);
        exporter.fill(address, 4, 10);
        let segid = exporter.make_all();
        // Its own memory as well, so that more than one engine runs in it.
        let own = importer.anon(4 * PAGE);
        importer.fill(own, 4, 90);
        let own_segid = importer.make_all();
        let get = |actor: &mut Actor, segid, who: &str| {
            actor.try_get(segid, rmap_tests::RDWR).unwrap_or_else(|errno| {
                panic!("{who}, {exports} to {imports}: errno {errno}\n{}{}", said.text(), heard.text())
            })
        };
        let apid = get(&mut importer, segid, "the importer");
        let here = importer.attach(apid, address, 4 * PAGE);
        let back = get(&mut exporter, own_segid, "the exporter");
        let there = exporter.attach(back, own, 4 * PAGE);
        importer.check(here, 4, 10);
        exporter.check(there, 4, 90);
        importer.fill(here, 2, 50);
        exporter.check(address, 2, 50);
        exporter.munmap(address, PAGE);
        assert!(importer.load(here).unwrap_err().is_hole_at(here), "{exports} to {imports}");
        let mut child = importer.fork();
        assert_eq!(child.release(apid), Err(libc::EACCES), "{exports} to {imports}");
        let again = get(&mut child, segid, "the importer's child");
        let again = child.attach(again, address + 2 * PAGE, 2 * PAGE);
        child.check(again, 2, 12);
        importer.check(here + 2 * PAGE, 2, 12);
        importer.detach(here);
        assert_eq!(importer.release(apid), Ok(0));
        assert_eq!(exporter.remove(segid), Ok(0));
        assert_eq!(importer.try_get(segid, rmap_tests::RDWR), Err(libc::ENOENT));
    }
}

#[test]
fn a_fork_after_the_first_look_at_the_library() {
    let stage = Stage::new("a_fork_after_the_first_look_at_the_library", 60);
    // No engine runs yet, but has been tried.
    let mut parent = stage.actor();
    assert!(parent.xpmem("version").is_ok());
    let mut child = parent.fork();
    let segments = [&mut parent, &mut child].map(|actor| {
        let address = actor.anon(4 * PAGE);
        actor.fill(address, 4, actor.pid() as u64);
        (actor.make_all(), address, actor.pid() as u64)
    });
    let mut importer = stage.actor();
    for (segid, address, stamp) in segments {
        let here = importer.get_attach(segid, address, 4 * PAGE);
        importer.check(here, 4, stamp);
    }
    let (segid, address, stamp) = segments[0];
    let here = child.get_attach(segid, address, 4 * PAGE);
    child.check(here, 4, stamp);
}

/// The numbers that `rmap_counters` gives an actor's program.
fn counters(actor: &mut Actor) -> impl Fn(&str) -> u64 + use<> {
    let words = actor.ok("counters");
    let words: Vec<u64> = words.split(' ').map(|word| word.parse().expect("a number")).collect();
    move |name| {
        let place = TABLE.iter().position(|counter| counter.name == name).expect("a counter");
        words[STALL_LENGTHS + place]
    }
}

#[test]
fn calls_are_counted_whatever_serves_them() {
    let stage = Stage::new("calls_are_counted_whatever_serves_them", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let memory = exporter.anon(4 * PAGE);
    exporter.fill(memory, 4, 10);
    let (kept, removed) = (exporter.make(memory, 4 * PAGE), exporter.make(memory, PAGE));
    assert_eq!(exporter.remove(removed), Ok(0));
    let permits = [importer.get(kept), importer.get(kept)];
    assert_eq!(importer.release(permits[0]), Ok(0));
    let attached: Vec<usize> = (0..3).map(|page| importer.attach(permits[1], page * PAGE, PAGE)).collect();
    importer.check(attached[1], 1, 11);
    importer.detach(attached[0]);
    importer.detach(attached[2]);
    assert_eq!(importer.release(permits[0]), Err(libc::ENOENT));
    assert_eq!(importer.release(-1), Err(libc::EINVAL));
    let there = counters(&mut exporter);
    assert_eq!((there("segments_made"), there("segments_removed"), there("segments")), (2, 1, 1));
    // The driver gives permits, not its exporters.
    let given = if Engine::of_actors() == Engine::Driver { 0 } else { 2 };
    assert_eq!(there("permits_given"), given);
    let here = counters(&mut importer);
    assert_eq!((here("permits_got"), here("permits_released"), here("permits_held")), (2, 1, 1));
    assert_eq!(here("attach_hits") + here("attach_misses"), 3);
    assert_eq!(here("detach_hits") + here("detach_misses"), 2);
    assert_eq!((here("errors_no_such_id"), here("errors_invalid")), (1, 1));
}
