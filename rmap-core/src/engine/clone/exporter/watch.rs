//! The userfaultfds that report what becomes of adopted memory.
//!
//! Reading an event wakes every thread that is held by the same userfaultfd, if only to sleep again, and a thread that is awake does not
//! show what it waits for. So unrelated mappings are spread over several: threads that work on different memory do not
//! disturb each other's events. Neighbours share one, so that their mappings stay one.

use super::Exporter;
use crate::error::{Result, failed, is_passing};
use crate::log::log;
use crate::own::RangeTable;
use crate::range::Range;
use crate::sys::event::Poller;
use crate::sys::memory::HUGE_PAGE;
use crate::sys::uffd::{Event, Userfaultfd};
use crate::sys::{Errno, Said, SysResult};
use core::cell::{OnceCell, RefCell};
use core::time::Duration;
use std::os::fd::{AsFd, BorrowedFd};

const MOST: usize = 32;

/// Watches ranges of this process.
#[derive(Debug)]
pub(crate) struct Watchers {
    /// Made when first needed.
    all: [OnceCell<Userfaultfd>; MOST],
    ready: Poller,
    /// Which one watches a range. Memory that has moved is not in it.
    assigned: RefCell<RangeTable<usize>>,
}

impl Watchers {
    /// Makes the first, which tells whether the kernel can.
    pub(crate) fn new() -> SysResult<Self> {
        let watchers = Self {
            all: [const { OnceCell::new() }; MOST],
            ready: Poller::new()?,
            assigned: RefCell::new(RangeTable::new()),
        };
        watchers.get(0)?;
        Ok(watchers)
    }

    fn get(&self, index: usize) -> SysResult<&Userfaultfd> {
        let Some(cell) = self.all.get(index) else { return Err(Errno::INVAL) };
        if cell.get().is_none() {
            let new = Userfaultfd::for_events()?;
            self.ready.add(&new, index as u64)?;
            let _ = cell.set(new);
        }
        cell.get().ok_or(Errno::INVAL)
    }

    /// Whether mappings that are not shared memory can be watched.
    pub(crate) fn watches_any_mapping(&self) -> bool {
        self.get(0).is_ok_and(Userfaultfd::watches_any_mapping)
    }

    /// Watches a range.
    pub(crate) fn watch(&self, range: Range) -> SysResult<()> {
        let mut assigned = self.assigned.borrow_mut();
        let below = range.start().checked_sub(1).and_then(|below| assigned.at(below));
        let neighbour = below.or_else(|| assigned.at(range.end())).map(|span| span.value);
        let index = neighbour.unwrap_or(range.start() / HUGE_PAGE % MOST);
        // With few descriptors left, one watcher has to do.
        let (index, watcher) = match self.get(index) {
            Ok(watcher) => (index, watcher),
            Err(_) => (0, self.get(0)?),
        };
        match watcher.watch(range.start(), range.len()) {
            Err(Errno::BUSY) => {
                self.release(range, &assigned);
                if let Err(errno) = watcher.watch(range.start(), range.len()) {
                    for (its, part) in self.known(range, &assigned) {
                        let _ = its.watch(part.start(), part.len());
                    }
                    return Err(errno);
                }
            }
            watched => watched?,
        }
        assigned.insert(range, index)
    }

    /// What watches which parts of a range, as far as that is known.
    fn known<'a>(
        &'a self,
        range: Range,
        assigned: &'a RangeTable<usize>,
    ) -> impl Iterator<Item = (&'a Userfaultfd, Range)> {
        assigned.within(range).filter_map(|span| Some((self.get(span.value).ok()?, span.range)))
    }

    /// Ends the watch of what another than the one that is to watch a range watches there now. Memory that has moved there brought its watcher
    /// along, so all are asked. Only one that may watch a part again is told to end that: Linux 6.12 would end the application's watch as well.
    fn release(&self, range: Range, assigned: &RangeTable<usize>) {
        let all = self.all.iter().filter_map(OnceCell::get).map(|watcher| (watcher, range));
        for (its, part) in self.known(range, assigned).chain(all) {
            if its.watch(part.start(), part.len()).is_ok() {
                let _ = its.forget(part.start(), part.len());
            }
        }
    }

    /// Ends the watch of a range. To replace a watched range without this would raise an event that the very thread which replaces it would
    /// have to read.
    ///
    /// # Errors
    /// Of the kernel's, which has no memory or no mapping to spare. All is watched as before.
    pub(crate) fn forget(&self, range: Range) -> SysResult<()> {
        let mut assigned = self.assigned.borrow_mut();
        // Memory that has moved here brought its watcher along, so all are asked.
        let all = self.all.iter().filter_map(OnceCell::get).map(|watcher| (watcher, range));
        for (watcher, range) in all.chain(self.known(range, &assigned)) {
            match watcher.forget(range.start(), range.len()) {
                // Nothing that it watches is there.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(errno) => {
                    for (watcher, range) in self.known(range, &assigned) {
                        let _ = watcher.watch(range.start(), range.len());
                    }
                    return Err(errno);
                }
            }
        }
        let _ = assigned.remove(range);
        Ok(())
    }

    /// The number of a watcher that has a report.
    pub(crate) fn reporting(&self) -> Option<usize> {
        let mut found = None;
        let _ = self.ready.wait(Some(Duration::ZERO), |ready| found = found.or(Some(ready.token as usize)));
        found.filter(|index| self.has_report(*index))
    }

    /// Whether this watcher has a report.
    pub(crate) fn has_report(&self, index: usize) -> bool {
        self.get(index).is_ok_and(Userfaultfd::has_report)
    }

    /// Takes its oldest report: the thread that it is about goes on.
    pub(crate) fn read(&self, index: usize) -> SysResult<Option<Event>> {
        self.get(index)?.read()
    }
}

impl AsFd for Watchers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

impl Exporter {
    /// Watches memory that an object shows already: in a moment, if not now.
    pub(super) fn watch_surely(&mut self, range: Range) {
        if let Err(errno) = self.watchers.watch(range) {
            log!(Error, "watching {range}: {errno}", errno = Said(errno));
            if self.unwatched.push(range).is_err() {
                log!(Error, "{range} is not watched");
            }
        }
    }

    /// Watches what could not be watched before.
    pub(super) fn watch_the_rest(&mut self) {
        for _ in 0..self.unwatched.len() {
            let Some(range) = self.unwatched.remove(0) else { return };
            let backed = self.backed.within(range).try_for_each(|span| self.watch(span.range));
            let result = backed.and(self.shared.within(range).try_for_each(|span| self.watch(span.range)));
            // What has become of it meanwhile nothing has told.
            if result.and_then(|()| self.reconcile()).is_err() {
                let _ = self.unwatched.push(range);
            }
        }
    }

    /// Watches a range, if the kernel can watch what is mapped there.
    ///
    /// # Errors
    /// It can, but not now.
    pub(super) fn watch(&self, range: Range) -> Result<()> {
        match self.watchers.watch(range) {
            Err(errno) if is_passing(errno) => Err(failed("UFFDIO_REGISTER")(errno)),
            _ => Ok(()),
        }
    }
}
