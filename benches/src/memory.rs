//! Memory of this process, copies, and page faults.

use std::{
    fs::File,
    io, mem,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr,
};

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// A mapping that goes when it is dropped.
#[derive(Debug)]
pub struct Memory {
    address: usize,
    len: usize,
}

impl Memory {
    fn map(len: usize, flags: i32, fd: i32) -> Self {
        // SAFETY: a new mapping where the kernel likes.
        let address = unsafe { libc::mmap(ptr::null_mut(), len, RW, flags, fd, 0) };
        assert_ne!(address, libc::MAP_FAILED, "mmap of {len} bytes: {}", io::Error::last_os_error());
        Self { address: address.expose_provenance(), len }
    }

    /// Private anonymous memory, not touched, in pages as the machine is set up to give them.
    pub fn private(len: usize) -> Self {
        Self::map(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1)
    }

    /// Private anonymous memory, not touched, for which huge pages are asked for or refused.
    pub fn private_in(len: usize, huge: bool) -> Self {
        let memory = Self::private(len);
        // SAFETY: a mapping of ours; the advice changes no bytes.
        unsafe { libc::madvise(memory.pointer(), len, advice(huge)) };
        memory
    }

    /// A file, shared.
    pub fn of(file: &File, len: usize) -> Self {
        Self::map(len, libc::MAP_SHARED, file.as_raw_fd())
    }

    /// Where it is.
    pub fn address(&self) -> usize {
        self.address
    }

    /// Its length.
    #[expect(clippy::len_without_is_empty, reason = "the kernel maps nothing that is empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    fn pointer(&self) -> *mut libc::c_void {
        ptr::with_exposed_provenance_mut(self.address)
    }

    /// Writes all of it.
    pub fn fill(&self, byte: u8) {
        // SAFETY: all of it is mapped for writing, and nobody has a reference into it.
        unsafe { ptr::write_bytes(self.pointer().cast::<u8>(), byte, self.len) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and unmapped once.
        unsafe { libc::munmap(self.pointer(), self.len) };
    }
}

/// The advice for or against huge pages.
pub fn advice(huge: bool) -> i32 {
    if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE }
}

/// A memory file of this length.
///
/// # Panics
///
/// If there is no descriptor left.
pub fn memfd(len: usize) -> File {
    use std::os::fd::FromRawFd as _;
    // SAFETY: a C string.
    let fd = unsafe { libc::memfd_create(c"rmap-bench".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "memfd_create: {}", io::Error::last_os_error());
    // SAFETY: a new descriptor, ours alone.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len as u64).expect("ftruncate");
    file
}

/// Copies with `memcpy`. Both ranges are mapped and apart; that is the caller's to see to.
#[inline]
pub fn copy(to: usize, from: usize, len: usize) {
    let (to, from) = (ptr::with_exposed_provenance_mut::<u8>(to), ptr::with_exposed_provenance::<u8>(from));
    // SAFETY: the benchmarks give addresses of mappings that they hold, of which no reference exists.
    unsafe { ptr::copy_nonoverlapping(from, to, len) };
    // The copy is not to be left out because nobody looks at it.
    std::hint::black_box(to);
}

/// Loads a byte of every page and gives the sum.
#[inline(never)]
pub fn touch(address: usize, len: usize) -> u64 {
    let byte = |at: usize| {
        let byte = ptr::with_exposed_provenance::<u8>(address + at);
        // SAFETY: as in `copy`. Another process may write meanwhile, so it is volatile.
        u64::from(unsafe { byte.read_volatile() })
    };
    (0..len).step_by(rmap_tests::PAGE).map(byte).sum()
}

/// Stores a byte into every page.
#[inline(never)]
pub fn dirty(address: usize, len: usize) {
    for at in (0..len).step_by(rmap_tests::PAGE) {
        // SAFETY: as in `touch`.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(address + at).write_volatile(1) };
    }
}

/// One of the two calls of CMA.
#[derive(Clone, Copy, Debug)]
pub enum Direction {
    /// `process_vm_readv`.
    Read,
    /// `process_vm_writev`.
    Write,
}

/// Copies between this process and another by the kernel.
///
/// # Errors
///
/// The errno of the call.
pub fn cma(direction: Direction, pid: i32, here: usize, there: usize, len: usize) -> io::Result<()> {
    let (mut done, mut pending) = (0, len);
    while pending > 0 {
        let vector = |base: usize| libc::iovec {
            iov_base: ptr::with_exposed_provenance_mut(base + done),
            iov_len: pending,
        };
        let (local, remote) = (vector(here), vector(there));
        // SAFETY: the kernel checks both ranges; `here` is memory that the benchmark holds.
        let copied = unsafe {
            match direction {
                Direction::Read => libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0),
                Direction::Write => {
                    libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0)
                }
            }
        };
        match usize::try_from(copied) {
            Ok(0) | Err(_) => return Err(io::Error::last_os_error()),
            Ok(copied) => (done, pending) = (done + copied, pending - copied),
        }
    }
    Ok(())
}

/// The page faults of this process that needed no disk.
pub fn faults() -> u64 {
    // SAFETY: all zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: a valid place.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    usage.ru_minflt.cast_unsigned()
}

/// What this thread has used of a core so far, in nanoseconds.
pub fn thread_time() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

/// Writes a buffer into a file over and over from the start, until `len` bytes are written: what a copy into the page cache costs.
///
/// # Panics
///
/// If the machine has no room for it.
pub fn write_to(file: BorrowedFd<'_>, from: usize, len: usize, chunk: usize) {
    for at in (0..len).step_by(chunk) {
        let part = chunk.min(len - at);
        let buffer = ptr::with_exposed_provenance(from + at);
        // SAFETY: a range of memory that the benchmark holds.
        let written = unsafe { libc::pwrite(file.as_raw_fd(), buffer, part, at as libc::off_t) };
        assert_eq!(written, part as isize, "pwrite: {}", io::Error::last_os_error());
    }
}

/// Bytes of memory that the machine can still give.
pub fn available() -> usize {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<usize>().ok());
    kib.unwrap_or(0) << 10
}
