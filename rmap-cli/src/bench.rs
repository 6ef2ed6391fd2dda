//! `rmap bench`: what this machine does, in ten seconds. Two processes, one of which has the memory.

mod chart;
mod progress;

use crate::Failure;
use clap::Args;
use progress::Progress;
use rmap_bench::measure::{self, Samples, Way, calls_in, interleaved, per_call};
use rmap_bench::memory::{self, Direction, Memory};
use rmap_core::{Access, Id, Permit, Segment, process, survey};
use serde_json::{Value, json};
use std::io::{BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// What `rmap bench` can be told.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Machine-readable.
    #[arg(long)]
    json: bool,
    /// Take about so long.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    seconds: f64,
    /// Play the other process.
    #[arg(long, hide = true)]
    exporter: bool,
}

const PAGE: usize = 4096;
/// What is attached again and again.
const PAIR: usize = 64 << 10;
/// What is touched for the first time.
const FRESH: usize = 32 << 20;
/// What is copied.
const SIZES: [usize; 4] = [4 << 10, 64 << 10, 1 << 20, 16 << 20];
const ROUNDS: usize = 9;
/// Ways to copy.
const WAYS: [&str; 3] = ["memcpy", "attachment", "process_vm_readv"];

pub(crate) fn run(options: &Options) -> Result<ExitCode, Failure> {
    if options.exporter {
        return serve();
    }
    let seconds = options.seconds.clamp(0.1, 3600.0);
    let results = measure(Duration::from_secs_f64(seconds))?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&results.as_json())?);
    } else {
        print!("{}", results.as_text());
    }
    Ok(ExitCode::SUCCESS)
}

// ---- the process that has the memory ----

/// Offers memory, and new memory for each line that comes, until there are no more.
fn serve() -> Result<ExitCode, Failure> {
    let segment = Segment::whole_address_space(0o600)?;
    let mut stdout = std::io::stdout();
    let memory = Memory::private(SIZES[SIZES.len() - 1]);
    memory.fill(1);
    writeln!(stdout, "{} {}", segment.id().to_raw(), memory.address())?;
    let mut fresh = None;
    for line in std::io::stdin().lines() {
        line?;
        drop(fresh.take());
        let memory = Memory::private(FRESH);
        memory.fill(1);
        writeln!(stdout, "{}", fresh.insert(memory).address())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The other process.
struct Exporter {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    id: Id,
    memory: usize,
}

impl Exporter {
    fn start() -> Result<Self, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["bench", "--exporter"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let to = child.stdin.take().ok_or("no pipe")?;
        let mut from = BufReader::new(child.stdout.take().ok_or("no pipe")?);
        let words = read_numbers(&mut from)?;
        let &[id, memory] = &words[..] else { return Err("the other process has not started".into()) };
        let id = Id::from_raw(id).ok_or("no id")?;
        Ok(Self { child, to, from, id, memory: usize::try_from(memory)? })
    }

    /// New memory that nobody has touched but the exporter, and that all of is there.
    fn fresh(&mut self) -> Result<usize, Failure> {
        self.to.write_all(b"\n")?;
        let words = read_numbers(&mut self.from)?;
        Ok(usize::try_from(*words.first().ok_or("the other process has ended")?)?)
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_numbers(from: &mut impl std::io::BufRead) -> Result<Vec<i64>, Failure> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    line.split_whitespace().map(|word| Ok(word.parse()?)).collect()
}

// ---- measuring ----

/// What was measured.
struct Results {
    pair: Samples,
    first_touch: Samples,
    /// The longest time that the exporter stood still, in nanoseconds.
    stall: u64,
    /// For each size, by way.
    copies: Vec<(usize, Vec<Samples>)>,
}

fn measure(span: Duration) -> Result<Results, Failure> {
    let mut exporter = Exporter::start()?;
    let permit = Permit::get(exporter.id, Access::ReadOnly)?;
    let mut progress = Progress::new(SIZES.len() + 2 * ROUNDS);
    let pair = pairs(&permit, exporter.memory, span / 10, &mut progress)?;
    let first_touch = first_touches(&permit, &mut exporter, span / 3, &mut progress)?;
    let seen = survey::processes(|pid| pid == exporter.pid(), Duration::from_secs(2), 1)?;
    let sheet = seen.into_iter().find_map(|process| process.sheet.ok());
    let stall = sheet.map_or(0, |sheet| sheet.counters.stall_longest_ns);
    let each = span / 2 / (SIZES.len() * WAYS.len() * (ROUNDS + 1)) as u32;
    let mut copies = Vec::new();
    for size in SIZES {
        progress.step("copying");
        copies.push((size, copy(&permit, &exporter, size, each)?));
    }
    progress.end();
    Ok(Results { pair, first_touch, stall, copies })
}

/// Attaches memory that was attached before, and detaches it.
fn pairs(
    permit: &Permit,
    memory: usize,
    span: Duration,
    progress: &mut Progress,
) -> Result<Samples, Failure> {
    let kept = permit.attach(memory as u64, PAIR)?;
    let (apid, offset) = (permit.id().to_raw(), i64::try_from(memory)?);
    let mut missed = 0u64;
    let mut pair = || {
        // As xpmem_attach and xpmem_detach do.
        // SAFETY: nobody uses what is detached.
        let done =
            process::attach_known(apid, offset, PAIR).is_some_and(|at| unsafe { process::detach_known(at) });
        missed += u64::from(!done);
    };
    let count = calls_in(span / (ROUNDS as u32 + 1), &mut pair);
    let mut samples = Samples::new();
    for _ in 0..ROUNDS {
        progress.step("attaching again");
        samples.push(per_call(count, &mut pair));
    }
    drop(kept);
    if missed > 0 {
        return Err(format!("{missed} attachments were not found mapped").into());
    }
    Ok(samples)
}

/// Loads a byte of each page of memory that was not attached before.
fn first_touches(
    permit: &Permit,
    exporter: &mut Exporter,
    span: Duration,
    progress: &mut Progress,
) -> Result<Samples, Failure> {
    let start = Instant::now();
    let mut samples = Samples::new();
    for round in 0..=ROUNDS {
        if round > 3 && start.elapsed() > span {
            break;
        }
        let memory = exporter.fresh()?;
        let attachment = permit.attach(memory as u64, FRESH)?;
        let address = attachment.as_ptr().expose_provenance();
        let took = measure::once(|| {
            std::hint::black_box(memory::touch(address, FRESH));
        });
        // The first is not counted.
        if round > 0 {
            progress.step("touching new memory");
            samples.push(took);
        }
    }
    Ok(samples)
}

/// Copies memory into this process, in each way.
fn copy(permit: &Permit, exporter: &Exporter, size: usize, span: Duration) -> Result<Vec<Samples>, Failure> {
    let (own, target) = (Memory::private(size), Memory::private(size));
    own.fill(1);
    target.fill(2);
    let attachment = permit.attach(exporter.memory as u64, size)?;
    let attached = attachment.as_ptr().expose_provenance();
    let (pid, there) = (exporter.pid().cast_signed(), exporter.memory);
    let by_kernel = || memory::cma(Direction::Read, pid, target.address(), there, size);
    by_kernel().map_err(|error| format!("process_vm_readv: {error}"))?;
    let local = || memory::copy(target.address(), own.address(), size);
    let mapped = || memory::copy(target.address(), attached, size);
    let read = || {
        let _ = by_kernel();
    };
    let counts = [calls_in(span, local), calls_in(span, mapped), calls_in(span, read)];
    let mut ways: [Way<'_>; 3] = [
        Box::new(|| per_call(counts[0], local)),
        Box::new(|| per_call(counts[1], mapped)),
        Box::new(|| per_call(counts[2], read)),
    ];
    Ok(interleaved(ROUNDS, &mut ways))
}

// ---- saying ----

/// Bytes in a nanosecond are GB in a second.
fn rate(samples: &Samples, bytes: usize) -> f64 {
    bytes as f64 / samples.median()
}

impl Results {
    fn as_json(&self) -> Value {
        let copy = |(size, ways): &(usize, Vec<Samples>)| {
            let rates =
                WAYS.iter().zip(ways).map(|(way, samples)| ((*way).to_owned(), rate(samples, *size).into()));
            let mut all: serde_json::Map<String, Value> = rates.collect();
            all.insert("bytes".into(), (*size).into());
            Value::Object(all)
        };
        json!({
            "attach_and_detach_ns": self.pair.median(),
            "first_touch_gb_per_s": rate(&self.first_touch, FRESH),
            "first_touch_bytes": FRESH,
            "longest_stall_ns": self.stall,
            "copies_gb_per_s": self.copies.iter().map(copy).collect::<Vec<_>>(),
        })
    }

    fn as_text(&self) -> String {
        let mut lines =
            format!("attach and detach {}, attached before  {}\n", measure::size(PAIR), self.pair.as_time(),);
        lines += &format!(
            "first touch of {} of small pages       {} a page, {}\n",
            measure::size(FRESH),
            measure::time(self.first_touch.median() / (FRESH / PAGE) as f64),
            self.first_touch.as_rate(FRESH),
        );
        lines += &format!("  the exporter stood still for {} at longest\n", measure::time(self.stall as f64));
        lines += "\ncopying from another process, GB/s\n";
        let mut rows = Vec::new();
        for (size, ways) in &self.copies {
            for (index, (way, samples)) in WAYS.iter().zip(ways).enumerate() {
                let head = if index == 0 { measure::size(*size) } else { String::new() };
                rows.push((format!("{head:>7}  {way}"), rate(samples, *size)));
            }
        }
        lines += &chart::bars(&rows);
        lines
    }
}
