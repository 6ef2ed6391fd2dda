//! The library on kernels that lack something: each feature that it makes use of is forced off in turn.

use rmap_core::features::{self, Availability, Feature};
use rmap_tests::{Actor, Log, PAGE, Setup, Stage, compare};

const HUGE: usize = 2 << 20;
const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

fn without(name: &str, log: &Log) -> Setup {
    Setup::logging("info", log).and_env("RMAP_DISABLE", name)
}

#[track_caller]
fn expect_hole(importer: &mut Actor, address: usize) {
    let fault = importer.load(address).expect_err("a hole");
    assert!(fault.is_hole_at(address), "{fault:?}");
}

/// What every user does, and what the features are for: huge ranges, sparse ones, files, moves, drops, forks, detours.
fn work(exporter: &mut Actor, importer: &mut Actor) {
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    // Large memory, and sparse memory.
    let large = exporter.anon(4 * HUGE);
    exporter.fill(large, 4 * HUGE / PAGE, 100);
    let here = importer.attach(apid, large, 4 * HUGE);
    importer.check(here, 4 * HUGE / PAGE, 100);
    importer.fill(here + HUGE, 8, 7000);
    exporter.check(large + HUGE, 8, 7000);
    let sparse = exporter.anon(64 * PAGE);
    exporter.fill(sparse + 5 * PAGE, 2, 55);
    exporter.fill(sparse + 60 * PAGE, 1, 60);
    let there = importer.attach(apid, sparse, 64 * PAGE);
    importer.check(there + 5 * PAGE, 2, 55);
    compare(exporter, importer, sparse, there, 64).unwrap();
    // A file, private and shared.
    let file = exporter.memfd(8 * PAGE);
    for kind in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
        let mapped = exporter.mmap(0, 8 * PAGE, RW, kind, file, 0);
        exporter.fill(mapped, 8, 300);
        let shown = importer.attach(apid, mapped, 8 * PAGE);
        importer.check(shown, 8, 300);
        exporter.munmap(mapped, 8 * PAGE);
        expect_hole(importer, shown + PAGE);
    }
    // The address space changes.
    exporter.madvise(large, HUGE, libc::MADV_DONTNEED);
    compare(exporter, importer, large, here, 16).unwrap();
    exporter.munmap(large + 2 * HUGE, HUGE);
    expect_hole(importer, here + 2 * HUGE);
    exporter.anon_at(large + 2 * HUGE, HUGE);
    exporter.fill(large + 2 * HUGE, 16, 9000);
    importer.check(here + 2 * HUGE, 16, 9000);
    let target = exporter.place(64 * PAGE);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    assert_eq!(exporter.mremap(sparse, 64 * PAGE, 64 * PAGE, flags, target), Ok(target));
    let moved = importer.attach(apid, target, 64 * PAGE);
    importer.check(moved + 5 * PAGE, 2, 55);
    // A forked child has a copy.
    let mut child = exporter.fork();
    child.fill(target + 5 * PAGE, 2, 1);
    importer.check(moved + 5 * PAGE, 2, 55);
    exporter.check(target + 5 * PAGE, 2, 55);
    child.exit();
    // The end.
    assert!(importer.load(here + HUGE).is_ok());
    assert_eq!(exporter.remove(segid), Ok(0));
    expect_hole(importer, here + HUGE + 3 * PAGE);
    assert_eq!(importer.release(apid), Ok(0));
}

/// Also in pairs of which one side alone lacks it.
fn works_without(feature: &Feature) {
    let stage = Stage::new(feature.name, 120);
    let log = Log::new();
    let less = without(feature.name, &log);
    for (exporter, importer) in [(true, true), (true, false), (false, true)] {
        let start = |less_of_it: bool| {
            if less_of_it { stage.actor_with(&less) } else { stage.actor() }
        };
        work(&mut start(exporter), &mut start(importer));
    }
    let line = format!("going without {}", feature.name);
    assert_eq!(log.lines_with(&line).len(), 4, "{}", log.text());
}

macro_rules! without_each {
    ($($test:ident $name:literal)*) => {
        $(
            #[test]
            fn $test() {
                works_without(Feature::named($name).unwrap());
            }
        )*

        /// So that a new one is not forgotten.
        #[test]
        fn each_optional_feature_is_tried() {
            let tried = [$($name),*];
            for feature in features::all().iter().filter(|feature| !feature.required) {
                assert!(tried.contains(&feature.name), "{} is not tried", feature.name);
            }
        }
    };
}

without_each! {
    without_userfaultfd_device "userfaultfd-device"
    without_exact_address "exact-address"
    without_watch_any "watch-any"
    without_move_pages "move-pages"
    without_pagemap_scan "pagemap-scan"
    without_procmap_query "procmap-query"
    without_collapse "collapse"
    without_populate "populate"
    without_numa "numa"
    without_peer_groups "peer-groups"
    without_peer_handle "peer-handle"
    without_refuse_descriptors "refuse-descriptors"
}

#[test]
fn without_all_of_them() {
    let stage = Stage::new("without_all_of_them", 120);
    let names: Vec<_> =
        features::all().iter().filter(|feature| !feature.required).map(|feature| feature.name).collect();
    let less = without(&names.join(","), &Log::new());
    work(&mut stage.actor_with(&less), &mut stage.actor_with(&less));
}

#[test]
fn what_is_required_is_named() {
    let stage = Stage::new("what_is_required_is_named", 60);
    for (name, said) in [
        ("userfaultfd,userfaultfd-device", "userfaultfd"),
        ("ptrace", "ptrace"),
        ("sealed-memory", "sealed memfd"),
    ] {
        let log = Log::new();
        let mut actor = stage.actor_with(&without(name, &log));
        assert_eq!(actor.xpmem("version"), Err(libc::ENOENT), "without {name}");
        assert_eq!(actor.try_make(0, PAGE, 0o600), Err(libc::ENOENT), "without {name}");
        let lines = log.lines_with(" error: this process cannot be served: ");
        assert_eq!(lines.len(), 1, "{}", log.text());
        assert!(lines[0].contains(said), "{lines:?} does not name {said}");
        actor.exit();
    }
}

#[test]
fn names_that_are_none_are_told_and_ignored() {
    let stage = Stage::new("names_that_are_none_are_told_and_ignored", 60);
    let log = Log::new();
    let mut actor = stage.actor_with(&without("collapse, nonsense,,numa", &log));
    assert_eq!(actor.xpmem("version"), Ok(0x0002_7004));
    let told = log.lines_with("RMAP_DISABLE");
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(log.lines_with(" warn: RMAP_DISABLE: nonsense is neither").len(), 1, "{told:?}");
}

#[test]
fn features_are_probed() {
    // What the tests run on has what is required, and none is forced off here.
    for feature in features::all() {
        let found = feature.availability();
        assert_ne!(found, Availability::Disabled, "{}", feature.name);
        assert!(!feature.required || found == Availability::Yes, "{}: {found:?}", feature.name);
    }
}
