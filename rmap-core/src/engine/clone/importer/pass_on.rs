//! Attachments that are offered on: an importer of this process asks for an address where this process itself shows somebody else's memory.
//!
//! It is shown what a load of this process finds there. What is there already needs nobody else; for what is not, the question goes on to
//! whose memory it is, as for a thread of this process. Nobody waits for the answer but the thread that has touched the page.

use super::super::exporter::Question;
use super::super::protocol::{Access, Message, Source};
use super::window::{Piece, Window};
use super::{Importer, Permit, RequestKind};
use crate::error::{Error, Result, failed};
use crate::log::log;
use crate::range::Range;
use crate::sys::event::Poller;
use crate::sys::fd;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Through so many processes a question goes at most. Attachments that show each other have nothing at the end.
const MOST_HOPS: u32 = 8;

/// What the importer is shown.
#[derive(Debug)]
pub(crate) struct Shown {
    /// In this process.
    pub(crate) range: Range,
    pub(crate) source: Source,
    pub(crate) descriptor: Option<OwnedFd>,
    pub(crate) writable: bool,
}

/// The answer to a question that was put to this process.
#[derive(Debug)]
pub(crate) enum Reply {
    Shown(Shown),
    Hole(&'static str),
    ReadOnly,
}

/// What was said about a page that had to be asked for.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) range: Range,
    pub(super) source: Source,
    pub(super) writable: bool,
    pub(super) descriptor: Option<OwnedFd>,
}

impl Said {
    /// What was said, with a descriptor that outlives the mapping of it.
    pub(super) fn keep(
        range: Range,
        source: Source,
        writable: bool,
        descriptor: Option<&OwnedFd>,
    ) -> Result<Self> {
        let descriptor = descriptor.map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 0)).transpose();
        Ok(Self { range, source, writable, descriptor: descriptor.map_err(failed("fcntl"))? })
    }
}

/// A descriptor of the same file that allows no more than what is given away.
fn narrowed(fd: BorrowedFd<'_>, writable: bool) -> Result<OwnedFd> {
    if !writable && fd::is_writable(fd).map_err(failed("fcntl"))? {
        return fd::reopen(fd, false).map_err(failed("open of what is attached, to read it only"));
    }
    rustix::io::fcntl_dupfd_cloexec(fd, 0).map_err(failed("fcntl"))
}

impl Importer {
    /// Answers an importer that asks for an address in a window. `None`: the answer comes with [`take_reply`](Self::take_reply), because
    /// somebody else has to be asked.
    pub(crate) fn question(&mut self, question: Question, poller: &Poller, token: u64) -> Option<Reply> {
        let answered = self.answer_at_once(&question).and_then(|reply| match reply {
            None => self.ask_on(question, poller, token).map(|()| None),
            reply => Ok(reply),
        });
        answered.unwrap_or_else(|error| {
            log!(Debug, "{:#x} is not shown on: {error}", question.page());
            Some(Reply::Hole("see above"))
        })
    }

    /// The answer to a question that had to be passed on.
    pub(crate) fn take_reply(&mut self) -> Option<(Question, Reply)> {
        self.replies.remove(0)
    }

    /// The window at a page, and its permit if that is good for anything.
    fn shown_at(&self, page: usize) -> Option<(Window, Permit)> {
        let window = *self.windows.get(self.window_at(page)?)?;
        let permit = *self.permits.get(self.permit(window.permit)?)?;
        Some((window, permit)).filter(|(_, permit)| !permit.removed)
    }

    fn answer_at_once(&self, question: &Question) -> Result<Option<Reply>> {
        let page = question.page();
        let Some((window, permit)) = self.shown_at(page) else {
            return Ok(Some(Reply::Hole("nothing is attached there any more")));
        };
        if question.stores() && !(question.may_store() && permit.access == Access::ReadWrite) {
            return Ok(Some(Reply::ReadOnly));
        }
        if question.hops() >= MOST_HOPS {
            return Ok(Some(Reply::Hole("the attachments behind it have no end")));
        }
        let Some((object, writable)) = self.object_at(page, &permit, question) else { return Ok(None) };
        let there = fd::has_data(object, window.to_remote(page) as u64).map_err(failed("lseek"))?;
        if !there || question.stores() && !writable {
            return Ok(None);
        }
        self.show_object(&window, page, object, writable).map(|shown| Some(Reply::Shown(shown)))
    }

    /// The object that a window maps at a page, and whether the importer that asks may write to it.
    fn object_at(&self, page: usize, permit: &Permit, question: &Question) -> Option<(BorrowedFd<'_>, bool)> {
        let serial = match self.pieces.at(page).map(|span| span.value) {
            None => permit.base,
            Some(Piece::Object { serial }) => serial,
            Some(Piece::File | Piece::Foreign { .. } | Piece::Blank | Piece::Nothing) => return None,
        };
        let host = self.hosts.get(self.host(permit.host)?)?;
        let writable = question.may_store() && permit.access == Access::ReadWrite;
        let wanted = host.object(serial, writable).map(|object| (object, writable));
        // What may not be written by anybody, or is to be narrowed.
        wanted.or_else(|| Some((host.object(serial, !writable)?, false)))
    }

    /// Shows an object as far as the window maps it around a page.
    fn show_object(
        &self,
        window: &Window,
        page: usize,
        object: BorrowedFd<'_>,
        writable: bool,
    ) -> Result<Shown> {
        let range = self.run_around(window, page);
        let source = Source::Foreign { offset: window.to_remote(range.start()) as u64 };
        Ok(Shown { range, source, descriptor: Some(narrowed(object, writable)?), writable })
    }

    /// The part of a window around a page that maps one thing.
    fn run_around(&self, window: &Window, page: usize) -> Range {
        if let Some(piece) = self.pieces.at(page).and_then(|span| span.range.intersection(window.range)) {
            return piece;
        }
        let (mut start, mut end) = (window.range.start(), window.range.end());
        for span in self.pieces.within(window.range) {
            if span.range.start() > page {
                end = span.range.start();
                break;
            }
            start = span.range.end();
        }
        Range::between(start, end).unwrap_or(Range::page_at(page))
    }

    /// Asks whose memory it is.
    fn ask_on(&mut self, question: Question, poller: &Poller, token: u64) -> Result<()> {
        let (window, permit) = self.shown_at(question.page()).ok_or(Error::NoSuchId)?;
        let attached = Range::new(window.remote, window.range.len()).ok_or(Error::Invalid("no range"))?;
        // So that the answer can be noted, whatever there is then.
        self.replies.reserve(self.requests.len() + 1).map_err(failed("mmap"))?;
        self.ask(permit.host, RequestKind::PassOn(question), poller, token, |request| Message::Resolve {
            request,
            grant: permit.grant,
            addr: window.to_remote(question.page()),
            attached,
            run: question.run(),
            store: question.stores(),
            hops: question.hops() + 1,
        })
    }

    /// A question that was passed on is answered.
    pub(super) fn reply(&mut self, question: Question, reply: Reply) {
        // There is room: see `ask_on`.
        let _ = self.replies.push((question, reply));
    }

    /// The answer is what was said, which this process itself has mapped by now.
    pub(super) fn reply_what_was_said(&mut self, question: Question, host: u32, said: Result<Said>) {
        let shown = said.and_then(|said| self.show_what_was_said(&question, host, said));
        self.reply(
            question,
            match shown {
                Ok(Some(shown)) => Reply::Shown(shown),
                Ok(None) => Reply::Hole("it is not attached any more"),
                Err(error) => {
                    log!(Warn, "{:#x} is not shown on: {error}", question.page());
                    Reply::Hole("see above")
                }
            },
        );
    }

    fn show_what_was_said(&self, question: &Question, host: u32, said: Said) -> Result<Option<Shown>> {
        let page = question.page();
        let Some((window, permit)) = self.shown_at(page).filter(|(_, permit)| permit.host == host) else {
            return Ok(None);
        };
        let Some(index) = self.host(host) else { return Ok(None) };
        let Some(range) = window.to_local(said.range).filter(|local| local.contains(page)) else {
            return Ok(None);
        };
        if let Source::Object { .. } = said.source {
            // It may be gone again by now; then it is asked for again.
            let Some((object, writable)) = self.object_at(page, &permit, question) else { return Ok(None) };
            return self.show_object(&window, page, object, writable).map(Some);
        }
        // What this process does not believe, or cannot map, it does not pass on.
        if !self.pieces.at(page).is_some_and(|span| span.value.needs_notice() && span.range.covers(range)) {
            return Ok(None);
        }
        let writable = said.writable && question.may_store() && permit.access == Access::ReadWrite;
        let source = window.cut(said.source, said.range, range);
        let descriptor = match (source, &said.descriptor) {
            // The importer believes in segments of this process's user only.
            (Source::SystemV { .. }, _) if !self.hosts[index].user().is_own() => return Ok(None),
            (Source::SystemV { .. }, _) => said.descriptor,
            (_, Some(file)) => Some(narrowed(file.as_fd(), writable)?),
            (_, None) => return Ok(None),
        };
        Ok(Some(Shown { range, source, descriptor, writable }))
    }
}
