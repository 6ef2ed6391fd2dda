//! Memory of processes that do not cooperate, shown by the kernel module: nothing is moved and nothing is stopped.
//!
//! Where there is no module, each test says so. `ci/test-engines.sh` runs them where it is.

use core::ops::Range;
use rmap_inspect::{Error, Inspection, Way};
use rmap_tests::pattern::{self, Page, stamp};
use rmap_tests::{Actor, PAGE, Stage};
use std::sync::atomic::{AtomicU64, Ordering};

fn has_module(test: &str) -> bool {
    let there = std::fs::OpenOptions::new().read(true).write(true).open("/dev/rmap").is_ok();
    if !there {
        rmap_tests::skip(test, "no /dev/rmap");
    }
    there
}

fn open(actor: &Actor, start: usize, pages: usize, writable: bool) -> Inspection {
    let inspection = Inspection::open(actor.pid(), start..start + pages * PAGE, writable).unwrap();
    assert!(inspection.pieces().iter().all(|piece| piece.way == Way::Kernel));
    inspection
}

fn mappings(actor: &Actor) -> Vec<(Range<usize>, String)> {
    rmap_tests::maps(actor.pid()).into_iter().map(|map| (map.range, map.flags)).collect()
}

/// The stamp of the page at `address`, `None` for a hole.
fn look(inspection: &Inspection, address: usize) -> Option<u64> {
    let mut page: Page = [0; PAGE];
    match inspection.read(address, &mut page) {
        Ok(()) => Some(stamp(&page).unwrap()),
        Err(Error::Hole(hole)) => {
            assert_eq!(hole, address);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn both_ways_and_in_place() {
    if !has_module("both_ways_and_in_place") {
        return;
    }
    let stage = Stage::new("both_ways_and_in_place", 60);
    let mut actor = stage.actor();
    let address = actor.anon(600 * PAGE);
    actor.fill(address, 300, 20);
    let before = mappings(&actor);
    let inspection = open(&actor, address, 600, true);
    assert_eq!(look(&inspection, address + 299 * PAGE), Some(319));
    assert_eq!(look(&inspection, address + 500 * PAGE), Some(0));
    let mut page: Page = [0; PAGE];
    pattern::draw(90, &mut page);
    inspection.write(address + 200 * PAGE, &page).unwrap();
    actor.check(address + 200 * PAGE, 1, 90);
    // By loads, too.
    let word = inspection.as_ptr(address + 200 * PAGE).cast::<u64>();
    let first = u64::from_ne_bytes(page[..8].try_into().unwrap());
    // SAFETY: `as_ptr` points to the page that is shown for as long as `inspection` lives; the actor does not unmap it.
    assert_eq!(unsafe { AtomicU64::from_ptr(word) }.load(Ordering::Relaxed), first);
    assert_eq!(mappings(&actor), before);
    inspection.close().unwrap();
    actor.check(address, 200, 20);
    actor.exit();
}

#[test]
fn what_the_process_does_is_followed() {
    if !has_module("what_the_process_does_is_followed") {
        return;
    }
    let stage = Stage::new("what_the_process_does_is_followed", 60);
    let mut actor = stage.actor();
    let address = actor.anon(9 * PAGE);
    actor.fill(address, 9, 40);
    let mut inspection = open(&actor, address, 9, true);
    actor.munmap(address + 3 * PAGE, PAGE);
    actor.anon_at(address + 5 * PAGE, PAGE);
    actor.fill(address + 5 * PAGE, 1, 80);
    inspection.refresh().unwrap();
    let seen: Vec<_> = (0..9).map(|page| look(&inspection, address + page * PAGE)).collect();
    assert_eq!(seen, [40, 41, 42, 0, 44, 80, 46, 47, 48].map(|stamp| (stamp != 0).then_some(stamp)));
    // A look that runs into a hole says where that is.
    let mut bytes = vec![0; 9 * PAGE];
    assert_eq!(inspection.read(address, &mut bytes), Err(Error::Hole(address + 3 * PAGE)));
    assert_eq!(inspection.write(address + 3 * PAGE, b"x"), Err(Error::Hole(address + 3 * PAGE)));
    assert_eq!(inspection.read(address + 9 * PAGE, &mut bytes), Err(Error::Hole(address + 9 * PAGE)));
    let pid = actor.pid();
    actor.kill();
    assert_eq!(look(&inspection, address), None);
    assert_eq!(inspection.refresh(), Err(Error::NoProcess(pid)));
    inspection.close().unwrap();
}

#[test]
fn looks_cannot_store() {
    if !has_module("looks_cannot_store") {
        return;
    }
    let stage = Stage::new("looks_cannot_store", 60);
    let mut actor = stage.actor();
    let address = actor.anon(2 * PAGE);
    actor.fill(address, 2, 50);
    let inspection = open(&actor, address, 2, false);
    assert_eq!(look(&inspection, address), Some(50));
    assert_eq!(inspection.write(address, b"x"), Err(Error::Hole(address)));
    inspection.close().unwrap();
    // And nothing is stored through what the process may only read itself.
    actor.mprotect(address, PAGE, libc::PROT_READ);
    let inspection = open(&actor, address, 2, true);
    assert_eq!(inspection.write(address, b"x"), Err(Error::Hole(address)));
    actor.check(address, 2, 50);
    actor.exit();
}
