//! Attachments that are offered on: a third process attaches what another has attached, and reaches the memory behind it.

use rmap_tests::{
    Actor, Engine, Fault, Log, PAGE, RDONLY, RDWR, Reply, Setup, Stage, compare, expect_clean, is_root, maps,
    pattern::{self, Seen},
    skip, waits_for_page,
};

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const PAGES: usize = 64;
const LEN: usize = PAGES * PAGE;

/// Whether the engine shows attachments to others, or says that it does not.
fn is_possible(name: &str) -> bool {
    let possible = Engine::of_actors().passes_attachments_on();
    if !possible {
        skip(name, "this engine does not show attachments to others");
    }
    possible
}

/// One whose memory it is, one who has attached it, and one who has attached that.
struct Chain {
    owner: Actor,
    middle: Actor,
    third: Actor,
    /// Where each has it.
    memory: usize,
    window: usize,
    here: usize,
    /// What the owner and the middle one offer.
    segid: i64,
    offered: i64,
    /// Of the middle one and the third.
    apid: i64,
    third_apid: i64,
    stage: Stage,
}

impl Chain {
    fn new(name: &str) -> Self {
        Self::with(name, &Setup::default(), RDWR)
    }

    /// The middle one is started in this way, and has a permit for this.
    fn with(name: &str, setup: &Setup, flags: i32) -> Self {
        let stage = Stage::new(name, 120);
        let (mut owner, mut middle) = (stage.actor(), stage.actor_with(setup));
        let mut third = stage.actor();
        let memory = owner.anon(LEN);
        // A mapping of its own, which goes when it is detached.
        let window = middle.place(LEN);
        let segid = owner.make(memory, LEN);
        let apid = middle.try_get(segid, flags).unwrap();
        assert_eq!(middle.try_attach_at(apid, 0, LEN, window), Ok(window));
        let offered = middle.make(window, LEN);
        let third_apid = third.get(offered);
        let here = third.attach(third_apid, 0, LEN);
        Self { owner, middle, third, memory, window, here, segid, offered, apid, third_apid, stage }
    }

    #[track_caller]
    fn agrees(&mut self) {
        compare(&self.owner, &mut self.third, self.memory, self.here, PAGES).unwrap();
    }

    #[track_caller]
    fn third_sees_nothing(&mut self) {
        assert!(shows_nothing(&mut self.third, self.here, PAGES));
    }
}

fn shows_nothing(actor: &mut Actor, address: usize, pages: usize) -> bool {
    actor.look(address, pages).iter().all(|seen| *seen == Seen::Hole)
}

#[test]
fn loads_and_stores_go_both_ways() {
    let name = "loads_and_stores_go_both_ways";
    if !is_possible(name) {
        return;
    }
    let mut chain = Chain::new(name);
    chain.owner.fill(chain.memory, PAGES, 20);
    chain.third.check(chain.here, PAGES, 20);
    chain.third.fill(chain.here, PAGES, 500);
    chain.owner.check(chain.memory, PAGES, 500);
    chain.middle.check(chain.window, PAGES, 500);
    chain.owner.fill(chain.memory, PAGES, 700);
    chain.third.check(chain.here, PAGES, 700);
    chain.middle.fill(chain.window, PAGES / 2, 900);
    chain.third.check(chain.here, PAGES / 2, 900);
    chain.agrees();
}

#[test]
fn all_add_to_one_word() {
    let name = "all_add_to_one_word";
    if !is_possible(name) {
        return;
    }
    let mut chain = Chain::new(name);
    let word = 5 * PAGE + 64;
    let threads = [
        chain.third.start(&format!("add {:#x}", chain.here + word)),
        chain.middle.start(&format!("add {:#x}", chain.window + word)),
        chain.owner.start(&format!("add {:#x}", chain.memory + word)),
    ];
    let mut sum = 0;
    for (actor, thread) in [&mut chain.third, &mut chain.middle, &mut chain.owner].into_iter().zip(threads) {
        while actor.number(&format!("progress {thread}")) < 5000 {
            std::thread::yield_now();
        }
        let report = actor.stop(thread);
        expect_clean(&report);
        sum += report["done"];
    }
    assert_eq!(chain.owner.load(chain.memory + word), Ok(sum));
    assert_eq!(chain.third.load(chain.here + word), Ok(sum));
}

#[test]
fn the_third_is_the_first_to_touch() {
    let name = "the_third_is_the_first_to_touch";
    if !is_possible(name) {
        return;
    }
    let mut chain = Chain::new(name);
    chain.third.store(chain.here + 40 * PAGE, 7).unwrap();
    assert_eq!(chain.owner.load(chain.memory + 40 * PAGE), Ok(7));
    assert_eq!(chain.middle.load(chain.window + 40 * PAGE), Ok(7));
    // What nobody has touched is zeroes for all, and the owner's.
    chain.third.ok(&format!("check {:#x} 8 0 0", chain.here));
    chain.third.fill(chain.here, 8, 30);
    chain.owner.check(chain.memory, 8, 30);
    // And where the one in the middle was first.
    chain.middle.fill(chain.window + 16 * PAGE, 8, 90);
    chain.third.check(chain.here + 16 * PAGE, 8, 90);
    chain.owner.check(chain.memory + 16 * PAGE, 8, 90);
}

#[test]
fn the_third_follows_the_owner() {
    let name = "the_third_follows_the_owner";
    if !is_possible(name) {
        return;
    }
    let mut chain = Chain::new(name);
    let (memory, here) = (chain.memory, chain.here);
    chain.owner.fill(memory, PAGES, 20);
    chain.third.check(here, PAGES, 20);
    chain.owner.munmap(memory, 8 * PAGE);
    for page in 0..8 {
        let at = here + page * PAGE;
        assert!(chain.third.load(at).unwrap_err().is_hole_at(at));
        assert!(chain.third.store(at, 1).unwrap_err().is_hole_at(at));
    }
    chain.agrees();
    chain.owner.anon_at(memory, 16 * PAGE);
    chain.owner.fill(memory, 8, 300);
    chain.agrees();
    chain.third.fill(here, 16, 400);
    chain.owner.check(memory, 16, 400);
    // Moved inside the segment, and out of it.
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    chain.owner.mremap(memory, 4 * PAGE, 4 * PAGE, flags, memory + 32 * PAGE).unwrap();
    chain.third.check(here + 32 * PAGE, 4, 400);
    chain.agrees();
    let outside = chain.owner.place(4 * PAGE);
    chain.owner.mremap(memory + 32 * PAGE, 4 * PAGE, 4 * PAGE, flags, outside).unwrap();
    chain.agrees();
    chain.owner.madvise(memory + 48 * PAGE, 4 * PAGE, libc::MADV_DONTNEED);
    chain.third.ok(&format!("check {:#x} 4 0 0", here + 48 * PAGE));
    chain.third.fill(here + 48 * PAGE, 4, 77);
    chain.owner.check(memory + 48 * PAGE, 4, 77);
    // Over and over.
    for round in 0..20 {
        chain.owner.anon_at(memory, LEN);
        chain.owner.fill(memory, PAGES, 1000 * round);
        chain.third.check(here, PAGES, 1000 * round);
        chain.third.fill(here, PAGES, 1000 * round + 500);
        chain.owner.check(memory, PAGES, 1000 * round + 500);
    }
}

#[test]
fn a_fork_of_the_owner() {
    let name = "a_fork_of_the_owner";
    if !is_possible(name) {
        return;
    }
    let mut chain = Chain::new(name);
    chain.owner.fill(chain.memory, PAGES, 20);
    chain.third.check(chain.here, PAGES, 20);
    let mut child = chain.owner.fork();
    chain.third.fill(chain.here, PAGES / 2, 600);
    chain.owner.check(chain.memory, PAGES / 2, 600);
    child.check(chain.memory, PAGES, 20);
    chain.agrees();
    // A fork of the others takes nothing along.
    let mut child = chain.middle.fork();
    assert!(matches!(child.load(chain.window), Err(Fault { signal: libc::SIGSEGV, .. })));
    chain.third.check(chain.here, PAGES / 2, 600);
    let mut child = chain.third.fork();
    assert!(matches!(child.load(chain.here), Err(Fault { signal: libc::SIGSEGV, .. })));
    chain.agrees();
}

#[test]
fn all_kinds_of_memory() {
    let name = "all_kinds_of_memory";
    if !is_possible(name) {
        return;
    }
    let mut chain = Chain::new(name);
    let (memory, file) = (chain.memory, chain.owner.memfd(LEN));
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    let (first, second, third) = (memory, memory + 16 * PAGE, memory + 32 * PAGE);
    // A file, mapped shared: a part of it, and another part in its place.
    chain.owner.mmap(first, 16 * PAGE, RW, flags, file, 8 * PAGE);
    // Shared memory without a name.
    chain.owner.mmap(second, 16 * PAGE, RW, flags | libc::MAP_ANONYMOUS, -1, 0);
    // System V memory.
    let id = chain.owner.sys(libc::SYS_shmget, &[0, 16 * PAGE, libc::IPC_CREAT as usize | 0o600]).unwrap();
    let remap = 0o40000;
    assert_eq!(chain.owner.sys(libc::SYS_shmat, &[id, third, remap]), Ok(third));
    assert_eq!(chain.owner.sys(libc::SYS_shmctl, &[id, libc::IPC_RMID as usize, 0]), Ok(0));
    chain.owner.fill(memory, 48, 20);
    chain.third.check(chain.here, 48, 20);
    chain.third.fill(chain.here, 48, 200);
    chain.owner.check(memory, 48, 200);
    chain.middle.check(chain.window, 48, 200);
    chain.agrees();
    chain.owner.mmap(first, 8 * PAGE, RW, flags, file, 40 * PAGE);
    chain.owner.fill(first, 8, 800);
    let Chain { owner, third, here, .. } = &mut chain;
    owner.wait_until("the third follows", || third.load(*here) == Ok(pattern::word(800, 0)));
    chain.agrees();
    chain.owner.munmap(first, 8 * PAGE);
    let Chain { owner, third, here, .. } = &mut chain;
    owner.wait_until("the third follows", || shows_nothing(third, *here, 8));
    chain.agrees();
}

#[test]
fn what_the_middle_one_detaches_is_gone() {
    let name = "what_the_middle_one_detaches_is_gone";
    if !is_possible(name) {
        return;
    }
    let mut chain = Chain::new(name);
    chain.owner.fill(chain.memory, PAGES, 20);
    chain.third.check(chain.here, PAGES, 20);
    chain.middle.detach(chain.window);
    chain.third_sees_nothing();
    // Its own memory comes there, and another attachment.
    chain.middle.anon_at(chain.window, LEN);
    chain.middle.fill(chain.window, PAGES, 300);
    compare(&chain.middle, &mut chain.third, chain.window, chain.here, PAGES).unwrap();
    assert_eq!(chain.middle.try_attach_at(chain.apid, 0, LEN, chain.window), Ok(chain.window));
    chain.third.check(chain.here, PAGES, 20);
    chain.third.fill(chain.here, PAGES, 400);
    chain.owner.check(chain.memory, PAGES, 400);
    // Its permit, with its attachments.
    assert_eq!(chain.middle.release(chain.apid), Ok(0));
    chain.third_sees_nothing();
    chain.owner.check(chain.memory, PAGES, 400);
}

#[test]
fn what_the_middle_one_unmaps_goes() {
    let name = "what_the_middle_one_unmaps_goes";
    if !is_possible(name) {
        return;
    }
    let mut chain = Chain::new(name);
    chain.owner.fill(chain.memory, PAGES, 20);
    chain.third.check(chain.here, PAGES, 20);
    chain.middle.munmap(chain.window + 8 * PAGE, 8 * PAGE);
    let (at, third) = (chain.here + 8 * PAGE, &mut chain.third);
    chain.middle.wait_until("the third follows", || third.load(at).is_err_and(|fault| fault.is_hole_at(at)));
    chain.middle.anon_at(chain.window + 8 * PAGE, 8 * PAGE);
    chain.middle.fill(chain.window + 8 * PAGE, 8, 600);
    chain.third.check(chain.here + 8 * PAGE, 8, 600);
    chain.third.check(chain.here, 8, 20);
    chain.third.check(chain.here + 16 * PAGE, PAGES - 16, 36);
    chain.owner.check(chain.memory, PAGES, 20);
}

#[test]
fn a_window_that_is_kept_is_shown_while_it_is_there() {
    let name = "a_window_that_is_kept_is_shown_while_it_is_there";
    if !is_possible(name) {
        return;
    }
    let stage = Stage::new(name, 120);
    let (mut owner, mut middle, mut third) = (stage.actor(), stage.actor(), stage.actor());
    let memory = owner.anon(LEN);
    owner.fill(memory, PAGES, 20);
    let segid = owner.make_all();
    let apid = middle.get(segid);
    let window = middle.attach(apid, memory, LEN);
    let offered = middle.make_all();
    let here = third.get_attach(offered, window, LEN);
    third.check(here, PAGES, 20);
    third.fill(here, PAGES, 100);
    owner.check(memory, PAGES, 100);
    middle.detach(window);
    compare(&owner, &mut third, memory, here, PAGES).unwrap();
    // Without a permit there is no window.
    assert_eq!(middle.release(apid), Ok(0));
    assert!(shows_nothing(&mut third, here, PAGES));
}

#[test]
fn segments_are_removed() {
    let name = "segments_are_removed";
    if !is_possible(name) {
        return;
    }
    let mut chain = Chain::new(name);
    chain.owner.fill(chain.memory, PAGES, 20);
    chain.third.check(chain.here, PAGES / 2, 20);
    assert_eq!(chain.middle.remove(chain.offered), Ok(0));
    chain.third_sees_nothing();
    chain.middle.check(chain.window, PAGES, 20);
    let offered = chain.middle.make(chain.window, LEN);
    chain.here = chain.third.get_attach(offered, 0, LEN);
    chain.third.check(chain.here, PAGES / 2, 20);
    assert_eq!(chain.owner.remove(chain.segid), Ok(0));
    chain.third_sees_nothing();
    chain.owner.check(chain.memory, PAGES, 20);
}

#[test]
fn the_owner_ends() {
    let name = "the_owner_ends";
    if !is_possible(name) {
        return;
    }
    let mut chain = Chain::new(name);
    chain.owner.fill(chain.memory, 1, 20);
    chain.third.check(chain.here, 1, 20);
    chain.owner.kill();
    chain.third.check(chain.here, 1, 20);
    let at = chain.here + (PAGES - 1) * PAGE;
    assert!(chain.third.load(at).unwrap_err().is_hole_at(at));
    // The one in the middle goes on.
    let own = chain.middle.anon(PAGE);
    chain.middle.fill(own, 1, 5);
    let segid = chain.middle.make(own, PAGE);
    let here = chain.third.get_attach(segid, 0, PAGE);
    chain.third.check(here, 1, 5);
}

#[test]
fn the_middle_one_ends() {
    let name = "the_middle_one_ends";
    if !is_possible(name) {
        return;
    }
    let mut chain = Chain::new(name);
    chain.owner.fill(chain.memory, PAGES, 20);
    chain.third.check(chain.here, 1, 20);
    let own = chain.middle.anon(PAGE);
    chain.middle.fill(own, 1, 5);
    let segid = chain.middle.make(own, PAGE);
    let beside = chain.third.get_attach(segid, 0, PAGE);
    chain.third.check(beside, 1, 5);
    chain.middle.kill();
    // What was its own stays readable. The owner knows nothing of the third, so that loses all.
    let (third, here) = (&mut chain.third, chain.here);
    chain.owner.wait_until("the third notices", || shows_nothing(third, here, PAGES));
    chain.third.check(beside, 1, 5);
    chain.owner.check(chain.memory, PAGES, 20);
    assert_eq!(chain.third.release(chain.third_apid), Ok(0));
}

/// Stops the owner, and has a thread of the third touch a page that is not there yet.
fn wait_for_the_owner(chain: &mut Chain) {
    chain.owner.freeze();
    let at = chain.here + 40 * PAGE;
    chain.third.tell(&format!("load {at:#x}"));
    let pid = chain.third.pid();
    chain.third.wait_until("a thread waits for a page", || waits_for_page(pid, pid));
}

#[test]
fn nobody_else_waits_for_an_owner_that_is_stopped() {
    let name = "nobody_else_waits_for_an_owner_that_is_stopped";
    if !is_possible(name) {
        return;
    }
    let mut chain = Chain::new(name);
    wait_for_the_owner(&mut chain);
    // The one in the middle serves, and is served.
    let mut other = chain.stage.actor();
    let own = chain.middle.anon(PAGE);
    chain.middle.fill(own, 1, 5);
    let segid = chain.middle.make(own, PAGE);
    let here = other.get_attach(segid, 0, PAGE);
    other.check(here, 1, 5);
    let theirs = other.anon(PAGE);
    other.fill(theirs, 1, 6);
    let segid = other.make(theirs, PAGE);
    let here = chain.middle.get_attach(segid, 0, PAGE);
    chain.middle.check(here, 1, 6);
    chain.owner.thaw();
    assert_eq!(chain.third.answer(), Reply::Ok("0".to_owned()));
    chain.third.fill(chain.here, PAGES, 70);
    chain.owner.check(chain.memory, PAGES, 70);
}

#[test]
fn a_wait_ends_with_the_owner() {
    let name = "a_wait_ends_with_the_owner";
    if !is_possible(name) {
        return;
    }
    let log = Log::new();
    let mut chain = Chain::with(name, &Setup::logging("debug", &log), RDWR);
    wait_for_the_owner(&mut chain);
    let asked = || !log.lines_with("waiting for exporter").is_empty();
    chain.third.wait_until("the question has been passed on", asked);
    chain.owner.kill();
    let at = chain.here + 40 * PAGE;
    match chain.third.answer() {
        Reply::Fault(fault) => assert!(fault.is_hole_at(at), "{fault:?}"),
        other => panic!("{other:?}"),
    }
    let said = log.lines_with("whose memory it is has gone");
    assert_eq!(said.len(), 1, "{}", log.text());
}

#[test]
fn a_wait_ends_with_the_middle_one() {
    let name = "a_wait_ends_with_the_middle_one";
    if !is_possible(name) {
        return;
    }
    let mut chain = Chain::new(name);
    wait_for_the_owner(&mut chain);
    chain.middle.kill();
    let at = chain.here + 40 * PAGE;
    match chain.third.answer() {
        Reply::Fault(fault) => assert!(fault.is_hole_at(at), "{fault:?}"),
        other => panic!("{other:?}"),
    }
    chain.owner.thaw();
}

#[test]
fn the_third_ends_in_its_wait() {
    let name = "the_third_ends_in_its_wait";
    if !is_possible(name) {
        return;
    }
    let mut chain = Chain::new(name);
    wait_for_the_owner(&mut chain);
    chain.third.kill();
    chain.owner.thaw();
    chain.owner.fill(chain.memory, PAGES, 20);
    chain.middle.check(chain.window, PAGES, 20);
    let mut third = chain.stage.actor();
    let here = third.get_attach(chain.offered, 0, LEN);
    third.check(here, PAGES, 20);
}

#[test]
fn the_middle_one_detaches_while_the_third_waits() {
    let name = "the_middle_one_detaches_while_the_third_waits";
    if !is_possible(name) {
        return;
    }
    let mut chain = Chain::new(name);
    wait_for_the_owner(&mut chain);
    chain.middle.detach(chain.window);
    chain.owner.thaw();
    let at = chain.here + 40 * PAGE;
    match chain.third.answer() {
        Reply::Fault(fault) => assert!(fault.is_hole_at(at), "{fault:?}"),
        other => panic!("{other:?}"),
    }
    chain.third_sees_nothing();
}

#[test]
fn a_third_that_is_stopped_holds_nobody_up_for_long() {
    let name = "a_third_that_is_stopped_holds_nobody_up_for_long";
    if !is_possible(name) {
        return;
    }
    let mut chain = Chain::new(name);
    chain.owner.fill(chain.memory, PAGES, 20);
    chain.third.check(chain.here, PAGES, 20);
    chain.third.freeze();
    chain.middle.detach(chain.window);
    chain.owner.munmap(chain.memory, PAGE);
    chain.third.thaw();
    chain.third_sees_nothing();
}

// ---- rights ----

/// The mapping of an actor at an address, and whether that may be written.
fn writable_mappings(actor: &Actor, address: usize) -> bool {
    let maps = maps(actor.pid());
    maps.iter()
        .filter(|map| map.range.start < address + LEN && address < map.range.end)
        .any(|map| map.writable())
}

#[test]
fn a_permit_to_read_gives_nobody_more() {
    let name = "a_permit_to_read_gives_nobody_more";
    if !is_possible(name) {
        return;
    }
    let mut chain = Chain::with(name, &Setup::default(), RDONLY);
    chain.owner.fill(chain.memory, PAGES, 20);
    chain.third.check(chain.here, PAGES / 2, 20);
    for page in [0, 40] {
        let fault = chain.third.store(chain.here + page * PAGE, 1).unwrap_err();
        assert_eq!(fault.signal, libc::SIGSEGV, "{fault:?}");
    }
    chain.owner.check(chain.memory, PAGES, 20);
    chain.agrees();
    // Nor does the mapping itself: what is written to it stays in the third process.
    chain.third.mprotect(chain.here, LEN, RW);
    let _ = chain.third.store(chain.here, 1);
    chain.owner.check(chain.memory, PAGES, 20);
    chain.owner.fill(chain.memory + PAGE, 1, 99);
    chain.third.check(chain.here + PAGE, 1, 99);
}

#[test]
fn a_permit_of_the_third_to_read() {
    let name = "a_permit_of_the_third_to_read";
    if !is_possible(name) {
        return;
    }
    let mut chain = Chain::new(name);
    let mut reader = chain.stage.actor();
    let apid = reader.try_get(chain.offered, RDONLY).unwrap();
    let here = reader.attach(apid, 0, LEN);
    chain.owner.fill(chain.memory, PAGES, 20);
    reader.check(here, PAGES, 20);
    let fault = reader.store(here, 1).unwrap_err();
    assert_eq!(fault.signal, libc::SIGSEGV, "{fault:?}");
    assert!(!writable_mappings(&reader, here));
    chain.third.fill(chain.here, PAGES, 60);
    reader.check(here, PAGES, 60);
}

#[test]
fn memory_that_the_owner_may_only_read() {
    let name = "memory_that_the_owner_may_only_read";
    if !is_possible(name) {
        return;
    }
    let mut chain = Chain::new(name);
    chain.owner.fill(chain.memory, PAGES, 20);
    chain.owner.mprotect(chain.memory, LEN, libc::PROT_READ);
    chain.third.check(chain.here, PAGES, 20);
    let fault = chain.third.store(chain.here + 8, 1).unwrap_err();
    assert_eq!(fault.signal, libc::SIGSEGV, "{fault:?}");
    chain.agrees();
    chain.owner.mprotect(chain.memory, LEN, RW);
    chain.third.fill(chain.here, PAGES, 40);
    chain.owner.check(chain.memory, PAGES, 40);
    chain.middle.check(chain.window, PAGES, 40);
}

#[test]
fn another_user_gets_nothing_that_is_not_the_middle_ones() {
    let name = "another_user_gets_nothing_that_is_not_the_middle_ones";
    if !is_possible(name) {
        return;
    }
    if !is_root() {
        return skip(name, "only root can run processes of several users");
    }
    let stage = Stage::new(name, 120);
    let user = |id| Setup { user: Some((id, id)), ..Setup::default() };
    let log = Log::new();
    let mut owner = stage.actor_with(&user(64_001));
    let logging = Setup { user: Some((64_002, 64_002)), ..Setup::logging("debug", &log) };
    let mut middle = stage.actor_with(&logging);
    let (mut stranger, mut root) = (stage.actor_with(&user(64_003)), stage.actor());
    let mut friend = stage.actor_with(&user(64_002));
    let memory = owner.anon(LEN);
    owner.fill(memory, PAGES, 20);
    let segid = owner.try_make(memory, LEN, 0o666).unwrap();
    let window = middle.get_attach(segid, 0, LEN);
    let offered = middle.try_make(window, LEN, 0o666).unwrap();
    let own = middle.anon(PAGE);
    middle.fill(own, 1, 5);
    for actor in [&mut stranger, &mut root] {
        let here = actor.get_attach(offered, 0, LEN);
        assert!(shows_nothing(actor, here, PAGES));
    }
    assert!(!log.lines_with("an attachment of this process, for another user").is_empty(), "{}", log.text());
    // The user's own processes get it, with no more than the owner allows.
    let here = friend.get_attach(offered, 0, LEN);
    friend.check(here, PAGES, 20);
    friend.fill(here, PAGES, 30);
    owner.check(memory, PAGES, 30);
    // The owner has seen strangers, and takes its memory back.
    assert_eq!(owner.remove(segid), Ok(0));
    assert!(shows_nothing(&mut friend, here, PAGES));
}

// ---- chains and circles ----

#[test]
fn a_chain_of_many() {
    let name = "a_chain_of_many";
    if !is_possible(name) {
        return;
    }
    // So many processes pass a question on at most.
    const MOST: usize = 8;
    let stage = Stage::new(name, 120);
    let mut actors = stage.actors(MOST + 3);
    let memory = actors[0].anon(LEN);
    let mut places = vec![memory];
    for index in 1..actors.len() {
        let segid = actors[index - 1].make(places[index - 1], LEN);
        let place = actors[index].place(LEN);
        let apid = actors[index].get(segid);
        assert_eq!(actors[index].try_attach_at(apid, 0, LEN, place), Ok(place));
        places.push(place);
    }
    // Four: the last one is the first to touch.
    actors[3].fill(places[3], PAGES / 2, 20);
    actors[0].check(memory, PAGES / 2, 20);
    for (actor, place) in actors.iter_mut().zip(&places).take(MOST + 2) {
        actor.check(*place, PAGES / 2, 20);
    }
    actors[MOST + 1].fill(places[MOST + 1], PAGES, 40);
    for (actor, place) in actors.iter_mut().zip(&places).take(MOST + 2) {
        actor.check(*place, PAGES, 40);
    }
    actors[0].munmap(memory, 8 * PAGE);
    let (rest, place) = (&mut actors[1..MOST + 2], &places[1..]);
    for (actor, place) in rest.iter_mut().zip(place) {
        assert!(shows_nothing(actor, *place, 8));
        actor.check(*place + 8 * PAGE, PAGES - 8, 48);
    }
    // In the middle of the chain.
    actors[2].detach(places[2]);
    assert!(shows_nothing(&mut actors[3], places[3], PAGES));
}

#[test]
fn an_attachment_of_own_memory_is_offered_on() {
    let name = "an_attachment_of_own_memory_is_offered_on";
    if !is_possible(name) {
        return;
    }
    let stage = Stage::new(name, 120);
    let (mut owner, mut other) = (stage.actor(), stage.actor());
    let memory = owner.anon(LEN);
    let segid = owner.make(memory, LEN);
    let again = owner.place(LEN);
    let apid = owner.get(segid);
    assert_eq!(owner.try_attach_at(apid, 0, LEN, again), Ok(again));
    let offered = owner.make(again, LEN);
    let here = other.get_attach(offered, 0, LEN);
    other.fill(here, PAGES, 20);
    owner.check(memory, PAGES, 20);
    owner.check(again, PAGES, 20);
    owner.anon_at(memory, LEN);
    owner.fill(memory, PAGES, 60);
    other.check(here, PAGES, 60);
    owner.detach(again);
    assert!(shows_nothing(&mut other, here, PAGES));
    owner.check(memory, PAGES, 60);
}

#[test]
fn memory_comes_back_to_its_owner() {
    let name = "memory_comes_back_to_its_owner";
    if !is_possible(name) {
        return;
    }
    let mut chain = Chain::new(name);
    let back = chain.owner.place(LEN);
    let apid = chain.owner.get(chain.offered);
    assert_eq!(chain.owner.try_attach_at(apid, 0, LEN, back), Ok(back));
    chain.owner.fill(chain.memory, PAGES, 20);
    chain.owner.check(back, PAGES, 20);
    chain.owner.fill(back, PAGES, 30);
    chain.owner.check(chain.memory, PAGES, 30);
    chain.third.check(chain.here, PAGES, 30);
    // Its own mappings of what it has are not taken for memory that it has moved.
    chain.owner.munmap(chain.memory, 8 * PAGE);
    assert!(shows_nothing(&mut chain.owner, back, 8));
    chain.owner.check(back + 8 * PAGE, PAGES - 8, 38);
    let (from, to) = (chain.memory + 8 * PAGE, chain.memory);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    chain.owner.mremap(from, 4 * PAGE, 4 * PAGE, flags, to).unwrap();
    chain.owner.check(back, 4, 38);
    assert!(shows_nothing(&mut chain.owner, back + 4 * PAGE, 8));
    chain.owner.anon_at(from, 4 * PAGE);
    chain.owner.fill(from, 4, 38);
    let mut child = chain.owner.fork();
    child.check(chain.memory + 8 * PAGE, PAGES - 8, 38);
    chain.owner.fill(back + 8 * PAGE, 8, 500);
    chain.owner.check(chain.memory + 8 * PAGE, 8, 500);
    chain.agrees();
}

#[test]
fn attachments_that_show_each_other_show_nothing() {
    let name = "attachments_that_show_each_other_show_nothing";
    if !is_possible(name) {
        return;
    }
    let stage = Stage::new(name, 60);
    let (mut a, mut b) = (stage.actor(), stage.actor());
    let (place_a, place_b) = (a.place(LEN), b.place(LEN));
    let (segid_a, segid_b) = (a.make(place_a, LEN), b.make(place_b, LEN));
    let (of_b, of_a) = (a.get(segid_b), b.get(segid_a));
    assert_eq!(a.try_attach_at(of_b, 0, LEN, place_a), Ok(place_a));
    assert_eq!(b.try_attach_at(of_a, 0, LEN, place_b), Ok(place_b));
    assert!(shows_nothing(&mut a, place_a, 8));
    assert!(shows_nothing(&mut b, place_b, 8));
    // All in one process.
    let mut own = stage.actor();
    let places = [own.place(LEN), own.place(LEN)];
    for (from, to) in [(places[0], places[1]), (places[1], places[0])] {
        let segid = own.make(from, LEN);
        let apid = own.get(segid);
        assert_eq!(own.try_attach_at(apid, 0, LEN, to), Ok(to));
    }
    assert!(shows_nothing(&mut own, places[0], 8));
    assert!(shows_nothing(&mut own, places[1], 8));
    // The circle is broken.
    a.detach(place_a);
    a.anon_at(place_a, LEN);
    a.fill(place_a, PAGES, 20);
    b.check(place_b, PAGES, 20);
    own.detach(places[1]);
    own.anon_at(places[1], LEN);
    own.fill(places[1], PAGES, 40);
    own.check(places[0], PAGES, 40);
    for actor in [a, b, own] {
        actor.exit();
    }
}

#[test]
fn each_offers_the_other_what_it_has_of_it() {
    let name = "each_offers_the_other_what_it_has_of_it";
    if !is_possible(name) {
        return;
    }
    let stage = Stage::new(name, 120);
    let (mut a, mut b) = (stage.actor(), stage.actor());
    let file = a.memfd(LEN);
    let memory = a.mmap(0, LEN, RW, libc::MAP_SHARED, file, 0);
    let (segid_a, segid_b) = (a.make_all(), b.make_all());
    let (of_b, of_a) = (a.get(segid_b), b.get(segid_a));
    let first = b.attach(of_a, memory, LEN);
    let second = a.attach(of_b, first, LEN);
    let third = b.attach(of_a, second, LEN);
    a.fill(memory, PAGES, 20);
    b.check(third, PAGES, 20);
    b.fill(third, PAGES, 30);
    a.check(memory, PAGES, 30);
    a.check(second, PAGES, 30);
    // Notices go round, and nobody waits for himself.
    a.munmap(memory, LEN);
    a.wait_until("the notice has gone round", || {
        shows_nothing(&mut b, first, PAGES) && shows_nothing(&mut b, third, PAGES)
    });
    assert!(shows_nothing(&mut a, second, PAGES));
    a.exit();
    b.exit();
}
