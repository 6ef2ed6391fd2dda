//! `rmap ls`: who shares memory with whom.

use crate::Failure;
use crate::text::{self, Table};
use clap::Args;
use rmap_core::Counters;
use rmap_core::counters::{Peer, Segment, TABLE};
use rmap_core::survey::{self, Process, Silence};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;

/// What `rmap ls` can be told.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only these processes.
    pids: Vec<u32>,
    /// Machine-readable, with all counters.
    #[arg(long)]
    json: bool,
    /// Show at most so many segments, importers and exporters of a process.
    #[arg(long, value_name = "NUMBER", default_value_t = 16)]
    rows: usize,
    /// Wait so many seconds for processes that do not answer at once.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    wait: f64,
}

/// Rows that are read at most of each table of a process.
const MOST_ROWS: usize = 1 << 20;

/// Asks these processes, or all.
pub(crate) fn ask(pids: &[u32], wait: f64, rows: usize) -> Result<Vec<Process>, Failure> {
    let limit = Duration::try_from_secs_f64(wait)?;
    let wanted = |pid| pids.is_empty() || pids.contains(&pid);
    Ok(survey::processes(wanted, limit, rows)?)
}

pub(crate) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let rows = if options.json { MOST_ROWS } else { options.rows.min(MOST_ROWS) };
    let found = ask(&options.pids, options.wait, rows)?;
    if options.json {
        let all: Vec<Value> = found.iter().map(as_json).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else if found.is_empty() && options.pids.is_empty() {
        println!("no process shares memory here");
    } else {
        for process in &found {
            print!("{}", as_text(process));
        }
    }
    let missing = options.pids.iter().filter(|pid| !found.iter().any(|process| process.pid == **pid));
    let missing: Vec<_> = missing.collect();
    for pid in &missing {
        eprintln!("rmap: process {pid} does not use the library");
    }
    Ok(if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Why a process says nothing.
pub(crate) fn silence(silence: Silence) -> &'static str {
    match silence {
        Silence::Denied => "it is another user's",
        Silence::Stopped => "it is stopped",
        Silence::Late => "it does not answer",
        Silence::Uncounted => {
            "the kernel shares its memory (engine mirror), and what it counts cannot be read from here"
        }
        _ => "it has another version of the library",
    }
}

fn segment_row(segment: &Segment) -> Vec<String> {
    vec![
        "segment".into(),
        format!("{:#x}", segment.id),
        format!("{:#x}-{:#x}", segment.range.start(), segment.range.end()),
        format!("mode {:04o}", segment.mode),
        segment.permits.map_or_else(String::new, |permits| text::count(permits, "permit")),
    ]
}

fn peer_row(kind: &str, peer: &Peer) -> Vec<String> {
    let state = if peer.connected { text::count(peer.permits, "permit") } else { "gone".into() };
    let asked = if peer.touches > 0 {
        format!("{} by asking {}", text::bytes(peer.bytes), text::times(peer.touches))
    } else {
        String::new()
    };
    vec![
        kind.into(),
        if peer.pid == 0 { "elsewhere".into() } else { format!("process {}", peer.pid) },
        format!("user {}", peer.uid),
        state,
        asked,
    ]
}

fn attached(now: &Counters) -> String {
    let all = now.attach_hits + now.attach_misses;
    let asked = if all > 1 { format!(", {} of them by asking", now.attach_misses) } else { String::new() };
    format!("attached {}{asked}", text::times(all))
}

fn stood_still(now: &Counters) -> String {
    let (together, longest) = (text::time(now.stall_ns), text::time(now.stall_longest_ns));
    match now.stalls {
        0 => "never stood still".into(),
        1 => format!("stood still once, for {together}"),
        stalls => format!("stood still {}, {together} together, {longest} at longest", text::times(stalls)),
    }
}

fn as_text(process: &Process) -> String {
    let who = format!("process {}, user {}", process.pid, process.uid);
    let sheet = match &process.sheet {
        Ok(sheet) => sheet,
        Err(why) => return format!("{who}: {}\n", silence(*why)),
    };
    let now = &sheet.counters;
    let mut lines = format!(
        "{who}, {}: {}, {}, {}; {} adopted, {} shown, {} mapped\n",
        sheet.name,
        text::count(now.segments, "segment"),
        text::count(now.importers, "importer"),
        text::count(now.exporters, "exporter"),
        text::bytes(now.object_bytes),
        text::bytes(now.shown_bytes),
        text::bytes(now.window_bytes),
    );
    lines += &format!("  {}; {}\n", attached(now), stood_still(now));
    let mut table = Table::new(&[], &[]);
    sheet.segments.iter().for_each(|segment| table.add(segment_row(segment)));
    lines += &table.lines(2);
    let mut table = Table::new(&[], &[]);
    sheet.importers.iter().for_each(|peer| table.add(peer_row("importer", peer)));
    sheet.exporters.iter().for_each(|peer| table.add(peer_row("exporter", peer)));
    lines += &table.lines(2);
    let more = now.segments.saturating_sub(sheet.segments.len() as u64);
    if more > 0 {
        lines += &format!("  {} more (--rows)\n", text::count(more, "segment"));
    }
    lines
}

fn peer_json(peer: &Peer) -> Value {
    json!({
        "pid": peer.pid,
        "uid": peer.uid,
        "connected": peer.connected,
        "permits": peer.permits,
        "permits_ever": peer.permits_ever,
        "bytes": peer.bytes,
        "touches": peer.touches,
    })
}

fn segment_json(segment: &Segment) -> Value {
    json!({
        "id": segment.id,
        "start": segment.range.start(),
        "end": segment.range.end(),
        "mode": format!("{:04o}", segment.mode),
        "permits": segment.permits,
    })
}

/// Counters by their names.
pub(crate) fn counters_json(counters: &Counters) -> Value {
    let values = TABLE.iter().zip(counters.values());
    let mut all: serde_json::Map<String, Value> =
        values.map(|(counter, value)| (counter.name.to_owned(), value.into())).collect();
    all.insert("stalls_by_length".into(), counters.stalls_by_length.to_vec().into());
    Value::Object(all)
}

fn as_json(process: &Process) -> Value {
    let about = json!({ "pid": process.pid, "uid": process.uid, "socket": process.socket });
    let more = match &process.sheet {
        Ok(sheet) => json!({
            "name": sheet.name,
            "endpoint": sheet.endpoint,
            "segments": sheet.segments.iter().map(segment_json).collect::<Vec<_>>(),
            "importers": sheet.importers.iter().map(peer_json).collect::<Vec<_>>(),
            "exporters": sheet.exporters.iter().map(peer_json).collect::<Vec<_>>(),
            "counters": counters_json(&sheet.counters),
        }),
        Err(why) => json!({ "silent": silence(*why) }),
    };
    let mut all = about.as_object().cloned().unwrap_or_default();
    all.extend(more.as_object().cloned().unwrap_or_default());
    Value::Object(all)
}
