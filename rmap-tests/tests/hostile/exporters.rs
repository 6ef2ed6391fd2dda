//! Against an importer: it gets what it asked for, an error or a signal, and nothing happens to its other memory.

use crate::protocol::{Access, Message, Source};
use crate::range::Range;
use crate::{ARENA, PATIENCE, descriptors, hear, say};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use rmap_tests::pattern::{self, Page};
use rmap_tests::{Actor, Door, Fault, PAGE, RDONLY, RDWR, Reply, Stage, Wire, is_root, skip};
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

/// What the exporter claims to have, at these addresses of its own.
const REMOTE: usize = 0x2200_0000_0000;
const PAGES: usize = 16;
/// Where the importer attaches it, between pages of its own.
const HERE: usize = ARENA + 16 * PAGE;
/// A grant, and the object that comes with it.
const GRANT: u32 = 5;
const SERIAL: u32 = 1;

fn all() -> Range {
    Range::new(REMOTE, PAGES * PAGE).unwrap()
}

fn page(number: usize) -> Range {
    Range::new(REMOTE + number * PAGE, PAGE).unwrap()
}

fn memfd(len: usize) -> File {
    let file = File::from(memfd_create(c"rmap-liar", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(len as u64).unwrap();
    file
}

/// The file of a status word.
fn status_word(sealed: bool) -> File {
    let file =
        File::from(memfd_create(c"rmap", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap());
    file.set_len(PAGE as u64).unwrap();
    if sealed {
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
    }
    file
}

/// Sends an answer that names a System V segment, with the IPC namespace of this process and its actors.
#[track_caller]
fn say_system_v(wire: &Wire, message: Message) {
    let namespace = File::open("/proc/self/ns/ipc").unwrap();
    wire.send(&message.encode(), &[namespace.as_fd()]).expect("the other side listens");
}

/// Opened again, with other rights.
fn reopened(file: &File, write: bool, flags: i32) -> File {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::options().read(true).write(write).custom_flags(flags).open(path).unwrap()
}

/// An importer and the exporter that this test plays, and an honest one.
struct Scene {
    importer: Actor,
    honest: Actor,
    there: usize,
    round: u64,
    /// The last permit that the importer got.
    apid: i64,
    door: Door,
    object: File,
    _stage: Stage,
}

impl Scene {
    fn new(name: &str, salt: u8) -> Self {
        let stage = Stage::new(name, 120);
        let (importer, honest) = (stage.actor(), stage.actor());
        Self::of(stage, importer, honest, salt)
    }

    fn of(stage: Stage, mut importer: Actor, mut honest: Actor, salt: u8) -> Self {
        honest.anon_at(ARENA, 4 * PAGE);
        let segid = honest.make(ARENA, 4 * PAGE);
        let there = importer.get_attach(segid, 0, 4 * PAGE);
        importer.anon_at(ARENA, 64 * PAGE);
        importer.fill(ARENA, 64, 700);
        let object = memfd(1 << 46);
        let mut scene =
            Self { importer, honest, there, round: 0, apid: 0, door: Door::new(salt), object, _stage: stage };
        scene.is_well();
        scene
    }

    /// The importer's own memory is as it was, and the honest exporter's is found.
    #[track_caller]
    fn is_well(&mut self) {
        self.round += 10;
        self.honest.anon_at(ARENA, 4 * PAGE);
        self.honest.fill(ARENA, 4, self.round);
        self.importer.check(self.there, 4, self.round);
        self.importer.check(ARENA, 16, 700);
        self.importer.check(HERE + PAGES * PAGE, 32, 700 + 32);
    }

    /// Has the importer ask for a permit.
    #[track_caller]
    fn get_begins(&mut self, flags: i32) -> (Wire, u32) {
        self.importer.tell(&format!("xpmem get {} {flags} 1 0", self.door.id(1)));
        let wire = self.door.open(PATIENCE).expect("a connection");
        let request = get_on(&wire, flags);
        wire.send(&Message::Status.encode(), &[status_word(true).as_fd()]).expect("the importer listens");
        (wire, request)
    }

    /// Has the importer get a permit in the honest way.
    #[track_caller]
    fn granted(&mut self, flags: i32) -> (Wire, i64) {
        let (wire, request) = self.get_begins(flags);
        self.grant(&wire, request);
        (wire, self.apid())
    }

    #[track_caller]
    fn grant(&self, wire: &Wire, request: u32) {
        let granted = Message::Granted { request, grant: GRANT, serial: SERIAL, range: all() };
        wire.send(&granted.encode(), &[self.object.as_fd()]).expect("the importer listens");
    }

    #[track_caller]
    fn apid(&mut self) -> i64 {
        match self.importer.answer() {
            Reply::Ok(words) => {
                self.apid = words.split_once(' ').expect("two words").0.parse().expect("a number");
                self.apid
            }
            other => panic!("{other:?} instead of a permit"),
        }
    }

    /// The errno of the call that the importer makes.
    #[track_caller]
    fn errno(&mut self) -> i32 {
        match self.importer.answer() {
            Reply::Ok(words) => {
                let (value, errno) = words.split_once(' ').expect("two words");
                assert_eq!(value, "-1");
                errno.parse().expect("an errno")
            }
            other => panic!("{other:?}"),
        }
    }

    /// A window on all of it.
    #[track_caller]
    fn attached(&mut self, flags: i32) -> Wire {
        let (wire, apid) = self.granted(flags);
        assert_eq!(self.importer.try_attach_at(apid, 0, PAGES * PAGE, HERE), Ok(HERE));
        wire
    }

    /// Has the importer touch a page.
    #[track_caller]
    fn load_begins(&mut self, wire: &Wire, number: usize) -> u32 {
        self.importer.tell(&format!("load {:#x}", HERE + number * PAGE));
        resolve_on(wire, number)
    }

    #[track_caller]
    fn loaded(&mut self) -> Result<u64, Fault> {
        match self.importer.answer() {
            Reply::Ok(value) => Ok(value.parse().expect("a number")),
            Reply::Fault(fault) => Err(fault),
            Reply::Errno(errno) => panic!("errno {errno} from a load"),
        }
    }

    /// Puts a page into the object, and says so.
    #[track_caller]
    fn show(&self, wire: &Wire, request: u32, number: usize, stamp: u64) {
        self.object.write_all_at(&drawn(stamp)[..], page(number).start() as u64).unwrap();
        let source = Source::Object { serial: SERIAL };
        say(wire, Message::Resolved { request, range: page(number), source, writable: true });
    }

    /// The connection ends, and what the importer waits for is a hole.
    #[track_caller]
    fn is_cut(&mut self, number: usize, what: &str) {
        let fault = self.loaded().expect_err(what);
        assert!(fault.is_hole_at(HERE + number * PAGE), "{what}: {fault:?}");
        self.is_well();
    }

    /// The importer gives the permit back, and the connection with it.
    fn leave(&mut self) {
        self.importer.detach(HERE);
        assert_eq!(self.importer.release(self.apid), Ok(0));
        self.importer.anon_at(HERE, PAGES * PAGE);
    }
}

fn drawn(stamp: u64) -> Box<Page> {
    let mut page = Box::new([0; PAGE]);
    pattern::draw(stamp, &mut page);
    page
}

#[track_caller]
fn get_on(wire: &Wire, flags: i32) -> u32 {
    let access = if flags == RDWR { Access::ReadWrite } else { Access::ReadOnly };
    match hear(wire) {
        Some((Message::Get { request, segment: 1, access: asked }, _)) if asked == access => request,
        other => panic!("{other:?} instead of a request for a permit"),
    }
}

#[track_caller]
fn resolve_on(wire: &Wire, number: usize) -> u32 {
    match hear(wire) {
        Some((Message::Resolve { request, grant: GRANT, addr, .. }, _)) if addr == page(number).start() => {
            request
        }
        other => panic!("{other:?} instead of a request for page {number}"),
    }
}

#[test]
fn an_exporter_by_hand() {
    let mut scene = Scene::new("an_exporter_by_hand", 1);
    let wire = scene.attached(RDWR);
    for number in [0, 3, PAGES - 1] {
        let request = scene.load_begins(&wire, number);
        scene.show(&wire, request, number, 40 + number as u64);
        scene.loaded().unwrap();
        scene.importer.check(HERE + number * PAGE, 1, 40 + number as u64);
    }
    let request = scene.load_begins(&wire, 5);
    say(&wire, Message::Hole { request });
    assert!(scene.loaded().unwrap_err().is_hole_at(HERE + 5 * PAGE));
    scene.leave();
    scene.is_well();
}

#[test]
fn answers_that_name_nothing() {
    let mut scene = Scene::new("answers_that_name_nothing", 2);
    for (what, source) in [
        ("an object that was not sent", Source::Object { serial: 99 }),
        ("a file that was not sent", Source::File { offset: 0 }),
        ("a third process's object that was not sent", Source::Foreign { offset: 0 }),
    ] {
        let wire = scene.attached(RDWR);
        let request = scene.load_begins(&wire, 2);
        say(&wire, Message::Resolved { request, range: all(), source, writable: true });
        scene.is_cut(2, what);
        drop(wire);
        scene.leave();
    }
}

#[test]
fn ranges_outside_the_window() {
    let mut scene = Scene::new("ranges_outside_the_window", 3);
    let wire = scene.attached(RDWR);
    let whole = Range::between(0, 1 << 62).unwrap();
    let beside = Range::new(REMOTE + PAGES * PAGE, PAGES * PAGE).unwrap();
    // Far too much of a file: the window is all that changes.
    let file = memfd(64 * PAGE);
    for number in 0..64 {
        file.write_all_at(&drawn(number as u64)[..], (number * PAGE) as u64).unwrap();
    }
    // A range that is not where the page is: it is asked for again.
    let first = scene.load_begins(&wire, 4);
    let source = Source::File { offset: 0 };
    for range in [beside, page(5), Range::new(ARENA, PAGE).unwrap()] {
        let request = if range == beside { first } else { resolve_on(&wire, 4) };
        let answer = Message::Resolved { request, range, source, writable: true };
        wire.send(&answer.encode(), &[file.as_fd()]).unwrap();
    }
    let request = resolve_on(&wire, 4);
    let offset = 0_u64.wrapping_sub(REMOTE as u64);
    let answer = Message::Resolved { request, range: whole, source: Source::File { offset }, writable: true };
    wire.send(&answer.encode(), &[file.as_fd()]).unwrap();
    scene.loaded().unwrap();
    scene.importer.check(HERE, PAGES, 0);
    scene.is_well();
    scene.leave();
    scene.is_well();
}

#[test]
fn files_that_are_not_what_they_should_be() {
    let mut scene = Scene::new("files_that_are_not_what_they_should_be", 4);
    let (reader, writer) = std::io::pipe().unwrap();
    let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
    let short = memfd(PAGE);
    let odd: Vec<(&str, OwnedFd)> = vec![
        ("a pipe", reader.into()),
        ("the other end of a pipe", writer.into()),
        ("a socket", socket.into()),
        ("a folder", File::open("/proc/self").unwrap().into()),
        ("a device", File::open("/dev/zero").unwrap().into()),
        ("a path", reopened(&short, false, libc::O_PATH).into()),
        ("a file for reading", reopened(&short, false, 0).into()),
    ];
    for (what, descriptor) in &odd {
        // In place of an object.
        let (wire, request) = scene.get_begins(RDWR);
        let granted = Message::Granted { request, grant: GRANT, serial: SERIAL, range: all() };
        wire.send(&granted.encode(), &[descriptor.as_fd()]).unwrap();
        if ["a path", "a file for reading"].contains(what) {
            let apid = scene.apid();
            assert!(scene.importer.try_attach(apid, 0, PAGE).is_err(), "{what}");
            assert_eq!(scene.importer.release(apid), Ok(0));
        } else {
            assert_ne!(scene.errno(), 0, "{what}");
        }
        drop(wire);
        scene.is_well();
        // In place of a file, or of another process's object.
        for source in [Source::File { offset: 0 }, Source::Foreign { offset: 0 }] {
            let wire = scene.attached(RDWR);
            let request = scene.load_begins(&wire, 1);
            let answer = Message::Resolved { request, range: page(1), source, writable: true };
            wire.send(&answer.encode(), &[descriptor.as_fd()]).unwrap();
            scene.is_cut(1, what);
            scene.leave();
        }
    }
    // Whose missing pages cannot be asked for.
    let wire = scene.attached(RDWR);
    let request = scene.load_begins(&wire, 1);
    let program = File::open("/proc/self/exe").unwrap();
    let answer =
        Message::Resolved { request, range: page(1), source: Source::Foreign { offset: 0 }, writable: false };
    wire.send(&answer.encode(), &[program.as_fd()]).unwrap();
    scene.is_cut(1, "a file on a disk");
    scene.leave();
    // None at all.
    let (wire, request) = scene.get_begins(RDONLY);
    say(&wire, Message::Granted { request, grant: GRANT, serial: SERIAL, range: all() });
    assert_ne!(scene.errno(), 0);
    scene.is_well();
}

#[test]
fn status_words_that_may_vanish() {
    let mut scene = Scene::new("status_words_that_may_vanish", 20);
    let granted = |request| Message::Granted { request, grant: GRANT, serial: SERIAL, range: all() };
    let short = memfd(0);
    let device: File = File::open("/dev/zero").unwrap();
    let words = [("none", None), ("of nothing", Some(&short)), ("a device", Some(&device))];
    let unsealed = status_word(false);
    for (what, word) in words.into_iter().chain([("not sealed", Some(&unsealed))]) {
        scene.importer.tell(&format!("xpmem get {} {RDWR} 1 0", scene.door.id(1)));
        let wire = scene.door.open(PATIENCE).expect("a connection");
        let request = get_on(&wire, RDWR);
        if let Some(word) = word {
            wire.send(&Message::Status.encode(), &[word.as_fd()]).unwrap();
        }
        // It may have hung up.
        let _ = wire.send(&granted(request).encode(), &[scene.object.as_fd()]);
        assert_ne!(scene.errno(), 0, "{what}");
        scene.is_well();
    }
    // A second one.
    let wire = scene.attached(RDWR);
    let request = scene.load_begins(&wire, 1);
    wire.send(&Message::Status.encode(), &[status_word(true).as_fd()]).unwrap();
    let _ = wire.send(&Message::Hole { request }.encode(), &[]);
    scene.is_cut(1, "a second status word");
    scene.leave();
}

#[test]
fn sizes_and_offsets_that_lie() {
    let mut scene = Scene::new("sizes_and_offsets_that_lie", 5);
    let short = memfd(PAGE);
    for (what, offset) in [
        ("behind the end", 16 * PAGE as u64),
        ("in the middle of a page", 100),
        ("nowhere", u64::MAX),
        ("far away", 1 << 62),
    ] {
        let wire = scene.attached(RDWR);
        let request = scene.load_begins(&wire, 1);
        let source = Source::File { offset };
        let answer = Message::Resolved { request, range: all(), source, writable: true };
        wire.send(&answer.encode(), &[short.as_fd()]).unwrap();
        scene.is_cut(1, what);
        scene.leave();
    }
    // A file that ends later is as any other.
    let wire = scene.attached(RDWR);
    let file = memfd(PAGES * PAGE);
    let request = scene.load_begins(&wire, 1);
    let answer =
        Message::Resolved { request, range: all(), source: Source::File { offset: 0 }, writable: true };
    wire.send(&answer.encode(), &[file.as_fd()]).unwrap();
    assert_eq!(scene.loaded(), Ok(0));
    file.set_len(0).unwrap();
    assert_eq!(scene.importer.load(HERE + PAGE).unwrap_err().signal, libc::SIGBUS);
    scene.is_well();
    // An object that is too small for any address, over the same connection.
    scene.importer.tell(&format!("xpmem get {} {RDWR} 1 0", scene.door.id(1)));
    let request = get_on(&wire, RDWR);
    let granted = Message::Granted { request, grant: GRANT, serial: 2, range: all() };
    wire.send(&granted.encode(), &[short.as_fd()]).unwrap();
    let apid = scene.apid();
    let here = scene.importer.attach(apid, 0, PAGE);
    assert_eq!(scene.importer.load(here).unwrap_err().signal, libc::SIGBUS);
    scene.is_well();
}

#[test]
fn answers_to_what_was_never_asked() {
    let mut scene = Scene::new("answers_to_what_was_never_asked", 6);
    let wire = scene.attached(RDWR);
    let before = descriptors(&scene.importer);
    let file = memfd(PAGE);
    let numbers = [0, 1, 2, 7, u32::MAX];
    for request in numbers {
        for message in [
            Message::Refused { request, errno: 13 },
            Message::Resolved { request, range: all(), source: Source::File { offset: 0 }, writable: true },
            Message::Resolved { request, range: all(), source: Source::Object { serial: 9 }, writable: true },
            Message::Hole { request },
            Message::ReadOnly { request },
            Message::Closed { serial: request.wrapping_add(100) },
            Message::Adopted { range: all() },
            Message::Adopted { range: Range::between(0, 1 << 62).unwrap() },
            Message::Removed { grant: request.wrapping_add(100), number: request },
            Message::Stale { range: all(), number: request, objects: false },
            Message::Stale { range: Range::between(0, 1 << 62).unwrap(), number: request, objects: false },
            Message::Stale { range: all(), number: request, objects: true },
            Message::Stale { range: Range::between(0, 1 << 62).unwrap(), number: request, objects: true },
        ] {
            wire.send(&message.encode(), &[file.as_fd()]).unwrap();
        }
    }
    // Notices are answered, and nothing else has happened.
    for request in numbers {
        for _ in 0..5 {
            assert!(matches!(hear(&wire), Some((Message::Seen { number }, _)) if number == request));
        }
    }
    let request = scene.load_begins(&wire, 3);
    scene.show(&wire, request, 3, 60);
    scene.loaded().unwrap();
    scene.importer.check(HERE + 3 * PAGE, 1, 60);
    assert!(descriptors(&scene.importer) <= before, "descriptors that came with them are open");
    scene.is_well();
    // The same answer twice.
    let request = scene.load_begins(&wire, 4);
    scene.show(&wire, request, 4, 61);
    scene.show(&wire, request, 4, 61);
    say(&wire, Message::Hole { request });
    scene.loaded().unwrap();
    scene.importer.check(HERE + 4 * PAGE, 1, 61);
    scene.is_well();
}

#[test]
fn an_object_that_is_closed_too_early() {
    let mut scene = Scene::new("an_object_that_is_closed_too_early", 13);
    let wire = scene.attached(RDWR);
    scene.load_begins(&wire, 0);
    say(&wire, Message::Closed { serial: SERIAL });
    scene.is_cut(0, "an object that a permit needs");
}

#[test]
fn answers_of_another_kind() {
    let mut scene = Scene::new("answers_of_another_kind", 7);
    // For a permit.
    for message in [
        |request| Message::Hole { request },
        |request| Message::ReadOnly { request },
        |request| Message::Resolved {
            request,
            range: all(),
            source: Source::Object { serial: SERIAL },
            writable: true,
        },
    ] {
        let (wire, request) = scene.get_begins(RDWR);
        say(&wire, message(request));
        assert_ne!(scene.errno(), 0);
        scene.is_well();
    }
    // For a page.
    for message in [
        |request| Message::Refused { request, errno: 1 },
        |request| Message::Granted { request, grant: 8, serial: SERIAL, range: all() },
        |_| Message::Get { request: 1, segment: 1, access: Access::ReadOnly },
        |_| Message::Release { grant: GRANT },
    ] {
        let wire = scene.attached(RDWR);
        let request = scene.load_begins(&wire, 6);
        say(&wire, message(request));
        scene.is_cut(6, "an answer of another kind");
        scene.leave();
    }
    // Bytes that are no message.
    for len in [1, 63, 65, 500] {
        let wire = scene.attached(RDWR);
        scene.load_begins(&wire, 6);
        wire.send(&vec![0x55; len], &[]).unwrap();
        scene.is_cut(6, "no message");
        scene.leave();
    }
}

#[test]
fn threads_at_neighbouring_pages_are_not_forgotten() {
    let mut scene = Scene::new("threads_at_neighbouring_pages_are_not_forgotten", 8);
    for message in [
        |request| Message::Refused { request, errno: 1 },
        |request| Message::Resolved {
            request,
            range: page(1),
            source: Source::Object { serial: 50 },
            writable: true,
        },
        |_| Message::Release { grant: GRANT },
    ] {
        let wire = scene.attached(RDWR);
        scene.importer.ok(&format!("send 1 load {:#x}", HERE + PAGE));
        let request = resolve_on(&wire, 1);
        // The next one waits for the first's answer.
        let pid = scene.importer.pid();
        let thread = scene.importer.start(&format!("scan {:#x} 1 1", HERE + 2 * PAGE));
        let tid = scene.importer.tid(thread);
        scene.importer.wait_until("a thread waits for a page", || rmap_tests::waits_for_page(pid, tid));
        say(&wire, message(request));
        assert!(matches!(scene.importer.ask("receive 1"), Reply::Fault(_)));
        // It gets its signal, with nobody's help.
        let mut looks = 0;
        while looks == 0 {
            looks = scene.importer.number(&format!("progress {thread}"));
        }
        let report = scene.importer.stop(thread);
        assert_eq!(report["stamps"], 0, "{report:?}");
        scene.is_well();
        scene.leave();
    }
}

#[test]
fn an_exporter_that_hangs_up() {
    let mut scene = Scene::new("an_exporter_that_hangs_up", 9);
    for _ in 0..20 {
        let (wire, _) = scene.get_begins(RDWR);
        drop(wire);
        assert_eq!(scene.errno(), libc::ENOENT);
        let wire = scene.attached(RDWR);
        scene.load_begins(&wire, 1);
        drop(wire);
        scene.is_cut(1, "the exporter has hung up");
        scene.leave();
    }
}

#[test]
fn system_v_segments_of_others() {
    let name = "system_v_segments_of_others";
    if !is_root() {
        return skip(name, "only root can run processes of several users");
    }
    let stage = Stage::new(name, 120);
    let user = rmap_tests::Setup { user: Some((64_001, 64_101)), ..Default::default() };
    let (importer, honest) = (stage.actor_with(&user), stage.actor_with(&user));
    let mut scene = Scene::of(stage, importer, honest, 10);
    // The importer's own, which the liar, of another user, names.
    let id = scene.importer.sys(libc::SYS_shmget, &[0, PAGES * PAGE, 0o600]).unwrap();
    let place = scene.importer.place(PAGES * PAGE);
    let own = scene.importer.sys(libc::SYS_shmat, &[id, place, 0]).unwrap();
    scene.importer.sys(libc::SYS_shmctl, &[id, libc::IPC_RMID as usize, 0]).unwrap();
    scene.importer.fill(own, PAGES, 300);
    for writable in [true, false] {
        let wire = scene.attached(RDWR);
        let request = scene.load_begins(&wire, 2);
        let source = Source::SystemV { id: id as u32, offset: 0 };
        say_system_v(&wire, Message::Resolved { request, range: all(), source, writable });
        scene.is_cut(2, "a segment of the importer's user");
        scene.leave();
    }
    // Ids that are nobody's, and offsets beyond the end, of a segment that is the liar's own.
    // SAFETY: takes numbers only.
    let theirs = unsafe { libc::shmget(libc::IPC_PRIVATE, 4 * PAGE, 0o666) };
    assert!(theirs >= 0);
    for (id, offset) in
        [(u32::MAX, 0), (theirs as u32, 4 * PAGE as u64), (theirs as u32, 1 << 63), (theirs as u32, 100)]
    {
        let wire = scene.attached(RDWR);
        let request = scene.load_begins(&wire, 2);
        let source = Source::SystemV { id, offset };
        say_system_v(&wire, Message::Resolved { request, range: all(), source, writable: true });
        scene.is_cut(2, "a segment that is none, or too short");
        scene.leave();
    }
    // One that could be of any namespace.
    let wire = scene.attached(RDWR);
    let request = scene.load_begins(&wire, 2);
    let source = Source::SystemV { id: theirs as u32, offset: 0 };
    say(&wire, Message::Resolved { request, range: all(), source, writable: true });
    scene.is_cut(2, "a segment of any namespace");
    scene.leave();
    // SAFETY: as above.
    unsafe { libc::shmctl(theirs, libc::IPC_RMID, std::ptr::null_mut()) };
    scene.importer.check(own, PAGES, 300);
}

#[test]
fn an_exporter_that_talks_all_the_time() {
    let mut scene = Scene::new("an_exporter_that_talks_all_the_time", 11);
    // Nobody reads what the importer answers, and it is not asked to answer.
    let wire = scene.attached(RDWR);
    let over = std::sync::atomic::AtomicBool::new(false);
    struct End<'a>(&'a std::sync::atomic::AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, std::sync::atomic::Ordering::Release);
        }
    }
    std::thread::scope(|scope| {
        let end = End(&over);
        for _ in 0..3 {
            let (wire, over) = (&wire, &over);
            scope.spawn(move || {
                let stale = Message::Stale { range: all(), number: 1, objects: false }.encode();
                while !over.load(std::sync::atomic::Ordering::Acquire) {
                    let _ = wire.send(&stale, &[]);
                }
            });
        }
        for _ in 0..20 {
            scene.is_well();
        }
        drop(end);
    });
}

/// Sends messages that nobody may take forever, over a wire that is not read, and does not stop before the importer has had them all.
#[track_caller]
fn flood(wire: &Wire, message: Message) -> usize {
    let bytes = message.encode();
    let mut sent = 0;
    while sent < 200_000 {
        match wire.send(&bytes, &[]) {
            Ok(()) => sent += 1,
            Err(nix::errno::Errno::EAGAIN) => std::thread::yield_now(),
            Err(errno) => panic!("{errno}"),
        }
    }
    sent
}

/// As an exporter says of a part of a huge page that the kernel cannot free.
#[test]
fn what_an_object_has_and_nobody_is_to_see() {
    let mut scene = Scene::new("what_an_object_has_and_nobody_is_to_see", 21);
    let wire = scene.attached(RDWR);
    let request = scene.load_begins(&wire, 3);
    scene.show(&wire, request, 3, 60);
    scene.loaded().unwrap();
    scene.importer.check(HERE + 3 * PAGE, 1, 60);
    say(&wire, Message::Stale { range: page(3), number: 5, objects: true });
    assert!(matches!(hear(&wire), Some((Message::Seen { number: 5 }, _))));
    let request = scene.load_begins(&wire, 3);
    say(&wire, Message::Hole { request });
    assert!(scene.loaded().unwrap_err().is_hole_at(HERE + 3 * PAGE));
    // A window that is made now does not show it either.
    let apid = scene.apid;
    let other = scene.importer.attach(apid, 2 * PAGE, 3 * PAGE) + PAGE;
    scene.importer.tell(&format!("load {other:#x}"));
    let request = resolve_on(&wire, 3);
    scene.show(&wire, request, 3, 61);
    scene.loaded().unwrap();
    scene.importer.check(other, 1, 61);
    let request = scene.load_begins(&wire, 3);
    scene.show(&wire, request, 3, 61);
    scene.loaded().unwrap();
    // From then on it is to be seen.
    let third = scene.importer.attach(apid, 3 * PAGE, PAGE);
    scene.importer.check(third, 1, 61);
    scene.importer.detach(third);
    scene.importer.detach(other);
    scene.is_well();
}

#[test]
fn a_permit_that_nobody_asked_for() {
    let mut scene = Scene::new("a_permit_that_nobody_asked_for", 12);
    let wire = scene.attached(RDWR);
    scene.load_begins(&wire, 4);
    say(&wire, Message::Granted { request: 999, grant: 77, serial: 3, range: all() });
    scene.is_cut(4, "a permit that was not asked for");
}

#[test]
fn notices_whose_answers_are_not_read() {
    let mut scene = Scene::new("notices_whose_answers_are_not_read", 14);
    let wire = scene.attached(RDWR);
    let memory = |scene: &Scene| crate::anonymous(&scene.importer) + crate::shared(&scene.importer);
    scene.is_well();
    let before = memory(&scene);
    for message in [
        Message::Stale { range: page(0), number: 7, objects: false },
        Message::Stale { range: page(0), number: 7, objects: true },
        Message::Removed { grant: 1000, number: 7 },
    ] {
        let sent = flood(&wire, message);
        scene.is_well();
        let grown = memory(&scene).saturating_sub(before);
        assert!(grown < 1 << 20, "{sent} times {message:?}: {grown} bytes more");
    }
    // The last one is answered, when there is room for it.
    say(&wire, Message::Stale { range: page(0), number: 8, objects: false });
    while !matches!(hear(&wire), Some((Message::Seen { number: 8 }, _))) {}
    let request = scene.load_begins(&wire, 4);
    scene.show(&wire, request, 4, 61);
    scene.loaded().unwrap();
}

#[test]
fn answers_to_questions_that_are_not_read() {
    let mut scene = Scene::new("answers_to_questions_that_are_not_read", 15);
    let wire = scene.attached(RDWR);
    let first = scene.load_begins(&wire, 4);
    // The thread is woken, and asks again: the number can be guessed, the question cannot be known.
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (wire, over) = (&wire, &over);
        scope.spawn(move || {
            let mut ahead = 0;
            while !over.load(std::sync::atomic::Ordering::Acquire) {
                let source = Source::Object { serial: SERIAL };
                let request = first + ahead;
                let elsewhere = Message::Resolved { request, range: page(9), source, writable: true };
                ahead = (ahead + 1) % 2000;
                let _ = wire.send(&elsewhere.encode(), &[]);
            }
        });
        let loaded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| scene.loaded()));
        over.store(true, std::sync::atomic::Ordering::Release);
        let fault = loaded.expect("an answer").expect_err("nobody has shown the page");
        assert!(fault.is_hole_at(HERE + 4 * PAGE), "{fault:?}");
    });
    scene.is_well();
}

#[test]
fn an_object_that_cannot_be_trapped() {
    let mut scene = Scene::new("an_object_that_cannot_be_trapped", 16);
    // A file on a disk.
    let path = std::env::temp_dir().join(format!("rmap-liar-{}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    // As long as file systems let it be: it is refused for what it is, not for its length.
    file.set_len(1 << 30).unwrap();
    scene.object = file;
    for flags in [RDWR, RDONLY] {
        let (wire, apid) = scene.granted(flags);
        let before = rmap_tests::maps(scene.importer.pid()).len();
        for _ in 0..20 {
            assert!(scene.importer.try_attach_at(apid, 0, PAGES * PAGE, HERE).is_err());
        }
        scene.importer.check(HERE, PAGES, 700 + 16);
        let now = rmap_tests::maps(scene.importer.pid()).len();
        assert!(now < before + 10, "{before} mappings before, {now} after");
        assert_eq!(scene.importer.release(apid), Ok(0));
        drop(wire);
    }
    scene.is_well();
}

#[test]
fn a_system_v_segment_of_huge_pages() {
    let name = "a_system_v_segment_of_huge_pages";
    // Nobody touches it, so no huge page need be there.
    let flags = 0o666 | libc::SHM_HUGETLB | libc::SHM_NORESERVE;
    // SAFETY: takes numbers only.
    let id = unsafe { libc::shmget(libc::IPC_PRIVATE, PAGES * PAGE, flags) };
    if id < 0 {
        return skip(name, &format!("shmget: {}", nix::errno::Errno::last()));
    }
    let mut scene = Scene::new(name, 17);
    let wire = scene.attached(RDWR);
    let before = rmap_tests::maps(scene.importer.pid()).len();
    for _ in 0..20 {
        // A part of a huge page.
        let request = scene.load_begins(&wire, 2);
        let source = Source::SystemV { id: id.cast_unsigned(), offset: 0 };
        say_system_v(&wire, Message::Resolved { request, range: all(), source, writable: true });
        let fault = scene.loaded().expect_err("not to be mapped");
        assert!(fault.is_hole_at(HERE + 2 * PAGE), "{fault:?}");
    }
    // SAFETY: as above.
    unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
    let now = rmap_tests::maps(scene.importer.pid()).len();
    assert!(now < before + 10, "{before} mappings before, {now} after");
    scene.is_well();
}
