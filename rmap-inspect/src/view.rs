//! Where the memory is shown in this process.

use crate::error::{Error, Result, failed};
use crate::stopped::last_errno;
use core::ops::Range;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use std::os::fd::BorrowedFd;

/// A part of this process's address space that stands for a range of the other's. Parts that show nothing cannot be touched.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) range: Range<usize>,
    at: *mut core::ffi::c_void,
    protection: ProtFlags,
}

// SAFETY: the mapping belongs to the whole process; it is read and written by system calls, which may race with others' stores as all
// shared memory may.
unsafe impl Send for View {}

impl View {
    /// Reserves room.
    pub(crate) fn of(range: Range<usize>, writable: bool) -> Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping.
        let at = unsafe {
            rustix::mm::mmap_anonymous(core::ptr::null_mut(), range.len(), ProtFlags::empty(), flags)
        };
        let mut protection = ProtFlags::READ;
        protection.set(ProtFlags::WRITE, writable);
        Ok(Self { at: at.map_err(failed("mmap"))?, range, protection })
    }

    /// Where `addr` of the other process is shown.
    pub(crate) fn at(&self, addr: usize) -> *mut u8 {
        self.at.cast::<u8>().wrapping_add(addr - self.range.start)
    }

    /// Has `part` show a file from `offset` on.
    pub(crate) fn show(&self, part: &Range<usize>, file: BorrowedFd<'_>, offset: u64) -> Result<()> {
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: inside our own reservation.
        unsafe {
            rustix::mm::mmap(self.at(part.start).cast(), part.len(), self.protection, flags, file, offset)
        }
        .map(drop)
        .map_err(failed("mmap"))
    }

    /// Has `part` show nothing.
    pub(crate) fn hide(&self, part: &Range<usize>) -> Result<()> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: inside our own reservation.
        unsafe {
            rustix::mm::mmap_anonymous(self.at(part.start).cast(), part.len(), ProtFlags::empty(), flags)
        }
        .map(drop)
        .map_err(failed("mmap"))
    }

    /// Is all of this in the range?
    pub(crate) fn check(&self, addr: usize, len: usize) -> Result<()> {
        let end = addr.checked_add(len).ok_or(Error::NoRange)?;
        if addr < self.range.start || end > self.range.end {
            return Err(Error::Hole(if addr < self.range.start { addr } else { self.range.end }));
        }
        Ok(())
    }

    /// Copies bytes out. A hole is an error, not a signal.
    pub(crate) fn read(&self, addr: usize, bytes: &mut [u8]) -> Result<()> {
        self.transfer(libc::process_vm_readv, addr, bytes.as_mut_ptr(), bytes.len())
    }

    /// Copies bytes in.
    pub(crate) fn write(&self, addr: usize, bytes: &[u8]) -> Result<()> {
        self.transfer(libc::process_vm_writev, addr, bytes.as_ptr().cast_mut(), bytes.len())
    }

    /// The kernel copies from this process to this process: it does not mind what is not there.
    fn transfer(
        &self,
        call: unsafe extern "C" fn(
            libc::pid_t,
            *const libc::iovec,
            libc::c_ulong,
            *const libc::iovec,
            libc::c_ulong,
            libc::c_ulong,
        ) -> isize,
        addr: usize,
        local: *mut u8,
        len: usize,
    ) -> Result<()> {
        self.check(addr, len)?;
        let mut done = 0;
        while done < len {
            let local = libc::iovec { iov_base: local.wrapping_add(done).cast(), iov_len: len - done };
            let there = libc::iovec { iov_base: self.at(addr + done).cast(), iov_len: len - done };
            // SAFETY: the caller's buffer has `len` bytes; the other side is inside our own mapping.
            match unsafe { call(libc::getpid(), &raw const local, 1, &raw const there, 1, 0) } {
                -1 if last_errno() == Errno::FAULT => return Err(Error::Hole(addr + done)),
                -1 => return Err(failed("process_vm_readv")(last_errno())),
                0 => return Err(Error::Hole(addr + done)),
                count => done += count.cast_unsigned(),
            }
        }
        Ok(())
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody else knows.
        let _ = unsafe { rustix::mm::munmap(self.at, self.range.len()) };
    }
}
