//! The kernel's own mapping, by the module `rmap` (`linux-rmap/rmap.h`).

use crate::error::{Error, Result, failed, failed_io};
use crate::process::Process;
use crate::stopped::last_errno;
use crate::view::View;
use core::ops::Range;
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const DEVICE: &str = "/dev/rmap";

const BIND: libc::c_ulong = 0xe901;
const ACCESS: libc::c_ulong = 0xe902;
const MAP: libc::c_ulong = 0xe903;

const BIND_MEM: u64 = 1 << 1;
const REVOKE_ON_CLOSE: u64 = 1 << 8;
const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;

/// What keeps the mapping true.
#[derive(Debug)]
pub(crate) struct Mirror {
    _control: File,
    /// Its offsets are the other process's addresses.
    access: OwnedFd,
}

impl Mirror {
    /// Copies bytes out. A hole is an error, not a signal.
    pub(crate) fn read(&self, addr: usize, bytes: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let at = (addr + done) as u64;
            done += count(rustix::io::pread(&self.access, &mut bytes[done..], at), "pread", addr + done)?;
        }
        Ok(())
    }

    /// Copies bytes in.
    pub(crate) fn write(&self, addr: usize, bytes: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let at = (addr + done) as u64;
            done += count(rustix::io::pwrite(&self.access, &bytes[done..], at), "pwrite", addr + done)?;
        }
        Ok(())
    }
}

fn count(result: rustix::io::Result<usize>, call: &'static str, addr: usize) -> Result<usize> {
    match result {
        // `BADF`: it was not opened for writing.
        Ok(0) | Err(Errno::IO | Errno::BADF) => Err(Error::Hole(addr)),
        Ok(count) => Ok(count),
        Err(errno) => Err(failed(call)(errno)),
    }
}

/// Whether the module is there, and this user may use it.
pub(crate) fn is_there() -> bool {
    OpenOptions::new().read(true).write(true).open(DEVICE).is_ok()
}

fn request<const N: usize>(
    file: &File,
    name: &'static str,
    number: libc::c_ulong,
    members: [u64; N],
) -> Result<i32> {
    let mut arguments = [0; 5];
    arguments[0] = (8 * (N + 1)) as u64;
    arguments[1..=N].copy_from_slice(&members);
    // SAFETY: each structure of the interface begins with its size, and has that many 64-bit members.
    match unsafe { libc::ioctl(file.as_raw_fd(), number, arguments.as_mut_ptr()) } {
        -1 => Err(failed(name)(last_errno())),
        result => Ok(result),
    }
}

/// Has the view show `range` of the process.
pub(crate) fn show(process: &Process, range: &Range<usize>, view: &View, writable: bool) -> Result<Mirror> {
    let control =
        OpenOptions::new().read(true).write(true).open(DEVICE).map_err(failed_io("open of /dev/rmap"))?;
    let target = process.memory().as_raw_fd() as u64;
    request(&control, "RMAP_IOC_BIND", BIND, [BIND_MEM | REVOKE_ON_CLOSE, target])?;
    let rights = if writable { READ | WRITE } else { READ };
    let access = request(&control, "RMAP_IOC_ACCESS", ACCESS, [rights])?;
    // SAFETY: the kernel just made this descriptor for us.
    let access = unsafe { OwnedFd::from_raw_fd(access) };
    let (start, len) = (range.start as u64, range.len() as u64);
    request(&control, "RMAP_IOC_MAP", MAP, [0, start, start, len])?;
    view.show(range, access.as_fd(), start)?;
    Ok(Mirror { _control: control, access })
}
