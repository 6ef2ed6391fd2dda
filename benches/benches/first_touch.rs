//! What the first touch of memory costs: the importer's faults, the adoption's rate, the stall of the exporter's threads.

use rmap_bench::{
    Memory, Run, Samples, Table,
    measure::{once, size, time},
    memory::{self, Direction, cma, dirty, faults, touch},
};
use rmap_tests::{Actor, PAGE};
use std::{
    fs::File,
    os::{fd::AsFd as _, unix::fs::FileExt as _},
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// Both kinds of private memory, and what the tables call them.
const KINDS: [(bool, &str); 2] = [(false, "4 KiB"), (true, "huge asked for")];
/// What `pwrite` copies at once, for comparison: the smallest chunk of an adoption.
const CHUNK: usize = 2 << 20;
/// Shorter gaps are not looked at, in nanoseconds.
const GAP: f64 = 20e3;

fn main() {
    let Some(run) = Run::start("first_touch") else { return };
    importer(&run);
    adoption(&run);
    stall(&run);
}

/// Memory of an actor, written by it.
fn written(actor: &mut Actor, len: usize, huge: bool) -> usize {
    let address = actor.anon(len);
    actor.madvise(address, len, memory::advice(huge));
    actor.fill_same(address, len / PAGE, 1);
    address
}

/// Loads a byte of every page from another process.
fn touch_from(actor: &mut Actor, address: usize, len: usize) {
    actor.ok(&format!("touch {address:#x} {} {PAGE}", len / PAGE));
}

/// Time and faults of this process.
#[derive(Clone, Debug, Default)]
struct Cost {
    time: Samples,
    faults: Samples,
}

impl Cost {
    fn of(&mut self, act: impl FnOnce()) {
        let before = faults();
        self.time.push(once(act));
        self.faults.push((faults() - before) as f64);
    }

    fn cells(&self, len: usize) -> [String; 3] {
        [self.time.as_time(), self.time.as_rate(len), format!("{:.0}", self.faults.median())]
    }
}

/// One touch of each page of a buffer that this process has not seen.
fn importer(run: &Run) {
    let columns = ["size", "exporter's pages", "touched for the first time", "time", "rate", "faults"];
    let mut table = Table::new("First touch, one access to each page, in the importer", &columns);
    let kinds: &[(usize, usize)] = if run.long {
        &[(64 << 20, 0), (64 << 20, 1), (256 << 20, 0), (256 << 20, 1), (1 << 30, 0), (1 << 30, 1)]
    } else {
        &[(64 << 20, 0), (64 << 20, 1), (256 << 20, 0)]
    };
    for &(len, kind) in kinds {
        if memory::available() < 4 * len {
            table.row([size(len), "left out: not enough memory".into()]);
            continue;
        }
        let (huge, pages) = KINDS[kind];
        let mut costs = Costs::default();
        for _ in 0..run.scaled(3, 11) {
            costs.attached(run, len, huge);
            costs.others(len);
        }
        for (name, cost) in costs.named() {
            table.row([size(len), pages.into(), name.into()].into_iter().chain(cost.cells(len)));
        }
    }
    println!("{table}");
}

#[derive(Debug, Default)]
struct Costs {
    copied: Cost,
    adopting: Cost,
    again: Cost,
    loads: Cost,
    stores: Cost,
    plain_loads: Cost,
    plain_stores: Cost,
    local: Cost,
}

impl Costs {
    fn named(&self) -> [(&'static str, &Cost); 8] {
        [
            ("attached, loads, nobody before: adoption", &self.adopting),
            ("attached, loads, second time", &self.again),
            ("attached, loads, another importer before", &self.loads),
            ("attached, stores, another importer before", &self.stores),
            ("CMA into a local buffer, nobody before", &self.copied),
            ("memfd mapping, loads", &self.plain_loads),
            ("memfd mapping, stores", &self.plain_stores),
            ("new local memory, stores", &self.local),
        ]
    }

    fn attached(&mut self, run: &Run, len: usize, huge: bool) {
        let (mut exporter, mut other) = (run.stage.actor(), run.stage.actor());
        let segid = exporter.make_all();
        let apid = run.library.get(segid).expect("xpmem_get");
        let attach = |there| run.library.attach(apid, there, len).expect("xpmem_attach");
        let detach = |here| run.library.detach(here).expect("xpmem_detach");
        let there = written(&mut exporter, len, huge);
        let buffer = Memory::private_in(len, huge);
        self.local.of(|| dirty(buffer.address(), len));
        self.copied.of(|| cma(Direction::Read, exporter.pid(), buffer.address(), there, len).expect("CMA"));
        drop(buffer);
        let here = attach(there);
        self.adopting.of(|| _ = touch(here, len));
        self.again.of(|| _ = touch(here, len));
        detach(here);
        exporter.munmap(there, len);
        for stores in [false, true] {
            let there = written(&mut exporter, len, huge);
            let seen = other.get_attach(segid, there, len);
            touch_from(&mut other, seen, len);
            let here = attach(there);
            if stores {
                self.stores.of(|| dirty(here, len));
            } else {
                self.loads.of(|| _ = touch(here, len));
            }
            detach(here);
            exporter.munmap(there, len);
        }
        run.library.release(apid).expect("xpmem_release");
    }

    /// The same with a memory file that this process has mapped before, and with memory of its own.
    fn others(&mut self, len: usize) {
        let file = memory::memfd(len);
        Memory::of(&file, len).fill(1);
        let mapped = Memory::of(&file, len);
        self.plain_loads.of(|| _ = touch(mapped.address(), len));
        let mapped = Memory::of(&file, len);
        self.plain_stores.of(|| dirty(mapped.address(), len));
    }
}

/// This process as an exporter, and importers that touch its memory.
struct Exporting {
    /// The one that touches first, and another one.
    importers: [(Actor, i64); 2],
}

impl Exporting {
    fn new(run: &Run) -> Self {
        let segid = run.library.make_all().expect("xpmem_make");
        let importer = || {
            let mut actor = run.stage.actor();
            let apid = actor.get(segid);
            (actor, apid)
        };
        Self { importers: [importer(), importer()] }
    }

    /// Has one of them touch each page of a buffer, from its start to its end.
    fn touch(&mut self, number: usize, memory: &Memory) {
        let (importer, apid) = &mut self.importers[number];
        let here = importer.attach(*apid, memory.address(), memory.len());
        touch_from(importer, here, memory.len());
        importer.detach(here);
    }
}

/// The rate of adoption, and that of copies into a memory file.
fn adoption(run: &Run) {
    let columns = [
        "size",
        "exporter's pages",
        "pwrite to a memfd",
        "first importer",
        "second importer",
        "rate of the first / pwrite",
        "rate of the difference / pwrite",
    ];
    let mut table = Table::new("Adoption: an importer touches new memory from start to end", &columns);
    let mut exporting = Exporting::new(run);
    let kinds = [
        (256 << 20, 0, run.scaled(5, 31)),
        (256 << 20, 1, run.scaled(5, 31)),
        (1 << 30, 0, run.scaled(3, 7)),
    ];
    for (len, kind, rounds) in kinds {
        if memory::available() < 3 * len {
            table.row([size(len), "left out: not enough memory".into()]);
            continue;
        }
        let (huge, pages) = KINDS[kind];
        let [mut plain, mut first, mut second, mut alone] = [const { Samples::new() }; 4];
        for _ in 0..rounds {
            let memory = Memory::private_in(len, huge);
            memory.fill(1);
            let file = memory::memfd(len);
            plain.push(once(|| memory::write_to(file.as_fd(), memory.address(), len, CHUNK)));
            drop(file);
            let adopting = once(|| exporting.touch(0, &memory));
            let adopted = once(|| exporting.touch(1, &memory));
            first.push(adopting);
            second.push(adopted);
            alone.push((adopting - adopted).max(1.0));
        }
        let ratios = [plain.over(&first).as_ratio(), plain.over(&alone).as_ratio()];
        let rates = [plain, first, second].map(|samples| samples.as_rate(len));
        table.row([size(len), pages.into()].into_iter().chain(rates).chain(ratios));
    }
    table.note("The second importer has the same faults and commands, and nothing to adopt: the difference is the adoption.");
    println!("{table}");
}

/// The gaps in what a thread sees of the clock, and how much of them it was not waiting for a core.
#[derive(Debug, Default)]
struct Gaps {
    longest: f64,
    longest_still: f64,
    still: f64,
    count: usize,
}

/// How long this thread has waited for a core so far, in nanoseconds.
fn waited(schedstat: &File) -> f64 {
    let mut text = [0; 96];
    let len = schedstat.read_at(&mut text, 0).expect("a file of /proc");
    let text = String::from_utf8_lossy(&text[..len]);
    text.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// Runs `act` while a thread of this process does nothing but read the clock.
fn watched(act: impl FnOnce()) -> Gaps {
    let (stop, ready) = (AtomicBool::new(false), Barrier::new(2));
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut gaps = Gaps::default();
            let schedstat = File::open("/proc/thread-self/schedstat").expect("a file of /proc");
            ready.wait();
            let (mut before, mut last) = (waited(&schedstat), Instant::now());
            while !stop.load(Ordering::Relaxed) {
                let now = Instant::now();
                let gap = (now - last).as_nanos() as f64;
                last = now;
                if gap > GAP {
                    let waiting = waited(&schedstat);
                    let still = (gap - (waiting - before)).max(0.0);
                    before = waiting;
                    gaps.longest = gaps.longest.max(gap);
                    gaps.longest_still = gaps.longest_still.max(still);
                    if still > GAP {
                        gaps.still += still;
                        gaps.count += 1;
                    }
                }
            }
            gaps
        });
        ready.wait();
        act();
        stop.store(true, Ordering::Relaxed);
        watcher.join().expect("the watcher ends")
    })
}

/// How long a thread of the exporter stands still while memory is adopted.
fn stall(run: &Run) {
    let columns = [
        "size",
        "the importer touches",
        "took",
        "longest gap",
        "longest gap, waiting for a core left out",
        "such gaps",
        "together",
    ];
    let mut table = Table::new("Stall: a thread of the exporter reads the clock all the time", &columns);
    let mut exporting = Exporting::new(run);
    for len in [256 << 20, 1 << 30] {
        if memory::available() < 3 * len {
            table.row([size(len), "left out: not enough memory".into()]);
            continue;
        }
        let memory = Memory::private_in(len, false);
        memory.fill(1);
        for (number, what) in [(0, "new memory: adoption"), (1, "the same, second importer: control")] {
            let mut took = 0.0;
            let gaps = watched(|| took = once(|| exporting.touch(number, &memory)));
            let Gaps { longest, longest_still, still, count } = gaps;
            let times = [time(took), time(longest), time(longest_still), count.to_string(), time(still)];
            table.row([size(len), what.into()].into_iter().chain(times));
        }
    }
    table.note("Gaps are those longer than 20 us. The control has the same threads on the same cores, and no adoption.");
    println!("{table}");
}
