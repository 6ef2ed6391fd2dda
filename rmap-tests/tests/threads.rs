//! All functions from many threads at once, while memory is used and changes.

use rmap_tests::{Actor, PAGE, Report, Stage, expect_clean, seed};

const ARENA: usize = 0x2000_0000_0000;
const PAGES: usize = 64;

/// Starts threads and lets each of an actor do so many steps.
fn run(actors: &mut [&mut Actor], works: &[Vec<String>], steps: &[usize]) -> Vec<Vec<Report>> {
    let mut running: Vec<Vec<usize>> = Vec::new();
    for (actor, works) in actors.iter_mut().zip(works) {
        running.push(works.iter().map(|work| actor.start(work)).collect());
    }
    for ((actor, threads), steps) in actors.iter_mut().zip(&running).zip(steps) {
        for thread in threads {
            while actor.number(&format!("progress {thread}")) < *steps {
                std::thread::yield_now();
            }
        }
    }
    actors
        .iter_mut()
        .zip(running)
        .map(|(actor, threads)| threads.into_iter().map(|thread| actor.stop(thread)).collect())
        .collect()
}

#[test]
fn many_threads_of_one_importer() {
    let stage = Stage::new("many_threads_of_one_importer", 120);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    exporter.label(ARENA, PAGES);
    let segids = [exporter.make(ARENA, PAGES * PAGE), exporter.make(ARENA, PAGES * PAGE)];
    importer.anon_at(ARENA, PAGES * PAGE);
    let works = (0..16)
        .map(|number| {
            format!("api {} {} {ARENA} {PAGES} {} {ARENA} {PAGES}", seed() + number, segids[0], segids[1])
        })
        .collect();
    for report in run(&mut [&mut importer], &[works], &[1000]).concat() {
        expect_clean(&report);
        assert_eq!(report["holes"], 0, "{report:?}");
        assert!(report["loads"] > 0, "{report:?}");
    }
    importer.exit();
    exporter.exit();
}

#[test]
fn a_process_and_itself() {
    let stage = Stage::new("a_process_and_itself", 120);
    let mut actor = stage.actor();
    actor.label(ARENA, PAGES);
    let segid = actor.make(ARENA, PAGES * PAGE);
    let works = (0..8).map(|number| format!("api {} {segid} {ARENA} {PAGES}", seed() + number)).collect();
    for report in run(&mut [&mut actor], &[works], &[1000]).concat() {
        expect_clean(&report);
    }
    actor.exit();
}

#[test]
fn three_processes_with_each_other() {
    let stage = Stage::new("three_processes_with_each_other", 120);
    let mut actors = stage.actors(3);
    let segids: Vec<i64> = actors
        .iter_mut()
        .map(|actor| {
            actor.label(ARENA, PAGES);
            actor.make(ARENA, PAGES * PAGE)
        })
        .collect();
    let works: Vec<Vec<String>> = (0..3)
        .map(|own| {
            let targets: String =
                (0..3).map(|number| format!(" {} {ARENA} {PAGES}", segids[(own + number) % 3])).collect();
            (0..6).map(|number| format!("api {}{targets}", seed() + 10 * own as u64 + number)).collect()
        })
        .collect();
    let mut all: Vec<&mut Actor> = actors.iter_mut().collect();
    for report in run(&mut all, &works, &[500; 3]).concat() {
        expect_clean(&report);
        assert_eq!(report["holes"], 0, "{report:?}");
    }
    for actor in actors {
        actor.exit();
    }
}

/// Sixteen threads of each of two processes make all calls, on their own memory and the other's, while both also change their memory and
/// look at what the other changes.
#[test]
fn everything_at_once() {
    let stage = Stage::new("everything_at_once", 120);
    let mut actors = stage.actors(2);
    let churned = |number: usize| ARENA + (1 + number) * 4096 * PAGE;
    let made: Vec<(i64, i64)> = actors
        .iter_mut()
        .map(|actor| {
            actor.label(ARENA, PAGES);
            (actor.make(ARENA, PAGES * PAGE), actor.make_all())
        })
        .collect();
    let works: Vec<Vec<String>> = (0..2)
        .map(|own| {
            let (mine, yours) = (made[own], made[1 - own]);
            let targets = format!("{} {ARENA} {PAGES} {} {ARENA} {PAGES}", mine.0, yours.0);
            let seed = seed() + 100 * own as u64;
            let calls = (0..16).map(|number| format!("api {} {targets}", seed + number));
            let changes =
                (0..2).map(|number| format!("churn {:#x} {PAGES} {}", churned(number), seed + number as u64));
            let here = actors[own].get_attach(yours.1, churned(own), PAGES * PAGE);
            let looks = std::iter::once(format!("scan {here:#x} {PAGES} {seed}"));
            calls.chain(changes).chain(looks).collect()
        })
        .collect();
    let mut all: Vec<&mut Actor> = actors.iter_mut().collect();
    for report in run(&mut all, &works, &[100; 2]).concat() {
        expect_clean(&report);
        assert_eq!(report.get("errno").copied().unwrap_or(0), 0, "{report:?}");
    }
    for actor in actors {
        actor.exit();
    }
}

/// Exporter threads change their memory, importer threads look at it, and both do so many steps.
fn change_and_look(name: &str, changing: (usize, usize), looking: (usize, usize)) {
    let stage = Stage::new(name, 120);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let segid = exporter.make_all();
    let area = |number: usize| ARENA + number * 4096 * PAGE;
    let churn: Vec<String> = (0..changing.0)
        .map(|number| format!("churn {:#x} {PAGES} {}", area(number), seed() + number as u64))
        .collect();
    let scan: Vec<String> = (0..looking.0)
        .map(|number| {
            let here = importer.get_attach(segid, area(number % changing.0), PAGES * PAGE);
            format!("scan {here:#x} {PAGES} {number}")
        })
        .collect();
    let steps = [changing.1, looking.1];
    let reports = run(&mut [&mut exporter, &mut importer], &[churn, scan], &steps);
    for report in &reports[0] {
        assert_eq!((report["wrong"], report["errno"]), (0, 0), "{report:?}");
    }
    let mut sum = 0;
    for report in &reports[1] {
        // A page may be seen while it is written: other bytes are no error, other faults are.
        assert_eq!(report["faults"], 0, "{report:?}");
        sum += report["stamps"];
    }
    assert!(sum > 0, "nothing was seen");
    importer.exit();
    exporter.exit();
}

#[test]
fn one_thread_looks_while_one_changes() {
    change_and_look("one_thread_looks_while_one_changes", (1, 4000), (1, 1000));
}

#[test]
fn importers_look_while_exporters_change() {
    change_and_look("importers_look_while_exporters_change", (3, 3000), (2, 300));
}

#[test]
fn many_importers_look_while_many_exporters_change() {
    change_and_look("many_importers_look_while_many_exporters_change", (6, 500), (8, 10));
}

#[test]
fn segments_come_and_go_under_their_users() {
    let stage = Stage::new("segments_come_and_go_under_their_users", 120);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    exporter.label(ARENA, PAGES);
    importer.anon_at(ARENA, PAGES * PAGE);
    let lasting = exporter.make(ARENA, PAGES * PAGE);
    for round in 0..30 {
        let segid = exporter.make(ARENA, PAGES * PAGE);
        let threads: Vec<usize> = (0..4)
            .map(|number| {
                let seed = seed() + round * 10 + number;
                importer.start(&format!("api {seed} {segid} {ARENA} {PAGES} {lasting} {ARENA} {PAGES}"))
            })
            .collect();
        for thread in &threads {
            while importer.number(&format!("progress {thread}")) < 30 {
                std::thread::yield_now();
            }
        }
        assert_eq!(exporter.remove(segid), Ok(0));
        for thread in threads {
            let report = importer.stop(thread);
            assert_eq!((report["wrong"], report["faults"]), (0, 0), "{report:?}");
            let unexpected: Vec<_> = report
                .keys()
                .filter(|key| {
                    key.contains("errno_") && !["get_errno_2", "attach_errno_2"].contains(&key.as_str())
                })
                .collect();
            assert!(unexpected.is_empty(), "{report:?}");
        }
    }
    importer.exit();
    exporter.exit();
}

#[test]
fn many_processes_attach_one() {
    let stage = Stage::new("many_processes_attach_one", 120);
    let mut exporter = stage.actor();
    exporter.label(ARENA, PAGES);
    let segid = exporter.make(ARENA, PAGES * PAGE);
    let mut importers = stage.actors(12);
    let works: Vec<Vec<String>> =
        (0..12).map(|number| vec![format!("api {} {segid} {ARENA} {PAGES}", seed() + number); 2]).collect();
    for importer in &mut importers {
        importer.anon_at(ARENA, PAGES * PAGE);
    }
    let mut all: Vec<&mut Actor> = importers.iter_mut().collect();
    for report in run(&mut all, &works, &[200; 12]).concat() {
        expect_clean(&report);
        assert_eq!(report["holes"], 0, "{report:?}");
    }
    drop(importers);
    exporter.exit();
}
