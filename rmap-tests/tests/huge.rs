//! Memory that was in huge pages stays in huge pages, for the exporter and for all importers.

use rmap_tests::{Actor, PAGE, RDONLY, Setup, Stage, library_descriptors, maps, skip};
use std::sync::{Mutex, MutexGuard, PoisonError};

const HUGE: usize = 2 << 20;
const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Faults of the actor's main thread that were served without a device.
fn faults(actor: &mut Actor) -> u64 {
    const THREAD: usize = 1;
    const MINFLT: usize = 64;
    let board = actor.board();
    actor.sys(libc::SYS_getrusage, &[THREAD, board]).unwrap();
    actor.load(board + MINFLT).unwrap()
}

/// How many faults it takes to load a word of every page.
fn faults_to_read(actor: &mut Actor, address: usize, len: usize) -> usize {
    let before = faults(actor);
    actor.ok(&format!("touch {address:#x} {} {PAGE}", len / PAGE));
    (faults(actor) - before) as usize
}

/// Private memory whose start is a multiple of the huge page size.
fn heap(actor: &mut Actor, len: usize, advice: i32) -> usize {
    let address = actor.place(len + HUGE).next_multiple_of(HUGE);
    actor.anon_at(address, len);
    actor.madvise(address, len, advice);
    address
}

/// Why files in memory cannot have huge pages here, if so.
fn no_huge_pages(actor: &mut Actor) -> Option<String> {
    if rmap_tests::goes_without("collapse") {
        return Some("the library does without collapse".into());
    }
    let fd = actor.memfd(HUGE);
    let address = actor.place(2 * HUGE).next_multiple_of(HUGE);
    actor.mmap(address, HUGE, RW, libc::MAP_SHARED | libc::MAP_FIXED, fd, 0);
    actor.ok(&format!("touch {address:#x} {} {PAGE}", HUGE / PAGE));
    let collapsed = actor.sys(libc::SYS_madvise, &[address, HUGE, libc::MADV_COLLAPSE as usize]);
    actor.munmap(address, HUGE);
    collapsed.err().map(|errno| format!("the kernel makes no huge pages of shared memory (errno {errno})"))
}

/// Faults that are nobody's but the test's: its own stack and heap, pages of the exchange with the actor.
const SLACK: usize = 32;

#[test]
fn a_huge_heap_costs_a_fault_for_each_huge_page() {
    let name = "a_huge_heap_costs_a_fault_for_each_huge_page";
    const LEN: usize = 256 << 20;
    let stage = Stage::new(name, 120);
    let (mut exporter, mut first, mut second) = (stage.actor(), stage.actor(), stage.actor());
    if let Some(reason) = no_huge_pages(&mut exporter) {
        return skip(name, &reason);
    }
    let there = heap(&mut exporter, LEN, libc::MADV_HUGEPAGE);
    exporter.fill(there, LEN / PAGE, 5);
    let segid = exporter.make_all();
    // One for each huge page, and one more where a chunk begins: the one that waits for the exporter.
    let most = LEN / HUGE + LEN / (32 << 20) + 8 + SLACK;
    for (who, importer) in [("first", &mut first), ("second", &mut second)] {
        let here = importer.get_attach(segid, there, LEN);
        let count = faults_to_read(importer, here, LEN);
        assert!(count <= most, "the {who} importer took {count} faults for {} huge pages", LEN / HUGE);
        importer.check(here, LEN / PAGE, 5);
    }
    let count = faults_to_read(&mut exporter, there, LEN);
    assert!(count <= LEN / HUGE + SLACK, "the exporter took {count} faults for its own memory");
    exporter.check(there, LEN / PAGE, 5);
}

#[test]
fn memory_without_advice_gets_huge_pages_where_all_of_it_is_there() {
    let name = "memory_without_advice_gets_huge_pages_where_all_of_it_is_there";
    const BLOCKS: usize = 4;
    let stage = Stage::new(name, 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    if let Some(reason) = no_huge_pages(&mut exporter) {
        return skip(name, &reason);
    }
    let len = BLOCKS * HUGE;
    let there = exporter.place(len + HUGE).next_multiple_of(HUGE);
    exporter.anon_at(there, len);
    exporter.fill(there, len / PAGE, 5);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, there, len);
    let count = faults_to_read(&mut importer, here, len);
    assert!(count <= 2 * BLOCKS + SLACK, "{count} faults for {BLOCKS} huge pages");
    importer.check(here, len / PAGE, 5);
}

#[test]
fn memory_that_comes_again_gets_huge_pages_again() {
    let name = "memory_that_comes_again_gets_huge_pages_again";
    const BLOCKS: usize = 4;
    let stage = Stage::new(name, 120);
    let (mut exporter, mut first, mut second) = (stage.actor(), stage.actor(), stage.actor());
    if let Some(reason) = no_huge_pages(&mut exporter) {
        return skip(name, &reason);
    }
    let len = BLOCKS * HUGE;
    let there = heap(&mut exporter, len, libc::MADV_HUGEPAGE);
    exporter.fill(there, len / PAGE, 5);
    let segid = exporter.make_all();
    let mut importers = [&mut first, &mut second].map(|importer| {
        let here = importer.get_attach(segid, there, len);
        (importer, here)
    });
    let mut check = |exporter: &Actor, stamps: &[u64]| {
        for (importer, here) in &mut importers {
            for (block, stamp) in stamps.iter().enumerate() {
                importer.check(*here + block * HUGE, HUGE / PAGE, *stamp);
            }
            assert_eq!(
                smaps_sum(importer, *here, len, "ShmemPmdMapped:"),
                len >> 10,
                "an importer, {stamps:?}"
            );
        }
        assert_eq!(smaps_sum(exporter, there, len, "ShmemPmdMapped:"), len >> 10, "the exporter, {stamps:?}");
    };
    let mut stamps: Vec<u64> = (0..BLOCKS).map(|block| 5 + (block * HUGE / PAGE) as u64).collect();
    check(&exporter, &stamps);
    let before = library_descriptors(exporter.pid()).len();
    for round in 0..3 * BLOCKS {
        // One block at a time, so that no object is ever without memory; then all of it.
        let blocks = if round < 2 * BLOCKS { vec![round % BLOCKS] } else { (0..BLOCKS).collect() };
        for block in &blocks {
            exporter.munmap(there + block * HUGE, HUGE);
        }
        for block in blocks {
            exporter.anon_at(there + block * HUGE, HUGE);
            exporter.madvise(there + block * HUGE, HUGE, libc::MADV_HUGEPAGE);
            stamps[block] = 1000 + (round * BLOCKS + block) as u64 * 1000;
            exporter.fill(there + block * HUGE, HUGE / PAGE, stamps[block]);
        }
        check(&exporter, &stamps);
    }
    let after = library_descriptors(exporter.pid()).len();
    assert!(after <= before + 3 * (BLOCKS + 1), "{before} descriptors have become {after}");
}

/// Puts a page of an attachment into a pipe, which holds it.
fn hold(importer: &mut Actor, page: usize) {
    let board = importer.board();
    importer.sys(libc::SYS_pipe2, &[board, 0]).unwrap();
    let writer = (importer.load(board).unwrap() >> 32) as usize;
    importer.store(board, page as u64).unwrap();
    importer.store(board + 8, PAGE as u64).unwrap();
    assert_eq!(importer.sys(libc::SYS_vmsplice, &[writer, board, 1, 0]), Ok(PAGE));
}

#[test]
fn parts_of_a_page_in_hand_go() {
    let name = "parts_of_a_page_in_hand_go";
    const PART: usize = HUGE / 8;
    const PAGES: usize = PART / PAGE;
    let stage = Stage::new(name, 120);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let (mut reader, mut third) = (stage.actor(), stage.actor());
    if let Some(reason) = no_huge_pages(&mut exporter) {
        return skip(name, &reason);
    }
    let there = heap(&mut exporter, 2 * HUGE, libc::MADV_HUGEPAGE);
    exporter.fill(there, 2 * HUGE / PAGE, 5);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, there, 2 * HUGE);
    let apid = reader.try_get(segid, RDONLY).unwrap();
    let read_only = reader.attach(apid, there, 2 * HUGE);
    let offered = importer.make_all();
    let passed_on = third.get_attach(offered, here, 2 * HUGE);
    let stamp = |part: usize| 5 + (part * PAGES) as u64;
    for (actor, at) in [(&mut importer, here), (&mut reader, read_only), (&mut third, passed_on)] {
        actor.check(at, 2 * HUGE / PAGE, 5);
        assert_eq!(smaps_sum(actor, at, 2 * HUGE, "ShmemPmdMapped:"), (2 * HUGE) >> 10);
    }
    // The kernel cannot split the first huge page any more.
    hold(&mut importer, here + PAGE);
    let part = |start: usize, number: usize| start + number * PART;
    // Of the second, the last part goes, too.
    for gone in [2, 3, 5, 7, 15] {
        exporter.munmap(part(there, gone), PART);
    }
    // Other memory comes to the addresses of two parts.
    exporter.anon_at(part(there, 3), PART);
    exporter.fill(part(there, 3), PAGES, 7000);
    let file = exporter.memfd(PART);
    exporter.mmap(part(there, 5), PART, RW, libc::MAP_SHARED | libc::MAP_FIXED, file, 0);
    exporter.fill(part(there, 5), PAGES, 8000);
    // Nor does a window show it that is made from now on.
    let mut late = stage.actor();
    let late_at = late.get_attach(segid, there, 2 * HUGE);
    let mut seen =
        [(&mut importer, here), (&mut reader, read_only), (&mut third, passed_on), (&mut late, late_at)];
    for (actor, at) in &mut seen {
        for number in 0..16 {
            match number {
                2 | 7 | 15 => {
                    let gone = part(*at, number) + PART / 2;
                    assert!(actor.load(gone).is_err_and(|fault| fault.is_hole_at(gone)), "part {number}");
                }
                3 => actor.check(part(*at, number), PAGES, 7000),
                5 => actor.check(part(*at, number), PAGES, 8000),
                _ => actor.check(part(*at, number), PAGES, stamp(number)),
            }
        }
    }
    // The rest is one memory still, for all.
    importer.fill(part(here, 1), PAGES, 9000);
    importer.fill(part(here, 3), PAGES, 9500);
    importer.fill(part(here, 5), PAGES, 9700);
    exporter.check(part(there, 1), PAGES, 9000);
    exporter.check(part(there, 3), PAGES, 9500);
    exporter.check(part(there, 5), PAGES, 9700);
    reader.check(part(read_only, 3), PAGES, 9500);
    third.check(part(passed_on, 1), PAGES, 9000);
}

#[test]
fn no_memory_comes_of_holes() {
    let stage = Stage::new("no_memory_comes_of_holes", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let there = heap(&mut exporter, HUGE, libc::MADV_NOHUGEPAGE);
    // All but one page.
    exporter.fill(there, HUGE / PAGE - 1, 5);
    exporter.madvise(there, HUGE, libc::MADV_HUGEPAGE);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, there, HUGE);
    importer.check(here, HUGE / PAGE - 1, 5);
    assert_eq!(resident(&mut exporter, there, HUGE / PAGE), HUGE / PAGE - 1);
    assert_eq!(exporter.load(there + HUGE - PAGE), Ok(0));
}

#[test]
fn advice_against_huge_pages_holds() {
    let stage = Stage::new("advice_against_huge_pages_holds", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let there = heap(&mut exporter, HUGE, libc::MADV_NOHUGEPAGE);
    exporter.fill(there, HUGE / PAGE, 5);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, there, HUGE);
    importer.check(here, HUGE / PAGE, 5);
    assert_eq!(smaps_sum(&importer, here, HUGE, "ShmemPmdMapped:"), 0);
}

/// Sum of a field, in KiB, over the mappings in a range.
fn smaps_sum(actor: &Actor, address: usize, len: usize, field: &str) -> usize {
    let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", actor.pid())).unwrap();
    let (mut inside, mut sum) = (false, 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-')
            && let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
        {
            inside = start < address + len && address < end;
        } else if inside && first == field {
            sum += words.next().and_then(|word| word.parse::<usize>().ok()).unwrap_or(0);
        }
    }
    sum
}

/// How many pages are in memory, mapped or not.
fn resident(actor: &mut Actor, address: usize, pages: usize) -> usize {
    let states = actor.anon(pages.next_multiple_of(PAGE));
    actor.sys(libc::SYS_mincore, &[address, pages * PAGE, states]).unwrap();
    (0..pages / 8)
        .map(|word| (actor.load(states + word * 8).unwrap() & 0x0101_0101_0101_0101).count_ones() as usize)
        .sum()
}

// ---- hugetlb ----

/// Pages of hugetlb that a test may use. Given back when it ends.
struct Reserved {
    before: Option<String>,
    /// One test at a time.
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

const COUNT: &str = "/proc/sys/vm/nr_hugepages";

impl Reserved {
    /// Reserves so many huge pages, if none are free. An error says why not.
    fn new(count: usize) -> Result<Self, String> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let meminfo = std::fs::read_to_string("/proc/meminfo").map_err(|error| error.to_string())?;
        let field = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok()).unwrap_or(0)
        };
        if field("Hugepagesize:") * 1024 != HUGE {
            return Err("huge pages are not of 2 MiB".into());
        }
        if field("HugePages_Free:") >= count {
            return Ok(Self { before: None, _turn: turn });
        }
        let before = std::fs::read_to_string(COUNT).map_err(|error| error.to_string())?;
        let wanted = field("HugePages_Total:") + count;
        std::fs::write(COUNT, wanted.to_string())
            .map_err(|error| format!("no huge pages are reserved, and none can be: {error}"))?;
        Ok(Self { before: Some(before), _turn: turn })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = std::fs::write(COUNT, before.trim());
        }
    }
}

#[test]
fn a_system_v_segment_of_hugetlb() {
    let name = "a_system_v_segment_of_hugetlb";
    const COUNT: usize = 2;
    let reserved = Reserved::new(COUNT);
    let stage = Stage::new(name, 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    if let Err(reason) = &reserved {
        return skip(name, reason);
    }
    let flags = (libc::IPC_CREAT | libc::SHM_HUGETLB | 0o600) as usize;
    let id = match exporter.sys(libc::SYS_shmget, &[0, COUNT * HUGE, flags]) {
        Ok(id) => id,
        Err(errno) => return skip(name, &format!("no segment of huge pages (errno {errno})")),
    };
    let there = exporter.sys(libc::SYS_shmat, &[id, 0, 0]).unwrap();
    exporter.sys(libc::SYS_shmctl, &[id, libc::IPC_RMID as usize, 0]).unwrap();
    let pages = COUNT * HUGE / PAGE;
    exporter.fill(there, pages, 5);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, there, COUNT * HUGE);
    importer.check(here, pages, 5);
    assert_eq!(smaps_sum(&importer, here, COUNT * HUGE, "Shared_Hugetlb:"), COUNT * HUGE / 1024);
    let mapped = |actor: &Actor| maps(actor.pid()).iter().filter(|m| m.name.contains("SYSV")).count();
    assert_eq!(mapped(&importer), 1, "what it took to map it is still mapped");
    importer.detach(here);
    drop(stage);
    drop(reserved);
}

/// Shared memory of hugetlb in an actor, from its memfd.
fn hugetlb(actor: &mut Actor, count: usize) -> Option<usize> {
    let name = actor.text("huge");
    let fd = actor.sys(libc::SYS_memfd_create, &[name, libc::MFD_HUGETLB as usize]).ok()?;
    actor.sys(libc::SYS_ftruncate, &[fd, count * HUGE]).ok()?;
    let address = actor.place((count + 1) * HUGE).next_multiple_of(HUGE);
    let flags = (libc::MAP_SHARED | libc::MAP_FIXED) as usize;
    actor.sys(libc::SYS_mmap, &[address, count * HUGE, RW as usize, flags, fd, 0]).ok()
}

#[test]
fn hugetlb_memory_is_mapped_with_its_own_page_size() {
    let name = "hugetlb_memory_is_mapped_with_its_own_page_size";
    const COUNT: usize = 3;
    // Before the stage, to be given back after it.
    let reserved = Reserved::new(COUNT);
    let stage = Stage::new(name, 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let there = match reserved.as_ref().map(|_| hugetlb(&mut exporter, COUNT)) {
        Ok(Some(there)) => there,
        Ok(None) => return skip(name, "no huge pages could be had"),
        Err(reason) => return skip(name, reason),
    };
    let pages = COUNT * HUGE / PAGE;
    exporter.fill(there, pages, 5);
    let apid = {
        let segid = exporter.make_all();
        importer.get(segid)
    };
    let here = importer.attach(apid, there, COUNT * HUGE);
    importer.check(here, pages, 5);
    importer.fill(here + PAGE, 3, 900);
    exporter.check(there + PAGE, 3, 900);
    assert_eq!(smaps_sum(&importer, here, COUNT * HUGE, "Shared_Hugetlb:"), COUNT * HUGE / 1024);
    importer.detach(here);
    // A part of a huge page cannot be mapped without the rest. Memory of another kind before and behind it is there.
    exporter.anon_at(there - PAGE, PAGE);
    exporter.fill(there - PAGE, 1, 3);
    let exact = Setup::with_env("RMAP_WINDOW_LIMIT", "0");
    let mut importer = stage.actor_with(&exact);
    let apid = {
        let segid = exporter.make_all();
        importer.get(segid)
    };
    let here = importer.attach(apid, there - PAGE, 2 * HUGE);
    importer.check(here, 1, 3);
    importer.check(here + PAGE, 1, 5);
    importer.check(here + 5 * PAGE, 16, 9);
    let rest = here + PAGE + HUGE;
    assert!(importer.load(rest).unwrap_err().is_hole_at(rest));
    // Gone with the exporter's mapping.
    exporter.munmap(there, COUNT * HUGE);
    assert!(importer.load(here + PAGE).unwrap_err().is_hole_at(here + PAGE));
    importer.check(here, 1, 3);
    drop(stage);
    drop(reserved);
}
