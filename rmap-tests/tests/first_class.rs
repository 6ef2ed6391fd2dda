//! An attachment is memory like any other to the kernel, and so is what an exporter shares.

use rmap_tests::{Actor, Engine, PAGE, Stage, goes_without, pattern, skip};
use std::fs::File;

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const PAGES: usize = 16;

struct Pair {
    exporter: Actor,
    importer: Actor,
    /// Memory of the exporter with the stamps from 20 on, and where the importer has it.
    there: usize,
    here: usize,
    segid: i64,
    stage: Stage,
}

impl Pair {
    fn new(name: &str) -> Self {
        let stage = Stage::new(name, 120);
        let (mut exporter, mut importer) = (stage.actor(), stage.actor());
        let there = exporter.anon(PAGES * PAGE);
        exporter.fill(there, PAGES, 20);
        let segid = exporter.make_all();
        let here = importer.get_attach(segid, there, PAGES * PAGE);
        importer.check(here, PAGES, 20);
        Self { exporter, importer, there, here, segid, stage }
    }
}

/// Puts words into an actor's memory.
fn words(actor: &mut Actor, address: usize, words: &[u64]) -> usize {
    for (index, word) in words.iter().enumerate() {
        actor.store(address + index * 8, *word).unwrap();
    }
    address
}

/// A file with the stamps from `first` on.
fn stamped(pages: usize, first: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut bytes = vec![0; pages * PAGE];
    for (stamp, page) in (first..).zip(bytes.chunks_exact_mut(PAGE)) {
        pattern::draw(stamp, page.try_into().unwrap());
    }
    std::fs::write(file.path(), &bytes).unwrap();
    // What is read comes from the device, not from memory.
    File::open(file.path()).unwrap().sync_all().unwrap();
    file
}

/// Opens a file so that devices read and write memory without a copy, or says that this cannot be.
fn open_direct(actor: &mut Actor, file: &tempfile::NamedTempFile) -> Result<usize, i32> {
    let path = actor.text(file.path().to_str().unwrap());
    let (at, flags) = (libc::AT_FDCWD as isize as usize, (libc::O_RDWR | libc::O_DIRECT) as usize);
    actor.sys(libc::SYS_openat, &[at, path, flags])
}

const NO_DIRECT: &str = "the file system of TMPDIR has no O_DIRECT";

// ---- the importer's side ----

#[test]
fn a_futex_in_an_attachment() {
    let mut pair = Pair::new("a_futex_in_an_attachment");
    let wake = (libc::FUTEX_WAKE as usize, i32::MAX as usize);
    // Each side sleeps, and the other wakes it.
    for page in 0..4 {
        let (there, here) = (pair.there + page * PAGE, pair.here + page * PAGE);
        let (sleeper, at, waker, from) = if page % 2 == 0 {
            (&mut pair.importer, here, &mut pair.exporter, there)
        } else {
            (&mut pair.exporter, there, &mut pair.importer, here)
        };
        sleeper.store(at, 0).unwrap();
        let thread = sleeper.start(&format!("block futexat {at:#x}"));
        sleeper.wait_blocked(thread, libc::SYS_futex);
        waker.store(from, 1).unwrap();
        assert_eq!(waker.sys(libc::SYS_futex, &[from, wake.0, wake.1, 0, 0, 0]), Ok(1));
        let report = sleeper.stop(thread);
        assert_eq!((report["efault"], report["eintr"], report["other"]), (0, 0, 0), "{report:?}");
    }
}

#[test]
fn a_mutex_in_an_attachment() {
    let mut pair = Pair::new("a_mutex_in_an_attachment");
    pair.exporter.fill_same(pair.there, 1, 0);
    pair.exporter.ok(&format!("mutex {:#x}", pair.there));
    let before = pair.exporter.load(pair.there + 64).unwrap();
    let threads: Vec<(usize, usize)> = (0..2)
        .map(|_| {
            let there = pair.exporter.start(&format!("locked {:#x}", pair.there));
            (there, pair.importer.start(&format!("locked {:#x}", pair.here)))
        })
        .collect();
    for (there, here) in &threads {
        while pair.exporter.number(&format!("progress {there}")) < 2000
            || pair.importer.number(&format!("progress {here}")) < 2000
        {
            std::thread::yield_now();
        }
    }
    let mut steps = 0;
    for (there, here) in threads {
        for report in [pair.exporter.stop(there), pair.importer.stop(here)] {
            assert_eq!(report["errors"], 0, "{report:?}");
            steps += report["steps"];
        }
    }
    assert_eq!(pair.exporter.load(pair.there + 64), Ok(before + steps));
}

#[test]
fn direct_reads_and_writes_of_an_attachment() {
    let name = "direct_reads_and_writes_of_an_attachment";
    let mut pair = Pair::new(name);
    let file = stamped(PAGES, 400);
    let Ok(fd) = open_direct(&mut pair.importer, &file) else {
        return skip(name, NO_DIRECT);
    };
    let len = PAGES * PAGE;
    assert_eq!(pair.importer.sys(libc::SYS_pread64, &[fd, pair.here, len, 0]), Ok(len));
    pair.exporter.check(pair.there, PAGES, 400);
    pair.exporter.fill(pair.there, PAGES, 600);
    assert_eq!(pair.importer.sys(libc::SYS_pwrite64, &[fd, pair.here, len, 0]), Ok(len));
    let bytes = std::fs::read(file.path()).unwrap();
    for (stamp, page) in (600..).zip(bytes.chunks_exact(PAGE)) {
        assert_eq!(pattern::Seen::of(page.try_into().unwrap()), pattern::Seen::Stamp(stamp));
    }
}

#[test]
fn pages_of_an_attachment_in_a_pipe() {
    let mut pair = Pair::new("pages_of_an_attachment_in_a_pipe");
    let own = pair.importer.anon(PAGES * PAGE);
    pair.importer.sys(libc::SYS_pipe2, &[own, 0]).unwrap();
    let ends = pair.importer.load(own).unwrap();
    let (reader, writer) = (ends as u32 as usize, (ends >> 32) as usize);
    let vector = words(&mut pair.importer, own, &[pair.here as u64, 8 * PAGE as u64]);
    assert_eq!(pair.importer.sys(libc::SYS_vmsplice, &[writer, vector, 1, 0]), Ok(8 * PAGE));
    // The pipe has the pages, not a copy of them.
    pair.exporter.fill(pair.there, 4, 90);
    assert_eq!(pair.importer.sys(libc::SYS_read, &[reader, own, 8 * PAGE]), Ok(8 * PAGE));
    pair.importer.check(own, 4, 90);
    pair.importer.check(own + 4 * PAGE, 4, 24);
    // It may keep them longer than the exporter does.
    let vector = words(&mut pair.importer, own, &[pair.here as u64, 8 * PAGE as u64]);
    assert_eq!(pair.importer.sys(libc::SYS_vmsplice, &[writer, vector, 1, 0]), Ok(8 * PAGE));
    pair.exporter.munmap(pair.there, 8 * PAGE);
    assert!(pair.importer.load(pair.here).unwrap_err().is_hole_at(pair.here));
    assert_eq!(pair.importer.sys(libc::SYS_read, &[reader, own, 8 * PAGE]), Ok(8 * PAGE));
    pair.importer.check(own, 4, 90);
    pair.exporter.check(pair.there + 8 * PAGE, PAGES - 8, 28);
}

#[test]
fn a_third_process_reads_and_writes_an_attachment() {
    let mut pair = Pair::new("a_third_process_reads_and_writes_an_attachment");
    let mut third = pair.stage.actor();
    let own = third.anon(PAGES * PAGE);
    let vectors = third.anon(PAGE);
    let len = (PAGES * PAGE) as u64;
    words(&mut third, vectors, &[own as u64, len, pair.here as u64, len]);
    let arguments = [pair.importer.pid() as usize, vectors, 1, vectors + 16, 1, 0];
    assert_eq!(third.sys(libc::SYS_process_vm_readv, &arguments), Ok(len as usize));
    third.check(own, PAGES, 20);
    third.fill(own, PAGES, 800);
    assert_eq!(third.sys(libc::SYS_process_vm_writev, &arguments), Ok(len as usize));
    pair.exporter.check(pair.there, PAGES, 800);
}

#[test]
fn a_debugger_looks_at_an_attachment() {
    const PEEK: usize = 2;
    const POKE: usize = 5;
    const ATTACH: usize = 16;
    const DETACH: usize = 17;
    let mut pair = Pair::new("a_debugger_looks_at_an_attachment");
    let mut third = pair.stage.actor();
    let own = third.anon(PAGE);
    let pid = pair.importer.pid() as usize;
    third.sys(libc::SYS_ptrace, &[ATTACH, pid, 0, 0]).unwrap();
    assert_eq!(third.sys(libc::SYS_wait4, &[pid, own, 0, 0]), Ok(pid));
    let at = pair.here + 3 * PAGE;
    third.sys(libc::SYS_ptrace, &[PEEK, pid, at, own]).unwrap();
    assert_eq!(third.load(own), pair.exporter.load(pair.there + 3 * PAGE));
    third.sys(libc::SYS_ptrace, &[POKE, pid, at, 4321]).unwrap();
    assert_eq!(pair.exporter.load(pair.there + 3 * PAGE), Ok(4321));
    // What the exporter takes away meanwhile is not there for a debugger either.
    pair.exporter.munmap(pair.there + 3 * PAGE, PAGE);
    assert!(third.sys(libc::SYS_ptrace, &[PEEK, pid, at, own]).is_err());
    third.sys(libc::SYS_ptrace, &[DETACH, pid, 0, 0]).unwrap();
    pair.importer.check(pair.here, 3, 20);
    assert!(pair.importer.load(at).unwrap_err().is_hole_at(at));
}

/// Where the engine can: elsewhere what is somebody else's can only be had at first hand.
#[test]
fn an_attachment_is_offered_to_others() {
    let mut pair = Pair::new("an_attachment_is_offered_to_others");
    let mut third = pair.stage.actor();
    let own = pair.importer.anon(PAGE);
    pair.importer.fill(own, 1, 70);
    let again = pair.importer.make_all();
    let apid = third.get(again);
    let second_hand = third.attach(apid, pair.here, PAGES * PAGE);
    if Engine::of_actors().passes_attachments_on() {
        third.check(second_hand, PAGES, 20);
    } else {
        for page in 0..PAGES {
            let at = second_hand + page * PAGE;
            assert!(third.load(at).unwrap_err().is_hole_at(at));
            assert!(third.store(at, 1).unwrap_err().is_hole_at(at));
        }
    }
    let beside = third.attach(apid, own, PAGE);
    third.check(beside, 1, 70);
    let first_hand = third.get_attach(pair.segid, pair.there, PAGES * PAGE);
    third.check(first_hand, PAGES, 20);
    third.fill(first_hand, PAGES, 300);
    pair.importer.check(pair.here, PAGES, 300);
    pair.exporter.check(pair.there, PAGES, 300);
}

// ---- io_uring ----

/// An io_uring of an actor, for one request at a time.
struct Ring {
    fd: usize,
    rings: usize,
    entries: usize,
    /// Where the tail and the array of submissions are, and head, mask and entries of completions.
    tail: usize,
    array: usize,
    head: usize,
    mask: u64,
    completions: usize,
    /// What is handed to registrations.
    vector: usize,
}

const READ_FIXED: u64 = 4;
const WRITE_FIXED: u64 = 5;

impl Ring {
    fn new(actor: &mut Actor) -> Result<Self, i32> {
        let params = actor.anon(PAGE);
        let fd = actor.sys(libc::SYS_io_uring_setup, &[4, params])?;
        let bytes = actor.page(params).expect("the parameters");
        let field = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        // Offsets of `struct io_uring_params`: 40 and on for submissions, 80 and on for completions.
        let (tail, array) = (field(44), field(64));
        let (head, mask, completions) = (field(80), field(88), field(100));
        let len = completions + 16 * field(4);
        // The kernel wants to choose the places.
        let mut map = |len: usize, offset| {
            let arguments =
                [0, len.next_multiple_of(PAGE), RW as usize, libc::MAP_SHARED as usize, fd, offset];
            actor.sys(libc::SYS_mmap, &arguments).expect("a part of an io_uring")
        };
        let (rings, entries) = (map(len, 0), map(PAGE, 0x1000_0000));
        // All submissions are the first entry.
        words(actor, rings + array, &[0, 0]);
        let mask = actor.load(rings + mask).expect("a word") & 0xffff_ffff;
        Ok(Self { fd, rings, entries, tail, array: rings + array, head, mask, completions, vector: params })
    }

    fn register(&self, actor: &mut Actor, address: usize, len: usize) -> Result<usize, i32> {
        words(actor, self.vector, &[address as u64, len as u64]);
        actor.sys(libc::SYS_io_uring_register, &[self.fd, 0, self.vector, 1])
    }

    fn unregister(&self, actor: &mut Actor) {
        actor.sys(libc::SYS_io_uring_register, &[self.fd, 1, 0, 0]).unwrap();
    }

    /// Has a file read into, or written from, a registered buffer, and gives the result.
    fn transfer(&self, actor: &mut Actor, what: u64, file: usize, address: usize, len: usize) -> i32 {
        let entry = [what | (file as u64) << 32, 0, address as u64, len as u64, 1, 0, 0, 0];
        words(actor, self.entries, &entry);
        assert_eq!(actor.load(self.array), Ok(0));
        let tail = self.rings + self.tail;
        let before = actor.load(tail).unwrap();
        actor.store(tail, before + 1).unwrap();
        assert_eq!(actor.sys(libc::SYS_io_uring_enter, &[self.fd, 1, 1, 1, 0, 0]), Ok(1));
        let head = actor.load(self.rings + self.head).unwrap();
        let completion = self.rings + self.completions + 16 * (head & self.mask) as usize;
        let result = actor.load(completion + 8).unwrap() as u32;
        actor.store(self.rings + self.head, head + 1).unwrap();
        result.cast_signed()
    }
}

const NO_RING: &str = "no io_uring here";
/// Kernels that have the former have the latter.
const NO_PINS: &str = "move-pages and populate are needed to tell which pages are pinned";

#[test]
fn an_attachment_is_a_fixed_buffer() {
    let name = "an_attachment_is_a_fixed_buffer";
    let mut pair = Pair::new(name);
    let file = stamped(PAGES, 400);
    let Ok(ring) = Ring::new(&mut pair.importer) else {
        return skip(name, NO_RING);
    };
    let Ok(fd) = open_direct(&mut pair.importer, &file) else {
        return skip(name, NO_DIRECT);
    };
    let len = PAGES * PAGE;
    ring.register(&mut pair.importer, pair.here, len).unwrap();
    assert_eq!(ring.transfer(&mut pair.importer, READ_FIXED, fd, pair.here, len), len as i32);
    pair.exporter.check(pair.there, PAGES, 400);
    pair.exporter.fill(pair.there, PAGES, 700);
    assert_eq!(ring.transfer(&mut pair.importer, WRITE_FIXED, fd, pair.here, len), len as i32);
    let bytes = std::fs::read(file.path()).unwrap();
    let first: &[u8; PAGE] = bytes[..PAGE].try_into().unwrap();
    assert_eq!(pattern::Seen::of(first), pattern::Seen::Stamp(700));
    // The exporter takes its memory back although a device may still write to the pages. It goes on with others.
    pair.exporter.anon_at(pair.there, len);
    pair.exporter.fill(pair.there, PAGES, 900);
    assert_eq!(ring.transfer(&mut pair.importer, READ_FIXED, fd, pair.here, len), len as i32);
    pair.exporter.check(pair.there, PAGES, 900);
    pair.importer.check(pair.here, PAGES, 900);
    ring.unregister(&mut pair.importer);
}

// ---- the exporter's side ----

#[test]
fn memory_that_a_device_may_write_to_stays_where_it_is() {
    let name = "memory_that_a_device_may_write_to_stays_where_it_is";
    let stage = Stage::new(name, 120);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let file = stamped(PAGES, 400);
    let Ok(ring) = Ring::new(&mut exporter) else {
        return skip(name, NO_RING);
    };
    let Ok(fd) = open_direct(&mut exporter, &file) else {
        return skip(name, NO_DIRECT);
    };
    let len = PAGES * PAGE;
    let there = exporter.anon(len);
    exporter.fill(there, PAGES, 20);
    ring.register(&mut exporter, there, len).unwrap();
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, there, len);
    assert!(importer.load(here).unwrap_err().is_hole_at(here));
    assert_eq!(ring.transfer(&mut exporter, READ_FIXED, fd, there, len), len as i32);
    exporter.check(there, PAGES, 400);
    // No device any more, no hole any more.
    ring.unregister(&mut exporter);
    if goes_without("move-pages") {
        // But who cannot tell pages that a device writes to must take all for such as long as there is a ring.
        assert!(importer.load(here).unwrap_err().is_hole_at(here));
        return;
    }
    importer.check(here, PAGES, 400);
    // What is shared already may be a buffer: it moves no more.
    ring.register(&mut exporter, there, len).unwrap();
    exporter.fill(there, PAGES, 20);
    importer.check(here, PAGES, 20);
    assert_eq!(ring.transfer(&mut exporter, READ_FIXED, fd, there, len), len as i32);
    importer.check(here, PAGES, 400);
    ring.unregister(&mut exporter);
}

#[test]
fn a_direct_read_in_flight_arrives_whole() {
    const MANY: usize = 2048;
    let name = "a_direct_read_in_flight_arrives_whole";
    let stage = Stage::new(name, 120);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let file = stamped(MANY, 5000);
    let Ok(fd) = open_direct(&mut exporter, &file) else {
        return skip(name, NO_DIRECT);
    };
    let len = MANY * PAGE;
    let there = exporter.anon(len);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    for round in 0..8 {
        // Memory that nobody has attached yet, with pages or without.
        exporter.anon_at(there, len);
        if round % 2 == 0 {
            exporter.fill(there, MANY, 1);
        }
        let here = importer.attach(apid, there, len);
        exporter.ok(&format!("send 1 sys {} {fd} {there:#x} {len} 0", libc::SYS_pread64));
        // From both ends, while the device writes.
        importer.ok(&format!("touch {here:#x} {} {}", MANY / 2, PAGE * 2));
        assert_eq!(exporter.ok("receive 1"), len.to_string());
        exporter.check(there, MANY, 5000);
        importer.check(here, MANY, 5000);
        importer.detach(here);
    }
}

#[test]
fn an_asynchronous_direct_read_arrives_whole() {
    const MANY: usize = 2048;
    const READ: u64 = 22;
    const IOSQE_ASYNC: u64 = 1 << 4;
    let name = "an_asynchronous_direct_read_arrives_whole";
    if goes_without("move-pages") || goes_without("populate") {
        return skip(name, NO_PINS);
    }
    let stage = Stage::new(name, 120);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let file = stamped(MANY, 5000);
    let Ok(ring) = Ring::new(&mut exporter) else {
        return skip(name, NO_RING);
    };
    let Ok(fd) = open_direct(&mut exporter, &file) else {
        return skip(name, NO_DIRECT);
    };
    let len = MANY * PAGE;
    let there = exporter.anon(len);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    for round in 0..20_u64 {
        exporter.anon_at(there, len);
        exporter.madvise(
            there,
            len,
            if round % 2 == 0 { libc::MADV_NOHUGEPAGE } else { libc::MADV_HUGEPAGE },
        );
        exporter.fill(there, MANY, 1);
        let here = importer.attach(apid, there, len);
        // By the thread that asks, or by one of the kernel's own.
        let by_worker = if round % 4 < 2 { 0 } else { IOSQE_ASYNC << 8 };
        let entry = [READ | by_worker | (fd as u64) << 32, 0, there as u64, len as u64, 1, 0, 0, 0];
        words(&mut exporter, ring.entries, &entry);
        exporter.store(ring.rings + ring.tail, round + 1).unwrap();
        // Under way, and nobody waits for it.
        assert_eq!(exporter.sys(libc::SYS_io_uring_enter, &[ring.fd, 1, 0, 0, 0, 0]), Ok(1));
        importer.ok(&format!("touch {here:#x} {} {}", MANY / 2, PAGE * 2));
        exporter.sys(libc::SYS_io_uring_enter, &[ring.fd, 0, 1, 1, 0, 0]).unwrap();
        let completion = ring.rings + ring.completions + 16 * (round & ring.mask) as usize;
        assert_eq!(exporter.load(completion + 8).unwrap() as u32 as usize, len);
        exporter.store(ring.rings + ring.head, round + 1).unwrap();
        exporter.check(there, MANY, 5000);
        importer.check(here, MANY, 5000);
        importer.detach(here);
    }
}

#[test]
fn only_pages_that_are_pinned_are_holes() {
    const MANY: usize = 64;
    const PINNED: usize = 20;
    let name = "only_pages_that_are_pinned_are_holes";
    let stage = Stage::new(name, 120);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let Ok(ring) = Ring::new(&mut exporter) else {
        return skip(name, NO_RING);
    };
    let there = exporter.anon(MANY * PAGE);
    exporter.fill(there, MANY, 1);
    ring.register(&mut exporter, there + PINNED * PAGE, PAGE).unwrap();
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, there, MANY * PAGE);
    if importer.load(here).is_err() {
        return skip(name, "the kernel does not tell which pages are pinned (Linux 6.8)");
    }
    importer.check(here, PINNED, 1);
    importer.check(here + (PINNED + 1) * PAGE, MANY - PINNED - 1, PINNED as u64 + 2);
    assert!(importer.load(here + PINNED * PAGE).unwrap_err().is_hole_at(here + PINNED * PAGE));
    exporter.check(there, MANY, 1);
    ring.unregister(&mut exporter);
    importer.check(here, MANY, 1);
}

#[test]
fn pages_that_a_child_has_too_are_not_pinned() {
    const MANY: usize = 64;
    let name = "pages_that_a_child_has_too_are_not_pinned";
    if goes_without("move-pages") || goes_without("populate") {
        return skip(name, NO_PINS);
    }
    let stage = Stage::new(name, 120);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let Ok(_ring) = Ring::new(&mut exporter) else {
        return skip(name, NO_RING);
    };
    let there = exporter.anon(MANY * PAGE);
    exporter.fill(there, MANY, 1);
    // One that stays, and one that is gone: its pages are the parent's alone again, but look as if they were not.
    let mut child = exporter.fork();
    exporter.fill(there, MANY / 2, 101);
    exporter.fork().exit();
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, there, MANY * PAGE);
    importer.check(here, MANY / 2, 101);
    importer.check(here + MANY / 2 * PAGE, MANY / 2, MANY as u64 / 2 + 1);
    importer.fill(here, MANY, 201);
    exporter.check(there, MANY, 201);
    child.check(there, MANY, 1);
}

#[test]
fn a_direct_read_of_libaio_arrives_whole() {
    const MANY: usize = 2048;
    let name = "a_direct_read_of_libaio_arrives_whole";
    if goes_without("move-pages") || goes_without("populate") {
        return skip(name, NO_PINS);
    }
    let stage = Stage::new(name, 120);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let file = stamped(MANY, 5000);
    let Ok(fd) = open_direct(&mut exporter, &file) else {
        return skip(name, NO_DIRECT);
    };
    // Not in the memory that is attached.
    let board = exporter.board();
    let (context, control, list, events) = (board, board + 64, board + 128, board + 192);
    exporter.store(context, 0).unwrap();
    if let Err(errno) = exporter.sys(libc::SYS_io_setup, &[1, context]) {
        return skip(name, &format!("no asynchronous I/O (errno {errno})"));
    }
    let queue = exporter.load(context).unwrap() as usize;
    let len = MANY * PAGE;
    let there = exporter.anon(len);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    for _ in 0..10 {
        exporter.anon_at(there, len);
        exporter.fill(there, MANY, 1);
        let here = importer.attach(apid, there, len);
        words(&mut exporter, control, &[0, 0, (fd as u64) << 32, there as u64, len as u64, 0, 0, 0]);
        words(&mut exporter, list, &[control as u64]);
        assert_eq!(exporter.sys(libc::SYS_io_submit, &[queue, 1, list]), Ok(1));
        importer.ok(&format!("touch {here:#x} {} {}", MANY / 2, PAGE * 2));
        assert_eq!(exporter.sys(libc::SYS_io_getevents, &[queue, 1, 1, events, 0]), Ok(1));
        assert_eq!(exporter.load(events + 16), Ok(len as u64));
        exporter.check(there, MANY, 5000);
        importer.check(here, MANY, 5000);
        importer.detach(here);
    }
}
