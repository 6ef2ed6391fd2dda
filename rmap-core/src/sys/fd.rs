//! Getting at the file behind a mapping.

use super::maps::FileId;
use super::procfs::{self, PathBuffer};
use super::{Errno, SysResult, spare};
use core::ffi::CStr;
use core::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

/// A descriptor of the library's own that stays open for the life of the process, unless the application closes what is not its own.
#[derive(Debug)]
pub(crate) struct Kept {
    /// -1 before there is one.
    number: AtomicI32,
    /// Which file it is: there may be another in its place.
    device: AtomicU64,
    inode: AtomicU64,
}

impl Kept {
    pub(crate) const fn none() -> Self {
        Self { number: AtomicI32::new(-1), device: AtomicU64::new(0), inode: AtomicU64::new(0) }
    }

    fn device(file: FileId) -> u64 {
        u64::from(file.major) << 32 | u64::from(file.minor)
    }

    /// Keeps a descriptor. For one thread at a time.
    pub(crate) fn keep(&self, fd: OwnedFd) -> SysResult<()> {
        let file = FileId::of(&fd)?;
        self.device.store(Self::device(file), Ordering::Relaxed);
        self.inode.store(file.inode, Ordering::Relaxed);
        self.number.store(fd.into_raw_fd(), Ordering::Release);
        Ok(())
    }

    /// The descriptor, if there is one.
    pub(crate) fn get(&self) -> Option<BorrowedFd<'_>> {
        let number = self.number.load(Ordering::Acquire);
        // SAFETY: it is only closed in a forked child, where nobody uses it any more.
        (number >= 0).then(|| unsafe { BorrowedFd::borrow_raw(number) })
    }

    /// The descriptor, if it is still what was kept.
    pub(crate) fn get_if_there(&self) -> Option<BorrowedFd<'_>> {
        self.get().filter(|fd| {
            FileId::of(fd).is_ok_and(|file| {
                Self::device(file) == self.device.load(Ordering::Relaxed)
                    && file.inode == self.inode.load(Ordering::Relaxed)
            })
        })
    }

    /// Closes it in a forked child. What the application has in its place stays.
    pub(crate) fn close_after_fork(&self) {
        let there = self.get_if_there().is_some();
        let number = self.number.swap(-1, Ordering::AcqRel);
        if there {
            // SAFETY: the number is ours, and nobody in the child refers to it any more.
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
    let fd = spare::instead_of_one(|| rustix::fs::open(path, flags(writable), Mode::empty()))?;
    if FileId::of(&fd)? == file { Ok(fd) } else { Err(Errno::STALE) }
}

/// A new descriptor of the same file as `fd`, with its own access mode.
pub(crate) fn reopen(fd: impl AsFd, writable: bool) -> SysResult<OwnedFd> {
    let path = PathBuffer::format(format_args!("/proc/thread-self/fd/{}", fd.as_fd().as_raw_fd()));
    rustix::fs::open(path.as_c_str(), flags(writable), Mode::empty())
}

/// Bytes in the pages of a file of hugetlbfs; `None` for other files.
pub(crate) fn huge_page_size(fd: impl AsFd) -> SysResult<Option<usize>> {
    const HUGETLBFS: u64 = 0x9584_58f6;
    let about = rustix::fs::fstatfs(fd)?;
    Ok((about.f_type as u64 == HUGETLBFS).then_some(about.f_bsize as usize))
}

/// Opens the file that is mapped at `[start, end)`: by its path, by a descriptor that this process has, or through the map itself
/// (privileged).
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
    let dir = procfs::look_into(c"/proc/thread-self/fd")?;
    let mut found = None;
    procfs::each_numbered_entry(&dir, |number| {
        if found.is_none() {
            let path = PathBuffer::format(format_args!("/proc/thread-self/fd/{number}"));
            // A path descriptor does not wake a FIFO or a device.
            let same = rustix::fs::stat(path.as_c_str()).is_ok_and(|stat| {
                stat.st_ino == file.inode
                    && rustix::fs::major(stat.st_dev) == file.major
                    && rustix::fs::minor(stat.st_dev) == file.minor
            });
            if same {
                found = open_as(path.as_c_str(), file, writable).ok();
            }
        }
    })?;
    if let Some(fd) = found {
        return Ok(fd);
    }
    let path = PathBuffer::format(format_args!("/proc/self/map_files/{:x}-{:x}", range.0, range.1));
    open_as(path.as_c_str(), file, writable)
}
