//! Descriptors of a process. The library keeps its own in a table that only its service thread has.

use crate::maps::tasks;
use std::fs;
use std::path::{Path, PathBuf};

/// The descriptors of a thread, by number, and what they are. None if it has ended.
fn of_thread(pid: i32, tid: i32) -> Vec<(i32, PathBuf)> {
    let links = fs::read_dir(format!("/proc/{pid}/task/{tid}/fd")).into_iter().flatten().flatten();
    links
        .filter_map(|link| Some((link.file_name().to_str()?.parse().ok()?, fs::read_link(link.path()).ok()?)))
        .collect()
}

/// What marks the library's table.
const OWN_MEMORY: &str = "/memfd:rmap-own (deleted)";

/// The thread that serves the library in a process, if there is one.
pub fn service_thread(pid: i32) -> Option<i32> {
    let serves = |tid: &i32| of_thread(pid, *tid).iter().any(|(_, file)| file == Path::new(OWN_MEMORY));
    tasks(pid).into_iter().find(serves)
}

/// What the library has open in a process, by number. The places of the standard streams are left out.
pub fn library_descriptors(pid: i32) -> Vec<(i32, PathBuf)> {
    let mut all = service_thread(pid).map(|tid| of_thread(pid, tid)).unwrap_or_default();
    all.retain(|(number, _)| *number > 2);
    all
}

/// What the application has open in a process, as its first thread that lives has it.
pub fn application_descriptors(pid: i32) -> Vec<(i32, PathBuf)> {
    let service = service_thread(pid);
    let others = tasks(pid).into_iter().filter(|tid| Some(*tid) != service);
    others.map(|tid| of_thread(pid, tid)).find(|all| !all.is_empty()).unwrap_or_default()
}
