//! Character devices that take requests: XPMEM's, and that of the mirror module.

use super::{Errno, SysResult, raw};
use core::ffi::CStr;
use rustix::fs::{FileType, Mode, OFlags};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// The mirror module's device.
pub(crate) const MIRROR: &CStr = c"/dev/rmap";
/// XPMEM's device.
pub(crate) const XPMEM: &CStr = c"/dev/xpmem";

/// Opens a character device.
///
/// # Errors
/// `ENODEV` if the path is something else.
pub(crate) fn open(path: &CStr) -> SysResult<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let is_device = |mode| FileType::from_raw_mode(mode) == FileType::CharacterDevice;
    if !is_device(rustix::fs::stat(path)?.st_mode) {
        return Err(Errno::NODEV);
    }
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    if is_device(rustix::fs::fstat(&fd)?.st_mode) { Ok(fd) } else { Err(Errno::NODEV) }
}

/// Makes a request whose argument is a struct of integers, which the device may write back.
fn request<T: Copy>(fd: impl AsFd, number: u32, argument: &mut T) -> SysResult<usize> {
    let fd = fd.as_fd().as_raw_fd() as usize;
    let argument = core::ptr::from_mut(argument).expose_provenance();
    // SAFETY: callers in this module pass the struct that the request takes; it lives through the call.
    unsafe { raw::syscall(libc::SYS_ioctl, [fd, number as usize, argument, 0, 0, 0]) }
}

/// XPMEM's requests (spec 1.2).
pub(crate) mod xpmem {
    use super::{AsFd, SysResult, request};
    use crate::abi;

    pub(crate) fn version(fd: impl AsFd) -> SysResult<i32> {
        request(fd, abi::VERSION, &mut 0u64).map(|version| version as i32)
    }

    pub(crate) fn make(fd: impl AsFd, argument: &mut abi::Make) -> SysResult<()> {
        request(fd, abi::MAKE, argument).map(drop)
    }

    pub(crate) fn remove(fd: impl AsFd, mut segid: i64) -> SysResult<()> {
        request(fd, abi::REMOVE, &mut segid).map(drop)
    }

    pub(crate) fn get(fd: impl AsFd, argument: &mut abi::Get) -> SysResult<()> {
        request(fd, abi::GET, argument).map(drop)
    }

    pub(crate) fn release(fd: impl AsFd, mut apid: i64) -> SysResult<()> {
        request(fd, abi::RELEASE, &mut apid).map(drop)
    }

    /// # Safety
    /// With a `vaddr`, nobody may rely on what is mapped there now.
    pub(crate) unsafe fn attach(fd: impl AsFd, argument: &mut abi::Attach) -> SysResult<()> {
        request(fd, abi::ATTACH, argument).map(drop)
    }

    /// # Safety
    /// Nobody may use the attachment afterwards.
    pub(crate) unsafe fn detach(fd: impl AsFd, vaddr: usize) -> SysResult<()> {
        request(fd, abi::DETACH, &mut (vaddr as u64)).map(drop)
    }
}

/// The mirror module's requests (`linux-rmap/rmap.h`).
pub(crate) mod mirror {
    use super::{AsFd, Errno, FromRawFd, OwnedFd, SysResult, request};
    use crate::range::Range;

    const fn number(request: u32) -> u32 {
        0xe9 << 8 | request
    }
    const INFO: u32 = number(0);
    const BIND: u32 = number(1);
    const ACCESS: u32 = number(2);
    const MAP: u32 = number(3);
    const REVOKE: u32 = number(6);

    const API_VERSION: u64 = 1;
    const BIND_SELF: u64 = 1;
    const BIND_REVOKE_ON_CLOSE: u64 = 1 << 8;
    const ACCESS_READ: u64 = 1;
    const ACCESS_WRITE: u64 = 2;

    /// Every struct is an array of 64-bit numbers, of which the first is its size.
    fn ask<const N: usize>(fd: impl AsFd, number: u32, members: [u64; N]) -> SysResult<(usize, [u64; N])> {
        let mut members = members;
        members[0] = size_of::<[u64; N]>() as u64;
        let result = request(fd, number, &mut members)?;
        Ok((result, members))
    }

    /// Whether the module speaks the version of the interface that is used here.
    pub(crate) fn is_known(control: impl AsFd) -> SysResult<bool> {
        let (_, [_, version, ..]) = ask(control, INFO, [0; 5])?;
        Ok(version == API_VERSION)
    }

    /// Chooses this process as the one that is shown, until the descriptor is closed.
    pub(crate) fn bind_self(control: impl AsFd) -> SysResult<()> {
        ask(control, BIND, [0, BIND_SELF | BIND_REVOKE_ON_CLOSE, 0]).map(drop)
    }

    /// Shows a range, at offsets equal to its addresses.
    pub(crate) fn show(control: impl AsFd, range: Range) -> SysResult<()> {
        let (start, len) = (range.start() as u64, range.len() as u64);
        ask(control, MAP, [0, 0, start, start, len]).map(drop)
    }

    /// A descriptor of what is shown, to be mapped by others.
    pub(crate) fn access(control: impl AsFd, writable: bool) -> SysResult<OwnedFd> {
        let flags = ACCESS_READ | if writable { ACCESS_WRITE } else { 0 };
        let (fd, _) = ask(control, ACCESS, [0, flags])?;
        // SAFETY: the module has just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    /// Shows nothing any more. When this returns, nobody reaches the memory.
    pub(crate) fn revoke(control: impl AsFd) -> SysResult<()> {
        ask(control, REVOKE, [0; 2]).map(drop)
    }

    /// Whether a descriptor is one that the module has made to be mapped.
    pub(crate) fn is_access(fd: impl AsFd, writable: bool) -> SysResult<bool> {
        /// `RMAP_FS_MAGIC`
        const MAGIC: u64 = 0x726d_6170;
        let mode = rustix::fs::fcntl_getfl(&fd)? & rustix::fs::OFlags::ACCMODE;
        let wanted = if writable { rustix::fs::OFlags::RDWR } else { rustix::fs::OFlags::RDONLY };
        match rustix::fs::fstatfs(&fd) {
            Ok(about) => Ok(about.f_type as u64 == MAGIC && mode == wanted),
            Err(Errno::NOSYS) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}
