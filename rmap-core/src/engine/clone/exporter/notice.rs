//! Telling importers that memory which they map from its own file is gone, and waiting until they know.
//!
//! Adopted memory is taken from importers by punching. A file is not this process's to punch, and a part of a huge page that somebody has in
//! hand is cleared and stays, so importers are told, and the thread that unmaps is held until all have let go: when its call returns, nobody
//! reads the file at that address.
//! It is not held for ever: an importer that is stopped has a second, any other ten, and then it is not waited for again before it has
//! answered all. Importers of other users hold this process up for a tenth of the time at most, beyond what an answer usually takes.
//! The service thread itself waits for nobody.

use super::super::calls::{Answer, Calls, Ticket};
use super::client::Client;
use super::rights::User;
use super::{Exporter, SOON};
use crate::counters::{self, Cell};
use crate::log::log;
use crate::own::OwnVec;
use crate::range::Range;
use crate::sys::event::Poller;
use crate::sys::{SysResult, procfs, thread};
use core::time::Duration;

/// How long one importer may hold up a thread that unmaps a file: it may get no core for long.
const LONGEST: Duration = Duration::from_secs(10);
/// How often it is looked whether an importer is stopped that has not answered.
const GLANCE: Duration = Duration::from_secs(1);
/// What an answer may take on a busy machine, at nobody's cost.
const USUAL: Duration = Duration::from_millis(100);
/// What is longer fills up again in so many times the time.
const REFILL: u32 = 10;

/// For how long importers of another user may still hold up this process, beyond what is usual. All importers of a user share it: a new
/// connection is no new purse.
#[derive(Clone, Copy, Debug)]
struct Purse {
    user: User,
    left: Duration,
    at: Duration,
}

impl Purse {
    const fn full(user: User) -> Self {
        Self { user, left: LONGEST, at: Duration::ZERO }
    }

    fn left(&self, now: Duration) -> Duration {
        LONGEST.min(self.left.saturating_add(now.saturating_sub(self.at) / REFILL))
    }

    /// A thread was held since then. Time is paid for once, however many importers it was held for.
    fn pay(&mut self, since: Duration, now: Duration) {
        let cost = now.saturating_sub(since.saturating_add(USUAL).max(self.at));
        self.left = self.left(now).saturating_sub(cost);
        self.at = now;
    }
}

/// Whether a user could stop this process anyway.
fn is_trusted(user: User) -> bool {
    user.is(0) || user.is_own()
}

/// What importers have been told.
#[derive(Debug)]
pub(crate) struct Notices {
    last: u32,
    /// Answers are waited for.
    holds: bool,
    /// When to look again at the importers that are waited for.
    look_at: Option<Duration>,
    /// Events are left alone, and with them the threads that they hold.
    paused: bool,
    /// Removals of segments that return when all importers know.
    tickets: OwnVec<Ticket>,
    /// Those that are not full.
    purses: OwnVec<Purse>,
}

impl Notices {
    pub(crate) fn new() -> Self {
        let (tickets, purses) = (OwnVec::new(), OwnVec::new());
        Self { last: 0, holds: false, look_at: None, paused: false, tickets, purses }
    }

    /// Numbers a notice.
    pub(crate) fn next(&mut self) -> u32 {
        self.last = self.last.wrapping_add(1);
        self.last
    }

    /// Answers a removal when all importers know.
    pub(crate) fn answer_later(&mut self, ticket: Ticket) -> SysResult<()> {
        self.tickets.push(ticket)
    }

    /// How long an importer of `user` may take to answer.
    fn allowance(&self, user: User, now: Duration) -> Duration {
        let purse = self.purses.iter().find(|purse| purse.user == user);
        match purse.filter(|_| !is_trusted(user)) {
            Some(purse) => LONGEST.min(USUAL + purse.left(now)),
            None => LONGEST,
        }
    }

    /// An importer of `user` has been waited for.
    pub(crate) fn charge(&mut self, user: User, since: Duration) {
        let now = thread::time();
        if is_trusted(user) || now.saturating_sub(since) <= USUAL {
            return;
        }
        self.purses.retain(|purse| purse.left(now) < LONGEST);
        let known = self.purses.iter().position(|purse| purse.user == user);
        if known.is_none() && self.purses.push(Purse::full(user)).is_err() {
            return;
        }
        if let Some(purse) = known.or(self.purses.len().checked_sub(1)).and_then(|i| self.purses.get_mut(i)) {
            purse.pay(since, now);
        }
    }
}

impl Exporter {
    /// Whether threads that unmap files must be held still.
    pub(super) fn waits_for_importers(&self) -> bool {
        self.notices.holds && self.clients.iter().any(|client| client.is_waited_for())
    }

    /// Whether events are left alone for now.
    pub(super) fn leaves_events(&self) -> bool {
        self.waits_for_importers()
            || self.unfollowed.is_some_and(|unfollowed| unfollowed.due > thread::time())
    }

    /// Tells the importers that files in `range` are not mapped there any more.
    pub(super) fn tell_stale(&mut self, range: Range) {
        self.left.close_files(&self.shared);
        self.notify(range, false);
    }

    /// Frees what an object has in `range`, out of the importers' reach.
    ///
    /// # Errors
    /// They may see it still.
    pub(super) fn free(&mut self, serial: u32, range: Range) -> SysResult<()> {
        let Some(object) = self.objects.get_mut(serial) else { return Ok(()) };
        counters::count(Cell::Punches);
        if let Some(stays) = object.free(range)? {
            log!(Debug, "{stays} is part of a page that somebody has in hand: importers are told");
            self.notify(stays, true);
        }
        Ok(())
    }

    fn notify(&mut self, range: Range, objects: bool) {
        let number = self.notices.next();
        counters::count(Cell::Notices);
        for client in self.clients.iter_mut() {
            client.stale(range, number, objects);
        }
        self.wait_for_importers();
    }

    /// Has answers waited for.
    pub(super) fn wait_for_importers(&mut self) {
        let now = thread::time();
        for client in self.clients.iter_mut() {
            client.is_waited_for_from(now);
        }
        self.notices.holds = true;
    }

    /// When there is something to do although nobody asks, from now.
    pub(crate) fn patience(&self) -> Option<Duration> {
        let again = self.postponed.iter().map(|postponed| postponed.due);
        let again = again.chain(self.notices.look_at).chain(self.unfollowed.map(|unfollowed| unfollowed.due));
        let again = again.chain(self.fork_due.map(|(_, due)| due));
        let next = again.min().map(|until| until.saturating_sub(thread::time()));
        let unhandled = self.clients.iter().any(Client::is_to_be_tried_again) || !self.unwatched.is_empty();
        let unhandled = unhandled.then_some(SOON);
        next.into_iter().chain(unhandled).min()
    }

    /// Leaves events alone while importers are waited for, and goes on when they have answered or had their time.
    pub(crate) fn mind_importers(&mut self, calls: &Calls, poller: &Poller, token: u64) {
        if self.notices.holds {
            self.lose_patience();
        }
        let waits = self.leaves_events();
        if !self.waits_for_importers() {
            self.notices.holds = false;
            while let Some(ticket) = self.notices.tickets.remove(0) {
                calls.answer(ticket, Ok(Answer::Done));
            }
        }
        if waits != self.notices.paused {
            self.notices.paused = waits;
            if waits {
                let _ = poller.pause(&self.watchers, token);
            } else {
                let _ = poller.change(&self.watchers, token, false);
            }
        }
    }

    /// Ends the wait for importers that have answered, are stopped, or have had their time.
    fn lose_patience(&mut self) {
        let now = thread::time();
        self.notices.look_at = None;
        for client in self.clients.iter_mut() {
            let Some(since) = client.waited_for_since() else { continue };
            if client.is_waited_for() {
                let waited = now.saturating_sub(since);
                let allowance = self.notices.allowance(client.user(), now);
                if waited < allowance && !(waited >= GLANCE && procfs::is_stopped(client.pid())) {
                    let glance = GLANCE * (waited.as_secs() as u32 + 1);
                    let next = since.saturating_add(allowance.min(glance));
                    self.notices.look_at = Some(self.notices.look_at.map_or(next, |at| at.min(next)));
                    continue;
                }
                log!(Warn, "process {} does not answer: it may read old bytes of a file", client.pid());
                client.give_up_waiting();
            }
            client.was_waited_for();
            self.notices.charge(client.user(), since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_purse_pays_once_and_refills() {
        let mut purse = Purse::full(User::known(7));
        let start = 1000 * SECOND;
        assert_eq!(purse.left(start), LONGEST);
        // What is usual is free.
        purse.pay(start - USUAL, start);
        assert_eq!(purse.left(start), LONGEST);
        purse.pay(start, start + 4 * SECOND + USUAL);
        let now = start + 4 * SECOND + USUAL;
        assert_eq!(purse.left(now), 6 * SECOND);
        // Another importer, at the same time.
        purse.pay(start, now);
        assert_eq!(purse.left(now), 6 * SECOND);
        assert_eq!(purse.left(now + 10 * SECOND), 7 * SECOND);
        assert_eq!(purse.left(now + 1000 * SECOND), LONGEST);
        purse.pay(now, now + 100 * SECOND);
        assert_eq!(purse.left(now + 100 * SECOND), Duration::ZERO);
    }

    #[test]
    fn what_a_user_has_cost_shortens_the_next_wait() {
        let mut notices = Notices::new();
        let mut strangers = (12_345..).map(User::known).filter(|user| !is_trusted(*user));
        let (stranger, another) = (strangers.next().unwrap(), strangers.next().unwrap());
        let now = thread::time();
        assert_eq!(notices.allowance(stranger, now), LONGEST);
        notices.charge(stranger, now.saturating_sub(5 * SECOND));
        let left = notices.allowance(stranger, thread::time());
        assert!(left < 6 * SECOND, "{left:?}");
        assert_eq!(notices.allowance(another, now), LONGEST);
        // Who could stop this process anyway is waited for as long as ever.
        let root = User::known(0);
        notices.charge(root, now.saturating_sub(5 * SECOND));
        assert_eq!(notices.allowance(root, now), LONGEST);
    }
}
