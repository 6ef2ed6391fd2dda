//! A directory where processes meet that share no network namespace (`RMAP_RENDEZVOUS`): each listens on a socket in it, under the name that
//! the socket has elsewhere.
//!
//! Others may write to the directory, as to `/tmp`. What they can do there is to fill it; a socket of theirs proves nothing. No link is followed
//! in it. A file whose socket nobody listens on any more is removed by who finds it: names are never used again, and a file cannot be
//! connected to before somebody listens, because it has no mode until then.

use super::rendezvous::Name;
use super::rights::Shared;
use crate::log::log;
use crate::sys::procfs::PathBuffer;
use crate::sys::{Errno, SysResult, socket};
use core::ffi::CStr;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::OnceLock;

/// The variable of the environment.
const VARIABLE: &str = "RMAP_RENDEZVOUS";
/// Anybody may connect: rights are a matter of segments.
const READY: u32 = 0o666;

static PLACE: OnceLock<Option<CString>> = OnceLock::new();
static SAID: AtomicBool = AtomicBool::new(false);

/// Reads the environment.
pub(crate) fn set_from_environment() {
    let text = std::env::var_os(VARIABLE).filter(|text| !text.is_empty());
    let place = text.and_then(|text| {
        use std::os::unix::ffi::OsStringExt as _;
        let text = text.into_vec();
        if !text.starts_with(b"/") {
            log!(Error, "{VARIABLE} is not the path of a directory from the root, and is not looked at");
            return None;
        }
        CString::new(text).ok()
    });
    let _ = PLACE.set(place);
}

/// The directory, open.
#[derive(Debug)]
pub(crate) struct Directory(OwnedFd);

impl Directory {
    /// Opens the directory that the environment names, if there is one that others cannot take files out of. The log says why not.
    pub(crate) fn open() -> Option<Self> {
        let place = PLACE.get()?.as_deref()?;
        let opened = Self::open_at(place).and_then(|directory| {
            let stat = rustix::fs::fstat(&directory.0)?;
            let users = [0, rustix::process::geteuid().as_raw()];
            if is_safe(&stat, users, Shared::of_this_process().user) {
                Ok(directory)
            } else {
                Err(Errno::PERM)
            }
        });
        match opened {
            Ok(directory) => return Some(directory),
            // Once is enough.
            Err(_) if SAID.swap(true, Ordering::Relaxed) => {}
            Err(Errno::PERM) => log!(
                Error,
                "{VARIABLE}: others may remove files from the directory, so it is not used (chmod 1777, and owner root or yourself)"
            ),
            Err(errno) => log!(Error, "{VARIABLE}: the directory cannot be opened: {errno}"),
        }
        None
    }

    fn open_at(place: &CStr) -> SysResult<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, place, flags, Mode::empty()).map(Self)
    }

    /// Listens under a name.
    ///
    /// # Errors
    /// `EADDRINUSE` if it is taken.
    pub(crate) fn listen(&self, name: &Name) -> SysResult<OwnedFd> {
        let path = PathBuffer::format(format_args!("/proc/thread-self/fd/{}/{name}", self.0.as_raw_fd()));
        // Nobody takes it for one that is left over before it can be connected to.
        let listener = socket::listen_without_mode(path.as_c_str().to_bytes())?;
        let made = self.find(name).and_then(|file| {
            let path = path_of(&file);
            rustix::fs::chmod(path.as_c_str(), Mode::from_raw_mode(READY))
        });
        if let Err(errno) = made {
            let _ = self.remove(name);
            return Err(errno);
        }
        Ok(listener)
    }

    /// Connects to who listens under a name; waits if that is said. A file that is left over is removed.
    ///
    /// # Errors
    /// `ENOENT` or `ECONNREFUSED` if nobody does.
    pub(crate) fn connect(&self, name: &Name, wait: bool) -> SysResult<OwnedFd> {
        let file = self.find(name)?;
        let path = path_of(&file);
        let path = path.as_c_str().to_bytes();
        let connected = if wait { socket::connect(path) } else { socket::connect_at_once(path) };
        if connected.as_ref().is_err_and(|errno| *errno == Errno::CONNREFUSED) && is_ready(&file) {
            let _ = self.remove(name);
        }
        connected
    }

    /// The file of a name, which is a socket, whoever made it.
    fn find(&self, name: &Name) -> SysResult<OwnedFd> {
        let path = PathBuffer::format(format_args!("{name}"));
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.0, path.as_c_str(), flags, Mode::empty())?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        if kind == FileType::Socket { Ok(file) } else { Err(Errno::NOENT) }
    }

    fn remove(&self, name: &Name) -> SysResult<()> {
        let path = PathBuffer::format(format_args!("{name}"));
        rustix::fs::unlinkat(&self.0, path.as_c_str(), AtFlags::empty())
    }

    /// Calls `each` with the names that are there.
    pub(crate) fn each_name(&self, mut each: impl FnMut(Name)) -> SysResult<()> {
        rustix::fs::seek(&self.0, rustix::fs::SeekFrom::Start(0))?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(&self.0, &mut buffer);
        while let Some(entry) = entries.next() {
            if let Some(name) = Name::parse(entry?.file_name().to_bytes()) {
                each(name);
            }
        }
        Ok(())
    }

    /// Removes what processes of this user have left, as far as it is among a part of the names that is drawn by `choice`: all that is there is
    /// connected to for that, so each process looks at some.
    pub(crate) fn sweep(&self, choice: u64) {
        let user = rustix::process::geteuid().as_raw();
        let own = |name: &Name| {
            let file = self.find(name)?;
            Ok::<_, Errno>(rustix::fs::fstat(&file)?.st_uid == user)
        };
        let _ = self.each_name(|name| {
            if name.is_chosen(choice) && own(&name) == Ok(true) {
                let _ = self.connect(&name, false);
            }
        });
    }
}

/// The path of an open file, for who has it open.
fn path_of(file: impl AsFd) -> PathBuffer {
    PathBuffer::format(format_args!("/proc/thread-self/fd/{}", file.as_fd().as_raw_fd()))
}

/// Whether somebody has listened on the socket of this file.
fn is_ready(file: impl AsFd) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| stat.st_mode & READY == READY)
}

/// Whether nobody but these users, and whoever has no number here, can take away what others put into a directory.
fn is_safe(stat: &Stat, users: [u32; 2], without_number: Option<u32>) -> bool {
    let trusted = users.contains(&stat.st_uid) || without_number == Some(stat.st_uid);
    let others_write = stat.st_mode & 0o022 != 0;
    let sticky = stat.st_mode & 0o1000 != 0;
    trusted && (!others_write || sticky)
}
