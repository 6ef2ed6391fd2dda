//! System V shared memory, which has no descriptor.

use super::memory::{self, HUGE_PAGE, PAGE};
use super::{Errno, SysResult, raw};

/// Who may use a segment, and how large it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Info {
    pub(crate) owner: u32,
    pub(crate) creator: u32,
    pub(crate) bytes: usize,
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
    if offset.checked_add(len).is_none_or(|end| end > total) {
        return Err(Errno::INVAL);
    }
    let flags = if writable { 0 } else { libc::SHM_RDONLY as usize };
    // SAFETY: address 0 lets the kernel choose a free place.
    let at = unsafe { raw::syscall(libc::SYS_shmat, [id as usize, 0, flags, 0, 0, 0]) }?;
    // SAFETY: the mapping at `at` is ours alone; `addr` is the caller's promise.
    unsafe {
        let moved = memory::move_over(at + offset, len, addr);
        if memory::unmap(at, total) == Err(Errno::INVAL) {
            // Of huge pages, which are mapped whole.
            let _ = memory::unmap(at, total.next_multiple_of(HUGE_PAGE));
        }
        moved
    }
}
