//! Following the address space: what the application unmaps, moves or drops is taken from the importers before the
//! call returns.
//!
//! The kernel holds a thread that unmaps, moves or drops a watched range until the event is read. So an event is not read when it
//! comes: first the maps tell what is gone, `/proc` tells what the held threads have asked for, and the objects are punched.

use super::Exporter;
use super::adopt::{self, Backing, Origin};
use crate::error::{Result, failed};
use crate::log::log;
use crate::own::{OwnVec, Span};
use crate::range::Range;
use crate::sys::SysResult;
use crate::sys::maps::{self, FileId, Vma};
use crate::sys::memory;
use crate::sys::memory::MapFlags;
use crate::sys::procfs::{self, Blocked};
use crate::sys::uffd::Event;
use core::ops::ControlFlow;

/// A thread that is held in `madvise`, and how far its call has come: each mapping in the range gives its own event.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropping {
    thread: u32,
    range: Range,
    done_to: usize,
}

/// What the held threads have asked for.
#[derive(Debug)]
struct Held {
    /// Ranges whose pages are about to be dropped.
    drops: OwnVec<(u32, Range)>,
    /// Ranges that `mremap` moved away and left mapped and empty.
    emptied: OwnVec<Range>,
    /// Old ranges of moved mappings: what a mapping shows beyond them has grown.
    moved: OwnVec<Range>,
    /// Where mappings may have gone. A mapping that had grown in place was larger than the tables knew.
    touched: OwnVec<Range>,
}

const MREMAP_FIXED: usize = 2;
const MREMAP_DONTUNMAP: usize = 4;
const MADV_DONTNEED_LOCKED: usize = 24;

fn held_threads() -> Result<Held> {
    let mut held = Held {
        drops: OwnVec::new(),
        emptied: OwnVec::new(),
        moved: OwnVec::new(),
        touched: OwnVec::new(),
    };
    let tasks = procfs::open(c"/proc/self/task").map_err(failed("open of /proc/self/task"))?;
    let this = crate::sys::thread::id();
    let mut result = Ok(());
    procfs::each_numbered_entry(&tasks, |tid| {
        if tid == this || procfs::waits_for_event(tid) == Some(false) {
            return;
        }
        let Some(Blocked::In { call, args }) = procfs::blocked(tid) else {
            return;
        };
        let pages = |start: usize, len: usize| Range::new(start, len.checked_next_multiple_of(memory::PAGE)?);
        let Some(range) = pages(args[0], args[1]) else {
            return;
        };
        let pushed = match call {
            libc::SYS_madvise if matches!(args[2], 4 | 9 | MADV_DONTNEED_LOCKED) => {
                held.drops.push((tid, range))
            }
            libc::SYS_munmap | libc::SYS_mmap => held.touched.push(range),
            libc::SYS_mremap => {
                let kind = if args[3] & MREMAP_DONTUNMAP != 0 {
                    &mut held.emptied
                } else {
                    &mut held.moved
                };
                let target = pages(args[4], args[2]).filter(|_| args[3] & MREMAP_FIXED != 0);
                kind.push(range)
                    .and_then(|()| held.touched.push(range))
                    .and_then(|()| target.map_or(Ok(()), |target| held.touched.push(target)))
            }
            _ => Ok(()),
        };
        if let Err(errno) = pushed {
            result = Err(failed("mmap")(errno));
        }
    })
    .map_err(failed("read of /proc/self/task"))?;
    result.map(|()| held)
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
    files: OwnVec<Span<()>>,
}

impl Exporter {
    /// Handles the events that wait to be read.
    pub(crate) fn on_events(&mut self) {
        loop {
            let mut predicted = OwnVec::new();
            if let Err(error) = self.before_event(&mut predicted) {
                log!(Error, "following the address space: {error}");
            }
            match self.watcher.read() {
                Ok(Some(Event::Dropping { start, end })) => self.after_drop(start, end, &predicted),
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(errno) => {
                    log!(Error, "read of a userfaultfd: {errno}");
                    return;
                }
            }
        }
    }

    fn before_event(&mut self, predicted: &mut OwnVec<(u32, Range)>) -> Result<()> {
        let held = held_threads()?;
        self.reconcile_with(&held)?;
        for (thread, range) in held.drops.iter().copied() {
            if let Some(next) = self.next_dropped(thread, range) {
                self.droppings.retain(|d| d.thread != thread || d.range == range);
                if !self.droppings.iter().any(|d| d.thread == thread) {
                    let dropping = Dropping {
                        thread,
                        range,
                        done_to: range.start(),
                    };
                    self.droppings.push(dropping).map_err(failed("mmap"))?;
                }
                self.drop_pages(next);
                predicted.push((thread, next)).map_err(failed("mmap"))?;
            }
        }
        Ok(())
    }

    /// The part of a `madvise` range that the event at hand is about: one watched mapping.
    fn next_dropped(&mut self, thread: u32, range: Range) -> Option<Range> {
        let done = self
            .droppings
            .iter()
            .find(|d| d.thread == thread && d.range == range)
            .map(|d| d.done_to);
        let first = |from: usize| {
            let rest = Range::between(from, range.end())?;
            let span = self.backed.next_in(rest).map(|span| span.range);
            let shared = self.shared.next_in(rest).map(|span| span.range);
            let start = span
                .into_iter()
                .chain(shared)
                .map(|span| span.start().max(from))
                .min()?;
            let vma = self.query.at(start)?;
            Range::between(vma.start, vma.end)?.intersection(rest)
        };
        done.and_then(first).or_else(|| first(range.start()))
    }

    fn after_drop(&mut self, start: usize, end: usize, predicted: &[(u32, Range)]) {
        let Some(range) = Range::between(start, end) else {
            return;
        };
        match predicted.iter().find(|(_, p)| p.covers(range)) {
            Some((thread, _)) => {
                let thread = *thread;
                if let Some(dropping) = self.droppings.iter_mut().find(|d| d.thread == thread) {
                    dropping.done_to = end;
                }
                // A call that has come to its end does not come again.
                self.droppings.retain(|d| d.done_to < d.range.end());
            }
            None => {
                // Somebody else's process_madvise, or a call that could not be seen.
                log!(Debug, "pages of {range} dropped unseen");
                self.drop_pages(range);
            }
        }
    }

    /// Frees the pages that objects have in `range`. Files mapped shared keep theirs, as everywhere.
    fn drop_pages(&mut self, range: Range) {
        for span in self.backed.within(range) {
            let shared = span.value.origin == Origin::Shared;
            if let Some(object) = self.objects.get(span.value.serial).filter(|_| !shared) {
                if let Err(errno) = object.punch(span.range) {
                    log!(Error, "punching {}: {errno}", span.range);
                }
            }
        }
    }

    /// Makes objects and tables agree with the maps.
    pub(super) fn reconcile(&mut self) -> Result<()> {
        self.reconcile_with(&held_threads()?)
    }

    fn reconcile_with(&mut self, held: &Held) -> Result<()> {
        self.attributes = None;
        let mut survey = Survey {
            present: OwnVec::new(),
            grown: OwnVec::new(),
            strays: OwnVec::new(),
            files: OwnVec::new(),
        };
        self.survey(&mut survey)?;
        let mut gone: OwnVec<Span<Backing>> = OwnVec::new();
        subtract(self.backed.iter(), &survey.present, &mut gone)?;
        for span in survey.grown.iter() {
            self.backed
                .insert(span.range, span.value)
                .map_err(failed("mmap"))?;
        }
        for span in gone.iter() {
            self.forget_backing(span)?;
        }
        // Moved memory is copied out of its old place before that is punched.
        let moved = self.bring_home(&survey.strays, &gone, held);
        for span in gone.iter() {
            self.punch_unmapped(span.range);
            log!(Trace, "{} gone", span.range);
        }
        for range in held.touched.iter() {
            self.punch_unmapped(*range);
        }
        for range in held.emptied.iter() {
            self.drop_pages(*range);
        }
        moved?;
        self.forget_shared(&survey.files)
    }

    /// Frees what objects have in `range` at addresses that do not show it.
    fn punch_unmapped(&self, range: Range) {
        let mut from = Some(range);
        while let Some(rest) = from {
            let home = self.backed.next_in(rest).map(|span| span.range);
            let hole = Range::between(rest.start(), home.map_or(rest.end(), |home| home.start()));
            if let Some(hole) = hole {
                for object in self.objects.iter().filter(|object| object.domain.overlaps(hole)) {
                    if let Err(errno) = object.punch(hole) {
                        log!(Error, "punching {hole}: {errno}");
                    }
                }
            }
            from = home.and_then(|home| Range::between(home.end(), range.end()));
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
        let read = maps::each_vma(|vma, _| {
            if let (Some(file), Some(range)) = (vma.file, Range::between(vma.start, vma.end)) {
                if let Err(errno) = self.survey_mapping(vma, file, range, survey) {
                    result = Err(failed("mmap")(errno));
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        });
        read.map_err(failed("read of /proc/self/maps"))?;
        result
    }

    fn survey_mapping(&self, vma: &Vma, file: FileId, range: Range, survey: &mut Survey) -> SysResult<()> {
        let Some(object) = self.objects.of_file(file) else {
            let copied = Origin::Copied(file);
            for span in self
                .backed
                .within(range)
                .filter(|s| s.value.origin == copied && !vma.shared)
            {
                survey.present.push(span)?;
            }
            for span in self.shared.within(range).filter(|span| span.value == file) {
                survey.files.push(Span {
                    range: span.range,
                    value: (),
                })?;
            }
            return Ok(());
        };
        if !object.is_at_home(vma) {
            if vma.shared && !self.own_windows.within(range).any(|_| true) {
                survey.strays.push((*vma, object.serial))?;
            }
            return Ok(());
        }
        // What the tables do not have has grown in place.
        let mut from = range.start();
        let mut value = Backing {
            serial: object.serial,
            origin: Origin::Private,
        };
        for span in self
            .backed
            .within(range)
            .filter(|span| span.value.serial == object.serial)
        {
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
    fn bring_home(&mut self, strays: &[(Vma, u32)], gone: &[Span<Backing>], held: &Held) -> Result<()> {
        let mut result = Ok(());
        let mut done = [false; 64];
        for _ in strays {
            // One whose new place is the old place of another comes after that other.
            let waits = |index: usize| {
                let target = Range::between(strays[index].0.start, strays[index].0.end);
                strays.iter().enumerate().any(|(other, (vma, _))| {
                    let old = Range::new(vma.offset as usize, vma.end - vma.start);
                    other != index
                        && !done.get(other).copied().unwrap_or(true)
                        && target.zip(old).is_some_and(|(target, old)| target.overlaps(old))
                })
            };
            let open = || (0..strays.len().min(done.len())).filter(|index| !done[*index]);
            let Some(index) = open().find(|index| !waits(*index)).or_else(|| open().next()) else {
                break;
            };
            done[index] = true;
            let (vma, serial) = &strays[index];
            result = result.and(self.bring_one_home(vma, *serial, gone, held));
        }
        result
    }

    fn bring_one_home(&mut self, vma: &Vma, serial: u32, gone: &[Span<Backing>], held: &Held) -> Result<()> {
        let Some(all) = Range::between(vma.start, vma.end) else {
            return Ok(());
        };
        let Some(old) = all.shifted(vma.start, vma.offset as usize) else {
            return Ok(());
        };
        let known = gone
            .iter()
            .find(|g| g.value.serial == serial && g.range.overlaps(old));
        // What was there before the move; behind it the mapping has grown, over offsets that are not its own.
        let asked = held
            .moved
            .iter()
            .chain(held.emptied.iter())
            .find(|m| m.start() == old.start());
        let part = match (asked, known) {
            (Some(asked), _) => old.intersection(*asked),
            (None, Some(known)) => old.intersection(known.range),
            (None, None) => None,
        };
        let Some(part) = part else {
            log!(Error, "{all} shows {old}, and nobody has moved it there");
            return Ok(());
        };
        let Some(to) = part.shifted(old.start(), all.start()) else {
            return Ok(());
        };
        let attributes = maps::attributes(vma.start).unwrap_or_default();
        let value = known.map_or(
            Backing {
                serial,
                origin: Origin::Private,
            },
            |known| known.value,
        );
        self.rehome_part(serial, value, part, to, vma, &attributes)?;
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
            return self.make_private(serial, from, to, vma, attributes);
        }
        let home = self.objects.for_domain(domain, protected)?.serial;
        let (Some(source), Some(home)) = (self.objects.get(serial), self.objects.get(home)) else {
            return Ok(());
        };
        adopt::rehome(source, home, from.start(), to, vma.prot, &self.watcher)?;
        adopt::restore_attributes(to, attributes, vma.prot);
        let value = Backing {
            serial: home.serial,
            ..backing
        };
        log!(Debug, "moved {from} to {to}");
        self.backed.insert(to, value).map_err(failed("mmap"))
    }

    fn make_private(
        &mut self,
        serial: u32,
        from: Range,
        to: Range,
        vma: &Vma,
        attributes: &maps::Attributes,
    ) -> Result<()> {
        let Some(object) = self.objects.get(serial) else {
            return Ok(());
        };
        adopt::privatize_moved(object, from, to, vma.prot, &self.watcher)?;
        adopt::restore_attributes(to, attributes, vma.prot);
        Ok(())
    }

    /// Puts fresh private memory where a moved mapping has grown.
    fn grow_fresh(&mut self, start: usize, end: usize, vma: &Vma) -> Result<()> {
        let Some(range) = Range::between(start, end) else {
            return Ok(());
        };
        let _ = self.watcher.forget(range.start(), range.len());
        let fresh = memory::map_anonymous(range.len(), vma.prot, MapFlags::NORESERVE);
        let fresh = fresh.map_err(failed("mmap"))?;
        // SAFETY: the new part of a mapping whose owner is still held in mremap; nothing has been written to it.
        unsafe { memory::move_over(fresh, range.len(), range.start()) }.map_err(failed("mremap"))
    }

    /// Tells the importers which files are not mapped any more where they have mapped them.
    fn forget_shared(&mut self, files: &[Span<()>]) -> Result<()> {
        if self.shared.is_empty() {
            return Ok(());
        }
        let mut gone = OwnVec::new();
        subtract(
            self.shared.iter().map(|s| Span {
                range: s.range,
                value: (),
            }),
            files,
            &mut gone,
        )?;
        for span in gone.iter() {
            self.shared.remove(span.range).map_err(failed("mmap"))?;
            for client in self.clients.iter_mut() {
                client.stale(span.range);
            }
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
        while present
            .get(index)
            .is_some_and(|p| p.range.end() <= span.range.start())
        {
            index += 1;
        }
        let mut from = span.range.start();
        for found in present[index..]
            .iter()
            .take_while(|p| p.range.start() < span.range.end())
        {
            if found.value != span.value {
                continue;
            }
            if let Some(range) = Range::between(from, found.range.start()) {
                rest.push(Span {
                    range,
                    value: span.value,
                })
                .map_err(failed("mmap"))?;
            }
            from = from.max(found.range.end());
        }
        if let Some(range) = Range::between(from, span.range.end()) {
            rest.push(Span {
                range,
                value: span.value,
            })
            .map_err(failed("mmap"))?;
        }
    }
    Ok(())
}
