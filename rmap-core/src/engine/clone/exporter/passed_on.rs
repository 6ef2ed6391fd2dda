//! What importers are shown of this process's own attachments.
//!
//! It is for the importing side to say what is there. What importers have been told is noted: when a window goes, or shows something else,
//! they are told that, as with files.

use super::super::importer::{Reply, Shown};
use super::super::protocol::{Access, Source};
use super::{Exporter, Resolve};
use crate::counters::{self, Cell};
use crate::error::{Error, Result, failed};
use crate::log::log;
use crate::range::Range;
use crate::sys::Said;
use std::os::fd::AsFd;

/// So many questions of one importer are passed on at a time: whoever is asked may not answer, and one is asked for each thread at most.
const MOST_OPEN: u32 = 4096;

/// An importer's question for an address in a window of this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    client: u32,
    request: Resolve,
    may_store: bool,
}

impl Question {
    /// The page that it is about.
    pub(crate) fn page(&self) -> usize {
        Range::page_at(self.request.addr).start()
    }

    /// Whether a thread stores to a page that it has to read.
    pub(crate) fn stores(&self) -> bool {
        self.request.store
    }

    /// Whether the importer has a permit to write.
    pub(crate) fn may_store(&self) -> bool {
        self.may_store
    }

    /// How many questions have run on to this one.
    pub(crate) fn run(&self) -> u32 {
        self.request.run
    }

    /// How many processes have passed it on.
    pub(crate) fn hops(&self) -> u32 {
        self.request.hops
    }
}

impl Exporter {
    /// Whether an address is in a window of this process.
    pub(super) fn is_attached(&self, addr: usize) -> bool {
        self.windows.at(addr).is_some()
    }

    /// Leaves a question to the importing side.
    pub(super) fn pass_on(&mut self, client: u32, request: Resolve, may_store: bool) -> Result<()> {
        let Some(index) = self.client(client) else { return Ok(()) };
        let why = if !self.clients[index].user().is_own() {
            // A descriptor gives all that this process has a permit for, and it is this process's user who has it.
            "an attachment of this process, for another user"
        } else if self.clients[index].open_questions >= MOST_OPEN {
            "too many questions about attachments of this process"
        } else {
            let question = Question { client, request, may_store };
            self.questions.push(question).map_err(failed("mmap"))?;
            self.clients[index].open_questions += 1;
            return Ok(());
        };
        self.clients[index].tell_hole(&request, why)
    }

    /// A question for the importing side.
    pub(crate) fn take_question(&mut self) -> Option<Question> {
        self.questions.remove(0)
    }

    /// The importing side has answered.
    pub(crate) fn reply(&mut self, question: Question, reply: Reply) {
        let Some(index) = self.client(question.client) else { return };
        self.clients[index].open_questions -= 1;
        if let Err(error) = self.say(index, &question.request, reply) {
            log!(Warn, "importer dropped: {error}");
            self.drop_client(question.client);
        }
    }

    fn say(&mut self, index: usize, request: &Resolve, reply: Reply) -> Result<()> {
        // It may have given the permit back meanwhile.
        let grant = self.clients[index].find_grant(request.grant);
        let shown = match reply {
            Reply::Shown(shown) => shown,
            Reply::Hole(why) => return self.clients[index].tell_hole(request, why),
            Reply::ReadOnly => {
                counters::count(Cell::AnswersReadOnly);
                return self.clients[index].read_only(request.request);
            }
        };
        let Some(grant) = grant else {
            return self.clients[index].tell_hole(request, "the permit has ended");
        };
        let range =
            shown.range.intersection(request.attached).and_then(|range| range.intersection(grant.range));
        let Some(range) = range.filter(|range| range.contains(request.addr)) else {
            return Err(Error::Invalid("a page that was not asked for"));
        };
        if let Err(errno) = self.passed_on.insert(range, ()) {
            log!(Error, "noting what is shown of {range}: {errno}", errno = Said(errno));
            return self.clients[index].tell_hole(request, "see above");
        }
        let Shown { source, descriptor, writable, range: whole } = shown;
        let source = source.moved(range.start() - whole.start());
        let system_v = matches!(source, Source::SystemV { .. });
        counters::count(if system_v { Cell::AnswersSystemV } else { Cell::AnswersFile });
        let client = &mut self.clients[index];
        self.peer_rows.answer(client.row, range.len() as u64);
        log!(Debug, "shown {range} of an attachment to process {}", client.pid());
        let writable = writable && grant.access == Access::ReadWrite;
        let descriptor = descriptor.as_ref().map(AsFd::as_fd);
        client.resolved(request.request, range, source, writable, descriptor)
    }

    /// This process has a new window.
    pub(crate) fn note_window(&mut self, window: Range) {
        if let Err(errno) = self.windows.insert(window, ()) {
            log!(Error, "noting the window {window}: {errno}", errno = Said(errno));
        }
    }

    /// A window has gone, or a part of it. True if importers must be told.
    pub(crate) fn note_window_gone(&mut self, window: Range) -> bool {
        if let Err(errno) = self.windows.remove(window) {
            log!(Error, "noting the end of the window {window}: {errno}", errno = Said(errno));
        }
        self.is_not_shown_on(window)
    }

    /// What a window shows in a range is not what it has shown. True if importers must be told, and they are.
    pub(crate) fn is_not_shown_on(&mut self, range: Range) -> bool {
        if self.passed_on.next_in(range).is_none() {
            return false;
        }
        if let Err(errno) = self.passed_on.remove(range) {
            // They will be told once more.
            log!(Debug, "what is shown of {range} stays noted: {errno}", errno = Said(errno));
        }
        self.tell_stale(range);
        true
    }

    /// Whether importers have been shown attachments of this process in a range.
    pub(super) fn shows_attachments(&self, range: Range) -> bool {
        self.passed_on.next_in(range).is_some()
    }
}
