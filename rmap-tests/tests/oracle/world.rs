//! The processes that a program runs in.

use crate::{
    model::{Expected, FILE_PAGES, Model, private_stamp},
    program::{Access, Kind, Op, PAGES, Segment, Span},
};
use rmap_tests::{Actor, PAGE, RDONLY, RDWR, Stage, maps, pattern::Seen};
use std::ops::Range;

const ARENA: usize = 0x2000_0000_0000;
/// Pages behind the arena that a thread of the exporter counts in all the time.
const COUNTED: usize = 4;
/// Pages of the heap at most.
const HEAP: usize = 8;

struct View {
    importer: usize,
    here: usize,
    pages: Range<usize>,
    /// Its own segment and permit, if it has them.
    own: Option<(i64, i64)>,
    writable: bool,
}

/// What worlds differ in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    /// What a page of the model stands for, in pages.
    pub(crate) unit: usize,
    /// The exporter could have asynchronous reads under way.
    pub(crate) reads_ahead: bool,
}

pub(crate) struct World {
    /// What a page of the model stands for, in pages.
    unit: usize,
    reads_ahead: bool,
    exporter: Actor,
    importers: Vec<Actor>,
    permits: Vec<i64>,
    views: Vec<View>,
    /// The heap, through an attachment of the first importer.
    heap_view: usize,
    heap_start: usize,
    children: Vec<(Actor, Model)>,
    model: Model,
    files: [i32; 2],
    counter: usize,
    scanner: usize,
    /// A pipe of the first importer's, once it has one: the ends.
    pipe: Option<(usize, usize)>,
    worker: usize,
    stamp: u64,
    /// Adopted private mappings of files have become anonymous memory with the same bytes.
    forked: bool,
    steps: usize,
    _stage: Stage,
}

fn cut(span: Span) -> Range<usize> {
    span.first..(span.first + span.count).min(PAGES)
}

fn prot(access: Access) -> usize {
    let prot = match access {
        Access::None => libc::PROT_NONE,
        Access::Read => libc::PROT_READ,
        Access::Write => libc::PROT_READ | libc::PROT_WRITE,
    };
    prot.unsigned_abs() as usize
}

impl World {
    pub(crate) fn new(setting: Setting) -> Self {
        let unit = setting.unit;
        let at = |page: usize| ARENA + page * unit * PAGE;
        let stage = Stage::new("random program", 300);
        let mut exporter = stage.actor();
        let mut importers = stage.actors(3);
        let size = FILE_PAGES * unit * PAGE;
        let files = [exporter.memfd(size), exporter.memfd(size)];
        let (rw, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let drawn = exporter.mmap(0, size, rw, shared, files[1], 0);
        for page in 0..FILE_PAGES {
            exporter.fill_same(drawn + page * unit * PAGE, unit, private_stamp(page));
        }
        exporter.munmap(drawn, size);
        if setting.reads_ahead {
            // A context of libaio: what is adopted is asked for reads that are under way.
            let board = exporter.board();
            exporter.store(board, 0).expect("memory");
            exporter.sys(libc::SYS_io_setup, &[1, board]).expect("io_setup");
        }
        exporter.anon_at(at(PAGES), COUNTED * PAGE);
        let counter = exporter.start(&format!("inc {:#x} {COUNTED} {PAGE} 9", at(PAGES)));
        let segid = exporter.make_all();
        let permits: Vec<i64> = importers.iter_mut().map(|importer| importer.get(segid)).collect();
        let heap_start = exporter.number("sbrk 0").next_multiple_of(PAGE);
        let heap_view = importers[0].attach(permits[0], heap_start, HEAP * PAGE);
        // One importer looks at everything all the time, whatever state it is in.
        let scanned = PAGES * unit + COUNTED;
        let here = importers[2].attach(permits[2], at(0), scanned * PAGE);
        let scanner = importers[2].start(&format!("scan {here:#x} {scanned} 1"));
        let (views, children, model) = (Vec::new(), Vec::new(), Model::new());
        let (worker, stamp, steps) = (0, 1, 0);
        let mut world = Self {
            unit,
            reads_ahead: setting.reads_ahead,
            exporter,
            importers,
            permits,
            views,
            heap_view,
            heap_start,
            children,
            model,
            files,
            counter,
            scanner,
            pipe: None,
            worker,
            stamp,
            steps,
            forked: false,
            _stage: stage,
        };
        world.attach(0..PAGES, Segment::Everything);
        world.attach(0..PAGES, Segment::Everything);
        world
    }

    fn at(&self, page: usize) -> usize {
        ARENA + self.len(page)
    }

    /// So many pages of the model, in bytes.
    fn len(&self, pages: usize) -> usize {
        pages * self.unit * PAGE
    }

    /// Where the page of a view's is that is looked at for a page of the model's, and the exporter's.
    fn sample(&self, page: usize) -> usize {
        self.len(page) + (self.steps * 5 + page) % self.unit * PAGE
    }

    fn attach(&mut self, pages: Range<usize>, segment: Segment) {
        let importer = self.views.len() % 2;
        let (address, len) = (self.at(pages.start), self.len(pages.len()));
        let (own, here) = if segment == Segment::Everything {
            (None, self.importers[importer].attach(self.permits[importer], address, len))
        } else {
            let segid = self.exporter.make(address, len);
            let flags = if segment == Segment::Own { RDWR } else { RDONLY };
            let apid = self.importers[importer].try_get(segid, flags).expect("xpmem_get");
            (Some((segid, apid)), self.importers[importer].attach(apid, 0, len))
        };
        let writable = segment != Segment::OwnForReading;
        self.views.push(View { importer, here, pages, own, writable });
    }

    fn detach(&mut self, view: usize) {
        let view = self.views.swap_remove(view);
        let importer = &mut self.importers[view.importer];
        if let Some((segid, apid)) = view.own {
            if self.steps.is_multiple_of(2) {
                importer.detach(view.here);
            }
            assert_eq!(importer.release(apid), Ok(0));
            assert_eq!(self.exporter.remove(segid), Ok(0));
        } else {
            importer.detach(view.here);
        }
    }

    /// A system call by the thread whose turn it is.
    fn call(&mut self, number: i64, arguments: &[usize]) -> Result<usize, i32> {
        if self.worker == 0 {
            return self.exporter.sys(number, arguments);
        }
        let words: Vec<String> = arguments.iter().map(|word| format!("{word:#x}")).collect();
        let command = format!("worker {} sys {number} {}", self.worker, words.join(" "));
        match self.exporter.ask(&command) {
            rmap_tests::Reply::Ok(value) => Ok(value.parse().expect("a number")),
            rmap_tests::Reply::Errno(errno) => Err(errno),
            other => panic!("{other:?}"),
        }
    }

    fn must(&mut self, number: i64, arguments: &[usize]) {
        if let Err(errno) = self.call(number, arguments) {
            panic!("system call {number} {arguments:x?}: errno {errno}");
        }
    }

    fn next_stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    pub(crate) fn step(&mut self, op: &Op) {
        self.steps += 1;
        match *op {
            Op::Map { span, kind, access, index } => self.map(cut(span), kind, access, index),
            Op::Unmap { span } => {
                let range = cut(span);
                self.must(libc::SYS_munmap, &[self.at(range.start), self.len(range.len())]);
                self.model.unmap(range);
            }
            Op::Protect { span, access } if self.model.whole(cut(span)) => {
                let range = cut(span);
                self.must(libc::SYS_mprotect, &[self.at(range.start), self.len(range.len()), prot(access)]);
                self.model.protect(range, access);
            }
            Op::Forget { span } if self.model.whole(cut(span)) && !self.lost_its_file(&cut(span)) => {
                let range = cut(span);
                let advice = libc::MADV_DONTNEED as usize;
                self.must(libc::SYS_madvise, &[self.at(range.start), self.len(range.len()), advice]);
                self.model.forget(range);
            }
            Op::Erase { span } => {
                let range = cut(span);
                let shared = |page: usize| {
                    self.model.pages[page].is_some_and(|page| page.shared && page.access == Access::Write)
                };
                if range.clone().all(shared) {
                    let advice = libc::MADV_REMOVE as usize;
                    self.must(libc::SYS_madvise, &[self.at(range.start), self.len(range.len()), advice]);
                    self.model.erase(range);
                }
            }
            Op::Move { span, to, count, keep } => self.relocate(cut(span), to, count, keep),
            Op::Resize { span, count } => self.resize(cut(span), count),
            Op::Heap { pages } => self.heap(pages.min(HEAP)),
            Op::Write { span } => {
                for page in self.model.writable(cut(span)) {
                    let stamp = self.next_stamp();
                    let address = self.at(page);
                    self.exporter.fill_same(address, self.unit, stamp);
                    self.model.write(page, stamp);
                }
            }
            Op::WriteThrough { view, span } => self.write_through(view, cut(span)),
            Op::Look { view, span } => {
                let view = view % self.views.len();
                let range = cut(span);
                let pages = self.views[view].pages.clone();
                self.look(view, range.start.max(pages.start)..range.end.min(pages.end));
            }
            Op::LookAtAll => self.look_at_all(),
            Op::Attach { span, segment } if self.views.len() < 8 => self.attach(cut(span), segment),
            Op::Detach { view } if view >= 2 && view < self.views.len() => self.detach(view),
            Op::Fork if self.children.len() < 2 && self.worker == 0 => {
                self.forked = true;
                let child = self.exporter.fork();
                self.children.push((child, self.model.clone()));
            }
            Op::EndChild => {
                if let Some((child, model)) = self.children.pop() {
                    Self::end_child(child, self.unit, &model, &self.model);
                }
            }
            Op::Worker { number } => self.worker = number,
            Op::Hold { view, page } => self.hold(view, page),
            Op::LetGo => self.let_go(),
            Op::Protect { .. } | Op::Forget { .. } | Op::Attach { .. } | Op::Detach { .. } | Op::Fork => {}
        }
        // A few pages after every step, so that most stay as they are.
        let page = self.steps * 7 % PAGES;
        self.look(self.steps % 2, page..(page + 3).min(PAGES));
    }

    fn map(&mut self, range: Range<usize>, kind: Kind, access: Access, index: usize) {
        // An ordinary user has no descriptor of shared anonymous memory: once a child shares it, it is a hole
        // (docs/semantics.md). The tests of kinds have it without children.
        if matches!(kind, Kind::SharedAnonymous) && !nix::unistd::geteuid().is_root() {
            return;
        }
        // Nothing tells of other memory whether a device may write to it: it is a hole then.
        if self.reads_ahead && matches!(kind, Kind::SharedAnonymous | Kind::PrivateFile) {
            return;
        }
        let (flags, file) = match kind {
            Kind::Anonymous => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
            Kind::SharedAnonymous => (libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1),
            Kind::SharedFile => (libc::MAP_SHARED, self.files[0]),
            Kind::PrivateFile => (libc::MAP_PRIVATE, self.files[1]),
        };
        // Only blocks that have all their pages become huge pages, and importers look at once.
        let flags = if self.unit > 1 && file == -1 { flags | libc::MAP_POPULATE } else { flags };
        let offset = if file == -1 { 0 } else { self.len(index) };
        let flags = (flags | libc::MAP_FIXED).unsigned_abs() as usize;
        let file = (file as isize).cast_unsigned();
        self.must(
            libc::SYS_mmap,
            &[self.at(range.start), self.len(range.len()), prot(access), flags, file, offset],
        );
        self.model.map(range, kind, access, index);
    }

    /// Whether dropped pages of a private file mapping would be zero: it was adopted and has lost its file by a fork.
    fn lost_its_file(&self, range: &Range<usize>) -> bool {
        self.forked && self.shows_private_file(range)
    }

    fn shows_private_file(&self, range: &Range<usize>) -> bool {
        let pages = self.model.pages[range.clone()].iter().flatten();
        pages.into_iter().any(|page| page.file.is_some() && !page.shared)
    }

    fn relocate(&mut self, from: Range<usize>, to: usize, count: usize, keep: bool) {
        let count = if keep { from.len() } else { count };
        // A private mapping of a file that was adopted grows by zeros, not by the file's next pages.
        if (count > from.len() && self.shows_private_file(&from)) || (keep && self.lost_its_file(&from)) {
            return;
        }
        let to = to..(to + count).min(PAGES);
        let apart = to.end <= from.start || from.end <= to.start;
        if !self.model.whole(from.clone()) || !apart || (keep && to.len() != from.len()) {
            return;
        }
        // Two places for one shared anonymous page: the library cannot show that to everybody.
        if keep && self.model.shares_anonymous_memory(from.clone()) {
            return;
        }
        let mut flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        if keep {
            flags |= libc::MREMAP_DONTUNMAP;
        }
        let arguments = [
            self.at(from.start),
            self.len(from.len()),
            self.len(to.len()),
            flags.unsigned_abs() as usize,
            self.at(to.start),
        ];
        match self.call(libc::SYS_mremap, &arguments) {
            Ok(address) => {
                assert_eq!(address, self.at(to.start));
                self.model.relocate(from, to, keep);
            }
            // More than one mapping. Some of them may have moved (Linux 6.17), and what was at the new place, and what
            // is too much at the old one, may be gone.
            Err(_) => {
                for range in [from, to] {
                    self.must(libc::SYS_munmap, &[self.at(range.start), self.len(range.len())]);
                    self.model.unmap(range);
                }
            }
        }
    }

    fn resize(&mut self, range: Range<usize>, count: usize) {
        let grows = count > range.len() && self.shows_private_file(&range);
        if !self.model.whole(range.clone()) || range.start + count > PAGES || grows {
            return;
        }
        let arguments = [self.at(range.start), self.len(range.len()), self.len(count), 0];
        let new = range.start..range.start + count;
        match self.call(libc::SYS_mremap, &arguments) {
            Ok(_) => self.model.relocate(range, new, false),
            Err(_) => self.look_what_is_left(),
        }
    }

    /// After a call that failed half way: takes from the model what the kernel says is not there.
    fn look_what_is_left(&mut self) {
        let maps = maps(self.exporter.pid());
        for page in 0..PAGES {
            if !maps.iter().any(|mapping| mapping.range.contains(&self.at(page))) {
                self.model.unmap(page..page + 1);
            }
        }
    }

    fn heap(&mut self, pages: usize) {
        let end = self.heap_start + self.model.heap.len() * PAGE;
        let now = self.exporter.number("sbrk 0");
        if !self.model.heap.is_empty() && now != end {
            return;
        }
        if self.model.heap.is_empty() && now > self.heap_start {
            return;
        }
        let target = self.heap_start + pages * PAGE;
        let by = target.cast_signed() - now.cast_signed();
        self.exporter.ok(&format!("sbrk {by}"));
        self.model.heap.resize(pages, 0);
        for page in 0..pages {
            let stamp = self.next_stamp();
            let address = self.heap_start + page * PAGE;
            assert_eq!(
                self.exporter.oracle(address, 1),
                [Some(Seen::Stamp(self.model.heap[page]))],
                "heap {page}"
            );
            self.exporter.fill(address, 1, stamp);
            self.model.heap[page] = stamp;
        }
        self.look_at_heap();
    }

    fn look_at_heap(&mut self) {
        let shown = self.importers[0].look(self.heap_view, HEAP);
        // Behind the heap there may be something else once malloc uses it: then nothing is known of it.
        for (page, seen) in shown.into_iter().enumerate().take(self.model.heap.len()) {
            assert_eq!(seen, Seen::Stamp(self.model.heap[page]), "page {page} of the heap");
        }
    }

    fn write_through(&mut self, view: usize, range: Range<usize>) {
        let view = view % self.views.len();
        if !self.views[view].writable {
            return;
        }
        let View { importer, here, ref pages, .. } = self.views[view];
        let pages = pages.clone();
        let range = range.start.max(pages.start)..range.end.min(pages.end);
        for page in self.model.writable(range.start..range.end.max(range.start)) {
            let stamp = self.next_stamp();
            let address = here + self.len(page - pages.start);
            self.importers[importer].fill_same(address, self.unit, stamp);
            self.model.write(page, stamp);
            // By a thread of the exporter's: while another importer has the page's neighbours adopted, they all stand still, and the kernel shows
            // what was there before.
            let own = self.exporter.look(ARENA + self.sample(page), 1)[0];
            let real = self.exporter.oracle(ARENA + self.sample(page), 1)[0];
            assert_eq!(
                (own, real),
                (Seen::Stamp(stamp), Some(Seen::Stamp(stamp))),
                "page {page} after a store through view {view}"
            );
        }
    }

    /// Has a pipe hold some pages of an attachment, which then cannot be split off huge pages.
    fn hold(&mut self, view: usize, page: usize) {
        const MOST: usize = 8;
        let view = &self.views[view % self.views.len()];
        if view.importer != 0 {
            return;
        }
        let there = |page: &usize| matches!(self.model.expected(*page), Expected::Stamp(_));
        let pages = (page..view.pages.end).filter(|page| view.pages.contains(page)).filter(there).take(MOST);
        let addresses: Vec<usize> = pages.map(|page| view.here + self.len(page - view.pages.start)).collect();
        let importer = &mut self.importers[0];
        let board = importer.board();
        let (_, writer) = *self.pipe.get_or_insert_with(|| {
            importer.sys(libc::SYS_pipe2, &[board, 0]).expect("a pipe");
            let ends = importer.load(board).expect("two descriptors");
            (ends as u32 as usize, (ends >> 32) as usize)
        });
        importer.store(board + 8, PAGE as u64).expect("memory");
        for address in addresses {
            importer.store(board, address as u64).expect("memory");
            // It may be full.
            let _ = importer.sys(libc::SYS_vmsplice, &[writer, board, 1, libc::SPLICE_F_NONBLOCK as usize]);
        }
    }

    fn let_go(&mut self) {
        if let Some((reader, writer)) = self.pipe.take() {
            for end in [reader, writer] {
                self.importers[0].sys(libc::SYS_close, &[end]).expect("an open descriptor");
            }
        }
    }

    fn look(&mut self, view: usize, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let (exporter_first, here) = (self.steps.is_multiple_of(3), self.views[view].here);
        let shift = here.wrapping_sub(self.len(self.views[view].pages.start));
        let samples: Vec<usize> = range.clone().map(|page| self.sample(page)).collect();
        let importer = &mut self.importers[self.views[view].importer];
        let mut shown_by_importer = || -> Vec<Seen> {
            if self.unit == 1 {
                return importer.look(shift.wrapping_add(samples[0]), range.len());
            }
            samples.iter().flat_map(|sample| importer.look(shift.wrapping_add(*sample), 1)).collect()
        };
        let had_by_exporter = || -> Vec<Option<Seen>> {
            samples.iter().flat_map(|sample| self.exporter.oracle(ARENA + sample, 1)).collect()
        };
        // Not always in this order: either look can make pages appear.
        let (shown, real) = if exporter_first {
            let real = had_by_exporter();
            (shown_by_importer(), real)
        } else {
            let shown = shown_by_importer();
            (shown, had_by_exporter())
        };
        for ((page, shown), real) in range.zip(shown).zip(real) {
            let expected = self.model.expected(page);
            assert!(
                expected.fits_exporter(real) && expected.fits_importer(shown),
                "step {}, page {page}: {expected:?} is expected, the exporter has {real:?}, view {view} shows {shown:?}",
                self.steps
            );
        }
    }

    fn look_at_all(&mut self) {
        for view in 0..self.views.len() {
            self.look(view, self.views[view].pages.clone());
        }
        self.look_at_heap();
    }

    /// A child has what its parent had at the fork, but for what they share on purpose.
    fn end_child(child: Actor, unit: usize, then: &Model, now: &Model) {
        for page in 0..PAGES {
            let expected = match then.pages[page] {
                Some(shared) if shared.shared => now.as_seen_through(shared),
                _ => then.expected(page),
            };
            let real = child.oracle(ARENA + page * unit * PAGE, 1)[0];
            assert!(
                expected.fits_exporter(real),
                "page {page} of a child: {expected:?} is expected, it has {real:?}"
            );
        }
        child.exit();
    }

    pub(crate) fn end(mut self) {
        self.look_at_all();
        while let Some((child, model)) = self.children.pop() {
            Self::end_child(child, self.unit, &model, &self.model);
        }
        let report = self.exporter.stop(self.counter);
        assert_eq!(report["lost"], 0, "{report:?}");
        let report = self.importers[2].stop(self.scanner);
        assert_eq!(report["faults"], 0, "{report:?}");
        self.look_at_all();
        for importer in self.importers {
            importer.exit();
        }
        self.exporter.exit();
    }
}

impl Model {
    /// What a page of somebody who maps the same files shows.
    fn as_seen_through(&self, page: crate::model::Page) -> Expected {
        let mut other = self.clone();
        other.pages[0] = Some(page);
        other.expected(0)
    }
}
