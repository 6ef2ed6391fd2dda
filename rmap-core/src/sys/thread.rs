//! A thread, and a process that shares memory, both on stacks of the library's own.

use super::{Errno, SysResult, raw};
use core::arch::x86_64::{__cpuid_count, __get_cpuid_max};
use core::ffi::c_void;
use core::sync::atomic::AtomicU32;
use core::time::Duration;
use std::os::fd::{FromRawFd, OwnedFd};

/// A thread of this process that has been started.
#[derive(Debug)]
pub(crate) struct Started(libc::pthread_t);

/// Starts a thread on `stack`, with every signal blocked.
///
/// # Safety
/// The stack must be mapped, unused, and stay so for as long as the thread lives.
pub(crate) unsafe fn spawn(
    stack: usize,
    len: usize,
    entry: extern "C" fn(*mut c_void) -> *mut c_void,
    argument: *mut c_void,
) -> SysResult<Started> {
    let mut thread: libc::pthread_t = 0;
    // SAFETY: plain libc calls on local objects; the stack is the caller's promise. The mask of the calling
    // thread is restored, the new thread inherits the full one.
    let result = unsafe {
        let mut attributes: libc::pthread_attr_t = core::mem::zeroed();
        let mut all: libc::sigset_t = core::mem::zeroed();
        let mut before: libc::sigset_t = core::mem::zeroed();
        libc::pthread_attr_init(&mut attributes);
        libc::pthread_attr_setstack(&mut attributes, core::ptr::with_exposed_provenance_mut(stack), len);
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let result = libc::pthread_create(&mut thread, &attributes, entry, argument);
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, core::ptr::null_mut());
        libc::pthread_attr_destroy(&mut attributes);
        result
    };
    if result == 0 { Ok(Started(thread)) } else { Err(Errno::from_raw_os_error(result)) }
}

impl Started {
    /// Nobody asks after it any more.
    pub(crate) fn detach(self) {
        // SAFETY: it was started joinable, and is given up here.
        unsafe { libc::pthread_detach(self.0) };
    }

    /// Waits for its end.
    pub(crate) fn join(self) {
        // SAFETY: as above.
        unsafe { libc::pthread_join(self.0, core::ptr::null_mut()) };
    }
}

/// Lets the calling thread run on every core that its process leader may use: MPI binds the thread that started
/// us to one core, which is then busy.
pub(crate) fn widen_affinity() {
    const BYTES: usize = 1024;
    let mut mask = [0u64; BYTES / 8];
    let pointer = mask.as_mut_ptr().expose_provenance();
    // All cores; the kernel keeps those that the cpuset allows.
    mask.fill(u64::MAX);
    // SAFETY: reads the mask.
    let _ = unsafe { raw::syscall(libc::SYS_sched_setaffinity, [0, BYTES, pointer, 0, 0, 0]) };
}

/// Gives the calling thread, and those that it starts, all rights to memory with protection keys. Each thread has its own, which it is born with
/// and nobody else can change: an application that asks for a key gets rights for the thread that asks.
pub(crate) fn hold_all_keys() {
    const FEATURES: u32 = 7;
    const OSPKE: u32 = 1 << 4;
    if __get_cpuid_max(0).0 >= FEATURES && __cpuid_count(FEATURES, 0).ecx & OSPKE != 0 {
        // SAFETY: the kernel has turned the register on. It decides about loads and stores of this thread, and lets all pass.
        unsafe { core::arch::asm!("wrpkru", in("eax") 0, in("ecx") 0, in("edx") 0, options(nostack)) };
    }
}

#[cfg(rmap_race_detector)]
unsafe extern "C" {
    fn __clone(
        entry: extern "C" fn(*mut c_void) -> i32,
        stack: *mut c_void,
        flags: i32,
        argument: *mut c_void,
        ...
    ) -> i32;
}

/// A child process that shares this process's memory and descriptors, invisible to `wait` calls of the
/// application.
#[derive(Debug)]
pub(crate) struct Sibling {
    pid: u32,
}

impl Sibling {
    /// Starts `entry` on the stack that ends at `stack_top`, with this thread-local storage or, without, that of the calling thread.
    ///
    /// # Safety
    /// The stack must be mapped, unused and stay so until the sibling is reaped, and storage must be nobody's who runs. `entry` must make raw system
    /// calls only: it has no thread-local storage of its own.
    pub(crate) unsafe fn spawn(
        stack_top: usize,
        entry: extern "C" fn(*mut c_void) -> i32,
        argument: *mut c_void,
        storage: Option<usize>,
    ) -> SysResult<Self> {
        // SAFETY: the caller's promise.
        unsafe { Self::clone(stack_top, entry, argument, storage, None) }
    }

    /// Like [`Self::spawn`]; also gives a descriptor that is readable once the sibling has ended (Linux 5.2).
    ///
    /// # Safety
    /// As [`Self::spawn`].
    pub(crate) unsafe fn spawn_with_end(
        stack_top: usize,
        entry: extern "C" fn(*mut c_void) -> i32,
        argument: *mut c_void,
        storage: Option<usize>,
    ) -> SysResult<(Self, OwnedFd)> {
        let mut fd = -1;
        // SAFETY: the caller's promise; the kernel writes the number of a new descriptor, which is ours alone.
        unsafe {
            let sibling = Self::clone(stack_top, entry, argument, storage, Some(&mut fd))?;
            Ok((sibling, OwnedFd::from_raw_fd(fd)))
        }
    }

    unsafe fn clone(
        stack_top: usize,
        entry: extern "C" fn(*mut c_void) -> i32,
        argument: *mut c_void,
        storage: Option<usize>,
        descriptor: Option<&mut i32>,
    ) -> SysResult<Self> {
        // glibc's own name: race detectors have something else under the other.
        #[cfg(rmap_race_detector)]
        use __clone as clone;
        #[cfg(not(rmap_race_detector))]
        use libc::clone;
        // No exit signal: neither SIGCHLD nor an unexpected child in the application's wait().
        let mut flags = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_FS;
        flags |= if descriptor.is_some() { libc::CLONE_PIDFD } else { 0 };
        flags |= if storage.is_some() { libc::CLONE_SETTLS } else { 0 };
        let stack = core::ptr::with_exposed_provenance_mut(stack_top & !15);
        let descriptor: *mut i32 = descriptor.map_or(core::ptr::null_mut(), core::ptr::from_mut);
        let storage: *mut c_void = core::ptr::with_exposed_provenance_mut(storage.unwrap_or(0));
        // SAFETY: the promise of the callers.
        let pid = unsafe { clone(entry, stack, flags, argument, descriptor, storage) };
        if pid < 0 {
            return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::AGAIN));
        }
        Ok(Self { pid: pid as u32 })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    fn wait(&self, options: i32) -> SysResult<bool> {
        loop {
            let args = [self.pid as usize, 0, (libc::__WCLONE | options) as usize, 0, 0, 0];
            // SAFETY: no status is written.
            match unsafe { raw::syscall(libc::SYS_wait4, args) } {
                Ok(pid) => return Ok(pid != 0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&self) -> bool {
        matches!(self.wait(libc::WNOHANG), Ok(false))
    }

    /// Ends it.
    pub(crate) fn kill(&self) {
        let args = [self.pid as usize, libc::SIGKILL as usize, 0, 0, 0, 0];
        // SAFETY: sends a signal to a child that has not been reaped.
        let _ = unsafe { raw::syscall(libc::SYS_kill, args) };
    }

    /// Waits for its end.
    pub(crate) fn reap(self) {
        let _ = self.wait(0);
    }
}

/// Has the kernel kill the calling process when the thread that started it ends.
pub(crate) fn die_with_parent() {
    let args = [libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize, 0, 0, 0, 0];
    // SAFETY: sets an attribute of the calling process.
    let _ = unsafe { raw::syscall(libc::SYS_prctl, args) };
}

/// Has the kernel set `FUTEX_OWNER_DIED` in `word` when the calling thread ends or calls `exec`, if it holds the id of the thread then
/// (`man 2 set_robust_list`). In place of glibc's list: the thread must hold no robust mutex.
///
/// # Safety
/// `list` is the address of 40 bytes, and `word` is mapped, for as long as the thread lives.
pub(crate) unsafe fn set_robust_futex(list: usize, word: *const AtomicU32) -> SysResult<()> {
    // Head: first node, distance from a node to its word, node under way. Behind it the only node, which leads back to the head.
    const HEAD: usize = 3 * size_of::<usize>();
    let node = list + HEAD;
    let to: *mut usize = core::ptr::with_exposed_provenance_mut(list);
    // SAFETY: the caller's promise; the kernel only reads the list.
    unsafe {
        to.write(node);
        to.add(1).write(word.expose_provenance().wrapping_sub(node));
        to.add(2).write(0);
        to.add(3).write(list);
        raw::syscall(libc::SYS_set_robust_list, [list, HEAD, 0, 0, 0, 0]).map(drop)
    }
}

/// The thread id of the caller.
pub(crate) fn id() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get() as u32
}

fn clock(id: usize) -> Option<Duration> {
    let mut time = [0u64; 2];
    let args = [id, time.as_mut_ptr().expose_provenance(), 0, 0, 0, 0];
    // SAFETY: the kernel writes two words.
    unsafe { raw::syscall(libc::SYS_clock_gettime, args) }.ok()?;
    Some(Duration::new(time[0], time[1] as u32))
}

/// Time since some moment in the past.
pub(crate) fn time() -> Duration {
    clock(libc::CLOCK_MONOTONIC as usize).unwrap_or_default()
}

/// Whether thread `tid` of this process still has its memory: not once it has exited.
pub(crate) fn has_memory(tid: u32) -> bool {
    let mut byte = 0u8;
    let target = core::ptr::from_mut(&mut byte).expose_provenance();
    let (from, to) = ([core::ptr::from_ref(&tid).expose_provenance(), 1], [target, 1]);
    let vectors = [from.as_ptr().expose_provenance(), to.as_ptr().expose_provenance()];
    // SAFETY: reads a byte of `tid`, whose address is good in all threads of this process, into one on this stack.
    let read =
        unsafe { raw::syscall(libc::SYS_process_vm_readv, [tid as usize, vectors[1], 1, vectors[0], 1, 0]) };
    read != Err(Errno::SRCH)
}

/// How long thread `tid` of this process has been on a core; `None` if it is gone.
pub(crate) fn time_on_core(tid: u32) -> Option<Duration> {
    // The kernel's id of a thread's clock (`man 3 pthread_getcpuclockid`).
    const PER_THREAD: i32 = 4;
    const SCHEDULER: i32 = 2;
    let id = (!tid.cast_signed()) << 3 | PER_THREAD | SCHEDULER;
    clock(id as usize)
}

/// Ends all that the calling thread does.
pub(crate) fn sleep_for_ever() -> ! {
    let word = AtomicU32::new(0);
    loop {
        super::futex::wait(&word, 0, None);
    }
}

/// Leaves the core to others for a while.
pub(crate) fn pause(time: Duration) {
    let time = [time.as_secs(), u64::from(time.subsec_nanos())];
    // SAFETY: the kernel reads two words.
    let _ = unsafe { raw::syscall(libc::SYS_nanosleep, [time.as_ptr().expose_provenance(), 0, 0, 0, 0, 0]) };
}
