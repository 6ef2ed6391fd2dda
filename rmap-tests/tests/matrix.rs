//! Segments over many sizes, by many peers, with many holes.

use rmap_tests::{Actor, PAGE, Random, Reply, Stage, pattern::Seen};

/// Integers in a page.
const INTS: usize = PAGE / 4;

fn write_ints(actor: &mut Actor, address: usize, pages: usize, factor: u32, add: u32) {
    actor.ok(&format!("ints {address:#x} {} {factor} {add}", pages * INTS));
}

fn add_ints(actor: &mut Actor, address: usize, pages: usize, factor: u32, add: u32) {
    actor.ok(&format!("addints {address:#x} {} {factor} {add}", pages * INTS));
}

#[track_caller]
fn expect_ints(actor: &mut Actor, address: usize, pages: usize, factor: u32, add: u32) {
    let wrong = actor.number(&format!("checkints {address:#x} {} {factor} {add}", pages * INTS));
    assert_eq!(wrong, 0, "integers that are not i * {factor} + {add}");
}

/// What each case of the matrix does with one exporter, its memory and its peers.
type Case = fn(&mut Actor, usize, usize, &mut [Peer]);

struct Peer {
    actor: Actor,
    here: usize,
}

const PEERS: [usize; 4] = [1, 3, 5, 10];
const PAGES: [usize; 12] = [1, 2, 3, 4, 5, 6, 10, 100, 200, 500, 1000, 4000];

/// Runs a case over peers and pages. Large ranges come with few peers only.
fn matrix(name: &str, case: Case) {
    let stage = Stage::new(name, 240);
    for count in PEERS {
        let mut exporter = stage.actor();
        let segid = exporter.make_all();
        let mut permits = Vec::new();
        let mut peers: Vec<Peer> = stage
            .actors(count)
            .into_iter()
            .map(|mut actor| {
                permits.push(actor.get(segid));
                Peer { actor, here: 0 }
            })
            .collect();
        for pages in PAGES.into_iter().filter(|pages| pages * count <= 4000) {
            let address = exporter.anon(pages * PAGE);
            for (peer, apid) in peers.iter_mut().zip(&permits) {
                peer.here = peer.actor.attach(*apid, address, pages * PAGE);
            }
            case(&mut exporter, address, pages, &mut peers);
            for peer in &mut peers {
                peer.actor.detach(peer.here);
            }
            exporter.munmap(address, pages * PAGE);
        }
        for (peer, apid) in peers.into_iter().zip(permits) {
            let mut actor = peer.actor;
            assert_eq!(actor.release(apid), Ok(0));
            actor.exit();
        }
        exporter.exit();
    }
}

#[test]
fn matrix_nobody_touches() {
    matrix("matrix_nobody_touches", |_, _, _, _| {});
}

#[test]
fn matrix_only_the_exporter_touches() {
    matrix("matrix_only_the_exporter_touches", |exporter, address, pages, _| {
        exporter.fill(address, pages, 1);
        exporter.check(address, pages, 1);
    });
}

#[test]
fn matrix_peers_read_untouched_memory() {
    matrix("matrix_peers_read_untouched_memory", |_, _, pages, peers| {
        for Peer { actor, here } in peers {
            assert_eq!(actor.ok(&format!("touch {here:#x} {pages} {PAGE}")), "0");
        }
    });
}

#[test]
fn matrix_peers_write_untouched_memory() {
    matrix("matrix_peers_write_untouched_memory", |exporter, address, pages, peers| {
        for (number, Peer { actor, here }) in peers.iter_mut().enumerate() {
            for page in [0, pages / 2, pages - 1] {
                actor.store(*here + page * PAGE + number * 8, 77 + number as u64).unwrap();
            }
        }
        for number in 0..peers.len() {
            for page in [0, pages / 2, pages - 1] {
                assert_eq!(exporter.load(address + page * PAGE + number * 8), Ok(77 + number as u64));
            }
        }
    });
}

#[test]
fn matrix_one_to_many() {
    matrix("matrix_one_to_many", |exporter, address, pages, peers| {
        exporter.fill(address, pages, 1);
        for Peer { actor, here } in &mut *peers {
            actor.tell(&format!("check {here:#x} {pages} 1 1"));
        }
        for Peer { actor, .. } in peers {
            assert_eq!(actor.answer(), Reply::Ok(String::new()));
        }
    });
}

#[test]
fn matrix_copy() {
    matrix("matrix_copy", |exporter, address, pages, peers| {
        exporter.fill(address, pages, 5);
        for Peer { actor, here } in peers {
            let own = actor.anon(pages * PAGE);
            actor.ok(&format!("copy {own:#x} {here:#x} {:#x}", pages * PAGE));
            actor.check(own, pages, 5);
            actor.munmap(own, pages * PAGE);
        }
    });
}

#[test]
fn matrix_many_to_one_at_once() {
    matrix("matrix_many_to_one_at_once", |exporter, address, pages, peers| {
        let count = peers.len();
        let slice = |number: usize| (pages * INTS * number / count, pages * INTS * (number + 1) / count);
        for (number, Peer { actor, here }) in peers.iter_mut().enumerate() {
            let (first, end) = slice(number);
            actor.tell(&format!("ints {:#x} {} 3 {number}", *here + first * 4, end - first));
        }
        for Peer { actor, .. } in &mut *peers {
            assert_eq!(actor.answer(), Reply::Ok(String::new()));
        }
        for number in 0..count {
            let (first, end) = slice(number);
            let check = format!("checkints {:#x} {} 3 {number}", address + first * 4, end - first);
            assert_eq!(exporter.number(&check), 0);
        }
    });
}

#[test]
fn matrix_sums_one_after_the_other() {
    matrix("matrix_sums_one_after_the_other", |exporter, address, pages, peers| {
        for (number, Peer { actor, here }) in peers.iter_mut().enumerate() {
            add_ints(actor, *here, pages, number as u32 + 1, 0);
        }
        let count = peers.len() as u32;
        expect_ints(exporter, address, pages, count * (count + 1) / 2, 0);
    });
}

#[test]
fn matrix_reverse_and_random_order() {
    matrix("matrix_reverse_and_random_order", |exporter, address, pages, peers| {
        let mut random = Random::new(pages as u64);
        exporter.fill(address, pages, 1);
        // Single touches of far apart pages: a sample is enough where there are many.
        let touch = |peer: &mut Peer, order: Vec<usize>| {
            for page in order.into_iter().take(200) {
                let seen = peer.actor.look(peer.here + page * PAGE, 1);
                assert_eq!(seen, [Seen::Stamp(1 + page as u64)]);
            }
        };
        let (first, rest) = peers.split_first_mut().unwrap();
        touch(first, (0..pages).rev().collect());
        for peer in rest.iter_mut().take(2) {
            touch(peer, random.order(pages));
        }
    });
}

#[test]
fn matrix_the_exporter_forks() {
    matrix("matrix_the_exporter_forks", |exporter, address, pages, peers| {
        write_ints(exporter, address, pages, 1, 0);
        for Peer { actor, here } in &mut *peers {
            expect_ints(actor, *here, pages, 1, 0);
        }
        let mut child = exporter.fork();
        add_ints(exporter, address, pages, 1, 0);
        for Peer { actor, here } in &mut *peers {
            expect_ints(actor, *here, pages, 2, 0);
        }
        let half = pages.div_ceil(2);
        add_ints(&mut peers[0].actor, peers[0].here, half, 1, 0);
        expect_ints(exporter, address, half, 3, 0);
        let rest = pages - half;
        let first = 2 * (half * INTS) as u32;
        expect_ints(exporter, address + half * PAGE, rest, 2, first);
        expect_ints(&mut child, address, pages, 1, 0);
        child.exit();
    });
}

#[test]
fn ten_segments_used_in_turn() {
    let stage = Stage::new("ten_segments_used_in_turn", 120);
    let mut exporter = stage.actor();
    let pages = 50;
    let address = exporter.anon(pages * PAGE);
    let segids: Vec<i64> = (0..10).map(|_| exporter.make_all()).collect();
    let mut different = segids.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), 10);
    for mut peer in stage.actors(3) {
        let permits: Vec<i64> = segids.iter().map(|segid| peer.get(*segid)).collect();
        for page in 0..pages {
            let here = peer.attach(permits[page % 10], address + page * PAGE, PAGE);
            add_ints(&mut peer, here, 1, 1, 0);
        }
    }
    for page in 0..pages {
        expect_ints(&mut exporter, address + page * PAGE, 1, 3, 0);
    }
    for (number, segid) in segids.into_iter().enumerate() {
        assert_eq!(exporter.remove(segid), Ok(0), "segment {number}");
    }
}

#[test]
fn a_large_range_touched_here_and_there() {
    let stage = Stage::new("a_large_range_touched_here_and_there", 120);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let pages = 100_000;
    let address = exporter.anon(pages * PAGE);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, address, pages * PAGE);
    for page in (0..pages).step_by(2000) {
        exporter.store(address + page * PAGE, page as u64).unwrap();
    }
    for page in (0..pages).step_by(200) {
        let expected = if page % 2000 == 0 { page } else { 0 };
        assert_eq!(importer.load(here + page * PAGE), Ok(expected as u64));
        importer.store(here + page * PAGE + 8, page as u64).unwrap();
    }
    for page in (0..pages).step_by(200) {
        assert_eq!(exporter.load(address + page * PAGE + 8), Ok(page as u64));
    }
}

// ---- holes ----

#[test]
fn areas_between_holes() {
    let stage = Stage::new("areas_between_holes", 180);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    for (hole, area, areas) in [0, 1, 2, 8, 128].into_iter().flat_map(|hole| {
        [1, 3, 16, 128]
            .into_iter()
            .flat_map(move |area| [16, 64].into_iter().map(move |areas| (hole, area, areas)))
    }) {
        if (hole + area) * areas > 8192 {
            continue;
        }
        let stride = (hole + area) * PAGE;
        let address = exporter.anon(areas * stride);
        let mut sum = 0_usize;
        for number in 0..areas {
            let start = address + number * stride;
            exporter.ok(&format!("ints {start:#x} {} 1 {number}", area * INTS));
            let count = area * INTS;
            sum += count * (count - 1) / 2 + number * count;
            if hole > 0 {
                exporter.munmap(start + area * PAGE, hole * PAGE);
            }
        }
        let here = importer.attach(apid, address, areas * stride);
        let mut found = 0;
        for number in 0..areas {
            found += importer.number(&format!("sumints {:#x} {}", here + number * stride, area * INTS));
        }
        assert_eq!(found, sum, "{areas} areas of {area} pages with holes of {hole}");
        if hole > 0 {
            for number in [0, areas / 2, areas - 1] {
                let at = here + number * stride + area * PAGE;
                assert!(importer.load(at).unwrap_err().is_hole_at(at));
                let end = at + hole * PAGE - 8;
                assert!(importer.store(end, 1).unwrap_err().is_hole_at(end));
            }
        }
        importer.detach(here);
        exporter.munmap(address, areas * stride);
    }
}
