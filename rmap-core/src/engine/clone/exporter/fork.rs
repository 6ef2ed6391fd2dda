//! Before and after a `fork` of the application's.

use super::adopt::Origin;
use super::{Exporter, Fork, Job, SOON};
use crate::engine::clone::calls::Ticket;
use crate::error::{Error, Result, failed};
use crate::log::log;
use crate::own::OwnVec;
use crate::range::Range;
use crate::sys::thread;
use core::ops::ControlFlow;
use core::time::Duration;

/// Says that a child does not have everything.
pub(super) fn log_loss(why: &Error) {
    log!(Error, "fork: the child does not have all memory that importers have attached: {why}");
}

impl Exporter {
    /// Prepares for a fork; answers at once if no memory must become private first.
    pub(crate) fn fork_begins(&mut self, ticket: Ticket) -> Option<Ticket> {
        if let Err(error) = self.note_inherited() {
            log!(Error, "noting what the child shares: {error}");
        }
        let adopted = self.backed.iter().any(|span| !matches!(span.value.origin, Origin::Copied(_)));
        let fork = Fork { ticket, since: thread::time() };
        if adopted {
            let queued = self.jobs.push(Job::Fork(fork)).map_err(failed("mmap"));
            if queued.is_ok() || queued.is_err_and(|error| self.fork_later(fork, &error)) {
                return None;
            }
        }
        self.forking = true;
        Some(ticket)
    }

    /// Has a fork wait until its child can have a copy. False if it has waited for long enough.
    pub(super) fn fork_later(&mut self, fork: Fork, why: &Error) -> bool {
        const LONGEST: Duration = Duration::from_secs(1);
        let now = thread::time();
        log!(Debug, "fork: no copy for the child yet: {why}");
        let later = why.is_passing() && now.saturating_sub(fork.since) < LONGEST;
        self.fork_due = later.then_some((fork, now.saturating_add(SOON)));
        later
    }

    /// Notes the shared anonymous memory that a child is about to share: it must not be adopted as if it were this process's
    /// alone.
    fn note_inherited(&mut self) -> Result<()> {
        let (objects, inherited) = (&self.objects, &mut self.inherited);
        let mut result = Ok(());
        self.maps
            .each_vma(|vma, path| {
                if let Some(file) = vma.file.filter(|_| vma.shared && path.ends_with(b" (deleted)"))
                    && objects.of_file(file).is_none()
                    && !inherited.contains(&file)
                {
                    result = inherited.push(file);
                }
                if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })
            .map_err(failed("read of /proc/thread-self/maps"))?;
        result.map_err(failed("mmap"))
    }

    /// Whether the child has its copies, or there is no child.
    pub(crate) fn fork_ends(&mut self) {
        self.forking = false;
    }

    /// Makes private what the child is to have a copy of. All threads stand still.
    ///
    /// # Errors
    /// Some of it is adopted still.
    pub(super) fn prepare_fork(&mut self) -> Result<()> {
        let mut from = 0;
        for kept in self.kept_from_children().iter() {
            self.evict_for_fork(from, kept.start())?;
            from = kept.end();
        }
        self.evict_for_fork(from, self.objects.end())
    }

    fn evict_for_fork(&mut self, start: usize, end: usize) -> Result<()> {
        let range = Range::between(start, end);
        range
            .map_or(Ok(()), |range| self.evict(range, |backing| !matches!(backing.origin, Origin::Copied(_))))
    }

    /// What the application keeps from its children by its own doing (`MADV_DONTFORK`), in order of address.
    fn kept_from_children(&self) -> OwnVec<Range> {
        let mut kept = OwnVec::new();
        for span in self.backed.iter().filter(|span| span.value.wishes.dont_fork) {
            let mut addr = span.range.start();
            while let Some(vma) = self.maps.at_or_after(addr).filter(|vma| vma.start < span.range.end()) {
                addr = vma.end;
                let mapped = Range::between(vma.start, vma.end).and_then(|all| all.intersection(span.range));
                // It may have changed its mind since.
                let still = self.attributes_of(&vma).is_ok_and(|attributes| attributes.dont_fork);
                if let Some(range) = mapped.filter(|_| still)
                    && let Err(errno) = kept.push(range)
                {
                    log!(Info, "{range} is copied for a child that does not get it: {errno}");
                }
            }
        }
        kept
    }
}
