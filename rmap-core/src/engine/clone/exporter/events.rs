//! Following the address space: what the application unmaps, moves or drops is taken from the importers before the
//! call returns.
//!
//! The kernel holds a thread that unmaps, moves or drops a watched range until the event is read. So an event is not read when it
//! comes: first the maps tell what is gone, `/proc` tells what the held threads have asked for, and the objects are punched.
//!
//! A thread in `mremap` is held twice: once when the mapping has moved, and again when its old place is gone. So the first of the
//! two may be read to learn what has moved where; memory that has moved is left alone until then.

use super::adopt::{self, Backing, Origin};
use super::extract::Order;
use super::rehome::{Transfer, rehome};
use super::{Exporter, SOON, Shared};
use crate::counters::{self, Cell};
use crate::error::{Error, Result, failed};
use crate::log::log;
use crate::own::{OwnMemory, OwnVec, Span};
use crate::range::Range;
use crate::sys::maps::{self, FileId, Vma};
use crate::sys::memory;
use crate::sys::memory::{MapFlags, ProtFlags};
use crate::sys::procfs::{self, Blocked};
use crate::sys::thread;
use crate::sys::uffd::Event;
use crate::sys::{Said, SysResult};
use core::ops::ControlFlow;
use core::time::Duration;
use std::os::fd::OwnedFd;

/// What the held threads have asked for.
#[derive(Debug)]
struct Held {
    /// Ranges whose pages are about to be dropped.
    drops: OwnVec<Range>,
    /// Ranges of `MADV_FREE`, which gives an event and then refuses shared memory: they keep their pages.
    refused: OwnVec<Range>,
    /// Ranges that `mremap` moved away and left mapped and empty.
    emptied: OwnVec<Range>,
    /// One is in `mremap`. A flag and no ranges: there may be no memory for more of those.
    moves: bool,
    /// Where mappings may have gone. A mapping that had grown in place was larger than the tables knew.
    touched: OwnVec<Range>,
    /// Mappings may have changed elsewhere, too.
    elsewhere: bool,
}

const MREMAP_FIXED: usize = 2;
const MREMAP_DONTUNMAP: usize = 4;
const MADV_DONTNEED_LOCKED: usize = 24;

impl Held {
    fn none() -> Self {
        let none = OwnVec::new;
        Self {
            drops: none(),
            refused: none(),
            emptied: none(),
            moves: false,
            touched: none(),
            elsewhere: false,
        }
    }

    fn is_empty(&self) -> bool {
        self.drops.is_empty() && self.refused.is_empty() && self.emptied.is_empty() && self.touched.is_empty()
    }

    /// The only ranges where mappings may have changed, in order; `None` if that is not known. What changes without
    /// an event, a mapping that grows in place, is found when somebody asks for it; or it is among `unwatched`.
    fn scope(&self, unwatched: impl Iterator<Item = Range>) -> SysResult<Option<OwnVec<Range>>> {
        if self.elsewhere || self.is_empty() {
            return Ok(None);
        }
        let mut touched = OwnVec::new();
        for range in self.touched.iter().copied().chain(unwatched) {
            touched.push(range)?;
        }
        touched.sort_unstable();
        let mut scope: OwnVec<Range> = OwnVec::new();
        for range in touched.iter() {
            match scope.last_mut().filter(|last| range.start() <= last.end()) {
                Some(last) => *last = last.join(*range),
                None => scope.push(*range)?,
            }
        }
        Ok(Some(scope))
    }

    /// Whether a thread unmaps all of a range, or maps something over it. What is gone may have moved otherwise.
    fn unmaps(&self, range: Range) -> bool {
        !self.moves && self.touched.iter().any(|touched| touched.covers(range))
    }

    /// Notes what a thread has asked for that is held in `call`.
    fn note(&mut self, call: i64, args: [usize; 6]) -> SysResult<()> {
        self.elsewhere |= !matches!(call, libc::SYS_madvise | libc::SYS_munmap | libc::SYS_mmap);
        let pages = |start: usize, len: usize| Range::new(start, len.checked_next_multiple_of(memory::PAGE)?);
        let Some(range) = pages(args[0], args[1]) else { return Ok(()) };
        match call {
            libc::SYS_madvise if matches!(args[2], 4 | 9 | MADV_DONTNEED_LOCKED) => self.drops.push(range),
            libc::SYS_madvise if args[2] == libc::MADV_FREE as usize => self.refused.push(range),
            libc::SYS_munmap | libc::SYS_mmap => self.touched.push(range),
            libc::SYS_mremap => {
                self.moves = true;
                let target = pages(args[4], args[2]).filter(|_| args[3] & MREMAP_FIXED != 0);
                let kind =
                    if args[3] & MREMAP_DONTUNMAP != 0 { &mut self.emptied } else { &mut self.touched };
                kind.push(range)?;
                target.map_or(Ok(()), |target| self.touched.push(target))
            }
            _ => Ok(()),
        }
    }
}

/// A thread that has been on a core for so long was not about to fall asleep on its event.
const MOMENT: Duration = Duration::from_micros(200);
/// How long to wait for a thread to get a core at all, and how often to look.
const STARVED: Duration = Duration::from_secs(5);
const GLANCE: Duration = Duration::from_micros(50);

/// What the threads have asked for that are held now.
///
/// Reading an event wakes all threads that are held, and each falls asleep again at once, when it gets a core. With `settle`,
/// a thread that is awake is therefore watched until it sleeps, or has run for longer than that takes.
fn held_threads(tasks: &OwnedFd, settle: bool) -> Result<Held> {
    let mut held = Held::none();
    let mut awake: OwnVec<(u32, Option<Duration>)> = OwnVec::new();
    let this = thread::id();
    let mut result = Ok(());
    procfs::each_numbered_entry(tasks, |tid| {
        if tid != this && result.is_ok() {
            result = note_thread(tid, &mut held, &mut awake);
        }
    })
    .and(result)
    .map_err(failed("read of /proc/self/task"))?;
    let mut result = Ok(());
    let start = thread::time();
    let starved = || thread::time().saturating_sub(start) > STARVED;
    let mut in_time = true;
    while (settle || held.is_empty()) && !awake.is_empty() && in_time {
        thread::pause(GLANCE);
        in_time = !starved();
        awake.retain(|(tid, before)| {
            note_awake(*tid, *before, &mut held).unwrap_or_else(|errno| {
                result = Err(errno);
                false
            })
        });
    }
    result.map_err(failed("read of /proc/self/task"))?;
    // One that is awake may be about to sleep on the very event that is read next.
    held.elsewhere |= !in_time || !awake.is_empty();
    Ok(held)
}

/// Notes what a thread is held in, or that it is awake.
fn note_thread(tid: u32, held: &mut Held, awake: &mut OwnVec<(u32, Option<Duration>)>) -> SysResult<()> {
    if procfs::waits_for_event(tid)? == Some(false) {
        return Ok(());
    }
    match procfs::blocked(tid)? {
        Some(Blocked::In { call, args }) => held.note(call, args),
        Some(Blocked::InFault { .. }) => Ok(()),
        None => awake.push((tid, thread::time_on_core(tid))),
    }
}

/// Whether a thread that was awake, after so long on a core, must be looked at again.
fn note_awake(tid: u32, before: Option<Duration>, held: &mut Held) -> SysResult<bool> {
    match procfs::waits_for_event(tid)? {
        Some(true) => match procfs::blocked(tid)? {
            Some(Blocked::In { call, args }) => held.note(call, args).map(|()| false),
            _ => Ok(!procfs::is_hidden(tid)),
        },
        Some(false) => Ok(false),
        None => Ok(thread::time_on_core(tid)
            .is_some_and(|now| now.saturating_sub(before.unwrap_or_default()) < MOMENT)),
    }
}

/// An event that waits, with the thread that it holds, because it could not be handled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unfollowed {
    since: Duration,
    /// When to try again.
    pub(super) due: Duration,
}

/// Own memory that is given back when there is none for the look at an event: so much is there for that, at least.
pub(super) const RESERVE: usize = 16 * memory::PAGE;

/// How long a thread is held for that.
const LONGEST: Duration = Duration::from_secs(1);

/// A move that an event has told of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    from: Range,
    to: usize,
}

/// What the maps say.
#[derive(Debug)]
struct Survey {
    /// Parts of `backed` that are where they belong.
    present: OwnVec<Span<Backing>>,
    /// Mappings of objects that the tables do not have yet: `mremap` grew them in place.
    grown: OwnVec<Span<Backing>>,
    /// Mappings of objects in other places, with the object: `mremap` moved them.
    strays: OwnVec<(Vma, u32)>,
    /// Parts of `shared` that are where they were.
    files: OwnVec<Span<Shared>>,
}

impl Exporter {
    /// Handles the events that wait to be read.
    pub(crate) fn on_events(&mut self) {
        while !self.leaves_events() {
            let Some(watcher) = self.watchers.reporting() else { return };
            self.on_events_of(watcher);
        }
    }

    fn on_events_of(&mut self, watcher: usize) {
        let mut first = true;
        // An event that comes after the look at what is held must not be read before the next look.
        while self.watchers.has_report(watcher) {
            let held = self.before_event(!core::mem::take(&mut first));
            if let Err(error) = &held
                && self.follow_later(error)
            {
                return;
            }
            self.unfollowed = held.is_err().then_some(self.unfollowed).flatten();
            if self.waits_for_importers() {
                return;
            }
            counters::count(Cell::Events);
            match self.watchers.read(watcher) {
                Ok(Some(Event::Dropping { start, end })) => self.after_drop(start, end, held.ok().as_ref()),
                Ok(Some(Event::Moved { from, to, len })) => self.after_move(from, to, len),
                Ok(Some(Event::Unmapped { start, end })) if held.is_err() => {
                    self.after_unseen_unmap(start, end)
                }
                Ok(_) => {}
                Err(errno) => {
                    log!(Error, "read of a userfaultfd: {errno}", errno = Said(errno));
                    return;
                }
            }
        }
    }

    /// Has an event handled again in a moment. False if that has gone on for too long, or is of no use.
    fn follow_later(&mut self, error: &Error) -> bool {
        let now = thread::time();
        let since = self.unfollowed.map_or(now, |unfollowed| unfollowed.since);
        let later = error.is_passing() && now.saturating_sub(since) < LONGEST;
        if self.unfollowed.is_none() || !later {
            log!(Error, "following the address space: {error}");
        }
        self.unfollowed = later.then_some(Unfollowed { since, due: now.saturating_add(SOON) });
        later
    }

    fn before_event(&mut self, settle: bool) -> Result<Held> {
        if self.reserve.is_none() {
            self.reserve = OwnMemory::new(RESERVE).ok();
        }
        let looked = self.look_before_event(settle);
        if looked.as_ref().is_err_and(Error::is_passing) && self.reserve.take().is_some() {
            return self.look_before_event(settle);
        }
        looked
    }

    fn look_before_event(&mut self, settle: bool) -> Result<Held> {
        // The event may tell of a move, which must not be lost.
        self.moves.reserve(1).map_err(failed("mmap"))?;
        let held = match held_threads(&self.tasks, settle) {
            Err(error) if error.is_passing() => return Err(error),
            held => self.or_none(held),
        };
        self.reconcile_with(&held)?;
        // A range of several mappings gives an event for each. All of it is about to be dropped by the same call.
        for range in held.drops.iter() {
            self.drop_pages(*range);
        }
        Ok(held)
    }

    fn after_drop(&self, start: usize, end: usize, held: Option<&Held>) {
        let Some(range) = Range::between(start, end) else { return };
        let foreseen = |held: &Held| held.drops.iter().chain(held.refused.iter()).any(|r| r.covers(range));
        if !held.is_some_and(foreseen) {
            // Somebody else's process_madvise.
            log!(Debug, "pages of {range} dropped unseen");
            self.drop_pages(range);
        }
    }

    fn after_move(&mut self, from: usize, to: usize, len: usize) {
        let Some(from) = Range::new(from, len) else { return };
        let noted = self.moves.push(Move { from, to }).map_err(failed("mmap"));
        self.lost_moves |= noted.is_err();
        if let Err(error) = noted.and_then(|()| self.reconcile()) {
            log!(Error, "following the address space: {error}");
        }
    }

    /// What has become of the address space cannot be known. Importers lose at least what the event names, unless it may have moved:
    /// then it is this process's still.
    fn after_unseen_unmap(&mut self, start: usize, end: usize) {
        let Some(range) = Range::between(start, end) else { return };
        if self.lost_moves || self.moves.iter().any(|moved| moved.from.overlaps(range)) {
            return log!(Error, "{range} may be seen although it is gone");
        }
        let mut next = self.objects.serial_after(0, range);
        while let Some(serial) = next {
            if let Err(errno) = self.free(serial, range) {
                log!(Error, "punching {range}: {errno}", errno = Said(errno));
            }
            next = self.objects.serial_after(serial, range);
        }
        let _ = self.backed.remove(range);
        self.left.forget(range);
        self.private_files.forget(range);
        if self.shared.next_in(range).is_some() {
            let _ = self.shared.remove(range);
            self.tell_stale(range);
        }
    }

    /// Frees the pages that objects have in `range`. Files mapped shared keep theirs, as everywhere.
    fn drop_pages(&self, range: Range) {
        for span in self.backed.within(range) {
            let shared = span.value.origin == Origin::Shared;
            if let Some(object) = self.objects.get(span.value.serial).filter(|_| !shared) {
                counters::count(Cell::Punches);
                if let Err(errno) = object.punch(span.range) {
                    log!(Error, "punching {}: {errno}", span.range, errno = Said(errno));
                }
                self.private_files.refill(object, span.range);
            }
        }
    }

    /// Makes objects and tables agree with the maps.
    pub(super) fn reconcile(&mut self) -> Result<()> {
        let held = self.or_none(held_threads(&self.tasks, false));
        self.reconcile_with(&held)
    }

    /// What the held threads have asked for, as far as that is to be learned: the maps tell what is gone all the same, and an
    /// event what is dropped.
    fn or_none(&self, held: Result<Held>) -> Held {
        held.unwrap_or_else(|error| {
            log!(Error, "what holds threads is not known: {error}");
            Held::none()
        })
    }

    fn reconcile_with(&mut self, held: &Held) -> Result<()> {
        self.attributes = None;
        let mut survey = Survey {
            present: OwnVec::new(),
            grown: OwnVec::new(),
            strays: OwnVec::new(),
            files: OwnVec::new(),
        };
        // What has moved may be anywhere. Without quick look-ups, reading all of the maps is no more work than reading a part.
        let moving = !self.moves.is_empty() || self.lost_moves || !self.maps.finds_by_address();
        let scope = if moving {
            None
        } else {
            // A copy of a file is not the file any more when the mapping becomes writable, of which there is no event.
            let copies = self.backed.iter().filter(|span| matches!(span.value.origin, Origin::Copied(_)));
            held.scope(copies.map(|span| span.range)).map_err(failed("mmap"))?
        };
        match &scope {
            Some(scope) => self.survey_within(scope, &mut survey)?,
            None => self.survey(&mut survey)?,
        }
        let scope = scope.as_deref().unwrap_or(&[Range::EVERYTHING]);
        // What has moved, by an event that is not read yet, stays as it is until then.
        let mut unread: OwnVec<Range> = OwnVec::new();
        let mut known: OwnVec<(Vma, u32, Range)> = OwnVec::new();
        for (vma, serial) in survey.strays.iter() {
            let Some(old) = Range::new(vma.offset as usize, vma.end - vma.start) else { continue };
            match self.explain(vma, old, held) {
                Some(moved) => known.push((*vma, *serial, moved)),
                None => unread.push(old),
            }
            .map_err(failed("mmap"))?;
        }
        let mut gone: OwnVec<Span<Backing>> = OwnVec::new();
        let backed = scope.iter().flat_map(|range| self.backed.within(*range));
        subtract(backed, &survey.present, &mut gone)?;
        gone.retain(|span| !unread.iter().any(|unread| unread.overlaps(span.range)));
        gone.retain(|span| !(held.unmaps(span.range) && self.leaves_adopted(span)));
        for span in survey.grown.iter() {
            self.backed.insert(span.range, span.value).map_err(failed("mmap"))?;
        }
        for span in gone.iter() {
            self.forget_backing(span)?;
        }
        for span in gone.iter().filter(|span| !known.iter().any(|(_, _, from)| from.overlaps(span.range))) {
            self.private_files.forget(span.range);
        }
        // Moved memory is copied out of its old place before that is punched.
        let moved = self.bring_home(&known, &gone);
        let lies_elsewhere =
            |range: Range| moved.is_err() && known.iter().any(|(_, _, from)| from.overlaps(range));
        for span in gone.iter().filter(|span| lies_elsewhere(span.range)) {
            // As it was, for the next try.
            self.backed.insert(span.range, span.value).map_err(failed("mmap"))?;
        }
        if unread.is_empty() && moved.is_ok() {
            self.moves.clear();
            self.lost_moves = false;
        }
        for span in gone.iter().filter(|span| !lies_elsewhere(span.range)) {
            self.punch_unmapped(span.range);
            log!(Trace, "{} gone", span.range);
        }
        let stays =
            |range: Range| unread.iter().any(|unread| unread.overlaps(range)) || lies_elsewhere(range);
        for range in held.touched.iter().filter(|range| !stays(**range)) {
            self.punch_unmapped(*range);
        }
        for range in held.emptied.iter() {
            self.drop_pages(*range);
        }
        self.watch_again(&survey, held)?;
        moved?;
        for (_, _, from) in known.iter().filter(|(_, _, from)| self.backed.next_in(*from).is_none()) {
            self.private_files.forget(*from);
        }
        self.forget_shared(scope, &survey.files, held)
    }

    /// A file that was mapped over itself shows the same bytes, but its new mapping is not watched.
    fn watch_again(&self, survey: &Survey, held: &Held) -> Result<()> {
        let copies = survey.present.iter().filter(|span| matches!(span.value.origin, Origin::Copied(_)));
        let ranges = survey.files.iter().map(|span| span.range).chain(copies.map(|span| span.range));
        let mut touched = ranges.filter(|range| held.touched.iter().any(|touched| touched.overlaps(*range)));
        touched.try_for_each(|range| self.watch(range))
    }

    /// What of `old` was moved to where `vma` is.
    fn explain(&self, vma: &Vma, old: Range, held: &Held) -> Option<Range> {
        let read = self.moves.iter().find(|m| m.to == vma.start && m.from.start() == old.start());
        let left = held.emptied.iter().find(|emptied| emptied.start() == old.start());
        read.map(|m| m.from).or(left.copied()).and_then(|moved| moved.intersection(old))
    }

    /// Frees what objects have in `range` at addresses that do not show them.
    fn punch_unmapped(&mut self, range: Range) {
        let mut next = self.objects.serial_after(0, range);
        while let Some(serial) = next {
            let mut from = Some(range);
            while let Some(rest) = from {
                let shown = self.backed.within(rest).find(|span| span.value.serial == serial);
                let hole = Range::between(rest.start(), shown.map_or(rest.end(), |span| span.range.start()));
                if let Some(Err(errno)) = hole.map(|hole| self.free(serial, hole)) {
                    log!(Error, "punching {rest}: {errno}", errno = Said(errno));
                }
                from = shown.and_then(|span| Range::between(span.range.end(), range.end()));
            }
            next = self.objects.serial_after(serial, range);
        }
    }

    fn forget_backing(&mut self, span: &Span<Backing>) -> Result<()> {
        let mut from = Some(span.range);
        while let Some(part) = from.and_then(|from| self.backed.next_in(from)) {
            let inside = part.range.intersection(span.range);
            if let Some(inside) = inside.filter(|_| part.value == span.value) {
                self.backed.remove(inside).map_err(failed("mmap"))?;
            }
            from = Range::between(part.range.end(), span.range.end());
        }
        Ok(())
    }

    /// Reads the maps.
    fn survey(&self, survey: &mut Survey) -> Result<()> {
        let mut result = Ok(());
        let read = self.maps.each_vma(|vma, _| {
            if let (Some(file), Some(range)) = (vma.file, Range::between(vma.start, vma.end))
                && let Err(errno) = self.survey_mapping(vma, file, range, survey)
            {
                result = Err(failed("mmap")(errno));
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        read.map_err(failed("read of /proc/thread-self/maps"))?;
        result
    }

    /// Looks up the mappings of some ranges, in order of address.
    fn survey_within(&self, scope: &[Range], survey: &mut Survey) -> Result<()> {
        let mut from = 0;
        for range in scope {
            from = from.max(range.start());
            let read = failed("read of /proc/thread-self/maps");
            let next = |addr| self.maps.find_at_or_after(addr).map_err(&read);
            while let Some(vma) = next(from)?.filter(|vma| vma.start < range.end()) {
                if let (Some(file), Some(mapped)) = (vma.file, Range::between(vma.start, vma.end)) {
                    self.survey_mapping(&vma, file, mapped, survey).map_err(failed("mmap"))?;
                }
                from = vma.end;
            }
        }
        Ok(())
    }

    fn survey_mapping(&self, vma: &Vma, file: FileId, range: Range, survey: &mut Survey) -> SysResult<()> {
        let Some(object) = self.objects.of_file(file) else {
            let copied = Origin::Copied(file);
            // A file that can be written now may differ from its copy soon.
            let same = !vma.shared && !vma.prot.contains(ProtFlags::WRITE);
            for span in self.backed.within(range).filter(|s| s.value.origin == copied && same) {
                survey.present.push(span)?;
            }
            let here = Shared::of(vma).filter(|_| vma.shared);
            for span in self.shared.within(range).filter(|span| Some(span.value) == here) {
                survey.files.push(span)?;
            }
            return Ok(());
        };
        if !object.is_at_home(vma) {
            if vma.shared && !self.windows.within(range).any(|_| true) {
                survey.strays.push((*vma, object.serial))?;
            }
            return Ok(());
        }
        // What the tables do not have has grown in place.
        let mut from = range.start();
        let mut value = Backing::new(object.serial, Origin::Private);
        for span in self.backed.within(range).filter(|span| span.value.serial == object.serial) {
            survey.present.push(span)?;
            if let Some(range) = Range::between(from, span.range.start()) {
                survey.grown.push(Span { range, value })?;
            }
            from = span.range.end();
            value = span.value;
        }
        Range::between(from, range.end()).map_or(Ok(()), |range| survey.grown.push(Span { range, value }))
    }

    /// Moves what `mremap` has moved to where its new address says.
    fn bring_home(&mut self, strays: &[(Vma, u32, Range)], gone: &[Span<Backing>]) -> Result<()> {
        let mut left = OwnVec::new();
        for stray in strays {
            left.push(*stray).map_err(failed("mmap"))?;
        }
        let mut result = Ok(());
        while !left.is_empty() {
            // One whose new place is the old place of another comes after that other.
            let waits = |stray: &(Vma, u32, Range)| {
                let target = Range::between(stray.0.start, stray.0.end);
                left.iter().any(|other| {
                    other.0.start != stray.0.start && target.is_some_and(|target| target.overlaps(other.2))
                })
            };
            let index = left.iter().position(|stray| !waits(stray)).unwrap_or(0);
            let Some((vma, serial, from)) = left.remove(index) else { break };
            result = result.and(self.bring_one_home(&vma, serial, from, gone));
        }
        result
    }

    fn bring_one_home(&mut self, vma: &Vma, serial: u32, from: Range, gone: &[Span<Backing>]) -> Result<()> {
        let Some(all) = Range::between(vma.start, vma.end) else { return Ok(()) };
        let Some(to) = from.shifted(from.start(), all.start()) else { return Ok(()) };
        let known = gone.iter().find(|g| g.value.serial == serial && g.range.overlaps(from));
        let value = known.map_or(Backing::new(serial, Origin::Private), |known| known.value);
        let attributes = self.smaps.attributes(vma.start).unwrap_or_default();
        self.rehome_part(serial, value, from, to, vma, &attributes)?;
        // Behind it the mapping has grown, over offsets that are not its own.
        self.grow_fresh(to.end(), all.end(), vma)
    }

    fn rehome_part(
        &mut self,
        serial: u32,
        backing: Backing,
        from: Range,
        to: Range,
        vma: &Vma,
        attributes: &maps::Attributes,
    ) -> Result<()> {
        let Some((domain, protected)) = self.objects.get(serial).map(|o| (o.domain, o.protected)) else {
            return Ok(());
        };
        if !domain.covers(to) {
            // It has left the segment: nobody may see it at the new address.
            return self.make_private(backing, from, to, vma, attributes);
        }
        let home = self.objects.for_domain(domain, protected)?.serial;
        let (Some(source), Some(home)) = (self.objects.get(serial), self.objects.get(home)) else {
            return Ok(());
        };
        let value = Backing { serial: home.serial, ..backing };
        // First, and also if it fails: what the object has here must not be taken for a leftover.
        self.backed.insert(to, value).map_err(failed("mmap"))?;
        let transfer = Transfer { source, from, home, to };
        rehome(transfer, Order::TakeFirst, vma.prot, &self.watchers, &self.placement)?;
        adopt::restore_attributes(to, attributes, vma.prot);
        self.watch_surely(to);
        self.private_files.forget(to);
        self.private_files.moved(from, to);
        log!(Debug, "moved {from} to {to}");
        Ok(())
    }

    fn make_private(
        &mut self,
        backing: Backing,
        from: Range,
        to: Range,
        vma: &Vma,
        attributes: &maps::Attributes,
    ) -> Result<()> {
        let Some(object) = self.objects.get(backing.serial) else {
            return Ok(());
        };
        adopt::privatize_moved(object, from, to, vma.prot, &self.watchers, &self.placement)?;
        adopt::restore_attributes(to, &backing.wishes.granted(attributes), vma.prot);
        Ok(())
    }

    /// Puts fresh private memory where a moved mapping has grown.
    fn grow_fresh(&mut self, start: usize, end: usize, vma: &Vma) -> Result<()> {
        let Some(range) = Range::between(start, end) else {
            return Ok(());
        };
        self.watchers.forget(range).map_err(failed("UFFDIO_UNREGISTER"))?;
        let fresh = memory::map_anonymous(range.len(), vma.prot, MapFlags::NORESERVE);
        let fresh = fresh.map_err(failed("mmap"))?;
        // SAFETY: the new part of a mapping whose owner is still held in mremap; nothing has been written to it.
        unsafe { memory::move_over(fresh, range.len(), range.start()) }.map_err(failed("mremap"))
    }

    /// Tells the importers which files are not mapped any more where they have mapped them.
    fn forget_shared(&mut self, scope: &[Range], files: &[Span<Shared>], held: &Held) -> Result<()> {
        if self.shared.is_empty() {
            return Ok(());
        }
        let mut gone = OwnVec::new();
        let shared = scope.iter().flat_map(|range| self.shared.within(*range));
        subtract(shared, files, &mut gone)?;
        gone.retain(|span| !(held.unmaps(span.range) && self.leaves_file(span.range, span.value)));
        for span in gone.iter() {
            self.shared.remove(span.range).map_err(failed("mmap"))?;
            self.tell_stale(span.range);
        }
        Ok(())
    }
}

/// Pushes what of `all` is not in `present`, both in order of address, where values are equal.
fn subtract<V: Copy + PartialEq>(
    all: impl Iterator<Item = Span<V>>,
    present: &[Span<V>],
    rest: &mut OwnVec<Span<V>>,
) -> Result<()> {
    let mut index = 0;
    for span in all {
        while present.get(index).is_some_and(|p| p.range.end() <= span.range.start()) {
            index += 1;
        }
        let mut from = span.range.start();
        for found in present[index..].iter().take_while(|p| p.range.start() < span.range.end()) {
            if found.value != span.value {
                continue;
            }
            if let Some(range) = Range::between(from, found.range.start()) {
                rest.push(Span { range, value: span.value }).map_err(failed("mmap"))?;
            }
            from = from.max(found.range.end());
        }
        if let Some(range) = Range::between(from, span.range.end()) {
            rest.push(Span { range, value: span.value }).map_err(failed("mmap"))?;
        }
    }
    Ok(())
}
