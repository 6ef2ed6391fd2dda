//! What needs all threads to stand still, and waits until they do.

use super::super::calls::{Answer, Calls, Ticket};
use super::freeze::Progress;
use super::{Exporter, Resolve, SOON, Segment, fork};
use crate::counters::{self, Cell};
use crate::error::{Error, failed};
use crate::log::log;
use crate::sys::event::{Doorbell, Poller};
use crate::sys::{Errno, Said, SysResult, thread};
use core::time::Duration;
use std::os::fd::{AsFd, BorrowedFd};

/// What waits until all threads stand still.
#[derive(Clone, Copy, Debug)]
pub(super) enum Job {
    Resolve {
        client: u32,
        request: Resolve,
    },
    /// The memory of a removed segment leaves the objects.
    Evict {
        segment: Segment,
        ticket: Ticket,
    },
    /// The memory of segments that are gone leaves their objects, so that these can be closed.
    EvictIdle,
    /// A thread is about to fork: what its child copies leaves the objects.
    Fork(Fork),
}

/// A thread that is about to fork.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fork {
    pub(super) ticket: Ticket,
    pub(super) since: Duration,
}

/// A request to look at again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Postponed {
    pub(super) client: u32,
    pub(super) request: Resolve,
    pub(super) due: Duration,
}

impl Exporter {
    /// Starts a freeze if something waits for one, and does what waits once everything stands. Returns the answer to a
    /// fork that may go on.
    pub(crate) fn step(
        &mut self,
        calls: &Calls,
        doorbell: &Doorbell,
        (poller, token): (&Poller, u64),
    ) -> Option<(Ticket, Answer)> {
        self.resume_postponed();
        self.watch_the_rest();
        loop {
            match self.freezer.progress() {
                Progress::Idle if self.jobs.is_empty() || self.forking => return None,
                Progress::Idle => match self.start_freeze(doorbell.as_fd(), poller, token) {
                    Ok(()) => return None,
                    Err(errno) => {
                        log!(
                            Error,
                            "cannot start the process that stops threads: {errno}",
                            errno = Said(errno)
                        );
                        self.fail_jobs(errno, calls);
                    }
                },
                Progress::Pending => return None,
                // The fork came while the threads were being stopped: nothing may be adopted before it is over.
                Progress::Frozen if self.forking => {
                    self.freezer.thaw();
                    return None;
                }
                Progress::Frozen => {
                    let fork = self.run_jobs(calls);
                    let threads = self.freezer.threads();
                    self.freezer.thaw();
                    let stall = thread::time().saturating_sub(self.freezing_since);
                    counters::count_stall(stall, threads);
                    log!(Debug, "threads stood still for {} us", stall.as_micros());
                    if fork.is_some() {
                        return fork;
                    }
                }
                Progress::Failed(errno) => {
                    if !self.freezer.thaw() {
                        counters::count(Cell::StallsFailed);
                        log!(
                            Error,
                            "cannot stop the threads of this process ({errno}): is it being traced?",
                            errno = Said(errno)
                        );
                        self.fail_jobs(errno, calls);
                    }
                }
            }
        }
    }

    fn start_freeze(&mut self, doorbell: BorrowedFd<'_>, poller: &Poller, token: u64) -> SysResult<()> {
        self.freezing_since = thread::time();
        self.freezer.start(doorbell, |end| poller.add(end, token))
    }

    /// Has a request looked at again in a moment that could not be answered. False if there is no room to note it.
    fn answer_later(&mut self, client: u32, request: Resolve, why: &Error) -> bool {
        log!(Debug, "no answer about {:#x} yet: {why}", request.addr);
        let due = thread::time().saturating_add(SOON);
        self.postponed.push(Postponed { client, request, due }).is_ok()
    }

    /// Has the requests looked at again whose time has come.
    fn resume_postponed(&mut self) {
        if self.postponed.is_empty() && self.fork_due.is_none() {
            return;
        }
        let (now, jobs) = (thread::time(), &mut self.jobs);
        if let Some((fork, _)) = self.fork_due.filter(|(_, due)| *due <= now)
            && jobs.push(Job::Fork(fork)).is_ok()
        {
            self.fork_due = None;
        }
        self.postponed.retain(|Postponed { client, request, due }| {
            *due > now || jobs.push(Job::Resolve { client: *client, request: *request }).is_err()
        });
    }

    /// Does what needs all threads to stand still. Returns the answer to a fork that may go on now.
    fn run_jobs(&mut self, calls: &Calls) -> Option<(Ticket, Answer)> {
        self.give_back_unseen();
        while let Some(job) = self.jobs.remove(0) {
            match job {
                Job::Resolve { client, request } => {
                    if let Err(error) = self.answer(client, request, true)
                        && !(error.is_passing() && self.answer_later(client, request, &error))
                    {
                        log!(Warn, "importer dropped: {error}");
                        self.drop_client(client);
                    }
                }
                Job::Evict { segment, ticket } => {
                    let range = segment.range;
                    self.take_left(range);
                    if let Err(error) = self.evict(range, |_| true) {
                        self.evict_later(segment, error, ticket, calls);
                        continue;
                    }
                    // Somebody may have kept a descriptor: nothing is put into these again, also not for other segments.
                    let backed = &self.backed;
                    self.objects.retain(|object| {
                        !object.domain.overlaps(range)
                            || backed.iter().any(|span| span.value.serial == object.serial)
                    });
                    self.close_idle_objects();
                    self.answer_when_all_know(ticket, calls);
                }
                Job::EvictIdle => self.evict_idle_objects(),
                Job::Fork(fork) => {
                    let answer = match self.prepare_fork() {
                        Ok(heritage) => heritage.map_or(Answer::Done, Answer::Fork),
                        Err(error) if self.fork_later(fork, &error) => continue,
                        Err(error) => {
                            fork::log_loss(&error);
                            Answer::Done
                        }
                    };
                    self.forking = true;
                    return Some((fork.ticket, answer));
                }
            }
        }
        None
    }

    fn fail_jobs(&mut self, errno: Errno, calls: &Calls) {
        while let Some(job) = self.jobs.remove(0) {
            match job {
                Job::Resolve { client, request } => {
                    if let Some(index) = self.client(client) {
                        let _ = self.clients[index].hole(request.request);
                    }
                }
                Job::Evict { segment, ticket } => {
                    let error = failed("stopping the threads of this process")(errno);
                    self.evict_later(segment, error, ticket, calls);
                }
                // They are looked at again when the next segment goes.
                Job::EvictIdle => {}
                Job::Fork(fork) => {
                    let error = failed("stopping the threads of this process")(errno);
                    if !self.fork_later(fork, &error) {
                        fork::log_loss(&error);
                        calls.fail(fork.ticket, error);
                    }
                }
            }
        }
    }
}
