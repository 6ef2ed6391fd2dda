//! Small reads of `/proc`, without allocation. The address space is read through `/proc/thread-self`: where the first thread of a
//! process has ended, `/proc/self` shows none.

use super::{Errno, SysResult};
use core::ffi::CStr;
use core::fmt::Write;
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// A NUL-terminated path built on the stack.
pub(crate) struct PathBuffer {
    bytes: [u8; 96],
    len: usize,
}

impl PathBuffer {
    pub(crate) fn format(args: core::fmt::Arguments<'_>) -> Self {
        let mut path = Self { bytes: [0; 96], len: 0 };
        let _ = path.write_fmt(args);
        path
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

impl Write for PathBuffer {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        // The last byte stays NUL.
        let room = self.bytes.len() - 1 - self.len;
        if text.len() > room {
            return Err(core::fmt::Error);
        }
        self.bytes[self.len..self.len + text.len()].copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

/// Opens `path` for reading.
pub(crate) fn open(path: &CStr) -> SysResult<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Reads the start of the file at `path`; returns the bytes read.
pub(crate) fn read_small<'a>(path: &CStr, buffer: &'a mut [u8]) -> SysResult<&'a [u8]> {
    let fd = open(path)?;
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::read(&fd, &mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(&buffer[..filled])
}

/// The number after `key` in text of the form `key: value`, in base `radix`.
pub(crate) fn field(text: &[u8], key: &[u8], radix: u64) -> Option<u64> {
    let at = text.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(key))?;
    let start = at.iter().position(u8::is_ascii_hexdigit)?;
    Some(number(&at[start..], radix))
}

/// The number that `text` starts with.
pub(crate) fn number(text: &[u8], radix: u64) -> u64 {
    text.iter()
        .map_while(|b| (*b as char).to_digit(radix as u32))
        .fold(0, |sum: u64, digit| sum.wrapping_mul(radix).wrapping_add(u64::from(digit)))
}

/// The number that `/proc` has for the process of a handle (a pidfd); `None` if the process is gone, or not to be seen there.
pub(crate) fn number_of(handle: impl AsFd) -> Option<u32> {
    let descriptor = handle.as_fd().as_raw_fd();
    let path = PathBuffer::format(format_args!("/proc/thread-self/fdinfo/{descriptor}"));
    let mut buffer = [0; 512];
    number_in(read_small(path.as_c_str(), &mut buffer).ok()?)
}

/// The number in the text about a handle: -1 if the process is gone, 0 if it is not there.
fn number_in(text: &[u8]) -> Option<u32> {
    let value = text.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"Pid:"))?.trim_ascii();
    core::str::from_utf8(value).ok()?.parse().ok().filter(|pid| *pid != 0)
}

/// Whether `/proc`, which has said this about the calling thread, numbers processes as that sees them: in each pid namespace, from that of `/proc`
/// to its own, a thread has another number.
pub(crate) fn numbers_as_here(status: &[u8]) -> bool {
    let line = status.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"NSpid:"));
    line.is_some_and(|numbers| {
        numbers.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).count() == 1
    })
}

/// Whether this process may look at another as its own user may (`ptrace(2)`): it is in the same user namespace, and all its users and
/// groups are this one's; or this one has `CAP_SYS_PTRACE` where that is.
pub(crate) fn may_look_at(pid: u32) -> bool {
    let path = PathBuffer::format(format_args!("/proc/{pid}/ns/user"));
    let mut buffer = [core::mem::MaybeUninit::uninit(); 64];
    rustix::fs::readlinkat_raw(rustix::fs::CWD, path.as_c_str(), &mut buffer).is_ok()
}

/// The effective user of a process, if it is seen from here.
pub(crate) fn user_of(pid: u32) -> Option<u32> {
    let path = PathBuffer::format(format_args!("/proc/{pid}"));
    rustix::fs::stat(path.as_c_str()).ok().map(|stat| stat.st_uid)
}

/// Whether the process, or thread, of this name in `/proc` has a capability in its own user namespace.
pub(crate) fn has_capability(who: core::fmt::Arguments<'_>, number: u32) -> bool {
    let mut buffer = [0; 4096];
    let path = PathBuffer::format(format_args!("/proc/{who}/status"));
    let text = read_small(path.as_c_str(), &mut buffer);
    text.ok().and_then(|text| field(text, b"CapEff:", 16)).is_some_and(|all| all >> number & 1 == 1)
}

/// Calls `each` with the number that names each entry of an open directory; other entries are passed over.
pub(crate) fn each_numbered_entry(dir: impl AsFd, mut each: impl FnMut(u32)) -> SysResult<()> {
    rustix::fs::seek(&dir, rustix::fs::SeekFrom::Start(0))?;
    let mut buffer = [core::mem::MaybeUninit::uninit(); 4096];
    let mut entries = rustix::fs::RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name.first().is_some_and(u8::is_ascii_digit) {
            each(number(name, 10) as u32);
        }
    }
    Ok(())
}

/// Where a thread of this process sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    /// In this system call, with these arguments.
    In { call: i64, args: [usize; 6] },
    /// Outside any system call: in a page fault of the instruction at this address.
    InFault { instruction: usize },
}

/// Reads the start of a file about a thread of this process; `None` if the thread is gone, or the kernel does not tell.
///
/// # Errors
/// There is no descriptor or no memory to read it with.
fn about_thread<'a>(tid: u32, name: &str, buffer: &'a mut [u8]) -> SysResult<Option<&'a [u8]>> {
    let path = PathBuffer::format(format_args!("/proc/self/task/{tid}/{name}"));
    match read_small(path.as_c_str(), buffer) {
        Ok(text) => Ok(Some(text)),
        Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => Err(errno),
        Err(_) => Ok(None),
    }
}

/// Where thread `tid` of this process sleeps; `None` if it runs or is gone.
///
/// # Errors
/// There is no descriptor or no memory to find out with.
pub(crate) fn blocked(tid: u32) -> SysResult<Option<Blocked>> {
    let mut buffer = [0; 256];
    Ok(about_thread(tid, "syscall", &mut buffer)?.and_then(parse_syscall))
}

fn parse_syscall(text: &[u8]) -> Option<Blocked> {
    let mut words = text.split(|b| *b == b' ' || *b == b'\n');
    let call = words.next()?;
    if call == b"-1" {
        let instruction = words.nth(1)?.strip_prefix(b"0x")?;
        return Some(Blocked::InFault { instruction: number(instruction, 16) as usize });
    }
    if !call.first()?.is_ascii_digit() {
        return None;
    }
    let mut args = [0; 6];
    for arg in &mut args {
        *arg = number(words.next()?.strip_prefix(b"0x")?, 16) as usize;
    }
    Some(Blocked::In { call: number(call, 10) as i64, args })
}

/// Whether the kernel does not say where thread `tid` sleeps: the process has changed its user, or is not dumpable.
pub(crate) fn is_hidden(tid: u32) -> bool {
    let path = PathBuffer::format(format_args!("/proc/self/task/{tid}/syscall"));
    matches!(open(path.as_c_str()), Err(Errno::ACCESS | Errno::PERM))
}

/// Whether process `pid` is known to be stopped, by a signal or a debugger.
pub(crate) fn is_stopped(pid: u32) -> bool {
    let mut buffer = [0; 128];
    let path = PathBuffer::format(format_args!("/proc/{pid}/stat"));
    let text = read_small(path.as_c_str(), &mut buffer);
    text.ok().and_then(process_state).is_some_and(|state| matches!(state, b'T' | b't'))
}

/// The state in the text of a `stat` file. It follows the name, in which anything may be.
fn process_state(text: &[u8]) -> Option<u8> {
    let name_ends = text.iter().rposition(|byte| *byte == b')')?;
    text.get(name_ends + 2).copied()
}

/// Whether thread `tid` waits for a userfaultfd event to be read. `None` where the kernel does not tell.
///
/// # Errors
/// There is no descriptor or no memory to find out with.
pub(crate) fn waits_for_event(tid: u32) -> SysResult<Option<bool>> {
    let mut buffer = [0; 96];
    // "0": running, or hidden.
    let text = about_thread(tid, "wchan", &mut buffer)?.filter(|text| *text != b"0");
    Ok(text.map(|text| text.starts_with(b"userfaultfd_event_wait")))
}

/// Whether thread `tid` would not see signal `number` now, as far as is known: it blocks or the process ignores it.
///
/// # Errors
/// There is no descriptor or no memory to find out with.
pub(crate) fn signal_held_back(tid: u32, number: i32) -> SysResult<bool> {
    let mut buffer = [0; 4096];
    let Some(text) = about_thread(tid, "status", &mut buffer)? else { return Ok(true) };
    let bit = 1 << (number - 1);
    let has_it = |key: &&[u8]| field(text, key, 16).is_none_or(|mask| mask & bit != 0);
    Ok([&b"SigBlk:"[..], b"SigIgn:"].iter().any(has_it))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_key_and_base() {
        let text = b"Name:\tx\nVmPin:\t      12 kB\nSigBlk:\t0000000000000040\n";
        assert_eq!(field(text, b"VmPin:", 10), Some(12));
        assert_eq!(field(text, b"SigBlk:", 16), Some(0x40));
        assert_eq!(field(text, b"VmLck:", 10), None);
    }

    #[test]
    fn a_proc_of_another_namespace_has_more_numbers() {
        assert!(numbers_as_here(b"Pid:\t7\nNSpid:\t7\nNSpgid:\t7\n"));
        assert!(!numbers_as_here(b"Pid:\t700\nNSpid:\t700\t7\n"));
        assert!(!numbers_as_here(b"Pid:\t7\n"));
    }

    #[test]
    fn handles_of_processes_that_are_not_there() {
        for (pid, number) in [("17", Some(17)), ("0", None), ("-1", None), ("", None)] {
            let text = format!("pos:\t0\nflags:\t02\nPid:\t{pid}\nNSpid:\t5\n");
            assert_eq!(number_in(text.as_bytes()), number);
        }
        assert_eq!(number_in(b"NSpid:\t5\n"), None);
    }

    #[test]
    fn the_state_comes_after_the_name() {
        assert_eq!(process_state(b"17 (a) R (b) T 1 17 17 0 -1 4194304"), Some(b'T'));
        assert_eq!(process_state(b"17 (a"), None);
        assert_eq!(process_state(b"17 (a)"), None);
    }

    #[test]
    fn a_path_that_is_too_long_ends_early() {
        let path = PathBuffer::format(format_args!("/proc/{}", "x".repeat(200)));
        assert_eq!(path.as_c_str(), c"/proc/");
    }
}
