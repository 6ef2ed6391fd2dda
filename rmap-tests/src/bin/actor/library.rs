//! The library under test, by its C interface.

use crate::command::{Arguments, Failure, Outcome};
use std::{
    ffi::{CString, c_char, c_int, c_void},
    mem, ptr,
    sync::OnceLock,
};

/// `struct xpmem_addr`.
#[repr(C)]
struct Address {
    apid: i64,
    offset: libc::off_t,
}

struct Library {
    version: extern "C" fn() -> c_int,
    make: extern "C" fn(*mut c_void, usize, c_int, *mut c_void) -> i64,
    remove: extern "C" fn(i64) -> c_int,
    get: extern "C" fn(i64, c_int, c_int, *mut c_void) -> i64,
    release: extern "C" fn(i64) -> c_int,
    attach: extern "C" fn(Address, usize, *mut c_void) -> *mut c_void,
    detach: extern "C" fn(*mut c_void) -> c_int,
    init: extern "C" fn() -> c_int,
    ioctl: extern "C" fn(c_int, *mut c_void) -> c_int,
    counters: extern "C" fn(*mut u64) -> c_int,
}

static LIBRARY: OnceLock<Library> = OnceLock::new();

/// Loads the library that the environment names.
#[expect(clippy::missing_transmute_annotations, reason = "the field gives the type")]
pub(crate) fn load() {
    let path = std::env::var("RMAP_TEST_LIB").expect("RMAP_TEST_LIB names the library");
    let path = CString::new(path).expect("a path");
    // SAFETY: `path` is a C string. The library's constructors are what is tested.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    assert!(!handle.is_null(), "cannot load {path:?}: {}", dl_error());
    let symbol = |name: &std::ffi::CStr| {
        // SAFETY: a handle from dlopen and a C string.
        let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
        assert!(!address.is_null(), "{path:?} has no {name:?}");
        address
    };
    macro_rules! function {
        ($name:literal) => {
            // SAFETY: the header gives this function the type of the field it goes to.
            unsafe { mem::transmute::<*mut c_void, _>(symbol($name)) }
        };
    }
    let library = Library {
        version: function!(c"xpmem_version"),
        make: function!(c"xpmem_make"),
        remove: function!(c"xpmem_remove"),
        get: function!(c"xpmem_get"),
        release: function!(c"xpmem_release"),
        attach: function!(c"xpmem_attach"),
        detach: function!(c"xpmem_detach"),
        init: function!(c"xpmem_init"),
        ioctl: function!(c"xpmem_ioctl"),
        counters: function!(c"rmap_counters"),
    };
    assert!(LIBRARY.set(library).is_ok(), "loaded once");
}

fn dl_error() -> String {
    // SAFETY: dlerror has no preconditions.
    let text: *const c_char = unsafe { libc::dlerror() };
    if text.is_null() {
        return "no reason given".into();
    }
    // SAFETY: a C string that lives until the next call of the dl family in this thread.
    unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// No errno has this number. It shows whether a call that worked touched errno.
const UNTOUCHED: i32 = 4242;

/// What a call gave, and errno if it was set.
pub(crate) struct Called {
    pub(crate) value: i64,
    pub(crate) errno: i32,
}

impl Called {
    /// The value, or the errno of -1.
    pub(crate) fn result(&self) -> Result<i64, i32> {
        if self.value == -1 { Err(self.errno) } else { Ok(self.value) }
    }
}

fn watch(call: impl FnOnce(&Library) -> i64) -> Called {
    let library = LIBRARY.get().expect("the library is loaded");
    crate::system::set_errno(UNTOUCHED);
    let value = call(library);
    let errno = crate::system::errno();
    Called { value, errno: if errno == UNTOUCHED { 0 } else { errno } }
}

fn pointer(address: usize) -> *mut c_void {
    ptr::with_exposed_provenance_mut(address)
}

pub(crate) fn make(address: usize, len: usize, kind: i32, value: usize) -> Called {
    watch(|library| (library.make)(pointer(address), len, kind, pointer(value)))
}

pub(crate) fn remove(segid: i64) -> Called {
    watch(|library| (library.remove)(segid).into())
}

pub(crate) fn get(segid: i64, flags: i32, kind: i32, value: usize) -> Called {
    watch(|library| (library.get)(segid, flags, kind, pointer(value)))
}

pub(crate) fn release(apid: i64) -> Called {
    watch(|library| (library.release)(apid).into())
}

pub(crate) fn attach(apid: i64, offset: i64, len: usize, at: usize) -> Called {
    watch(|library| {
        let address = (library.attach)(Address { apid, offset }, len, pointer(at));
        (address as usize).cast_signed() as i64
    })
}

pub(crate) fn detach(address: usize) -> Called {
    watch(|library| (library.detach)(pointer(address)).into())
}

/// `counters`: all words of `struct rmap_counters` behind the size.
pub(crate) fn counters() -> Outcome {
    let mut words = [0; 256];
    words[0] = size_of_val(&words) as u64;
    let called = watch(|library| (library.counters)(words.as_mut_ptr()).into());
    called.result().map_err(Failure::Errno)?;
    let known = words[0] as usize / size_of::<u64>();
    Ok(words[1..known].iter().map(u64::to_string).collect::<Vec<_>>().join(" "))
}

/// Calls one function with the arguments of a command. The answer is its result and errno, 0 if untouched.
pub(crate) fn call(arguments: &mut Arguments<'_>) -> Outcome {
    let called = match arguments.word()? {
        "version" => watch(|library| (library.version)().into()),
        "init" => watch(|library| (library.init)().into()),
        "ioctl" => {
            let (command, argument) = (arguments.number()?, arguments.number()?);
            watch(|library| (library.ioctl)(command, pointer(argument)).into())
        }
        "make" => make(arguments.number()?, arguments.number()?, arguments.number()?, arguments.number()?),
        "remove" => remove(arguments.number()?),
        "get" => get(arguments.number()?, arguments.number()?, arguments.number()?, arguments.number()?),
        "release" => release(arguments.number()?),
        "attach" => {
            attach(arguments.number()?, arguments.number()?, arguments.number()?, arguments.number()?)
        }
        "detach" => detach(arguments.number()?),
        other => return Err(Failure::Usage(format!("no function {other}"))),
    };
    Ok(format!("{} {}", called.value, called.errno))
}
