//! Reading `/proc`.

use std::{fs, ops::Range};

/// One line of a maps file.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// The addresses.
    pub range: Range<usize>,
    /// `rwxp` or the like.
    pub flags: String,
    /// The name at the end of the line, or nothing.
    pub name: String,
}

impl Mapping {
    /// Whether loads work.
    pub fn readable(&self) -> bool {
        self.flags.starts_with('r')
    }

    /// Whether stores work.
    pub fn writable(&self) -> bool {
        self.flags.as_bytes()[1] == b'w'
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let flags = words.next()?.to_owned();
        let name = words.nth(3).unwrap_or_default().to_owned();
        let address = |text| usize::from_str_radix(text, 16).ok();
        Some(Self { range: address(start)?..address(end)?, flags, name })
    }
}

/// The mappings of a process.
///
/// # Panics
///
/// If they cannot be read.
pub fn maps(pid: i32) -> Vec<Mapping> {
    maps_if_alive(pid).unwrap_or_else(|| panic!("cannot read the maps of process {pid}"))
}

/// The mappings of a process, or `None` if they cannot be read.
pub fn maps_if_alive(pid: i32) -> Option<Vec<Mapping>> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    text.lines().map(Mapping::parse).collect()
}

/// The flags of the mapping that begins at an address, as `smaps` has them, each with a blank before and after it.
///
/// # Panics
///
/// If there is none.
pub fn vm_flags(pid: i32, address: usize) -> String {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("smaps");
    let start = smaps.find(&format!("{address:x}-")).expect("the range has a mapping of its own");
    let flags = smaps[start..].lines().find_map(|line| line.strip_prefix("VmFlags:")).expect("flags");
    format!("{} ", flags.trim_end())
}

/// The thread ids of a process.
pub fn tasks(pid: i32) -> Vec<i32> {
    let Ok(folder) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    folder.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Field `index` of a `stat` file, counted from the state, which is 0.
fn stat(path: &str, index: usize) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().nth(index)?.to_owned())
}

/// The state letter of a process, or `None` if there is no such process.
pub fn state_of(pid: i32) -> Option<char> {
    stat(&format!("/proc/{pid}/stat"), 0)?.chars().next()
}

/// The state letter of a thread, or `None` if there is no such thread.
pub(crate) fn task_state(pid: i32, tid: i32) -> Option<char> {
    stat(&format!("/proc/{pid}/task/{tid}/stat"), 0)?.chars().next()
}

/// The parent of a process, or `None` if there is no such process.
pub fn parent_of(pid: i32) -> Option<i32> {
    stat(&format!("/proc/{pid}/stat"), 1)?.parse().ok()
}

/// The system call that a thread sleeps in, if it does.
pub fn task_blocked_in(pid: i32, tid: i32) -> Option<i64> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
    text.split_whitespace().next()?.parse().ok().filter(|number| *number >= 0)
}

/// Whether a thread sleeps outside any system call: it waits for a page.
pub fn waits_for_page(pid: i32, tid: i32) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).unwrap_or_default();
    text.starts_with("-1 ")
}
