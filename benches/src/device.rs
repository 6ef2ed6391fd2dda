//! XPMEM's kernel module, where it is loaded: the same memory through `/dev/xpmem`, to compare with.
//!
//! The commands are sent as XPMEM's own library sends them, so that this needs no second `libxpmem.so`.

use rmap_tests::{Actor, MAXADDR, PERMIT_MODE, RDWR};
use std::{fmt::Write as _, fs::File, io, os::fd::AsRawFd as _, path::Path, ptr};

const PATH: &str = "/dev/xpmem";

const MAKE: usize = 0x7801;
const GET: usize = 0x7803;
const ATTACH: usize = 0x7805;
const DETACH: usize = 0x7806;

/// What MAKE takes, as words: address, size, permit type (32 bits), permit value; gives the segment in the last.
fn make_words() -> [u64; 5] {
    [0, MAXADDR as u64, PERMIT_MODE.unsigned_abs().into(), 0o600, 0]
}

/// A permit of the kernel module's for all memory of an actor.
#[derive(Debug)]
pub struct Device {
    file: File,
    apid: u64,
}

/// Whether the kernel module is there.
pub fn is_there() -> bool {
    Path::new(PATH).exists()
}

impl Device {
    /// Has the actor make a segment of its whole address space, and gets it. `None` where there is no kernel module.
    ///
    /// # Panics
    ///
    /// If the module is there and refuses.
    pub fn open(exporter: &mut Actor) -> Option<Self> {
        if !is_there() {
            return None;
        }
        let name = exporter.text(PATH);
        let flags = libc::O_RDWR.unsigned_abs() as usize;
        let descriptor = exporter
            .sys(libc::SYS_openat, &[libc::AT_FDCWD.cast_unsigned() as usize, name, flags])
            .expect("the actor opens /dev/xpmem");
        let mut hex = String::new();
        for byte in make_words().iter().flat_map(|word| word.to_ne_bytes()) {
            let _ = write!(hex, "{byte:02x}");
        }
        let argument = exporter.number(&format!("text {hex}"));
        exporter.sys(libc::SYS_ioctl, &[descriptor, MAKE, argument]).expect("MAKE");
        let segid = exporter.load(argument + 4 * size_of::<u64>()).expect("the segment");
        let file = File::options().read(true).write(true).open(PATH).expect("/dev/xpmem opens");
        let device = Self { file, apid: 0 };
        // Flags and permit type share a word.
        let kinds = u64::from(RDWR.unsigned_abs()) | u64::from(PERMIT_MODE.unsigned_abs()) << 32;
        let mut get = [segid, kinds, 0, 0];
        device.command(GET, get.as_mut_ptr()).expect("GET");
        Some(Self { apid: get[3], ..device })
    }

    fn command(&self, command: usize, argument: *mut u64) -> io::Result<()> {
        // SAFETY: the argument has the words of the command's struct.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), command as libc::c_ulong, argument) };
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Attaches.
    ///
    /// # Panics
    ///
    /// If the module refuses.
    pub fn attach(&self, offset: usize, len: usize) -> usize {
        let mut attach = [self.apid, offset as u64, len as u64, 0, 0];
        self.command(ATTACH, attach.as_mut_ptr()).expect("ATTACH");
        attach[3] as usize
    }

    /// Detaches.
    ///
    /// # Panics
    ///
    /// If the module refuses.
    pub fn detach(&self, address: usize) {
        let mut detach = [address as u64];
        self.command(DETACH, ptr::from_mut(&mut detach).cast()).expect("DETACH");
    }
}
