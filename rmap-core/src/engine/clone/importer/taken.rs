//! Parts of windows that the application has unmapped, moved away or mapped something else over: they are its own again.
//!
//! The application's call is held until the report is read, so no window is handed out after it that is not there any more.

use super::Importer;
use super::window::Window;
use crate::counters::{self, Cell};
use crate::log::log;
use crate::range::Range;
use crate::sys::Said;
use crate::sys::uffd::Event;

impl Importer {
    /// Takes what is reported: threads at missing pages, to be seen to later, and what the application does with windows. What
    /// `is_known` says is no news.
    ///
    /// The application's call goes on when the report of it is read, but is not known before: so nobody uses the tables meanwhile.
    pub(super) fn take_reports(&mut self, is_known: impl Fn(Event) -> bool) {
        while [&self.trap, &self.follower].iter().any(|fd| fd.has_report()) {
            let suspended = self.listing.suspend();
            let report = [&self.trap, &self.follower].iter().find_map(|fd| fd.read().ok().flatten());
            match report {
                Some(report) if !is_known(report) => self.note(report),
                _ => {}
            }
            self.listing.resume(suspended);
            if report.is_none() {
                return;
            }
        }
    }

    fn note(&mut self, report: Event) {
        match report {
            Event::Fault { addr, thread, protected } => self.note_fault(addr, thread, protected),
            Event::Unmapped { start, end } => self.lose(Range::between(start, end)),
            Event::Moved { from, len, .. } => self.lose(Range::new(from, len)),
            Event::Dropping { .. } | Event::Other => {}
        }
    }

    /// A range belongs to the application again: it must never be unmapped, nor attached to.
    fn lose(&mut self, range: Option<Range>) {
        let Some(range) = range else { return };
        while let Some(index) = self.windows.iter().position(|window| window.range.overlaps(range)) {
            let window = self.windows[index];
            let Some(gone) = window.range.intersection(range) else { return };
            log!(Debug, "the application has taken {gone} of window {}", window.range);
            if let Some(slot) = window.slot
                && let Err(errno) = self.listing.cut(slot, gone)
            {
                log!(
                    Error,
                    "the rest of window {} stays until its permit is released: {errno}",
                    window.range,
                    errno = Said(errno)
                );
            }
            let _ = self.windows.remove(index);
            let below = Range::between(window.range.start(), gone.start());
            let above = Range::between(gone.end(), window.range.end());
            counters::add(Cell::WindowsRemoved, u64::from(below.is_none() && above.is_none()));
            for rest in [above, below].into_iter().flatten() {
                let rest = Window { range: rest, remote: window.to_remote(rest.start()), ..window };
                if let Err(errno) = self.windows.insert(index, rest) {
                    log!(Error, "{} stays mapped for ever: {errno}", rest.range, errno = Said(errno));
                }
            }
            if let Err(errno) = self.pieces.remove(gone) {
                log!(Error, "forgetting what {gone} showed: {errno}", errno = Said(errno));
            }
            self.waiters.retain(|waiter| !gone.contains(waiter.page()));
            let _ = self.trap.wake(gone.start(), gone.len());
            if let Err(errno) = self.removed.push(gone) {
                log!(Error, "{gone} still counts as a window: {errno}", errno = Said(errno));
            }
        }
    }
}
