//! Answering an importer that waits for a page.

use super::super::protocol::{Access, Source};
use super::adopt::{self, Adopted, Backing, Means, Origin};
use super::attributes;
use super::client::Grant;
use super::extract::Order;
use super::huge;
use super::object::Shown;
use super::pins;
use super::plan::{self, Mapping, Plan};
use super::rehome::{Transfer, rehome};
use super::rights::User;
use super::{Exporter, Postponed, Resolve, Shared};
use crate::counters::{self, Cell};
use crate::error::{Error, Result, failed};
use crate::log::log;
use crate::own::{self, OwnVec};
use crate::range::Range;
use crate::sys::maps::{Attributes, Vma};
use crate::sys::memory::{PAGE, ProtFlags};
use crate::sys::{Said, fd, sysv, thread};
use core::time::Duration;
use std::os::fd::{AsFd, OwnedFd};

/// Why a page of hugetlb memory is a hole: it is mapped whole or not at all.
const PART: &str = "part of a huge page";

/// Why memory that a device may write to is a hole.
const PINNED: &str = "memory is pinned for DMA; RMAP_PINNED=move adopts it all the same";

/// What is found out about a page.
#[derive(Debug)]
enum Finding {
    /// All threads must stand still first.
    NeedsFreeze,
    /// A device may write to the page now.
    Pinned,
    Hole(&'static str),
    /// This process itself may not write there.
    ReadOnly,
    /// In this object, over this range.
    InObject {
        serial: u32,
        range: Range,
    },
    /// In a file.
    InFile {
        range: Range,
        offset: u64,
        fd: OwnedFd,
        writable: bool,
    },
    /// In a System V segment.
    InSystemV {
        range: Range,
        id: u32,
        offset: u64,
        writable: bool,
    },
}

impl Exporter {
    /// Answers a request for a page; false if that takes a freeze and `frozen` is not given.
    ///
    /// # Errors
    /// The importer broke the protocol, or does not read its answers: it is not served any more.
    pub(super) fn answer(&mut self, number: u32, request: Resolve, frozen: bool) -> Result<bool> {
        let Some(index) = self.client(number) else {
            return Ok(true);
        };
        let Some(grant) = self.clients[index].find_grant(request.grant) else {
            self.clients[index].hole(request.request)?;
            return Ok(true);
        };
        if !grant.range.covers(request.attached) || !request.attached.contains(request.addr) {
            return Err(Error::Invalid("a request outside the permit"));
        }
        if self.is_attached(request.addr) {
            self.pass_on(number, request, grant.access == Access::ReadWrite)?;
            return Ok(true);
        }
        let user = self.clients[index].user();
        let page = Range::page_at(request.addr);
        let is_new_block = self.is_new_block(page);
        let finding = match self.find(&grant, &request, user, frozen) {
            Ok(finding) => finding,
            Err(error) => {
                log!(
                    Error,
                    "cannot show {:#x} to process {}: {error}",
                    request.addr,
                    self.clients[index].pid()
                );
                Finding::Hole("see above")
            }
        };
        let finding = match finding {
            Finding::Pinned if self.postpone(number, request) => return Ok(true),
            Finding::Pinned => Finding::Hole(PINNED),
            finding => finding,
        };
        let write = grant.access == Access::ReadWrite;
        // Guests may have made room.
        let Some(index) = self.client(number) else {
            return Ok(true);
        };
        let client = &mut self.clients[index];
        let id = request.request;
        match finding {
            Finding::NeedsFreeze | Finding::Pinned => return Ok(false),
            Finding::Hole(why) => client.tell_hole(&request, why)?,
            Finding::ReadOnly => {
                counters::count(Cell::AnswersReadOnly);
                client.read_only(id)?;
            }
            Finding::InObject { serial, range } => {
                let Some(object) = self.objects.get_mut(serial) else {
                    return Ok(false);
                };
                object.shows(range).map_err(failed("mmap"))?;
                let writable = write && !object.protected;
                let source = Source::Object { serial };
                counters::count(Cell::AnswersObject);
                self.peer_rows.answer(client.row, range.len() as u64);
                client.resolved(id, range, source, writable, Some(object.descriptor(writable)))?;
                if is_new_block {
                    self.hint(page, number);
                }
            }
            Finding::InFile { range, offset, fd, writable } => {
                counters::count(Cell::AnswersFile);
                self.peer_rows.answer(client.row, range.len() as u64);
                client.resolved(id, range, Source::File { offset }, writable, Some(fd.as_fd()))?;
            }
            Finding::InSystemV { range, id: segment, offset, writable } => {
                let source = Source::SystemV { id: segment, offset };
                counters::count(Cell::AnswersSystemV);
                self.peer_rows.answer(client.row, range.len() as u64);
                let namespace = sysv::namespace().map_err(failed("open of the IPC namespace"))?;
                let namespace = namespace.as_ref().map(AsFd::as_fd);
                client.resolved(id, range, source, writable && write, namespace)?;
            }
        }
        Ok(true)
    }

    fn find(&mut self, grant: &Grant, request: &Resolve, user: User, frozen: bool) -> Result<Finding> {
        let page = Range::page_at(request.addr).start();
        for _ in 0..2 {
            if let Some(span) = self.backed.at(page) {
                if let Some(finding) = self.find_backed(grant, request, span.value, span.range, frozen)? {
                    return Ok(finding);
                }
            } else if !self.shows_object(page) {
                break;
            }
            // The address space has changed: a mapping has grown, or its event waits to be handled.
            self.reconcile()?;
        }
        let mapping = Mapping::at(&self.maps, page).map_err(failed("read of /proc/thread-self/maps"))?;
        let Some(mapping) = mapping else {
            return Ok(Finding::Hole("nothing is mapped there"));
        };
        if self.kept_out.is_some_and(|kept| kept.contains(page)) {
            return Ok(Finding::Hole("the service thread's stack"));
        }
        let limit = request.attached;
        let plan = plan::plan(&mapping, page, request.run, limit, &self.maps, &self.pagemap);
        match plan.map_err(failed("read of /proc/thread-self/pagemap"))? {
            Plan::Hole(why) => Ok(Finding::Hole(why)),
            Plan::Adopt { range, protected } => {
                if frozen {
                    // Before the mapping is replaced: its file may be reached through it alone.
                    self.private_files.note(range, &mapping.vma, mapping.path());
                }
                let plain = mapping.vma.file.is_none() && mapping.path().is_empty();
                let origin = if plain { Origin::Plain } else { Origin::Private };
                self.adopt(grant, request, range, protected, &mapping.vma, origin, frozen)
            }
            Plan::Copy { range, file } => {
                let domain = grant.range;
                let serial =
                    self.with_room(None, |exporter| adopt::copy(&mut exporter.objects, domain, range))?;
                let backing = Backing::new(serial, Origin::Copied(file));
                self.backed.insert(range, backing).map_err(failed("mmap"))?;
                if self.watchers.watches_any_mapping() {
                    self.watch(range)?;
                }
                if !frozen && !self.is_still(&mapping.vma, page) {
                    return Ok(Finding::NeedsFreeze);
                }
                counters::add(Cell::CopiedBytes, range.len() as u64);
                log!(Debug, "copied {range}");
                Ok(Finding::InObject { serial, range })
            }
            Plan::Share { vma, .. } if request.store && !vma.prot.contains(ProtFlags::WRITE) => {
                Ok(Finding::ReadOnly)
            }
            Plan::Share { range, vma } => {
                self.share(grant, request, range, &vma, mapping.path(), user, frozen)
            }
            Plan::ShareSystemV { range, id, offset, writable } => {
                let attributes = self.smaps.attributes(mapping.vma.start);
                let size = attributes.map_err(failed("read of /proc/thread-self/smaps"))?.page_size.max(PAGE);
                let Some(whole) = range.blocks(size).filter(|whole| whole.contains(page)) else {
                    return Ok(Finding::Hole(PART));
                };
                let offset = offset + (whole.start() - range.start()) as u64;
                let range = whole;
                self.remember_shared(range, &mapping.vma)?;
                if !frozen && !self.is_still(&mapping.vma, page) {
                    return Ok(Finding::NeedsFreeze);
                }
                Ok(Finding::InSystemV { range, id, offset, writable })
            }
        }
    }

    /// The object for memory of this domain.
    fn object_for(&mut self, domain: Range, protected: bool) -> Result<u32> {
        self.with_room(None, |exporter| Ok(exporter.objects.for_domain(domain, protected)?.serial))
    }

    /// The part of a range around `page` that is to be adopted as one, its object, and whether it is to be huge pages. It is an object that nobody
    /// sees there yet for huge pages, and where pages are copied a second time after a device was asked after (`asks`): what importers store to
    /// them before that would be lost.
    fn object_for_part(
        &mut self,
        domain: Range,
        protected: bool,
        (page, range): (usize, Range),
        vma: &Vma,
        attributes: &Attributes,
        asks: bool,
    ) -> Result<(u32, Range, bool)> {
        let complete = vma.shared || vma.file.is_some();
        let (mut part, mut whole, mut unseen) = (range, false, None);
        if self.huge_pages.are_wanted(range, attributes) {
            let found = huge::part_around(page, range, complete, &self.pagemap);
            (part, whole) = found.map_err(failed("read of /proc/thread-self/pagemap"))?;
        }
        if whole || asks {
            if !self.objects.has_unseen_for(domain, protected, part) {
                self.close_spent_objects();
            }
            unseen = self.with_room(None, |exporter| {
                let object = exporter.objects.for_unseen(domain, protected, part)?;
                Ok(object.map(|object| object.serial))
            })?;
        }
        let serial = match unseen {
            Some(serial) => serial,
            None => self.object_for(domain, protected)?,
        };
        // An importer with write access may have put pages where its window shows another object.
        for other in self.objects.iter().filter(|other| other.domain == domain && other.serial != serial) {
            other.punch(part).map_err(failed("fallocate"))?;
        }
        // One of those that importers see has no huge pages but of small ones.
        Ok((serial, part, whole && unseen.is_some()))
    }

    /// Whether an object is mapped at `page`.
    fn shows_object(&self, page: usize) -> bool {
        let vma = self.maps.at(page);
        vma.is_some_and(|vma| self.objects.iter().any(|object| object.is_at_home(&vma)))
    }

    /// A page at an address that an object shows. `None` if the object does not show it any more.
    fn find_backed(
        &mut self,
        grant: &Grant,
        request: &Resolve,
        backing: Backing,
        backed: Range,
        frozen: bool,
    ) -> Result<Option<Finding>> {
        let page = Range::page_at(request.addr).start();
        let Some(vma) = self.maps.find_at(page).map_err(failed("read of /proc/thread-self/maps"))? else {
            return Ok(None);
        };
        let Some(object) = self.objects.get(backing.serial) else {
            return Ok(None);
        };
        let Some(mapped) = Range::between(vma.start, vma.end) else {
            return Ok(None);
        };
        let reach = mapped.intersection(backed).and_then(|range| range.intersection(request.attached));
        let Some(reach) = reach else { return Ok(None) };
        let writable = vma.prot.contains(ProtFlags::WRITE);
        let permitted = grant.range.covers(object.domain);
        if let Origin::Copied(file) = backing.origin {
            let same = !vma.shared && vma.file == Some(file) && !writable;
            if !same {
                return Ok(None);
            }
            if !permitted {
                // The copy moves to an object of the narrower permit; wider ones may have that too.
                let _ = self.free(backing.serial, backed);
                self.backed.remove(backed).map_err(failed("mmap"))?;
                return Ok(None);
            }
            if request.store {
                return Ok(Some(Finding::ReadOnly));
            }
            adopt::fill(object, reach).map_err(failed("pwrite"))?;
            return Ok(Some(Finding::InObject { serial: backing.serial, range: reach }));
        }
        if !object.is_at_home(&vma) {
            return Ok(None);
        }
        if !vma.prot.contains(ProtFlags::READ) {
            return Ok(Some(Finding::Hole("not readable in the exporter")));
        }
        let became_writable = object.protected && writable && grant.access == Access::ReadWrite;
        if !permitted || became_writable {
            let domain = grant.range.intersection(object.domain).unwrap_or(grant.range);
            let protected = object.protected && !became_writable;
            let Some(range) = reach.intersection(domain) else {
                return Ok(None);
            };
            let (range, order) = self.programs.part_with(page, range);
            return self.move_home(domain, protected, range, order, backing, &vma, frozen).map(Some);
        }
        if request.store && object.protected {
            return Ok(Some(Finding::ReadOnly));
        }
        // A page that nobody has touched yet: this one and some that follow get zeroes.
        const SHORTEST: usize = 16 * PAGE;
        let ahead = Range::new(page, SHORTEST << request.run.min(5));
        let range = ahead.and_then(|ahead| ahead.intersection(reach)).unwrap_or(Range::page_at(page));
        object.allocate(range).map_err(failed("fallocate"))?;
        // Of huge pages the importer maps all that there is, holes and all, if it does not yet.
        let shown = if object.shown == Shown::WhenTold { reach } else { range };
        Ok(Some(Finding::InObject { serial: backing.serial, range: shown }))
    }

    /// Moves adopted memory to the object of another domain or protection.
    #[expect(clippy::too_many_arguments, reason = "one step of `find_backed`, kept apart for its length")]
    fn move_home(
        &mut self,
        domain: Range,
        protected: bool,
        range: Range,
        order: Order,
        backing: Backing,
        vma: &Vma,
        frozen: bool,
    ) -> Result<Finding> {
        if !frozen {
            return Ok(Finding::NeedsFreeze);
        }
        let serial = self.object_for(domain, protected)?;
        let (Some(source), Some(home)) = (self.objects.get(backing.serial), self.objects.get(serial)) else {
            return Err(Error::Invalid("an object that is not there"));
        };
        let attributes = self.attributes_to_keep(range)?;
        self.loosen(source, range);
        self.backed.insert(range, Backing { serial, ..backing }).map_err(failed("mmap"))?;
        let transfer = Transfer { source, from: range, home, to: range };
        let moved = rehome(transfer, order, vma.prot, &self.watchers, &self.placement);
        if moved.is_err() {
            let _ = home.punch(range);
            // It has been there before, so there is room.
            let _ = self.backed.insert(range, backing);
            self.watch_surely(range);
            return moved.map(|()| Finding::NeedsFreeze);
        }
        adopt::restore_attributes(range, &attributes, vma.prot);
        let _ = self.free(backing.serial, range);
        self.watch_surely(range);
        Ok(Finding::InObject { serial, range })
    }

    #[expect(clippy::too_many_arguments, reason = "one step of `find`, kept apart for its length")]
    fn adopt(
        &mut self,
        grant: &Grant,
        request: &Resolve,
        range: Range,
        protected: bool,
        vma: &Vma,
        origin: Origin,
        frozen: bool,
    ) -> Result<Finding> {
        let page = Range::page_at(request.addr).start();
        if !frozen {
            if request.run == 0 || origin == Origin::Shared {
                self.attributes = None;
            }
            if self.reads_attributes || !attributes::can_be_asked(vma) {
                self.read_attributes(vma);
            }
            return Ok(Finding::NeedsFreeze);
        }
        let asks = !self.config.move_pinned && self.may_be_pinned(range, vma)?;
        // Pages that turn out to be pinned must get back just what they had.
        self.reads_attributes = asks;
        if asks {
            self.read_attributes(vma);
        }
        let attributes = self.attributes_of(vma).map_err(failed("read of /proc/thread-self/smaps"))?;
        if attributes.device {
            return Ok(Finding::Hole("a device"));
        }
        let mut range = range;
        if attributes.grows_down && range.start() == vma.start && !adopt::extend_stack(vma.start) {
            // The lowest page stays, so that the kernel can grow the stack from there.
            match Range::between(range.start() + PAGE, range.end()).filter(|rest| rest.contains(page)) {
                Some(rest) => range = rest,
                None => return Ok(Finding::Hole("the end of a stack that cannot grow")),
            }
        }
        if asks && (vma.shared || vma.file.is_some() || self.stager.mover().is_none()) {
            return Ok(Finding::Hole(PINNED));
        }
        if request.pinned_since.is_some() {
            range = Range::page_at(page);
        }
        let serial = loop {
            let (serial, whole);
            (serial, range, whole) =
                self.object_for_part(grant.range, protected, (page, range), vma, &attributes, asks)?;
            let Some(object) = self.objects.get(serial) else {
                return Err(Error::Invalid("an object that is not there"));
            };
            let backing = Backing::adopted(serial, origin, &attributes);
            self.backed.insert(range, backing).map_err(failed("mmap"))?;
            let means = Means {
                maps: &self.maps,
                pagemap: &self.pagemap,
                watchers: &self.watchers,
                stager: &self.stager,
                huge_pages: &mut self.huge_pages,
                whole,
                placement: &self.placement,
                mover: self.stager.mover().filter(|_| asks),
            };
            // SAFETY: all other threads stand still (`frozen`).
            let adopted = unsafe {
                adopt::adopt(object, range, vma, attributes, means, || self.freezer.still_stopped())
            };
            match adopted {
                Ok(Adopted::Done) => {
                    let noted = self.objects.get_mut(serial).map_or(Ok(()), |object| object.note_used(range));
                    if let Err(errno) = noted {
                        log!(Debug, "{range} counts as seen by nobody: {errno}", errno = Said(errno));
                    }
                    break serial;
                }
                Ok(Adopted::Foreign) => {
                    let _ = self.backed.remove(range);
                    return Ok(Finding::Hole("a userfaultfd of the application's watches it"));
                }
                Ok(Adopted::Pinned) => {
                    let _ = self.backed.remove(range);
                    match half(range, page) {
                        Some(less) => range = less,
                        None => return Ok(Finding::Pinned),
                    }
                }
                Err(error) => {
                    let _ = self.backed.remove(range);
                    return Err(error);
                }
            }
        };
        counters::count(Cell::Adoptions);
        counters::add(Cell::AdoptedBytes, range.len() as u64);
        log!(Debug, "adopted {range}");
        Ok(Finding::InObject { serial, range })
    }

    /// Whether a device may write to the range while no thread waits for it.
    fn may_be_pinned(&self, range: Range, vma: &Vma) -> Result<bool> {
        // Objects are mapped shared and writable, too, perhaps in very many places. So is own memory.
        let behind = |vma: &Vma| {
            let file = vma.file?;
            let object = self.objects.of_file(file).and_then(|_| self.backed.end_of_run(vma.start));
            object.or((own::file_id() == Some(file)).then_some(vma.end))
        };
        if !pins::possible(&self.maps, behind) {
            return Ok(false);
        }
        if vma.shared || vma.file.is_none() {
            return Ok(true);
        }
        // Nobody writes to the page of a file that is mapped private: it would be copied first.
        let mut copied = false;
        let asked =
            self.pagemap.each_page(range.start(), range.end(), |_, page| copied |= page.is_private_copy());
        asked.map_err(failed("read of /proc/thread-self/pagemap"))?;
        Ok(copied)
    }

    /// Has a request for a page that is pinned come again. False if it has waited for long enough.
    fn postpone(&mut self, client: u32, request: Resolve) -> bool {
        // A read from a disk is over in time. What is registered with a device may stay pinned for ever.
        const LONGEST: Duration = Duration::from_secs(10);
        const REGISTERED: Duration = Duration::from_millis(100);
        let now = thread::time();
        let since = request.pinned_since.unwrap_or(now);
        let waited = now.saturating_sub(since);
        if waited > if pins::counted() { REGISTERED } else { LONGEST } {
            return false;
        }
        // Each try stops all threads, so they become rarer.
        let pause = (waited / 4).clamp(Duration::from_millis(1), Duration::from_millis(100));
        let request = Resolve { pinned_since: Some(since), ..request };
        self.postponed.push(Postponed { client, request, due: now + pause }).is_ok()
    }

    #[expect(clippy::too_many_arguments, reason = "one step of `find`, kept apart for its length")]
    fn share(
        &mut self,
        grant: &Grant,
        request: &Resolve,
        range: Range,
        vma: &Vma,
        path: &[u8],
        user: User,
        frozen: bool,
    ) -> Result<Finding> {
        let Some(file) = vma.file else {
            return Ok(Finding::Hole("shared memory without a file"));
        };
        let writable = vma.prot.contains(ProtFlags::WRITE) && grant.access == Access::ReadWrite;
        let opened = fd::of_mapping(path, file, (vma.start, vma.end), writable);
        let fd = match opened {
            Ok(fd) => fd,
            Err(errno) if path.ends_with(b" (deleted)") => {
                // No descriptor is to be had: as good as private, if nobody else has it.
                if self.inherited.contains(&file) || plan::is_shared_with_others(range, &self.pagemap) {
                    log!(
                        Warn,
                        "{range} is shared memory whose descriptor cannot be had: {errno}",
                        errno = Said(errno)
                    );
                    return Ok(Finding::Hole("shared memory whose descriptor cannot be had"));
                }
                let protected = !vma.prot.contains(ProtFlags::WRITE);
                return self.adopt(grant, request, range, protected, vma, Origin::Shared, frozen);
            }
            Err(errno) => {
                log!(Warn, "the file mapped at {range} cannot be opened: {errno}", errno = Said(errno));
                return Ok(Finding::Hole("a file that cannot be opened"));
            }
        };
        let page = Range::page_at(request.addr).start();
        let size = fd::huge_page_size(&fd).map_err(failed("fstatfs"))?.unwrap_or(PAGE);
        let Some(range) = range.blocks(size).filter(|whole| whole.contains(page)) else {
            return Ok(Finding::Hole(PART));
        };
        let stat = rustix::fs::fstat(&fd).map_err(failed("fstat"))?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
            return Ok(Finding::Hole("a device"));
        }
        // A descriptor gives the whole file: to the same user, or if all of it is shown here.
        let whole = vma.offset_of(range.start()) == 0 && range.len() as u64 >= stat.st_size.unsigned_abs();
        if !user.is_own() && !whole {
            return Ok(Finding::Hole("part of a file, for another user"));
        }
        self.remember_shared(range, vma)?;
        self.left.note_file(path, file, &fd);
        if !frozen && !self.is_still(vma, page) {
            return Ok(Finding::NeedsFreeze);
        }
        Ok(Finding::InFile { range, offset: vma.offset_of(range.start()), fd, writable })
    }

    /// Notes that importers map a range from its own file, which cannot be taken from them: they are told when it goes.
    fn remember_shared(&mut self, range: Range, vma: &Vma) -> Result<()> {
        let Some(shared) = Shared::of(vma) else {
            return Ok(());
        };
        // What was there before is gone, although its event has not been handled yet.
        let mut gone = OwnVec::new();
        for span in self.shared.within(range).filter(|span| span.value != shared) {
            gone.push(span.range).map_err(failed("mmap"))?;
        }
        self.shared.insert(range, shared).map_err(failed("mmap"))?;
        for range in gone.iter() {
            self.tell_stale(*range);
        }
        self.watch(range)?;
        log!(Debug, "shared {range} from its file");
        Ok(())
    }

    /// Whether the mapping at `page` is the one that was found there. It was not watched then; a change from now on is an event.
    fn is_still(&self, vma: &Vma, page: usize) -> bool {
        let now = self.maps.at(page);
        now.is_some_and(|now| {
            now.shared == vma.shared && now.file == vma.file && now.offset_of(0) == vma.offset_of(0)
        })
    }
}

/// The half of a range that has `page`; `None` if there is nothing else.
fn half(range: Range, page: usize) -> Option<Range> {
    let middle = range.start() + (range.len() / 2).next_multiple_of(PAGE);
    if range.len() == PAGE {
        None
    } else if page < middle {
        Range::between(range.start(), middle)
    } else {
        Range::between(middle, range.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_end_with_the_page() {
        let mut range = Range::new(7 * PAGE, 100 * PAGE).unwrap();
        let page = 42 * PAGE;
        while let Some(less) = half(range, page) {
            assert!(range.covers(less) && less.contains(page) && less.len() < range.len());
            range = less;
        }
        assert_eq!(range, Range::page_at(page));
    }
}
