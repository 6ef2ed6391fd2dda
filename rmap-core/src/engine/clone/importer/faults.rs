//! Threads that have touched a page which is not there: each sleeps until the exporter has said what is.

use super::super::protocol::{Message, Source};
use super::{Importer, RequestKind};
use crate::counters::{self, Cell};
use crate::error::{Error, Result};
use crate::log::log;
use crate::range::Range;
use crate::sys::Said;
use crate::sys::event::Poller;
use crate::sys::memory::{self, HUGE_PAGE, PAGE};
use crate::sys::procfs::{self, Blocked};
use std::os::fd::OwnedFd;

/// A thread that sleeps on a page of a window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiter {
    page: usize,
    addr: usize,
    thread: u32,
    /// It has stored to a page that is there, but protected.
    store: bool,
}

/// Why a thread gets a signal and no page.
#[derive(Clone, Copy, Debug)]
pub(super) enum Why {
    /// The exporter has nothing to show there, or the log says what has failed.
    Said,
    /// This exporter is gone, or was dropped.
    Gone(u32),
    /// This one has not answered within the limit that is set.
    Silent(u32),
}

impl Why {
    /// Says it, if nothing else does: the signal ends most processes.
    fn say(self, waiter: &Waiter, signal: i32) {
        let (why, exporter) = match self {
            Self::Said => return,
            Self::Gone(exporter) => ("is gone", exporter),
            Self::Silent(exporter) => ("has not answered within RMAP_PEER_TIMEOUT", exporter),
        };
        let Waiter { addr, thread, .. } = waiter;
        log!(Warn, "thread {thread} gets signal {signal} at {addr:#x}: exporter {exporter} {why}");
    }
}

/// Has the pages from `page` to the end of its 2 MiB mapped at once that the exporter has just put there: a thread that stores to one after
/// the other would fault for each. What is mapped for loads is mapped for stores, too, if they are allowed, and 16 pages in one step. It ends
/// at the first page that is not there.
fn populate(local: Range, page: usize) {
    let end = (page & !(HUGE_PAGE - 1)) + HUGE_PAGE;
    if let Some(range) = Range::between(page, end.min(local.end())) {
        // Before Linux 5.14, and where it cannot be, threads fault.
        let _ = memory::populate_for_loads(range.start(), range.len());
    }
}

impl Waiter {
    pub(super) fn page(&self) -> usize {
        self.page
    }
}

impl Importer {
    /// Takes the reports of threads that have touched a missing page, or unmapped a part of a window.
    pub(crate) fn on_reports(&mut self, poller: &Poller, token: u64) {
        self.take_reports(|_| false);
        self.ask_for_waiters(poller, token);
    }

    /// Notes a thread at a missing page, to ask for the page later.
    pub(super) fn note_fault(&mut self, addr: usize, thread: u32, protected: bool) {
        let page = Range::page_at(addr).start();
        // It sleeps in one place. A thread that was stopped in its sleep, and goes on, reports the page once more.
        self.waiters.retain(|waiter| waiter.thread != thread);
        if let Err(errno) = self.waiters.push(Waiter { page, addr, thread, store: protected }) {
            // The thread goes round once more, and asks again: there is room when one of the others has its answer.
            log!(Error, "noting a fault: {errno}", errno = Said(errno));
            let _ = self.trap.wake(page, PAGE);
        }
    }

    /// Asks for the pages that threads sleep on. One question at a time for each 2 MiB: its answer mostly serves the neighbours,
    /// too. True if anything was asked.
    pub(crate) fn ask_for_waiters(&mut self, poller: &Poller, token: u64) -> bool {
        let mut index = 0;
        let mut any = false;
        while let Some(waiter) = self.waiters.get(index).copied() {
            index += 1;
            let block = waiter.page & !(HUGE_PAGE - 1);
            let asked = self.requests.iter().any(|request| match request.kind {
                RequestKind::Resolve { page } => page & !(HUGE_PAGE - 1) == block,
                RequestKind::Get { .. } | RequestKind::PassOn(_) => false,
            });
            if asked {
                continue;
            }
            any = true;
            if let Err(error) = self.ask_for(waiter.page, waiter.store, poller, token) {
                let why = self.lost_exporter_at(waiter.page).map_or(Why::Said, Why::Gone);
                if matches!(why, Why::Said) {
                    log!(Debug, "{:#x} is a hole: {error}", waiter.addr);
                }
                self.refuse_page(waiter.page, libc::SIGBUS, why);
                index = 0;
            }
        }
        any
    }

    /// The exporter whose memory a window showed at a page, if it is gone.
    fn lost_exporter_at(&self, page: usize) -> Option<u32> {
        let window = self.windows[self.window_at(page)?];
        let host = &self.hosts[self.host(self.permits[self.permit(window.permit)?].host)?];
        (!host.is_alive()).then(|| host.pid())
    }

    fn ask_for(&mut self, page: usize, store: bool, poller: &Poller, token: u64) -> Result<()> {
        let index = self.window_at(page).ok_or(Error::Invalid("no window is there"))?;
        let window = self.windows[index];
        let permit = *self.permit(window.permit).and_then(|i| self.permits.get(i)).ok_or(Error::NoSuchId)?;
        if permit.removed {
            return Err(Error::NoSuchId);
        }
        let addr = window.to_remote(page);
        let run = if addr == window.run_end { window.run + 1 } else { 0 };
        self.windows[index].run = run;
        let attached = Range::new(window.remote, window.range.len()).ok_or(Error::Invalid("no range"))?;
        let kind = RequestKind::Resolve { page };
        counters::count(Cell::TouchesAsked);
        self.ask(permit.host, kind, poller, token, |request| Message::Resolve {
            request,
            grant: permit.grant,
            addr,
            attached,
            run,
            store,
            hops: 0,
        })
    }

    /// The exporter has said where a page and its neighbours are.
    pub(super) fn resolved(
        &mut self,
        host: u32,
        page: usize,
        range: Range,
        source: Source,
        writable: bool,
        descriptor: Option<OwnedFd>,
    ) -> Result<()> {
        // The window may be gone by now, and another in its place.
        let Some(index) = self.window_at(page) else {
            return Ok(());
        };
        let window = self.windows[index];
        let same = self.permit(window.permit).is_some_and(|index| self.permits[index].host == host);
        let local = window.to_local(range).filter(|local| local.contains(page));
        let Some(local) = local.filter(|_| same) else {
            self.wake(Range::page_at(page));
            return Ok(());
        };
        let is_object = matches!(source, Source::Object { .. } | Source::Foreign { .. });
        let source = window.cut(source, range, local);
        self.windows[index].run_end = window.to_remote(local.end());
        let mapped = self.map_piece(window, (page, local), source, writable, descriptor);
        if let Err(error) = mapped {
            log!(Error, "cannot map {local}: {error}");
            self.refuse_page(page, libc::SIGBUS, Why::Said);
            return match error {
                Error::Invalid(_) => Err(error),
                _ => Ok(()),
            };
        }
        log!(Trace, "{local} shows {range} of exporter {}", self.pid_of(host));
        if is_object {
            populate(local, page);
        }
        self.wake(local);
        Ok(())
    }

    fn wake(&mut self, local: Range) {
        self.waiters.retain(|waiter| !local.contains(waiter.page));
        if let Err(errno) = self.trap.wake(local.start(), local.len()) {
            log!(Error, "waking the threads that wait for {local}: {errno}", errno = Said(errno));
        }
    }

    /// There is nothing at a page, or nothing that may be written: the threads that sleep on it get `signal`. Memory that
    /// appears there later is found all the same.
    ///
    /// Other threads may report pages meanwhile, which must be asked for.
    pub(super) fn refuse_page(&mut self, page: usize, signal: i32, why: Why) {
        let mut index = 0;
        let mut hard = false;
        while let Some(waiter) = self.waiters.get(index).copied() {
            if waiter.page != page {
                index += 1;
                continue;
            }
            let blocked = procfs::blocked(waiter.thread);
            // The same instruction may have come to another page. A thread that sleeps has reported where.
            self.take_reports(|_| false);
            let sleeps_here = |other: &Waiter| other.thread == waiter.thread && other.page == page;
            index = 0;
            let Some(found) = self.waiters.iter().position(sleeps_here) else { continue };
            let Some(waiter) = self.waiters.remove(found) else { continue };
            let instruction = match blocked {
                Ok(Some(Blocked::InFault { instruction })) => {
                    why.say(&waiter, signal);
                    instruction
                }
                // Another signal has come in between; if the thread touches the page again, it asks again. It may have done so by now.
                Ok(_) => {
                    let _ = self.trap.wake(page, PAGE);
                    continue;
                }
                Err(errno) => {
                    log!(
                        Error,
                        "what thread {} does cannot be read: {errno}",
                        waiter.thread,
                        errno = Said(errno)
                    );
                    hard = true;
                    continue;
                }
            };
            let held_back = procfs::signal_held_back(waiter.thread, signal);
            let raised = held_back.and_then(|held_back| {
                hard |= held_back;
                let raise = || self.signals.raise(signal, waiter.thread, waiter.addr, instruction);
                if held_back { Ok(()) } else { raise() }
            });
            if let Err(errno) = raised {
                log!(Error, "signal {signal} for thread {}: {errno}", waiter.thread, errno = Said(errno));
                hard = true;
            }
        }
        if hard {
            // A signal that is blocked or ignored would not end the sleep; the kernel's own, on a page that is
            // beyond the end of a file, does, and ends the process as XPMEM would.
            if let Err(error) = self.map_nothing(page) {
                log!(Error, "refusing {page:#x}: {error}");
            }
            let _ = self.trap.wake(page, PAGE);
        }
    }

    /// Refuses all that was to be served by one question.
    pub(super) fn refuse_block(&mut self, page: usize, why: Why) {
        let block = page & !(HUGE_PAGE - 1);
        while let Some(waiter) = self.waiters.iter().find(|w| w.page & !(HUGE_PAGE - 1) == block).copied() {
            self.refuse_page(waiter.page, libc::SIGBUS, why);
        }
    }
}
