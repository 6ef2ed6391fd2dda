//! Each call of the library, and the pair of attach and detach against the number of attachments and of threads.

use criterion::Criterion;
use rmap_bench::{
    Run, Samples, Table,
    device::Device,
    interleaved,
    live::{self, Live},
    measure::{Act, Way, calls_in},
    memory::{self, Direction, Memory},
    per_call,
};
use rmap_tests::{Actor, PAGE, Random};
use std::{
    sync::Barrier,
    time::{Duration, Instant},
};

/// What is attached.
const PIECE: usize = 64 << 10;
/// Pieces that were never attached before lie this far apart, where the exporter has nothing.
const FAR: usize = 1 << 30;
const NOWHERE: usize = 0x1000_0000_0000;
/// One repetition of a loop takes about this long.
const SPAN: Duration = Duration::from_millis(1);

fn main() {
    let Some(run) = Run::start("calls") else { return };
    let mut exporter = run.stage.actor();
    let heap = exporter.anon(16 << 20);
    exporter.fill(heap, (16 << 20) / PAGE, 1);
    let segid = exporter.make_all();
    let apid = run.library.get(segid).expect("xpmem_get");
    let mut subject = Subject { run, exporter, heap, segid, apid };
    subject.each_call();
    subject.against_others();
    subject.of_many();
    subject.against_attachments();
    subject.against_threads();
}

struct Subject {
    run: Run,
    exporter: Actor,
    heap: usize,
    segid: i64,
    apid: i64,
}

impl Subject {
    /// Criterion's figures for each call.
    fn each_call(&self) {
        let (library, apid, heap) = (self.run.library, self.apid, self.heap);
        let mut criterion = criterion(&self.run);
        criterion.bench_function("xpmem_version", |bencher| bencher.iter(|| library.version()));
        let local = Memory::private(1 << 20);
        criterion.bench_function("xpmem_make + xpmem_remove", |bencher| {
            bencher.iter(|| {
                let segid = library.make(local.address(), local.len()).expect("xpmem_make");
                library.remove(segid).expect("xpmem_remove");
            });
        });
        criterion.bench_function("xpmem_get + xpmem_release", |bencher| {
            bencher.iter(|| {
                let apid = library.get(self.segid).expect("xpmem_get");
                library.release(apid).expect("xpmem_release");
            });
        });
        let mut next = 0;
        criterion.bench_function("xpmem_attach + xpmem_detach, never attached before", |bencher| {
            bencher.iter(|| {
                library.pair(apid, NOWHERE + next * FAR, PIECE);
                next = (next + 1) % 100_000;
            });
        });
        library.pair(apid, heap, PIECE);
        criterion.bench_function("xpmem_attach + xpmem_detach, attached before", |bencher| {
            bencher.iter(|| library.pair(apid, heap, PIECE));
        });
        criterion.bench_function("xpmem_attach + load + xpmem_detach, attached before", |bencher| {
            bencher.iter(|| {
                let address = library.attach(apid, heap, PIECE).expect("xpmem_attach");
                memory::touch(address, PAGE);
                library.detach(address).expect("xpmem_detach");
            });
        });
        criterion.final_summary();
    }

    /// What else makes 4 KiB of another process readable.
    fn against_others(&mut self) {
        let library = self.run.library;
        let (apid, heap, pid) = (self.apid, self.heap, self.exporter.pid());
        let (local, other) = (Memory::private(PAGE), Memory::private(PAGE));
        other.fill(1);
        let file = memory::memfd(PAGE);
        let device = Device::open(&mut self.exporter);
        let mut names = vec![
            "attach + detach",
            "attach + copy of 4 KiB + detach",
            "CMA, copy of 4 KiB",
            "mmap + munmap of a memfd",
            "mmap + copy of 4 KiB + munmap of a memfd",
            "memcpy of 4 KiB",
        ];
        let mut acts: Vec<Act<'_>> = vec![
            Box::new(|| library.pair(apid, heap, PAGE)),
            Box::new(|| {
                let address = library.attach(apid, heap, PAGE).expect("xpmem_attach");
                memory::copy(local.address(), address, PAGE);
                library.detach(address).expect("xpmem_detach");
            }),
            Box::new(|| memory::cma(Direction::Read, pid, local.address(), heap, PAGE).expect("CMA")),
            Box::new(|| drop(Memory::of(&file, PAGE))),
            Box::new(|| {
                let mapped = Memory::of(&file, PAGE);
                memory::copy(local.address(), mapped.address(), PAGE);
            }),
            Box::new(|| memory::copy(local.address(), other.address(), PAGE)),
        ];
        if let Some(device) = &device {
            names.push("/dev/xpmem, attach + detach");
            acts.push(Box::new(|| device.detach(device.attach(heap, PAGE))));
        }
        let mut ways: Vec<Way<'_>> = acts
            .into_iter()
            .map(|mut act| {
                let count = calls_in(SPAN, &mut act);
                Box::new(move || per_call(count, &mut act)) as Way<'_>
            })
            .collect();
        let samples = interleaved(self.run.scaled(101, 501), &mut ways);
        drop(ways);
        let mut table =
            Table::new("A page of another process (median and quartiles)", &["", "time", "times CMA"]);
        for (name, sample) in names.iter().zip(&samples) {
            table.row([(*name).to_owned(), sample.as_time(), sample.over(&samples[2]).as_ratio()]);
        }
        if device.is_none() {
            table.note("/dev/xpmem: not on this machine");
        }
        println!("{table}");
    }

    /// The pair for one piece again and again, for pieces of a heap at random, and for pieces of many exporters by turns.
    fn of_many(&self) {
        const PIECES: usize = 10_000;
        const FAR_PIECES: usize = 500;
        let library = self.run.library;
        let mut exporters = self.run.stage.actors(64);
        let mut offers: Vec<(i64, usize)> = Vec::new();
        for exporter in &mut exporters {
            let heap = live::reserve(exporter, PIECES);
            offers.push((library.get(exporter.make_all()).expect("xpmem_get"), heap));
        }
        for (apid, heap) in &offers {
            library.pair(*apid, *heap, PIECE);
        }
        let (apid, heap) = offers[0];
        let mut random = Random::new(1);
        let mut turn = 0;
        let mut acts: Vec<(&str, Act<'_>)> = vec![
            ("one piece of one exporter", Box::new(move || library.pair(apid, heap, PIECE))),
            (
                "10,000 pieces of it, at random",
                Box::new(move || library.pair(apid, heap + random.below(PIECES) * live::APART, PIECE)),
            ),
        ];
        for number in 0..FAR_PIECES {
            library.pair(apid, NOWHERE + number * FAR, PIECE);
        }
        let mut far = Random::new(2);
        acts.push((
            "500 pieces of it, 1 GiB apart, at random",
            Box::new(move || library.pair(apid, NOWHERE + far.below(FAR_PIECES) * FAR, PIECE)),
        ));
        for (name, count) in [("a piece of each of 8 exporters", 8), ("a piece of each of 64 exporters", 64)]
        {
            let offers = &offers[..count];
            let act = move || {
                turn = (turn + 1) % offers.len();
                library.pair(offers[turn].0, offers[turn].1, PIECE);
            };
            acts.push((name, Box::new(act)));
        }
        let mut names = Vec::new();
        let mut ways: Vec<Way<'_>> = Vec::new();
        for (name, mut act) in acts {
            names.push(name);
            let count = calls_in(SPAN, &mut act);
            ways.push(Box::new(move || per_call(count, &mut act)));
        }
        let samples = interleaved(self.run.scaled(101, 501), &mut ways);
        drop(ways);
        let mut table = Table::new(
            "xpmem_attach + xpmem_detach, attached before, of",
            &["", "time", "relative to the first"],
        );
        for (name, sample) in names.iter().zip(&samples) {
            table.row([(*name).to_owned(), sample.as_time(), sample.over(&samples[0]).as_ratio()]);
        }
        println!("{table}");
        for (apid, _) in offers {
            library.release(apid).expect("xpmem_release");
        }
    }

    fn pair_times(&self, offset: usize) -> Samples {
        let library = self.run.library;
        let mut act = || library.pair(self.apid, offset, PIECE);
        let count = calls_in(SPAN, &mut act);
        let rounds = self.run.scaled(51, 301);
        interleaved(rounds, &mut [Box::new(move || per_call(count, &mut act))]).remove(0)
    }

    /// The pair with more and more attachments that stay.
    fn against_attachments(&mut self) {
        let mut table = Table::new(
            "xpmem_attach + xpmem_detach, attached before, with so many other attachments of this process",
            &["attachments", "time"],
        );
        let counts = [1, 10, 100, 1000, 10_000, 100_000];
        let heap = live::reserve(&mut self.exporter, 100_000);
        let mut live = Live::new(self.run.library, self.apid, heap);
        for count in counts {
            if let Err(why) = live.grow_to(count) {
                table.row([count.to_string(), format!("not possible: {why} at {}", live.count() + 1)]);
                break;
            }
            table.row([count.to_string(), self.pair_times(self.heap).as_time()]);
        }
        println!("{table}");
    }

    /// The pair in several threads at once, each with a piece of its own.
    fn against_threads(&self) {
        let columns = ["threads", "core time of a pair", "pairs of all threads in a second"];
        let mut table =
            Table::new("xpmem_attach + xpmem_detach, attached before, in so many threads", &columns);
        let library = self.run.library;
        let mut alone = || library.pair(self.apid, self.heap, PIECE);
        let count = calls_in(Duration::from_millis(20), &mut alone).max(16) / 2;
        for threads in [1, 2, 4, 8, 16] {
            let (mut times, mut rates) = (Samples::default(), Samples::default());
            for _ in 0..self.run.scaled(5, 21) {
                let (spent, rate) = self.in_threads(threads, count);
                times.push(spent);
                rates.push(rate);
            }
            table.row([threads.to_string(), times.as_time(), format!("{:.0}", rates.median())]);
        }
        table.note("The core time is that of the calling threads; work of service threads is not in it.");
        println!("{table}");
    }

    /// Core time of one pair, and pairs in a second.
    fn in_threads(&self, threads: usize, count: usize) -> (f64, f64) {
        let (library, apid) = (self.run.library, self.apid);
        let start = Barrier::new(threads + 1);
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..threads)
                .map(|number| {
                    let (start, offset) = (&start, self.heap + number * PIECE);
                    scope.spawn(move || {
                        library.pair(apid, offset, PIECE);
                        start.wait();
                        let before = memory::thread_time();
                        for _ in 0..count {
                            library.pair(apid, offset, PIECE);
                        }
                        memory::thread_time() - before
                    })
                })
                .collect();
            start.wait();
            let begin = Instant::now();
            let spent: f64 = handles.into_iter().map(|handle| handle.join().expect("a thread")).sum();
            let all = (threads * count) as f64;
            (spent / all, all / begin.elapsed().as_secs_f64())
        })
    }
}

fn criterion(run: &Run) -> Criterion {
    let span = Duration::from_millis(run.scaled(600, 5000) as u64);
    Criterion::default()
        .sample_size(run.scaled(20, 100))
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(span)
        .without_plots()
        .configure_from_args()
}
