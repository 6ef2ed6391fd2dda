//! Against a process that offers on what it has attached: it shows what it may, and no more of it than the permit says.

use crate::importers::{ask, resolve};
use crate::protocol::{Access, Message, Source};
use crate::range::Range;
use crate::{ARENA, descriptors, hear, say};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rmap_tests::{Actor, Engine, PAGE, RDONLY, RDWR, Reply, Stage, Wire, counter, skip, task_blocked_in};
use std::os::fd::AsFd as _;
use std::time::Duration;

const PAGES: usize = 64;
const HERE: usize = ARENA + (1 << 30);

/// An owner, and a middle one that has attached its memory at `HERE` and offers that.
struct Scene {
    owner: Actor,
    middle: Actor,
    offered: i64,
    stage: Stage,
}

impl Scene {
    /// `None` where attachments are not shown on.
    fn new(name: &str, flags: i32) -> Option<Self> {
        if !Engine::of_actors().passes_attachments_on() {
            skip(name, "this engine does not show attachments to others");
            return None;
        }
        let stage = Stage::new(name, 120);
        let (mut owner, mut middle) = (stage.actor(), stage.actor());
        owner.anon_at(ARENA, PAGES * PAGE);
        owner.fill(ARENA, PAGES, 20);
        let segid = owner.make(ARENA, PAGES * PAGE);
        let apid = middle.try_get(segid, flags).unwrap();
        assert_eq!(middle.try_attach_at(apid, 0, PAGES * PAGE, HERE), Ok(HERE));
        let offered = middle.make(HERE, PAGES * PAGE);
        Some(Self { owner, middle, offered, stage })
    }

    fn guest(&self, access: Access) -> (Wire, u32) {
        let wire = Wire::to(self.offered).expect("a connection");
        match ask(&wire, Message::Get { request: 1, segment: counter(self.offered), access }) {
            Some(Message::Granted { grant, .. }) => (wire, grant),
            other => panic!("{other:?} instead of a permit"),
        }
    }

    /// Others are shown what is there.
    #[track_caller]
    fn serves(&mut self) {
        let mut third = self.stage.actor();
        let here = third.get_attach(self.offered, 0, PAGES * PAGE);
        third.check(here, PAGES, 20);
    }
}

fn all() -> Range {
    Range::new(HERE, PAGES * PAGE).unwrap()
}

/// Whether the descriptor of an answer can be written, and whether the answer says so.
#[track_caller]
fn is_writable(wire: &Wire, question: Message) -> (bool, bool) {
    say(wire, question);
    match hear(wire) {
        Some((Message::Resolved { source: Source::Foreign { .. }, range, writable, .. }, parcel)) => {
            assert!(all().covers(range), "{range}");
            let flags = fcntl(parcel.descriptors[0].as_fd(), FcntlArg::F_GETFL).unwrap();
            (OFlag::from_bits_retain(flags) & OFlag::O_ACCMODE != OFlag::O_RDONLY, writable)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn descriptors_allow_what_both_permits_do() {
    let name = "descriptors_allow_what_both_permits_do";
    for (of_middle, of_guest, expected) in [
        (RDWR, Access::ReadWrite, true),
        (RDWR, Access::ReadOnly, false),
        (RDONLY, Access::ReadWrite, false),
        (RDONLY, Access::ReadOnly, false),
    ] {
        let Some(mut scene) = Scene::new(name, of_middle) else { return };
        let (wire, grant) = scene.guest(of_guest);
        // The first is asked of the owner, the others are there.
        for page in [0, 1, 0, 40] {
            let question = resolve(2, grant, HERE + page * PAGE, all());
            assert_eq!(is_writable(&wire, question), (expected, expected), "{of_middle} {of_guest:?}");
        }
        let store =
            Message::Resolve { request: 3, grant, addr: HERE, attached: all(), run: 0, store: true, hops: 0 };
        if expected {
            assert_eq!(is_writable(&wire, store), (true, true));
        } else {
            assert_eq!(ask(&wire, store), Some(Message::ReadOnly { request: 3 }));
        }
        scene.serves();
        scene.owner.check(ARENA, PAGES, 20);
    }
}

#[test]
fn questions_that_have_gone_too_far() {
    let Some(mut scene) = Scene::new("questions_that_have_gone_too_far", RDWR) else { return };
    let (wire, grant) = scene.guest(Access::ReadWrite);
    for hops in [8, 9, u32::MAX] {
        let far =
            Message::Resolve { request: 2, grant, addr: HERE, attached: all(), run: 0, store: false, hops };
        assert_eq!(ask(&wire, far), Some(Message::Hole { request: 2 }));
    }
    // One page is all that is attached.
    let page = Range::new(HERE + 3 * PAGE, PAGE).unwrap();
    match ask(&wire, resolve(3, grant, page.start(), page)) {
        Some(Message::Resolved { range, source: Source::Foreign { offset }, .. }) => {
            assert_eq!((range, offset), (page, (ARENA + 3 * PAGE) as u64));
        }
        other => panic!("{other:?}"),
    }
    scene.serves();
}

#[test]
fn questions_without_end_while_the_owner_is_stopped() {
    let name = "questions_without_end_while_the_owner_is_stopped";
    // So many are passed on at a time.
    const MOST: u32 = 4096;
    let Some(mut scene) = Scene::new(name, RDWR) else { return };
    let own = scene.middle.anon(PAGE);
    let segid = scene.middle.make(own, PAGE);
    let mut third = scene.stage.actor();
    let here = third.get_attach(segid, 0, PAGE);
    scene.middle.fill(own, 1, 4);
    third.check(here, 1, 4);
    // What is made for the first permit stays.
    drop(scene.guest(Access::ReadWrite));
    let before = descriptors(&scene.middle);
    scene.owner.freeze();
    let (wire, grant) = scene.guest(Access::ReadWrite);
    let question = |request: u32| resolve(request, grant, HERE + request as usize % PAGES * PAGE, all());
    for request in 0..MOST {
        while wire.send(&question(request).encode(), &[]).is_err_and(|errno| errno == Errno::EAGAIN) {
            std::thread::yield_now();
        }
    }
    for request in MOST..MOST + 10 {
        assert_eq!(ask(&wire, question(request)), Some(Message::Hole { request }));
    }
    // Its own memory is served meanwhile.
    scene.middle.anon_at(own, PAGE);
    scene.middle.fill(own, 1, 5);
    third.check(here, 1, 5);
    // The others go with whoever has asked.
    drop(wire);
    scene.owner.thaw();
    scene.serves();
    scene.middle.wait_until("the descriptors go back", || descriptors(&scene.middle) <= before);
}

#[test]
fn one_that_gives_its_permit_back_in_between() {
    let Some(mut scene) = Scene::new("one_that_gives_its_permit_back_in_between", RDWR) else { return };
    scene.owner.freeze();
    let (wire, grant) = scene.guest(Access::ReadWrite);
    say(&wire, resolve(2, grant, HERE, all()));
    say(&wire, Message::Release { grant });
    // Answered in order: the permit is gone now.
    assert_eq!(ask(&wire, resolve(3, grant, HERE, all())), Some(Message::Hole { request: 3 }));
    scene.owner.thaw();
    assert_eq!(hear(&wire).map(|(message, _)| message), Some(Message::Hole { request: 2 }));
    scene.serves();
}

#[test]
fn calls_wait_for_those_who_have_been_shown() {
    let name = "calls_wait_for_those_who_have_been_shown";
    let Some(mut scene) = Scene::new(name, RDWR) else { return };
    let detach = format!("detach {HERE:#x}");
    let remove = format!("remove {}", scene.offered);
    for call in [remove, detach] {
        let (wire, grant) = scene.guest(Access::ReadWrite);
        assert_eq!(is_writable(&wire, resolve(2, grant, HERE, all())), (true, true));
        scene.middle.tell(&format!("xpmem {call}"));
        let number = match hear(&wire) {
            Some((Message::Stale { number, .. } | Message::Removed { number, .. }, _)) => number,
            other => panic!("{other:?} instead of a notice"),
        };
        // It has no core for a while.
        while let Ok(Some(_)) = wire.receive(Duration::from_millis(500)) {}
        let pid = scene.middle.pid();
        assert_eq!(task_blocked_in(pid, pid), Some(libc::SYS_futex), "{call} does not wait");
        say(&wire, Message::Seen { number });
        assert_eq!(scene.middle.answer(), Reply::Ok("0 0".into()));
        scene.offered = scene.middle.make(HERE, PAGES * PAGE);
    }
    scene.owner.check(ARENA, PAGES, 20);
}
