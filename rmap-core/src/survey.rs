//! Who uses the library on this machine, and how: what `rmap ls` shows.
//!
//! Processes with a service thread are asked. Those of the engines `mirror` and `driver` have none that could answer for all of it; the file with their
//! counters is among their descriptors, where the kernel lets their user and root open it.

use crate::counters::Sheet;
use crate::engine::clone;
use crate::error::Result;
use core::time::Duration;
use rustix::fs::{Mode, OFlags};
use std::fs::DirEntry;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

pub use crate::engine::clone::{Process, Silence};

/// What a link in `/proc/PID/fd` says of the file.
const FILE: &str = "/memfd:rmap-counters (deleted)";

/// The processes that use the library and whose ids are wanted, each with at most so many rows of segments and of others: those that are met in this network
/// namespace or in the directory of `RMAP_RENDEZVOUS`, and those whose descriptors may be looked at. None is waited for longer than the limit.
///
/// # Errors
/// [`Error::OutOfResources`](crate::Error::OutOfResources) if `/proc/net/unix` cannot be read, or descriptors run out.
pub fn processes(wanted: impl Fn(u32) -> bool, limit: Duration, rows: usize) -> Result<Vec<Process>> {
    let mut found = clone::processes(&wanted, limit, rows)?;
    let open = open_sheets(rows);
    for process in open.iter().filter(|process| wanted(process.pid)) {
        let same: Vec<_> = found.iter_mut().filter(|other| other.pid == process.pid).collect();
        if same.is_empty() {
            found.push(process.clone());
            continue;
        }
        // Who has been asked has said it all.
        for other in same.into_iter().filter(|other| matches!(other.sheet, Err(Silence::Uncounted))) {
            other.sheet = process.sheet.clone();
        }
    }
    // With two engines a process has two sockets, and one sheet.
    found.sort_by_key(|process| (process.uid, process.pid, process.sheet.is_err()));
    found.dedup_by(|next, last| next.pid == last.pid && next.pid != 0 && last.sheet.is_ok());
    // Those that number themselves as they are numbered here.
    let own = |process: &Process| process.sheet.as_ref().is_ok_and(|sheet| sheet.pid == process.pid);
    for exporter in found.iter_mut().filter(|process| own(process)) {
        if let Ok(sheet) = &mut exporter.sheet {
            let importers = open.iter().filter(|process| own(process));
            sheet.add_importers(importers.filter_map(|process| process.sheet.as_ref().ok()));
        }
    }
    Ok(found)
}

/// The processes that have the file with their counters among their descriptors.
fn open_sheets(rows: usize) -> Vec<Process> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| open_sheet(&entry, rows)).collect()
}

fn open_sheet(entry: &DirEntry, rows: usize) -> Option<Process> {
    let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
    let path = entry.path();
    let uid = entry.metadata().ok()?.uid();
    // Another user's cannot be read.
    let descriptors = std::fs::read_dir(path.join("fd")).ok()?.flatten();
    let itself = number_of_its_own(&path)?;
    // Whoever reads those of others has them, too; and a child may have its parent's. No rows are read to find that out.
    let file = descriptors
        .filter(|link| std::fs::read_link(link.path()).is_ok_and(|target| target.as_os_str() == FILE))
        .filter_map(|link| open(&link.path()))
        .find(|file| Sheet::read(file, 0).is_ok_and(|sheet| sheet.pid == itself))?;
    let sheet = Sheet::read(file, rows).ok()?;
    Some(Process { socket: String::new(), pid, uid, sheet: Ok(sheet) })
}

/// Opens a file in memory: nothing else, which could wait or be woken by that.
fn open(path: &Path) -> Option<OwnedFd> {
    std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()).ok()
}

/// How a process numbers itself.
fn number_of_its_own(process: &Path) -> Option<u32> {
    let status = std::fs::read_to_string(process.join("status")).ok()?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_ascii_whitespace().next_back()?.parse().ok()
}
