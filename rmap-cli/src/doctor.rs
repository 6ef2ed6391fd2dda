//! `rmap doctor -- COMMAND`: runs a job and says what its processes made of the library.
//!
//! Each gives the descriptor of its counters away when it first shares memory, so the report can be made when all have ended, however they did.

mod hints;
mod verdict;

use crate::Failure;
use crate::ls::counters_json;
use crate::text::{self, Table};
use clap::Args;
use rmap_core::counters::{Peer, Sheet};
use rmap_core::report::{Counting, Listener, News, Report, Reporter, VARIABLE};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Resource, getrlimit, pidfd_open, setrlimit};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

/// What `rmap doctor` can be told.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Write the report there, not to standard error.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Machine-readable, with all counters.
    #[arg(long)]
    json: bool,
    /// The job, as it would be started without `rmap doctor`.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// The job has ended well, and no two of its processes have shared memory.
const UNUSED: u8 = 3;

/// Rows that are read at most of each table of a process.
const ROWS: usize = 1 << 16;

/// What the processes of a job have said.
#[derive(Debug, Default)]
struct Said {
    /// Those that called the library, and the engine.
    served: Vec<String>,
    /// Why those cannot be served that cannot.
    not_served: Vec<(u32, String)>,
    counting: Vec<Counting>,
}

impl Said {
    fn note(&mut self, report: Report) {
        match report.news {
            News::Served(engine) => self.served.push(engine),
            News::NotServed(why) => self.not_served.push((report.pid, why)),
            News::Started(counting) => self.counting.push(counting),
        }
    }
}

/// What has become of a job.
#[derive(Debug)]
struct Job {
    status: ExitStatus,
    took: Duration,
    said: Said,
    sheets: Vec<Sheet>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode, Failure> {
    raise_descriptors();
    let listener = Listener::new()?;
    let (program, arguments) = options.command.split_first().ok_or("no command")?;
    let start = Instant::now();
    let mut child = Command::new(program)
        .args(arguments)
        .env(VARIABLE, listener.name())
        .spawn()
        .map_err(|error| format!("{}: {error}", program.to_string_lossy()))?;
    // They are the job's: the report is made when it has ended.
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let said = listen(&listener, &child)?;
    let status = child.wait()?;
    let mut sheets: Vec<Sheet> =
        said.counting.iter().filter_map(|counting| counting.read(ROWS).ok()).collect();
    sheets.sort_by_key(|sheet| (sheet.started, sheet.pid));
    let all = sheets.clone();
    sheets.iter_mut().for_each(|sheet| sheet.add_importers(&all));
    let job = Job { status, took: start.elapsed(), said, sheets };
    let report = if options.json { as_json(&job)? } else { as_text(&job, options) };
    match &options.output {
        Some(path) => std::fs::write(path, report).map_err(|error| format!("{}: {error}", path.display()))?,
        None => std::io::stderr().write_all(report.as_bytes())?,
    }
    Ok(exit_code(&job))
}

/// The job's own status; or that the library was not used.
fn exit_code(job: &Job) -> ExitCode {
    let status = match (job.status.code(), job.status.signal()) {
        (Some(code), _) => code as u8,
        (None, signal) => 128 + signal.unwrap_or(0) as u8,
    };
    let unused = !verdict::shared(&job.sheets);
    ExitCode::from(if status == 0 && unused { UNUSED } else { status })
}

/// Every process of the job gives one.
fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Hears what processes say until the job has ended.
fn listen(listener: &Listener, child: &Child) -> Result<Said, Failure> {
    let pid = Pid::from_raw(child.id().cast_signed()).ok_or("no process")?;
    let end: OwnedFd = pidfd_open(pid, PidfdFlags::empty())?;
    let mut said = Said::default();
    let mut reporters: Vec<Reporter> = Vec::new();
    loop {
        let mut entries = vec![PollFd::new(&end, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
        entries.extend(
            reporters.iter().map(|reporter| PollFd::from_borrowed_fd(reporter.as_fd(), PollFlags::IN)),
        );
        match rustix::event::poll(&mut entries, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        // Looked at first: what was said before the end is heard below.
        let ended = !entries[0].revents().is_empty();
        while let Some(reporter) = listener.accept()? {
            reporters.push(reporter);
        }
        reporters.retain(|reporter| match reporter.hear() {
            None => true,
            Some(report) => {
                report.into_iter().for_each(|report| said.note(report));
                false
            }
        });
        if ended {
            return Ok(said);
        }
    }
}

/// Everybody that a process has shared memory with, in order.
fn partners(sheet: &Sheet) -> BTreeSet<u32> {
    let all = sheet.importers.iter().chain(&sheet.exporters);
    all.filter(|peer| peer.permits_ever > 0).map(|peer| peer.pid).collect()
}

fn list(pids: &BTreeSet<u32>) -> String {
    const SHOWN: usize = 8;
    let mut words: Vec<String> = pids.iter().take(SHOWN).map(u32::to_string).collect();
    if pids.len() > SHOWN {
        words.push(format!("and {} more", pids.len() - SHOWN));
    }
    if words.is_empty() { "nobody".into() } else { words.join(" ") }
}

fn as_text(job: &Job, options: &Options) -> String {
    let command: Vec<_> = options.command.iter().map(|word| word.to_string_lossy()).collect();
    let end = match (job.status.code(), job.status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, signal) => format!("was ended by signal {}", signal.unwrap_or(0)),
    };
    let took = text::time(u64::try_from(job.took.as_nanos()).unwrap_or(u64::MAX));
    let mut lines = format!("\nrmap doctor: {} {end} after {took}\n", command.join(" "));
    for line in verdict::of(job) {
        lines += &format!("{line}\n");
    }
    if !job.sheets.is_empty() {
        let head = [
            "process", "program", "attached", "asked", "touches", "longest", "bytes", "adopted", "stalls",
            "together", "longest", "errors", "with",
        ];
        let mut table = Table::new(&head, &[0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        for sheet in &job.sheets {
            table.add(row(sheet));
        }
        lines += &format!("\n{}", table.lines(2));
    }
    if !verdict::shared(&job.sheets) {
        lines += "\n";
        for hint in hints::of(job, &options.command) {
            lines += &format!("- {hint}\n");
        }
    }
    lines
}

fn row(sheet: &Sheet) -> Vec<String> {
    let now = &sheet.counters;
    let learned: u64 = sheet.exporters.iter().map(|peer| peer.bytes).sum();
    vec![
        sheet.pid.to_string(),
        sheet.name.clone(),
        (now.attach_hits + now.attach_misses).to_string(),
        now.attach_misses.to_string(),
        now.touches_asked.to_string(),
        text::time(now.touch_longest_ns),
        text::bytes(learned),
        text::bytes(now.adopted_bytes),
        now.stalls.to_string(),
        text::time(now.stall_ns),
        text::time(now.stall_longest_ns),
        verdict::errors(sheet).to_string(),
        list(&partners(sheet)),
    ]
}

fn as_json(job: &Job) -> Result<String, Failure> {
    let peers = |peers: &[Peer]| -> Vec<Value> {
        let peer = |peer: &Peer| json!({ "pid": peer.pid, "permits": peer.permits_ever, "bytes": peer.bytes, "touches": peer.touches });
        peers.iter().map(peer).collect()
    };
    let process = |sheet: &Sheet| {
        json!({
            "pid": sheet.pid,
            "name": sheet.name,
            "importers": peers(&sheet.importers),
            "exporters": peers(&sheet.exporters),
            "counters": counters_json(&sheet.counters),
        })
    };
    let not_served = |(pid, why): &(u32, String)| json!({ "pid": pid, "why": why });
    let report = json!({
        "status": job.status.code(),
        "signal": job.status.signal(),
        "seconds": job.took.as_secs_f64(),
        "used": verdict::shared(&job.sheets),
        "verdict": verdict::of(job),
        "called": job.said.served.len() + job.said.not_served.len(),
        "not_served": job.said.not_served.iter().map(not_served).collect::<Vec<_>>(),
        "processes": job.sheets.iter().map(process).collect::<Vec<_>>(),
    });
    Ok(serde_json::to_string_pretty(&report)? + "\n")
}
