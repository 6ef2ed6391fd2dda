//! Memory becomes shared while the threads of its process use it, and they must not notice.
//!
//! An importer touches pages of ranges that nobody has touched before. What that takes in the exporter goes on
//! under threads that count, make system calls, take signals, sleep, start and end.

use rmap_tests::{Actor, PAGE, Random, Report, Stage, maps, rounds, seed};

const ARENA: usize = 0x2000_0000_0000;
/// Areas are so far apart that each becomes shared by itself.
const STRIDE: usize = 64 << 20;
const AREAS: usize = 16;
/// Pages of an area.
const PAGES: usize = 8;

struct Scene {
    exporter: Actor,
    importer: Actor,
    apid: i64,
    random: Random,
    _stage: Stage,
}

impl Scene {
    fn new(name: &str) -> Self {
        let stage = Stage::new(name, 120);
        let (mut exporter, mut importer) = (stage.actor(), stage.actor());
        let segid = exporter.make_all();
        let apid = importer.get(segid);
        Self { exporter, importer, apid, random: Random::new(seed()), _stage: stage }
    }

    /// New memory in all areas.
    fn areas(&mut self) {
        for area in 0..AREAS {
            self.exporter.anon_at(ARENA + area * STRIDE, PAGES * PAGE);
        }
    }

    /// Has the importer touch all pages of all areas in random order.
    fn touch(&mut self) {
        let here = self.importer.attach(self.apid, ARENA, AREAS * STRIDE);
        for place in self.random.order(AREAS * PAGES) {
            let address = here + place / PAGES * STRIDE + place % PAGES * PAGE;
            self.importer.load(address).unwrap();
        }
        self.importer.detach(here);
    }

    /// Has the importer touch all pages of one range.
    fn touch_range(&mut self, address: usize, pages: usize) {
        let here = self.importer.attach(self.apid, address, pages * PAGE);
        for page in self.random.order(pages) {
            self.importer.load(here + page * PAGE).unwrap();
        }
        self.importer.detach(here);
    }

    fn start(&mut self, works: &[String]) -> Vec<usize> {
        let threads: Vec<usize> = works.iter().map(|work| self.exporter.start(work)).collect();
        self.progress(&threads);
        threads
    }

    /// Waits until each thread has done something more.
    fn progress(&mut self, threads: &[usize]) {
        for thread in threads {
            let before = self.exporter.number(&format!("progress {thread}"));
            while self.exporter.number(&format!("progress {thread}")) == before {
                std::thread::yield_now();
            }
        }
    }

    fn stop(&mut self, threads: Vec<usize>) -> Vec<Report> {
        threads.into_iter().map(|thread| self.exporter.stop(thread)).collect()
    }
}

/// All of these counts are 0.
#[track_caller]
fn expect_none(work: &str, report: &Report, counts: &[&str]) {
    for count in counts {
        assert_eq!(report[*count], 0, "{count} of `{work}`: {report:?}");
    }
}

const CALLS: [&str; 4] = ["eintr", "efault", "other", "wrong"];

fn increments(name: &str, threads: usize, count: usize) {
    let mut scene = Scene::new(name);
    for _ in 0..rounds(count) {
        scene.areas();
        let works: Vec<String> = (0..threads)
            .map(|slot| format!("inc {:#x} {AREAS} {STRIDE} {slot}", ARENA + slot % PAGES * PAGE))
            .collect();
        let running = scene.start(&works);
        scene.touch();
        scene.progress(&running);
        for (work, report) in works.iter().zip(scene.stop(running)) {
            expect_none(work, &report, &["lost"]);
        }
    }
    scene.exporter.exit();
}

#[test]
fn no_increment_of_one_thread_is_lost() {
    increments("no_increment_of_one_thread_is_lost", 1, 6);
}

#[test]
fn no_increment_of_4_threads_is_lost() {
    increments("no_increment_of_4_threads_is_lost", 4, 6);
}

#[test]
fn no_increment_of_16_threads_is_lost() {
    increments("no_increment_of_16_threads_is_lost", 16, 2);
}

#[test]
fn both_sides_add_to_one_word() {
    let mut scene = Scene::new("both_sides_add_to_one_word");
    for round in 0..rounds(8) {
        scene.areas();
        let word = ARENA + round % AREAS * STRIDE + PAGE;
        let here = scene.importer.attach(scene.apid, word, PAGE);
        let ours = scene.start(&[format!("add {word:#x}"), format!("add {word:#x}")]);
        let theirs: Vec<usize> = (0..2).map(|_| scene.importer.start(&format!("add {here:#x}"))).collect();
        scene.progress(&ours);
        let mut sum = 0;
        for thread in theirs {
            while scene.importer.number(&format!("progress {thread}")) < 1000 {
                std::thread::yield_now();
            }
            let report = scene.importer.stop(thread);
            expect_none("add", &report, &["faults"]);
            sum += report["done"];
        }
        for report in scene.stop(ours) {
            expect_none("add", &report, &["faults"]);
            sum += report["done"];
        }
        assert_eq!(scene.exporter.load(word), Ok(sum));
        assert_eq!(scene.importer.load(here), Ok(sum));
    }
}

fn system_calls(name: &str, each: usize, count: usize) {
    let mut scene = Scene::new(name);
    for _ in 0..rounds(count) {
        scene.areas();
        let works: Vec<String> = (0..each)
            .flat_map(|number| {
                let area = |kind: usize| ARENA + (number * 4 + kind) % AREAS * STRIDE;
                [
                    format!("read {:#x} {}", area(0), PAGES * PAGE),
                    format!("pread {:#x} {}", area(1), PAGES * PAGE),
                    format!("write {:#x} {}", area(2), PAGES * PAGE),
                    format!("calls {:#x}", area(3)),
                ]
            })
            .collect();
        let running = scene.start(&works);
        scene.touch();
        scene.progress(&running);
        for (work, report) in works.iter().zip(scene.stop(running)) {
            expect_none(work, &report, &CALLS);
        }
    }
    scene.exporter.exit();
}

#[test]
fn system_calls_into_the_range() {
    system_calls("system_calls_into_the_range", 1, 4);
}

#[test]
fn many_system_calls_into_the_range() {
    system_calls("many_system_calls_into_the_range", 4, 2);
}

#[test]
fn signals_while_memory_becomes_shared() {
    let mut scene = Scene::new("signals_while_memory_becomes_shared");
    for _ in 0..rounds(3) {
        scene.areas();
        let works: Vec<String> = (0..4)
            .map(|slot| format!("ticking 300 inc {ARENA:#x} {AREAS} {STRIDE} {slot}"))
            .chain(
                (4..8)
                    .map(|area| format!("ticking 300 read {:#x} {}", ARENA + area * STRIDE + PAGE, PAGE * 4)),
            )
            .collect();
        let running = scene.start(&works);
        scene.touch();
        scene.progress(&running);
        for (work, report) in works.iter().zip(scene.stop(running)) {
            if work.contains("inc") {
                expect_none(work, &report, &["lost"]);
                assert!(report["ticks"] > 0, "no signal came");
            } else {
                expect_none(work, &report, &["efault", "other", "wrong", "eintr"]);
            }
        }
    }
}

fn stacks(name: &str, threads: usize, ticking: bool) {
    let mut scene = Scene::new(name);
    let pages = 64;
    for _ in 0..rounds(3) {
        let start = |number: usize| ARENA + number * STRIDE;
        let works: Vec<String> = (0..threads)
            .map(|number| {
                scene.exporter.anon_at(start(number), pages * PAGE);
                let ticks = if ticking { "ticking 300 " } else { "" };
                let work = ["recurse", "recurse", "naps"][number % 3];
                format!("on {:#x} {:#x} {ticks}{work}", start(number), pages * PAGE)
            })
            .collect();
        let running = scene.start(&works);
        for number in scene.random.order(threads) {
            scene.touch_range(start(number), pages);
        }
        scene.progress(&running);
        for (work, report) in works.iter().zip(scene.stop(running)) {
            expect_none(work, &report, &["wrong"]);
        }
    }
    scene.exporter.exit();
}

#[test]
fn the_stack_of_a_running_thread() {
    stacks("the_stack_of_a_running_thread", 1, false);
}

#[test]
fn stacks_of_16_running_threads() {
    stacks("stacks_of_16_running_threads", 16, false);
}

#[test]
fn stacks_of_threads_that_take_signals() {
    stacks("stacks_of_threads_that_take_signals", 6, true);
}

fn sleepers(name: &str, ticking: &str, calls: &[&str]) {
    let mut scene = Scene::new(name);
    scene.areas();
    let mut running = Vec::new();
    for call in calls {
        running.push(scene.exporter.start(&format!("{ticking}block {call}")));
    }
    let pid = scene.exporter.pid();
    for thread in &running {
        let tid = scene.exporter.tid(*thread);
        scene.exporter.wait_until("a thread sleeps", || {
            rmap_tests::task_blocked_in(pid, tid).is_some_and(|number| number != libc::SYS_write)
        });
    }
    scene.touch();
    let reports = scene.stop(running);
    let mut bad = Vec::new();
    for (call, report) in calls.iter().zip(reports) {
        if CALLS.iter().any(|count| report[*count] != 0) {
            bad.push(format!("{call}: {report:?}"));
        }
    }
    assert!(bad.is_empty(), "woken too early:\n{}", bad.join("\n"));
}

#[test]
fn sleeping_threads_sleep_on() {
    // All that the kernel starts again by itself after a stop.
    let calls = [
        "poll",
        "select",
        "nanosleep",
        "clock_nanosleep",
        "futex",
        "futex_timed",
        "read",
        "recv",
        "accept",
        "pause",
    ];
    sleepers("sleeping_threads_sleep_on", "", &calls);
}

#[test]
fn threads_sleep_on_in_calls_that_the_kernel_does_not_start_again() {
    sleepers(
        "threads_sleep_on_in_calls_that_the_kernel_does_not_start_again",
        "",
        &["epoll_wait", "sigtimedwait", "semop", "recv_timed"],
    );
}

#[test]
fn sleeping_threads_that_take_signals_sleep_on() {
    sleepers(
        "sleeping_threads_that_take_signals_sleep_on",
        "ticking 500 ",
        &["read", "recv", "accept", "futex"],
    );
}

#[test]
fn waits_on_words_in_the_range_end() {
    let mut scene = Scene::new("waits_on_words_in_the_range_end");
    for _ in 0..rounds(3) {
        scene.areas();
        let works: Vec<String> = (0..AREAS)
            .map(|area| {
                let kind = ["futexat", "semat", "condat"][area % 3];
                format!("block {kind} {:#x}", ARENA + area * STRIDE + PAGE)
            })
            .collect();
        let running: Vec<usize> = works.iter().map(|work| scene.exporter.start(work)).collect();
        for thread in &running {
            scene.exporter.wait_blocked(*thread, libc::SYS_futex);
        }
        scene.touch();
        for (work, report) in works.iter().zip(scene.stop(running)) {
            assert!(report.iter().all(|(key, count)| key == "calls" || *count == 0), "{work}: {report:?}");
        }
    }
}

#[test]
fn joins_of_threads_whose_stack_became_shared_end() {
    let mut scene = Scene::new("joins_of_threads_whose_stack_became_shared_end");
    let pages = 32;
    for _ in 0..rounds(3) {
        let running: Vec<usize> = (0..8)
            .map(|number| {
                scene.exporter.anon_at(ARENA + number * STRIDE, pages * PAGE);
                scene.exporter.start(&format!(
                    "block joinon {:#x} {:#x}",
                    ARENA + number * STRIDE,
                    pages * PAGE
                ))
            })
            .collect();
        for thread in &running {
            scene.exporter.wait_blocked(*thread, libc::SYS_futex);
        }
        for number in 0..8 {
            scene.touch_range(ARENA + number * STRIDE, pages);
        }
        for report in scene.stop(running) {
            assert_eq!(report["read"], 1, "{report:?}");
        }
    }
}

/// Touches some of everything that the exporter has, through windows as the runtimes make them.
fn touch_everything(scene: &mut Scene) {
    let window = 2 << 20;
    for mapping in maps(scene.exporter.pid()) {
        if !mapping.writable() || mapping.range.end > 0x7fff_ffff_f000 {
            continue;
        }
        let pages = mapping.range.len() / PAGE;
        for page in [0, scene.random.below(pages), pages - 1] {
            let remote = mapping.range.start + page * PAGE;
            let start = remote / window * window;
            let here = scene.importer.attach(scene.apid, start, window);
            // Gone already, or not: both are well.
            scene.importer.look(here + (remote - start), 1);
            scene.importer.detach(here);
        }
    }
}

#[test]
fn threads_and_children_come_and_go() {
    let mut scene = Scene::new("threads_and_children_come_and_go");
    let works = ["threads", "threads", "children", "heap 1"].map(String::from);
    let running = scene.start(&works);
    for _ in 0..rounds(2) {
        touch_everything(&mut scene);
        scene.progress(&running);
    }
    for (work, report) in works.iter().zip(scene.stop(running)) {
        expect_none(work, &report, &["wrong"]);
    }
    scene.exporter.exit();
}

#[test]
fn forks_while_memory_becomes_shared() {
    let mut scene = Scene::new("forks_while_memory_becomes_shared");
    for _ in 0..rounds(2) {
        scene.areas();
        let works: Vec<String> = (0..3)
            .map(|area| format!("forks {:#x} {PAGES}", ARENA + area * STRIDE))
            .chain((0..2).map(|slot| format!("inc {:#x} 4 {STRIDE} {slot}", ARENA + 8 * STRIDE)))
            .collect();
        let running = scene.start(&works);
        scene.touch();
        scene.progress(&running);
        scene.touch();
        scene.progress(&running);
        for (work, report) in works.iter().zip(scene.stop(running)) {
            expect_none(work, &report, &[if work.starts_with("forks") { "wrong" } else { "lost" }]);
        }
    }
    scene.exporter.exit();
}

#[test]
fn a_busy_heap() {
    let mut scene = Scene::new("a_busy_heap");
    let works: Vec<String> = (0..4).map(|number| format!("heap {number}")).collect();
    let running = scene.start(&works);
    for _ in 0..rounds(2) {
        touch_everything(&mut scene);
        scene.progress(&running);
    }
    for (work, report) in works.iter().zip(scene.stop(running)) {
        expect_none(work, &report, &["wrong"]);
    }
    scene.exporter.exit();
}

#[test]
fn everything_at_once() {
    let mut scene = Scene::new("everything_at_once");
    scene.areas();
    let stack = |number: usize| ARENA + (AREAS + number) * STRIDE;
    for number in 0..2 {
        scene.exporter.anon_at(stack(number), 64 * PAGE);
    }
    let mut works: Vec<String> =
        (0..2).map(|slot| format!("inc {ARENA:#x} {AREAS} {STRIDE} {slot}")).collect();
    works
        .extend((0..2).map(|number| format!("on {:#x} {:#x} ticking 500 recurse", stack(number), 64 * PAGE)));
    works.push(format!("read {:#x} {}", ARENA + PAGE, 4 * PAGE));
    works.push(format!("write {:#x} {}", ARENA + STRIDE + PAGE, 4 * PAGE));
    works.push(format!("calls {:#x}", ARENA + 2 * STRIDE + PAGE));
    works.extend(["heap 7", "threads", "children", "naps"].map(String::from));
    let running = scene.start(&works);
    scene.touch();
    for number in 0..2 {
        scene.touch_range(stack(number), 64);
    }
    for _ in 0..rounds(1) {
        touch_everything(&mut scene);
        scene.progress(&running);
    }
    for (work, report) in works.iter().zip(scene.stop(running)) {
        for count in ["lost", "wrong", "eintr", "efault", "other"] {
            assert_eq!(report.get(count).copied().unwrap_or(0), 0, "{count} of `{work}`: {report:?}");
        }
    }
    scene.exporter.exit();
}
