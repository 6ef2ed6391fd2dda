//! Descriptors: a table of one's own, those that other threads have, and files behind mappings.

use super::maps::FileId;
use super::procfs::{self, PathBuffer};
use super::{Errno, SysResult, raw, thread};
use core::ffi::CStr;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

/// A descriptor that the library keeps in the table of one thread, for the life of the process.
#[derive(Debug)]
pub(crate) struct Kept {
    /// -1 before there is one.
    number: AtomicI32,
    thread: AtomicU32,
    /// Which file it is.
    device: AtomicU64,
    inode: AtomicU64,
}

impl Kept {
    pub(crate) const fn none() -> Self {
        Self {
            number: AtomicI32::new(-1),
            thread: AtomicU32::new(0),
            device: AtomicU64::new(0),
            inode: AtomicU64::new(0),
        }
    }

    /// Keeps a descriptor, unless another thread is faster.
    pub(crate) fn keep(&self, fd: OwnedFd) -> SysResult<()> {
        let file = FileId::of(&fd)?;
        let (none, number) = (-1, fd.as_raw_fd());
        if self.number.compare_exchange(none, number, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            let _ = fd.into_raw_fd();
            self.thread.store(thread::id(), Ordering::Relaxed);
            self.device.store(u64::from(file.major) << 32 | u64::from(file.minor), Ordering::Relaxed);
            self.inode.store(file.inode, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The descriptor, if there is one. For threads that have the table.
    pub(crate) fn get(&self) -> Option<BorrowedFd<'_>> {
        let number = self.number.load(Ordering::Acquire);
        // SAFETY: it is closed only by `close`, after whose call nobody uses it.
        (number >= 0).then(|| unsafe { BorrowedFd::borrow_raw(number) })
    }

    /// The same, unless the application has closed it: it is in the application's table.
    pub(crate) fn get_if_there(&self) -> Option<BorrowedFd<'_>> {
        self.get().filter(|fd| FileId::of(fd).ok() == self.file())
    }

    /// A new descriptor of the file, to be written, out of the application's table. For threads that have another.
    pub(crate) fn reopen_of_process(&self) -> SysResult<OwnedFd> {
        let file = self.file().ok_or(Errno::BADF)?;
        let path = PathBuffer::format(format_args!("/proc/self/fd/{}", self.number.load(Ordering::Acquire)));
        open_as(path.as_c_str(), file, true)
    }

    /// Which file is kept. For any thread.
    pub(crate) fn file(&self) -> Option<FileId> {
        let (device, inode) = (self.device.load(Ordering::Relaxed), self.inode.load(Ordering::Relaxed));
        (inode != 0).then_some(FileId { major: (device >> 32) as u32, minor: device as u32, inode })
    }

    /// A new descriptor of the file, to be read. For any thread.
    pub(crate) fn reopen_to_read(&self) -> SysResult<OwnedFd> {
        let (number, thread) = (self.number.load(Ordering::Acquire), self.thread.load(Ordering::Relaxed));
        let path = PathBuffer::format(format_args!("/proc/self/task/{thread}/fd/{number}"));
        open_as(path.as_c_str(), self.file().ok_or(Errno::BADF)?, false)
    }

    /// Forgets the descriptor: the table that it was in is gone, or not this thread's.
    pub(crate) fn forget(&self) {
        self.number.store(-1, Ordering::Release);
        self.inode.store(0, Ordering::Relaxed);
    }

    /// Closes it. Nobody may use it any more.
    pub(crate) fn close(&self) {
        let number = self.number.load(Ordering::Acquire);
        self.forget();
        if number >= 0 {
            // SAFETY: the number was kept in this table, and nobody uses it any more (callers).
            drop(unsafe { OwnedFd::from_raw_fd(number) });
        }
    }
}

fn flags(writable: bool) -> OFlags {
    // NONBLOCK and NOCTTY: a path may have become something else than the file that was mapped.
    let access = if writable { OFlags::RDWR } else { OFlags::RDONLY };
    access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY
}

fn open_as(path: &CStr, file: FileId, writable: bool) -> SysResult<OwnedFd> {
    let fd = rustix::fs::open(path, flags(writable), Mode::empty())?;
    if FileId::of(&fd)? == file { Ok(fd) } else { Err(Errno::STALE) }
}

/// A new descriptor of the same file as `fd`, with its own access mode.
pub(crate) fn reopen(fd: impl AsFd, writable: bool) -> SysResult<OwnedFd> {
    let path = PathBuffer::format(format_args!("/proc/thread-self/fd/{}", fd.as_fd().as_raw_fd()));
    rustix::fs::open(path.as_c_str(), flags(writable), Mode::empty())
}

/// Whether a descriptor allows to write.
pub(crate) fn is_writable(fd: impl AsFd) -> SysResult<bool> {
    Ok(rustix::fs::fcntl_getfl(fd)? & OFlags::RWMODE != OFlags::RDONLY)
}

/// Whether a sparse file has a page at an offset. Moves where the open file is read next.
pub(crate) fn has_data(fd: impl AsFd, offset: u64) -> SysResult<bool> {
    match rustix::fs::seek(fd, rustix::fs::SeekFrom::Data(offset)) {
        Ok(found) => Ok(found == offset),
        Err(Errno::NXIO) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Bytes in the pages of a file of hugetlbfs; `None` for other files.
pub(crate) fn huge_page_size(fd: impl AsFd) -> SysResult<Option<usize>> {
    const HUGETLBFS: u64 = 0x9584_58f6;
    let about = rustix::fs::fstatfs(fd)?;
    Ok((about.f_type as u64 == HUGETLBFS).then_some(about.f_bsize as usize))
}

/// Opens the file that is mapped at `[start, end)`: by its path, by a descriptor that another thread of this process has, or through
/// the map itself (privileged).
pub(crate) fn of_mapping(
    path: &[u8],
    file: FileId,
    range: (usize, usize),
    writable: bool,
) -> SysResult<OwnedFd> {
    let mut buffer = [0u8; libc::PATH_MAX as usize];
    if path.starts_with(b"/") && path.len() < buffer.len() {
        buffer[..path.len()].copy_from_slice(path);
        if let Ok(path) = CStr::from_bytes_until_nul(&buffer)
            && let Ok(fd) = open_as(path, file, writable)
        {
            return Ok(fd);
        }
    }
    // This thread's: what was given to shared memory of the application. Then the application's.
    if let Some(fd) = of_thread(thread::id(), file, writable).1.or_else(|| of_another_thread(file, writable))
    {
        return Ok(fd);
    }
    let path = PathBuffer::format(format_args!("/proc/self/map_files/{:x}-{:x}", range.0, range.1));
    open_as(path.as_c_str(), file, writable)
}

/// Opens a file anew of which another thread of this process has a descriptor. The threads share their tables, so one is asked: the first
/// that has any.
fn of_another_thread(file: FileId, writable: bool) -> Option<OwnedFd> {
    let (mut found, mut asked) = (None, false);
    let tasks = procfs::open(c"/proc/self/task").ok()?;
    let _ = procfs::each_numbered_entry(&tasks, |tid| {
        if !asked && tid != thread::id() {
            (asked, found) = of_thread(tid, file, writable);
        }
    });
    found
}

/// Whether a thread has descriptors, and what it has of this file, opened anew. A thread that has ended has none.
fn of_thread(tid: u32, file: FileId, writable: bool) -> (bool, Option<OwnedFd>) {
    let (mut found, mut has_any) = (None, false);
    let table = PathBuffer::format(format_args!("/proc/self/task/{tid}/fd"));
    let Ok(table) = procfs::open(table.as_c_str()) else { return (false, None) };
    let _ = procfs::each_numbered_entry(&table, |number| {
        has_any = true;
        if found.is_some() {
            return;
        }
        let path = PathBuffer::format(format_args!("/proc/self/task/{tid}/fd/{number}"));
        // Looking does not wake a FIFO or a device.
        let same = rustix::fs::stat(path.as_c_str()).is_ok_and(|stat| {
            stat.st_ino == file.inode
                && rustix::fs::major(stat.st_dev) == file.major
                && rustix::fs::minor(stat.st_dev) == file.minor
        });
        if same {
            found = open_as(path.as_c_str(), file, writable).ok();
        }
    });
    (has_any, found)
}

/// Whether [`leave_shared_table`] may be tried: a sandbox may refuse its call.
pub(crate) fn may_leave_shared_table() -> SysResult<()> {
    let none = u32::MAX as usize;
    // SAFETY: no descriptor has this number.
    unsafe { raw::syscall(libc::SYS_close_range, [none, none, 0, 0, 0, 0]) }.map(drop)
}

/// The number of a descriptor that is not closed in any table; -1 if there is none.
static NEVER_CLOSED: AtomicI32 = AtomicI32::new(-1);

/// Has tables that threads are given later keep this descriptor: its driver takes the closing of any copy for the end of the process.
pub(crate) fn never_close(fd: impl AsFd) {
    NEVER_CLOSED.store(fd.as_fd().as_raw_fd(), Ordering::Release);
}

/// Takes back [`never_close`].
pub(crate) fn may_close() {
    NEVER_CLOSED.store(-1, Ordering::Release);
}

/// Gives the calling thread a table of descriptors of its own. What its process has is not in it, but for standard error if that is to be
/// kept, and what [`never_close`] names (`CLOSE_RANGE_UNSHARE`, Linux 5.9).
pub(crate) fn leave_shared_table(keep_standard_error: bool) -> SysResult<()> {
    const UNSHARE: usize = 2;
    let standard_error = keep_standard_error.then_some(libc::STDERR_FILENO as usize);
    let never_closed = usize::try_from(NEVER_CLOSED.load(Ordering::Acquire)).ok();
    let mut kept = [standard_error, never_closed].map(|number| number.map_or(0, |number| number + 1));
    kept.sort_unstable();
    // From the top: what is above need not even be copied to the new table.
    let mut last = u32::MAX as usize;
    let mut flags = UNSHARE;
    for first in kept.into_iter().rev().chain([0]) {
        if first <= last {
            // SAFETY: nothing of what the calling thread does from now on refers to a descriptor of before (it has none yet: callers).
            unsafe { raw::syscall(libc::SYS_close_range, [first, last, flags, 0, 0, 0]) }?;
            flags = 0;
        }
        let Some(below) = first.checked_sub(2) else { break };
        last = below;
    }
    // The places of the standard streams are not for anything else: somebody may write to them.
    loop {
        let placeholder = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC)?;
        if placeholder.as_raw_fd() > libc::STDERR_FILENO {
            return Ok(());
        }
        let _ = placeholder.into_raw_fd();
    }
}

/// A descriptor of another thread of this process, which may have another table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lent {
    thread: u32,
    number: i32,
    file: FileId,
}

impl Lent {
    /// Lends `fd` of the calling thread, for as long as that keeps it open.
    pub(crate) fn by_this_thread(fd: impl AsFd) -> SysResult<Self> {
        let fd = fd.as_fd();
        Ok(Self { thread: thread::id(), number: fd.as_raw_fd(), file: FileId::of(fd)? })
    }

    /// Closes what was lent, unless the application has closed it and has another file in its place by now.
    pub(crate) fn end(self, fd: OwnedFd) {
        if FileId::of(&fd) != Ok(self.file) {
            let _ = fd.into_raw_fd();
        }
    }

    /// Makes a descriptor of the same open file, for the calling thread (Linux 5.6).
    ///
    /// # Errors
    /// `EBADF` before Linux 6.9, where the first thread of the process has ended; others where a sandbox forbids it.
    pub(crate) fn take(self) -> SysResult<OwnedFd> {
        const OF_ONE_THREAD: usize = libc::O_EXCL as usize;
        let open = |id: u32, flags| {
            // SAFETY: makes a descriptor.
            unsafe { raw::syscall(libc::SYS_pidfd_open, [id as usize, flags, 0, 0, 0, 0]) }
        };
        let process = rustix::process::getpid().as_raw_nonzero().get() as u32;
        let owner = match open(self.thread, OF_ONE_THREAD) {
            Err(Errno::INVAL) => open(process, 0)?,
            opened => opened?,
        };
        // SAFETY: the kernel just made this descriptor for us.
        let owner = unsafe { OwnedFd::from_raw_fd(owner as i32) };
        let args = [owner.as_raw_fd() as usize, self.number as usize, 0, 0, 0, 0];
        // SAFETY: makes a descriptor.
        let taken = unsafe { raw::syscall(libc::SYS_pidfd_getfd, args) }?;
        // SAFETY: the kernel just made this descriptor for us.
        let taken = unsafe { OwnedFd::from_raw_fd(taken as i32) };
        if FileId::of(&taken)? == self.file { Ok(taken) } else { Err(Errno::BADF) }
    }
}

/// Passes a descriptor on that is to stay open, if it leaves room for those that are needed for a moment.
///
/// # Errors
/// `EMFILE` if it does not.
pub(crate) fn to_last(fd: OwnedFd) -> SysResult<OwnedFd> {
    const ROOM: u64 = 8;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    // The lowest free number is given out first.
    let fits = limit.is_none_or(|limit| u64::from(fd.as_raw_fd().unsigned_abs()) + ROOM < limit);
    if fits { Ok(fd) } else { Err(Errno::MFILE) }
}
