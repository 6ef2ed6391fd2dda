//! Every kind of memory that a process has, behind attachments.

use rmap_tests::{
    Actor, Engine, Mapping, PAGE, Stage, compare, library_descriptors, maps, pattern::Seen, skip,
};

const ARENA: usize = 0x2000_0000_0000;
const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

struct Pair {
    exporter: Actor,
    importer: Actor,
    apid: i64,
    /// A page of the importer to put copies in.
    bounce: usize,
    stage: Stage,
}

impl Pair {
    fn new(name: &str) -> Self {
        let stage = Stage::new(name, 120);
        let (mut exporter, mut importer) = (stage.actor(), stage.actor());
        let segid = exporter.make_all();
        let apid = importer.get(segid);
        let bounce = importer.anon(PAGE);
        Self { exporter, importer, apid, bounce, stage }
    }

    /// Stamps flow both ways between these pages of the exporter and an attachment.
    #[track_caller]
    fn flows(&mut self, address: usize, pages: usize) -> usize {
        let here = self.importer.attach(self.apid, address, pages * PAGE);
        self.exporter.fill(address, pages, 10);
        self.importer.check(here, pages, 10);
        self.importer.fill(here, pages, 500);
        self.exporter.check(address, pages, 500);
        self.exporter.fill_same(address, pages, 0);
        self.importer.ok(&format!("check {here:#x} {pages} 0 0"));
        self.exporter.fill(address, pages, 20);
        self.importer.check(here, pages, 20);
        here
    }
}

#[test]
fn anonymous_memory_mapped_in_many_ways() {
    let mut pair = Pair::new("anonymous_memory_mapped_in_many_ways");
    let ways = [
        0,
        libc::MAP_NORESERVE,
        libc::MAP_POPULATE,
        libc::MAP_STACK,
        libc::MAP_LOCKED,
        libc::MAP_POPULATE | libc::MAP_NORESERVE,
    ];
    for way in ways {
        let address =
            pair.exporter.mmap(0, 16 * PAGE, RW, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | way, -1, 0);
        let here = pair.flows(address, 16);
        pair.exporter.munmap(address, 16 * PAGE);
        assert!(pair.importer.load(here).unwrap_err().is_hole_at(here));
    }
}

#[test]
fn shared_anonymous_memory() {
    let mut pair = Pair::new("shared_anonymous_memory");
    let address = pair.exporter.mmap(0, 16 * PAGE, RW, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0);
    let here = pair.flows(address, 16);
    // It stays shared with a forked child.
    let mut child = pair.exporter.fork();
    child.fill(address, 4, 900);
    pair.exporter.check(address, 4, 900);
    pair.importer.check(here, 4, 900);
    pair.importer.fill(here + 8 * PAGE, 1, 44);
    child.check(address + 8 * PAGE, 1, 44);
    // It keeps its bytes when told that they are not needed here.
    pair.exporter.madvise(address, 4 * PAGE, libc::MADV_DONTNEED);
    pair.exporter.check(address, 4, 900);
    pair.importer.check(here, 4, 900);
    pair.exporter.madvise(address, 2 * PAGE, libc::MADV_REMOVE);
    pair.exporter.check(address, 1, 0);
    compare(&pair.exporter, &mut pair.importer, address, here, 16).unwrap();
    pair.exporter.munmap(address, 8 * PAGE);
    assert_eq!(pair.exporter.oracle(address, 8), vec![None; 8]);
    child.check(address + 2 * PAGE, 2, 902);
    child.fill(address + 2 * PAGE, 2, 950);
    if Engine::of_actors().leaves_shared_memory() {
        pair.importer.check(here + 2 * PAGE, 2, 950);
    } else {
        assert_eq!(pair.importer.look(here, 8), vec![Seen::Hole; 8]);
    }
    let rest = 8 * PAGE;
    compare(&pair.exporter, &mut pair.importer, address + rest, here + rest, 8).unwrap();
}

const SHARED: i32 = libc::MAP_SHARED | libc::MAP_ANONYMOUS;

/// Whether the engine leaves unmapped memory to the importers; if not, the test of this name is skipped.
fn shared_memory_stays(name: &str) -> bool {
    let stays = Engine::of_actors().leaves_shared_memory();
    if !stays {
        skip(name, "what is unmapped is gone with this engine");
    }
    stays
}

/// What is mapped in a process in a range of addresses.
fn is_mapped(process: &Actor, address: usize, len: usize) -> bool {
    maps(process.pid()).iter().any(|m| m.range.start < address + len && m.range.end > address)
}

#[test]
fn shared_anonymous_memory_stays_with_those_who_have_attached_it() {
    let name = "shared_anonymous_memory_stays_with_those_who_have_attached_it";
    if !shared_memory_stays(name) {
        return;
    }
    let mut pair = Pair::new(name);
    let len = 16 * PAGE;
    let address = pair.exporter.mmap(0, len, RW, SHARED, -1, 0);
    let here = pair.flows(address, 16);
    let mut second = pair.stage.actor();
    let segid = pair.exporter.make_all();
    let apid = second.get(segid);
    let there = second.attach(apid, address, len);
    second.check(there, 16, 20);
    pair.exporter.munmap(address, len);
    assert!(pair.exporter.load(address).is_err());
    pair.importer.check(here, 16, 20);
    second.check(there, 16, 20);
    pair.importer.fill(here, 16, 60);
    second.check(there, 16, 60);
    // A child gets nothing of it.
    let child = pair.exporter.fork();
    assert!(!is_mapped(&child, address, len));
    child.exit();
    pair.importer.check(here, 16, 60);
    // Something else comes to a part of its addresses.
    pair.exporter.anon_at(address, 4 * PAGE);
    pair.exporter.fill(address, 4, 100);
    pair.importer.check(here, 4, 100);
    second.check(there, 4, 100);
    second.check(there + 4 * PAGE, 12, 64);
    // Unmapped once more, it is gone.
    pair.exporter.munmap(address, 8 * PAGE);
    assert_eq!(second.look(there, 8), vec![Seen::Hole; 8]);
    second.check(there + 8 * PAGE, 8, 68);
    // Nobody has it any more: its addresses come back when memory is adopted.
    let other = pair.exporter.anon(PAGE);
    assert_eq!(pair.importer.release(pair.apid), Ok(0));
    assert_eq!(second.release(apid), Ok(0));
    let narrow = pair.exporter.make(other, PAGE);
    let seen = second.get_attach(narrow, 0, PAGE);
    pair.exporter.fill(other, 1, 7);
    second.check(seen, 1, 7);
    assert!(!is_mapped(&pair.exporter, address, len));
}

#[test]
fn shared_anonymous_memory_outlives_its_exporter() {
    let name = "shared_anonymous_memory_outlives_its_exporter";
    if !shared_memory_stays(name) {
        return;
    }
    let mut pair = Pair::new(name);
    let address = pair.exporter.mmap(0, 16 * PAGE, RW, SHARED, -1, 0);
    let here = pair.flows(address, 16);
    pair.exporter.munmap(address, 16 * PAGE);
    pair.exporter.exit();
    pair.importer.check(here, 16, 20);
}

#[test]
fn only_so_much_shared_anonymous_memory_stays() {
    let name = "only_so_much_shared_anonymous_memory_stays";
    if !shared_memory_stays(name) {
        return;
    }
    let mut pair = Pair::new(name);
    let (len, step) = (32 << 20, 2 << 20);
    let blocks: Vec<(usize, usize)> = (0..3)
        .map(|_| {
            let address = pair.exporter.mmap(0, len, RW, SHARED, -1, 0);
            let here = pair.importer.attach(pair.apid, address, len);
            for offset in (0..len).step_by(step) {
                pair.exporter.fill(address + offset, 1, 9);
                pair.importer.check(here + offset, 1, 9);
            }
            (address, here)
        })
        .collect();
    for (block, (address, here)) in blocks.into_iter().enumerate() {
        pair.exporter.munmap(address, len);
        let stays = block < 2;
        for offset in (0..len).step_by(step) {
            let seen = pair.importer.look(here + offset, 1);
            assert_eq!(seen, [if stays { Seen::Stamp(9) } else { Seen::Hole }], "block {block}");
        }
        assert_eq!(is_mapped(&pair.exporter, address, len), stays);
    }
    // What does not stay is nobody's memory any more, the library's neither.
    let files = library_descriptors(pair.exporter.pid());
    let kept = files.iter().filter(|(_, what)| what.to_string_lossy().starts_with("/dev/zero")).count();
    assert!(kept <= 2, "{files:?}");
}

#[test]
fn a_memory_file_mapped_shared() {
    let mut pair = Pair::new("a_memory_file_mapped_shared");
    let file = pair.exporter.memfd(32 * PAGE);
    let address = pair.exporter.mmap(0, 16 * PAGE, RW, libc::MAP_SHARED, file, 8 * PAGE);
    let other = pair.exporter.mmap(0, 16 * PAGE, RW, libc::MAP_SHARED, file, 8 * PAGE);
    let here = pair.flows(address, 16);
    // The file is the same file for everybody.
    pair.importer.fill(here, 2, 70);
    pair.exporter.check(other, 2, 70);
    pair.exporter.fill(other + 4 * PAGE, 1, 71);
    pair.importer.check(here + 4 * PAGE, 1, 71);
    // Another part of it in the same place.
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    pair.exporter.mmap(address, 4 * PAGE, RW, flags, file, 24 * PAGE);
    compare(&pair.exporter, &mut pair.importer, address, here, 16).unwrap();
    pair.importer.fill(here, 1, 99);
    pair.exporter.check(address, 1, 99);
    pair.exporter.munmap(address, 16 * PAGE);
    compare(&pair.exporter, &mut pair.importer, address, here, 16).unwrap();
}

#[test]
fn a_file_that_grows_and_is_cut() {
    let mut pair = Pair::new("a_file_that_grows_and_is_cut");
    let file = pair.exporter.memfd(4 * PAGE);
    let address = pair.exporter.mmap(0, 16 * PAGE, RW, libc::MAP_SHARED, file, 0);
    let here = pair.importer.attach(pair.apid, address, 16 * PAGE);
    pair.exporter.fill(address, 4, 30);
    compare(&pair.exporter, &mut pair.importer, address, here, 16).unwrap();
    pair.exporter.sys(libc::SYS_ftruncate, &[file as usize, 8 * PAGE]).unwrap();
    pair.exporter.fill(address + 4 * PAGE, 4, 34);
    compare(&pair.exporter, &mut pair.importer, address, here, 16).unwrap();
    pair.exporter.sys(libc::SYS_ftruncate, &[file as usize, 2 * PAGE]).unwrap();
    compare(&pair.exporter, &mut pair.importer, address, here, 16).unwrap();
}

#[test]
fn a_file_mapped_shared() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(16 * PAGE as u64).unwrap();
    let mut pair = Pair::new("a_file_mapped_shared");
    let path = pair.exporter.text(file.path().to_str().unwrap());
    let at = libc::AT_FDCWD as isize as usize;
    let fd = pair.exporter.sys(libc::SYS_openat, &[at, path, libc::O_RDWR as usize]).unwrap();
    let address = pair.exporter.mmap(0, 16 * PAGE, RW, libc::MAP_SHARED, fd as i32, 0);
    pair.exporter.sys(libc::SYS_close, &[fd]).unwrap();
    let here = pair.flows(address, 16);
    pair.importer.fill(here, 1, 4321);
    let bytes = std::fs::read(file.path()).unwrap();
    let page = bytes[..PAGE].try_into().unwrap();
    assert_eq!(Seen::of(page), Seen::Stamp(4321), "the file itself");
}

#[test]
fn a_file_mapped_shared_for_reading_only() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut bytes = vec![0; 4 * PAGE];
    for (number, page) in bytes.chunks_exact_mut(PAGE).enumerate() {
        rmap_tests::pattern::draw(60 + number as u64, page.try_into().unwrap());
    }
    std::fs::write(file.path(), &bytes).unwrap();
    let mut pair = Pair::new("a_file_mapped_shared_for_reading_only");
    let path = pair.exporter.text(file.path().to_str().unwrap());
    let at = libc::AT_FDCWD as isize as usize;
    let fd = pair.exporter.sys(libc::SYS_openat, &[at, path, libc::O_RDONLY as usize]).unwrap();
    for kind in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
        let address = pair.exporter.mmap(0, 4 * PAGE, libc::PROT_READ, kind, fd as i32, 0);
        let here = pair.importer.attach(pair.apid, address, 4 * PAGE);
        pair.importer.check(here, 4, 60);
        // A store goes nowhere: not into the file, whatever else.
        let _ = pair.importer.store(here, 1);
        assert_eq!(std::fs::read(file.path()).unwrap(), bytes);
    }
}

#[test]
fn a_file_mapped_privately() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut bytes = vec![0; 16 * PAGE];
    for (number, page) in bytes.chunks_exact_mut(PAGE).enumerate() {
        rmap_tests::pattern::draw(60 + number as u64, page.try_into().unwrap());
    }
    std::fs::write(file.path(), &bytes).unwrap();
    let mut pair = Pair::new("a_file_mapped_privately");
    let path = pair.exporter.text(file.path().to_str().unwrap());
    let at = libc::AT_FDCWD as isize as usize;
    let fd = pair.exporter.sys(libc::SYS_openat, &[at, path, libc::O_RDONLY as usize]).unwrap();
    let address = pair.exporter.mmap(0, 16 * PAGE, RW, libc::MAP_PRIVATE, fd as i32, 0);
    // Two pages are the process's own, the others still the file's.
    pair.exporter.fill(address + 3 * PAGE, 2, 7);
    let here = pair.importer.attach(pair.apid, address, 16 * PAGE);
    compare(&pair.exporter, &mut pair.importer, address, here, 16).unwrap();
    pair.importer.check(here, 3, 60);
    pair.importer.check(here + 3 * PAGE, 2, 7);
    pair.exporter.fill(address + 8 * PAGE, 2, 100);
    pair.importer.fill(here + 12 * PAGE, 2, 200);
    compare(&pair.exporter, &mut pair.importer, address, here, 16).unwrap();
    pair.exporter.check(address + 12 * PAGE, 2, 200);
    // Forgetting brings the file's bytes back.
    pair.exporter.madvise(address + 2 * PAGE, 4 * PAGE, libc::MADV_DONTNEED);
    pair.exporter.check(address + 2 * PAGE, 4, 62);
    compare(&pair.exporter, &mut pair.importer, address, here, 16).unwrap();
    assert_eq!(std::fs::read(file.path()).unwrap(), bytes, "the file itself");
}

#[test]
fn a_file_that_was_read_only_and_is_then_written() {
    let mut pair = Pair::new("a_file_that_was_read_only_and_is_then_written");
    let file = pair.exporter.memfd(8 * PAGE);
    let address = pair.exporter.mmap(0, 8 * PAGE, libc::PROT_READ, libc::MAP_PRIVATE, file, 0);
    let here = pair.importer.attach(pair.apid, address, 8 * PAGE);
    compare(&pair.exporter, &mut pair.importer, address, here, 8).unwrap();
    pair.exporter.mprotect(address, 8 * PAGE, RW);
    pair.exporter.fill(address, 4, 90);
    compare(&pair.exporter, &mut pair.importer, address, here, 8).unwrap();
    pair.importer.fill(here + 6 * PAGE, 1, 33);
    pair.exporter.check(address + 6 * PAGE, 1, 33);
}

#[test]
fn shared_memory_that_was_read_only_and_is_then_written() {
    let mut pair = Pair::new("shared_memory_that_was_read_only_and_is_then_written");
    let file = pair.exporter.memfd(8 * PAGE);
    let address = pair.exporter.mmap(0, 8 * PAGE, libc::PROT_READ, libc::MAP_SHARED, file, 0);
    let here = pair.importer.attach(pair.apid, address, 8 * PAGE);
    compare(&pair.exporter, &mut pair.importer, address, here, 8).unwrap();
    for page in [0, 5] {
        assert_eq!(pair.importer.store(here + page * PAGE, 1).unwrap_err().signal, libc::SIGSEGV);
    }
    pair.exporter.mprotect(address, 8 * PAGE, RW);
    pair.importer.fill(here + 5 * PAGE, 2, 33);
    pair.exporter.check(address + 5 * PAGE, 2, 33);
    pair.exporter.fill(address, 4, 90);
    compare(&pair.exporter, &mut pair.importer, address, here, 8).unwrap();
}

#[test]
fn a_file_mapped_over_itself() {
    let mut pair = Pair::new("a_file_mapped_over_itself");
    let file = pair.exporter.memfd(8 * PAGE);
    for (kind, prot) in [(libc::MAP_SHARED, RW), (libc::MAP_PRIVATE, libc::PROT_READ)] {
        let flags = kind | libc::MAP_FIXED;
        pair.exporter.mmap(ARENA, 8 * PAGE, prot, flags, file, 0);
        let here = pair.importer.attach(pair.apid, ARENA, 8 * PAGE);
        compare(&pair.exporter, &mut pair.importer, ARENA, here, 8).unwrap();
        pair.exporter.mmap(ARENA + 2 * PAGE, 4 * PAGE, prot, flags, file, 2 * PAGE);
        compare(&pair.exporter, &mut pair.importer, ARENA, here, 8).unwrap();
        pair.exporter.anon_at(ARENA + 2 * PAGE, 2 * PAGE);
        pair.exporter.fill(ARENA + 2 * PAGE, 2, 6000);
        compare(&pair.exporter, &mut pair.importer, ARENA, here, 8).unwrap();
        pair.exporter.munmap(ARENA + 5 * PAGE, PAGE);
        compare(&pair.exporter, &mut pair.importer, ARENA, here, 8).unwrap();
    }
}

#[test]
fn posix_shared_memory() {
    let mut pair = Pair::new("posix_shared_memory");
    let name = format!("/dev/shm/rmap-tests-{}", std::process::id());
    let path = pair.exporter.text(&name);
    let at = libc::AT_FDCWD as isize as usize;
    let flags = (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as usize;
    let fd = pair.exporter.sys(libc::SYS_openat, &[at, path, flags, 0o600]).unwrap();
    pair.exporter.sys(libc::SYS_unlinkat, &[at, path, 0]).unwrap();
    pair.exporter.sys(libc::SYS_ftruncate, &[fd, 16 * PAGE]).unwrap();
    let address = pair.exporter.mmap(0, 16 * PAGE, RW, libc::MAP_SHARED, fd as i32, 0);
    let here = pair.flows(address, 16);
    pair.exporter.munmap(address, PAGE);
    compare(&pair.exporter, &mut pair.importer, address, here, 16).unwrap();
}

#[test]
fn system_v_shared_memory() {
    let mut pair = Pair::new("system_v_shared_memory");
    let id = pair.exporter.sys(libc::SYS_shmget, &[0, 16 * PAGE, 0o600]).unwrap();
    let place = pair.exporter.place(16 * PAGE);
    let address = pair.exporter.sys(libc::SYS_shmat, &[id, place, 0]);
    pair.exporter.sys(libc::SYS_shmctl, &[id, libc::IPC_RMID as usize, 0]).unwrap();
    let address = address.unwrap();
    // No kernel reports shmdt: what an importer has mapped by then stays until the next event.
    pair.flows(address, 16);
    pair.exporter.sys(libc::SYS_shmdt, &[address]).unwrap();
}

#[test]
fn the_program_itself() {
    let mut pair = Pair::new("the_program_itself");
    let place = |actor: &mut Actor, what: &str| {
        let words = actor.ok(&format!("place {what}"));
        let (address, len) = words.split_once(' ').unwrap();
        (address.parse::<usize>().unwrap(), len.parse::<usize>().unwrap() / PAGE)
    };
    for what in ["data", "bss"] {
        let (address, pages) = place(&mut pair.exporter, what);
        let here = pair.importer.attach(pair.apid, address, pages * PAGE);
        compare(&pair.exporter, &mut pair.importer, address, here, pages).unwrap();
        pair.flows(address, pages);
    }
    for what in ["rodata", "text"] {
        let (address, pages) = place(&mut pair.exporter, what);
        let here = pair.importer.attach(pair.apid, address, pages * PAGE);
        for page in 0..pages {
            let same = bytes_agree(
                &pair.exporter,
                &mut pair.importer,
                pair.bounce,
                address + page * PAGE,
                here + page * PAGE,
            );
            assert_eq!(same, Ok(true), "{what} page {page}");
        }
    }
    // Memory below the stack pointer of the main thread, which nobody else uses.
    let (address, pages) = place(&mut pair.exporter, "stack");
    let here = pair.importer.attach(pair.apid, address, pages * PAGE);
    pair.importer.look(here, pages);
    assert_eq!(
        bytes_agree(&pair.exporter, &mut pair.importer, pair.bounce, address, here),
        Ok(true),
        "stack"
    );
}

#[test]
fn stacks_of_threads() {
    let mut pair = Pair::new("stacks_of_threads");
    for worker in 1..=3 {
        let words = pair.exporter.ok(&format!("worker {worker} place stack"));
        let (address, _) = words.split_once(' ').unwrap();
        let address: usize = address.parse().unwrap();
        let here = pair.importer.attach(pair.apid, address, PAGE);
        assert_eq!(bytes_agree(&pair.exporter, &mut pair.importer, pair.bounce, address, here), Ok(true));
        // The thread goes on on its shared stack.
        assert_eq!(pair.exporter.ok(&format!("worker {worker} hello")), "");
    }
}

#[test]
fn a_stack_that_grows_below_a_window() {
    let mut pair = Pair::new("a_stack_that_grows_below_a_window");
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_GROWSDOWN;
    let top = ARENA + 1024 * PAGE;
    pair.exporter.mmap(top - 2 * PAGE, 2 * PAGE, RW, flags, -1, 0);
    let here = pair.importer.attach(pair.apid, ARENA, 1024 * PAGE);
    pair.exporter.fill(top - 2 * PAGE, 2, 5);
    pair.importer.check(here + 1022 * PAGE, 2, 5);
    // Each store below extends it by a page, as a thread's frames would.
    for depth in 3..20 {
        let page = top - depth * PAGE;
        match pair.exporter.store(page + PAGE - 8, 1) {
            Ok(()) => {
                pair.exporter.fill(page, 1, depth as u64);
                pair.importer.check(here + (1024 - depth) * PAGE, 1, depth as u64);
            }
            Err(fault) => panic!("page {depth} below the top: {fault:?}"),
        }
    }
}

#[test]
fn memory_that_wants_huge_pages() {
    let mut pair = Pair::new("memory_that_wants_huge_pages");
    let huge = 2 << 20;
    let pages = 2 * huge / PAGE;
    pair.exporter.anon_at(ARENA, 2 * huge);
    pair.exporter.madvise(ARENA, 2 * huge, libc::MADV_HUGEPAGE);
    pair.exporter.fill(ARENA, pages, 1);
    let here = pair.importer.attach(pair.apid, ARENA, 2 * huge);
    pair.importer.check(here, pages, 1);
    pair.importer.fill(here + PAGE, 5, 700);
    pair.exporter.check(ARENA + PAGE, 5, 700);
    // Pieces of a huge page go and come.
    pair.exporter.munmap(ARENA + 10 * PAGE, PAGE);
    pair.exporter.madvise(ARENA + 20 * PAGE, 3 * PAGE, libc::MADV_DONTNEED);
    compare(&pair.exporter, &mut pair.importer, ARENA, here, pages).unwrap();
    pair.exporter.check(ARENA + 30 * PAGE, pages - 30, 31);
}

#[test]
fn huge_pages_of_hugetlbfs() {
    let name = "huge_pages_of_hugetlbfs";
    let mut pair = Pair::new(name);
    let huge = 2 << 20;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB) as usize;
    let Ok(address) = pair.exporter.sys(libc::SYS_mmap, &[0, huge, RW as usize, flags, usize::MAX, 0]) else {
        return skip(name, "no huge pages are reserved");
    };
    // Served or a hole, but nothing else.
    let here = pair.importer.attach(pair.apid, address, huge);
    pair.exporter.fill(address, 4, 8);
    match pair.importer.look(here, 1)[..] {
        [Seen::Stamp(8)] => drop(pair.flows(address, 16)),
        [Seen::Hole] => pair.exporter.check(address, 4, 8),
        ref other => panic!("{other:?}"),
    }
}

/// What `smaps` has behind this word about the mapping at `address`.
fn smaps_of(actor: &Actor, address: usize, word: &str) -> Option<String> {
    let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", actor.pid())).unwrap();
    let range = |line: &str| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        Some(number(start)?..number(end)?)
    };
    let covers = |line: &&str| range(line).is_some_and(|range| range.contains(&address));
    let mut lines = smaps.lines().skip_while(|line| !covers(line));
    lines.next().expect("a mapping");
    let text = lines.take_while(|line| range(line).is_none()).find_map(|line| line.strip_prefix(word))?;
    Some(text.trim().to_owned())
}

/// What has been said of the mapping at `address`, of that which is kept.
fn said_of(actor: &Actor, address: usize) -> Vec<String> {
    let flags = smaps_of(actor, address, "VmFlags:").expect("flags");
    // All that importers have touched has "dc": tests/fork.rs looks at what children have.
    let kept = |flag: &&str| ["dd", "hg", "nh", "lo"].contains(flag);
    flags.split_whitespace().filter(kept).map(String::from).collect()
}

#[test]
fn advice_stays_with_memory() {
    const ADVICES: [i32; 4] =
        [libc::MADV_DONTFORK, libc::MADV_DONTDUMP, libc::MADV_HUGEPAGE, libc::MADV_NOHUGEPAGE];
    // Two, as any others: a mapping of its own, and a page inside a larger one.
    const PAGES: usize = 6;
    let mut pair = Pair::new("advice_stays_with_memory");
    for set in 0..1 << (ADVICES.len() + 1) {
        let address = ARENA + set * 16 * PAGE;
        pair.exporter.anon_at(address, PAGES * PAGE);
        for (bit, advice) in ADVICES.iter().enumerate().filter(|(bit, _)| set & 1 << bit != 0) {
            assert!(bit < ADVICES.len());
            pair.exporter.madvise(address, PAGES * PAGE, *advice);
        }
        if set & 1 << ADVICES.len() != 0 {
            pair.exporter.sys(libc::SYS_mlock, &[address, PAGES * PAGE]).unwrap();
        }
        let said = said_of(&pair.exporter, address);
        for (first, pages) in [(2, 1), (0, PAGES)] {
            pair.flows(address + first * PAGE, pages);
            for page in 0..PAGES {
                assert_eq!(
                    said_of(&pair.exporter, address + page * PAGE),
                    said,
                    "page {page} of set {set:#b}"
                );
            }
        }
    }
}

#[test]
fn protection_keys_stay_with_memory() {
    const PAGES: usize = 6;
    let name = "protection_keys_stay_with_memory";
    let mut pair = Pair::new(name);
    // All rights, for the thread that asks. No other thread has any.
    let Ok(key) = pair.exporter.sys(libc::SYS_pkey_alloc, &[0, 0]) else {
        return skip(name, "no protection keys are to be had from this processor and kernel");
    };
    // A page inside a mapping, and a whole one.
    for (set, (first, pages)) in [(2, 1), (0, PAGES)].into_iter().enumerate() {
        let address = ARENA + set * 16 * PAGE;
        pair.exporter.anon_at(address, PAGES * PAGE);
        pair.exporter.fill(address, PAGES, 3);
        pair.exporter.sys(libc::SYS_pkey_mprotect, &[address, PAGES * PAGE, RW as usize, key]).unwrap();
        let here = pair.importer.attach(pair.apid, address + first * PAGE, pages * PAGE);
        pair.importer.check(here, pages, 3 + first as u64);
        pair.importer.detach(here);
        pair.flows(address + first * PAGE, pages);
        for page in 0..PAGES {
            let kept = smaps_of(&pair.exporter, address + page * PAGE, "ProtectionKey:");
            assert_eq!(kept, Some(key.to_string()), "page {page} of set {set}");
        }
    }
}

#[test]
fn memory_that_the_application_watches_itself() {
    let name = "memory_that_the_application_watches_itself";
    if !Engine::of_actors().asks_for_pages() {
        return skip(name, "nothing is moved with this engine");
    }
    const API: usize = 0xc018_aa3f;
    const REGISTER: usize = 0xc020_aa00;
    const UNREGISTER: usize = 0x8010_aa01;
    let mut pair = Pair::new(name);
    let (address, pages) = (pair.exporter.anon(8 * PAGE), 8);
    pair.exporter.fill(address, pages, 3);
    let words = pair.exporter.anon(PAGE);
    let flags = libc::O_CLOEXEC.cast_unsigned() as usize | 1;
    let fd = pair.exporter.sys(libc::SYS_userfaultfd, &[flags]).expect("userfaultfd for user mode");
    let order = |exporter: &mut Actor, request: usize, arguments: [usize; 3]| {
        for (at, word) in arguments.iter().enumerate() {
            exporter.store(words + at * 8, *word as u64).unwrap();
        }
        exporter.sys(libc::SYS_ioctl, &[fd, request, words]).expect("an ioctl of userfaultfd");
    };
    // Missing pages, and being told of unmapping: the process would wait for itself.
    order(&mut pair.exporter, API, [0xaa, 1 << 6, 0]);
    order(&mut pair.exporter, REGISTER, [address, pages * PAGE, 1]);
    let here = pair.importer.attach(pair.apid, address, pages * PAGE);
    let fault = pair.importer.load(here).expect_err("a hole");
    assert!(fault.is_hole_at(here), "{fault:?}");
    pair.exporter.check(address, pages, 3);
    order(&mut pair.exporter, UNREGISTER, [address, pages * PAGE, 0]);
    pair.importer.check(here, pages, 3);
}

/// Whether a page of an attachment of an attachment is the memory itself; or a hole, as with XPMEM, where the engine does not pass it on.
fn is_passed_on_or_hole(seen: Seen, stamp: u64) -> bool {
    seen == Seen::Stamp(stamp) || (seen == Seen::Hole && !Engine::of_actors().passes_attachments_on())
}

#[test]
fn two_processes_attach_each_other() {
    let stage = Stage::new("two_processes_attach_each_other", 60);
    let (mut a, mut b) = (stage.actor(), stage.actor());
    let (memory_a, memory_b) = (a.anon(64 * PAGE), b.anon(64 * PAGE));
    a.fill(memory_a, 64, 1);
    b.fill(memory_b, 64, 1001);
    let (segid_a, segid_b) = (a.make_all(), b.make_all());
    let window = 8 << 20;
    let (start_a, start_b) = (memory_a / window * window, memory_b / window * window);
    let here_b = a.get_attach(segid_b, start_b, 2 * window);
    let here_a = b.get_attach(segid_a, start_a, 2 * window);
    b.check(here_a + (memory_a - start_a), 64, 1);
    a.check(here_b + (memory_b - start_b), 64, 1001);
    // The attachments lie in each other's address space. Nothing hangs.
    let again = b.get_attach(segid_a, here_b, 2 * window);
    for seen in b.look(again, 2 * window / PAGE) {
        assert_ne!(seen, Seen::Fault);
    }
    for page in 0..64 {
        let seen = b.look(again + (memory_b - start_b) + page * PAGE, 1)[0];
        assert!(is_passed_on_or_hole(seen, 1001 + page as u64), "{seen:?}");
    }
    a.exit();
    b.exit();
}

#[test]
fn a_segment_over_an_attachment() {
    let stage = Stage::new("a_segment_over_an_attachment", 60);
    let (mut first, mut second, mut third) = (stage.actor(), stage.actor(), stage.actor());
    let memory = first.anon(8 * PAGE);
    first.fill(memory, 8, 40);
    let segid = first.make(memory, 8 * PAGE);
    let apid = second.get(segid);
    let here = second.attach(apid, 0, 8 * PAGE);
    second.check(here, 8, 40);
    let segid = second.make(here, 8 * PAGE);
    let there = third.get_attach(segid, 0, 8 * PAGE);
    let expect = |third: &mut Actor, stamp| {
        for (seen, stamp) in third.look(there, 8).into_iter().zip(stamp..) {
            assert!(is_passed_on_or_hole(seen, stamp), "{seen:?}");
        }
    };
    expect(&mut third, 40);
    first.fill(memory, 8, 80);
    expect(&mut third, 80);
    // With its permit the second loses all windows.
    assert_eq!(second.release(apid), Ok(0));
    assert!(third.look(there, 8).into_iter().all(|seen| seen == Seen::Hole));
}

// ---- everything ----

/// Whether a page has the same bytes in the exporter and through an attachment. An error says that the importer
/// finds a hole.
fn bytes_agree(
    exporter: &Actor,
    importer: &mut Actor,
    bounce: usize,
    remote: usize,
    here: usize,
) -> Result<bool, Seen> {
    for _ in 0..50 {
        match importer.ask(&format!("copy {bounce:#x} {here:#x} {PAGE}")) {
            rmap_tests::Reply::Ok(_) => {}
            _ => return Err(importer.look(here, 1)[0]),
        }
        let Some(real) = exporter.page(remote) else {
            return Ok(false);
        };
        if importer.page(bounce).unwrap() == real {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Mappings that a process can have its memory looked at in, apart from the library's own and the kernel's.
fn to_be_seen(mapping: &Mapping) -> bool {
    mapping.readable() && !mapping.name.contains("libxpmem") && !mapping.name.starts_with("[v")
}

fn windows_over_everything(name: &str, window: usize) {
    let mut pair = Pair::new(name);
    // Taken before this actor calls the library: what the library maps later is not among them.
    let mut exporter = pair.stage.actor();
    exporter.number("worker 1 board");
    let before: Vec<Mapping> = maps(exporter.pid());
    let segid = exporter.make_all();
    let apid = pair.importer.get(segid);
    let mut cached: Vec<(usize, usize)> = Vec::new();
    for mapping in before.iter().filter(|mapping| !mapping.name.starts_with("[vsys")) {
        // An allocator reserves 64 MiB that nobody can read: a sample of those pages shows as much.
        let step = if mapping.readable() { PAGE } else { 61 * PAGE };
        for remote in mapping.range.clone().step_by(step) {
            let start = remote / window * window;
            let known = cached.iter().find(|(known, _)| *known == start).map(|(_, here)| *here);
            let here = known.unwrap_or_else(|| {
                // The last window ends where the address space does.
                let len = window.min(0x7fff_ffff_f000 - start);
                let here = pair.importer.attach(apid, start, len);
                cached.push((start, here));
                here
            });
            let here = here + (remote - start);
            let outcome = bytes_agree(&exporter, &mut pair.importer, pair.bounce, remote, here);
            if to_be_seen(mapping) {
                // A page of a file behind its end cannot be read by anybody.
                let readable = exporter.page(remote).is_some();
                let expected = if readable { Ok(true) } else { Err(Seen::Hole) };
                assert_eq!(outcome, expected, "{remote:#x} in {mapping:x?}");
            } else if let Err(seen) = outcome {
                assert_eq!(seen, Seen::Hole, "{remote:#x} in {mapping:x?}");
            }
        }
    }
    // The exporter is well, although all of it is shared.
    exporter.ok("spawn exit 0");
    let address = exporter.anon(4 * PAGE);
    exporter.fill(address, 4, 5);
    let here = pair.importer.attach(apid, address, 4 * PAGE);
    pair.importer.check(here, 4, 5);
    exporter.ok("worker 1 hello");
    exporter.ok("worker 2 hello");
    let mut child = exporter.fork();
    child.ok("hello");
    child.exit();
    exporter.exit();
}

#[test]
fn windows_of_2_mib_over_everything() {
    windows_over_everything("windows_of_2_mib_over_everything", 2 << 20);
}

#[test]
fn windows_of_8_mib_over_everything() {
    windows_over_everything("windows_of_8_mib_over_everything", 8 << 20);
}
