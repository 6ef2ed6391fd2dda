//! What a race detector must be told: ThreadSanitizer, in a library that `ci/tsan.sh` has built. In all others there is nothing of it.
//!
//! - It keeps what it knows of a thread in thread-local storage. A sibling would have that of the thread that started it, and the two would write
//!   over each other. So a sibling borrows the storage of a thread that does nothing.
//! - It takes locks of its own, and a thread that is stopped may hold one. So it looks away while threads are being stopped; then nobody else runs.
//! - The standard library is not built for it, so it does not see who waits for a lock.

#[cfg(not(rmap_race_detector))]
mod none {
    use crate::sys::SysResult;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// Storage for a sibling: that of the thread that starts it.
    #[derive(Debug)]
    pub(crate) struct Storage;

    impl Storage {
        #[expect(clippy::unnecessary_wraps, reason = "the other one can fail")]
        pub(crate) const fn new() -> SysResult<Self> {
            Ok(Self)
        }

        pub(crate) const fn address(&self) -> Option<usize> {
            None
        }
    }

    pub(crate) const fn look_away() {}

    pub(crate) const fn tell() {}

    pub(crate) const fn hear() {}

    pub(crate) const fn look_again() {}

    /// Locks, whatever has become of the last holder.
    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
#[cfg(not(rmap_race_detector))]
pub(crate) use none::*;

#[cfg(rmap_race_detector)]
mod tsan {
    use crate::sys::futex::{self, Word};
    use crate::sys::memory::{self, MapFlags, PAGE, ProtFlags};
    use crate::sys::{SysResult, thread};
    use core::ffi::{c_char, c_int, c_void};
    use core::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Mutex, MutexGuard, TryLockError};

    // `sanitizer/tsan_interface.h`, and what `valgrind.h` of old had for such tools.
    unsafe extern "C" {
        fn __tsan_release(address: *mut c_void);
        fn __tsan_acquire(address: *mut c_void);
        fn __tsan_ignore_thread_begin();
        fn __tsan_ignore_thread_end();
        fn AnnotateIgnoreSyncBegin(file: *const c_char, line: c_int);
        fn AnnotateIgnoreSyncEnd(file: *const c_char, line: c_int);
    }

    /// Stands for what those did who looked away, before they did.
    static DONE: Word = Word::new(0);
    /// Stands for what others did meanwhile, before they told them something.
    static TOLD: Word = Word::new(0);

    /// Nothing that the calling thread does is looked at until [`look_again`].
    pub(crate) fn look_away() {
        // SAFETY: the first only takes the address for a name; the others count, for the calling thread.
        unsafe {
            __tsan_release(DONE.as_ptr().cast());
            __tsan_ignore_thread_begin();
            AnnotateIgnoreSyncBegin(core::ptr::null(), 0);
        }
    }

    /// Before something is told to a thread that may look away.
    pub(crate) fn tell() {
        // SAFETY: as above.
        unsafe { __tsan_release(TOLD.as_ptr().cast()) };
    }

    /// After something was heard of one.
    pub(crate) fn hear() {
        // SAFETY: as above.
        unsafe { __tsan_acquire(DONE.as_ptr().cast()) };
    }

    pub(crate) fn look_again() {
        // SAFETY: as above.
        unsafe {
            AnnotateIgnoreSyncEnd(core::ptr::null(), 0);
            __tsan_ignore_thread_end();
            __tsan_acquire(TOLD.as_ptr().cast());
        }
    }

    /// Locks, whatever has become of the last holder: by trying, for waiting would not be seen.
    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        loop {
            match mutex.try_lock() {
                Ok(guard) => return guard,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => std::thread::yield_now(),
            }
        }
    }

    const STACK: usize = 512 << 10;

    struct Lender {
        address: AtomicUsize,
        over: Word,
    }

    /// The storage of a thread that sleeps.
    pub(crate) struct Storage {
        lender: &'static Lender,
        thread: Option<thread::Started>,
        stack: usize,
    }

    impl core::fmt::Debug for Storage {
        fn fmt(&self, to: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            write!(to, "Storage({:?})", self.address())
        }
    }

    extern "C" fn lend(lender: *mut c_void) -> *mut c_void {
        // SAFETY: `Storage::new` passes one that stays.
        let lender = unsafe { &*lender.cast::<Lender>() };
        let address: usize;
        // SAFETY: the first word of the storage is its own address (ELF Handling For Thread-Local Storage, x86-64).
        unsafe { core::arch::asm!("mov {}, fs:0", out(reg) address, options(nostack, readonly)) };
        look_away();
        lender.address.store(address, Ordering::Release);
        while lender.over.load(Ordering::Acquire) == 0 {
            futex::wait(&lender.over, 0, None);
        }
        look_again();
        core::ptr::null_mut()
    }

    impl Storage {
        pub(crate) fn new() -> SysResult<Self> {
            let rw = ProtFlags::READ | ProtFlags::WRITE;
            let stack = memory::map_anonymous(STACK + PAGE, rw, MapFlags::NORESERVE)?;
            let lender: &'static Lender =
                Box::leak(Box::new(Lender { address: AtomicUsize::new(0), over: Word::new(0) }));
            let argument = core::ptr::from_ref(lender).cast_mut().cast();
            // SAFETY: fresh memory, unmapped when the thread has ended.
            let thread = unsafe { thread::spawn(stack, STACK, lend, argument) }?;
            while lender.address.load(Ordering::Acquire) == 0 {
                std::thread::yield_now();
            }
            Ok(Self { lender, thread: Some(thread), stack })
        }

        pub(crate) fn address(&self) -> Option<usize> {
            Some(self.lender.address.load(Ordering::Acquire))
        }
    }

    impl Drop for Storage {
        fn drop(&mut self) {
            self.lender.over.store(1, Ordering::Release);
            futex::wake(&self.lender.over);
            if let Some(thread) = self.thread.take() {
                thread.join();
            }
            // SAFETY: the thread has ended.
            let _ = unsafe { memory::unmap(self.stack, STACK + PAGE) };
        }
    }
}
#[cfg(rmap_race_detector)]
pub(crate) use tsan::*;
