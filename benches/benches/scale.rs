//! Many extents, many peers: what an attach takes, and what each process holds for them.

use rmap_bench::{
    Run, Samples, Table,
    live::APART,
    measure::{once, per_call, time},
    memory::touch,
};
use rmap_tests::{Actor, PAGE, PERMIT_MODE, RDWR, Reply, maps};
use std::{fs, ops::Sub};

fn main() {
    let Some(run) = Run::start("scale") else { return };
    attach_times(&run);
    adoption_times(&run);
    per_attachment(&run);
    per_peer(&run);
    all_to_all(&run);
}

/// What a process holds.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// Memory of its own and its share of what it shares, in KiB.
    pss: f64,
    /// Memory of its own alone, in KiB.
    private: f64,
    /// Addresses, in KiB.
    size: f64,
    mappings: f64,
    descriptors: f64,
}

impl Held {
    fn of(actor: &Actor) -> Self {
        let pid = actor.pid();
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).expect("a file of /proc");
        let (rollup, status) = (read("smaps_rollup"), read("status"));
        let kib = |text: &str, key: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
        };
        let descriptors = rmap_tests::library_descriptors(pid).len();
        Self {
            pss: kib(&rollup, "Pss"),
            private: kib(&rollup, "Private_Dirty") + kib(&rollup, "Private_Clean"),
            size: kib(&status, "VmSize"),
            mappings: maps(pid).len() as f64,
            descriptors: descriptors as f64,
        }
    }

    /// Cells for one of `count`.
    fn each(self, count: usize) -> [String; 5] {
        let of = |value: f64| value / count as f64;
        [
            format!("{:.2} KiB", of(self.pss)),
            format!("{:.2} KiB", of(self.private)),
            format!("{:.1} KiB", of(self.size)),
            format!("{:.2}", of(self.mappings)),
            format!("{:.2}", of(self.descriptors)),
        ]
    }
}

const HELD: [&str; 5] = ["Pss", "private", "addresses", "mappings", "descriptors"];

impl Sub for Held {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            pss: self.pss - other.pss,
            private: self.private - other.private,
            size: self.size - other.size,
            mappings: self.mappings - other.mappings,
            descriptors: self.descriptors - other.descriptors,
        }
    }
}

fn reserve(actor: &mut Actor, len: usize) -> usize {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    actor.mmap(0, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
}

/// The time of an attach of a piece never attached before, while more and more stay attached.
fn attach_times(run: &Run) {
    const MOST: usize = 100_000;
    /// As many are timed together: one may be shorter than the clock can tell.
    const TOGETHER: usize = 20;
    /// As many times, at the end of each step.
    const TIMES: usize = 20;
    let mut table = Table::new(
        "Attach of a new piece of one page, with so many attachments of others, and their detach",
        &["attachments", "attach", "detach"],
    );
    let mut exporter = run.stage.actor();
    let heap = reserve(&mut exporter, MOST * APART);
    let apid = run.library.get(exporter.make_all()).expect("xpmem_get");
    let mut attached: Vec<usize> = Vec::with_capacity(MOST);
    for count in [1000, 10_000, 50_000, MOST] {
        let [mut attach, mut detach] = [const { Samples::new() }; 2];
        let mut failed = None;
        while attached.len() < count && failed.is_none() {
            let took =
                per_call(TOGETHER, || match run.library.attach(apid, heap + attached.len() * APART, PAGE) {
                    Ok(here) => attached.push(here),
                    Err(why) => failed = Some(why),
                });
            if attached.len() + TOGETHER * TIMES > count {
                attach.push(took);
            }
        }
        let last = attached.len().saturating_sub(TOGETHER * TIMES);
        for group in attached.split_off(last).chunks(TOGETHER) {
            let mut next = group.iter();
            detach.push(per_call(group.len(), || {
                run.library.detach(*next.next().expect("one for each call")).expect("xpmem_detach");
            }));
        }
        if let Some(why) = failed {
            table.row([count.to_string(), format!("not possible: {why} at {}", last + TOGETHER * TIMES)]);
            break;
        }
        table.row([count.to_string(), attach.as_time(), detach.as_time()]);
    }
    println!("{table}");
    run.library.release(apid).expect("xpmem_release");
}

/// The time of a first touch, while pieces adopted by themselves become more.
fn adoption_times(run: &Run) {
    let most = run.scaled(1000, 10_000);
    let mut table = Table::new(
        "Attach and first touch of a piece of one page that nobody has seen, the pieces 64 KiB apart",
        &["adopted before", "attach + touch", "the exporter's mappings"],
    );
    let mut exporter = run.stage.actor();
    let heap = reserve(&mut exporter, most * APART);
    for piece in 0..most {
        exporter.store(heap + piece * APART, 1).expect("memory of the exporter's");
    }
    let apid = run.library.get(exporter.make_all()).expect("xpmem_get");
    let mut samples = Samples::new();
    for piece in 0..most {
        let took = once(|| {
            let here = run.library.attach(apid, heap + piece * APART, PAGE).expect("xpmem_attach");
            touch(here, PAGE);
            run.library.detach(here).expect("xpmem_detach");
        });
        samples.push(took);
        let done = piece + 1;
        if done.is_multiple_of(most / 4) || done == 100 {
            let mappings = maps(exporter.pid()).len();
            table.row([done.to_string(), std::mem::take(&mut samples).as_time(), mappings.to_string()]);
        } else if samples.count() == 100 {
            samples = Samples::new();
        }
    }
    table.note("Each row is of the pieces just before that number.");
    println!("{table}");
    run.library.release(apid).expect("xpmem_release");
}

fn columns(first: &'static str) -> Vec<&'static str> {
    [first, "of how many"].into_iter().chain(HELD).collect()
}

/// What an importer holds for an attachment, and an exporter for a stretch that is adopted by itself.
fn per_attachment(run: &Run) {
    let mut table =
        Table::new("What a process holds for each attachment (one page, 64 KiB apart)", &columns("role"));
    let (mut exporter, mut importer) = (run.stage.actor(), run.stage.actor());
    let most = run.scaled(10_000, 30_000);
    let heap = reserve(&mut exporter, most * APART);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    importer.attach(apid, heap, PAGE);
    let before = Held::of(&importer);
    let mut done = 1;
    for count in [1000, most] {
        while done < count {
            importer.attach(apid, heap + done * APART, PAGE);
            done += 1;
        }
        let more = Held::of(&importer) - before;
        table.row(["importer, not touched".into(), count.to_string()].into_iter().chain(more.each(count)));
    }
    drop(importer);
    let touched = run.scaled(1000, 10_000);
    for piece in 0..touched {
        exporter.store(heap + piece * APART, 1).expect("memory of the exporter's");
    }
    let mut importer = run.stage.actor();
    let apid = importer.get(segid);
    let mut attached = Vec::new();
    let before = [Held::of(&exporter), Held::of(&importer)];
    for piece in 0..touched {
        attached.push(importer.attach(apid, heap + piece * APART, PAGE));
        importer.load(attached[piece]).expect("an attached page");
    }
    let after = [Held::of(&exporter), Held::of(&importer)];
    for (role, more) in
        [("exporter, adopted", after[0] - before[0]), ("importer, touched", after[1] - before[1])]
    {
        table.row([role.into(), touched.to_string()].into_iter().chain(more.each(touched)));
    }
    table.note("Private memory that was adopted becomes shared with its importers, so Pss and private of an exporter fall.");
    println!("{table}");
}

/// What a process holds for each peer, in both roles, and how long a new peer takes.
fn per_peer(run: &Run) {
    let mut table = Table::new("What a process holds for each peer (one attached page)", &columns("role"));
    let mut times = Table::new("Meeting a new peer", &["peer", "xpmem_get", "attach + first touch"]);
    let peers = 64;
    let mut exporters = run.stage.actors(peers);
    let offers: Vec<(i64, usize)> = exporters
        .iter_mut()
        .map(|exporter| {
            let page = exporter.anon(PAGE);
            exporter.fill(page, 1, 1);
            (exporter.make_all(), page)
        })
        .collect();
    let mut importer = run.stage.actor();
    let attach = |importer: &mut Actor, (segid, page)| {
        let here = importer.get_attach(segid, page, PAGE);
        assert_eq!(importer.load(here), Ok(1));
    };
    attach(&mut importer, offers[0]);
    let before = Held::of(&importer);
    for offer in &offers[1..] {
        attach(&mut importer, *offer);
    }
    let more = Held::of(&importer) - before;
    table.row(
        ["importer, for each exporter".into(), (peers - 1).to_string()]
            .into_iter()
            .chain(more.each(peers - 1)),
    );
    // In this process, where nothing is between the call and the clock.
    let (mut gets, mut touches) = (Samples::new(), Samples::new());
    for (number, (segid, page)) in offers.iter().enumerate() {
        let mut apid = 0;
        gets.push(once(|| apid = run.library.get(*segid).expect("xpmem_get")));
        touches.push(once(|| {
            touch(run.library.attach(apid, *page, PAGE).expect("xpmem_attach"), PAGE);
        }));
        if (number + 1).is_multiple_of(16) {
            let (get, touch) = (std::mem::take(&mut gets), std::mem::take(&mut touches));
            times.row([format!("{} to {}", number - 14, number + 1), get.as_time(), touch.as_time()]);
        }
    }
    drop(exporters);
    let mut exporter = run.stage.actor();
    let page = exporter.anon(PAGE);
    exporter.fill(page, 1, 1);
    let segid = exporter.make_all();
    attach(&mut importer, (segid, page));
    let before = Held::of(&exporter);
    let mut importers = run.stage.actors(peers);
    for importer in &mut importers {
        attach(importer, (segid, page));
    }
    let more = Held::of(&exporter) - before;
    table.row(["exporter, for each importer".into(), peers.to_string()].into_iter().chain(more.each(peers)));
    println!("{table}{times}");
}

/// Everybody attaches a page of everybody else.
fn all_to_all(run: &Run) {
    const PROCESSES: usize = 32;
    let mut table = Table::new(
        format!("All to all among {PROCESSES} processes: what one of them holds when all have attached"),
        &[&["took"][..], &HELD].concat(),
    );
    let mut actors = run.stage.actors(PROCESSES);
    let idle: Vec<Held> = actors.iter().map(Held::of).collect();
    let offers: Vec<(i64, usize)> = actors
        .iter_mut()
        .map(|actor| {
            let page = actor.anon(PAGE);
            actor.fill(page, 1, 1);
            (actor.make_all(), page)
        })
        .collect();
    let mut numbers = |command: &dyn Fn(usize) -> String| -> Vec<i64> {
        for (number, actor) in actors.iter_mut().enumerate() {
            actor.tell(&command(number));
        }
        actors
            .iter_mut()
            .map(|actor| match actor.answer() {
                Reply::Ok(words) => {
                    words.split(' ').next().and_then(|word| word.parse().ok()).expect("a number")
                }
                other => panic!("{other:?}"),
            })
            .collect()
    };
    let took = once(|| {
        for round in 1..PROCESSES {
            let other = |number: usize| offers[(number + round) % PROCESSES];
            let apids = numbers(&|at| format!("xpmem get {} {RDWR} {PERMIT_MODE} 0", other(at).0));
            let here = numbers(&|at| format!("xpmem attach {} {:#x} {PAGE} 0", apids[at], other(at).1));
            let loaded = numbers(&|at| format!("load {:#x}", here[at]));
            assert_eq!(loaded, [1; PROCESSES]);
        }
    });
    let held: Vec<Held> = actors.iter().zip(idle).map(|(actor, idle)| Held::of(actor) - idle).collect();
    let median = |of: fn(&Held) -> f64| {
        let mut samples = Samples::new();
        held.iter().for_each(|held| samples.push(of(held)));
        samples.median()
    };
    let held = Held {
        pss: median(|held| held.pss),
        private: median(|held| held.private),
        size: median(|held| held.size),
        mappings: median(|held| held.mappings),
        descriptors: median(|held| held.descriptors),
    };
    table.row([time(took)].into_iter().chain(held.each(1)));
    table.note("More than before its first call of the library; the median of all processes.");
    println!("{table}");
}
