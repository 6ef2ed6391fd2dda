//! Mapping calls on raw addresses. Whether an address may be touched is the caller's business.

use super::features::Feature;
use super::{Errno, SysResult, raw};
use core::ffi::c_void;
use core::ptr;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm;

pub(crate) use rustix::mm::{MapFlags, ProtFlags};

/// Bytes in a page. x86-64 has one base page size.
pub(crate) const PAGE: usize = 4096;

/// Bytes in a huge page.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

fn pointer(addr: usize) -> *mut c_void {
    ptr::with_exposed_provenance_mut(addr)
}

/// Maps `fd` at `offset` somewhere the kernel chooses.
pub(crate) fn map(
    len: usize,
    prot: ProtFlags,
    flags: MapFlags,
    fd: BorrowedFd<'_>,
    offset: u64,
) -> SysResult<usize> {
    // SAFETY: without MAP_FIXED a new mapping overlaps nothing that exists.
    let at = unsafe { mm::mmap(ptr::null_mut(), len, prot, flags - MapFlags::FIXED, fd, offset) }?;
    Ok(at.expose_provenance())
}

/// Maps anonymous private memory somewhere the kernel chooses.
pub(crate) fn map_anonymous(len: usize, prot: ProtFlags, flags: MapFlags) -> SysResult<usize> {
    // SAFETY: without MAP_FIXED a new mapping overlaps nothing that exists.
    let at = unsafe {
        mm::mmap_anonymous(ptr::null_mut(), len, prot, (flags | MapFlags::PRIVATE) - MapFlags::FIXED)
    }?;
    Ok(at.expose_provenance())
}

/// Maps anonymous memory. If it has room for a huge page, the address agrees with `other` modulo their size: so huge pages of one
/// can be mapped at, or moved to, the other as such.
pub(crate) fn map_agreeing(len: usize, other: usize, prot: ProtFlags) -> SysResult<usize> {
    let slack = if len >= HUGE_PAGE { HUGE_PAGE } else { 0 };
    let all = map_anonymous(len + slack, prot, MapFlags::NORESERVE)?;
    if slack == 0 {
        return Ok(all);
    }
    let base = all + (other.wrapping_sub(all) & (HUGE_PAGE - 1));
    for (start, end) in [(all, base), (base + len, all + len + slack)] {
        if start < end {
            // SAFETY: the ends of our own mapping.
            let _ = unsafe { unmap(start, end - start) };
        }
    }
    Ok(base)
}

/// Maps `fd` at `addr` (Linux 4.17).
///
/// # Errors
/// `EEXIST`: something is mapped in the range.
pub(crate) fn map_where_nothing_is(
    addr: usize,
    len: usize,
    prot: ProtFlags,
    flags: MapFlags,
    fd: BorrowedFd<'_>,
    offset: u64,
) -> SysResult<()> {
    let flags = (flags - MapFlags::FIXED) | MapFlags::FIXED_NOREPLACE;
    // SAFETY: the kernel refuses to map over anything that exists.
    unsafe { mm::mmap(pointer(addr), len, prot, flags, fd, offset) }?;
    Ok(())
}

/// Maps `fd` over `addr`, replacing what is there.
///
/// # Safety
/// Nobody may rely on what `[addr, addr + len)` maps now, or the new mapping must show the same bytes.
pub(crate) unsafe fn map_over(
    addr: usize,
    len: usize,
    prot: ProtFlags,
    flags: MapFlags,
    fd: BorrowedFd<'_>,
    offset: u64,
) -> SysResult<()> {
    // SAFETY: the caller's promise.
    unsafe { mm::mmap(pointer(addr), len, prot, flags | MapFlags::FIXED, fd, offset) }?;
    Ok(())
}

/// Removes the mappings in `[addr, addr + len)`.
///
/// # Safety
/// Nobody may use that memory afterwards.
pub(crate) unsafe fn unmap(addr: usize, len: usize) -> SysResult<()> {
    // SAFETY: the caller's promise.
    unsafe { mm::munmap(pointer(addr), len) }
}

/// Moves the mapping at `from` to `to`, replacing what is there, in one step.
///
/// # Safety
/// Nobody may use `from` afterwards, nor rely on what `to` maps now.
pub(crate) unsafe fn move_over(from: usize, len: usize, to: usize) -> SysResult<()> {
    // SAFETY: the caller's promise.
    unsafe {
        mm::mremap_fixed(pointer(from), len, len, mm::MremapFlags::MAYMOVE, pointer(to))?;
    }
    Ok(())
}

/// Changes the protection of a whole range.
///
/// # Safety
/// Accesses to the range that the new protection refuses will fault.
pub(crate) unsafe fn protect(addr: usize, len: usize, prot: ProtFlags) -> SysResult<()> {
    // SAFETY: the caller's promise; the kernel refuses bits it does not know.
    unsafe { raw::syscall(libc::SYS_mprotect, [addr, len, prot.bits() as usize, 0, 0, 0]) }.map(drop)
}

/// Gives the pages of a range of private memory back: it is zero afterwards.
///
/// # Safety
/// Nobody needs what is there.
pub(crate) unsafe fn discard(addr: usize, len: usize) -> SysResult<()> {
    let args = [addr, len, libc::MADV_DONTNEED as usize, 0, 0, 0];
    // SAFETY: the caller's promise.
    unsafe { raw::syscall(libc::SYS_madvise, args) }.map(drop)
}

/// Gives the kernel advice that does not change contents.
pub(crate) fn advise(addr: usize, len: usize, advice: libc::c_int) -> SysResult<()> {
    debug_assert!(matches!(
        advice,
        libc::MADV_DONTFORK
            | libc::MADV_DOFORK
            | libc::MADV_WIPEONFORK
            | libc::MADV_KEEPONFORK
            | libc::MADV_MERGEABLE
            | libc::MADV_UNMERGEABLE
            | libc::MADV_DONTDUMP
            | libc::MADV_DODUMP
            | libc::MADV_HUGEPAGE
            | libc::MADV_NOHUGEPAGE
    ));
    // SAFETY: the advices above leave the bytes alone.
    unsafe { raw::syscall(libc::SYS_madvise, [addr, len, advice as usize, 0, 0, 0]) }.map(drop)
}

/// Has the kernel put huge pages in place of the small ones of a range that maps a file in memory (Linux 6.1). The bytes stay the
/// same. The range begins and ends at borders of huge pages.
///
/// # Errors
/// `EINVAL` where the kernel cannot or may not; others where it could not now. Some of the range may have huge pages then.
pub(crate) fn collapse(addr: usize, len: usize) -> SysResult<()> {
    Feature::Collapse.check()?;
    // SAFETY: the advice leaves the bytes alone.
    unsafe { raw::syscall(libc::SYS_madvise, [addr, len, libc::MADV_COLLAPSE as usize, 0, 0, 0]) }.map(drop)
}

/// Whether a block of memory may have huge pages, as far as advice and `prctl` say (Linux 6.1). `block` is at the border of a huge page,
/// and the mapping has all of it.
pub(crate) fn may_collapse(block: usize) -> SysResult<bool> {
    // Of one page: whether it may be is looked at, and then there is no whole block to do it for.
    match collapse(block, PAGE) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Whether the mapping of a page is locked into memory.
pub(crate) fn is_locked(page: usize) -> SysResult<bool> {
    // SAFETY: without MS_SYNC it does nothing but look.
    let asked = unsafe { raw::syscall(libc::SYS_msync, [page, PAGE, libc::MS_INVALIDATE as usize, 0, 0, 0]) };
    match asked {
        Ok(_) => Ok(false),
        Err(Errno::BUSY) => Ok(true),
        Err(errno) => Err(errno),
    }
}

/// Whether the mapping of a page, which has this protection, is one that the kernel makes longer at its low end.
pub(crate) fn grows_down(page: usize, prot: ProtFlags) -> SysResult<bool> {
    let prot = prot.bits() as usize | libc::PROT_GROWSDOWN as usize;
    // SAFETY: sets the protection that the mapping has anyway.
    match unsafe { raw::syscall(libc::SYS_mprotect, [page, PAGE, prot, 0, 0, 0]) } {
        Ok(_) => Ok(true),
        Err(Errno::INVAL) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Does what a store to each page of a range would do, without changing a byte: the pages are the process's alone then (Linux 5.14).
pub(crate) fn populate_for_stores(addr: usize, len: usize) -> SysResult<()> {
    Feature::Populate.check()?;
    // SAFETY: the advice leaves the bytes alone.
    unsafe { raw::syscall(libc::SYS_madvise, [addr, len, libc::MADV_POPULATE_WRITE as usize, 0, 0, 0]) }
        .map(drop)
}

/// Does what a load from each page of a range would do (Linux 5.14).
pub(crate) fn populate_for_loads(addr: usize, len: usize) -> SysResult<()> {
    Feature::Populate.check()?;
    // SAFETY: the advice leaves the bytes alone.
    unsafe { raw::syscall(libc::SYS_madvise, [addr, len, libc::MADV_POPULATE_READ as usize, 0, 0, 0]) }
        .map(drop)
}

fn knows_advice(advice: libc::c_int) -> SysResult<()> {
    // SAFETY: an empty range.
    unsafe { raw::syscall(libc::SYS_madvise, [0, 0, advice as usize, 0, 0, 0]) }.map(drop)
}

/// Whether the kernel knows [`collapse`].
pub(crate) fn can_collapse() -> SysResult<()> {
    Feature::Collapse.check()?;
    knows_advice(libc::MADV_COLLAPSE)
}

/// Whether the kernel knows [`populate_for_stores`] and [`populate_for_loads`].
pub(crate) fn can_populate() -> SysResult<()> {
    Feature::Populate.check()?;
    knows_advice(libc::MADV_POPULATE_WRITE).and_then(|()| knows_advice(libc::MADV_POPULATE_READ))
}

/// Whether memory can be made that its receiver cannot shrink, and that only its maker can write.
pub(crate) fn can_seal() -> SysResult<()> {
    sealed_memfd(c"rmap-probe", PAGE as u64).and_then(|fd| {
        Feature::SealedMemory.check()?;
        rustix::fs::fcntl_get_seals(&fd).map(drop)
    })
}

/// Ends the lock of a range.
pub(crate) fn unlock(addr: usize, len: usize) -> SysResult<()> {
    // SAFETY: munlock does not change contents.
    unsafe { raw::syscall(libc::SYS_munlock, [addr, len, 0, 0, 0, 0]) }.map(drop)
}

/// Locks a range into memory, as it was locked before.
pub(crate) fn lock(addr: usize, len: usize) -> SysResult<()> {
    // SAFETY: mlock does not change contents.
    unsafe { raw::syscall(libc::SYS_mlock, [addr, len, 0, 0, 0, 0]) }.map(drop)
}

/// Sets protection and protection key of a range.
///
/// # Safety
/// As [`protect`].
pub(crate) unsafe fn protect_with_key(addr: usize, len: usize, prot: ProtFlags, key: u32) -> SysResult<()> {
    // SAFETY: the caller's promise.
    unsafe { raw::syscall(libc::SYS_pkey_mprotect, [addr, len, prot.bits() as usize, key as usize, 0, 0]) }
        .map(drop)
}

/// Whether files may be as large as `size`: if not, the kernel would send SIGXFSZ to whoever tries.
///
/// # Errors
/// `EFBIG` where `RLIMIT_FSIZE` is smaller.
pub(crate) fn check_file_limit(size: u64) -> SysResult<()> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize);
    if limit.current.is_some_and(|bytes| bytes < size) { Err(Errno::FBIG) } else { Ok(()) }
}

/// Whether the process may have only so much address space (`ulimit -v`).
pub(crate) fn address_space_is_limited() -> bool {
    rustix::process::getrlimit(rustix::process::Resource::As).current.is_some()
}

/// Creates a sparse file in memory of `size` bytes that nobody can grow or shrink, readable and writable only through its descriptors
/// by other users.
///
/// # Errors
/// `EFBIG` where `RLIMIT_FSIZE` is smaller than `size`.
pub(crate) fn sealed_memfd(name: &core::ffi::CStr, size: u64) -> SysResult<OwnedFd> {
    check_file_limit(size)?;
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, size)?;
    rustix::fs::fchmod(&fd, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    Feature::SealedMemory.check()?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

/// Frees the pages of `[offset, offset + len)`: every mapping of them, in any process, loses them before this returns.
pub(crate) fn punch(fd: impl AsFd, offset: u64, len: u64) -> SysResult<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::io::retry_on_intr(|| rustix::fs::fallocate(&fd, flags, offset, len))
}

/// Gives `[offset, offset + len)` zeroed pages where it has none.
pub(crate) fn allocate(fd: impl AsFd, offset: u64, len: u64) -> SysResult<()> {
    rustix::io::retry_on_intr(|| rustix::fs::fallocate(&fd, FallocateFlags::KEEP_SIZE, offset, len))
}

/// Writes `len` bytes of this process's memory at `addr` to `fd` at `offset`; returns how many were written.
///
/// The kernel reads the memory: an address that is not readable gives `EFAULT`, not a signal.
pub(crate) fn write_from(fd: impl AsFd, addr: usize, len: usize, offset: u64) -> SysResult<usize> {
    use std::os::fd::AsRawFd;
    let fd = fd.as_fd().as_raw_fd() as usize;
    // SAFETY: pwrite64 only reads the range, and checks it.
    unsafe { raw::syscall(libc::SYS_pwrite64, [fd, addr, len, offset as usize, 0, 0]) }
}

/// Copies `len` bytes of this process's memory from `from` to `to`; returns how many were copied.
///
/// The kernel copies: an address that may not be read, or not be written, gives `EFAULT`, not a signal.
///
/// # Safety
/// Nobody else may use the target range meanwhile.
pub(crate) unsafe fn copy_by_kernel(from: usize, to: usize, len: usize) -> SysResult<usize> {
    let (from, to) = ([from, len], [to, len]);
    let this = rustix::process::getpid().as_raw_nonzero().get() as usize;
    let vectors = [to.as_ptr().expose_provenance(), from.as_ptr().expose_provenance()];
    // SAFETY: the caller's promise; the kernel checks both ranges.
    unsafe { raw::syscall(libc::SYS_process_vm_readv, [this, vectors[0], 1, vectors[1], 1, 0]) }
}

/// Reads `len` bytes of `fd` at `offset` to `addr`; returns how many were read.
///
/// # Safety
/// Nobody else may use the target range meanwhile.
pub(crate) unsafe fn read_to(fd: impl AsFd, addr: usize, len: usize, offset: u64) -> SysResult<usize> {
    use std::os::fd::AsRawFd;
    let fd = fd.as_fd().as_raw_fd() as usize;
    // SAFETY: the caller's promise; the kernel checks the range.
    unsafe { raw::syscall(libc::SYS_pread64, [fd, addr, len, offset as usize, 0, 0]) }
}

/// The words at `addr`, if they can be read.
pub(crate) fn words_at<const N: usize>(addr: usize) -> Option<[usize; N]> {
    let mut words = [0; N];
    let len = size_of_val(&words);
    // SAFETY: the array is ours.
    let copied = unsafe { copy_by_kernel(addr, words.as_mut_ptr().expose_provenance(), len) };
    (copied == Ok(len)).then_some(words)
}

/// The highest address a user mapping may end at (`TASK_SIZE`).
pub(crate) fn task_size() -> usize {
    const FOUR_LEVELS: usize = (1 << 47) - PAGE;
    const FIVE_LEVELS: usize = (1 << 56) - PAGE;
    let probe = 1 << 50;
    // SAFETY: FIXED_NOREPLACE never replaces a mapping.
    let at = unsafe {
        mm::mmap_anonymous(
            pointer(probe),
            PAGE,
            ProtFlags::empty(),
            MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE,
        )
    };
    match at {
        Ok(at) => {
            // SAFETY: the page was just mapped and nobody knows it.
            let _ = unsafe { mm::munmap(at, PAGE) };
            if at.addr() == probe { FIVE_LEVELS } else { FOUR_LEVELS }
        }
        Err(Errno::EXIST) => FIVE_LEVELS,
        Err(_) => FOUR_LEVELS,
    }
}
