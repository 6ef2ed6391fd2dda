//! Stopping all other threads of the process for a moment, as an ordinary user, unseen by the application.
//!
//! A thread cannot trace threads of its own process, so a sibling does: a process that shares our memory and
//! descriptors, invisible to `wait`. It seizes every thread with ptrace, interrupts it, and reports when all stand
//! still. Sleeping system calls are restarted by the kernel afterwards with their remaining time, so no `EINTR`
//! is seen; futex waits are restarted too, which matters: a waiter on a word of shared memory is queued under the identity
//! of the page's file, and adopting the page changes that.
//!
//! Against parking threads in a signal handler: nothing runs on their stacks, no handler is installed, threads that block
//! signals stop as well, and none can wake in the middle and pass the range to a system call.

use crate::detector;
use crate::engine::clone::errand::Errand;
use crate::own::OwnMemory;
use crate::sys::event::Doorbell;
use crate::sys::procfs::{self, PathBuffer};
use crate::sys::ptrace::{self, Change};
use crate::sys::thread::{self, Sibling};
use crate::sys::{Errno, SysResult, event, futex};
use core::ffi::c_void;
use core::sync::atomic::{AtomicU32, Ordering};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const PENDING: u32 = 0;
const FROZEN: u32 = 1;
const FAILED: u32 = 2;

/// What service thread and sibling share. In own memory.
#[derive(Debug)]
struct Shared {
    start: AtomicU32,
    outcome: AtomicU32,
    errno: AtomicU32,
    /// How many threads stand still.
    threads: AtomicU32,
    thaw: AtomicU32,
    /// Only find out whether the caller itself may be traced.
    trial: bool,
    parent: u32,
    service_thread: u32,
    tasks: i32,
    doorbell: i32,
    seen: usize,
    order: usize,
    /// 0 if nobody wants to know.
    stacks: usize,
}

/// `PID_MAX_LIMIT` of the kernel. The tables below are indexed by thread id; untouched pages take no memory.
const THREADS: usize = 4 << 20;

/// State of a thread in the sibling's table; signal numbers wait to be delivered.
mod seen {
    pub(super) const NEVER: u8 = 0;
    pub(super) const STOPPED: u8 = 200;
    pub(super) const SEIZED: u8 = 201;
}

/// Stops and releases the threads of this process.
#[derive(Debug)]
pub(crate) struct Freezer {
    errand: Errand<Shared>,
    seen: OwnMemory,
    order: OwnMemory,
    /// Where the stopped threads have their stacks and their thread-local storage, in the same order.
    stacks: Option<OwnMemory>,
    tasks: OwnedFd,
    /// And what is readable once it has ended.
    sibling: Option<(Sibling, OwnedFd)>,
    /// Yama wants to be told who may trace us.
    needs_exception: bool,
}

/// An address in a thread's stack, and one in its thread-local storage.
pub(crate) type Stack = (usize, usize);

/// How far a freeze is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Idle,
    Pending,
    Frozen,
    Failed(Errno),
}

impl Freezer {
    pub(crate) fn new() -> SysResult<Self> {
        Ok(Self {
            errand: Errand::new(64 << 10)?,
            seen: OwnMemory::new(THREADS)?,
            order: OwnMemory::new(THREADS * 4)?,
            stacks: None,
            tasks: procfs::open(c"/proc/self/task")?,
            sibling: None,
            needs_exception: false,
        })
    }

    /// Has every freeze find out where the threads have their stacks.
    pub(crate) fn find_stacks(&mut self) -> SysResult<()> {
        self.stacks = Some(OwnMemory::new(THREADS * size_of::<Stack>())?);
        Ok(())
    }

    /// Where the threads that stand still have their stacks, and their thread-local storage.
    pub(crate) fn stacks(&self) -> impl Iterator<Item = Stack> + '_ {
        let found = self.stacks.as_ref().map(|memory| (memory.addr(), self.threads() as usize));
        let (addr, count) = found.unwrap_or_default();
        (0..count.min(THREADS)).map(move |index| {
            let table: *const Stack = core::ptr::with_exposed_provenance(addr);
            // SAFETY: the sibling has written so many, and writes no more.
            unsafe { table.add(index).read() }
        })
    }

    fn shared(&self) -> &Shared {
        // SAFETY: written only while no sibling runs (`start`), and all-zero is valid.
        unsafe { &*self.errand.orders() }
    }

    /// Begins to stop all threads but the caller. `doorbell` is rung when [`Self::progress`] changes, unless somebody kills the sibling: `watch` is
    /// given what is readable then.
    pub(crate) fn start(
        &mut self,
        doorbell: BorrowedFd<'_>,
        watch: impl FnOnce(BorrowedFd<'_>) -> SysResult<()>,
    ) -> SysResult<()> {
        detector::look_away();
        self.send_sibling(doorbell, false, watch).inspect_err(|_| detector::look_again())
    }

    fn send_sibling(
        &mut self,
        doorbell: BorrowedFd<'_>,
        trial: bool,
        watch: impl FnOnce(BorrowedFd<'_>) -> SysResult<()>,
    ) -> SysResult<()> {
        debug_assert!(self.sibling.is_none());
        // SAFETY: no sibling runs, so nobody else looks at it.
        let shared = unsafe {
            self.errand.give(Shared {
                start: AtomicU32::new(0),
                outcome: AtomicU32::new(PENDING),
                errno: AtomicU32::new(0),
                threads: AtomicU32::new(0),
                thaw: AtomicU32::new(0),
                trial,
                parent: rustix::process::getpid().as_raw_nonzero().get() as u32,
                service_thread: thread::id(),
                tasks: self.tasks.as_raw_fd(),
                doorbell: doorbell.as_raw_fd(),
                seen: self.seen.addr(),
                order: self.order.addr(),
                stacks: self.stacks.as_ref().map_or(0, OwnMemory::addr),
            })
        };
        // SAFETY: no sibling runs; `sibling_main` makes raw system calls only.
        let (sibling, end) = unsafe { self.errand.send_with_end(sibling_main) }?;
        let watched = watch(end.as_fd());
        if watched.is_err() {
            // It has stopped nothing yet.
            sibling.kill();
            sibling.reap();
            return watched;
        }
        if self.needs_exception {
            ptrace::allow_tracer(sibling.pid());
        }
        self.sibling = Some((sibling, end));
        shared.start.store(1, Ordering::Release);
        futex::wake(&shared.start);
        Ok(())
    }

    /// Has the caller traced for a moment, without being stopped.
    fn try_tracing(&mut self, doorbell: &Doorbell) -> SysResult<()> {
        self.send_sibling(doorbell.as_fd(), true, |_| Ok(()))?;
        // Not before its end: a signal may stop the caller until then.
        if let Some((sibling, _)) = self.sibling.take() {
            sibling.reap();
        }
        if self.needs_exception {
            ptrace::allow_tracer(0);
        }
        match self.shared().outcome.load(Ordering::Acquire) {
            FROZEN => Ok(()),
            FAILED => Err(Errno::from_raw_os_error(self.shared().errno.load(Ordering::Relaxed) as i32)),
            _ => Err(Errno::AGAIN),
        }
    }

    /// Stops all threads for a moment, and lets them go on.
    pub(crate) fn probe(&mut self, doorbell: &Doorbell) -> SysResult<()> {
        // The caller may be the only thread.
        if let Err(errno) = self.try_tracing(doorbell) {
            self.needs_exception = errno == Errno::PERM;
            self.try_tracing(doorbell)?;
        }
        loop {
            self.start(doorbell.as_fd(), |_| Ok(()))?;
            while let (Progress::Pending, Some((_, end))) = (self.progress(), &self.sibling) {
                event::wait_for_any([doorbell.as_fd(), end.as_fd()]);
                doorbell.clear();
            }
            let outcome = self.progress();
            let again = self.thaw();
            match outcome {
                Progress::Failed(errno) if !again => return Err(errno),
                Progress::Failed(_) => {}
                _ => return Ok(()),
            }
        }
    }

    pub(crate) fn progress(&self) -> Progress {
        if self.sibling.is_none() {
            return Progress::Idle;
        }
        match self.shared().outcome.load(Ordering::Acquire) {
            FROZEN => Progress::Frozen,
            FAILED => {
                Progress::Failed(Errno::from_raw_os_error(self.shared().errno.load(Ordering::Relaxed) as i32))
            }
            _ if !self.still_stopped() => Progress::Failed(Errno::AGAIN),
            _ => Progress::Pending,
        }
    }

    /// How many threads stand still.
    pub(crate) fn threads(&self) -> u32 {
        self.shared().threads.load(Ordering::Relaxed)
    }

    /// Whether the threads still stand: somebody may have killed the sibling.
    pub(crate) fn still_stopped(&self) -> bool {
        self.sibling.as_ref().is_some_and(|(sibling, _)| sibling.is_alive())
    }

    /// Lets all threads go on. True if the freeze had failed for want of a right that the next one will ask for.
    pub(crate) fn thaw(&mut self) -> bool {
        let denied = self.progress() == Progress::Failed(Errno::PERM);
        self.shared().thaw.store(1, Ordering::Release);
        futex::wake(&self.shared().thaw);
        if let Some((sibling, _)) = self.sibling.take() {
            sibling.reap();
            detector::look_again();
        }
        if self.needs_exception {
            ptrace::allow_tracer(0);
            return false;
        }
        self.needs_exception = denied;
        denied
    }
}

struct Tables {
    seen: *mut u8,
    order: *mut u32,
    count: usize,
}

impl Tables {
    fn state(&mut self, tid: u32) -> Option<&mut u8> {
        // SAFETY: the table has THREADS entries, and this sibling alone uses it.
        ((tid as usize) < THREADS).then(|| unsafe { &mut *self.seen.add(tid as usize) })
    }

    fn remember(&mut self, tid: u32) {
        if self.count < THREADS {
            // SAFETY: the entry is inside the table, which this sibling alone uses.
            unsafe { self.order.add(self.count).write(tid) };
            self.count += 1;
        }
    }

    /// Notes where the threads have their stacks.
    fn note_stacks(&self, table: *mut Stack) {
        for index in 0..self.count {
            // SAFETY: entries below `count` were written by `remember`.
            let tid = unsafe { self.order.add(index).read() };
            // One that is gone has none.
            let stack = ptrace::stack_and_storage(tid).unwrap_or_default();
            // SAFETY: the table has THREADS entries, and this sibling alone writes to it.
            unsafe { table.add(index).write(stack) };
        }
    }

    /// Lets everything go, and clears the tables for the next time.
    fn release(&mut self) {
        for index in 0..self.count {
            // SAFETY: entries below `count` were written by `remember`.
            let tid = unsafe { self.order.add(index).read() };
            let Some(state) = self.state(tid) else { continue };
            let was = core::mem::replace(state, seen::NEVER);
            match was {
                seen::STOPPED => drop(ptrace::detach(tid, 0)),
                seen::SEIZED | seen::NEVER => {}
                signal => drop(ptrace::detach(tid, i32::from(signal))),
            }
        }
        self.count = 0;
    }
}

/// Runs in the sibling: own stack, the thread-local storage of another thread, hence raw system calls only.
extern "C" fn sibling_main(shared: *mut c_void) -> i32 {
    // SAFETY: `Freezer::start` passes its shared struct, which outlives the sibling.
    let shared = unsafe { &*shared.cast::<Shared>() };
    thread::die_with_parent();
    // It may have died before.
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get() as u32);
    if parent != shared.parent {
        return 1;
    }
    while shared.start.load(Ordering::Acquire) == 0 {
        futex::wait(&shared.start, 0, None);
    }
    let mut tables = Tables {
        seen: core::ptr::with_exposed_provenance_mut(shared.seen),
        order: core::ptr::with_exposed_provenance_mut(shared.order),
        count: 0,
    };
    let result =
        if shared.trial { ptrace::seize(shared.service_thread) } else { stop_all(shared, &mut tables) };
    let outcome = match result {
        Ok(()) => {
            if shared.stacks != 0 {
                tables.note_stacks(core::ptr::with_exposed_provenance_mut(shared.stacks));
            }
            FROZEN
        }
        Err(errno) => {
            tables.release();
            shared.errno.store(errno.raw_os_error() as u32, Ordering::Relaxed);
            FAILED
        }
    };
    shared.threads.store(tables.count as u32, Ordering::Relaxed);
    shared.outcome.store(outcome, Ordering::Release);
    if shared.trial {
        // The kernel lets the thread go.
        return 0;
    }
    event::ring_raw(shared.doorbell);
    while shared.thaw.load(Ordering::Acquire) == 0 {
        futex::wait(&shared.thaw, 0, None);
    }
    tables.release();
    0
}

fn stop_all(shared: &Shared, tables: &mut Tables) -> SysResult<()> {
    // SAFETY: the descriptor is open for as long as the freezer exists.
    let tasks = unsafe { BorrowedFd::borrow_raw(shared.tasks) };
    loop {
        let mut running = 0u32;
        let mut failure = None;
        procfs::each_numbered_entry(tasks, |tid| {
            let new = tables.state(tid).is_some_and(|state| *state == seen::NEVER);
            if !new || failure.is_some() || tid == shared.service_thread {
                return;
            }
            match ptrace::seize(tid) {
                Ok(()) => {
                    if let Some(state) = tables.state(tid) {
                        *state = seen::SEIZED;
                    }
                    tables.remember(tid);
                    let _ = ptrace::interrupt(tid);
                    running += 1;
                }
                Err(Errno::SRCH) => {}
                Err(errno) if !has_exited(tasks, tid) => failure = Some(errno),
                Err(_) => {}
            }
        })?;
        let found = running > 0;
        while running > 0 {
            let (tid, change) = ptrace::wait()?;
            let Some(state) = tables.state(tid) else { continue };
            let was = *state;
            *state = match change {
                Change::Stopped => seen::STOPPED,
                Change::AtSignal(signal) => signal as u8,
                // Its id may come again, with another thread.
                Change::Gone => seen::NEVER,
            };
            if change == Change::Stopped {
                ptrace::hide_interruption(tid);
            }
            running -= u32::from(was == seen::SEIZED);
        }
        if let Some(errno) = failure {
            return Err(errno);
        }
        // Threads that a running thread started meanwhile are found in another round.
        if !found {
            return Ok(());
        }
    }
}

/// Whether a thread is only waiting to be reaped, like a main thread that called `pthread_exit`.
fn has_exited(tasks: BorrowedFd<'_>, tid: u32) -> bool {
    let path = PathBuffer::format(format_args!("{tid}/stat"));
    let mut buffer = [0; 128];
    let opened = rustix::fs::openat(
        tasks.as_fd(),
        path.as_c_str(),
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    );
    let fd = match opened {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::SRCH) => return true,
        // No descriptor is left to look with. Whoever has exited has no memory any more.
        Err(_) => return !thread::has_memory(tid),
    };
    let Ok(count) = rustix::io::read(&fd, &mut buffer) else {
        return true;
    };
    let text = &buffer[..count];
    let state = text.iter().rposition(|b| *b == b')').and_then(|at| text.get(at + 2));
    matches!(state, Some(b'Z' | b'X' | b'x') | None)
}
