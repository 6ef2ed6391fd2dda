//! Memory leaves the objects, out of the importers' reach, and objects that are needed no more are closed.

use super::adopt::{self, Backing, Origin};
use super::extract;
use super::object::{Object, Shown};
use super::{Exporter, Job, Segment};
use crate::counters::{self, Cell};
use crate::error::{Result, failed};
use crate::log::log;
use crate::own::OwnVec;
use crate::range::Range;
use crate::sys::Said;
use crate::sys::memory::HUGE_PAGE;

impl Exporter {
    /// Makes adopted memory in `range` private again, out of the importers' reach. All threads stand still.
    ///
    /// # Errors
    /// Some of it is as it was.
    pub(super) fn evict(&mut self, range: Range, wanted: impl Fn(Backing) -> bool) -> Result<()> {
        let mut result = Ok(());
        let mut from = range;
        while let Some(span) = self.backed.next_in(from) {
            let part = span.range.intersection(range);
            if let Some(part) = part.filter(|_| wanted(span.value)) {
                result = result.and(self.evict_span(part, span.value));
            }
            match Range::between(span.range.end(), range.end()) {
                Some(rest) => from = rest,
                None => break,
            }
        }
        result
    }

    fn evict_span(&mut self, part: Range, backing: Backing) -> Result<()> {
        let Some(object) = self.objects.get(backing.serial) else {
            return Ok(());
        };
        if !matches!(backing.origin, Origin::Copied(_)) {
            let mut addr = part.start();
            let read = failed("read of /proc/thread-self/maps");
            let next = |addr| self.maps.find_at_or_after(addr).map_err(&read);
            while let Some(vma) = next(addr)?.filter(|vma| vma.start < part.end()) {
                addr = vma.end;
                let mapped = Range::between(vma.start, vma.end).and_then(|all| all.intersection(part));
                let Some(piece) = mapped.filter(|_| object.is_at_home(&vma)) else {
                    continue;
                };
                let (piece, order) = self.programs.first_part(piece);
                addr = piece.end();
                let attributes = self.attributes_to_keep(piece)?;
                self.loosen(object, piece);
                // SAFETY: all threads stand still.
                let moved = unsafe {
                    if backing.origin == Origin::Shared {
                        let fd =
                            adopt::give_own_file(object, piece, vma.prot, &self.watchers, &self.placement);
                        fd.and_then(|fd| self.own_files.push(fd).map_err(failed("mmap")))
                    } else {
                        adopt::privatize(object, piece, order, vma.prot, &self.watchers, &self.placement)
                    }
                };
                moved?;
                adopt::restore_attributes(piece, &backing.wishes.granted(&attributes), vma.prot);
                counters::count(Cell::Evictions);
                counters::add(Cell::EvictedBytes, piece.len() as u64);
            }
        }
        let _ = self.free(backing.serial, part);
        let _ = self.backed.remove(part);
        self.private_files.forget(part);
        Ok(())
    }

    /// Has no huge page lie across the borders of a range that is to leave an object. All threads stand still.
    pub(super) fn loosen(&self, object: &Object, range: Range) {
        for border in [range.start(), range.end()] {
            let block = Range::new(border & !(HUGE_PAGE - 1), HUGE_PAGE);
            let may_be_huge = |block: &Range| {
                block.start() != border
                    && object.next_data(*block) == Some(*block)
                    && !self.programs.are_in(*block)
            };
            let Some(block) = block.filter(may_be_huge) else { continue };
            // SAFETY: all threads stand still, and what the service thread needs is not in the block.
            if let Err(error) = unsafe { extract::dissolve(object, block, &self.placement) } {
                log!(Debug, "{block} stays one page, if it is: {error}");
            }
        }
    }

    /// Closes the objects that show nothing and that no segment's permits begin with.
    pub(super) fn close_idle_objects(&mut self) {
        self.close_objects(is_idle);
    }

    /// Closes the objects of huge pages that show nothing: what they have had is gone.
    pub(super) fn close_spent_objects(&mut self) {
        self.close_objects(|object, _| object.shown == Shown::WhenTold);
    }

    /// Closes the objects that show nothing, of those that may be closed.
    fn close_objects(&mut self, may_be: impl Fn(&Object, &[Segment]) -> bool) {
        let (segments, backed) = (&self.segments, &self.backed);
        let mut closed = OwnVec::new();
        self.objects.retain(|object| {
            !may_be(object, segments)
                || backed.iter().any(|span| span.value.serial == object.serial)
                || closed.push(object.serial).is_err()
        });
        for serial in closed.iter() {
            for client in self.clients.iter_mut() {
                if let Err(errno) = client.lose_object(*serial) {
                    log!(
                        Warn,
                        "process {} keeps a closed object: {errno}",
                        client.pid(),
                        errno = Said(errno)
                    );
                }
            }
        }
    }

    /// Has the memory of segments that are gone leave its objects, once those are more than a few: each takes descriptors for as long as it
    /// is mapped, and taking it out stops all threads.
    pub(super) fn limit_idle_objects(&mut self) {
        const FEW: usize = 8;
        let waits = self.jobs.iter().any(|job| matches!(job, Job::EvictIdle));
        let idle = self.objects.iter().filter(|object| is_idle(object, &self.segments)).count();
        if idle > FEW && !waits && self.jobs.push(Job::EvictIdle).is_err() {
            log!(Error, "{idle} objects of segments that are gone stay open");
        }
    }

    /// Makes what idle objects show private again, and closes them. All threads stand still.
    pub(super) fn evict_idle_objects(&mut self) {
        let mut idle = OwnVec::new();
        for object in self.objects.iter().filter(|object| is_idle(object, &self.segments)) {
            if idle.push((object.serial, object.domain)).is_err() {
                break;
            }
        }
        for (serial, domain) in idle.iter() {
            if let Err(error) = self.evict(*domain, |backing| backing.serial == *serial) {
                log!(Error, "an object of a segment that is gone stays open: {error}");
            }
        }
        self.close_idle_objects();
    }
}

/// Whether no segment has its permits begin with the object.
fn is_idle(object: &Object, segments: &[Segment]) -> bool {
    !segments.iter().any(|segment| segment.range == object.domain)
}
