//! What the library writes to standard error: never, unless asked to; one line for each event; and never at the price of anybody's progress.

use rmap_tests::{Actor, Engine, Log, PAGE, RDONLY, RDWR, Setup, Stage, skip};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};

const PAGES: usize = 16;

/// Shares memory, changes it, and ends it: all threads of both processes come to say something.
fn work(exporter: &mut Actor, importer: &mut Actor) {
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    for round in 0..4 {
        let memory = exporter.anon(PAGES * PAGE);
        exporter.fill(memory, PAGES, 20);
        let here = importer.attach(apid, memory, PAGES * PAGE);
        importer.check(here, PAGES, 20);
        // This waits for the service thread.
        exporter.munmap(memory, PAGES * PAGE);
        assert!(importer.load(here).unwrap_err().is_hole_at(here), "round {round}");
        assert_eq!(importer.try_get(segid + 1, RDWR), Err(libc::ENOENT));
        importer.detach(here);
    }
    let child = exporter.fork();
    child.exit();
    assert_eq!(exporter.remove(segid), Ok(0));
    assert_eq!(importer.release(apid), Ok(0));
}

fn pipe() -> (File, File) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    (File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer)))
}

fn set_waiting(file: &File, waiting: bool) {
    let flags = if waiting { 0 } else { libc::O_NONBLOCK };
    // SAFETY: takes numbers only.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) }, 0);
}

/// Fills a pipe to the last byte.
fn fill(writer: &mut File) {
    set_waiting(writer, false);
    while writer.write(&[b'x'; 4096]).is_ok() {}
    while writer.write(b"x").is_ok() {}
    set_waiting(writer, true);
}

fn tracing_to(writer: &File) -> Setup {
    let stderr = OwnedFd::from(writer.try_clone().expect("another descriptor"));
    Setup { log: Some(Log::to(stderr)), ..Setup::with_env("RMAP_LOG", "trace") }
}

#[test]
fn a_pipe_that_nobody_reads_stops_nobody() {
    let stage = Stage::new("a_pipe_that_nobody_reads_stops_nobody", 60);
    let (mut reader, mut writer) = pipe();
    fill(&mut writer);
    let setup = tracing_to(&writer);
    let (mut exporter, mut importer) = (stage.actor_with(&setup), stage.actor_with(&setup));
    work(&mut exporter, &mut importer);
    // What could not be said is at least counted.
    set_waiting(&reader, false);
    let mut told = Vec::new();
    let _ = reader.read_to_end(&mut told);
    assert!(!told.contains(&b'\n'), "a line in a full pipe");
    work(&mut exporter, &mut importer);
    exporter.exit();
    importer.exit();
    told.clear();
    drop((writer, setup));
    set_waiting(&reader, true);
    reader.read_to_end(&mut told).unwrap();
    let told = String::from_utf8(told).unwrap();
    assert!(told.contains("lines were lost"), "{told}");
    assert!(told.lines().all(|line| line.starts_with("rmap ")), "{told}");
}

#[test]
fn a_reader_that_has_gone_ends_nobody() {
    let stage = Stage::new("a_reader_that_has_gone_ends_nobody", 60);
    let (reader, writer) = pipe();
    drop(reader);
    let setup = tracing_to(&writer);
    let (mut exporter, mut importer) = (stage.actor_with(&setup), stage.actor_with(&setup));
    work(&mut exporter, &mut importer);
    exporter.exit();
    importer.exit();
}

#[test]
fn a_file_in_the_place_of_standard_error_is_left_alone() {
    let stage = Stage::new("a_file_in_the_place_of_standard_error_is_left_alone", 60);
    // Closed before the library is used, and after that.
    for early in [true, false] {
        let log = Log::new();
        let setup = Setup::logging("trace", &log);
        let (mut exporter, mut importer) = (stage.actor_with(&setup), stage.actor_with(&setup));
        for actor in [&mut exporter, &mut importer] {
            if early {
                assert_eq!(actor.sys(libc::SYS_close, &[2]), Ok(0));
            }
            actor.make_all();
            if !early {
                assert_eq!(actor.sys(libc::SYS_close, &[2]), Ok(0));
            }
            assert_eq!(actor.memfd(PAGE), 2, "the lowest number that is free");
        }
        assert_eq!(log.text().is_empty(), early, "{}", log.text());
        work(&mut exporter, &mut importer);
        for actor in [&mut exporter, &mut importer] {
            let offset = actor.sys(libc::SYS_lseek, &[2, 0, libc::SEEK_CUR as usize]);
            assert_eq!(offset, Ok(0), "something was written");
        }
        exporter.exit();
        importer.exit();
        // The library's thread has what was standard error at first.
        assert_eq!(log.lines_with("is a hole").is_empty(), early, "{}", log.text());
    }
}

#[test]
fn nothing_is_said_unless_asked_for() {
    let stage = Stage::new("nothing_is_said_unless_asked_for", 60);
    let log = Log::new();
    for setup in [Setup::default(), Setup::with_env("RMAP_LOG", "loud")] {
        let setup = Setup { log: Some(log.clone()), ..setup };
        let (mut exporter, mut importer) = (stage.actor_with(&setup), stage.actor_with(&setup));
        work(&mut exporter, &mut importer);
        exporter.exit();
        importer.exit();
    }
    assert_eq!(log.text(), "");
}

#[test]
fn each_level_has_those_above_it() {
    let stage = Stage::new("each_level_has_those_above_it", 60);
    const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
    for (number, level) in LEVELS.iter().enumerate() {
        let log = Log::new();
        let setup = Setup::logging(level, &log);
        let (mut exporter, mut importer) = (stage.actor_with(&setup), stage.actor_with(&setup));
        work(&mut exporter, &mut importer);
        exporter.exit();
        importer.exit();
        let text = log.text();
        for line in text.lines() {
            let mut words = line.split(' ');
            assert_eq!(words.next(), Some("rmap"), "{line}");
            assert!(words.next().is_some_and(|pid| pid.parse::<u32>().is_ok()), "{line}");
            let said = words.next().and_then(|word| word.strip_suffix(':')).unwrap_or_default();
            let place = LEVELS.iter().position(|level| *level == said);
            assert!(place.is_some_and(|place| place <= number), "at {level}: {line}");
        }
        // Nothing is wrong here, so there is nothing to say before info.
        assert_eq!(text.is_empty(), number < 2, "at {level}: {text}");
    }
}

/// What an application gets as an error, or as a signal, has one line at debug, in its own process.
#[test]
fn each_refusal_has_its_reason() {
    let stage = Stage::new("each_refusal_has_its_reason", 60);
    let log = Log::new();
    let mut exporter = stage.actor();
    let mut actor = stage.actor_with(&Setup::logging("debug", &log));
    let memory = exporter.anon(2 * PAGE);
    exporter.munmap(memory + PAGE, PAGE);
    let segid = exporter.make(memory, 2 * PAGE);
    let foreign = exporter.get(segid);
    let kept = exporter.try_make(memory, PAGE, 0).unwrap();
    let apid = actor.get(segid);
    let reader = actor.try_get(segid, RDONLY).unwrap();
    let here = actor.attach(apid, 0, 2 * PAGE);
    let own = actor.anon(PAGE);
    let mut said = 0;
    let mut refused = |actor: &mut Actor, call: &str, why: &str, errno: i32| {
        assert_eq!(actor.xpmem(call), Err(errno), "{call}");
        let name = call.split(' ').next().unwrap();
        let lines = log.lines_with(&format!("debug: xpmem_{name} fails: "));
        let all = log.lines_with(" fails: ");
        said += 1;
        assert_eq!(all.len(), said, "{call}: {}", log.text());
        let last = lines.last().unwrap_or_else(|| panic!("{call}: {}", log.text()));
        assert!(last.contains(why), "{call}: {last}");
    };
    let (invalid, denied, gone) = (libc::EINVAL, libc::EACCES, libc::ENOENT);
    refused(&mut actor, &format!("make {memory} {PAGE} 2 0o600"), "permit type", invalid);
    refused(&mut actor, &format!("make {memory} {PAGE} 1 0o1000"), "octal mode", invalid);
    refused(&mut actor, &format!("make {memory} 0 1 0o600"), "size is 0", invalid);
    refused(&mut actor, &format!("make {} {PAGE} 1 0o600", usize::MAX - PAGE + 1), "", invalid);
    refused(&mut actor, &format!("make {} {PAGE} 1 0o600", memory + 1), "whole pages", invalid);
    refused(&mut actor, "remove -1", "not a segment id", invalid);
    refused(&mut actor, &format!("remove {segid}"), "another process", denied);
    refused(&mut actor, "get -1 2 1 0", "not a segment id", invalid);
    refused(&mut actor, &format!("get {segid} 7 1 0"), "XPMEM_RDONLY", invalid);
    refused(&mut actor, &format!("get {segid} 2 7 0"), "permit type", invalid);
    refused(&mut actor, &format!("get {} 2 1 0", segid + 100), "no such segment", gone);
    if !rmap_tests::is_root() {
        refused(&mut actor, &format!("get {kept} 2 1 0"), "not allowed by the segment's mode", denied);
    }
    refused(&mut actor, "release -1", "not a permit id", invalid);
    refused(&mut actor, &format!("release {foreign}"), "another process", denied);
    refused(&mut actor, &format!("attach {foreign} 0 {PAGE} 0"), "another process", denied);
    refused(&mut actor, &format!("attach {apid} 1 {PAGE} 0"), "page size", invalid);
    refused(&mut actor, &format!("attach {apid} {} {PAGE} 0", 2 * PAGE), "inside the segment", invalid);
    refused(&mut actor, &format!("detach {own}"), "not an attachment", invalid);
    // A touch of nothing, and a store to what may only be read: which are signals.
    assert!(actor.load(here + PAGE).unwrap_err().is_hole_at(here + PAGE));
    let page = format!("{:#x}", here + PAGE);
    assert_eq!(log.lines_with(&format!("{page} is a hole")).len(), 1, "{}", log.text());
    let there = actor.attach(reader, 0, PAGE);
    assert!(actor.store(there, 1).is_err());
    assert_eq!(exporter.remove(segid), Ok(0));
    refused(&mut actor, &format!("attach {apid} 0 {PAGE} {}", own), "no such segment", gone);
    actor.exit();
    exporter.exit();
}

/// Who gets a signal because an exporter is gone can read which address it was and why: those that wait, and those that come later.
#[test]
fn each_thread_that_an_exporter_fails_is_named() {
    let name = "each_thread_that_an_exporter_fails_is_named";
    if !Engine::of_actors().asks_for_pages() {
        return skip(name, "nobody waits for an exporter");
    }
    let stage = Stage::new(name, 60);
    for limit in [None, Some("1")] {
        let log = Log::new();
        let setup = Setup::logging("warn", &log);
        let setup = limit.map_or(setup.clone(), |limit| setup.and_env("RMAP_PEER_TIMEOUT", limit));
        let (mut exporter, mut importer) = (stage.actor(), stage.actor_with(&setup));
        let far = exporter.anon(8 << 20);
        let segid = exporter.make_all();
        let apid = importer.get(segid);
        let here = importer.attach(apid, far, 8 << 20);
        exporter.freeze();
        // Two that one question is for, and one that has its own.
        let waiting = [here + PAGE, here + 7 * PAGE, here + (4 << 20)];
        for (number, address) in waiting.iter().enumerate() {
            importer.ok(&format!("send {number} look {address:#x} 1"));
        }
        let (mut all, pid) = (waiting.to_vec(), exporter.pid());
        let why = if limit.is_some() { "has not answered within RMAP_PEER_TIMEOUT" } else { "is gone" };
        if limit.is_none() {
            exporter.kill();
            all.push(here + (6 << 20));
        }
        for number in 0..waiting.len() {
            assert_eq!(importer.ok(&format!("receive {number}")), "h");
        }
        for later in &all[waiting.len()..] {
            assert!(importer.load(*later).unwrap_err().is_hole_at(*later));
        }
        for address in all {
            let lines = log.lines_with(&format!("gets signal {} at {address:#x}:", libc::SIGBUS));
            assert_eq!(lines.len(), 1, "{lines:?} for {address:#x} in\n{}", log.text());
            assert!(lines[0].ends_with(&format!(": exporter {pid} {why}")), "{lines:?}");
        }
    }
}
