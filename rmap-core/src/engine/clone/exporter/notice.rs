//! Telling importers that memory which they map from its own file is gone, and waiting until they know.
//!
//! Adopted memory is taken from importers by punching. A file is not this process's to punch, so importers are told, and the
//! thread that unmaps is held until all have let go: when its call returns, nobody reads the file at that address.
//! It is never held for long: an importer that has not answered after a second (it is stopped) is not waited for again before it
//! answers. The service thread itself waits for nobody.

use super::super::calls::{Answer, Calls, Ticket};
use super::Exporter;
use crate::log::log;
use crate::own::OwnVec;
use crate::range::Range;
use crate::sys::SysResult;
use crate::sys::event::Poller;
use crate::sys::thread;
use core::time::Duration;

/// How long one importer may hold up a thread that unmaps a file.
const LONGEST: Duration = Duration::from_secs(1);

/// What importers have been told.
#[derive(Debug)]
pub(crate) struct Notices {
    last: u32,
    /// Until when answers are waited for.
    until: Option<Duration>,
    /// Events are left alone, and with them the threads that they hold.
    paused: bool,
    /// Removals of segments that return when all importers know.
    tickets: OwnVec<Ticket>,
}

impl Notices {
    pub(crate) fn new() -> Self {
        Self { last: 0, until: None, paused: false, tickets: OwnVec::new() }
    }

    /// Numbers a notice.
    pub(crate) fn next(&mut self) -> u32 {
        self.last = self.last.wrapping_add(1);
        self.last
    }

    /// Has answers waited for.
    pub(crate) fn wait(&mut self) {
        self.until = Some(thread::time().saturating_add(LONGEST));
    }

    /// Answers a removal when all importers know.
    pub(crate) fn answer_later(&mut self, ticket: Ticket) -> SysResult<()> {
        self.tickets.push(ticket)
    }
}

impl Exporter {
    /// Whether threads that unmap files must be held still.
    pub(super) fn waits_for_importers(&self) -> bool {
        self.notices.until.is_some() && self.clients.iter().any(|client| client.is_waited_for())
    }

    /// Tells the importers that files in `range` are not mapped there any more.
    pub(super) fn tell_stale(&mut self, range: Range) {
        let number = self.notices.next();
        for client in self.clients.iter_mut() {
            client.stale(range, number);
        }
        self.notices.wait();
    }

    /// When there is something to do although nobody asks, from now.
    pub(crate) fn patience(&self) -> Option<Duration> {
        let again = self.postponed.iter().map(|postponed| postponed.due);
        self.notices.until.into_iter().chain(again).min().map(|until| until.saturating_sub(thread::time()))
    }

    /// Leaves events alone while importers are waited for, and goes on when they have answered or had their time.
    pub(crate) fn mind_importers(&mut self, calls: &Calls, poller: &Poller, token: u64) {
        if self.notices.until.is_some_and(|until| until <= thread::time()) {
            for client in self.clients.iter_mut().filter(|client| client.is_waited_for()) {
                log!(Warn, "process {} does not answer: it may read old bytes of a file", client.pid());
                client.give_up_waiting();
            }
        }
        let waits = self.waits_for_importers();
        if !waits {
            self.notices.until = None;
            while let Some(ticket) = self.notices.tickets.remove(0) {
                calls.answer(ticket, Ok(Answer::Done));
            }
        }
        if waits != self.notices.paused {
            self.notices.paused = waits;
            if waits {
                poller.remove(&self.watchers);
            } else if let Err(errno) = poller.add(&self.watchers, token) {
                log!(Error, "watching for changes of the address space: {errno}");
                self.notices.paused = true;
            }
        }
    }
}
