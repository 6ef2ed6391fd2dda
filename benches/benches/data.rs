//! The data path: copies from and to memory of another process, against copies between local buffers.

use criterion::{BenchmarkId, Criterion, Throughput};
use rmap_bench::{
    Library, Memory, Run, Table,
    device::{self, Device},
    interleaved,
    measure::{Act, Way, calls_in, per_call, size},
    memory::{self, Direction, cma, copy},
};
use rmap_tests::{Actor, PAGE};
use std::{fs::File, hint::black_box, time::Duration};

/// Up to here a copy is done once before it is timed: what it finds in the caches is its own.
const CACHED: usize = 16 << 20;

fn main() {
    let Some(run) = Run::start("data") else { return };
    criterion(&run);
    let mut sizes = vec![16 << 10, 256 << 10, 1 << 20, 8 << 20, 64 << 20, 1 << 30];
    let mut huge_sizes = vec![8 << 20, 64 << 20];
    if run.long {
        sizes = vec![16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 8 << 20, 64 << 20, 256 << 20, 1 << 30];
        huge_sizes.extend([256 << 20, 1 << 30]);
    }
    let mut loads = Table::new(
        "Loads of 8 bytes at random places: time of one, relative to a local buffer",
        &["size", "pages", "local", "other local", "attached", "memfd mapping"],
    );
    for (huge, sizes) in [(None, sizes), (Some(true), huge_sizes)] {
        let pages = if huge.is_some() { "with MADV_HUGEPAGE" } else { "as the machine gives them" };
        let columns = ["size", "direction", "memcpy, local", "other local", "attached", "memfd mapping"];
        let title = format!("Steady state, pages {pages}: time relative to memcpy between local buffers");
        let mut steady = Table::new(title, &columns);
        let columns = ["size", "direction", "memcpy, local", "attach+copy+detach", "CMA", "/dev/xpmem"];
        let title = format!("Address to copy each time anew, pages {pages}: time relative to the same");
        let mut against = Table::new(title, &columns);
        for len in sizes {
            // Five buffers, and room for a copy of one.
            if memory::available() < 7 * len {
                steady.row([size(len), "left out: not enough memory".into()]);
                continue;
            }
            let pair = Pair::new(&run, len, huge);
            for direction in [Direction::Read, Direction::Write] {
                steady.row(pair.row(&run, direction, pair.kept(direction)));
                if run.long || len <= 64 << 20 {
                    against.row(pair.row(&run, direction, pair.anew(direction)));
                }
            }
            if (1 << 20..=256 << 20).contains(&len) {
                loads.row(pair.loads(&run, pages));
            }
        }
        steady.note("\"other local\" is the control: the same with another local buffer. It differs from 1 by what placement");
        steady.note("in caches and noise amount to. Ratios are medians and quartiles of ratios of neighbours in time.");
        if !device::is_there() {
            against.note("/dev/xpmem: not on this machine");
        }
        println!("{steady}{against}");
    }
    println!("{loads}");
}

/// A buffer of an exporter that this process has attached, and what it is compared with.
struct Pair {
    library: Library,
    exporter: Actor,
    there: usize,
    apid: i64,
    attached: usize,
    local: Memory,
    from: Memory,
    other: Memory,
    plain: Memory,
    device: Option<Device>,
    _file: File,
}

impl Pair {
    fn new(run: &Run, len: usize, huge: Option<bool>) -> Self {
        let private = |len| huge.map_or_else(|| Memory::private(len), |huge| Memory::private_in(len, huge));
        let mut exporter = run.stage.actor();
        let there = exporter.anon(len);
        if let Some(huge) = huge {
            exporter.madvise(there, len, memory::advice(huge));
        }
        exporter.fill(there, len / PAGE, 1);
        let file = exporter.memfd(len);
        let path = format!("/proc/{}/fd/{file}", exporter.pid());
        let file = File::options().read(true).write(true).open(path).expect("the actor's memory file");
        let plain = Memory::of(&file, len);
        plain.fill(1);
        let segid = exporter.make_all();
        let apid = run.library.get(segid).expect("xpmem_get");
        let attached = run.library.attach(apid, there, len).expect("xpmem_attach");
        memory::dirty(attached, len);
        let device = Device::open(&mut exporter);
        let [local, from, other] = [private(len), private(len), private(len)];
        for memory in [&local, &from, &other] {
            memory.fill(2);
        }
        Self {
            library: run.library,
            exporter,
            there,
            apid,
            attached,
            local,
            from,
            other,
            plain,
            device,
            _file: file,
        }
    }

    fn len(&self) -> usize {
        self.local.len()
    }

    /// A copy between a local buffer and this address.
    fn copying(&self, direction: Direction, there: usize) -> Act<'_> {
        let (len, local) = (self.len(), self.local.address());
        Box::new(move || match direction {
            Direction::Read => copy(local, there, len),
            Direction::Write => copy(there, local, len),
        })
    }

    /// Copies with what is mapped already. The first is what the others are compared with.
    fn kept(&self, direction: Direction) -> Vec<Act<'_>> {
        [self.from.address(), self.other.address(), self.attached, self.plain.address()]
            .map(|there| self.copying(direction, there))
            .into()
    }

    /// Copies that begin with the address in the other process.
    fn anew(&self, direction: Direction) -> Vec<Act<'_>> {
        let (len, local, pid) = (self.len(), self.local.address(), self.exporter.pid());
        let mut acts: Vec<Act<'_>> = vec![
            self.copying(direction, self.from.address()),
            Box::new(move || {
                let address = self.library.attach(self.apid, self.there, len).expect("xpmem_attach");
                self.copying(direction, address)();
                self.library.detach(address).expect("xpmem_detach");
            }),
            Box::new(move || cma(direction, pid, local, self.there, len).expect("CMA")),
        ];
        if let Some(device) = &self.device {
            acts.push(Box::new(move || {
                let address = device.attach(self.there, len);
                self.copying(direction, address)();
                device.detach(address);
            }));
        }
        acts
    }

    /// A row of one of the tables.
    fn row(&self, run: &Run, direction: Direction, acts: Vec<Act<'_>>) -> Vec<String> {
        let len = self.len();
        // Short turns, so that what the machine does meanwhile meets all ways alike.
        let mut ways: Vec<Way<'_>> = acts
            .into_iter()
            .map(|mut act| {
                let cached = len <= CACHED;
                let count = if cached { calls_in(Duration::from_micros(200), &mut act) } else { 1 };
                Box::new(move || {
                    if cached {
                        act();
                    }
                    per_call(count, &mut act)
                }) as Way<'_>
            })
            .collect();
        let rounds = match len {
            len if len > 256 << 20 => run.scaled(3, 15),
            len if len > CACHED => run.scaled(11, 101),
            len if len > 1 << 20 => run.scaled(101, 501),
            _ => run.scaled(301, 2001),
        };
        let samples = interleaved(rounds, &mut ways);
        let name = match direction {
            Direction::Read => "read",
            Direction::Write => "write",
        };
        let mut row = vec![size(len), name.into(), samples[0].as_rate(len)];
        row.extend(samples[1..].iter().map(|sample| sample.over(&samples[0]).as_ratio()));
        row
    }

    /// A row of the table of random loads, which shows what the size of the pages makes of them.
    fn loads(&self, run: &Run, pages: &str) -> Vec<String> {
        let len = self.len();
        let mut ways: Vec<Way<'_>> =
            [self.from.address(), self.other.address(), self.attached, self.plain.address()]
                .into_iter()
                .map(|address| Box::new(move || loads(address, len)) as Way<'_>)
                .collect();
        let samples = interleaved(run.scaled(21, 101), &mut ways);
        let mut row = vec![size(len), pages.into(), samples[0].as_time()];
        row.extend(samples[1..].iter().map(|sample| sample.over(&samples[0]).as_ratio()));
        row
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // The exporter ends now, and that ends the attachment as well; a failure is of no interest.
        let _ = self.library.release(self.apid);
    }
}

/// The time of one load.
fn loads(address: usize, len: usize) -> f64 {
    const COUNT: usize = 20_000;
    let (mut place, mut sum) = (1_u64, 0_u64);
    per_call(COUNT, || {
        place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Each place depends on the load before it, so that no two are under way at once.
        let at = ((place >> 24) ^ (sum & 1)) as usize % (len / 8) * 8;
        let word = std::ptr::with_exposed_provenance::<u64>(address + at);
        // SAFETY: inside a buffer of the pair; another process may write it, so it is volatile.
        sum = sum.wrapping_add(unsafe { word.read_volatile() });
        black_box(&mut sum);
    })
}

/// Criterion's figures for two sizes, which it can compare with those of an earlier run.
fn criterion(run: &Run) {
    let span = Duration::from_millis(run.scaled(300, 3000) as u64);
    let mut criterion = Criterion::default()
        .sample_size(run.scaled(15, 100))
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(span)
        .without_plots()
        .configure_from_args();
    for len in [64 << 10, 4 << 20] {
        let pair = Pair::new(run, len, None);
        let mut group = criterion.benchmark_group("read");
        group.throughput(Throughput::Bytes(len as u64));
        let names = ["memcpy", "memcpy, other buffer", "attached", "memfd mapping"];
        let kept = names.into_iter().zip(pair.kept(Direction::Read));
        let names = ["attach+copy+detach", "CMA", "device, attach+copy+detach"];
        let anew = names.into_iter().zip(pair.anew(Direction::Read).into_iter().skip(1));
        for (name, mut act) in kept.chain(anew) {
            group.bench_function(BenchmarkId::new(name, size(len)), |bencher| bencher.iter(&mut act));
        }
        group.finish();
    }
    criterion.final_summary();
}
