//! The exporter: segments, the importers connected to it, and its memory as they may see it.
//!
//! All of it belongs to the service thread.

mod adopt;
mod attributes;
mod buffers;
mod client;
mod events;
mod evict;
mod extract;
mod fork;
pub(crate) mod freeze;
mod guests;
mod hints;
mod huge;
mod jobs;
mod left;
mod notice;
mod numa;
mod object;
mod passed_on;
mod pins;
mod plan;
mod private_files;
mod programs;
mod rehome;
mod resolve;
mod staging;
mod status;
mod survey;
mod watch;

use super::calls::{Answer, Calls, Ticket};
use super::protocol::{Access, Message};
use super::rights;
use super::secret::Key;
use crate::config::{Config, Inheritance};
use crate::counters::rows::{PeerRows, Row, SegmentRows};
use crate::counters::{self, Cell};
use crate::error::{Error, Result, failed, missing};
use crate::id::{Endpoint, Id};
use crate::log::log;
use crate::own::{OwnMemory, OwnVec, RangeTable};
use crate::range::Range;
use crate::sys::event::{Doorbell, Poller};
use crate::sys::maps::{Attributes, FileId, Maps, Smaps, Vma};
use crate::sys::pagemap::Pagemap;
use crate::sys::uffd::Userfaultfd;
use crate::sys::{Said, SysResult, procfs};
use adopt::Backing;
use client::Client;
use core::time::Duration;
use events::{Move, Unfollowed};
use freeze::Freezer;
use huge::HugePages;
use jobs::{Fork, Job, Postponed};
use left::Left;
use notice::Notices;
use numa::Placement;
use object::{Object, Objects};
pub(crate) use passed_on::Question;
use private_files::PrivateFiles;
pub(crate) use programs::Programs;
use staging::Stager;
use status::Status;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use watch::Watchers;

/// A range that others may attach.
#[derive(Clone, Copy, Debug)]
struct Segment {
    counter: u32,
    range: Range,
    mode: u32,
    /// Another user has had a permit: it may have kept a descriptor.
    strangers: bool,
    /// It has been removed, but its memory could not leave the objects.
    lingers: bool,
    row: Row,
}

/// Where a file is mapped: the file, and the offset that address 0 would have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shared {
    file: FileId,
    origin: u64,
}

impl Shared {
    fn of(vma: &Vma) -> Option<Self> {
        Some(Self { file: vma.file?, origin: vma.offset_of(0) })
    }
}

/// An importer's request for a page.
#[derive(Clone, Copy, Debug)]
struct Resolve {
    request: u32,
    grant: u32,
    addr: usize,
    attached: Range,
    run: u32,
    store: bool,
    hops: u32,
    /// When it was first found that a device may write to the page.
    pinned_since: Option<Duration>,
}

/// The exporting side of a process.
#[derive(Debug)]
pub(crate) struct Exporter {
    config: Config,
    kept_out: Option<Range>,
    programs: Programs,
    creator: rights::Creator,
    segments: OwnVec<Segment>,
    last_segment: u32,
    clients: OwnVec<Client>,
    next_client: u32,
    segment_rows: SegmentRows,
    peer_rows: PeerRows,
    /// Who wants to know what this process has counted.
    asked: OwnVec<survey::Asked>,
    notices: Notices,
    status: Status,
    objects: Objects,
    /// What the objects show, by address.
    backed: RangeTable<Backing>,
    /// What importers map from files, by address.
    shared: RangeTable<Shared>,
    /// What the application has unmapped, and importers have not.
    left: Left,
    /// This process's windows. They may map its own objects, in other places.
    windows: RangeTable<()>,
    /// What importers have been shown of them.
    passed_on: RangeTable<()>,
    /// Questions about them, for the importing side.
    questions: OwnVec<Question>,
    /// Files behind adopted private mappings, by address: pages that are dropped show them again.
    private_files: PrivateFiles,
    /// Files of shared memory that a child maps as well: importers map them from here.
    own_files: OwnVec<OwnedFd>,
    /// Shared anonymous files that a forked child may map as well.
    inherited: OwnVec<FileId>,
    /// Moves whose memory has not been brought home yet.
    moves: OwnVec<Move>,
    /// Shown by objects and not watched, for want of something.
    unwatched: OwnVec<Range>,
    /// What becomes of the address space could not be followed for want of something.
    unfollowed: Option<Unfollowed>,
    /// There was no room to note one.
    lost_moves: bool,
    /// For events, when memory or address space has run out.
    reserve: Option<OwnMemory>,
    jobs: OwnVec<Job>,
    /// Requests for pages that a device may write to now, and such that could not be answered.
    postponed: OwnVec<Postponed>,
    /// A fork that waits, and until when.
    fork_due: Option<(Fork, Duration)>,
    stager: Stager,
    freezer: Freezer,
    /// When threads began to be stopped.
    freezing_since: Duration,
    huge_pages: HugePages,
    placement: Placement,
    /// A thread is between the start and the end of `fork`: nothing is adopted.
    forking: bool,
    watchers: Watchers,
    /// The threads of this process.
    tasks: OwnedFd,
    maps: Maps,
    smaps: Smaps,
    pagemap: Pagemap,
    /// Of the mapping adopted from last: they are slow to read, and a mapping is adopted in pieces.
    attributes: Option<(Range, Attributes)>,
    /// Whether the last adoption needed them read: so will the next, which can then do it before everything stands still.
    reads_attributes: bool,
}

impl Exporter {
    pub(crate) fn new(config: Config) -> Result<Self> {
        Ok(Self {
            config,
            kept_out: None,
            programs: Programs::default(),
            creator: rights::Creator::of_this_process(),
            segments: OwnVec::new(),
            last_segment: 0,
            clients: OwnVec::new(),
            next_client: 1,
            segment_rows: SegmentRows::new(),
            peer_rows: PeerRows::of_importers(),
            asked: OwnVec::new(),
            notices: Notices::new(),
            status: Status::new()?,
            objects: Objects::new(),
            backed: RangeTable::new(),
            shared: RangeTable::new(),
            left: Left::new(),
            windows: RangeTable::new(),
            passed_on: RangeTable::new(),
            questions: OwnVec::new(),
            private_files: PrivateFiles::new(),
            own_files: OwnVec::new(),
            inherited: OwnVec::new(),
            moves: OwnVec::new(),
            unwatched: OwnVec::new(),
            unfollowed: None,
            lost_moves: false,
            reserve: OwnMemory::new(events::RESERVE).ok(),
            jobs: OwnVec::new(),
            postponed: OwnVec::new(),
            fork_due: None,
            stager: Userfaultfd::for_pages()
                .map_err(missing("userfaultfd"))
                .and_then(|pages| Stager::new(pages).map_err(failed("mmap")))?,
            freezer: Freezer::new().map_err(missing("/proc/self/task"))?,
            huge_pages: HugePages::new(),
            placement: Placement::new(),
            freezing_since: Duration::ZERO,
            forking: false,
            watchers: Watchers::new()
                .map_err(missing("userfaultfd with events on shared memory (Linux 5.19)"))?,
            tasks: procfs::open(c"/proc/self/task").map_err(missing("/proc/self/task"))?,
            maps: Maps::new().map_err(missing("/proc/thread-self/maps"))?,
            smaps: Smaps::new().map_err(missing("/proc/thread-self/smaps"))?,
            pagemap: Pagemap::new().map_err(missing("/proc/thread-self/pagemap"))?,
            attributes: None,
            reads_attributes: false,
        })
    }

    /// Stops all threads for a moment, and lets them go on.
    pub(crate) fn probe(&mut self, doorbell: &Doorbell) -> Result<()> {
        let what = "ptrace of this process's own threads (not while another tracer has them)";
        self.freezer.probe(doorbell).map_err(missing(what))?;
        let whole = Range::between(0, self.objects.end()).ok_or(Error::Invalid("no address space"))?;
        match self.objects.for_domain(whole, false) {
            Ok(_) => Ok(()),
            Err(Error::OutOfResources { errno, .. }) => {
                Err(missing("a sparse file as large as the address space")(errno))
            }
            Err(error) => Err(error),
        }
    }

    /// What reports unmapping of adopted memory.
    pub(crate) fn watcher(&self) -> BorrowedFd<'_> {
        self.watchers.as_fd()
    }

    /// The service thread is about to map something over a range of this process: it would be held itself by the
    /// event that this raises.
    ///
    /// # Errors
    /// [`Error::OutOfResources`]: it must not.
    pub(crate) fn is_to_be_replaced(&self, range: Range) -> Result<()> {
        self.watchers.forget(range).map_err(failed("UFFDIO_UNREGISTER"))
    }

    /// Finds out what has become of the range.
    pub(crate) fn may_be_replaced(&mut self, range: Range) {
        if let Err(error) = self.reconcile() {
            log!(Error, "following the address space: {error}");
        }
        let backed = self.backed.within(range).map(|span| span.range);
        let mut all = OwnVec::new();
        for rest in backed.chain(self.shared.within(range).map(|span| span.range)) {
            if let Err(errno) = all.push(rest) {
                log!(Error, "{rest} is not watched: {errno}", errno = Said(errno));
            }
        }
        for rest in all.iter() {
            self.watch_surely(*rest);
        }
    }

    /// Shares a range.
    pub(crate) fn offer(&mut self, endpoint: Endpoint, range: Range, mode: u32) -> Result<Answer> {
        if self.last_segment >= Id::MAX_COUNTER {
            return Err(Error::OutOfIds);
        }
        let counter = self.last_segment + 1;
        self.segments.reserve(1).map_err(failed("mmap"))?;
        let id = Id::new(endpoint, counter).map_or(0, |id| id.to_raw().cast_unsigned());
        let row = self.segment_rows.insert(id, range.start(), range.end(), mode);
        let segment = Segment { counter, range, mode, strangers: false, lingers: false, row };
        self.segments.push(segment).map_err(failed("mmap"))?;
        self.last_segment = counter;
        counters::count(Cell::SegmentsMade);
        log!(Info, "segment {counter} offers {range} with mode {mode:04o}");
        Ok(Answer::Segment(counter))
    }

    /// Ends a segment. Answers the call now, or when the memory has left the importers' reach.
    pub(crate) fn withdraw(&mut self, counter: u32, ticket: Ticket, calls: &Calls) {
        let Ok(index) = self.segments.binary_search_by_key(&counter, |segment| segment.counter) else {
            return calls.fail(ticket, Error::NoSuchId);
        };
        let Some(segment) = self.segments.remove(index) else {
            return calls.fail(ticket, Error::NoSuchId);
        };
        if !segment.lingers {
            self.segment_rows.remove(segment.row);
            counters::count(Cell::SegmentsRemoved);
        }
        let mut granted = segment.strangers || segment.lingers;
        let number = self.notices.next();
        for client in self.clients.iter_mut() {
            granted |= client.lose_segment(counter, number);
        }
        self.free_unseen();
        // After they were told: an importer that sees this looks for the message.
        self.status.segment_removed();
        if self.shared.next_in(segment.range).is_some() || self.shows_attachments(segment.range) {
            self.wait_for_importers();
        }
        log!(Info, "segment {counter} removed");
        let reachable = self.backed.next_in(segment.range).is_some();
        if !granted || !reachable {
            self.close_idle_objects();
            self.limit_idle_objects();
            return self.answer_when_all_know(ticket, calls);
        }
        if let Err(errno) = self.jobs.push(Job::Evict { segment, ticket }) {
            self.evict_later(segment, failed("mmap")(errno), ticket, calls);
        }
    }

    /// The memory of a removed segment could not leave the objects: the removal fails, and can be tried again.
    fn evict_later(&mut self, segment: Segment, error: Error, ticket: Ticket, calls: &Calls) {
        let index = self.segments.partition_point(|other| other.counter < segment.counter);
        // There is room: it was there before.
        let _ = self.segments.insert(index, Segment { lingers: true, ..segment });
        log!(Error, "segment {} can still be seen: {error}", segment.counter);
        calls.fail(ticket, error);
    }

    /// Answers when importers know what they were told: what they map from files is theirs to give up.
    pub(crate) fn answer_when_all_know(&mut self, ticket: Ticket, calls: &Calls) {
        if !self.waits_for_importers() || self.notices.answer_later(ticket).is_err() {
            calls.answer(ticket, Ok(Answer::Done));
        }
    }

    /// The calling thread is the service thread from now on.
    pub(crate) fn live_with_this_thread(&self) {
        self.status.live_with_this_thread();
    }

    /// Names memory that must never be adopted: the stack of the service thread.
    pub(crate) fn keep_out(&mut self, start: usize, len: usize) {
        self.kept_out = Range::new(start, len);
    }

    /// Whether one more process can connect.
    pub(crate) fn has_room(&mut self) -> SysResult<()> {
        self.clients.reserve(1)
    }

    /// Names what the service thread itself runs on.
    pub(crate) fn run_on(&mut self, programs: Programs) {
        self.programs = programs;
    }

    /// Finds out what the way of forks needs that was asked for.
    pub(crate) fn set_up_forks(&mut self) -> Result<()> {
        if self.config.fork == Inheritance::Copy {
            return Ok(());
        }
        self.freezer.find_stacks().map_err(failed("mmap"))
    }

    /// Another process has connected. It must show that it knows the key.
    pub(crate) fn connected(&mut self, socket: OwnedFd, key: Key, poller: &Poller, token: u64) {
        let number = self.next_client;
        match Client::new(number, socket, key, &self.creator) {
            Ok(mut client) => {
                client.watch(poller, token | u64::from(number));
                // See `has_room`.
                if self.clients.push(client).is_ok() {
                    self.next_client = self.next_client.wrapping_add(1).max(1);
                    self.limit_guests(poller, token);
                }
            }
            Err(errno) => log!(Warn, "a connection without credentials: {errno}", errno = Said(errno)),
        }
    }

    fn client(&self, number: u32) -> Option<usize> {
        self.clients.iter().position(|client| client.number == number)
    }

    fn drop_client(&mut self, number: u32) {
        let client = self.client(number).and_then(|index| self.clients.remove(index));
        if let Some(client) = &client {
            self.peer_rows.remove(client.row, client.pid(), client.user().number());
        }
        if let Some((user, since)) =
            client.and_then(|client| Some((client.user(), client.waited_for_since()?)))
        {
            self.notices.charge(user, since);
        }
        self.free_unseen();
    }

    /// Room to write to a client again.
    pub(crate) fn client_writable(&mut self, number: u32, poller: &Poller, token: u64) {
        let Some(index) = self.client(number) else { return };
        if self.clients[index].flush(poller, token | u64::from(number)).is_err() {
            self.drop_client(number);
        }
    }

    /// Watches for room to write to clients that must be told more than their sockets take.
    pub(crate) fn catch_up_clients(&mut self, poller: &Poller, token: u64) {
        for client in self.clients.iter_mut() {
            client.catch_up(poller, token | u64::from(client.number));
        }
    }

    /// Handles again what could not be handled for want of something.
    pub(crate) fn try_again(&mut self, poller: &Poller, token: u64) {
        let mut index = 0;
        while let Some(client) = self.clients.get_mut(index) {
            let number = client.number;
            if client.is_to_be_tried_again() {
                client.resume(poller, token | u64::from(number));
                self.client_readable(number, poller, token);
            }
            // It may be gone by now.
            index += usize::from(self.clients.get(index).is_some_and(|client| client.number == number));
        }
    }

    /// A client has sent something, or is gone.
    pub(crate) fn client_readable(&mut self, number: u32, poller: &Poller, token: u64) {
        // A bound on what one client is served before others are.
        for _ in 0..64 {
            let Some(index) = self.client(number) else { return };
            match self.clients[index].receive() {
                Ok(None) => return,
                Ok(Some(message)) => {
                    let Err(error) = self.handle(number, index, message) else { continue };
                    let again = self.client(number).filter(|_| error.is_passing());
                    if let Some(client) = again.map(|index| &mut self.clients[index]) {
                        if client.handle_again(message, poller, token | u64::from(number)) {
                            log!(Warn, "no answer for process {} yet: {error}", client.pid());
                        }
                        return;
                    }
                    log!(Warn, "importer dropped: {error}");
                    return self.drop_client(number);
                }
                Err(_) => return self.drop_client(number),
            }
        }
    }

    fn handle(&mut self, number: u32, index: usize, message: Message) -> Result<()> {
        if !self.clients[index].may_say(&message) {
            return Err(Error::Invalid("it does not know the ids of this process"));
        }
        match message {
            Message::Hello { number, proof } => self.clients[index].greet(number, proof),
            Message::Get { request, segment, access } => self.give_permit(number, request, segment, access),
            Message::Release { grant } => {
                self.clients[index].release(grant);
                self.free_unseen();
                Ok(())
            }
            Message::Resolve { request, grant, addr, attached, run, store, hops } => {
                let pinned_since = None;
                let request = Resolve { request, grant, addr, attached, run, store, hops, pinned_since };
                if self.answer(number, request, false)? {
                    return Ok(());
                }
                self.jobs.push(Job::Resolve { client: number, request }).map_err(failed("mmap"))
            }
            Message::Seen { number } => self.clients[index].has_seen(number),
            Message::Survey { request } => self.survey_asked(number, request),
            _ => Err(Error::Invalid("a message that importers do not send")),
        }
    }

    /// Answers a process that asks for a permit.
    fn give_permit(&mut self, number: u32, request: u32, segment: u32, access: Access) -> Result<()> {
        let Some(index) = self.client(number) else { return Ok(()) };
        let client = &self.clients[index];
        let known = |s: &Segment| s.counter == segment && !s.lingers;
        let Some(place) = self.segments.iter().position(known) else {
            counters::count(Cell::PermitsUnknown);
            return client.refuse(request, &Error::NoSuchId);
        };
        let segment = self.segments[place];
        if !client.passes(&self.creator, segment.mode, access) {
            counters::count(Cell::PermitsDenied);
            return client.refuse(request, &Error::Denied);
        }
        let stranger = !client.user().is_own();
        let made = self.with_room(Some(number), |exporter| {
            Ok(exporter.objects.for_domain(segment.range, false)?.serial)
        });
        let Some(index) = self.client(number) else { return Ok(()) };
        let client = &mut self.clients[index];
        match made.map(|serial| self.objects.get(serial)) {
            Ok(Some(object)) => {
                self.segments[place].strangers |= stranger;
                if client.row.is_none() {
                    client.row = self.peer_rows.insert(client.pid(), client.user().number());
                }
                self.peer_rows.permit(client.row);
                counters::count(Cell::PermitsGiven);
                client.grant(request, segment.counter, segment.range, access, object, &self.status)?;
                self.hint_all(index, segment.range);
                Ok(())
            }
            Ok(None) => client.refuse(request, &Error::NoSuchId),
            Err(error) => {
                counters::count(Cell::PermitsFailed);
                log!(Warn, "no permit for process {}: {error}", client.pid());
                client.refuse(request, &error)
            }
        }
    }
}

/// When to try again what failed for want of something. Nothing tells when it is there.
const SOON: Duration = Duration::from_millis(10);
