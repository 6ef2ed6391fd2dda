//! The service thread: one for each process, asleep in `epoll` until somebody needs it.
//!
//! It must make progress while any other thread sleeps in a fault or holds any lock: if it stopped, the application's next `munmap` of adopted
//! memory would sleep for ever. So it allocates nothing, takes no lock, uses no standard stream and no thread-local storage
//! but its own `errno`; what it keeps is in own memory, and it stores to nothing else. Its table of descriptors is its own: the
//! application can neither close what is in there nor use it up, and a child that is forked does not get it.

use super::calls::{Answer, Call, Calls, Ticket};
use super::exporter::freeze::Freezer;
use super::exporter::{Exporter, Programs};
use super::handed::Handed;
use super::importer::Importer;
use super::secret::Key;
use super::windows::Windows;
use crate::config::Config;
use crate::counters::{self, Cell, sheet};
use crate::engine::Kind;
use crate::engine::rendezvous::{self, DOORS, Doors};
use crate::error::{Result, failed, missing};
use crate::id::Endpoint;
use crate::log::{self, log};
use crate::own::{self, OwnMemory};
use crate::range::Range;
use crate::sys::event::{Doorbell, Poller, Ready};
use crate::sys::futex::{self, Word};
use crate::sys::memory::{self, MapFlags, PAGE, ProtFlags};
use crate::sys::{Errno, Said, SysResult, fd, procfs, socket, thread};
use core::ffi::c_void;
use core::sync::atomic::Ordering;
use core::time::Duration;
use std::os::fd::AsFd;

const BELL: u64 = 7 << 32;
const DOORBELL: u64 = 1 << 32;
const LISTENER: u64 = 2 << 32;
const WATCHER: u64 = 3 << 32;
const TRAP: u64 = 4 << 32;
const CLIENT: u64 = 5 << 32;
const HOST: u64 = 6 << 32;
/// The process that stops threads has ended: it may have been killed.
const SIBLING: u64 = 8 << 32;
const KIND: u64 = !0 << 32;

const STACK: usize = 512 << 10;
/// What one thread needs so that its descriptors are its own.
const TABLE: &str = "a table of descriptors for one thread (close_range, Linux 5.9)";

/// How long those who knock wait while nobody can be let in. Nothing tells when there are descriptors or memory again.
const DEAF: Duration = Duration::from_millis(100);

/// What the service thread owns.
struct Service {
    endpoint: Endpoint,
    /// What importers must know.
    key: Key,
    doors: Doors,
    /// Why nobody can be let in now.
    deaf: Option<Errno>,
    poller: Poller,
    /// Rung by siblings.
    doorbell: Doorbell,
    calls: &'static Calls,
    exporter: Exporter,
    importer: Importer,
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
/// [`Unsupported`](crate::Error::Unsupported) names what is missing.
pub(crate) fn probe(config: Config) -> Result<()> {
    let size = memory::task_size() as u64 + PAGE as u64;
    let what = "a sparse file as large as the address space (RLIMIT_FSIZE)";
    memory::check_file_limit(size).map_err(missing(what))?;
    let mut buffer = [0; 4096];
    let status = procfs::read_small(c"/proc/thread-self/status", &mut buffer)
        .map_err(missing("/proc/thread-self/status"))?;
    if !procfs::numbers_as_here(status) {
        // Threads are found there by their numbers, which would be those of others.
        return Err(missing("a /proc of this process's own pid namespace")(Errno::XDEV));
    }
    if procfs::field(status, b"TracerPid:", 10).is_some_and(|pid| pid != 0) {
        return Err(missing("ptrace of this process's own threads (a debugger or strace has them)")(
            Errno::BUSY,
        ));
    }
    fd::may_leave_shared_table().map_err(missing(TABLE))?;
    let probed = probe_kernel(config);
    // The descriptors so far are the application's; those of the service thread will be its own.
    own::close();
    probed
}

fn probe_kernel(config: Config) -> Result<()> {
    Importer::probe()?;
    let mut exporter = Exporter::new(config)?;
    let doorbell = Doorbell::new().map_err(missing("eventfd"))?;
    exporter.probe(&doorbell)
}

/// Stops the threads of this process for a moment, if that can be done.
pub(crate) fn probe_stopping() -> SysResult<()> {
    let stopped = stop_for_a_moment();
    own::close();
    stopped
}

fn stop_for_a_moment() -> SysResult<()> {
    let (mut freezer, doorbell) = (Freezer::new()?, Doorbell::new()?);
    freezer.probe(&doorbell)
}

/// What the thread that starts the service thread waits for.
struct Start {
    config: Config,
    stack: (usize, usize),
    /// What the service thread runs on.
    programs: Programs,
    outcome: Handed<Result<Running>>,
    done: Word,
}

/// Starts the service thread of this process.
///
/// # Errors
/// [`Unsupported`](crate::Error::Unsupported) where the kernel does not offer what the engine needs.
pub(crate) fn start(config: Config) -> Result<Running> {
    // Not own memory, which a forked child does not have: glibc keeps the thread's descriptor on the stack, and visits it in
    // the child. Guard pages on both sides keep the kernel from joining it with memory that is adopted.
    const LEN: usize = STACK + 2 * PAGE;
    let all = memory::map_anonymous(LEN, ProtFlags::empty(), MapFlags::NORESERVE).map_err(failed("mmap"))?;
    let stack = all + PAGE;
    let programs = Programs::here();
    let order = Start { config, stack: (stack, STACK), programs, outcome: Handed::new(), done: Word::new(0) };
    let argument = core::ptr::from_ref(&order).cast_mut().cast();
    // SAFETY: fresh memory; nothing runs on it yet, and it is unmapped below at the earliest. The thread uses the order only until it says
    // that it is done.
    let started = unsafe {
        memory::protect(stack, STACK, ProtFlags::READ | ProtFlags::WRITE)
            .map_err(failed("mprotect"))
            .and_then(|()| thread::spawn(stack, STACK, main, argument).map_err(failed("pthread_create")))
    };
    let outcome = started.and_then(|thread| {
        while order.done.load(Ordering::Acquire) == 0 {
            futex::wait(&order.done, 0, None);
        }
        // SAFETY: the thread has put it in, and is done with the order.
        let outcome = unsafe { order.outcome.take() };
        if outcome.is_ok() {
            thread.detach()
        } else {
            thread.join()
        }
        outcome
    });
    if outcome.is_err() {
        // SAFETY: no thread has come to life on it, or it has ended.
        let _ = unsafe { memory::unmap(all, LEN) };
    }
    outcome
}

/// Makes everything that the service thread needs, for the calling thread to be it.
fn set_up(
    config: Config,
    stack: (usize, usize),
    programs: Programs,
) -> Result<(&'static mut Service, Running)> {
    let table = fd::leave_shared_table(log::enabled(log::Level::Error));
    table.map_err(missing(TABLE))?;
    let mut exporter = Exporter::new(config)?;
    exporter.keep_out(stack.0, stack.1);
    exporter.run_on(programs);
    exporter.set_up_forks()?;
    let doorbell = Doorbell::new().map_err(missing("eventfd"))?;
    sheet::start()?;
    let (endpoint, key, doors) = rendezvous::listen(Kind::Clone)?;
    sheet::set_endpoint(endpoint.to_raw());
    let poller = Poller::new().map_err(failed("epoll_create"))?;
    let calls = Calls::new().map_err(missing("signalfd"))?;
    let importer = Importer::new(config)?;
    let windows = importer.kept_windows();
    let calls: &'static Calls = place_in_own_memory(calls)?;
    let watched = [(calls.bell().as_fd(), BELL), (doorbell.as_fd(), DOORBELL), (exporter.watcher(), WATCHER)];
    let listeners = doors.listeners().map(|(number, fd)| (fd, LISTENER | number));
    for (fd, token) in watched.into_iter().chain(listeners).chain(importer.reporters().map(|fd| (fd, TRAP))) {
        poller.add(fd, token).map_err(failed("epoll_ctl"))?;
    }
    let service = Service { endpoint, key, doors, deaf: None, poller, doorbell, calls, exporter, importer };
    Ok((place_in_own_memory(service)?, Running { endpoint, calls, windows }))
}

extern "C" fn main(order: *mut c_void) -> *mut c_void {
    thread::widen_affinity();
    // For what the kernel copies out of memory on its behalf.
    thread::hold_all_keys();
    // SAFETY: `start` passes its order, and waits until this is done with it.
    let order = unsafe { &*order.cast::<Start>() };
    let (service, outcome) = match set_up(order.config, order.stack, order.programs) {
        Ok((service, running)) => (Some(service), Ok(running)),
        Err(error) => (None, Err(error)),
    };
    if outcome.is_err() {
        // The table goes with this thread.
        own::forget();
        sheet::forget_service();
    }
    // SAFETY: nobody else uses it before this is done.
    unsafe { order.outcome.put(outcome) };
    order.done.store(1, Ordering::Release);
    // The order may be gone: that wakes at worst somebody who sleeps on something else there, which all who do must expect.
    futex::wake(&order.done);
    match service {
        Some(service) => service.run(),
        None => core::ptr::null_mut(),
    }
}

impl Service {
    fn run(&mut self) -> ! {
        self.exporter.live_with_this_thread();
        loop {
            let mut patience = self.importer.check_patience(self.calls);
            // Whatever was done since may have brought reports.
            if self.importer.ask_for_waiters(&self.poller, HOST) {
                patience = self.importer.check_patience(self.calls);
            }
            self.settle();
            let patience = patience.into_iter().chain(self.exporter.patience());
            let patience = patience.chain(self.deaf.map(|_| DEAF)).min();
            let was_deaf = self.deaf.is_some();
            let mut ready = [None; 32];
            let mut count = 0;
            let waited = self.poller.wait(patience, |event| {
                if let Some(slot) = ready.get_mut(count) {
                    *slot = Some(event);
                    count += 1;
                }
            });
            if waited.is_err() {
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
            self.importer.try_again(self.calls, &self.poller, HOST);
            self.exporter.try_again(&self.poller, CLIENT);
            if let Some((ticket, answer)) =
                self.exporter.step(self.calls, &self.doorbell, (&self.poller, SIBLING))
            {
                self.calls.answer(ticket, Ok(answer));
            }
            self.pass_questions_on();
            self.exporter.catch_up_clients(&self.poller, CLIENT);
            self.exporter.mind_importers(self.calls, &self.poller, WATCHER);
            if self.exporter.is_asked() {
                self.survey();
                self.exporter.answer_surveys();
            }
            self.listen_again(was_deaf);
        }
    }

    /// Has the counters say how it is now.
    fn survey(&mut self) {
        self.exporter.survey_self();
        self.importer.survey_self();
    }

    /// Lets others in again, when something has happened since that was impossible.
    fn listen_again(&mut self, was_deaf: bool) {
        if !was_deaf {
            return;
        }
        let mut still = None;
        for door in 0..DOORS {
            let listener = self.doors.listener(door);
            if listener.is_some_and(|fd| self.poller.change(fd, LISTENER | door, false).is_ok()) {
                self.let_in(door);
                still = still.or(self.deaf);
            }
        }
        self.deaf = still;
    }

    /// Lets in who knocks at a door. Without a free descriptor, a guest makes room.
    fn let_in(&mut self, door: u64) {
        loop {
            let Some(listener) = self.doors.listener(door) else { return };
            let accepted = self.exporter.has_room().and_then(|()| socket::accept(listener));
            match accepted.and_then(|accepted| accepted.map(fd::to_last).transpose()) {
                Ok(accepted) => {
                    self.deaf = None;
                    if let Some(fd) = accepted {
                        self.exporter.connected(fd, self.key, &self.poller, CLIENT);
                    }
                    return;
                }
                Err(Errno::MFILE) if self.exporter.dismiss_guest(&self.poller, CLIENT) => {}
                Err(errno) => {
                    if self.deaf.replace(errno) != Some(errno) {
                        log!(Error, "nobody can be let in: accept: {errno}", errno = Said(errno));
                    }
                    // It would be ready for ever.
                    let _ = self.poller.pause(listener, LISTENER | door);
                    return;
                }
            }
        }
    }

    fn dispatch(&mut self, event: &Ready) {
        let number = event.token as u32;
        match event.token & KIND {
            DOORBELL => self.doorbell.clear(),
            BELL => {
                self.calls.bell().clear();
                while let Some((ticket, call)) = self.calls.take() {
                    self.serve(ticket, call);
                }
            }
            LISTENER => self.let_in(u64::from(number)),
            WATCHER => self.exporter.on_events(),
            TRAP => {
                self.importer.on_reports(&self.poller, HOST);
                self.settle();
            }
            CLIENT => {
                if event.writable {
                    self.exporter.client_writable(number, &self.poller, CLIENT);
                }
                if event.readable || event.hung_up {
                    self.exporter.client_readable(number, &self.poller, CLIENT);
                }
            }
            HOST => {
                if event.writable {
                    self.importer.host_writable(number, self.calls, &self.poller, HOST);
                }
                if event.readable || event.hung_up {
                    self.importer.host_readable(number, self.calls, &self.poller, HOST);
                    self.settle();
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
            Call::Connect { segment, key, access, identity, socket } => {
                let endpoint = (segment.endpoint(), key);
                match self.importer.connect(endpoint, identity, socket, &self.poller, HOST) {
                    Ok(()) => {
                        let open = Call::Open { segment, access, identity };
                        return self.importer.open(open, ticket, self.calls, &self.poller, HOST);
                    }
                    Err(error) => Err(error),
                }
            }
            Call::Check { grant } => {
                self.importer.catch_up(grant, self.calls, &self.poller, HOST);
                self.importer.check(grant).map(|()| Answer::Done)
            }
            Call::Close { grant } => {
                self.importer.close(grant, &self.poller, HOST);
                if self.settle() {
                    return self.exporter.answer_when_all_know(ticket, self.calls);
                }
                Ok(Answer::Done)
            }
            Call::Map { grant, remote, place } => {
                counters::count(Cell::AttachMisses);
                self.importer.catch_up(grant, self.calls, &self.poller, HOST);
                let replaced = place.and_then(|place| Range::new(place, remote.len()));
                let free = replaced.map_or(Ok(()), |range| self.exporter.is_to_be_replaced(range));
                let mapped = free.and_then(|()| self.importer.map(grant, remote, place));
                self.settle();
                if let Some(range) = mapped.ok().and_then(|mapped| mapped.made) {
                    self.exporter.note_window(range);
                }
                if let Some(range) = replaced {
                    self.exporter.may_be_replaced(range);
                }
                mapped.map(|mapped| Answer::Mapped(mapped.base))
            }
            Call::Unmap { addr } => {
                let unmapped = self.importer.unmap(addr);
                counters::add(Cell::DetachMisses, u64::from(unmapped.is_ok()));
                if self.settle() && unmapped.is_ok() {
                    return self.exporter.answer_when_all_know(ticket, self.calls);
                }
                unmapped.map(|()| Answer::Done)
            }
            Call::ForkBegin => {
                counters::count(Cell::Forks);
                if self.exporter.fork_begins(ticket).is_none() {
                    return;
                }
                Ok(Answer::Done)
            }
            Call::ForkEnd => {
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

    /// Has the importing side answer what importers ask about this process's windows.
    fn pass_questions_on(&mut self) {
        while let Some(question) = self.exporter.take_question() {
            if let Some(reply) = self.importer.question(question, &self.poller, HOST) {
                self.exporter.reply(question, reply);
            }
        }
        self.settle();
    }

    /// Tells the exporting side what has become of windows. True if importers had to be told.
    fn settle(&mut self) -> bool {
        // What was said before a window went is said first: importers must know what they are to give up.
        while let Some((question, reply)) = self.importer.take_reply() {
            self.exporter.reply(question, reply);
        }
        let mut told = false;
        while let Some(range) = self.importer.take_changed() {
            told |= self.exporter.is_not_shown_on(range);
        }
        while let Some(range) = self.importer.take_made() {
            self.exporter.note_window(range);
        }
        let exporter = &mut self.exporter;
        self.importer.take_removed(|range| told |= exporter.note_window_gone(range));
        told
    }
}
