//! The process that is looked into, as `/proc` shows it.

use crate::error::{Error, Result, failed, failed_io};
use core::ops::Range;
use procfs::ProcError;
use procfs::process::{MMapPath, MemoryMap, Process as Entry};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// Bytes in a page.
pub(crate) const PAGE: usize = 4096;

/// What a thread of a process has open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    process: i32,
    thread: i32,
    number: i32,
}

impl Descriptor {
    /// By this it can be opened anew.
    pub(crate) fn path(self) -> String {
        format!("/proc/{}/task/{}/fd/{}", self.process, self.thread, self.number)
    }

    /// Its number, if it is in the table of the first thread.
    pub(crate) fn of_first_thread(self) -> Option<i32> {
        (self.thread == self.process).then_some(self.number)
    }
}

/// A process. Every look at it is at this very process, also when its id has a new owner.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    entry: Entry,
    handle: OwnedFd,
    memory: File,
}

impl Process {
    /// Opens a process that may be traced.
    pub(crate) fn open(pid: i32) -> Result<Self> {
        let gone = |_| Error::NoProcess(pid);
        let number = Pid::from_raw(pid).filter(|_| pid > 0).ok_or(Error::NoProcess(pid))?;
        let handle = rustix::process::pidfd_open(number, PidfdFlags::empty()).map_err(gone)?;
        let entry = Entry::new(pid).map_err(|_| Error::NoProcess(pid))?;
        // Opening it asks for the right to trace the process.
        let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"));
        let memory = memory.map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::SRCH) => Error::NoProcess(pid),
            _ => Error::NotAllowed(pid),
        })?;
        let process = Self { pid, entry, handle, memory };
        // Its number may have had a new owner between the two.
        if process.lives() { Ok(process) } else { Err(Error::NoProcess(pid)) }
    }

    /// Whether it has not ended.
    pub(crate) fn lives(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut ended = [PollFd::new(&self.handle, PollFlags::IN)];
        poll(&mut ended, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(0)
    }

    /// Reads its memory, also where it may not itself.
    pub(crate) fn read(&self, addr: usize, bytes: &mut [u8]) -> Result<()> {
        self.memory.read_exact_at(bytes, addr as u64).map_err(failed_io("read of /proc/PID/mem"))
    }

    /// Writes to its memory.
    pub(crate) fn write(&self, addr: usize, bytes: &[u8]) -> Result<()> {
        self.memory.write_all_at(bytes, addr as u64).map_err(failed_io("write to /proc/PID/mem"))
    }

    /// Its memory, as a file.
    pub(crate) fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// A descriptor for what it has open as `number`.
    pub(crate) fn descriptor(&self, number: i32) -> Result<OwnedFd> {
        rustix::process::pidfd_getfd(&self.handle, number, PidfdGetfdFlags::empty())
            .map_err(failed("pidfd_getfd"))
    }

    /// Its descriptors that are of this file. Threads may have tables of their own (`CLONE_FILES`): those are looked into where the first
    /// thread's has none.
    pub(crate) fn descriptors_of(&self, device: (i32, i32), inode: u64) -> Vec<Descriptor> {
        let found = self.descriptors_in(self.pid, device, inode);
        if !found.is_empty() {
            return found;
        }
        let threads = self.threads().unwrap_or_default().into_iter().filter(|thread| *thread != self.pid);
        threads
            .map(|thread| self.descriptors_in(thread, device, inode))
            .find(|found| !found.is_empty())
            .unwrap_or_default()
    }

    fn descriptors_in(&self, thread: i32, device: (i32, i32), inode: u64) -> Vec<Descriptor> {
        let table = std::fs::read_dir(format!("/proc/{}/task/{thread}/fd", self.pid));
        let names = table.into_iter().flatten().flatten().map(|entry| entry.file_name());
        let numbers = names.filter_map(|name| name.to_str()?.parse().ok());
        let found = numbers.map(|number| Descriptor { process: self.pid, thread, number });
        let is_it = |descriptor: &Descriptor| {
            rustix::fs::stat(descriptor.path()).is_ok_and(|stat| {
                let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
                stat.st_ino == inode && (major.cast_signed(), minor.cast_signed()) == device
            })
        };
        found.filter(is_it).collect()
    }

    /// Its threads now.
    pub(crate) fn threads(&self) -> Result<Vec<i32>> {
        let tasks = self.entry.tasks().map_err(|error| self.explain("/proc/PID/task", &error))?;
        Ok(tasks.flatten().map(|task| task.tid).collect())
    }

    /// Whether one of its threads is gone, or only waits to be reaped.
    pub(crate) fn has_exited(&self, thread: i32) -> bool {
        let state = self.entry.task_from_tid(thread).and_then(|task| task.stat()).map(|stat| stat.state);
        state.map_or(true, |state| matches!(state, 'Z' | 'X' | 'x'))
    }

    /// Its mappings in a range, in order, with their flags.
    pub(crate) fn mappings(&self, range: &Range<usize>) -> Result<Vec<MemoryMap>> {
        let maps = self.entry.smaps().map_err(|error| self.explain("/proc/PID/smaps", &error))?;
        let overlaps =
            |map: &MemoryMap| (map.address.0 as usize) < range.end && range.start < map.address.1 as usize;
        Ok(maps.into_iter().filter(overlaps).collect())
    }

    /// All its mappings, without flags, which is quicker.
    pub(crate) fn all_mappings(&self) -> Result<Vec<MemoryMap>> {
        let maps = self.entry.maps().map_err(|error| self.explain("/proc/PID/maps", &error))?;
        Ok(maps.into_iter().collect())
    }

    /// The runs of pages that exist in a range of private memory.
    pub(crate) fn existing(&self, range: &Range<usize>) -> Result<Vec<Range<usize>>> {
        use procfs::process::PageInfo;
        let mut map = self.entry.pagemap().map_err(|error| self.explain("/proc/PID/pagemap", &error))?;
        let pages = map.get_range_info(range.start / PAGE..range.end / PAGE);
        let pages = pages.map_err(|error| self.explain("/proc/PID/pagemap", &error))?;
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (index, page) in pages.iter().enumerate() {
            let there = match page {
                PageInfo::MemoryPage(flags) => flags.contains(procfs::process::MemoryPageFlags::PRESENT),
                PageInfo::SwapPage(flags) => flags.contains(procfs::process::SwapPageFlags::SWAP),
            };
            let start = range.start + index * PAGE;
            match runs.last_mut() {
                Some(run) if there && run.end == start => run.end += PAGE,
                _ if there => runs.push(start..start + PAGE),
                _ => {}
            }
        }
        Ok(runs)
    }

    /// Whether it can be led through system calls, and its memory be moved.
    pub(crate) fn check_movable(&self) -> Result<()> {
        let status = self.entry.status().map_err(|error| self.explain("/proc/PID/status", &error))?;
        if status.seccomp.is_some_and(|mode| mode != 0) {
            return Err(Error::Filtered(self.pid));
        }
        if status.tracerpid != 0 {
            return Err(Error::Traced(self.pid));
        }
        let has_ring = |map: &MemoryMap| {
            let MMapPath::Path(path) = &map.pathname else { return false };
            let name = path.as_os_str().as_encoded_bytes();
            name.starts_with(b"anon_inode:[io_uring]") || name.starts_with(b"/[aio]")
        };
        if status.vmpin.is_some_and(|kib| kib != 0) || self.all_mappings()?.iter().any(has_ring) {
            return Err(Error::Pinned(self.pid));
        }
        Ok(())
    }

    fn explain(&self, call: &'static str, error: &ProcError) -> Error {
        match error {
            ProcError::PermissionDenied(_) => Error::NotAllowed(self.pid),
            _ if !self.lives() => Error::NoProcess(self.pid),
            ProcError::Io(error, _) => failed_io(call)(std::io::Error::from(error.kind())),
            _ => Error::Failed { call, errno: Errno::IO },
        }
    }
}
