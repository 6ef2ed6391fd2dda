//! Getting at the file behind a mapping.

use super::maps::FileId;
use super::procfs::{self, PathBuffer};
use super::{Errno, SysResult, spare};
use core::ffi::CStr;
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

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
