//! Against an exporter: it stays as it is, and serves an honest importer meanwhile.

use crate::protocol::{Access, Message, Source};
use crate::range::Range;
use crate::{ARENA, PATIENCE, anonymous, descriptors, hear, say, shared};
use nix::errno::Errno;
use rmap_tests::{Actor, PAGE, Random, Reply, Stage, Wire, counter, seed};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What anybody may attach.
const OPEN_PAGES: usize = 64;
/// What the honest importer has attached.
const HONEST: usize = ARENA + 1024 * PAGE;
const HONEST_PAGES: usize = 16;

struct Scene {
    exporter: Actor,
    honest: Actor,
    here: usize,
    open: i64,
    round: u64,
    descriptors: usize,
    anonymous: usize,
    shared: usize,
    _stage: Stage,
}

impl Scene {
    fn new(name: &str) -> Self {
        let stage = Stage::new(name, 120);
        let (mut exporter, mut honest) = (stage.actor(), stage.actor());
        exporter.anon_at(ARENA, OPEN_PAGES * PAGE);
        exporter.fill(ARENA, OPEN_PAGES, 1000);
        exporter.anon_at(HONEST, HONEST_PAGES * PAGE);
        let open = exporter.make(ARENA, OPEN_PAGES * PAGE);
        let closed = exporter.make(HONEST, HONEST_PAGES * PAGE);
        let here = honest.get_attach(closed, 0, HONEST_PAGES * PAGE);
        let mut scene = Self {
            exporter,
            honest,
            here,
            open,
            round: 0,
            descriptors: 0,
            anonymous: 0,
            shared: 0,
            _stage: stage,
        };
        // A first stranger, so that what all of them need is there.
        let (wire, grant, range) = scene.guest();
        assert!(matches!(ask(&wire, resolve(1, grant, ARENA, range)), Some(Message::Resolved { .. })));
        drop(wire);
        scene.serves();
        scene.descriptors = descriptors_of(&scene);
        scene.anonymous = anonymous(&scene.exporter);
        scene.shared = shared(&scene.exporter);
        scene
    }

    /// The honest importer finds memory that is new.
    #[track_caller]
    fn serves(&mut self) {
        self.round += 1;
        self.exporter.anon_at(HONEST, HONEST_PAGES * PAGE);
        self.exporter.fill(HONEST, HONEST_PAGES, self.round);
        self.honest.check(self.here, HONEST_PAGES, self.round);
    }

    fn connect(&self) -> Wire {
        Wire::to(self.open).expect("a connection")
    }

    /// A connection with a permit.
    fn guest(&self) -> (Wire, u32, Range) {
        let wire = self.connect();
        match ask(&wire, self.get(1)) {
            Some(Message::Granted { grant, range, .. }) => (wire, grant, range),
            other => panic!("{other:?} instead of a permit"),
        }
    }

    fn get(&self, request: u32) -> Message {
        Message::Get { request, segment: counter(self.open), access: Access::ReadWrite }
    }

    /// All are gone, and the exporter is as before.
    #[track_caller]
    fn ends(mut self) {
        self.serves();
        let before = self.descriptors;
        self.exporter.wait_until("the descriptors go back", || descriptors_of(&self) <= before);
        let (grown, slack) = (anonymous(&self.exporter).saturating_sub(self.anonymous), 8 << 20);
        assert!(grown < slack, "{grown} bytes more of its own");
        let grown = shared(&self.exporter).saturating_sub(self.shared);
        assert!(grown < slack, "{grown} bytes more that are shared");
        self.exporter.check(ARENA, OPEN_PAGES, 1000);
        self.honest.exit();
        self.exporter.exit();
    }
}

fn descriptors_of(scene: &Scene) -> usize {
    descriptors(&scene.exporter)
}

pub(crate) fn resolve(request: u32, grant: u32, addr: usize, attached: Range) -> Message {
    Message::Resolve { request, grant, addr, attached, run: 0, store: false, hops: 0 }
}

/// Says something and hears the answer.
#[track_caller]
pub(crate) fn ask(wire: &Wire, message: Message) -> Option<Message> {
    say(wire, message);
    hear(wire).map(|(message, _)| message)
}

/// Sends bytes; the exporter hangs up.
#[track_caller]
fn is_refused(scene: &Scene, bytes: &[u8], what: &str) {
    let (wire, ..) = scene.guest();
    wire.send(bytes, &[]).unwrap();
    let answer = hear(&wire);
    assert!(answer.is_none(), "{what}: {answer:?}");
}

#[test]
fn ten_thousand_connections_of_garbage() {
    let mut scene = Scene::new("ten_thousand_connections_of_garbage");
    let mut random = Random::new(seed());
    let range = Range::new(ARENA, OPEN_PAGES * PAGE).unwrap();
    for _ in 0..50 {
        let mut wires: Vec<Wire> = Vec::new();
        for number in 0..200_u32 {
            let wire = scene.connect();
            for _ in 0..random.below(4) {
                let mut bytes = match random.below(5) {
                    0 => scene.get(number).encode().to_vec(),
                    1 => resolve(number, random.number() as u32, random.number() as usize, range)
                        .encode()
                        .to_vec(),
                    2 => Message::Release { grant: random.number() as u32 }.encode().to_vec(),
                    _ => vec![0; random.below(200)],
                };
                if random.below(3) > 0 {
                    for _ in 0..random.below(20) {
                        if !bytes.is_empty() {
                            let at = random.below(bytes.len());
                            bytes[at] = random.number() as u8;
                        }
                    }
                }
                // It may have hung up.
                let _ = wire.send(&bytes, &[]);
            }
            if random.below(3) > 0 {
                wires.push(wire);
            }
        }
        scene.serves();
    }
    scene.ends();
}

#[test]
fn guests_that_never_finish() {
    let mut scene = Scene::new("guests_that_never_finish");
    let silent: Vec<Wire> = (0..200).map(|_| scene.connect()).collect();
    let half: Vec<_> = (0..100).map(|_| scene.guest()).collect();
    scene.serves();
    // They ask and ask, and read no answer: until they are not listened to any more.
    let deaf: Vec<_> = (0..20).map(|_| scene.guest()).collect();
    for (wire, grant, range) in &deaf {
        let question = resolve(2, *grant, ARENA, *range).encode();
        scene.exporter.wait_until("the exporter hangs up", || match wire.send(&question, &[]) {
            Ok(()) | Err(Errno::EAGAIN) => false,
            Err(Errno::EPIPE | Errno::ECONNRESET) => true,
            Err(errno) => panic!("{errno}"),
        });
        scene.serves();
    }
    // The patient ones are served when they go on.
    for (wire, grant, range) in &half {
        let answer = ask(wire, resolve(3, *grant, ARENA + PAGE, *range));
        assert!(matches!(answer, Some(Message::Resolved { request: 3, .. })), "{answer:?}");
    }
    drop((silent, half, deaf));
    scene.ends();
}

/// Ends what runs beside a test, also when that fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Asks for what is not there, all the time, until it is over.
fn talk(segid: i64, over: &AtomicBool) {
    let nonsense = Message::Get { request: 7, segment: 0x7ff_ffff, access: Access::ReadWrite }.encode();
    let mut wire = Wire::to(segid).expect("a connection");
    while !over.load(Ordering::Acquire) {
        let sent = wire.send(&nonsense, &[]);
        let heard = loop {
            match wire.receive(Duration::ZERO) {
                Ok(Some(_)) => {}
                other => break other,
            }
        };
        // Whoever reads too slowly is not served any more.
        if !matches!((sent, heard), (Ok(()) | Err(Errno::EAGAIN), Err(Errno::EAGAIN))) {
            wire = Wire::to(segid).expect("a connection");
        }
    }
}

#[test]
fn guests_that_talk_all_the_time() {
    let mut scene = Scene::new("guests_that_talk_all_the_time");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let end = Over(&over);
        for _ in 0..4 {
            let (segid, over) = (scene.open, &over);
            scope.spawn(move || talk(segid, over));
        }
        for _ in 0..50 {
            scene.serves();
        }
        drop(end);
    });
    scene.ends();
}

/// So many copies of one descriptor.
fn copies(count: usize) -> Vec<OwnedFd> {
    let null = std::fs::File::open("/dev/null").unwrap();
    (0..count).map(|_| null.try_clone().unwrap().into()).collect()
}

#[test]
fn floods_of_descriptors() {
    let mut scene = Scene::new("floods_of_descriptors");
    let most = copies(253);
    let most: Vec<BorrowedFd<'_>> = most.iter().map(|descriptor| descriptor.as_fd()).collect();
    for round in 0..100 {
        let (wire, grant, range) = scene.guest();
        let mut asked = false;
        for request in 0..10 {
            let message = if request == 9 && round % 2 == 0 {
                vec![7; 64]
            } else {
                resolve(request, grant, ARENA, range).encode().to_vec()
            };
            match wire.send(&message, &most[..1 + 28 * request as usize]) {
                Ok(()) => asked = true,
                // The kernel may refuse them for the exporter; and there is a limit on what a user has under way.
                Err(Errno::EPERM | Errno::ETOOMANYREFS | Errno::EPIPE | Errno::ECONNRESET) => {}
                // The exporter has not read the others yet.
                Err(Errno::EAGAIN) => break,
                Err(errno) => panic!("{errno}"),
            }
        }
        if asked && round % 3 == 0 {
            let _ = wire.receive(PATIENCE);
        }
        drop(wire);
        if round % 10 == 0 {
            scene.serves();
        }
        let open = descriptors_of(&scene);
        assert!(open < scene.descriptors + 50, "{} descriptors before, {open} now", scene.descriptors);
    }
    scene.ends();
}

#[test]
fn questions_for_counters_without_end() {
    let mut scene = Scene::new("questions_for_counters_without_end");
    for round in 0..20 {
        let (wire, ..) = scene.guest();
        let question = Message::Survey { request: round }.encode();
        // Answers are not kept for somebody who does not read them: in the end the exporter hangs up.
        loop {
            match wire.send(&question, &[]) {
                Ok(()) => {}
                Err(Errno::EAGAIN) => std::thread::yield_now(),
                Err(Errno::EPIPE | Errno::ECONNRESET) => break,
                Err(errno) => panic!("{errno}"),
            }
        }
        scene.serves();
        let open = descriptors_of(&scene);
        assert!(open < scene.descriptors + 50, "{} descriptors before, {open} now", scene.descriptors);
    }
    scene.ends();
}

#[test]
fn guests_that_leave_in_the_middle() {
    let mut scene = Scene::new("guests_that_leave_in_the_middle");
    for round in 0..100_u64 {
        let (wire, grant, range) = scene.guest();
        // Memory that must be adopted first: all threads are stopped for guests that are gone by then.
        scene.exporter.anon_at(ARENA, OPEN_PAGES * PAGE);
        scene.exporter.fill(ARENA, OPEN_PAGES, 1000);
        for page in 0..round % 20 {
            let attached = Range::new(ARENA + page as usize * PAGE, PAGE).unwrap();
            assert!(range.covers(attached));
            say(&wire, resolve(page as u32, grant, attached.start(), attached));
        }
        drop(wire);
        if round % 10 == 0 {
            scene.serves();
        }
    }
    scene.ends();
}

#[test]
fn messages_that_are_none() {
    let mut scene = Scene::new("messages_that_are_none");
    let get = scene.get(5).encode();
    for len in [1, 4, 63, 65, 128, 4096] {
        let bytes: Vec<u8> = get.iter().copied().chain(std::iter::repeat(0)).take(len).collect();
        is_refused(&scene, &bytes, &format!("{len} bytes"));
    }
    for at in 0..8 {
        let mut bytes = get;
        bytes[at] ^= 0x40;
        is_refused(&scene, &bytes, &format!("another byte {at}"));
    }
    let range = Range::new(ARENA, PAGE).unwrap();
    let source = crate::protocol::Source::File { offset: 0 };
    for message in [
        Message::Granted { request: 1, grant: 1, serial: 1, range },
        Message::Refused { request: 1, errno: 1 },
        Message::Resolved { request: 1, range, source, writable: true },
        Message::Hole { request: 1 },
        Message::ReadOnly { request: 1 },
        Message::Stale { range, number: 1, objects: false },
        Message::Removed { grant: 1, number: 1 },
        // Answers to what was never said.
        Message::Seen { number: 1 },
        Message::Seen { number: u32::MAX },
        Message::Closed { serial: 1 },
    ] {
        is_refused(&scene, &message.encode(), &format!("{message:?}"));
        scene.serves();
    }
    scene.ends();
}

#[test]
fn ranges_and_numbers_that_lie() {
    let mut scene = Scene::new("ranges_and_numbers_that_lie");
    let all = Range::new(ARENA, OPEN_PAGES * PAGE).unwrap();
    let between = |from: usize, to: usize| Range::between(from, to).unwrap();
    // Beyond the permit, or not where it says.
    for (what, addr, attached) in [
        ("a page more", ARENA, between(ARENA, all.end() + PAGE)),
        ("a page before", ARENA, between(ARENA - PAGE, all.end())),
        ("everything", ARENA, between(0, 1 << 62)),
        ("the honest importer's", HONEST, between(HONEST, HONEST + PAGE)),
        ("an address outside", ARENA + PAGE, between(ARENA, ARENA + PAGE)),
        ("no address at all", usize::MAX, all),
        ("address 0", 0, all),
    ] {
        let (wire, grant, _) = scene.guest();
        assert_eq!(ask(&wire, resolve(9, grant, addr, attached)), None, "{what}");
        scene.serves();
    }
    // Nothing is behind these numbers, and the connection goes on.
    let (wire, grant, _) = scene.guest();
    for number in [0, grant + 1, u32::MAX] {
        assert_eq!(ask(&wire, resolve(3, number, ARENA, all)), Some(Message::Hole { request: 3 }));
        say(&wire, Message::Release { grant: number });
    }
    for segment in [0, counter(scene.open) + 7, u32::MAX] {
        let get = Message::Get { request: 4, segment, access: Access::ReadWrite };
        assert_eq!(ask(&wire, get), Some(Message::Refused { request: 4, errno: libc::ENOENT as u32 }));
    }
    for run in [1, 63, u32::MAX] {
        let question = Message::Resolve {
            request: 5,
            grant,
            addr: ARENA + 8,
            attached: all,
            run,
            store: run == 1,
            hops: run,
        };
        match ask(&wire, question) {
            Some(Message::Resolved { request: 5, range, .. }) => assert!(all.covers(range), "{range}"),
            other => panic!("run {run}: {other:?}"),
        }
    }
    // Released, it is nothing.
    say(&wire, Message::Release { grant });
    assert_eq!(ask(&wire, resolve(6, grant, ARENA, all)), Some(Message::Hole { request: 6 }));
    drop(wire);
    scene.ends();
}

/// A descriptor whose last close waits for an hour, and what keeps it waiting.
fn reluctant() -> (OwnedFd, std::net::TcpListener) {
    use std::io::Write as _;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    stream.set_nonblocking(true).unwrap();
    // Nobody reads, so that something is left to be sent.
    while stream.write(&[0; 4096]).is_ok() {}
    let linger = libc::linger { l_onoff: 1, l_linger: 3600 };
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger).unwrap();
    (stream.into(), listener)
}

#[test]
fn a_descriptor_whose_close_waits() {
    const SO_PASSRIGHTS: i32 = 83;
    let name = "a_descriptor_whose_close_waits";
    let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
    let off = 0_i32;
    // SAFETY: the value lives through the call.
    let known = unsafe {
        let value = (&raw const off).cast();
        libc::setsockopt(std::os::fd::AsRawFd::as_raw_fd(&socket), libc::SOL_SOCKET, SO_PASSRIGHTS, value, 4)
    };
    if known != 0 {
        return rmap_tests::skip(name, "the kernel cannot refuse descriptors for a socket (Linux 6.16)");
    }
    let mut scene = Scene::new(name);
    for with_a_message in [true, false] {
        let (wire, grant, range) = scene.guest();
        let (descriptor, _listener) = reluctant();
        let message = resolve(1, grant, ARENA, range).encode();
        let bytes = if with_a_message { &message[..] } else { &[1][..] };
        // The exporter's is to be the last close.
        scene.exporter.freeze();
        let sent = wire.send(bytes, &[descriptor.as_fd()]);
        if sent.is_err() {
            let off = libc::linger { l_onoff: 0, l_linger: 0 };
            nix::sys::socket::setsockopt(&descriptor, nix::sys::socket::sockopt::Linger, &off).unwrap();
        }
        drop(descriptor);
        scene.exporter.thaw();
        scene.serves();
        assert_eq!(sent, Err(Errno::EPERM));
    }
    scene.ends();
}

#[test]
fn a_guest_that_changes_how_an_object_is_open() {
    let mut scene = Scene::new("a_guest_that_changes_how_an_object_is_open");
    let wire = scene.connect();
    say(&wire, scene.get(1));
    let (answer, parcel) = hear(&wire).unwrap();
    assert!(matches!(answer, Message::Granted { .. }), "{answer:?}");
    let object = &parcel.descriptors[0];
    nix::fcntl::fcntl(object, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_APPEND)).unwrap();
    nix::unistd::lseek(object, 77, nix::unistd::Whence::SeekSet).unwrap();
    // Nor can it be made smaller, larger, or sealed.
    for len in [0, 1 << 50] {
        assert_eq!(nix::unistd::ftruncate(object, len), Err(Errno::EPERM));
    }
    let seal = nix::fcntl::FcntlArg::F_ADD_SEALS(nix::fcntl::SealFlag::F_SEAL_WRITE);
    assert_eq!(nix::fcntl::fcntl(object, seal), Err(Errno::EPERM));
    // Others are served from the same object, with memory that is new to it.
    scene.exporter.anon_at(ARENA, OPEN_PAGES * PAGE);
    scene.exporter.fill(ARENA, OPEN_PAGES, 1000);
    let there = scene.honest.get_attach(scene.open, 0, OPEN_PAGES * PAGE);
    scene.honest.check(there, OPEN_PAGES, 1000);
    scene.honest.detach(there);
    drop((wire, parcel));
    scene.ends();
}

#[test]
fn a_guest_that_keeps_an_object() {
    let mut scene = Scene::new("a_guest_that_keeps_an_object");
    let closing = scene.exporter.make(ARENA, OPEN_PAGES * PAGE);
    let wire = scene.connect();
    say(&wire, Message::Get { request: 1, segment: counter(closing), access: Access::ReadWrite });
    let Some((Message::Granted { grant, range, .. }, parcel)) = hear(&wire) else { panic!("no permit") };
    assert!(matches!(ask(&wire, resolve(2, grant, ARENA, range)), Some(Message::Resolved { .. })));
    let object = std::fs::File::from(parcel.descriptors.into_iter().next().unwrap());
    let word = || {
        let mut word = [0; 8];
        std::os::unix::fs::FileExt::read_exact_at(&object, &mut word, ARENA as u64).unwrap();
        u64::from_ne_bytes(word)
    };
    assert_eq!(word(), scene.exporter.load(ARENA).unwrap());
    // The segment ends: the memory leaves the object, and what is written to it later is never there.
    assert_eq!(scene.exporter.remove(closing), Ok(0));
    assert_eq!(word(), 0);
    assert!(matches!(hear(&wire), Some((Message::Removed { .. }, _))));
    assert_eq!(ask(&wire, resolve(3, grant, ARENA, range)), Some(Message::Hole { request: 3 }));
    scene.exporter.fill(ARENA, OPEN_PAGES, 1000);
    assert_eq!(word(), 0);
    // Nor does what it writes reach the exporter.
    std::os::unix::fs::FileExt::write_all_at(&object, &[7; PAGE], ARENA as u64).unwrap();
    scene.exporter.check(ARENA, OPEN_PAGES, 1000);
    // Others find the memory, and not what was written.
    let there = scene.honest.get_attach(scene.open, 0, OPEN_PAGES * PAGE);
    scene.honest.check(there, OPEN_PAGES, 1000);
    scene.honest.detach(there);
    drop((wire, object));
    scene.ends();
}

#[test]
fn more_guests_than_descriptors() {
    let mut scene = Scene::new("more_guests_than_descriptors");
    // A limit of 200 descriptors, as two words.
    let limit = scene.exporter.number("text c800000000000000c800000000000000");
    scene.exporter.sys(libc::SYS_prlimit64, &[0, libc::RLIMIT_NOFILE as usize, limit, 0]).unwrap();
    let crowd: Vec<Wire> = (0..400).map(|_| scene.connect()).collect();
    // Whoever was there before them is served.
    for _ in 0..5 {
        scene.serves();
    }
    // Those for whom there is no room are told so, and do not wait.
    let shut_out = crowd.iter().filter(|wire| matches!(wire.receive(Duration::ZERO), Ok(None))).count();
    scene.exporter.wait_until("the exporter hangs up on some", || {
        shut_out > 0 || crowd.iter().any(|wire| matches!(wire.receive(Duration::ZERO), Ok(None)))
    });
    drop(crowd);
    let (wire, grant, range) = scene.guest();
    assert!(matches!(ask(&wire, resolve(1, grant, ARENA, range)), Some(Message::Resolved { .. })));
    drop(wire);
    scene.ends();
}

#[test]
fn a_notice_that_is_answered_late() {
    let mut scene = Scene::new("a_notice_that_is_answered_late");
    let file = scene.exporter.memfd(8 * PAGE);
    let (rw, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    let address = scene.exporter.mmap(0, 8 * PAGE, rw, flags, file, 0);
    let all = Range::new(address, 8 * PAGE).unwrap();
    let id = scene.exporter.make(address, 8 * PAGE);
    let wire = scene.connect();
    let get = Message::Get { request: 1, segment: counter(id), access: Access::ReadWrite };
    let Some(Message::Granted { grant, .. }) = ask(&wire, get) else { panic!("no permit") };
    let shown = ask(&wire, resolve(2, grant, address, all));
    assert!(matches!(shown, Some(Message::Resolved { source: Source::File { .. }, .. })), "{shown:?}");
    let unmap = |page: usize| format!("sys {} {:#x} {:#x}", libc::SYS_munmap, address + page * PAGE, PAGE);
    let next = |wire: &Wire| match hear(wire) {
        Some((Message::Stale { number, .. }, _)) => number,
        other => panic!("{other:?} instead of a notice"),
    };
    scene.exporter.tell(&unmap(0));
    let number = next(&wire);
    // It is alive, but has no core for a while.
    let busy = Duration::from_millis(2500);
    assert!(matches!(wire.receive(busy), Err(Errno::EAGAIN)));
    let (pid, mut waits) = (scene.exporter.pid(), String::new());
    let path = format!("/proc/{pid}/task/{pid}/wchan");
    scene.exporter.wait_until("the kernel says where a thread sleeps", || {
        waits = std::fs::read_to_string(&path).unwrap();
        waits != "0"
    });
    assert!(
        waits.starts_with("userfaultfd_event_wait"),
        "it goes on although the file may be read there: {waits}"
    );
    say(&wire, Message::Seen { number });
    assert_eq!(scene.exporter.answer(), Reply::Ok("0".into()));
    // One that does not answer at all holds nobody up for ever, and the next time not at all.
    scene.exporter.tell(&unmap(1));
    let number = next(&wire);
    assert_eq!(scene.exporter.answer(), Reply::Ok("0".into()));
    for page in 2..8 {
        scene.exporter.tell(&unmap(page));
        assert_eq!(scene.exporter.answer(), Reply::Ok("0".into()));
    }
    say(&wire, Message::Seen { number });
    assert_eq!(scene.exporter.remove(id), Ok(0));
    drop(wire);
    scene.exporter.sys(libc::SYS_close, &[file as usize]).unwrap();
    scene.ends();
}
