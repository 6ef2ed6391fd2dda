//! The importer: permits, which are access descriptors, and what is mapped from them.

use super::super::protocol::{self, Message};
use super::super::secret::Side;
use super::super::{Access, Opened, rendezvous};
use crate::config::Config;
use crate::counters::alone::Party;
use crate::error::{Error, Result, failed};
use crate::id::Id;
use crate::log::log;
use crate::range::Range;
use crate::sys::device::mirror;
use crate::sys::maps::FileId;
use crate::sys::memory::{self, MapFlags, PAGE, ProtFlags};
use crate::sys::{Errno, event, procfs, socket, thread};
use core::cell::RefCell;
use core::time::Duration;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

/// How long an exporter may take before it is looked at whether it is stopped.
const GLANCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Permit {
    fd: OwnedFd,
    file: FileId,
    access: Access,
}

impl Permit {
    fn protection(&self) -> ProtFlags {
        match self.access {
            Access::ReadOnly => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        }
    }

    fn map(&self, remote: Range, place: Option<usize>) -> Result<usize> {
        if FileId::of(&self.fd) != Ok(self.file) {
            return Err(Error::Unsupported {
                what: "a descriptor of this library's own",
                errno: Errno::BADF,
            });
        }
        let (len, offset) = (remote.len(), remote.start() as u64);
        let mapped = match place {
            None => memory::map(len, self.protection(), MapFlags::SHARED, self.fd.as_fd(), offset),
            // SAFETY: the caller of `attach` has given the place away.
            Some(at) => unsafe {
                memory::map_over(at, len, self.protection(), MapFlags::SHARED, self.fd.as_fd(), offset)
            }
            .map(|()| at),
        };
        mapped.map_err(|errno| match errno {
            // The segment was removed; the exporter is gone.
            Errno::NODEV | Errno::SRCH => Error::NoSuchId,
            errno => failed("mmap")(errno),
        })
    }

    /// Whether it can still be mapped: by trying.
    fn check(&self) -> Result<()> {
        let page = Range::new(0, PAGE).ok_or(Error::NoSuchId)?;
        let at = self.map(page, None)?;
        // SAFETY: nobody knows of it.
        unsafe { memory::unmap(at, PAGE) }.map_err(failed("munmap"))
    }
}

/// What is mapped, and by which permit.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    len: usize,
    grant: u32,
}

#[derive(Debug, Default)]
struct State {
    permits: HashMap<u32, Permit>,
    last: u32,
    mappings: BTreeMap<usize, Mapping>,
}

impl State {
    /// The mapping that overlaps a range.
    fn overlapping(&self, range: Range) -> Option<(usize, Mapping)> {
        let last = self.mappings.range(..range.end()).next_back();
        last.map(|(base, mapping)| (*base, *mapping))
            .filter(|(base, mapping)| base + mapping.len > range.start())
    }

    /// Unmaps what was mapped at `base`.
    fn remove(&mut self, base: usize) -> Result<()> {
        let Some(mapping) = self.mappings.remove(&base) else { return Ok(()) };
        // SAFETY: whoever attached it detaches it, or gives the permit back.
        unsafe { memory::unmap(base, mapping.len) }.map_err(failed("munmap"))
    }
}

thread_local! {
    /// Held from before to after a fork.
    static FORKING: RefCell<Option<MutexGuard<'static, State>>> = const { RefCell::new(None) };
}

/// The importing side of a process.
#[derive(Debug)]
pub(crate) struct Importer {
    peer_timeout: Option<Duration>,
    state: &'static Mutex<State>,
}

/// An answer of the exporter's that came over `socket`.
fn receive(socket: &OwnedFd) -> Result<Option<(Message, Option<OwnedFd>)>> {
    let mut bytes = [0; protocol::SIZE + 1];
    match socket::receive(socket, &mut bytes) {
        Err(Errno::AGAIN) => Ok(None),
        Ok((0, _)) | Err(Errno::CONNRESET | Errno::PIPE) => Err(Error::NoSuchId),
        Err(errno) => Err(failed("recvmsg")(errno)),
        Ok((len, fd)) => {
            let message = Message::decode(&bytes[..len]).ok_or(Error::NoSuchId)?;
            Ok(Some((message, fd)))
        }
    }
}

impl Importer {
    pub(crate) fn new(config: Config) -> Self {
        Self { peer_timeout: config.peer_timeout, state: Box::leak(Box::default()) }
    }

    fn state(&self) -> MutexGuard<'static, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for an answer while the exporter lives.
    fn answer(&self, socket: &OwnedFd) -> Result<(Message, Option<OwnedFd>)> {
        let since = thread::time();
        let mut told = false;
        loop {
            if let Some(answer) = receive(socket)? {
                return Ok(answer);
            }
            let waited = thread::time().saturating_sub(since);
            let left = self.peer_timeout.map_or(GLANCE, |limit| limit.saturating_sub(waited).min(GLANCE));
            if left.is_zero() {
                return Err(Error::TimedOut);
            }
            if event::wait_until_readable(socket, left) || told {
                continue;
            }
            if let Some(pid) =
                socket::peer(socket).ok().map(|peer| peer.pid).filter(|pid| procfs::is_stopped(*pid))
            {
                log!(Warn, "process {pid} is stopped, and is waited for");
                told = true;
            }
        }
    }

    /// Asks the exporter for a permit, with the credentials of the calling thread.
    pub(crate) fn open(&self, segment: Id, access: Access) -> Result<Opened> {
        let (key, socket) = rendezvous::connect(segment.endpoint())?;
        let drawn = rendezvous::random()?;
        let hello = Message::Hello { number: drawn, proof: key.proof(Side::Importer, drawn) };
        let wanted = match access {
            Access::ReadOnly => protocol::Access::ReadOnly,
            Access::ReadWrite => protocol::Access::ReadWrite,
        };
        let get = Message::Get { request: 1, segment: segment.counter(), access: wanted };
        for message in [hello, get] {
            socket::send(&socket, &message.encode(), None).map_err(|errno| match errno {
                Errno::PIPE | Errno::CONNRESET => Error::NoSuchId,
                errno => failed("sendmsg")(errno),
            })?;
        }
        match self.answer(&socket)?.0 {
            Message::Proof { proof } if proof == key.proof(Side::Exporter, drawn) => {}
            _ => {
                log!(Warn, "somebody has the socket of an id that it has not made");
                return Err(Error::NoSuchId);
            }
        }
        match self.answer(&socket)? {
            (Message::Granted { request: 1, range, .. }, Some(fd)) => {
                let exporter = socket::peer(&socket).map_or(Party::default(), |peer| (peer.pid, peer.uid));
                self.keep(fd, range, access, exporter)
            }
            (Message::Refused { request: 1, errno }, _) => Err(rendezvous::refusal(errno)),
            // No process of ours answers like that.
            _ => Err(Error::NoSuchId),
        }
    }

    fn keep(&self, fd: OwnedFd, range: Range, access: Access, exporter: Party) -> Result<Opened> {
        // An exporter may send anything: only the module's own descriptors are mapped.
        let genuine = mirror::is_access(&fd, access == Access::ReadWrite).map_err(failed("fstatfs"))?;
        if !genuine || range.end() > memory::task_size() {
            log!(Warn, "the exporter's descriptor is none of the kernel module's");
            return Err(Error::NoSuchId);
        }
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            log!(
                Info,
                "attachments by the mirror engine cannot be pinned (RDMA, O_DIRECT) and hold no shared futexes; \
                 those of an exporter with RMAP_ENGINE=clone can, and those of its pinnable segments"
            );
        });
        let file = FileId::of(&fd).map_err(failed("fstat"))?;
        let mut state = self.state();
        if state.last >= Id::MAX_COUNTER {
            return Err(Error::OutOfIds);
        }
        state.last += 1;
        let grant = state.last;
        state.permits.insert(grant, Permit { fd, file, access });
        Ok(Opened { grant, range, exporter })
    }

    /// Whether a permit can still be attached.
    pub(crate) fn check(&self, grant: u32) -> Result<()> {
        let state = self.state();
        state.permits.get(&grant).ok_or(Error::NoSuchId)?.check()
    }

    pub(crate) fn map(&self, grant: u32, remote: Range, place: Option<usize>) -> Result<usize> {
        let mut state = self.state();
        let permit = state.permits.get(&grant).ok_or(Error::NoSuchId)?;
        if let Some(target) = place.and_then(|place| Range::new(place, remote.len()))
            && state.overlapping(target).is_some()
        {
            permit.check()?;
            return Err(Error::RangeTaken(target));
        }
        let base = permit.map(remote, place)?;
        let here = Range::new(base, remote.len()).ok_or(Error::NoSuchId)?;
        // The application has unmapped it by itself.
        while let Some((stale, _)) = state.overlapping(here) {
            state.mappings.remove(&stale);
        }
        state.mappings.insert(base, Mapping { len: remote.len(), grant });
        Ok(base)
    }

    /// Gives up the mapping that covers `addr`; false if there is none.
    pub(crate) fn unmap(&self, addr: usize) -> Result<bool> {
        let mut state = self.state();
        let Some(page) = Range::new(addr & !(PAGE - 1), PAGE) else { return Ok(false) };
        match state.overlapping(page) {
            Some((base, _)) => state.remove(base).map(|()| true),
            None => Ok(false),
        }
    }

    /// Gives a permit back, with what was mapped by it.
    pub(crate) fn close(&self, grant: u32) {
        let mut state = self.state();
        let of_it = |(base, mapping): (&usize, &Mapping)| (mapping.grant == grant).then_some(*base);
        let mapped: Vec<usize> = state.mappings.iter().filter_map(of_it).collect();
        for base in mapped {
            if let Err(error) = state.remove(base) {
                log!(Error, "an attachment stays: {error}");
            }
        }
        state.permits.remove(&grant);
    }

    pub(crate) fn before_fork(&self) {
        FORKING.with(|forking| *forking.borrow_mut() = Some(self.state()));
    }

    pub(crate) fn after_fork_in_parent(&self) {
        FORKING.with(|forking| forking.borrow_mut().take());
    }

    /// The child has none of the mappings (the kernel leaves them out), and must not keep the descriptors.
    pub(crate) fn after_fork_in_child(&self) {
        if let Some(mut state) = FORKING.with(|forking| forking.borrow_mut().take()) {
            *state = State::default();
        }
    }
}
