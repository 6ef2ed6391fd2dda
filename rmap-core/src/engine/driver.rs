//! The driver engine: XPMEM's own kernel module, or what stands for it, does everything. Calls go through as they are, with the driver's ids.

use crate::abi;
use crate::counters::alone::Party;
use crate::error::{self, Error, Result, failed};
use crate::id::Id;
use crate::sys::device::{self, xpmem};
use crate::sys::fd;
use crate::sys::maps::FileId;
use crate::sys::{Errno, SysResult, procfs};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// The driver, as this process has opened it.
#[derive(Debug)]
pub(crate) struct Driver {
    /// Only one: closing any takes all that the process has from it.
    device: RwLock<Device>,
    version: i32,
}

#[derive(Debug)]
struct Device {
    fd: OwnedFd,
    id: FileId,
}

impl Device {
    fn open() -> SysResult<Self> {
        let fd = device::open(device::XPMEM)?;
        let id = FileId::of(&fd)?;
        fd::never_close(&fd);
        Ok(Self { fd, id })
    }
}

fn missing(errno: Errno) -> Error {
    error::missing("/dev/xpmem")(errno)
}

/// Gives the driver's answer its name here.
fn refused(call: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| match errno {
        Errno::INVAL => Error::Invalid("the driver does not accept the arguments"),
        Errno::NOENT => Error::NoSuchId,
        Errno::ACCESS => Error::Denied,
        Errno::BUSY => Error::OutOfIds,
        errno => failed(call)(errno),
    }
}

/// Who has made a segment, by the number that the driver puts into its ids, and its user; 0 if that is not seen from here.
pub(crate) fn maker(segment: Id) -> Party {
    let pid = segment.to_raw() as u32;
    (pid, procfs::user_of(pid).unwrap_or(0))
}

impl Driver {
    /// Opens the device.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if it is not there.
    pub(crate) fn open() -> Result<Self> {
        let device = Device::open().map_err(missing)?;
        let version = xpmem::version(&device.fd).map_err(missing)?;
        Ok(Self { device: RwLock::new(device), version })
    }

    pub(crate) fn version(&self) -> i32 {
        self.version
    }

    /// The device, unless the application has closed it.
    fn device(&self) -> Result<RwLockReadGuard<'_, Device>> {
        let device = self.device.read().unwrap_or_else(PoisonError::into_inner);
        if FileId::of(&device.fd) == Ok(device.id) {
            return Ok(device);
        }
        Err(Error::Unsupported { what: "a descriptor of this library's own", errno: Errno::BADF })
    }

    /// Makes a call that starts anew where the driver does not know the process: it is a child that was forked without our knowledge.
    fn call_anew(&self, name: &'static str, call: impl Fn(&OwnedFd) -> SysResult<i64>) -> Result<Id> {
        let unknown = Errno::from_raw_os_error(abi::NOPROC);
        let mut made = call(&self.device()?.fd);
        if made == Err(unknown) {
            *self.device.write().unwrap_or_else(PoisonError::into_inner) = Device::open().map_err(missing)?;
            made = call(&self.device()?.fd);
        }
        Id::from_raw(made.map_err(refused(name))?).ok_or(Error::Invalid("the driver's id is not positive"))
    }

    pub(crate) fn make(
        &self,
        vaddr: usize,
        size: usize,
        permit_type: i32,
        permit_value: usize,
    ) -> Result<Id> {
        self.call_anew("XPMEM_CMD_MAKE", |device| {
            let (vaddr, permit_value) = (vaddr as u64, permit_value as u64);
            let mut make = abi::Make { vaddr, size, permit_type, permit_value, segid: 0 };
            xpmem::make(device, &mut make).map(|()| make.segid)
        })
    }

    pub(crate) fn remove(&self, segment: Id) -> Result<()> {
        xpmem::remove(&self.device()?.fd, segment.to_raw()).map_err(refused("XPMEM_CMD_REMOVE"))
    }

    pub(crate) fn get(&self, segment: Id, flags: i32, permit_type: i32) -> Result<Id> {
        self.call_anew("XPMEM_CMD_GET", |device| {
            let mut get = abi::Get { segid: segment.to_raw(), flags, permit_type, permit_value: 0, apid: 0 };
            xpmem::get(device, &mut get).map(|()| get.apid)
        })
    }

    pub(crate) fn release(&self, permit: Id) -> Result<()> {
        xpmem::release(&self.device()?.fd, permit.to_raw()).map_err(refused("XPMEM_CMD_RELEASE"))
    }

    /// # Safety
    /// With a `vaddr`, nobody may rely on what is mapped there now.
    pub(crate) unsafe fn attach(&self, permit: Id, offset: i64, size: usize, vaddr: usize) -> Result<usize> {
        let vaddr = vaddr as u64;
        let mut attach = abi::Attach { apid: permit.to_raw(), offset, size, vaddr, fd: -1, flags: 0 };
        // SAFETY: the caller's promise.
        let attached = unsafe { xpmem::attach(&self.device()?.fd, &mut attach) };
        attached.map(|()| attach.vaddr as usize).map_err(refused("XPMEM_CMD_ATTACH"))
    }

    /// Removes the attachment that covers `vaddr`; nothing there is no error.
    ///
    /// # Safety
    /// Nobody may use the attachment afterwards.
    pub(crate) unsafe fn detach(&self, vaddr: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { xpmem::detach(&self.device()?.fd, vaddr) }.map_err(refused("XPMEM_CMD_DETACH"))
    }

    /// In a forked child, which the driver does not know: closes the parent's descriptor, which takes nothing from the parent.
    pub(crate) fn forget_after_fork(&self) {
        // Another thread of the parent may have held it.
        let Ok(device) = self.device.try_read() else { return };
        fd::may_close();
        if FileId::of(&device.fd) == Ok(device.id) {
            // SAFETY: ours, and nothing in the child refers to it any more: the driver is opened anew.
            drop(unsafe { OwnedFd::from_raw_fd(device.fd.as_raw_fd()) });
        }
    }
}
