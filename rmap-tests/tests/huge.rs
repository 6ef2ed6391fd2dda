//! Memory that was in huge pages stays in huge pages, for the exporter and for all importers.

use rmap_tests::{Actor, PAGE, Stage, skip};

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
