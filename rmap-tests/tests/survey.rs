//! What others learn of a process: its counters, its segments, and whom it shares memory with.

/// The library's own.
#[path = "../../rmap-core/src/engine/protocol.rs"]
mod protocol;

mod range {
    pub(crate) use rmap_core::Range;
}

mod sys {
    pub(crate) mod memory {
        pub(crate) use rmap_tests::PAGE;
    }
}

use protocol::Message;
use rmap_core::counters::Sheet;
use rmap_core::survey::{Process, Silence, processes};
use rmap_tests::{Actor, Door, Log, PAGE, RDWR, Setup, Stage, Wire, is_root, skip};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);
const PAGES: usize = 64;

fn find(actor: &Actor) -> Process {
    find_with(actor, 1000)
}

fn find_with(actor: &Actor, rows: usize) -> Process {
    let pid = actor.pid().cast_unsigned();
    let mut found = processes(|id| id == pid, PATIENCE, rows).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn ask(segid: i64) -> (Message, Option<OwnedFd>) {
    let wire = Wire::to(segid).unwrap();
    wire.send(&Message::Survey { request: 7 }.encode(), &[]).unwrap();
    let mut parcel = wire.receive(PATIENCE).unwrap().expect("an answer");
    (Message::decode(&parcel.bytes).expect("a message"), parcel.descriptors.pop())
}

#[test]
fn both_sides_are_seen() {
    let stage = Stage::new("both_sides_are_seen", 60);
    let (mut exporter, importer, segid) = stage.pair(PAGES);
    let seen = find(&exporter).sheet.unwrap();
    assert_eq!(seen.pid, exporter.pid().cast_unsigned());
    assert_eq!(seen.name, "rmap-test-actor");
    let [segment] = seen.segments[..] else { panic!("{:?}", seen.segments) };
    assert_eq!((segment.id, segment.mode, segment.permits), (segid, 0o600, Some(1)));
    assert_eq!(segment.range.start(), 0);
    let [peer] = seen.importers[..] else { panic!("{:?}", seen.importers) };
    assert_eq!((peer.pid, peer.connected, peer.permits), (importer.pid().cast_unsigned(), true, 1));
    assert!(peer.bytes >= (PAGES * PAGE) as u64 && peer.touches >= 1, "{peer:?}");
    assert_eq!(seen.exporters, []);
    assert_eq!((seen.counters.segments, seen.counters.importers, seen.counters.permits_given), (1, 1, 1));
    assert!(seen.counters.object_bytes >= (PAGES * PAGE) as u64, "{:?}", seen.counters);

    let seen = find(&importer).sheet.unwrap();
    let [peer] = seen.exporters[..] else { panic!("{:?}", seen.exporters) };
    assert_eq!((peer.pid, peer.permits, peer.permits_ever), (exporter.pid().cast_unsigned(), 1, 1));
    assert_eq!(seen.counters.windows, 1);
    assert_eq!((seen.counters.attach_hits, seen.counters.attach_misses), (0, 1));

    exporter.remove(segid).unwrap();
    let seen = find(&exporter).sheet.unwrap();
    assert_eq!((seen.segments.len(), seen.counters.segments_removed), (0, 1));
    importer.exit();
    exporter.wait_until("the importer is gone", || {
        find(&exporter).sheet.unwrap().importers.iter().all(|peer| !peer.connected)
    });
    assert_eq!(find(&exporter).sheet.unwrap().importers.len(), 1);
}

#[test]
fn an_importer_that_comes_back_is_one() {
    let stage = Stage::new("an_importer_that_comes_back_is_one", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let segid = exporter.make_all();
    for _ in 0..20 {
        let apid = importer.get(segid);
        importer.release(apid).unwrap();
    }
    let apid = importer.get(segid);
    let seen = find(&importer).sheet.unwrap();
    let [peer] = seen.exporters[..] else { panic!("{:?}", seen.exporters) };
    assert_eq!((peer.permits, peer.permits_ever), (1, 21));
    importer.release(apid).unwrap();
}

#[test]
fn many_segments_are_seen() {
    const MANY: usize = 1000;
    let stage = Stage::new("many_segments_are_seen", 60);
    let mut exporter = stage.actor();
    let address = exporter.anon(PAGE);
    let made: Vec<i64> = (0..MANY).map(|_| exporter.make(address, PAGE)).collect();
    let seen = |rows| find_with(&exporter, rows).sheet.unwrap();
    let sheet = seen(MANY);
    let ids: Vec<i64> = sheet.segments.iter().map(|segment| segment.id).collect();
    assert_eq!(ids, made);
    let sheet = seen(10);
    assert_eq!((sheet.segments.len(), sheet.counters.segments), (10, MANY as u64));
}

#[test]
fn what_is_given_can_only_be_read() {
    let stage = Stage::new("what_is_given_can_only_be_read", 60);
    let (_exporter, _importer, segid) = stage.pair(PAGES);
    let (message, file) = ask(segid);
    assert_eq!(message, Message::Surveyed { request: 7 });
    let file = std::fs::File::from(file.expect("a file"));
    use std::io::Write as _;
    assert!((&file).write_all(&[1]).is_err());
    assert!(file.set_len(0).is_err());
    let sheet = Sheet::read(&file, 10).unwrap();
    assert_eq!(sheet.counters.segments_made, 1);
}

#[test]
fn counters_outlive_a_killed_process() {
    let stage = Stage::new("counters_outlive_a_killed_process", 60);
    let (exporter, _importer, segid) = stage.pair(PAGES);
    let (_, file) = ask(segid);
    exporter.kill();
    let sheet = Sheet::read(file.expect("a file").as_fd(), 10).unwrap();
    assert_eq!(sheet.counters.permits_given, 1);
    assert!(sheet.counters.stalls >= 1);
}

#[test]
fn a_stopped_process_is_named() {
    let stage = Stage::new("a_stopped_process_is_named", 60);
    let (exporter, importer, _) = stage.pair(PAGES);
    exporter.freeze();
    let pids = [exporter.pid(), importer.pid()].map(i32::cast_unsigned);
    let found = processes(|pid| pids.contains(&pid), Duration::from_millis(500), 10).unwrap();
    let by = |actor: &Actor| {
        let pid = actor.pid().cast_unsigned();
        found.iter().find(|process| process.pid == pid).unwrap()
    };
    assert_eq!(by(&exporter).sheet.as_ref().unwrap_err(), &Silence::Stopped);
    assert!(by(&importer).sheet.is_ok());
    exporter.thaw();
}

#[test]
fn another_user_learns_nothing() {
    if !is_root() {
        return skip("another_user_learns_nothing", "only root can have other users");
    }
    let stage = Stage::new("another_user_learns_nothing", 60);
    let user = |uid| Setup { user: Some((uid, uid)), ..Setup::default() };
    let mut exporter = stage.actor_with(&user(65533));
    let segid = exporter.make_all();
    // Credentials are a thread's.
    let denied = std::thread::spawn(move || {
        // SAFETY: takes numbers only.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65532, 65532, 65532) }, 0);
        ask(segid)
    });
    let (message, file) = denied.join().unwrap();
    assert_eq!(message, Message::Refused { request: 7, errno: libc::EACCES.cast_unsigned() });
    assert!(file.is_none());
    // Root does.
    assert!(find(&exporter).sheet.is_ok());
}

/// What `processes` says of somebody who listens as if it were a process of the library's, and answers so.
fn seen_behind(door: &Door, limit: Duration, answer: impl FnOnce(&Wire) + Send) -> Silence {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The other tests of this program knock as well, and ask nothing.
            let asked = std::iter::repeat_with(|| door.open_silently(PATIENCE).unwrap());
            let mut asked = asked.filter(|wire| wire.receive(PATIENCE).unwrap().is_some());
            let wire = asked.next().expect("a question");
            answer(&wire);
            // Until the other side has had enough.
            let _ = wire.receive(PATIENCE);
        });
        let mut found = processes(|pid| pid == std::process::id(), limit, 10).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0).sheet.unwrap_err()
    })
}

#[test]
fn answers_that_are_none_are_named() {
    let surveyed = Message::Surveyed { request: 1 }.encode();
    let null = std::fs::File::open("/dev/null").unwrap();
    let pipe = std::io::pipe().unwrap().0;
    let door = Door::new(11);
    let strange =
        |answer: &(dyn Fn(&Wire) + Sync)| assert_eq!(seen_behind(&door, PATIENCE, answer), Silence::Strange);
    strange(&|wire| wire.send(&[7; 20], &[]).unwrap());
    strange(&|wire| wire.send(&[7; 100], &[null.as_fd()]).unwrap());
    strange(&|wire| wire.send(&surveyed, &[]).unwrap());
    strange(&|wire| wire.send(&surveyed, &[null.as_fd()]).unwrap());
    strange(&|wire| wire.send(&surveyed, &[pipe.as_fd()]).unwrap());
    strange(&|wire| wire.send(&Message::Status.encode(), &[null.as_fd()]).unwrap());
    assert_eq!(seen_behind(&door, Duration::from_millis(100), |_| {}), Silence::Late);
    let refused = Message::Refused { request: 1, errno: libc::EACCES.cast_unsigned() };
    let denied = seen_behind(&door, PATIENCE, move |wire| wire.send(&refused.encode(), &[]).unwrap());
    assert_eq!(denied, Silence::Denied);
}

#[test]
fn each_call_that_fails_is_counted_and_said_why() {
    let stage = Stage::new("each_call_that_fails_is_counted_and_said_why", 60);
    let log = Log::new();
    let mut actor = stage.actor_with(&Setup::logging("debug", &log));
    let segid = actor.make_all();
    assert_eq!(actor.release(-1), Err(libc::EINVAL));
    assert_eq!(actor.try_get(segid + 1, RDWR), Err(libc::ENOENT));
    assert_eq!(actor.try_make(0, PAGE, 0o1000), Err(libc::EINVAL));
    assert_eq!(actor.remove(segid + 1), Err(libc::ENOENT));
    for line in
        ["xpmem_release fails: not a permit id", "xpmem_get fails", "xpmem_make fails", "xpmem_remove fails"]
    {
        assert_eq!(log.lines_with(line).len(), 1, "{line} in {}", log.text());
    }
    let now = find(&actor).sheet.unwrap().counters;
    assert_eq!(
        (now.errors_invalid, now.errors_no_such_id, now.errors_denied, now.errors_other),
        (2, 2, 0, 0)
    );
}
