//! `rmap top`: what processes that share memory do now.

use crate::Failure;
use crate::ls::{ask, silence};
use crate::text::{self, Table};
use clap::Args;
use rmap_core::Counters;
use rmap_core::counters::Sheet;
use rmap_core::survey::Process;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashMap;
use std::io::{BufRead as _, IsTerminal as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What `rmap top` can be told.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only these processes.
    pids: Vec<u32>,
    /// Show it once, as it was on average since each process began.
    #[arg(long)]
    once: bool,
    /// Show it so many times.
    #[arg(short = 'n', long, value_name = "NUMBER")]
    count: Option<u64>,
    /// Show it every so many seconds.
    #[arg(short = 'd', long, value_name = "SECONDS", default_value_t = 1.0)]
    interval: f64,
}

/// How a process was when it was last looked at.
struct Past {
    at: Instant,
    counters: Counters,
    reached: u64,
}

impl Past {
    /// When it began.
    fn beginning_of(sheet: &Sheet) -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        let now = Duration::new(now.tv_sec.cast_unsigned(), u32::try_from(now.tv_nsec).unwrap_or(0));
        let at = Instant::now();
        let at = at.checked_sub(now.saturating_sub(sheet.started)).unwrap_or(at);
        Self { at, counters: Counters::default(), reached: 0 }
    }

    fn now(sheet: &Sheet) -> Self {
        Self { at: Instant::now(), counters: sheet.counters, reached: reached(sheet) }
    }
}

/// Bytes that exporters have answered first touches with.
fn reached(sheet: &Sheet) -> u64 {
    sheet.exporters.iter().map(|peer| peer.bytes).sum()
}

/// Rows of processes that are read at most.
const ROWS: usize = 4096;

pub(crate) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let interval = Duration::try_from_secs_f64(options.interval.max(0.05))?;
    let live = std::io::stdout().is_terminal() && !options.once;
    let count = if options.once { 1 } else { options.count.unwrap_or(u64::MAX) };
    let mut past: HashMap<String, Past> = HashMap::new();
    for round in 0..count {
        if round > 0 && wait(interval)? {
            break;
        }
        let found = ask(&options.pids, interval.as_secs_f64().min(2.0), ROWS)?;
        let (lines, now) = show(&found, &past);
        past = now;
        if live {
            // To the upper left corner, over what was there.
            print!("\x1b[H\x1b[2J");
        }
        print!("{lines}");
        if live {
            println!("\nq and Enter ends this");
        } else if round + 1 < count {
            println!();
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits for the next round; true if the user has had enough.
fn wait(interval: Duration) -> Result<bool, Failure> {
    let stdin = std::io::stdin();
    let asks = stdin.is_terminal();
    let until = Instant::now() + interval;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let mut entries = Vec::new();
        if asks {
            entries.push(PollFd::new(&stdin, PollFlags::IN));
        }
        match rustix::event::poll(&mut entries, Some(&Timespec::try_from(left)?)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => {
                let mut line = String::new();
                let read = stdin.lock().read_line(&mut line)?;
                if read == 0 || line.trim() == "q" {
                    return Ok(true);
                }
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// What has changed since, and what it is compared with next time.
fn show(found: &[Process], past: &HashMap<String, Past>) -> (String, HashMap<String, Past>) {
    let head = [
        "process",
        "user",
        "program",
        "attach/s",
        "asked/s",
        "touch/s",
        "reached/s",
        "adopted/s",
        "still",
        "memory",
        "mapped",
        "peers",
    ];
    let mut table = Table::new(&head, &[0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    let mut rows = Vec::new();
    let mut now = HashMap::new();
    for process in found {
        match &process.sheet {
            Ok(sheet) => {
                let beginning = Past::beginning_of(sheet);
                let before = past.get(&process.socket).unwrap_or(&beginning);
                rows.push(row(process, sheet, before));
                now.insert(process.socket.clone(), Past::now(sheet));
            }
            Err(why) => rows.push((
                0.0,
                vec![process.pid.to_string(), process.uid.to_string(), format!("({})", silence(*why))],
            )),
        }
    }
    // The busiest first.
    rows.sort_by(|left, right| right.0.total_cmp(&left.0));
    rows.into_iter().for_each(|(_, row)| table.add(row));
    let mut lines = table.lines(0);
    if found.is_empty() {
        lines += "no process shares memory here\n";
    }
    (lines, now)
}

fn row(process: &Process, sheet: &Sheet, before: &Past) -> (f64, Vec<String>) {
    let seconds = before.at.elapsed().as_secs_f64().max(1e-3);
    let (then, now) = (&before.counters, &sheet.counters);
    let more = |of: fn(&Counters) -> u64| of(now).wrapping_sub(of(then)) as f64;
    let attached = more(|c| c.attach_hits.wrapping_add(c.attach_misses)) / seconds;
    let touches = more(|c| c.touches_asked.wrapping_add(c.answers_object)) / seconds;
    let per_second = |value: f64| format!("{value:.0}");
    let bytes = |value: f64| text::bytes(value as u64);
    let cells = vec![
        process.pid.to_string(),
        process.uid.to_string(),
        sheet.name.clone(),
        per_second(attached),
        per_second(more(|c| c.attach_misses) / seconds),
        per_second(touches),
        bytes(reached(sheet).wrapping_sub(before.reached) as f64 / seconds),
        bytes(more(|c| c.adopted_bytes) / seconds),
        format!("{:.1} %", more(|c| c.stall_ns) / seconds / 1e7),
        text::bytes(now.object_bytes),
        text::bytes(now.window_bytes),
        (now.importers + now.exporters).to_string(),
    ];
    (attached + touches, cells)
}
