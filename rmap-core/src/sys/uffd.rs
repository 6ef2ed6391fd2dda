//! userfaultfd (`Documentation/admin-guide/mm/userfaultfd.rst`).

use super::features::Feature;
use super::{Errno, SysResult, event, procfs, raw};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const API: u64 = 0xaa;
const USER_MODE_ONLY: usize = 1;

/// Of `/dev/userfaultfd` (Linux 6.1).
const IOCTL_NEW: usize = 0xaa00;
const IOCTL_API: usize = 0xc018_aa3f;
const IOCTL_REGISTER: usize = 0xc020_aa00;
const IOCTL_UNREGISTER: usize = 0x8010_aa01;
const IOCTL_WAKE: usize = 0x8010_aa02;

const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const FEATURE_EVENT_REMAP: u64 = 1 << 2;
const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const FEATURE_EVENT_UNMAP: u64 = 1 << 6;
const FEATURE_THREAD_ID: u64 = 1 << 8;
/// Linux 5.18.
const FEATURE_EXACT_ADDRESS: u64 = 1 << 11;
/// Linux 5.19.
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
/// Linux 6.7: any kind of mapping may be registered.
const FEATURE_WP_ASYNC: u64 = 1 << 15;
/// Linux 6.8.
const FEATURE_MOVE: u64 = 1 << 16;

const IOCTL_COPY: usize = 0xc028_aa03;
const IOCTL_MOVE: usize = 0xc028_aa05;
const IOCTL_WRITEPROTECT: usize = 0xc018_aa06;
const FAULT_ON_PROTECTED: usize = 2;

const DEVICE: &core::ffi::CStr = c"/dev/userfaultfd";

const DO_NOT_WAKE: u64 = 1;

const MODE_MISSING: u64 = 1;
const MODE_WP: u64 = 2;

/// What a userfaultfd reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A thread touched a page that is not there, or stored to one that is write-protected, and sleeps.
    Fault { addr: usize, thread: u32, protected: bool },
    /// `mremap` moved a range.
    Moved { from: usize, to: usize, len: usize },
    /// `madvise` is about to drop the pages of a range.
    Dropping { start: usize, end: usize },
    /// A range was unmapped.
    Unmapped { start: usize, end: usize },
    /// Anything else.
    Other,
}

/// A userfaultfd.
#[derive(Debug)]
pub(crate) struct Userfaultfd {
    fd: OwnedFd,
    any_mapping: bool,
    moves: bool,
}

#[repr(C)]
struct ApiArgs {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct RangeArgs {
    start: u64,
    len: u64,
}

#[repr(C)]
struct ProtectArgs {
    range: RangeArgs,
    mode: u64,
}

/// Of `UFFDIO_COPY` and `UFFDIO_MOVE`.
#[repr(C)]
struct TransferArgs {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    done: i64,
}

#[repr(C)]
struct RegisterArgs {
    range: RangeArgs,
    mode: u64,
    ioctls: u64,
}

const FLAGS: usize = libc::O_CLOEXEC as usize | libc::O_NONBLOCK as usize | USER_MODE_ONLY;

/// Makes a userfaultfd through the device file, for which a container that refuses the system call may have a place. The system call needs no
/// right, but a seccomp filter may refuse it; the file needs the right to open it, and no system call that is refused.
fn from_device() -> SysResult<OwnedFd> {
    Feature::UserfaultfdDevice.check()?;
    let device = procfs::open(DEVICE)?;
    // SAFETY: creates a descriptor.
    let fd =
        unsafe { raw::syscall(libc::SYS_ioctl, [device.as_raw_fd() as usize, IOCTL_NEW, FLAGS, 0, 0, 0]) }?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn from_system_call() -> SysResult<OwnedFd> {
    Feature::Userfaultfd.check()?;
    // SAFETY: creates a descriptor.
    let fd = unsafe { raw::syscall(libc::SYS_userfaultfd, [FLAGS, 0, 0, 0, 0, 0]) }?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Whether the device file can be used.
pub(crate) fn device() -> SysResult<()> {
    from_device().map(drop)
}

/// Whether the system call can be used.
pub(crate) fn system_call() -> SysResult<()> {
    from_system_call().map(drop)
}

fn open(features: u64) -> SysResult<OwnedFd> {
    if features & FEATURE_EXACT_ADDRESS != 0 {
        Feature::ExactAddress.check()?;
    }
    if features & FEATURE_WP_ASYNC != 0 {
        Feature::WatchAny.check()?;
    }
    if features & FEATURE_MOVE != 0 {
        Feature::MovePages.check()?;
    }
    let fd = match from_system_call() {
        Err(refused @ (Errno::PERM | Errno::NOSYS | Errno::ACCESS)) => from_device().map_err(|_| refused)?,
        made => made?,
    };
    let mut args = ApiArgs { api: API, features, ioctls: 0 };
    ioctl(&fd, IOCTL_API, &mut args)?;
    Ok(fd)
}

fn ioctl<T>(fd: &OwnedFd, request: usize, args: &mut T) -> SysResult<()> {
    let args = core::ptr::from_mut(args).expose_provenance();
    // SAFETY: each request of this module is called with its own argument struct.
    unsafe { raw::syscall(libc::SYS_ioctl, [fd.as_raw_fd() as usize, request, args, 0, 0, 0]) }.map(drop)
}

impl Userfaultfd {
    /// Reports user-mode accesses to missing pages of shared memory, stores to protected ones, unmapping, and moves, which it survives.
    ///
    /// Linux 5.19; needs no privilege.
    pub(crate) fn for_missing_pages() -> SysResult<Self> {
        let protection = FEATURE_PAGEFAULT_FLAG_WP | FEATURE_WP_HUGETLBFS_SHMEM;
        let events = FEATURE_EVENT_REMAP | FEATURE_EVENT_UNMAP;
        let features = FEATURE_MISSING_SHMEM | FEATURE_THREAD_ID | events | protection;
        let fd = match open(features | FEATURE_EXACT_ADDRESS) {
            Err(Errno::INVAL) => open(features)?,
            opened => opened?,
        };
        Ok(Self { fd, any_mapping: false, moves: false })
    }

    /// Reports unmapping, moving and dropping of memory, and holds the caller until the report is read.
    ///
    /// Linux 5.19 for shared memory, 6.7 for any mapping; needs no privilege.
    pub(crate) fn for_events() -> SysResult<Self> {
        Self::for_these(FEATURE_EVENT_REMAP | FEATURE_EVENT_REMOVE | FEATURE_EVENT_UNMAP)
    }

    /// Reports unmapping and moving only, as [`for_events`](Self::for_events).
    pub(crate) fn for_unmapping() -> SysResult<Self> {
        Self::for_these(FEATURE_EVENT_REMAP | FEATURE_EVENT_UNMAP)
    }

    fn for_these(events: u64) -> SysResult<Self> {
        let shmem = events | FEATURE_PAGEFAULT_FLAG_WP | FEATURE_WP_HUGETLBFS_SHMEM;
        match open(shmem | FEATURE_WP_ASYNC) {
            Ok(fd) => Ok(Self { fd, any_mapping: true, moves: false }),
            Err(Errno::INVAL) => Ok(Self { fd: open(shmem)?, any_mapping: false, moves: false }),
            Err(errno) => Err(errno),
        }
    }

    /// Whether it reports the very byte that was touched (Linux 5.18).
    pub(crate) fn tells_exact_addresses() -> SysResult<()> {
        open(FEATURE_EXACT_ADDRESS).map(drop)
    }

    /// Copies pages, and moves them where the kernel can ([`moves_pages`](Self::moves_pages)). Reports nothing that happens to mappings.
    pub(crate) fn for_pages() -> SysResult<Self> {
        match open(FEATURE_MOVE) {
            Ok(fd) => Ok(Self { fd, any_mapping: false, moves: true }),
            Err(_) => Ok(Self { fd: open(0)?, any_mapping: false, moves: false }),
        }
    }

    /// Whether pages can be moved (Linux 6.8; needs no privilege).
    pub(crate) fn moves_pages(&self) -> bool {
        self.moves
    }

    /// Copies the memory at `from` to new pages at `to`, which must be trapped, and maps them; returns how many bytes it got through.
    ///
    /// # Errors
    /// `EEXIST`: shared memory has a page there.
    ///
    /// # Safety
    /// Nobody may rely on what `to` shows.
    pub(crate) unsafe fn copy_pages(&self, from: usize, to: usize, len: usize) -> SysResult<usize> {
        self.transfer(IOCTL_COPY, DO_NOT_WAKE, from, to, len)
    }

    /// Moves the pages that private anonymous memory has at `from` to `to`, which must be trapped; returns how many bytes it got through.
    ///
    /// # Errors
    /// `EBUSY`: the first page may be pinned, or another process has it too. `EAGAIN`: the kernel was busy with it.
    ///
    /// # Safety
    /// Nobody may use either range meanwhile, nor rely on what they show.
    pub(crate) unsafe fn move_pages(&self, from: usize, to: usize, len: usize) -> SysResult<usize> {
        const ALLOW_HOLES: u64 = 2;
        self.transfer(IOCTL_MOVE, DO_NOT_WAKE | ALLOW_HOLES, from, to, len)
    }

    fn transfer(&self, call: usize, mode: u64, from: usize, to: usize, len: usize) -> SysResult<usize> {
        let mut args = TransferArgs { to: to as u64, from: from as u64, len: len as u64, mode, done: 0 };
        match ioctl(&self.fd, call, &mut args) {
            Ok(()) => Ok(len),
            Err(Errno::AGAIN) if args.done > 0 => Ok(args.done as usize),
            Err(errno) => Err(errno),
        }
    }

    /// Whether mappings that are not shared memory can be registered for events.
    pub(crate) fn watches_any_mapping(&self) -> bool {
        self.any_mapping
    }

    fn register(&self, start: usize, len: usize, mode: u64) -> SysResult<()> {
        let range = RangeArgs { start: start as u64, len: len as u64 };
        ioctl(&self.fd, IOCTL_REGISTER, &mut RegisterArgs { range, mode, ioctls: 0 })
    }

    /// Traps missing pages of a range.
    pub(crate) fn trap(&self, start: usize, len: usize) -> SysResult<()> {
        self.register(start, len, MODE_MISSING)
    }

    /// Traps stores to a range of shared memory, and with `missing` every access to its missing pages.
    pub(crate) fn trap_stores(&self, start: usize, len: usize, missing: bool) -> SysResult<()> {
        const PROTECT: u64 = 1;
        self.register(start, len, if missing { MODE_MISSING | MODE_WP } else { MODE_WP })?;
        let range = RangeArgs { start: start as u64, len: len as u64 };
        ioctl(&self.fd, IOCTL_WRITEPROTECT, &mut ProtectArgs { range, mode: PROTECT })
    }

    /// Reports events of a range. Nothing is write-protected, so no access traps.
    pub(crate) fn watch(&self, start: usize, len: usize) -> SysResult<()> {
        self.register(start, len, MODE_WP)
    }

    /// Ends trap or watch of a range.
    pub(crate) fn forget(&self, start: usize, len: usize) -> SysResult<()> {
        ioctl(&self.fd, IOCTL_UNREGISTER, &mut RangeArgs { start: start as u64, len: len as u64 })
    }

    /// Lets the threads go on that sleep on a page of the range.
    pub(crate) fn wake(&self, start: usize, len: usize) -> SysResult<()> {
        ioctl(&self.fd, IOCTL_WAKE, &mut RangeArgs { start: start as u64, len: len as u64 })
    }

    /// Whether a report waits.
    pub(crate) fn has_report(&self) -> bool {
        event::is_readable(&self.fd)
    }

    /// Takes the oldest report, if there is one. A thread held by an event goes on now.
    pub(crate) fn read(&self) -> SysResult<Option<Event>> {
        let mut message = [0u8; 32];
        match rustix::io::read(&self.fd, &mut message) {
            Ok(32) => {}
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(errno) => return Err(errno),
        }
        let word = |at: usize| {
            let mut bytes = [0u8; 8];
            bytes.copy_from_slice(&message[at..at + 8]);
            u64::from_ne_bytes(bytes) as usize
        };
        Ok(Some(match message[0] {
            0x12 => Event::Fault {
                addr: word(16),
                thread: word(24) as u32,
                protected: word(8) & FAULT_ON_PROTECTED != 0,
            },
            0x14 => Event::Moved { from: word(8), to: word(16), len: word(24) },
            0x15 => Event::Dropping { start: word(8), end: word(16) },
            0x16 => Event::Unmapped { start: word(8), end: word(16) },
            _ => Event::Other,
        }))
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
