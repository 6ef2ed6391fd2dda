//! The service thread: one for each process, asleep in `epoll` until somebody needs it.
//!
//! It must make progress while any other thread sleeps in a fault or holds any lock: if it stopped, the application's next `munmap` of adopted
//! memory would sleep for ever. So it allocates nothing, takes no lock, uses no standard stream and no thread-local storage
//! but its own `errno`; what it keeps is in own memory, and it stores to nothing else.

use super::calls::{Answer, Call, Calls, Ticket};
use super::exporter::Exporter;
use super::exporter::freeze::Freezer;
use super::importer::Importer;
use super::windows::Windows;
use crate::config::Config;
use crate::counters::{self, Cell, sheet};
use crate::engine::{Kind, rendezvous};
use crate::error::{Error, Result, failed};
use crate::id::Endpoint;
use crate::log::log;
use crate::own::{OwnMemory, OwnVec};
use crate::range::Range;
use crate::sys::event::{Doorbell, Poller, Ready};
use crate::sys::memory::{self, MapFlags, PAGE, ProtFlags};
use crate::sys::spare::{self, Spares};
use crate::sys::{Errno, SysResult, event, procfs, socket, thread};
use core::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

const DOORBELL: u64 = 1 << 32;
const LISTENER: u64 = 2 << 32;
const WATCHER: u64 = 3 << 32;
const TRAP: u64 = 4 << 32;
const CLIENT: u64 = 5 << 32;
const HOST: u64 = 6 << 32;
const KIND: u64 = !0 << 32;

const STACK: usize = 512 << 10;

/// What the service thread owns.
struct Service {
    endpoint: Endpoint,
    listener: OwnedFd,
    /// Why nobody can be let in now.
    deaf: Option<Errno>,
    poller: Poller,
    calls: &'static Calls,
    exporter: Exporter,
    importer: Importer,
    /// Numbers of descriptors, for the child of a fork under way.
    fork: Option<(usize, usize)>,
}

/// The application's side of a running service.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) endpoint: Endpoint,
    pub(crate) calls: &'static Calls,
    pub(crate) windows: &'static Windows,
}

fn place_in_own_memory<T>(value: T) -> Result<&'static mut T> {
    let memory = OwnMemory::new(size_of::<T>()).map_err(failed("mmap"))?;
    let pointer: *mut T = core::ptr::with_exposed_provenance_mut(memory.addr());
    core::mem::forget(memory);
    // SAFETY: fresh memory of the right size, page-aligned, never unmapped.
    unsafe {
        pointer.write(value);
        Ok(&mut *pointer)
    }
}

/// Tries what the engine needs of the kernel, and leaves nothing behind.
///
/// # Errors
/// [`Error::Unsupported`] names what is missing.
pub(crate) fn probe(config: Config) -> Result<()> {
    let missing = |what| move |errno| Error::Unsupported { what, errno };
    let size = memory::task_size() as u64 + PAGE as u64;
    let what = "a sparse file as large as the address space (RLIMIT_FSIZE)";
    memory::check_file_limit(size).map_err(missing(what))?;
    let mut buffer = [0; 4096];
    let status = procfs::read_small(c"/proc/thread-self/status", &mut buffer)
        .map_err(missing("/proc/thread-self/status"))?;
    if procfs::field(status, b"TracerPid:", 10).is_some_and(|pid| pid != 0) {
        return Err(missing("ptrace of this process's own threads (a debugger or strace has them)")(
            Errno::BUSY,
        ));
    }
    Importer::new(config)?;
    let mut exporter = Exporter::new(config)?;
    let doorbell = Doorbell::new().map_err(missing("eventfd"))?;
    let poller = Poller::new().map_err(missing("epoll"))?;
    poller.add(&doorbell, 0).map_err(missing("epoll"))?;
    exporter.probe(&doorbell, || {
        let _ = poller.wait(None, |_| {});
    })
}

/// Stops the threads of this process for a moment, if that can be done.
pub(crate) fn probe_stopping() -> SysResult<()> {
    let (mut freezer, doorbell) = (Freezer::new()?, Doorbell::new()?);
    freezer.probe(&doorbell, || event::wait_for_any([doorbell.as_fd()]))
}

/// Starts the service thread of this process.
///
/// # Errors
/// [`Error::Unsupported`] where the kernel does not offer what the engine needs.
pub(crate) fn start(config: Config) -> Result<Running> {
    sheet::start()?;
    let exporter = Exporter::new(config)?;
    let importer = Importer::new(config)?;
    let windows = importer.kept_windows();
    let calls = Calls::new().map_err(failed("mmap"))?;
    let calls: &'static Calls = place_in_own_memory(calls)?;
    let spares: &'static Spares = place_in_own_memory(Spares::new(calls.doorbell().as_fd()))?;
    spares.install();
    let (endpoint, listener) = rendezvous::listen(Kind::Clone)?;
    sheet::set_endpoint(endpoint.to_raw());
    let poller = Poller::new().map_err(failed("epoll_create"))?;
    let watched =
        [(calls.doorbell().as_fd(), DOORBELL), (listener.as_fd(), LISTENER), (exporter.watcher(), WATCHER)];
    for (fd, token) in watched.into_iter().chain(importer.reporters().map(|fd| (fd, TRAP))) {
        poller.add(fd, token).map_err(failed("epoll_ctl"))?;
    }
    let service = Service { endpoint, listener, deaf: None, poller, calls, exporter, importer, fork: None };
    let service = place_in_own_memory(service)?;
    // Not own memory, which a forked child does not have: glibc keeps the thread's descriptor on the stack, and visits it in
    // the child. Guard pages on both sides keep the kernel from joining it with memory that is adopted.
    let stack = memory::map_anonymous(STACK + 2 * PAGE, ProtFlags::empty(), MapFlags::NORESERVE)
        .map_err(failed("mmap"))?;
    // SAFETY: fresh memory; nothing runs on it yet, and it is never unmapped.
    unsafe {
        memory::protect(stack + PAGE, STACK, ProtFlags::READ | ProtFlags::WRITE)
            .map_err(failed("mprotect"))?;
        service.exporter.keep_out(stack + PAGE, STACK);
        thread::spawn(stack + PAGE, STACK, main, core::ptr::from_mut(service).cast())
            .map_err(failed("pthread_create"))?;
    }
    Ok(Running { endpoint, calls, windows })
}

extern "C" fn main(service: *mut c_void) -> *mut c_void {
    thread::widen_affinity();
    spare::claim();
    let _ = spare::refill();
    // SAFETY: `start` passes the service, which nobody else refers to and which is never freed.
    let service = unsafe { &mut *service.cast::<Service>() };
    service.run()
}

impl Service {
    fn run(&mut self) -> ! {
        self.exporter.live_with_this_thread();
        loop {
            let patience =
                self.importer.check_patience(self.calls).into_iter().chain(self.exporter.patience());
            let patience = patience.min();
            let deaf = self.deaf.is_some();
            let mut ready = [None; 32];
            let mut count = 0;
            let waited = self.poller.wait(patience, |event| {
                if let Some(slot) = ready.get_mut(count) {
                    *slot = Some(event);
                    count += 1;
                }
            });
            if let Err(errno) = waited {
                if errno != Errno::INTR {
                    self.stop(errno);
                }
                continue;
            }
            // Revocation first: a thread of the application is held until it is done.
            let watched = |event: &Ready| event.token & KIND == WATCHER;
            for event in ready.iter().flatten().filter(|event| watched(event)) {
                self.dispatch(event);
            }
            let knocking = |event: &Ready| event.token & KIND == LISTENER;
            for event in ready.iter().flatten().filter(|event| !watched(event) && !knocking(event)) {
                self.dispatch(event);
            }
            // Last, so that whoever has come before is not sent away with a question unread.
            for event in ready.iter().flatten().filter(|event| knocking(event)) {
                self.dispatch(event);
            }
            if let Some(ticket) = self.exporter.step(self.calls) {
                self.release_fork(ticket);
            }
            self.exporter.catch_up_clients(&self.poller, CLIENT);
            self.exporter.mind_importers(self.calls, &self.poller, WATCHER);
            if self.exporter.is_asked() {
                self.survey();
                self.exporter.answer_surveys();
            }
            self.take_stock(deaf);
        }
    }

    /// Has the counters say how it is now.
    fn survey(&mut self) {
        self.exporter.survey_self();
        self.importer.survey_self();
    }

    /// The application has closed the library's descriptors, or has its own in their places: nothing can be done any more, and none of them may
    /// be touched. Calls fail from now on, and importers see an exporter that has ended.
    fn stop(&self, errno: Errno) -> ! {
        log!(
            Error,
            "epoll_wait: {errno}: the process has closed the library's descriptors, and is not served any more"
        );
        self.calls.close();
        self.exporter.ends();
        thread::sleep_for_ever()
    }

    /// Makes up for the spare descriptors of this round, and lets others in again: if descriptors are free now, or if something has
    /// happened since that was impossible for another reason.
    fn take_stock(&mut self, deaf: bool) {
        let whole = spare::refill().is_ok();
        let hopeful = self.deaf.is_some_and(|errno| deaf || errno == Errno::MFILE);
        if hopeful && whole && self.poller.add(&self.listener, LISTENER).is_ok() {
            self.deaf = None;
        }
    }

    /// Lets in who knocks. Without a free descriptor, a guest makes room.
    fn let_in(&mut self) {
        loop {
            match socket::accept(&self.listener) {
                Ok(Some(fd)) => return self.exporter.connected(fd, &self.poller, CLIENT),
                Ok(None) => return,
                Err(Errno::MFILE) if self.exporter.dismiss_guest() || spare::give_up_one() => {}
                Err(errno) => {
                    log!(Error, "accept: {errno}");
                    // It would be ready for ever.
                    self.poller.remove(&self.listener);
                    self.deaf = Some(errno);
                    return;
                }
            }
        }
    }

    fn dispatch(&mut self, event: &Ready) {
        let number = event.token as u32;
        match event.token & KIND {
            DOORBELL => {
                self.calls.doorbell().clear();
                while let Some((ticket, call)) = self.calls.take() {
                    self.serve(ticket, call);
                }
            }
            LISTENER => self.let_in(),
            WATCHER => self.exporter.on_events(),
            TRAP => {
                self.importer.on_reports(&self.poller, HOST);
                self.note_removed_windows();
            }
            CLIENT => {
                if event.writable {
                    self.exporter.client_writable(number, &self.poller, CLIENT);
                }
                if event.readable || event.hung_up {
                    self.exporter.client_readable(number);
                }
            }
            HOST => {
                if event.writable {
                    self.importer.host_writable(number, self.calls, &self.poller, HOST);
                }
                if event.readable || event.hung_up {
                    self.importer.host_readable(number, self.calls, &self.poller, HOST);
                    self.note_removed_windows();
                }
            }
            _ => {}
        }
    }

    fn serve(&mut self, ticket: Ticket, call: Call) {
        let answer = match call {
            Call::Offer { range, mode } => self.exporter.offer(self.endpoint, range, mode),
            Call::Withdraw { segment } => return self.exporter.withdraw(segment, ticket, self.calls),
            Call::Open { .. } => {
                return self.importer.open(call, ticket, self.calls, &self.poller, HOST);
            }
            Call::Check { grant } => {
                self.importer.catch_up(grant, self.calls, &self.poller, HOST);
                self.importer.check(grant).map(|()| Answer::Done)
            }
            Call::Close { grant } => {
                self.importer.close(grant, &self.poller, HOST);
                self.note_removed_windows();
                Ok(Answer::Done)
            }
            Call::Map { grant, remote, place } => {
                counters::count(Cell::AttachMisses);
                self.importer.catch_up(grant, self.calls, &self.poller, HOST);
                let own = self.importer.is_own(grant, self.endpoint);
                let replaced = place.and_then(|place| Range::new(place, remote.len()));
                if let Some(range) = replaced {
                    self.exporter.is_to_be_replaced(range);
                }
                let mapped = self.importer.map(grant, remote, place);
                if let Some(range) = replaced {
                    self.exporter.may_be_replaced(range);
                }
                self.note_removed_windows();
                if let Some(range) = mapped.ok().and_then(|mapped| mapped.made).filter(|_| own) {
                    self.exporter.note_own_window(range, true);
                }
                mapped.map(|mapped| Answer::Mapped(mapped.base))
            }
            Call::Unmap { addr } => {
                let unmapped = self.importer.unmap(addr);
                counters::add(Cell::DetachMisses, u64::from(unmapped.is_ok()));
                self.note_removed_windows();
                unmapped.map(|()| Answer::Done)
            }
            Call::ForkBegin => {
                counters::count(Cell::Forks);
                if let Some(ticket) = self.exporter.fork_begins(ticket) {
                    self.release_fork(ticket);
                }
                return;
            }
            Call::ForkEnd => {
                if let Some((addr, len)) = self.fork.take() {
                    // SAFETY: made for the child of this fork, which has its own by now.
                    let _ = unsafe { memory::unmap(addr, len) };
                }
                spare::fork_is_over();
                self.exporter.fork_ends();
                Ok(Answer::Done)
            }
            Call::Survey => {
                self.survey();
                Ok(Answer::Done)
            }
        };
        self.calls.answer(ticket, answer);
    }

    fn note_removed_windows(&mut self) {
        let exporter = &mut self.exporter;
        self.importer.take_removed(|range| exporter.note_own_window(range, false));
    }

    /// The memory is private again: the caller may fork, and its child learns which descriptors to close.
    fn release_fork(&mut self, ticket: Ticket) {
        let answer = self.list_descriptors().map_err(failed("mmap"));
        self.calls.answer(ticket, answer);
    }

    fn list_descriptors(&mut self) -> SysResult<Answer> {
        let mut numbers: OwnVec<i32> = OwnVec::new();
        let mut result = Ok(());
        let mut note = |fd| {
            if result.is_ok() {
                result = numbers.push(fd);
            }
        };
        note(self.listener.as_raw_fd());
        note(self.poller.as_fd().as_raw_fd());
        note(self.calls.doorbell().as_fd().as_raw_fd());
        spare::each_descriptor(&mut note);
        self.exporter.each_descriptor(&mut note);
        self.importer.each_descriptor(&mut note);
        result?;
        // Private memory: a child inherits that. Nothing is adopted while a fork is under way.
        let len = (numbers.len() * size_of::<i32>()).next_multiple_of(PAGE);
        let addr = memory::map_anonymous(len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::empty())?;
        let to: *mut i32 = core::ptr::with_exposed_provenance_mut(addr);
        // SAFETY: fresh memory with room for the numbers.
        unsafe { core::ptr::copy_nonoverlapping(numbers.as_ptr(), to, numbers.len()) };
        self.fork = Some((addr, len));
        Ok(Answer::Descriptors { addr, count: numbers.len() })
    }
}

/// Closes what a forked child has inherited of the service.
pub(crate) fn close_inherited(addr: usize, count: usize) {
    let from: *const i32 = core::ptr::with_exposed_provenance(addr);
    for index in 0..count {
        // SAFETY: the parent's service thread wrote `count` numbers there before the fork, of descriptors that
        // nothing in the child refers to.
        unsafe {
            let fd = from.add(index).read();
            drop(<OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd));
        }
    }
    // SAFETY: the list has been read.
    let _ = unsafe { memory::unmap(addr, (count * size_of::<i32>()).next_multiple_of(PAGE)) };
}
