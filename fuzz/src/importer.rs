//! An importer, an exporter that lies to it, and one that does not.

use crate::child::{Child, Words};
use crate::input::{Input, Known};
use crate::process::{descriptors, keep, mappings, pages, renew};
use crate::protocol::{Message, Source};
use crate::trap;
use rmap_core::{Error, Range, Segment, process};
use rmap_tests::{Door, PAGE, Wire};
use std::fs::File;
use std::io::pipe;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

/// Where the importer attaches to places that it names: pages between them show what is hit besides.
const PLACES: usize = 0x2100_0000_0000;
const PLACE_COUNT: usize = 32;
/// What the liar says that it has.
const REMOTE: usize = 0x2200_0000_0000;
const REMOTE_PAGES: usize = 32;
/// What the honest exporter has.
const HONEST: usize = 0x2300_0000_0000;
const HONEST_PAGES: usize = 8;
/// In each page that no attachment covers.
const MARK: u64 = 0x6d61_726b;
/// How long the liar lets a request lie before it hangs up.
const SILENCE: i32 = 5;

fn places() -> Range {
    Range::new(PLACES, PLACE_COUNT * PAGE).expect("a range")
}

fn remote() -> Range {
    Range::new(REMOTE, REMOTE_PAGES * PAGE).expect("a range")
}

fn honest_pages() -> Range {
    Range::new(HONEST, HONEST_PAGES * PAGE).expect("a range")
}

fn word(address: usize) -> *mut u64 {
    std::ptr::with_exposed_provenance_mut(address)
}

/// The honest exporter: `[0, ..]` makes its segment, `[1, page, stamp, _]` puts a new page with that stamp.
fn honest() -> Box<dyn FnMut(Words) -> Words> {
    renew(honest_pages());
    Box::new(|[what, page, stamp, _]| {
        if what == 0 {
            let segment = Segment::new(honest_pages(), 0o600).expect("a segment");
            let id = segment.id().to_raw().cast_unsigned();
            std::mem::forget(segment);
            return [id, 0, 0, 0];
        }
        let range = pages(honest_pages(), page as usize, 1);
        renew(range);
        // SAFETY: just mapped.
        unsafe { word(range.start()).write_volatile(stamp) };
        [0; 4]
    })
}

struct World {
    door: Door,
    odd: Odd,
    honest: Child,
    honest_window: usize,
    stamp: u64,
    descriptors: usize,
    mappings: usize,
}

impl World {
    fn new() -> Self {
        let mut honest = Child::start(honest);
        trap::install();
        let [id, ..] = honest.ask([0; 4]);
        let apid = process::get(id.cast_signed(), 2, 1).expect("a permit").to_raw();
        // SAFETY: the kernel chooses the place.
        let window = unsafe { process::attach(apid, 0, HONEST_PAGES * PAGE, 0) };
        let mut world = Self {
            door: Door::new(1),
            odd: Odd::new(),
            honest,
            honest_window: window.expect("an attachment"),
            stamp: 0,
            descriptors: usize::MAX,
            mappings: usize::MAX,
        };
        for seed in [[0; 100], [3; 100], [9; 100]] {
            world.run(&seed);
        }
        (world.descriptors, world.mappings) = (descriptors(), mappings());
        world
    }

    fn check_honest(&mut self, page: usize) {
        let page = page % HONEST_PAGES;
        self.stamp += 1;
        self.honest.ask([1, page as u64, self.stamp, 0]);
        let seen = trap::load(self.honest_window + page * PAGE);
        assert!(matches!(seen, Ok(stamp) if stamp == self.stamp), "{seen:?} of the honest exporter");
    }

    fn run(&mut self, data: &[u8]) {
        let share = usize::from(data.first().copied().unwrap_or(128));
        let (acts, lies) = data.split_at(data.len() * share / 256);
        renew(places());
        for page in 0..PLACE_COUNT {
            // SAFETY: just mapped.
            unsafe { word(PLACES + page * PAGE).write_volatile(MARK) };
        }
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let mut liar = Liar::new(&self.door, &self.odd, lies);
            let over = &over;
            scope.spawn(move || liar.run(over));
            let mut run = Run { door: &self.door, permits: Vec::new(), places: [Place::Marked; PLACE_COUNT] };
            let mut input = Input::new(acts);
            for _ in 0..32 {
                if input.is_empty() {
                    break;
                }
                run.step(&mut input);
                run.check_marks();
            }
            run.end();
            over.store(true, Ordering::Release);
            drop(Wire::to(self.door.id(1)));
        });
        self.check_honest(data.len());
        // libFuzzer opens files of its own.
        while self.descriptors < usize::MAX && descriptors() > self.descriptors + 8 {
            std::thread::yield_now();
        }
        let mapped = mappings();
        assert!(mapped <= self.mappings.saturating_add(64), "{mapped} mappings, {} at first", self.mappings);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Marked,
    Attached,
    Gone,
}

struct Permit {
    apid: i64,
    windows: Vec<Range>,
}

struct Run<'a> {
    door: &'a Door,
    permits: Vec<Permit>,
    places: [Place; PLACE_COUNT],
}

impl Run<'_> {
    fn step(&mut self, input: &mut Input<'_>) {
        let choice = input.below(12);
        if choice == 0 || self.permits.is_empty() {
            let flags = [1, 2, 2][input.below(3)];
            if self.permits.len() < 4
                && let Ok(apid) = process::get(self.door.id(1 + u32::from(input.byte() % 4)), flags, 1)
            {
                self.permits.push(Permit { apid: apid.to_raw(), windows: Vec::new() });
            }
            return;
        }
        let permit = input.below(self.permits.len());
        match choice {
            1 | 2 => self.attach(permit, input),
            3 => self.detach(permit, input),
            4 => {
                let permit = self.permits.swap_remove(permit);
                self.release(permit);
            }
            _ => {
                let windows = &self.permits[permit].windows;
                if windows.is_empty() {
                    return self.attach(permit, input);
                }
                let window = windows[input.below(windows.len())];
                let address = window.start() + input.below(window.len() / PAGE) * PAGE;
                let touched =
                    if choice == 5 { trap::store(address, 1) } else { trap::load(address).map(drop) };
                if let Err(fault) = touched {
                    assert!([libc::SIGBUS, libc::SIGSEGV].contains(&fault.signal), "{fault:?}");
                }
            }
        }
    }

    fn attach(&mut self, permit: usize, input: &mut Input<'_>) {
        let (first, count) = (input.below(REMOTE_PAGES), 1 + input.below(8));
        let place = input.below(2 * PLACE_COUNT);
        let fits = place + count <= PLACE_COUNT;
        let vaddr = if fits { PLACES + place * PAGE } else { 0 };
        let (apid, offset) = (self.permits[permit].apid, (first * PAGE) as i64);
        // SAFETY: the places are used by number only.
        let attached = unsafe { process::attach(apid, offset, count * PAGE, vaddr) };
        match attached {
            Ok(base) => {
                assert!(!fits || base == vaddr, "{base:#x} instead of {vaddr:#x}");
                let window = Range::new(base, count * PAGE).expect("a range");
                self.permits[permit].windows.push(window);
                self.mark(window, Place::Attached);
            }
            // What was there was given up, unless it is another attachment.
            Err(Error::RangeTaken(_)) => {}
            Err(_) if fits => {
                let window = Range::new(vaddr, count * PAGE).expect("a range");
                for page in (0..PLACE_COUNT).filter(|page| window.contains(PLACES + page * PAGE)) {
                    if self.places[page] == Place::Marked {
                        self.places[page] = Place::Gone;
                    }
                }
            }
            Err(_) => {}
        }
    }

    fn detach(&mut self, permit: usize, input: &mut Input<'_>) {
        let windows = &mut self.permits[permit].windows;
        if windows.is_empty() {
            return;
        }
        let window = windows.swap_remove(input.below(windows.len()));
        // SAFETY: used by number only.
        unsafe { process::detach(window.start()) }.expect("an attachment is detached");
        self.mark(window, Place::Gone);
    }

    fn release(&mut self, permit: Permit) {
        process::release(permit.apid).expect("a permit is released");
        for window in permit.windows {
            self.mark(window, Place::Gone);
        }
    }

    fn end(&mut self) {
        while let Some(permit) = self.permits.pop() {
            self.release(permit);
        }
        self.check_marks();
    }

    fn mark(&mut self, window: Range, place: Place) {
        for page in 0..PLACE_COUNT {
            if window.contains(PLACES + page * PAGE) {
                self.places[page] = place;
            }
        }
    }

    /// Nothing has happened to memory that is not attached.
    fn check_marks(&self) {
        for (page, place) in self.places.iter().enumerate() {
            if *place == Place::Marked {
                let seen = trap::load(PLACES + page * PAGE);
                assert!(matches!(seen, Ok(MARK)), "page {page} is {seen:?}");
            }
        }
    }
}

/// Things to send in place of an object.
struct Odd {
    object: OwnedFd,
    status: OwnedFd,
    read_only: File,
    all: Vec<OwnedFd>,
    system_v: u32,
}

fn memfd(len: usize) -> OwnedFd {
    // SAFETY: a C string.
    let number =
        unsafe { libc::memfd_create(c"rmap-fuzz".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    assert!(number >= 0, "memfd_create");
    // SAFETY: a new descriptor.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(number) });
    file.set_len(len as u64).expect("ftruncate");
    file.into()
}

impl Odd {
    fn new() -> Self {
        let object = memfd(1 << 46);
        let status = memfd(PAGE);
        // SAFETY: takes numbers only.
        let sealed = unsafe { libc::fcntl(status.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) };
        assert_eq!(sealed, 0, "F_ADD_SEALS");
        let path = format!("/proc/self/fd/{}", object.as_raw_fd());
        let read_only = File::open(&path).expect("a memory file is opened again");
        let opened = |path: &str, flags| {
            use std::os::unix::fs::OpenOptionsExt as _;
            File::options().read(true).custom_flags(flags).open(path).expect("it is there")
        };
        let (reader, writer) = pipe().expect("a pipe");
        // SAFETY: takes numbers only.
        let event = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) };
        let all = vec![
            memfd(PAGE),
            memfd(0),
            reader.into(),
            writer.into(),
            UnixDatagram::unbound().expect("a socket").into(),
            opened("/proc/self", libc::O_DIRECTORY).into(),
            opened(&path, libc::O_PATH).into(),
            opened("/dev/zero", 0).into(),
            opened("/proc/self/exe", 0).into(),
            opened("/proc/self/ns/ipc", 0).into(),
            event,
        ];
        // SAFETY: takes numbers only; marked to go with the last who maps it, which this process does.
        let system_v = unsafe {
            let id = libc::shmget(libc::IPC_PRIVATE, 4 * PAGE, 0o600);
            assert!(id >= 0, "shmget");
            assert_ne!(libc::shmat(id, std::ptr::null(), 0).addr(), usize::MAX, "shmat");
            libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut());
            id.unsigned_abs()
        };
        Self { object, status, read_only, all, system_v }
    }

    fn pick(&self, input: &mut Input<'_>) -> Vec<BorrowedFd<'_>> {
        let choice = input.below(24);
        match choice {
            0..=3 => Vec::new(),
            4..=9 => vec![self.object.as_fd()],
            10 | 11 => vec![self.read_only.as_fd()],
            12 => self.all.iter().map(|descriptor| descriptor.as_fd()).collect(),
            _ => vec![self.all[choice % self.all.len()].as_fd()],
        }
    }

    /// Has the object have a page.
    fn put(&self, address: usize) {
        let offset = (address & !(PAGE - 1)) as i64;
        // SAFETY: takes numbers only. What is no place in the file is refused.
        unsafe { libc::fallocate(self.object.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, offset, PAGE as i64) };
    }
}

/// The exporter that lies.
struct Liar<'a> {
    door: &'a Door,
    odd: &'a Odd,
    input: Input<'a>,
    wires: Vec<Visitor>,
}

struct Visitor {
    wire: Wire,
    gone: bool,
    /// A request was left without an answer.
    silent: bool,
    requests: Vec<u32>,
    grants: Vec<u32>,
}

impl<'a> Liar<'a> {
    fn new(door: &'a Door, odd: &'a Odd, lies: &'a [u8]) -> Self {
        Self { door, odd, input: Input::new(lies), wires: Vec::new() }
    }

    fn run(&mut self, over: &AtomicBool) {
        loop {
            let entry =
                |fd: BorrowedFd<'_>| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let mut entries: Vec<_> = self.wires.iter().map(|visitor| entry(visitor.wire.as_fd())).collect();
            entries.push(entry(self.door.as_fd()));
            let limit = if self.wires.iter().any(|visitor| visitor.silent) { SILENCE } else { -1 };
            // SAFETY: the entries live through the call.
            let count = unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as u64, limit) };
            if count == 0 {
                self.wires.retain(|visitor| !visitor.silent);
                continue;
            }
            let door = entries.pop().expect("the door");
            for (index, _) in entries.iter().enumerate().filter(|(_, entry)| entry.revents != 0) {
                self.listen(index);
            }
            self.wires.retain(|visitor| !visitor.gone);
            if door.revents != 0 {
                let wire = self.door.open(Duration::ZERO).expect("a visitor");
                if over.load(Ordering::Acquire) {
                    return;
                }
                if self.input.below(32) != 1 {
                    let _ = wire.send(&Message::Status.encode(), &[self.odd.status.as_fd()]);
                }
                let (requests, grants) = (Vec::new(), Vec::new());
                self.wires.push(Visitor { wire, gone: false, silent: false, requests, grants });
            }
        }
    }

    fn listen(&mut self, index: usize) {
        match self.wires[index].wire.receive(Duration::ZERO) {
            Ok(Some(parcel)) => {
                let message = Message::decode(&parcel.bytes).expect("an importer's message");
                assert!(parcel.descriptors.is_empty(), "an importer sends no descriptors");
                self.react(index, message);
            }
            Ok(None) => self.wires[index].gone = true,
            Err(_) => {}
        }
    }

    fn react(&mut self, index: usize, message: Message) {
        match message {
            Message::Get { request, .. } | Message::Resolve { request, .. } => {
                self.wires[index].requests.insert(0, request);
            }
            Message::Release { .. } | Message::Seen { .. } => {}
            other => panic!("an importer does not say {other:?}"),
        }
        for _ in 0..self.input.below(4) {
            if self.input.below(8) == 0 {
                let (bytes, extra) = (self.input.bytes(100), self.odd.pick(&mut self.input));
                let _ = self.wires[index].wire.send(bytes, &extra);
                continue;
            }
            let visitor = &self.wires[index];
            let lie = self.input.message(&Known {
                requests: &visitor.requests,
                grants: &visitor.grants,
                serials: &[1, 2, 7],
                segments: &[1],
                system_v: &[self.odd.system_v],
                around: remote(),
            });
            if let Message::Resolved { range, .. } = lie {
                self.odd.put(range.start());
            }
            let extra = self.odd.pick(&mut self.input);
            let _ = visitor.wire.send(&lie.encode(), &extra);
        }
        match self.input.below(16) {
            1 => self.wires[index].gone = true,
            2 => self.wires[index].silent = true,
            _ => self.tell_the_truth(index, message),
        }
    }

    fn tell_the_truth(&mut self, index: usize, message: Message) {
        let visitor = &mut self.wires[index];
        let (message, extra) = match message {
            Message::Get { request, .. } => {
                let grant = visitor.grants.len() as u32 + 1;
                visitor.grants.push(grant);
                (
                    Message::Granted { request, grant, serial: 1, range: remote() },
                    Some(self.odd.object.as_fd()),
                )
            }
            Message::Resolve { request, addr, .. } if remote().contains(addr) => {
                self.odd.put(addr);
                let range = Range::new(addr & !(PAGE - 1), PAGE).expect("a page");
                let source = Source::Object { serial: 1 };
                (Message::Resolved { request, range, source, writable: true }, Some(self.odd.object.as_fd()))
            }
            Message::Resolve { request, .. } => (Message::Hole { request }, None),
            _ => return,
        };
        let _ = visitor.wire.send(&message.encode(), extra.as_slice());
    }
}

/// An importer attaches, touches and detaches what an exporter that lies has, and an honest exporter's memory meanwhile.
pub fn importer(data: &[u8]) {
    static WORLD: OnceLock<Mutex<World>> = OnceLock::new();
    let world = WORLD.get_or_init(|| Mutex::new(World::new()));
    keep(data);
    world.lock().expect("no panics").run(data);
}
