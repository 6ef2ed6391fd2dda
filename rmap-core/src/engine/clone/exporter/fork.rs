//! Before and after a `fork` of the application's: what its child has of adopted memory.

use super::adopt::Origin;
use super::{Exporter, Fork, Job, SOON};
use crate::config::Inheritance;
use crate::engine::clone::calls::Ticket;
use crate::engine::clone::heritage::Heritage;
use crate::error::{Error, Result, failed};
use crate::log::log;
use crate::own::OwnVec;
use crate::range::Range;
use crate::sys::{memory, thread};
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
    pub(super) fn prepare_fork(&mut self) -> Result<Option<Heritage>> {
        let mut kept = self.kept_from_children();
        let (buffers, heritage) = self.spared_buffers();
        kept.reserve(buffers.len()).map_err(failed("mmap"))?;
        for buffer in buffers.iter() {
            kept.push(*buffer).map_err(failed("mmap"))?;
        }
        kept.sort_unstable();
        match self.evict_all_but(&kept) {
            Ok(()) => Ok(heritage),
            Err(error) => {
                if let Some(heritage) = heritage {
                    heritage.give_up();
                }
                Err(error)
            }
        }
    }

    fn evict_all_but(&mut self, kept: &[Range]) -> Result<()> {
        let mut from = 0;
        for kept in kept {
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

    /// The buffers that stay adopted during the fork, and what the child gets of them.
    fn spared_buffers(&self) -> (OwnVec<Range>, Option<Heritage>) {
        let found = match self.config.fork {
            Inheritance::Copy => Ok((OwnVec::new(), None)),
            Inheritance::Drop => self.buffers_to_spare().map(|buffers| (buffers, None)),
            Inheritance::Share => self.buffers_to_spare().and_then(|buffers| self.views_of(buffers)),
        };
        let (buffers, heritage) = found.unwrap_or_else(|error| {
            log!(Warn, "fork: everything is copied: {error}");
            (OwnVec::new(), None)
        });
        if self.config.fork != Inheritance::Copy {
            let stay: usize = buffers.iter().map(|buffer| buffer.len()).sum();
            log!(Info, "fork: {} MiB of buffers are not copied", stay >> 20);
        }
        (buffers, heritage)
    }

    /// Buffers, none of which the child inherits as it is, whatever the application has advised meanwhile.
    fn buffers_to_spare(&self) -> Result<OwnVec<Range>> {
        let mut buffers = self.buffers()?;
        buffers.retain(|buffer| memory::advise(buffer.start(), buffer.len(), libc::MADV_DONTFORK).is_ok());
        Ok(buffers)
    }

    /// Views of buffers, for the child. Buffers without one are copied.
    fn views_of(&self, buffers: OwnVec<Range>) -> Result<(OwnVec<Range>, Option<Heritage>)> {
        let mut pieces = OwnVec::new();
        for buffer in buffers.iter() {
            let mut addr = buffer.start();
            let read = failed("read of /proc/thread-self/maps");
            let next = |addr| self.maps.find_at_or_after(addr).map_err(&read);
            while let Some(vma) = next(addr)?.filter(|vma| vma.start < buffer.end()) {
                addr = vma.end;
                let mapped = Range::between(vma.start, vma.end).and_then(|all| all.intersection(*buffer));
                for span in mapped.into_iter().flat_map(|mapped| self.backed.within(mapped)) {
                    pieces.push((span, vma.prot)).map_err(failed("mmap"))?;
                }
            }
        }
        let mut viewed = OwnVec::new();
        if pieces.is_empty() {
            return Ok((viewed, None));
        }
        viewed.reserve(pieces.len()).map_err(failed("mmap"))?;
        let list = Heritage::with_room(pieces.len()).map_err(failed("mmap"))?;
        for (span, prot) in pieces.iter() {
            let object = self.objects.get(span.value.serial);
            match object.map(|object| list.add(object.own(), span.range, *prot)) {
                // There is room.
                Some(Ok(())) => viewed.push(span.range).map_err(failed("mmap"))?,
                Some(Err(errno)) => log!(Warn, "{} is copied for a child: {errno}", span.range),
                None => {}
            }
        }
        Ok((viewed, Some(list)))
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
