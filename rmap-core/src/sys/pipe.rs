//! Pipes that hold pages of files: `splice` moves no bytes.

use super::memory::PAGE;
use super::{Errno, SysResult, raw};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// A pipe of our own, which nobody waits for.
#[derive(Debug)]
pub(crate) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    /// How many bytes of whole pages it holds.
    capacity: usize,
}

impl Pipe {
    /// With room for `bytes` of whole pages, if the kernel allows that (`pipe(7)`), or for fewer.
    pub(crate) fn new(bytes: usize) -> SysResult<Self> {
        let mut ends = [0i32; 2];
        let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as usize;
        // SAFETY: room for two descriptors.
        unsafe { raw::syscall(libc::SYS_pipe2, [ends.as_mut_ptr().expose_provenance(), flags, 0, 0, 0, 0]) }?;
        // SAFETY: the kernel just made these descriptors for us.
        let [reader, writer] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        let size = |command: i32, bytes: usize| {
            let args = [writer.as_raw_fd() as usize, command as usize, bytes, 0, 0, 0];
            // SAFETY: sets or gets a number.
            unsafe { raw::syscall(libc::SYS_fcntl, args) }
        };
        let capacity = match size(libc::F_GETPIPE_SZ, 0)? {
            enough if enough >= bytes => enough,
            less => size(libc::F_SETPIPE_SZ, bytes).unwrap_or(less),
        };
        Ok(Self { reader, writer, capacity: capacity & !(PAGE - 1) })
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Takes hold of pages of a file in memory, as they are from now on. Returns how many bytes of them.
    pub(crate) fn hold(&self, file: impl AsFd, offset: u64, len: usize) -> SysResult<usize> {
        let mut offset = offset.cast_signed();
        let (from, to) = (file.as_fd().as_raw_fd() as usize, self.writer.as_raw_fd() as usize);
        let place = core::ptr::from_mut(&mut offset).expose_provenance();
        // SAFETY: the kernel reads and writes the offset.
        unsafe { raw::syscall(libc::SYS_splice, [from, place, to, 0, len, libc::SPLICE_F_NONBLOCK as usize]) }
    }

    /// Copies what it holds to `addr`, and lets go of it. Returns how many bytes.
    ///
    /// # Safety
    /// Nobody else may use the target range meanwhile.
    pub(crate) unsafe fn copy_to(&self, addr: usize, len: usize) -> SysResult<usize> {
        loop {
            // SAFETY: the caller's promise; the kernel checks the range.
            match unsafe {
                raw::syscall(libc::SYS_read, [self.reader.as_raw_fd() as usize, addr, len, 0, 0, 0])
            } {
                Err(Errno::INTR) => {}
                read => return read,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memory::{self, MapFlags, ProtFlags};

    #[test]
    fn pages_are_held_beyond_a_punch_with_what_was_stored_last() {
        const LEN: usize = 8 * PAGE;
        let file = rustix::fs::memfd_create(c"pipe", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, LEN as u64).unwrap();
        let both = ProtFlags::READ | ProtFlags::WRITE;
        let view = memory::map(LEN, both, MapFlags::SHARED, file.as_fd(), 0).unwrap();
        let target = memory::map_anonymous(LEN, both, MapFlags::empty()).unwrap();
        let store = |at: usize, word: u64| {
            let place = core::ptr::with_exposed_provenance_mut::<u64>(view + at);
            // SAFETY: the mapping is this test's.
            unsafe { place.write_volatile(word) };
        };
        store(0, 1);
        store(7 * PAGE, 1);
        let pipe = Pipe::new(LEN).unwrap();
        assert!(pipe.capacity() >= LEN);
        assert_eq!(pipe.hold(&file, 0, LEN), Ok(LEN));
        store(7 * PAGE, 2);
        memory::punch(&file, 0, LEN as u64).unwrap();
        store(0, 3);
        // SAFETY: the target is this test's.
        assert_eq!(unsafe { pipe.copy_to(target, LEN) }, Ok(LEN));
        let words = [0, 3, 7].map(|page| {
            let place = core::ptr::with_exposed_provenance::<u64>(target + page * PAGE);
            // SAFETY: as above.
            unsafe { place.read_volatile() }
        });
        assert_eq!(words, [1, 0, 2]);
    }
}
