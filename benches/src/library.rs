//! The library under measurement, by its C interface.

use rmap_tests::{MAXADDR, PERMIT_MODE, RDWR};
use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    io, mem,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    ptr,
};

/// `struct xpmem_addr`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Address {
    /// The permit.
    pub apid: i64,
    /// Bytes from the start of the segment.
    pub offset: libc::off_t,
}

/// `xpmem_attach`.
pub type Attach = extern "C" fn(Address, usize, *mut c_void) -> *mut c_void;
/// `xpmem_detach`.
pub type Detach = extern "C" fn(*mut c_void) -> c_int;

/// The functions of one loaded `libxpmem.so`. It stays loaded.
#[derive(Clone, Copy, Debug)]
pub struct Library {
    version: extern "C" fn() -> c_int,
    make: extern "C" fn(*mut c_void, usize, c_int, *mut c_void) -> i64,
    remove: extern "C" fn(i64) -> c_int,
    get: extern "C" fn(i64, c_int, c_int, *mut c_void) -> i64,
    release: extern "C" fn(i64) -> c_int,
    attach: Attach,
    detach: Detach,
}

fn checked(result: i64) -> io::Result<i64> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Library {
    /// Loads it.
    ///
    /// # Panics
    ///
    /// If there is no such library.
    pub fn load(path: &Path) -> Self {
        let name = CString::new(path.as_os_str().as_bytes()).expect("a path without zero bytes");
        // SAFETY: `name` is a C string. The constructors are the library's.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "cannot load {}: {}", path.display(), reason());
        let symbol = |name: &CStr| {
            // SAFETY: a handle from dlopen and a C string.
            let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
            assert!(!address.is_null(), "{} has no {name:?}", path.display());
            address
        };
        macro_rules! function {
            ($name:literal, $kind:ty) => {
                // SAFETY: xpmem.h gives this function the type that is named here.
                unsafe { mem::transmute::<*mut c_void, $kind>(symbol($name)) }
            };
        }
        Self {
            version: function!(c"xpmem_version", extern "C" fn() -> c_int),
            make: function!(c"xpmem_make", extern "C" fn(*mut c_void, usize, c_int, *mut c_void) -> i64),
            remove: function!(c"xpmem_remove", extern "C" fn(i64) -> c_int),
            get: function!(c"xpmem_get", extern "C" fn(i64, c_int, c_int, *mut c_void) -> i64),
            release: function!(c"xpmem_release", extern "C" fn(i64) -> c_int),
            attach: function!(c"xpmem_attach", Attach),
            detach: function!(c"xpmem_detach", Detach),
        }
    }

    /// `xpmem_version`.
    ///
    /// # Errors
    ///
    /// Its errno.
    pub fn version(&self) -> io::Result<i64> {
        checked((self.version)().into())
    }

    /// `xpmem_make` with mode 0600.
    ///
    /// # Errors
    ///
    /// Its errno.
    pub fn make(&self, address: usize, len: usize) -> io::Result<i64> {
        let mode = ptr::without_provenance_mut(0o600);
        checked((self.make)(ptr::without_provenance_mut(address), len, PERMIT_MODE, mode))
    }

    /// `xpmem_make` of the whole address space.
    ///
    /// # Errors
    ///
    /// Its errno.
    pub fn make_all(&self) -> io::Result<i64> {
        self.make(0, MAXADDR)
    }

    /// `xpmem_remove`.
    ///
    /// # Errors
    ///
    /// Its errno.
    pub fn remove(&self, segid: i64) -> io::Result<()> {
        checked((self.remove)(segid).into()).map(drop)
    }

    /// `xpmem_get` for reading and writing.
    ///
    /// # Errors
    ///
    /// Its errno.
    pub fn get(&self, segid: i64) -> io::Result<i64> {
        checked((self.get)(segid, RDWR, PERMIT_MODE, ptr::null_mut()))
    }

    /// `xpmem_release`.
    ///
    /// # Errors
    ///
    /// Its errno.
    pub fn release(&self, apid: i64) -> io::Result<()> {
        checked((self.release)(apid).into()).map(drop)
    }

    /// `xpmem_attach` at an address of the library's choice.
    ///
    /// # Errors
    ///
    /// Its errno.
    #[inline]
    pub fn attach(&self, apid: i64, offset: usize, len: usize) -> io::Result<usize> {
        let offset = (offset as u64).cast_signed();
        let address = (self.attach)(Address { apid, offset }, len, ptr::null_mut()).expose_provenance();
        if address == usize::MAX { Err(io::Error::last_os_error()) } else { Ok(address) }
    }

    /// `xpmem_detach`.
    ///
    /// # Errors
    ///
    /// Its errno.
    #[inline]
    pub fn detach(&self, address: usize) -> io::Result<()> {
        checked((self.detach)(ptr::with_exposed_provenance_mut(address)).into()).map(drop)
    }

    /// Attaches and detaches.
    ///
    /// # Panics
    ///
    /// If either fails.
    #[inline]
    pub fn pair(&self, apid: i64, offset: usize, len: usize) {
        let address = self.attach(apid, offset, len).expect("xpmem_attach");
        self.detach(address).expect("xpmem_detach");
    }

    /// Where the code of `xpmem_attach` and `xpmem_detach` begins.
    pub fn entries(&self) -> (Attach, Detach) {
        (self.attach, self.detach)
    }
}

fn reason() -> String {
    // SAFETY: dlerror has no preconditions.
    let text: *const c_char = unsafe { libc::dlerror() };
    if text.is_null() {
        return "no reason given".into();
    }
    // SAFETY: a C string that lives until the next call of the dl family in this thread.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
