//! The importer: connections to exporters, permits held, windows onto their memory, and the faults of threads that touch a
//! page which is not there yet.
//!
//! All of it belongs to the service thread.

mod faults;
mod host;
mod keep;
mod pass_on;
mod signals;
mod status;
mod swap;
mod taken;
mod window;

use super::calls::{Answer, Call, Calls, Ticket};
use super::errand::Errand;
use super::exporter::Question;
use super::protocol::{Access, Message, Source};
use super::rendezvous::{self, refusal};
use super::rights::Shared;
use super::secret::Key;
use super::windows::Listing;
use crate::config::Config;
use crate::counters::rows::PeerRows;
use crate::counters::{self, Cell};
use crate::error::{Error, Result, failed, missing};
use crate::id::Endpoint;
use crate::log::log;
use crate::own::{OwnVec, RangeTable};
use crate::range::Range;
use crate::sys::Errno;
use crate::sys::event::Poller;
use crate::sys::fd::{self, Lent};
use crate::sys::maps::FileId;
use crate::sys::memory::{self, PAGE};
use crate::sys::thread;
use crate::sys::uffd::Userfaultfd;
use core::time::Duration;
use faults::{Waiter, Why};
use host::Host;
use pass_on::Said;
pub(crate) use pass_on::{Reply, Shown};
use signals::FaultSignals;
use status::StatusPages;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use window::{Piece, Window};

/// A permit that this process holds.
#[derive(Clone, Copy, Debug)]
struct Permit {
    number: u32,
    host: u32,
    /// The exporter's number for it.
    grant: u32,
    access: Access,
    range: Range,
    /// The object that windows map unless told otherwise.
    base: u32,
    removed: bool,
}

/// Something asked of an exporter, not answered yet.
#[derive(Clone, Copy, Debug)]
struct Request {
    number: u32,
    host: u32,
    since: Duration,
    /// The log has said that it takes long.
    said: bool,
    kind: RequestKind,
}

#[derive(Clone, Copy, Debug)]
enum RequestKind {
    Get {
        ticket: Ticket,
        access: Access,
    },
    Resolve {
        page: usize,
    },
    /// An importer of this process asks.
    PassOn(Question),
}

impl RequestKind {
    fn get(self) -> Option<(Ticket, Access)> {
        match self {
            Self::Get { ticket, access } => Some((ticket, access)),
            Self::Resolve { .. } | Self::PassOn(_) => None,
        }
    }

    /// The page that is asked for, and whose question it is if no thread of this process waits.
    fn page(self) -> Option<(usize, Option<Question>)> {
        match self {
            Self::Resolve { page } => Some((page, None)),
            Self::PassOn(question) => Some((question.page(), Some(question))),
            Self::Get { .. } => None,
        }
    }
}

/// The importing side of a process.
#[derive(Debug)]
pub(crate) struct Importer {
    config: Config,
    /// Numbers that exporters may share.
    shared: Shared,
    /// How much of an exporter a window is to show.
    block: usize,
    hosts: OwnVec<Host>,
    next_host: u32,
    permits: OwnVec<Permit>,
    next_permit: u32,
    /// In order of address.
    windows: OwnVec<Window>,
    /// The windows that are kept, for the application's threads to find.
    listing: Listing,
    /// So many windows are enough to look for some that are not in use.
    make_room_at: usize,
    /// Windows that are new, for the exporter of this process to know, before it knows of those that are gone.
    made: OwnVec<Range>,
    /// Windows that are gone, for the exporter of this process to know.
    removed: OwnVec<Range>,
    /// What windows do not show any more, for the exporter of this process to know.
    changed: OwnVec<Range>,
    /// Answers to questions of its importers.
    replies: OwnVec<(Question, Reply)>,
    status_pages: StatusPages,
    /// The exporters, for others to see.
    peer_rows: PeerRows,
    /// Parts of windows that do not map the base object.
    pieces: RangeTable<Piece>,
    requests: OwnVec<Request>,
    next_request: u32,
    waiters: OwnVec<Waiter>,
    /// Reports threads at missing pages of windows, and unmapping of what is trapped.
    trap: Userfaultfd,
    /// Reports unmapping of pieces that are not trapped.
    follower: Userfaultfd,
    signals: FaultSignals,
    swapper: Errand<swap::Order>,
    /// An empty file: what is mapped from it gives SIGBUS.
    nothing: OwnedFd,
    /// A file of holes, at every address.
    blank: OwnedFd,
}

/// When to try again what failed for want of something. Nothing tells when it is there.
const SOON: Duration = Duration::from_millis(10);

/// How long an exporter may take before the log says so.
const LONG: Duration = Duration::from_secs(1);

impl Importer {
    pub(crate) fn new(config: Config) -> Result<Self> {
        let nothing = rustix::fs::memfd_create(c"rmap-nothing", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(missing("memfd_create"))?;
        let blank = memory::sealed_memfd(c"rmap-blank", memory::task_size() as u64 + PAGE as u64)
            .map_err(failed("memfd_create"))?;
        let (trap, follower) = traps()?;
        // What the first attach would have to make room for; and what a thread waits for must be noted, whatever there is.
        let (mut windows, mut removed) = (OwnVec::new(), OwnVec::new());
        let (mut requests, mut waiters) = (OwnVec::new(), OwnVec::new());
        let windows_fit = windows.reserve(1).and_then(|()| removed.reserve(1));
        let waits_fit = requests.reserve(1).and_then(|()| waiters.reserve(1));
        windows_fit.and(waits_fit).map_err(failed("mmap"))?;
        Ok(Self {
            config,
            shared: Shared::of_this_process(),
            block: keep::block(),
            hosts: OwnVec::new(),
            next_host: 1,
            permits: OwnVec::new(),
            next_permit: 1,
            windows,
            listing: Listing::shared().and_then(Listing::new).map_err(failed("mmap"))?,
            make_room_at: config.window_limit,
            made: OwnVec::new(),
            removed,
            changed: OwnVec::new(),
            replies: OwnVec::new(),
            status_pages: StatusPages::new(),
            peer_rows: PeerRows::of_exporters(),
            pieces: RangeTable::new(),
            requests,
            next_request: 1,
            waiters,
            trap,
            follower,
            signals: FaultSignals::new().map_err(failed("mmap"))?,
            swapper: Errand::new(16 << 10).map_err(failed("mmap"))?,
            nothing,
            blank,
        })
    }

    /// Tries what the kernel must have for it.
    pub(crate) fn probe() -> Result<()> {
        traps().map(drop)
    }

    /// What reports threads that touch a missing page, and windows that the application unmaps.
    pub(crate) fn reporters(&self) -> [BorrowedFd<'_>; 2] {
        [self.trap.as_fd(), self.follower.as_fd()]
    }

    fn host(&self, number: u32) -> Option<usize> {
        self.hosts.binary_search_by_key(&number, |host| host.number).ok()
    }

    fn permit(&self, number: u32) -> Option<usize> {
        self.permits.binary_search_by_key(&number, |permit| permit.number).ok()
    }

    /// Asks for a permit. Answers now only if there is no connection yet.
    pub(crate) fn open(&mut self, call: Call, ticket: Ticket, calls: &Calls, poller: &Poller, token: u64) {
        let Call::Open { segment, access, identity } = call else {
            return;
        };
        let Some(number) = self.connected(segment.endpoint(), identity) else {
            return calls.answer(ticket, Ok(Answer::NeedSocket));
        };
        let kind = RequestKind::Get { ticket, access };
        let asked = self.ask(number, kind, poller, token, |request| Message::Get {
            request,
            segment: segment.counter(),
            access,
        });
        if let Err(error) = asked {
            calls.fail(ticket, error);
        }
    }

    /// The connection of this identity to an exporter.
    fn connected(&self, endpoint: Endpoint, identity: u64) -> Option<u32> {
        let known = |host: &&Host| host.endpoint == endpoint && host.identity == identity && host.alive;
        self.hosts.iter().find(known).map(|host| host.number)
    }

    /// Takes over a connection to an exporter, if there is none of this identity.
    pub(crate) fn connect(
        &mut self,
        (endpoint, key): (Endpoint, Key),
        identity: u64,
        socket: Lent,
        poller: &Poller,
        token: u64,
    ) -> Result<()> {
        if self.connected(endpoint, identity).is_some() {
            return Ok(());
        }
        let number = self.next_host;
        let socket = socket.take().or_else(|errno| match errno {
            Errno::MFILE | Errno::NFILE | Errno::NOMEM => Err(errno),
            // It cannot be taken over. A connection of this thread's own carries the credentials of the process.
            _ => rendezvous::connect_at_once(endpoint.kind(), key),
        });
        let socket = socket.and_then(fd::to_last).map_err(failed("pidfd_getfd"))?;
        let host = Host::new(number, (endpoint, key), identity, socket, self.shared)?;
        poller.add(host.socket(), token | u64::from(number)).map_err(failed("epoll_ctl"))?;
        self.hosts.push(host).map_err(failed("mmap"))?;
        self.next_host += 1;
        Ok(())
    }

    /// Sends a request and remembers it.
    fn ask(
        &mut self,
        host: u32,
        kind: RequestKind,
        poller: &Poller,
        token: u64,
        message: impl FnOnce(u32) -> Message,
    ) -> Result<()> {
        let Some(index) = self.host(host) else {
            return Err(Error::NoSuchId);
        };
        let number = self.next_request;
        let request = Request { number, host, since: thread::time(), said: false, kind };
        self.requests.push(request).map_err(failed("mmap"))?;
        self.next_request = self.next_request.wrapping_add(1).max(1);
        let sent = self.hosts[index].send(message(number), poller, token | u64::from(host));
        if let Err(error) = sent {
            self.requests.retain(|request| request.number != number);
            return Err(error);
        }
        Ok(())
    }

    /// Gives a permit back, with its windows.
    pub(crate) fn close(&mut self, number: u32, poller: &Poller, token: u64) {
        if let Err(error) = self.remove_windows(number) {
            log!(Error, "removing the windows of a permit: {error}");
        }
        let Some(permit) = self.permit(number).and_then(|index| self.permits.remove(index)) else {
            return;
        };
        counters::count(Cell::PermitsReleased);
        self.send_release(permit.host, permit.grant, poller, token);
    }

    /// Gives a permit back to an exporter that lives.
    fn send_release(&mut self, host: u32, grant: u32, poller: &Poller, token: u64) {
        if let Some(index) = self.host(host).filter(|index| self.hosts[*index].alive) {
            let _ = self.hosts[index].send(Message::Release { grant }, poller, token | u64::from(host));
        }
        self.close_idle_host(host);
    }

    /// Forgets a connection that nothing needs: a job of many processes, one after the other, must not run out of descriptors.
    fn close_idle_host(&mut self, number: u32) {
        let busy = self.permits.iter().any(|permit| permit.host == number)
            || self.requests.iter().any(|request| request.host == number);
        if let Some(index) = self.host(number).filter(|_| !busy) {
            if self.hosts[index].has_unsent() {
                return;
            }
            self.forget_row(index);
            if let Some(status) = self.hosts.remove(index).and_then(|host| host.status()) {
                self.status_pages.give_back(status);
            }
        }
    }

    fn forget_row(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        self.peer_rows.remove(host.row.take(), host.pid(), host.user().number());
    }

    /// Notes how it is now.
    pub(crate) fn survey_self(&mut self) {
        let mut permits = OwnVec::new();
        let counted = self.hosts.iter().try_for_each(|_| permits.push(0u64)).is_ok();
        for permit in self.permits.iter().filter(|_| counted) {
            if let Some(number) = self.host(permit.host).and_then(|index| permits.get_mut(index)) {
                *number += 1;
            }
        }
        for (host, permits) in self.hosts.iter().zip(permits.iter()) {
            self.peer_rows.set_permits(host.row, *permits);
        }
        counters::set(Cell::Exporters, permits.iter().filter(|permits| **permits > 0).count() as u64);
        counters::set(Cell::PermitsHeld, self.permits.len() as u64);
        counters::set(Cell::Windows, self.windows.len() as u64);
        counters::set(Cell::WindowBytes, self.windows.iter().map(|window| window.range.len() as u64).sum());
    }

    /// An exporter has sent something, or is gone.
    pub(crate) fn host_readable(&mut self, number: u32, calls: &Calls, poller: &Poller, token: u64) {
        // A bound on what is read from one exporter before others are served.
        self.read_messages(number, 64, calls, poller, token);
    }

    fn read_messages(&mut self, number: u32, most: usize, calls: &Calls, poller: &Poller, token: u64) {
        for _ in 0..most {
            let Some(index) = self.host(number) else { return };
            match self.hosts[index].receive() {
                Ok(None) => return,
                Ok(Some((message, descriptor))) => {
                    let handled = self.handle(number, message, descriptor, calls, poller, token);
                    let (Err(error), Some(index)) = (handled, self.host(number)) else { continue };
                    let host = &mut self.hosts[index];
                    // What comes without a descriptor may be handled at any time.
                    let again = matches!(message, Message::Stale { .. } | Message::Removed { .. });
                    if again && error.is_passing() {
                        if host.handle_again(message, poller, token | u64::from(number)) {
                            log!(Warn, "what exporter {} has taken back is shown still: {error}", host.pid());
                        }
                        return;
                    }
                    log!(Warn, "exporter {} dropped: {error}", host.pid());
                    return self.lose_host(number, error, calls, poller, token);
                }
                Err(_) => return self.lose_host(number, Error::NoSuchId, calls, poller, token),
            }
        }
    }

    /// Handles again what could not be handled for want of something.
    pub(crate) fn try_again(&mut self, calls: &Calls, poller: &Poller, token: u64) {
        let mut index = 0;
        while let Some(host) = self.hosts.get_mut(index) {
            let number = host.number;
            if host.is_to_be_tried_again() {
                host.resume(poller, token | u64::from(number));
                self.read_messages(number, 1, calls, poller, token);
            }
            // It may be gone by now.
            index += usize::from(self.hosts.get(index).is_some_and(|host| host.number == number));
        }
    }

    /// Room to write to an exporter again.
    pub(crate) fn host_writable(&mut self, number: u32, calls: &Calls, poller: &Poller, token: u64) {
        let Some(index) = self.host(number) else { return };
        if self.hosts[index].flush(poller, token | u64::from(number)).is_err() {
            return self.lose_host(number, Error::NoSuchId, calls, poller, token);
        }
        self.close_idle_host(number);
    }

    /// The process of an exporter, 0 if there is none that can be seen.
    fn pid_of(&self, host: u32) -> u32 {
        self.host(host).map_or(0, |index| self.hosts[index].pid())
    }

    /// An exporter is gone, or of no use: every wait for it ends with `error`. What was mapped stays readable, but for what it had attached
    /// itself: whose memory that is does not know this process.
    fn lose_host(&mut self, number: u32, error: Error, calls: &Calls, poller: &Poller, token: u64) {
        let pid = self.pid_of(number);
        if let Some(index) = self.host(number) {
            log!(Info, "exporter {pid} is gone");
            self.hosts[index].bury(poller);
            self.forget_row(index);
            for index in 0..self.permits.len() {
                if self.permits[index].host == number {
                    self.close_windows(self.permits[index].number);
                }
            }
            if let Err(error) = self.make_stale(number, Range::EVERYTHING, Piece::is_foreign) {
                log!(Error, "what a process had attached that has ended is shown still: {error}");
            }
        }
        let mut index = 0;
        while let Some(request) = self.requests.get(index).copied() {
            if request.host != number {
                index += 1;
                continue;
            }
            let _ = self.requests.remove(index);
            match request.kind {
                RequestKind::Get { ticket, .. } => calls.fail(ticket, error),
                RequestKind::Resolve { page } => self.refuse_block(page, Why::Gone(pid)),
                RequestKind::PassOn(question) => {
                    self.reply(question, Reply::Hole("whose memory it is has gone"))
                }
            }
        }
        // Threads may wait for neighbours of a page whose answer was refused.
        self.ask_for_waiters(poller, token);
        self.close_idle_host(number);
    }

    /// The request that an answer is for, off the list; `None` if it was given up.
    ///
    /// # Errors
    /// The answer does not fit. The request stays, to be ended with the connection.
    fn take_request<T>(
        &mut self,
        number: u32,
        host: u32,
        fits: impl FnOnce(RequestKind) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(index) = self.requests.iter().position(|r| r.number == number && r.host == host) else {
            return Ok(None);
        };
        let wanted = fits(self.requests[index].kind).ok_or(Error::Invalid("an answer to another request"))?;
        if self.host(host).is_some_and(|index| self.hosts[index].is_unsent(number)) {
            return Err(Error::Invalid("an answer to a question that was not sent yet"));
        }
        if let Some(request) = self.requests.remove(index)
            && matches!(request.kind, RequestKind::Resolve { .. })
        {
            let took = u64::try_from(thread::time().saturating_sub(request.since).as_nanos()).unwrap_or(0);
            counters::add(Cell::TouchesNs, took);
            counters::raise(Cell::TouchLongestNs, took);
        }
        Ok(Some(wanted))
    }

    fn handle(
        &mut self,
        host: u32,
        message: Message,
        descriptor: Option<OwnedFd>,
        calls: &Calls,
        poller: &Poller,
        token: u64,
    ) -> Result<()> {
        match message {
            Message::Granted { request, grant, serial, range } => {
                let Some((ticket, access)) = self.take_request(request, host, RequestKind::get)? else {
                    return self.give_back(host, grant, poller, token);
                };
                let permit = self.accept_permit(host, grant, serial, range, access, descriptor);
                if permit.is_err_and(|error| error.is_passing()) {
                    self.send_release(host, grant, poller, token);
                }
                calls.answer(ticket, permit.map(|grant| Answer::Granted { grant, range }));
                Ok(())
            }
            Message::Refused { request, errno } => {
                let Some((ticket, _)) = self.take_request(request, host, RequestKind::get)? else {
                    let _ = self.host(host).map(|index| self.hosts[index].answers_late());
                    self.close_idle_host(host);
                    return Ok(());
                };
                counters::count(Cell::PermitsRefused);
                calls.fail(ticket, refusal(errno));
                self.close_idle_host(host);
                Ok(())
            }
            Message::Resolved { request, range, source, writable } => {
                let Some((page, question)) = self.take_request(request, host, RequestKind::page)? else {
                    return Ok(());
                };
                if question.is_none() {
                    counters::count(match source {
                        Source::Object { .. } => Cell::TouchesObject,
                        Source::File { .. } | Source::Foreign { .. } => Cell::TouchesFile,
                        Source::SystemV { .. } => Cell::TouchesSystemV,
                    });
                }
                let row = self.host(host).and_then(|index| self.hosts[index].row);
                self.peer_rows.answer(row, range.len() as u64);
                let asked = question.map(|q| (q, Said::keep(range, source, writable, descriptor.as_ref())));
                let mapped = self.resolved(host, page, range, source, writable, descriptor);
                if let Some((question, said)) = asked {
                    self.reply_what_was_said(question, host, mapped.and(said));
                }
                mapped?;
                self.ask_for_waiters(poller, token);
                Ok(())
            }
            Message::Hole { request } => {
                let Some((page, question)) = self.take_request(request, host, RequestKind::page)? else {
                    return Ok(());
                };
                if let Some(question) = question {
                    self.reply(question, Reply::Hole("whose memory it is says so"));
                    return Ok(());
                }
                counters::count(Cell::TouchesHole);
                log!(Debug, "{page:#x} is a hole: exporter {} says so", self.pid_of(host));
                self.refuse_page(page, libc::SIGBUS, Why::Said);
                self.ask_for_waiters(poller, token);
                Ok(())
            }
            Message::ReadOnly { request } => {
                let Some((page, question)) = self.take_request(request, host, RequestKind::page)? else {
                    return Ok(());
                };
                if let Some(question) = question {
                    self.reply(question, Reply::ReadOnly);
                    return Ok(());
                }
                counters::count(Cell::TouchesReadOnly);
                log!(Debug, "{page:#x} may only be read, exporter {} says", self.pid_of(host));
                self.refuse_page(page, libc::SIGSEGV, Why::Said);
                self.ask_for_waiters(poller, token);
                Ok(())
            }
            Message::Status => self.learn_status(host, descriptor),
            Message::Stale { range, number, objects } => {
                if objects {
                    self.make_blank(host, range)?;
                } else {
                    self.make_stale(host, range, Piece::needs_notice)?;
                }
                self.confirm(host, number, poller, token)
            }
            Message::Adopted { range } => {
                self.make_ahead(host, range);
                Ok(())
            }
            Message::Removed { grant, number } => {
                let mut ended = None;
                for permit in self.permits.iter_mut().filter(|p| p.host == host && p.grant == grant) {
                    permit.removed = true;
                    ended = Some((permit.number, permit.range));
                }
                // What is mapped from files cannot be punched by the exporter.
                if let Some((permit, range)) = ended {
                    self.close_windows(permit);
                    self.make_stale(host, range, Piece::needs_notice)?;
                    self.note_changed(permit)?;
                }
                self.confirm(host, number, poller, token)
            }
            Message::Closed { serial } => self.forget_object(host, serial),
            _ => Err(Error::Invalid("a message that exporters do not send")),
        }
    }

    fn forget_object(&mut self, host: u32, serial: u32) -> Result<()> {
        if self.permits.iter().any(|permit| permit.host == host && permit.base == serial && !permit.removed) {
            return Err(Error::Invalid("an object is closed that a permit needs"));
        }
        if let Some(index) = self.host(host) {
            self.hosts[index].forget(serial);
        }
        Ok(())
    }

    fn learn_status(&mut self, host: u32, descriptor: Option<OwnedFd>) -> Result<()> {
        let index = self.host(host).ok_or(Error::NoSuchId)?;
        let descriptor = descriptor.ok_or(Error::OutOfResources { call: "recvmsg", errno: Errno::MFILE })?;
        if self.hosts[index].status().is_some() {
            return Err(Error::Invalid("a second status word"));
        }
        let status = self.status_pages.map(&descriptor)?;
        self.hosts[index].set_status(status);
        Ok(())
    }

    /// Nothing is mapped any more that the exporter gave notice of.
    fn confirm(&mut self, host: u32, number: u32, poller: &Poller, token: u64) -> Result<()> {
        let index = self.host(host).ok_or(Error::NoSuchId)?;
        self.hosts[index].send(Message::Seen { number }, poller, token | u64::from(host))?;
        self.ask_for_waiters(poller, token);
        Ok(())
    }

    /// Gives back a permit that came too late.
    ///
    /// # Errors
    /// It was not asked for.
    fn give_back(&mut self, host: u32, grant: u32, poller: &Poller, token: u64) -> Result<()> {
        let Some(index) = self.host(host) else { return Ok(()) };
        if !self.hosts[index].answers_late() {
            return Err(Error::Invalid("a permit that was not asked for"));
        }
        self.hosts[index].send(Message::Release { grant }, poller, token | u64::from(host))?;
        self.close_idle_host(host);
        Ok(())
    }

    fn accept_permit(
        &mut self,
        host: u32,
        grant: u32,
        base: u32,
        range: Range,
        access: Access,
        descriptor: Option<OwnedFd>,
    ) -> Result<u32> {
        let Some(index) = self.host(host) else {
            return Err(Error::NoSuchId);
        };
        let descriptor = descriptor.ok_or(Error::OutOfResources { call: "recvmsg", errno: Errno::MFILE })?;
        if self.hosts[index].status().is_none() {
            return Err(Error::Invalid("a permit without a status word"));
        }
        self.hosts[index].learn(base, access == Access::ReadWrite, descriptor)?;
        let number = self.next_permit;
        let permit = Permit { number, host, grant, access, range, base, removed: false };
        self.permits.push(permit).map_err(failed("mmap"))?;
        self.next_permit += 1;
        let host = &mut self.hosts[index];
        if host.row.is_none() {
            host.row = self.peer_rows.insert(host.pid(), host.user().number());
        }
        self.peer_rows.permit(host.row);
        counters::count(Cell::PermitsGot);
        Ok(number)
    }

    /// Reads what an exporter has said, if its status word tells that there is something that permits depend on.
    pub(crate) fn catch_up(&mut self, permit: u32, calls: &Calls, poller: &Poller, token: u64) {
        let Some(index) = self.permit(permit) else { return };
        let number = self.permits[index].host;
        // First the word, then the messages: what the word tells of was said before it changed.
        let status = self.host(number).and_then(|index| self.hosts[index].status());
        let said = status.map(|status| (status, status.read()));
        let expected = self.host(number).map(|index| self.hosts[index].expected());
        if said.map(|(_, said)| said) == expected {
            return;
        }
        let most = self.host(number).map_or(0, |index| self.hosts[index].count_received());
        self.read_messages(number, most, calls, poller, token);
        let (Some(index), Some((status, said))) = (self.host(number), said) else { return };
        if self.hosts[index].is_alive() && self.hosts[index].expected() != said {
            self.hosts[index].expect(said);
            self.listing.expect(status.address(), said);
        }
    }

    /// Says so in the log if an exporter takes long, and gives up where a limit is set. Returns when to look again.
    pub(crate) fn check_patience(&mut self, calls: &Calls) -> Option<Duration> {
        let now = thread::time();
        let limit = self.config.peer_timeout;
        let again = self.hosts.iter().any(Host::is_to_be_tried_again);
        let mut next = again.then_some(SOON);
        let mut index = 0;
        while index < self.requests.len() {
            let request = self.requests[index];
            let waited = now.saturating_sub(request.since);
            if limit.is_some_and(|limit| waited >= limit) {
                let _ = self.requests.remove(index);
                log!(Warn, "gave up waiting for an exporter after RMAP_PEER_TIMEOUT");
                if let Some(host) = self.host(request.host) {
                    self.hosts[host].give_up(request.number, request.kind.get().is_some());
                }
                match request.kind {
                    RequestKind::Get { ticket, .. } => calls.fail(ticket, Error::TimedOut),
                    RequestKind::Resolve { page } => {
                        self.refuse_block(page, Why::Silent(self.pid_of(request.host)));
                    }
                    RequestKind::PassOn(question) => {
                        self.reply(question, Reply::Hole("whose memory it is does not answer"));
                    }
                }
                continue;
            }
            if waited >= LONG && !request.said {
                self.requests[index].said = true;
                let pid = self.pid_of(request.host);
                log!(Warn, "waiting for exporter {pid}, which does not answer: is it stopped?");
            }
            let mark = if self.requests[index].said { None } else { Some(LONG) };
            for wait in mark.into_iter().chain(limit).map(|mark| mark.saturating_sub(waited)) {
                next = Some(next.map_or(wait, |next| next.min(wait)));
            }
            index += 1;
        }
        next
    }
}

/// What reports threads at missing pages, and unmapping.
fn traps() -> Result<(Userfaultfd, Userfaultfd)> {
    let trap = Userfaultfd::for_missing_pages();
    let follower = Userfaultfd::for_unmapping();
    if matches!(trap, Err(Errno::PERM)) {
        // Our kind needs no privilege.
        let what = "userfaultfd, refused by a seccomp filter: it must allow the call, or /dev/userfaultfd be there for the user; it";
        return Err(Error::Unsupported { what, errno: Errno::PERM });
    }
    Ok((
        trap.map_err(missing("userfaultfd for shared memory (Linux 5.11)"))?,
        follower.map_err(missing("userfaultfd for events (Linux 5.19)"))?,
    ))
}

/// Which file an object of an exporter is; two serials are never the same file.
pub(super) fn regular(fd: &OwnedFd) -> Result<FileId> {
    let stat = rustix::fs::fstat(fd).map_err(failed("fstat"))?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return Err(Error::Invalid("a descriptor that is not a file's"));
    }
    FileId::of(fd).map_err(failed("fstat"))
}
