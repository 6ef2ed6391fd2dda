//! Descriptors that the service thread keeps back, for when the process has no other left.
//!
//! The table of descriptors is the application's, and so is the limit on it. What holds a thread of the application, or an importer, must be
//! found out all the same. So on `EMFILE` one of a few spare descriptors is closed, and what is opened takes its place; a [`Temporary`]
//! one becomes a spare again in one step, when it is not needed any more.

use super::{Errno, SysResult, raw, thread};
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, Ordering};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

const COUNT: usize = 4;
const MISSING: i32 = -1;

/// The spare descriptors of a service thread. In own memory.
#[derive(Debug)]
pub(crate) struct Spares {
    /// Whose they are: nobody else gives them up.
    thread: AtomicU32,
    /// They are copies of this descriptor, which is never closed.
    original: i32,
    numbers: [AtomicI32; COUNT],
    /// A child of a fork under way is to close them by their numbers.
    listed: AtomicBool,
}

/// Those of the service thread of this process.
static INSTALLED: AtomicPtr<Spares> = AtomicPtr::new(core::ptr::null_mut());

impl Spares {
    /// Spares that are copies of `original`, none yet.
    pub(crate) fn new(original: BorrowedFd<'static>) -> Self {
        Self {
            thread: AtomicU32::new(0),
            original: original.as_raw_fd(),
            numbers: [const { AtomicI32::new(MISSING) }; COUNT],
            listed: AtomicBool::new(false),
        }
    }

    /// Makes them those of this process.
    pub(crate) fn install(&'static self) {
        INSTALLED.store(core::ptr::from_ref(self).cast_mut(), Ordering::Release);
    }

    fn is_whole(&self) -> bool {
        self.numbers.iter().all(|number| number.load(Ordering::Relaxed) != MISSING)
    }

    fn missing(&self) -> Option<&AtomicI32> {
        self.numbers.iter().find(|number| number.load(Ordering::Relaxed) == MISSING)
    }

    fn give_up_one(&self) -> bool {
        let mut numbers = self.numbers.iter().map(|number| number.swap(MISSING, Ordering::Relaxed));
        let Some(number) = numbers.find(|number| *number != MISSING) else { return false };
        // SAFETY: a copy that this made, and that nobody else refers to.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
        true
    }

    fn refill(&self) -> SysResult<()> {
        while let Some(place) = self.missing() {
            // SAFETY: the descriptor is never closed (`new`).
            let original = unsafe { BorrowedFd::borrow_raw(self.original) };
            let copy = rustix::io::fcntl_dupfd_cloexec(original, 0)?;
            place.store(copy.into_raw_fd(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Makes a spare of a descriptor that is not needed any more. Nobody else can get its number in between.
    fn take_back(&self, fd: OwnedFd) {
        let Some(place) = self.missing() else { return };
        let args = [self.original as usize, fd.as_raw_fd() as usize, libc::O_CLOEXEC as usize, 0, 0, 0];
        // SAFETY: replaces what `fd` owns, which is given up.
        if unsafe { raw::syscall(libc::SYS_dup3, args) }.is_ok() {
            place.store(fd.into_raw_fd(), Ordering::Relaxed);
        }
    }
}

fn installed() -> Option<&'static Spares> {
    // SAFETY: null, or what `install` was given, which lives as long as the process does; a forked child forgets it.
    unsafe { INSTALLED.load(Ordering::Acquire).as_ref() }
}

/// The spares, if the caller is the thread that they are for.
fn mine() -> Option<&'static Spares> {
    installed().filter(|spares| spares.thread.load(Ordering::Relaxed) == thread::id())
}

/// The spares are for the calling thread.
pub(crate) fn claim() {
    if let Some(spares) = installed() {
        spares.thread.store(thread::id(), Ordering::Relaxed);
    }
}

/// A forked child has not inherited the memory that they are noted in.
pub(crate) fn forget_after_fork() {
    INSTALLED.store(core::ptr::null_mut(), Ordering::Release);
}

/// Makes up for spares that were given up.
///
/// # Errors
/// `EMFILE` when the process has no free descriptor.
pub(crate) fn refill() -> SysResult<()> {
    mine().map_or(Ok(()), Spares::refill)
}

/// Closes one, so that a call which gives a descriptor finds room. False if there is none.
pub(crate) fn give_up_one() -> bool {
    mine().is_some_and(Spares::give_up_one)
}

/// Sees to it that a message can bring one descriptor.
pub(crate) fn make_room() {
    if let Some(spares) = mine().filter(|spares| !spares.listed.load(Ordering::Relaxed)) {
        let _ = spares.refill();
        spares.give_up_one();
    }
}

/// Makes a descriptor, in place of a spare one if there is no other room.
pub(crate) fn instead_of_one<T>(mut make: impl FnMut() -> SysResult<T>) -> SysResult<T> {
    loop {
        match make() {
            // Another thread may have taken the place of the last one.
            Err(Errno::MFILE) if give_up_one() => {}
            made => return made,
        }
    }
}

/// Calls `each` with every descriptor that a forked child must not keep. They keep their numbers until [`fork_is_over`], if nothing needs
/// their places.
pub(crate) fn each_descriptor(mut each: impl FnMut(i32)) {
    let Some(spares) = mine() else { return };
    spares.listed.store(true, Ordering::Relaxed);
    for number in
        spares.numbers.iter().map(|number| number.load(Ordering::Relaxed)).filter(|number| *number != MISSING)
    {
        each(number);
    }
}

/// Descriptors may come and go again.
pub(crate) fn fork_is_over() {
    if let Some(spares) = mine() {
        spares.listed.store(false, Ordering::Relaxed);
    }
}

/// A descriptor that is soon closed again.
#[derive(Debug)]
pub(crate) struct Temporary(ManuallyDrop<OwnedFd>);

impl From<OwnedFd> for Temporary {
    fn from(fd: OwnedFd) -> Self {
        Self(ManuallyDrop::new(fd))
    }
}

impl AsFd for Temporary {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let spares = installed().filter(|spares| !spares.is_whole()).and_then(|_| mine());
        // SAFETY: it is not used again.
        let fd = unsafe { ManuallyDrop::take(&mut self.0) };
        if let Some(spares) = spares {
            spares.take_back(fd);
        }
    }
}
