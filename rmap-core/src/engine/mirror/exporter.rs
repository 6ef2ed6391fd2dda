//! The exporter: segments, each a space of the kernel module once somebody has a permit for it, and the thread that gives permits.

use super::super::Kind;
use super::super::protocol::{self, Access, Message};
use super::super::rendezvous::{self, Doors};
use super::super::rights::{Creator, Party};
use super::super::secret::{Key, Side};
use crate::counters::{self, Cell};
use crate::error::{self, Error, Result, failed};
use crate::id::{Endpoint, Id};
use crate::log::log;
use crate::range::Range;
use crate::sys::device::{self, mirror};
use crate::sys::event::Poller;
use crate::sys::maps::FileId;
use crate::sys::memory::{self, MapFlags, PAGE, ProtFlags};
use crate::sys::socket;
use crate::sys::{Errno, SysResult, thread};
use core::cell::RefCell;
use core::ffi::c_void;
use core::time::Duration;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

const STACK: usize = 256 << 10;
/// How soon it is tried again to let somebody in when no descriptor was free: nothing tells when one is.
const DEAF: Duration = Duration::from_millis(100);

/// A range that others may attach.
#[derive(Debug)]
struct Segment {
    range: Range,
    mode: u32,
    /// What shows it; nothing before the first permit.
    control: Option<OwnedFd>,
}

/// A process that has connected. It asks once, and leaves with the answer.
#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    party: Party,
    /// It has shown that it knows the ids of this process.
    trusted: bool,
}

#[derive(Debug, Default)]
struct State {
    segments: BTreeMap<u32, Segment>,
    last: u32,
    clients: BTreeMap<u64, Client>,
    last_client: u64,
    /// Given up for a client that comes when no descriptor is free.
    spare: Option<OwnedFd>,
    /// Nobody can be let in now.
    deaf: bool,
}

thread_local! {
    /// Held from before to after a fork.
    static FORKING: RefCell<Option<MutexGuard<'static, State>>> = const { RefCell::new(None) };
}

/// The exporting side of a process.
#[derive(Debug)]
pub(crate) struct Exporter {
    endpoint: Endpoint,
    key: Key,
    creator: Creator,
    doors: Doors,
    /// Tells whether the application has closed our descriptors.
    listener_id: FileId,
    poller: Poller,
    /// The thread holds it while it works, not while it waits: a fork finds it in order.
    state: Mutex<State>,
}

/// What the poller says of doors is below this; clients have numbers from here on.
const FIRST_CLIENT: u64 = rendezvous::DOORS;

fn open_control() -> SysResult<OwnedFd> {
    device::open(device::MIRROR)
}

/// Tries what the engine needs.
///
/// # Errors
/// [`Error::Unsupported`] names what is missing.
pub(crate) fn probe() -> Result<()> {
    let missing = error::missing("/dev/rmap");
    let control = open_control().map_err(&missing)?;
    match mirror::is_known(&control) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Unsupported { what: "/dev/rmap of this version", errno: Errno::NOSYS }),
        Err(errno) => Err(missing(errno)),
    }
}

extern "C" fn main(exporter: *mut c_void) -> *mut c_void {
    thread::widen_affinity();
    // SAFETY: `start` passes the exporter, which lives as long as the process.
    let exporter = unsafe { &*exporter.cast_const().cast::<Exporter>() };
    exporter.serve()
}

impl Segment {
    /// An access descriptor of the segment.
    fn access(&mut self, access: Access) -> SysResult<OwnedFd> {
        let control = match &self.control {
            Some(control) => control,
            None => {
                let control = open_control()?;
                mirror::bind_self(&control)?;
                mirror::show(&control, self.range)?;
                self.control.insert(control)
            }
        };
        mirror::access(control, access == Access::ReadWrite)
    }
}

impl State {
    /// Hangs up on whoever has been connected for longest; false if there is nobody.
    fn dismiss_one(&mut self) -> bool {
        let oldest = self.clients.pop_first();
        if let Some((_, client)) = &oldest {
            log!(Warn, "process {} has not asked for anything and is sent away", client.party.pid);
        }
        oldest.is_some()
    }
}

impl Exporter {
    /// Starts the thread that gives permits.
    pub(crate) fn start() -> Result<&'static Self> {
        let (endpoint, key, doors) = rendezvous::listen(Kind::Mirror)?;
        let listener_id = FileId::of(&doors.by_name).map_err(failed("fstat"))?;
        let poller = Poller::new().map_err(failed("epoll_create"))?;
        for (number, listener) in doors.listeners() {
            poller.add(listener, number).map_err(failed("epoll_ctl"))?;
        }
        let creator = Creator::of_this_process();
        let state = Mutex::default();
        let exporter: &'static Self =
            Box::leak(Box::new(Self { endpoint, key, creator, doors, listener_id, poller, state }));
        // Guard pages on both sides.
        let stack = memory::map_anonymous(STACK + 2 * PAGE, ProtFlags::empty(), MapFlags::NORESERVE)
            .map_err(failed("mmap"))?;
        // SAFETY: fresh memory; nothing runs on it yet, and it is never unmapped.
        unsafe {
            memory::protect(stack + PAGE, STACK, ProtFlags::READ | ProtFlags::WRITE)
                .map_err(failed("mprotect"))?;
            thread::spawn(stack + PAGE, STACK, main, core::ptr::from_ref(exporter).cast_mut().cast())
                .map(thread::Started::detach)
                .map_err(failed("pthread_create"))?;
        }
        Ok(exporter)
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the application has left our descriptors open.
    fn is_there(&self) -> bool {
        FileId::of(&self.doors.by_name) == Ok(self.listener_id)
    }

    fn check_descriptors(&self) -> Result<()> {
        let errno = Errno::BADF;
        self.is_there()
            .then_some(())
            .ok_or(Error::Unsupported { what: "a descriptor of this library's own", errno })
    }

    pub(crate) fn offer(&self, range: Range, mode: u32) -> Result<u32> {
        self.check_descriptors()?;
        let mut state = self.state();
        if state.last >= Id::MAX_COUNTER {
            return Err(Error::OutOfIds);
        }
        state.last += 1;
        let counter = state.last;
        state.segments.insert(counter, Segment { range, mode, control: None });
        log!(Info, "segment {counter} offers {range} with mode {mode:04o}");
        Ok(counter)
    }

    /// Ends a segment. When this returns, nobody reaches the memory by it.
    pub(crate) fn withdraw(&self, counter: u32) -> Result<()> {
        self.check_descriptors()?;
        let segment = self.state().segments.remove(&counter).ok_or(Error::NoSuchId)?;
        log!(Info, "segment {counter} removed");
        match &segment.control {
            Some(control) => mirror::revoke(control).map_err(failed("RMAP_IOC_REVOKE")),
            None => Ok(()),
        }
    }

    fn serve(&self) -> ! {
        loop {
            let patience = self.state().deaf.then_some(DEAF);
            let mut ready = [None; 32];
            let mut events = ready.iter_mut();
            let waited = self.poller.wait(patience, |event| {
                if let Some(slot) = events.next() {
                    *slot = Some(event.token);
                }
            });
            match waited {
                Ok(()) | Err(Errno::INTR) if self.is_there() => {}
                _ => {
                    log!(
                        Error,
                        "the process has closed the library's descriptors, and is not served any more"
                    );
                    thread::sleep_for_ever()
                }
            }
            let mut state = self.state();
            for number in ready.into_iter().flatten().filter(|number| *number >= FIRST_CLIENT) {
                self.hear(&mut state, number);
            }
            // Last, so that whoever has come before is not sent away with a question unread.
            for (door, listener) in self.doors.listeners() {
                if ready.contains(&Some(door)) || state.deaf {
                    self.let_in(listener, &mut state);
                }
            }
            if state.spare.is_none() {
                state.spare = rustix::io::fcntl_dupfd_cloexec(&self.doors.by_name, 0).ok();
            }
        }
    }

    /// Lets in who knocks. Those who ask for nothing may not take the application's descriptors: they make room.
    fn let_in(&self, listener: BorrowedFd<'_>, state: &mut State) {
        match socket::accept(listener) {
            Ok(Some(socket)) => {
                let Ok(party) = Party::at(&socket, self.creator.shared) else { return };
                state.last_client = (state.last_client + 1).max(FIRST_CLIENT);
                if self.poller.add(&socket, state.last_client).is_ok() {
                    state.clients.insert(state.last_client, Client { socket, party, trusted: false });
                }
                let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
                if limit.is_some_and(|limit| state.clients.len() as u64 > limit / 4) {
                    state.dismiss_one();
                }
            }
            // The listener stays ready for those who wait.
            Err(Errno::MFILE) if state.dismiss_one() || state.spare.take().is_some() => {}
            Ok(None) if !state.deaf => {}
            result => {
                let deaf = result.is_err();
                if deaf && !state.deaf {
                    log!(Error, "accept: {:?}", result.err());
                    // It would be ready for ever.
                    self.doors.listeners().for_each(|(_, listener)| self.poller.remove(listener));
                }
                let heard = |(door, listener)| match self.poller.add(listener, door) {
                    Ok(()) | Err(Errno::EXIST) => true,
                    Err(_) => false,
                };
                if !deaf && state.deaf && !self.doors.listeners().all(heard) {
                    return;
                }
                state.deaf = deaf;
            }
        }
    }

    /// A client has sent something, or is gone.
    fn hear(&self, state: &mut State, number: u64) {
        let State { clients, segments, .. } = state;
        let Some(client) = clients.get_mut(&number) else { return };
        let mut bytes = [0; protocol::SIZE + 1];
        let received = socket::receive(&client.socket, &mut bytes);
        if matches!(received, Err(Errno::AGAIN)) {
            return;
        }
        let message = received.ok().and_then(|(len, _)| Message::decode(&bytes[..len]));
        let served = match message {
            Some(Message::Hello { number, proof }) if proof == self.key.proof(Side::Importer, number) => {
                client.trusted = true;
                let proof = Message::Proof { proof: self.key.proof(Side::Exporter, number) };
                socket::send(&client.socket, &proof.encode(), None)
            }
            Some(Message::Get { request, segment, access }) if client.trusted => {
                self.give_permit(client, segments, (request, segment, access))
            }
            _ => Err(Errno::PROTO),
        };
        if served.is_err() {
            clients.remove(&number);
        }
    }

    /// Answers a process that asks for a permit.
    fn give_permit(
        &self,
        client: &Client,
        segments: &mut BTreeMap<u32, Segment>,
        (request, segment, access): (u32, u32, Access),
    ) -> SysResult<()> {
        let made = match segments.get_mut(&segment) {
            None => Err(Error::NoSuchId),
            Some(found) if !self.creator.allows(found.mode, &client.party, &client.socket, access) => {
                Err(Error::Denied)
            }
            Some(found) => found.access(access).map(|fd| (fd, found.range)).map_err(failed("/dev/rmap")),
        };
        match made {
            Ok((fd, range)) => {
                counters::count_anywhere(Cell::PermitsGiven);
                let granted = Message::Granted { request, grant: segment, serial: 0, range };
                socket::send(&client.socket, &granted.encode(), Some(fd.as_fd()))
            }
            Err(error) => {
                log!(Warn, "no permit for process {}: {error}", client.party.pid);
                counters::count_anywhere(match error {
                    Error::Denied => Cell::PermitsDenied,
                    Error::NoSuchId => Cell::PermitsUnknown,
                    _ => Cell::PermitsFailed,
                });
                let refused = Message::Refused { request, errno: error.errno().unsigned_abs() };
                socket::send(&client.socket, &refused.encode(), None)
            }
        }
    }

    pub(crate) fn before_fork(&'static self) {
        FORKING.with(|forking| *forking.borrow_mut() = Some(self.state()));
    }

    pub(crate) fn after_fork_in_parent(&self) {
        FORKING.with(|forking| forking.borrow_mut().take());
    }

    /// Closes what belongs to the parent: as long as somebody has it, its name is taken and its memory is shown.
    pub(crate) fn after_fork_in_child(&self) {
        let Some(mut state) = FORKING.with(|forking| forking.borrow_mut().take()) else { return };
        let state = core::mem::take(&mut *state);
        if !self.is_there() {
            // The numbers are the application's by now.
            core::mem::forget(state);
            return;
        }
        drop(state);
        let listeners = self.doors.listeners().map(|(_, listener)| listener.as_raw_fd());
        for fd in listeners.chain([self.poller.as_fd().as_raw_fd()]) {
            // SAFETY: ours, and nothing in the child refers to them any more: there is no thread, and the engine is started anew.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}
