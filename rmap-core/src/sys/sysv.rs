//! System V shared memory, which has no descriptor.

use super::maps::{FileId, Maps};
use super::memory::{self, PAGE};
use super::{Errno, SysResult, procfs, raw};
use core::ffi::CStr;
use std::os::fd::OwnedFd;

/// Who may use a segment, and how large it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Info {
    pub(crate) owner: u32,
    pub(crate) creator: u32,
    pub(crate) bytes: usize,
}

/// The IPC namespace of the calling thread: numbers of segments mean something in one only.
const NAMESPACE: &CStr = c"/proc/thread-self/ns/ipc";

/// Opens the namespace that the calling thread attaches segments in. `None` where the kernel has but one.
pub(crate) fn namespace() -> SysResult<Option<OwnedFd>> {
    match procfs::open(NAMESPACE) {
        Err(Errno::NOENT) => Ok(None),
        opened => opened.map(Some),
    }
}

/// Whether the calling thread attaches segments in this namespace.
pub(crate) fn is_in(namespace: Option<&OwnedFd>) -> SysResult<bool> {
    match (self::namespace()?, namespace) {
        (Some(own), Some(other)) => Ok(FileId::of(own)? == FileId::of(other)?),
        (Some(_), None) => Ok(false),
        (None, _) => Ok(true),
    }
}

/// Asks about segment `id`.
pub(crate) fn info(id: u32) -> SysResult<Info> {
    // SAFETY: an all-zero shmid_ds is valid, and the kernel fills it.
    let (result, data) = unsafe {
        let mut data: libc::shmid_ds = core::mem::zeroed();
        let pointer = core::ptr::from_mut(&mut data).expose_provenance();
        (raw::syscall(libc::SYS_shmctl, [id as usize, libc::IPC_STAT as usize, pointer, 0, 0, 0]), data)
    };
    result?;
    Ok(Info { owner: data.shm_perm.uid, creator: data.shm_perm.cuid, bytes: data.shm_segsz })
}

/// Maps `[offset, offset + len)` of segment `id` over `addr`.
///
/// # Safety
/// As [`memory::map_over`].
pub(crate) unsafe fn map_over(
    id: u32,
    offset: usize,
    len: usize,
    addr: usize,
    writable: bool,
) -> SysResult<()> {
    let total = info(id)?.bytes.next_multiple_of(PAGE);
    let flags = if writable { 0 } else { libc::SHM_RDONLY as usize };
    let maps = Maps::new()?;
    // SAFETY: address 0 lets the kernel choose a free place.
    let at = unsafe { raw::syscall(libc::SYS_shmat, [id as usize, 0, flags, 0, 0, 0]) }?;
    // It ends with a page, which may be a huge one.
    let end = maps.at(at).map_or(at + total, |vma| vma.end);
    let to = offset.checked_add(len).filter(|to| *to <= end - at).map(|to| at + to);
    // What is not wanted goes first: the kernel refuses to cut a huge page, and moving a part of one would move all of it.
    let mut left = (at, end);
    // SAFETY: the mapping at `at` is ours alone; `addr` is the caller's promise.
    unsafe {
        let moved = to.ok_or(Errno::INVAL).and_then(|to| {
            unmap(at, at + offset)?;
            left.0 = at + offset;
            unmap(to, end)?;
            left.1 = to;
            memory::move_over(left.0, len, addr)
        });
        moved.inspect_err(|_| {
            let _ = unmap(left.0, left.1);
        })
    }
}

/// Unmaps what is between two addresses, if anything.
///
/// # Safety
/// As [`memory::unmap`].
unsafe fn unmap(start: usize, end: usize) -> SysResult<()> {
    if start >= end {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    unsafe { memory::unmap(start, end - start) }
}
