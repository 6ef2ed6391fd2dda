//! Memory stays on its nodes, and follows the policy that its mapping has.
//!
//! This takes two nodes: `ci/test-numa.sh` runs it on a machine in QEMU that has them.

use rmap_tests::{Actor, PAGE, Stage, maps, skip};

const HUGE: usize = 2 << 20;
const BLOCK: usize = HUGE / PAGE;
const MPOL_DEFAULT: usize = 0;
const MPOL_BIND: usize = 2;
const MPOL_F_ADDR: usize = 1 << 1;
const MPOL_F_MEMS_ALLOWED: usize = 1 << 2;
/// Words of a set of nodes, and its bits as the kernel wants them.
const WORDS: usize = 16;
const BITS: usize = WORDS * 64 + 1;

/// Why nodes cannot be told apart here, if so.
fn one_node() -> Option<String> {
    let mut nodes = [0u64; WORDS];
    // SAFETY: the kernel writes at most `BITS - 1` bits to `nodes`.
    let result = unsafe {
        libc::syscall(libc::SYS_get_mempolicy, 0usize, nodes.as_mut_ptr(), BITS, 0usize, MPOL_F_MEMS_ALLOWED)
    };
    if result != 0 {
        return Some(format!("get_mempolicy: {}", std::io::Error::last_os_error()));
    }
    (nodes[0] & 3 != 3).then(|| "there is no memory of nodes 0 and 1".into())
}

/// The nodes of pages of an actor, negative where there is none.
fn nodes(actor: &Actor, address: usize, pages: usize) -> Vec<i32> {
    let places: Vec<usize> = (0..pages).map(|page| address + page * PAGE).collect();
    let mut nodes = vec![0i32; pages];
    // SAFETY: nothing is moved without target nodes; both arrays have `pages` elements.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            actor.pid(),
            pages,
            places.as_ptr(),
            0usize,
            nodes.as_mut_ptr(),
            0usize,
        )
    };
    assert_eq!(result, 0, "move_pages: {}", std::io::Error::last_os_error());
    nodes
}

/// Pages that the actor's main thread touches first come from this node from now on.
fn take_from(actor: &mut Actor, node: usize) {
    let board = actor.board();
    actor.store(board, 1 << node).unwrap();
    actor.sys(libc::SYS_set_mempolicy, &[MPOL_BIND, board, 65]).unwrap();
}

/// Pages of this range come from this node from now on.
fn bind(actor: &mut Actor, address: usize, len: usize, node: usize) {
    let board = actor.board();
    actor.store(board, 1 << node).unwrap();
    actor.sys(libc::SYS_mbind, &[address, len, MPOL_BIND, board, 65, 0]).unwrap();
}

/// The mode and the first nodes of the policy that a mapping has.
fn policy(actor: &mut Actor, address: usize) -> (u64, u64) {
    let board = actor.board();
    let set = board + 8;
    actor.store(board, 0).unwrap();
    // The kernel writes no nodes for the default policy.
    actor.store(set, 0).unwrap();
    actor.sys(libc::SYS_get_mempolicy, &[board, set, BITS, address, MPOL_F_ADDR]).unwrap();
    (actor.load(board).unwrap(), actor.load(set).unwrap())
}

/// Whether the kernel makes huge pages of private memory without being asked.
fn automatic_huge_pages() -> bool {
    std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
        .is_ok_and(|text| text.contains("[always]"))
}

/// The blocks that have pages of both nodes.
const MIXED: [usize; 2] = [0, 3];

/// Writes pages of two nodes: page by page, whole blocks of either, halves, and a rest that is no block.
fn two_nodes(actor: &mut Actor, there: usize) -> Vec<i32> {
    let mut wanted = Vec::new();
    wanted.extend((0..BLOCK).map(|page| page % 2));
    wanted.extend([1; BLOCK]);
    wanted.extend([0; BLOCK]);
    wanted.extend((0..BLOCK).map(|page| 1 - page / (BLOCK / 2)));
    wanted.extend([1; BLOCK]);
    wanted.extend((0..100).map(|page| page / 3 % 2));
    actor.anon_at(there, wanted.len() * PAGE);
    if automatic_huge_pages() {
        // Else the kernel puts these on one node by itself.
        for mixed in MIXED {
            actor.madvise(there + mixed * HUGE, HUGE, libc::MADV_NOHUGEPAGE);
        }
    }
    // One block is a huge page from the start.
    actor.madvise(there + 4 * HUGE, HUGE, libc::MADV_HUGEPAGE);
    for node in [0, 1] {
        take_from(actor, node);
        for (page, _) in wanted.iter().enumerate().filter(|(_, wanted)| **wanted == node) {
            actor.fill(there + page * PAGE, 1, 1 + page as u64);
        }
    }
    let before = nodes(actor, there, wanted.len());
    assert!(
        before.iter().zip(&wanted).all(|(node, wanted)| *node == *wanted as i32),
        "not what was asked for"
    );
    before
}

#[track_caller]
fn same(who: &str, before: &[i32], now: &[i32]) {
    let moved: Vec<_> = (0..before.len())
        .filter(|page| before[*page] != now[*page])
        .map(|page| (page, before[page], now[page]))
        .collect();
    assert!(moved.is_empty(), "{who}: {} pages have moved: {:?}", moved.len(), &moved[..moved.len().min(20)]);
}

#[test]
fn pages_stay_on_their_nodes() {
    let name = "pages_stay_on_their_nodes";
    if let Some(reason) = one_node() {
        return skip(name, &reason);
    }
    let stage = Stage::new(name, 240);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    // Where a thread has a policy of its own, the kernel does not move pages to it (kernel.numa_balancing).
    take_from(&mut importer, 0);
    let there = exporter.place(8 * HUGE).next_multiple_of(HUGE);
    let before = two_nodes(&mut exporter, there);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, there, before.len() * PAGE);
    importer.check(here, before.len(), 1);
    exporter.check(there, before.len(), 1);
    same("importer", &before, &nodes(&importer, here, before.len()));
    same("exporter", &before, &nodes(&exporter, there, before.len()));
    // And when they are the exporter's alone again.
    importer.detach(here);
    exporter.remove(segid).unwrap();
    let adopted =
        maps(exporter.pid()).into_iter().find(|map| map.range.contains(&there) && !map.name.is_empty());
    assert!(adopted.is_none(), "still adopted: {adopted:?}");
    exporter.check(there, before.len(), 1);
    let mut now = nodes(&exporter, there, before.len());
    if automatic_huge_pages() {
        for mixed in MIXED {
            let block = mixed * BLOCK..(mixed + 1) * BLOCK;
            now[block.clone()].copy_from_slice(&before[block]);
        }
    }
    same("exporter, afterwards", &before, &now);
}

#[test]
fn moved_memory_stays_on_its_nodes() {
    let name = "moved_memory_stays_on_its_nodes";
    if let Some(reason) = one_node() {
        return skip(name, &reason);
    }
    const PAGES: usize = 64;
    let stage = Stage::new(name, 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    take_from(&mut importer, 0);
    let there = exporter.anon(PAGES * PAGE);
    for page in 0..PAGES {
        take_from(&mut exporter, page % 2);
        exporter.fill(there + page * PAGE, 1, 5 + page as u64);
    }
    let before = nodes(&exporter, there, PAGES);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, there, PAGES * PAGE);
    importer.check(here, PAGES, 5);
    let place = exporter.place(PAGES * PAGE);
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as usize;
    exporter.sys(libc::SYS_mremap, &[there, PAGES * PAGE, PAGES * PAGE, flags, place]).unwrap();
    let here = importer.get_attach(segid, place, PAGES * PAGE);
    importer.check(here, PAGES, 5);
    exporter.check(place, PAGES, 5);
    same("importer", &before, &nodes(&importer, here, PAGES));
    same("exporter", &before, &nodes(&exporter, place, PAGES));
}

#[test]
fn memory_follows_the_policy_of_its_mapping() {
    let name = "memory_follows_the_policy_of_its_mapping";
    if let Some(reason) = one_node() {
        return skip(name, &reason);
    }
    const PAGES: usize = 96;
    let stage = Stage::new(name, 120);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    for node in [1, 0] {
        let there = exporter.anon(PAGES * PAGE);
        bind(&mut exporter, there, PAGES * PAGE, node);
        take_from(&mut exporter, 1 - node);
        take_from(&mut importer, 1 - node);
        exporter.fill(there, PAGES / 3, 5);
        let segid = exporter.make_all();
        let here = importer.get_attach(segid, there, PAGES * PAGE);
        importer.check(here, PAGES / 3, 5);
        // A third each that importer and exporter touch first.
        importer.fill(here + PAGES / 3 * PAGE, PAGES / 3, 6);
        exporter.fill(there + 2 * PAGES / 3 * PAGE, PAGES / 3, 7);
        exporter.check(there, PAGES / 3, 5);
        exporter.check(there + PAGES / 3 * PAGE, PAGES / 3, 6);
        let wanted = vec![node as i32; PAGES];
        same("exporter", &wanted, &nodes(&exporter, there, PAGES));
        assert_eq!(policy(&mut exporter, there), (MPOL_BIND as u64, 1 << node));
        importer.detach(here);
        exporter.remove(segid).unwrap();
        assert_eq!(policy(&mut exporter, there), (MPOL_BIND as u64, 1 << node), "afterwards");
        // Other memory at the same addresses does not inherit it.
        let segid = exporter.make_all();
        let here = importer.get_attach(segid, there, PAGES * PAGE);
        importer.check(here, PAGES / 3, 5);
        exporter.anon_at(there, PAGES * PAGE);
        exporter.fill(there, PAGES, 8);
        let here = importer.get_attach(segid, there, PAGES * PAGE);
        importer.check(here, PAGES, 8);
        exporter.check(there, PAGES, 8);
        same("other memory", &[1 - node as i32; PAGES], &nodes(&exporter, there, PAGES));
        assert_eq!(policy(&mut exporter, there).0, MPOL_DEFAULT as u64);
        exporter.remove(segid).unwrap();
    }
}
