//! One connected importer, as its exporter sees it. Nothing here waits for it.

use super::super::protocol::{self, Access, Message, Source};
use super::super::secret::{Key, Side};
use super::Resolve;
use super::object::Object;
use super::rights::{Creator, Party, User};
use super::status::Status;
use crate::counters::rows::Row;
use crate::counters::{self, Cell};
use crate::error::{Error, Result, failed, is_passing};
use crate::log::log;
use crate::own::OwnVec;
use crate::range::Range;
use crate::sys::event::Poller;
use crate::sys::socket;
use crate::sys::{Errno, SysResult};
use core::time::Duration;
use std::os::fd::{BorrowedFd, OwnedFd};

/// A permit that the importer holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant {
    number: u32,
    segment: u32,
    pub(crate) range: Range,
    pub(crate) access: Access,
    removed: bool,
}

/// A connected importer.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) number: u32,
    /// Where others see what it holds, once it has had a permit.
    pub(crate) row: Row,
    socket: OwnedFd,
    party: Party,
    /// What it must know, as long as it has not shown that it does.
    doubted: Option<Key>,
    grants: OwnVec<Grant>,
    next_grant: u32,
    /// Serials of the objects whose descriptors came with answers.
    knows: OwnVec<u32>,
    /// Serials of the objects whose descriptors came with permits.
    bases: OwnVec<u32>,
    /// Objects that are closed, which it has not been told.
    closed: OwnVec<u32>,
    /// Said when it reads again: files went away, and permits ended.
    overdue: bool,
    /// And memory in objects went away.
    overdue_objects: bool,
    /// Room in its socket is waited for.
    awaited: bool,
    /// Its socket is watched.
    watched: bool,
    /// What could not be done for want of something.
    unhandled: Option<Message>,
    /// The last such message.
    tried: Option<Message>,
    /// It has been shown a file.
    maps_files: bool,
    /// It has the status word.
    has_status: bool,
    /// Number of the last notice that it was told, and of the last that it has answered.
    told: u32,
    seen: u32,
    /// It has not answered a notice since which it may still show a file.
    owes: bool,
    /// Since when a thread of this process is held for it.
    held_since: Option<Duration>,
    /// It has let a notice go unanswered for too long.
    slow: bool,
    /// How often it was told of adopted memory since it has last said something.
    hints: u32,
    /// So many of its questions are about attachments of this process, and not answered yet.
    pub(crate) open_questions: u32,
}

/// Bound on the permits of one importer: XPMEM's ids end there too.
const MAX_GRANTS: u32 = 0x3fff_ffff;

impl Client {
    pub(crate) fn new(number: u32, socket: OwnedFd, key: Key, creator: &Creator) -> SysResult<Self> {
        let party = Party::at(&socket, creator.shared)?;
        Ok(Self {
            number,
            row: None,
            socket,
            party,
            doubted: Some(key),
            grants: OwnVec::new(),
            next_grant: 1,
            knows: OwnVec::new(),
            bases: OwnVec::new(),
            closed: OwnVec::new(),
            overdue: false,
            overdue_objects: false,
            awaited: false,
            watched: false,
            unhandled: None,
            tried: None,
            maps_files: false,
            has_status: false,
            told: 0,
            seen: 0,
            owes: false,
            held_since: None,
            slow: false,
            hints: 0,
            open_questions: 0,
        })
    }

    /// Effective user of the process at the other end.
    pub(crate) fn user(&self) -> User {
        self.party.user
    }

    pub(crate) fn pid(&self) -> u32 {
        self.party.pid
    }

    pub(crate) fn passes(&self, creator: &Creator, mode: u32, access: Access) -> bool {
        creator.allows(mode, &self.party, &self.socket, access)
    }

    /// Whether it may say this: whoever does not know the ids of this process may ask for its counters only.
    pub(crate) fn may_say(&self, message: &Message) -> bool {
        self.doubted.is_none() || matches!(message, Message::Hello { .. } | Message::Survey { .. })
    }

    /// It says that it knows the ids of this process, and is shown that this process does.
    pub(crate) fn greet(&mut self, number: u64, proof: u64) -> Result<()> {
        let key = self.doubted.filter(|key| proof == key.proof(Side::Importer, number));
        let key = key.ok_or(Error::Invalid("it does not know the ids of this process"))?;
        self.send(Message::Proof { proof: key.proof(Side::Exporter, number) }, None)?;
        self.doubted = None;
        Ok(())
    }

    /// Has its socket watched. What fails is tried again by [`Self::catch_up`].
    pub(crate) fn watch(&mut self, poller: &Poller, token: u64) {
        self.watched = poller.add(&self.socket, token).is_ok();
    }

    /// A message waits for something that may be there in a moment.
    pub(crate) fn is_to_be_tried_again(&self) -> bool {
        self.unhandled.is_some() || !self.watched
    }

    /// Has a message come again in a moment, before all others. True if it has not been tried before.
    pub(crate) fn handle_again(&mut self, message: Message, poller: &Poller, token: u64) -> bool {
        self.unhandled = Some(message);
        let _ = poller.pause(&self.socket, token);
        self.tried.replace(message) != Some(message)
    }

    /// Has messages come again after [`Self::handle_again`].
    pub(crate) fn resume(&mut self, poller: &Poller, token: u64) {
        self.awaited = false;
        let _ = poller.change(&self.socket, token, false);
    }

    /// The next message, if there is one.
    pub(crate) fn receive(&mut self) -> Result<Option<Message>> {
        if let Some(message) = self.unhandled.take() {
            return Ok(Some(message));
        }
        let mut bytes = [0; protocol::SIZE + 1];
        match socket::receive(&self.socket, &mut bytes) {
            Err(errno) if is_passing(errno) => Ok(None),
            Err(errno) => Err(failed("recvmsg")(errno)),
            Ok((len, _)) => {
                self.hints = 0;
                Message::decode(&bytes[..len])
                    .map(Some)
                    .ok_or(Error::Invalid("not a message of this version"))
            }
        }
    }

    /// Sends an answer. An importer that asks without reading answers is not served any more.
    fn send(&self, message: Message, descriptor: Option<BorrowedFd<'_>>) -> Result<()> {
        socket::send(&self.socket, &message.encode(), descriptor).map_err(|errno| match errno {
            Errno::AGAIN => Error::Invalid("questions of one who does not read answers"),
            errno => failed("sendmsg")(errno),
        })
    }

    /// Says what must not be lost; false if it is to be said later.
    fn says(&self, message: Message) -> bool {
        // One who is gone need not be told.
        !socket::send(&self.socket, &message.encode(), None).is_err_and(is_passing)
    }

    pub(crate) fn refuse(&self, request: u32, error: &Error) -> Result<()> {
        self.send(Message::Refused { request, errno: error.errno().unsigned_abs() }, None)
    }

    pub(crate) fn hole(&self, request: u32) -> Result<()> {
        self.send(Message::Hole { request }, None)
    }

    /// Says that there is nothing, and why in the log.
    pub(super) fn tell_hole(&self, request: &Resolve, why: &str) -> Result<()> {
        log!(Debug, "{:#x} is a hole for process {}: {why}", request.addr, self.pid());
        counters::count(Cell::AnswersHole);
        self.hole(request.request)
    }

    pub(crate) fn read_only(&self, request: u32) -> Result<()> {
        self.send(Message::ReadOnly { request }, None)
    }

    /// Says what this process has counted: it is in the file.
    pub(crate) fn surveyed(&self, request: u32, sheet: BorrowedFd<'_>) -> Result<()> {
        self.send(Message::Surveyed { request }, Some(sheet))
    }

    /// The segments of its permits.
    pub(crate) fn permits(&self) -> impl Iterator<Item = u32> + '_ {
        self.grants.iter().filter(|grant| !grant.removed).map(|grant| grant.segment)
    }

    pub(crate) fn grant(
        &mut self,
        request: u32,
        segment: u32,
        range: Range,
        access: Access,
        base: &Object,
        status: &Status,
    ) -> Result<()> {
        if !self.has_status {
            self.send(Message::Status, Some(status.descriptor()))?;
            self.has_status = true;
        }
        if self.next_grant > MAX_GRANTS {
            return self.refuse(request, &Error::OutOfIds);
        }
        let grant = Grant { number: self.next_grant, segment, range, access, removed: false };
        if let Err(errno) = self.grants.push(grant) {
            return self.refuse(request, &failed("mmap")(errno));
        }
        self.next_grant += 1;
        if !self.bases.contains(&base.serial) {
            self.bases.push(base.serial).map_err(failed("mmap"))?;
        }
        // Each grant brings its descriptor: permits of different access get different ones.
        let descriptor = base.descriptor(access == Access::ReadWrite);
        let granted = Message::Granted { request, grant: grant.number, serial: base.serial, range };
        self.send(granted, Some(descriptor)).inspect_err(|_| self.release(grant.number))?;
        for range in base.strays() {
            self.stale(range, self.told, true);
        }
        Ok(())
    }

    /// Says that there is adopted memory in a range. One who does not listen is not told for long: its socket must take answers.
    pub(crate) fn hint(&mut self, range: Range) {
        const MOST: u32 = 32;
        let concerned = self.grants.iter().any(|grant| !grant.removed && grant.range.overlaps(range));
        if concerned && !self.overdue && self.hints < MOST && self.says(Message::Adopted { range }) {
            self.hints += 1;
        }
    }

    /// It can do nothing but ask for a permit.
    pub(crate) fn is_guest(&self) -> bool {
        self.grants.is_empty()
    }

    /// Whether a permit shows it a part of the range.
    pub(crate) fn sees(&self, range: Range) -> bool {
        self.grants.iter().any(|grant| !grant.removed && grant.range.overlaps(range))
    }

    pub(crate) fn find_grant(&self, number: u32) -> Option<Grant> {
        let index = self.grants.binary_search_by_key(&number, |grant| grant.number).ok()?;
        self.grants.get(index).copied().filter(|grant| !grant.removed)
    }

    pub(crate) fn release(&mut self, number: u32) {
        if let Ok(index) = self.grants.binary_search_by_key(&number, |grant| grant.number) {
            let _ = self.grants.remove(index);
        }
    }

    /// Ends the permits of a segment; true if there were any.
    pub(crate) fn lose_segment(&mut self, segment: u32, number: u32) -> bool {
        let mut any = false;
        for index in 0..self.grants.len() {
            let grant = &mut self.grants[index];
            if grant.segment != segment || grant.removed {
                continue;
            }
            any = true;
            grant.removed = true;
            self.told = number;
            let message = Message::Removed { grant: grant.number, number };
            self.overdue |= !self.says(message);
        }
        self.owes |= any && self.maps_files;
        any
    }

    /// Says that an object is closed, if it has the descriptor.
    pub(crate) fn lose_object(&mut self, serial: u32) -> SysResult<()> {
        let known = self.bases.len() + self.knows.len();
        self.bases.retain(|base| *base != serial);
        self.knows.retain(|key| *key >> 1 != serial);
        if self.bases.len() + self.knows.len() == known {
            return Ok(());
        }
        // Never before the end of a permit that began with it.
        let message = Message::Closed { serial };
        if self.overdue || !self.says(message) {
            self.overdue = true;
            self.closed.push(serial)?;
        }
        Ok(())
    }

    /// Says that files mapped in `range` are stale there; with `objects`, whatever is mapped there.
    pub(crate) fn stale(&mut self, range: Range, number: u32, objects: bool) {
        let shows_objects = || self.grants.iter().any(|grant| grant.range.overlaps(range));
        if !(if objects { shows_objects() } else { self.maps_files }) {
            return;
        }
        self.told = number;
        self.owes = true;
        let said = self.says(Message::Stale { range, number, objects });
        self.overdue |= !said;
        self.overdue_objects |= !said && objects;
    }

    /// It maps nothing any more that this notice or an earlier one told of.
    ///
    /// # Errors
    /// It was never told that.
    pub(crate) fn has_seen(&mut self, number: u32) -> Result<()> {
        if number.wrapping_sub(self.seen) > self.told.wrapping_sub(self.seen) {
            return Err(Error::Invalid("an answer to a notice that was not given"));
        }
        self.seen = number;
        // One that was slow must catch up before it is waited for again.
        self.slow &= number != self.told;
        self.owes &= number != self.told;
        Ok(())
    }

    /// Whether it may show a file that it was told is gone, but may say soon that it does not. Without a permit it shows nothing.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.owes && !self.slow && !self.is_guest()
    }

    /// A thread of this process is held until it answers.
    pub(crate) fn is_waited_for_from(&mut self, now: Duration) {
        if self.is_waited_for() {
            self.held_since.get_or_insert(now);
        }
    }

    /// Since when a thread is held for it.
    pub(crate) fn waited_for_since(&self) -> Option<Duration> {
        self.held_since
    }

    /// No thread is held for it any more.
    pub(crate) fn was_waited_for(&mut self) {
        self.held_since = None;
    }

    /// Does not wait for it before it answers a notice.
    pub(crate) fn give_up_waiting(&mut self) {
        self.slow = true;
    }

    /// Waits for room to say what is overdue.
    pub(crate) fn catch_up(&mut self, poller: &Poller, token: u64) {
        if !self.watched {
            self.watch(poller, token);
        }
        if self.overdue && !self.awaited {
            self.awaited = poller.change(&self.socket, token, true).is_ok();
        }
    }

    /// Catches up with an importer that reads again: all files are stale, objects perhaps, and ended permits are named again, and closed objects.
    pub(crate) fn flush(&mut self, poller: &Poller, token: u64) -> Result<()> {
        if !self.overdue {
            return Ok(());
        }
        let everything = Range::between(0, 1 << 62).ok_or(Error::Invalid("no range"))?;
        let mut messages = OwnVec::new();
        let number = self.told;
        let objects = self.overdue_objects;
        messages.push(Message::Stale { range: everything, number, objects }).map_err(failed("mmap"))?;
        for grant in self.grants.iter().filter(|grant| grant.removed) {
            messages.push(Message::Removed { grant: grant.number, number }).map_err(failed("mmap"))?;
        }
        for serial in self.closed.iter() {
            messages.push(Message::Closed { serial: *serial }).map_err(failed("mmap"))?;
        }
        for message in messages.iter() {
            match socket::send(&self.socket, &message.encode(), None) {
                Ok(()) => {}
                Err(errno) if is_passing(errno) => return Ok(()),
                Err(errno) => return Err(failed("sendmsg")(errno)),
            }
        }
        (self.overdue, self.overdue_objects) = (false, false);
        self.awaited = false;
        self.closed.clear();
        poller.change(&self.socket, token, false).map_err(failed("epoll_ctl"))
    }

    /// Says where a range is now. The descriptor of an object goes along the first time.
    pub(crate) fn resolved(
        &mut self,
        request: u32,
        range: Range,
        source: Source,
        writable: bool,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        let mut descriptor = descriptor;
        self.maps_files |= !matches!(source, Source::Object { .. });
        let mut learns = None;
        if let Source::Object { serial } = source {
            // An object is known per access: see `grant`.
            let key = serial << 1 | u32::from(writable);
            if self.knows.contains(&key) {
                descriptor = None;
            } else {
                self.knows.push(key).map_err(failed("mmap"))?;
                learns = Some(key);
            }
        }
        let message = Message::Resolved { request, range, source, writable };
        self.send(message, descriptor).inspect_err(|_| self.knows.retain(|key| Some(*key) != learns))
    }
}
