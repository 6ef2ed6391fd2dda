//! One exporter, as its importer sees it.

use super::super::protocol::{self, Message};
use super::super::rendezvous;
use super::super::rights::{Party, Shared, User};
use super::super::secret::{Key, Side};
use super::status::StatusWord;
use crate::counters::rows::Row;
use crate::error::{Error, Result, failed, is_passing};
use crate::id::Endpoint;
use crate::log::log;
use crate::own::{OwnVec, RangeTable};
use crate::range::Range;
use crate::sys::event::Poller;
use crate::sys::{SysResult, fd, socket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// An object of the exporter's whose descriptor came with a message.
#[derive(Debug)]
struct Known {
    serial: u32,
    writable: bool,
    fd: OwnedFd,
}

/// A connection to an exporter, made under one identity (user and groups) of this process.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) number: u32,
    pub(crate) endpoint: Endpoint,
    pub(crate) identity: u64,
    pub(crate) alive: bool,
    /// Where others see what this process has of it.
    pub(crate) row: Row,
    socket: OwnedFd,
    party: Party,
    /// What it is to prove, as long as it has not.
    doubted: Option<u64>,
    status: Option<StatusWord>,
    /// What the status word holds as long as nothing has ended that this process does not know of.
    expected: u64,
    known: OwnVec<Known>,
    /// What nobody is to see of its objects, although they have it.
    blank: RangeTable<()>,
    /// What the socket has not taken: the exporter is stopped, or busy. Only what the application asks for makes it longer: its
    /// questions under way, and permits that it gives back.
    unsent: OwnVec<Message>,
    /// The last notice whose answer the socket has not taken. It counts for all before.
    unconfirmed: Option<u32>,
    /// What could not be done for want of something.
    unhandled: Option<Message>,
    /// The last such message.
    tried: Option<Message>,
    /// Questions for permits that were sent and then given up: so many may still be granted.
    given_up: u32,
}

/// Whether a message is the question of this number.
fn asks(message: &Message, number: u32) -> bool {
    matches!(message, Message::Get { request, .. } | Message::Resolve { request, .. } if *request == number)
}

impl Host {
    /// Says to the exporter, on a new connection, that this process knows its ids.
    pub(crate) fn new(
        number: u32,
        (endpoint, key): (Endpoint, Key),
        identity: u64,
        socket: OwnedFd,
        shared: Shared,
    ) -> Result<Self> {
        let party = Party::at(&socket, shared).map_err(failed("getsockopt"))?;
        let drawn = rendezvous::random()?;
        let hello = Message::Hello { number: drawn, proof: key.proof(Side::Importer, drawn) };
        let (known, mut unsent) = (OwnVec::new(), OwnVec::new());
        match socket::send(&socket, &hello.encode(), None) {
            Ok(()) => {}
            // With the first question.
            Err(errno) if is_passing(errno) => unsent.push(hello).map_err(failed("mmap"))?,
            Err(_) => return Err(Error::NoSuchId),
        }
        Ok(Self {
            number,
            endpoint,
            identity,
            alive: true,
            row: None,
            socket,
            party,
            doubted: Some(key.proof(Side::Exporter, drawn)),
            status: None,
            expected: 0,
            known,
            blank: RangeTable::new(),
            unsent,
            unconfirmed: None,
            unhandled: None,
            tried: None,
            given_up: 0,
        })
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.party.pid
    }

    /// Effective user of the exporter.
    pub(crate) fn user(&self) -> User {
        self.party.user
    }

    /// Whether the exporter lives, as far as is known.
    pub(crate) fn is_alive(&self) -> bool {
        self.alive && !self.status.is_some_and(StatusWord::has_ended)
    }

    pub(crate) fn status(&self) -> Option<StatusWord> {
        self.status
    }

    pub(crate) fn set_status(&mut self, status: StatusWord) {
        self.status = Some(status);
        self.expected = status.read();
    }

    /// What the status word holds as long as nothing has ended that this process does not know of.
    pub(crate) fn expected(&self) -> u64 {
        self.expected
    }

    /// Everything that the status word told of when it held this is known.
    pub(crate) fn expect(&mut self, expected: u64) {
        self.expected = expected;
    }

    pub(crate) fn send(&mut self, message: Message, poller: &Poller, token: u64) -> Result<()> {
        if !self.alive {
            return Err(Error::NoSuchId);
        }
        if !self.has_unsent() {
            match socket::send(&self.socket, &message.encode(), None) {
                Ok(()) => return Ok(()),
                Err(errno) if is_passing(errno) => {}
                Err(_) => return Err(Error::NoSuchId),
            }
        }
        match message {
            Message::Seen { number } => self.unconfirmed = Some(number),
            message => self.unsent.push(message).map_err(failed("mmap"))?,
        }
        poller.change(&self.socket, token, true).map_err(failed("epoll_ctl"))
    }

    pub(crate) fn has_unsent(&self) -> bool {
        self.alive && (self.unconfirmed.is_some() || !self.unsent.is_empty())
    }

    /// Whether a question waits to be sent: nobody can have answered it.
    pub(crate) fn is_unsent(&self, number: u32) -> bool {
        self.unsent.iter().any(|message| asks(message, number))
    }

    /// Nobody waits for the answer to a question any more.
    pub(crate) fn give_up(&mut self, number: u32, permit: bool) {
        let unsent = self.unsent.len();
        self.unsent.retain(|message| !asks(message, number));
        if permit && self.unsent.len() == unsent {
            self.given_up += 1;
        }
    }

    /// A permit is granted or refused that nobody waits for. False if it was never asked for.
    pub(crate) fn answers_late(&mut self) -> bool {
        let given_up = self.given_up > 0;
        self.given_up -= u32::from(given_up);
        given_up
    }

    /// Sends what waits.
    pub(crate) fn flush(&mut self, poller: &Poller, token: u64) -> Result<()> {
        while self.has_unsent() {
            let answer = self.unconfirmed.map(|number| Message::Seen { number });
            let Some(message) = answer.or(self.unsent.first().copied()) else { break };
            match socket::send(&self.socket, &message.encode(), None) {
                Ok(()) if answer.is_some() => self.unconfirmed = None,
                Ok(()) => drop(self.unsent.remove(0)),
                Err(errno) if is_passing(errno) => return Ok(()),
                Err(errno) => return Err(failed("sendmsg")(errno)),
            }
        }
        poller.change(&self.socket, token, false).map_err(failed("epoll_ctl"))
    }

    /// How many messages are there to be received now.
    pub(crate) fn count_received(&self) -> usize {
        let unhandled = usize::from(self.unhandled.is_some());
        unhandled + socket::bytes_received(&self.socket).map_or(0, |bytes| bytes.div_ceil(protocol::SIZE))
    }

    /// A message waits for something that may be there in a moment.
    pub(crate) fn is_to_be_tried_again(&self) -> bool {
        self.unhandled.is_some()
    }

    /// Has a message come again in a moment, before all others. True if it has not been tried before.
    pub(crate) fn handle_again(&mut self, message: Message, poller: &Poller, token: u64) -> bool {
        self.unhandled = Some(message);
        let _ = poller.pause(&self.socket, token);
        self.tried.replace(message) != Some(message)
    }

    /// Has messages come again after [`Self::handle_again`].
    pub(crate) fn resume(&mut self, poller: &Poller, token: u64) {
        let _ = poller.change(&self.socket, token, self.has_unsent());
    }

    /// The next message, if there is one.
    ///
    /// # Errors
    /// The exporter is gone, or does not speak the protocol.
    pub(crate) fn receive(&mut self) -> Result<Option<(Message, Option<OwnedFd>)>> {
        if !self.alive {
            return Ok(None);
        }
        if let Some(message) = self.unhandled.take() {
            return Ok(Some((message, None)));
        }
        if let Some(proof) = self.doubted {
            match self.next()? {
                None => return Ok(None),
                Some((Message::Proof { proof: said }, _)) if said == proof => self.doubted = None,
                Some(_) => {
                    log!(Warn, "process {} has not made the id whose socket it has", self.pid());
                    return Err(Error::NoSuchId);
                }
            }
        }
        self.next()
    }

    fn next(&self) -> Result<Option<(Message, Option<OwnedFd>)>> {
        let mut bytes = [0; protocol::SIZE + 1];
        match socket::receive(&self.socket, &mut bytes) {
            Err(errno) if is_passing(errno) => Ok(None),
            Err(errno) => Err(failed("recvmsg")(errno)),
            Ok((len, descriptor)) => {
                let message = Message::decode(&bytes[..len]);
                let message = message.ok_or(Error::Invalid("not a message of this version"))?;
                Ok(Some((message, descriptor)))
            }
        }
    }

    /// The exporter is gone. What is mapped from its objects stays, and so do their descriptors until the last
    /// permit goes.
    pub(crate) fn bury(&mut self, poller: &Poller) {
        self.alive = false;
        self.unsent.clear();
        self.unconfirmed = None;
        self.unhandled = None;
        // A dead connection would be ready for ever.
        poller.remove(&self.socket);
    }

    /// Notes that nobody is to see what its objects have in a range.
    pub(crate) fn note_blank(&mut self, range: Range) -> SysResult<()> {
        /// More than these are as good as all of it.
        const MOST: usize = 1024;
        if self.blank.iter().nth(MOST).is_some() {
            self.blank = RangeTable::new();
            return self.blank.insert(Range::EVERYTHING, ());
        }
        self.blank.insert(range, ())
    }

    /// What its objects have in a range is to be seen.
    pub(crate) fn is_not_blank(&mut self, range: Range) -> SysResult<()> {
        self.blank.remove(range)
    }

    /// The next part of a range that nobody is to see in a new window.
    pub(crate) fn next_blank(&self, range: Range) -> Option<Range> {
        self.blank.next_in(range).and_then(|span| span.range.intersection(range))
    }

    /// Keeps the descriptor of an object.
    pub(crate) fn learn(&mut self, serial: u32, writable: bool, fd: OwnedFd) -> Result<()> {
        super::regular(&fd)?;
        if self.object(serial, writable).is_none() {
            let fd = fd::to_last(fd).map_err(failed("recvmsg"))?;
            self.known.push(Known { serial, writable, fd }).map_err(failed("mmap"))?;
        }
        Ok(())
    }

    /// The exporter has closed an object: its descriptor is not needed, and what is mapped stays.
    pub(crate) fn forget(&mut self, serial: u32) {
        self.known.retain(|known| known.serial != serial);
    }

    /// The descriptor of an object.
    pub(crate) fn object(&self, serial: u32, writable: bool) -> Option<BorrowedFd<'_>> {
        let known = self.known.iter().find(|known| known.serial == serial && known.writable == writable);
        known.map(|known| known.fd.as_fd())
    }
}
