//! An exporter, importers that send what they like, and one that wants to be served.

use crate::child::{Child, Words};
use crate::input::{Input, Known};
use crate::process::{descriptors, keep, pages, renew};
use crate::protocol::{Message, Source};
use rmap_core::{Access, Attachment, Permit, Range, Segment};
use rmap_tests::{PAGE, Wire, counter};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

const ARENA: usize = 0x2000_0000_0000;
const ARENA_PAGES: usize = 64;
/// What all may attach; the rest is for the honest importer.
const OPEN_PAGES: usize = 32;
/// What the honest importer has attached.
const HONEST: (usize, usize) = (40, 8);
/// Connections at a time.
const MOST: usize = 6;
/// How long an answer may take: for ever, but the process must not.
const PATIENCE: Duration = Duration::from_secs(60);

/// One for the exporter, and one for importers of each right.
const DESCRIPTORS_OF_AN_OBJECT: usize = 3;
/// The most that an exporter has.
const USERFAULTFDS: usize = 32;

fn arena() -> Range {
    Range::new(ARENA, ARENA_PAGES * PAGE).expect("a range")
}

fn open_pages() -> Range {
    pages(arena(), 0, OPEN_PAGES)
}

struct World {
    /// That stay: they overlap.
    lasting: Vec<(Segment, Range)>,
    honest: Child,
    /// How many pages of the honest importer's were made anew.
    stamp: u64,
    descriptors: usize,
}

/// The honest importer: `[segment, 0, 0, 0]` attaches, `[0, page, 0, 0]` loads.
fn honest() -> Box<dyn FnMut(Words) -> Words> {
    let mut attached: Option<Attachment> = None;
    Box::new(move |[segment, page, ..]| {
        if segment != 0 {
            let id = rmap_core::Id::from_raw(segment.cast_signed()).expect("an id");
            let permit = Permit::get(id, Access::ReadWrite).expect("a permit");
            attached = Some(permit.attach(0, HONEST.1 * PAGE).expect("an attachment"));
            return [0; 4];
        }
        let mut word = [0; 8];
        let attachment = attached.as_ref().expect("attached first");
        attachment.read(page as usize * PAGE, &mut word).expect("inside");
        [u64::from_ne_bytes(word), 0, 0, 0]
    })
}

impl World {
    fn new() -> Self {
        let mut honest = Child::start(honest);
        renew(arena());
        let segment = |first, count| {
            let range = pages(arena(), first, count);
            (Segment::new(range, 0o600).expect("a segment"), range)
        };
        let lasting = vec![segment(0, 16), segment(8, 16), segment(4, 1), segment(0, OPEN_PAGES)];
        let (own, _) = segment(HONEST.0, HONEST.1);
        honest.ask([own.id().to_raw().cast_unsigned(), 0, 0, 0]);
        std::mem::forget(own);
        let mut world = Self { lasting, honest, stamp: 0, descriptors: 0 };
        world.check_honest(0);
        // The first adoptions of each segment make their objects.
        for seed in [&[][..], &[1; 300], &[7; 300]] {
            world.run(seed);
        }
        world.descriptors = descriptors();
        world
    }

    /// A page that is new is found by who has attached it.
    fn check_honest(&mut self, page: usize) {
        let page = page % HONEST.1;
        let range = pages(arena(), HONEST.0 + page, 1);
        renew(range);
        self.stamp += 1;
        let word = std::ptr::with_exposed_provenance_mut::<u64>(range.start());
        // SAFETY: just mapped; the honest importer only reads.
        unsafe { word.write_volatile(self.stamp) };
        let [seen, ..] = self.honest.ask([0, page as u64, 0, 0]);
        assert_eq!(seen, self.stamp, "the honest importer sees something else");
    }

    fn run(&mut self, data: &[u8]) {
        let mut input = Input::new(data);
        let mut run = Run { world: self, segments: Vec::new(), peers: Vec::new() };
        for _ in 0..64 {
            if input.is_empty() {
                break;
            }
            run.step(&mut input);
        }
        for peer in 0..run.peers.len() {
            run.hear_out(peer);
        }
        drop(run);
        self.check_honest(data.len());
        // Objects stay while memory is in them, and go with the next segment that does.
        renew(open_pages());
        drop(Segment::new(open_pages(), 0o600));
        if self.descriptors > 0 {
            // The connections go when the service thread comes to it. What stays: two objects for each segment that lasts, and what
            // follows the memory in them.
            let lasting = self.lasting.len() * 2 * DESCRIPTORS_OF_AN_OBJECT + USERFAULTFDS;
            while descriptors() > self.descriptors + lasting {
                std::thread::yield_now();
            }
        }
    }
}

struct Run<'a> {
    world: &'a mut World,
    segments: Vec<(Segment, Range)>,
    peers: Vec<Peer>,
}

/// Something asked, and not answered yet.
enum Asked {
    Permit { request: u32 },
    Page { request: u32 },
    Counters { request: u32 },
}

struct Peer {
    wire: Wire,
    gone: bool,
    asked: Vec<Asked>,
    /// All requests for pages there ever were, and what they were for.
    attached: Vec<(u32, Range)>,
    grants: Vec<(u32, Range)>,
}

impl Run<'_> {
    fn all(&self) -> impl Iterator<Item = &(Segment, Range)> {
        self.world.lasting.iter().chain(&self.segments)
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let choice = input.below(16);
        if choice == 0 || self.peers.is_empty() {
            if self.peers.len() < MOST {
                let wire = Wire::to(self.world.lasting[0].0.id().to_raw()).expect("a connection");
                let (asked, attached, grants) = (Vec::new(), Vec::new(), Vec::new());
                self.peers.push(Peer { wire, gone: false, asked, attached, grants });
            }
            return;
        }
        let peer = input.below(self.peers.len());
        match choice {
            1 => drop(self.peers.swap_remove(peer)),
            2 => {
                let bytes = input.bytes(100);
                self.send(peer, bytes, &[]);
            }
            3 => {
                let (bytes, extra) = (input.bytes(80), descriptors_to_send(input));
                let extra: Vec<BorrowedFd<'_>> = extra.iter().map(|descriptor| descriptor.as_fd()).collect();
                self.send(peer, bytes, &extra);
            }
            4 => self.hear_out(peer),
            5 => self.change(input),
            6 => {
                let range = input.range(open_pages());
                if let Some(range) = range.intersection(open_pages())
                    && self.segments.len() < 4
                {
                    self.segments.push((Segment::new(range, 0o600).expect("a segment"), range));
                }
            }
            7 => {
                if !self.segments.is_empty() {
                    drop(self.segments.swap_remove(input.below(self.segments.len())));
                }
            }
            8 => self.world.check_honest(input.below(HONEST.1)),
            9..=11 => {
                // What an importer would do next.
                let grants = &self.peers[peer].grants;
                let message = if grants.is_empty() {
                    let all: Vec<u32> =
                        self.all().map(|(segment, _)| counter(segment.id().to_raw())).collect();
                    let segment = all[input.below(all.len())];
                    let access = if choice == 9 {
                        crate::protocol::Access::ReadOnly
                    } else {
                        crate::protocol::Access::ReadWrite
                    };
                    Message::Get { request: u32::from(input.byte()), segment, access }
                } else {
                    let (grant, range) = grants[input.below(grants.len())];
                    let addr = range.start() + input.below(range.len() / PAGE) * PAGE;
                    let (run, store) = (u32::from(input.byte()), choice == 10);
                    Message::Resolve {
                        request: u32::from(input.byte()),
                        grant,
                        addr,
                        attached: range,
                        run,
                        store,
                        hops: 0,
                    }
                };
                self.send(peer, &message.encode(), &[]);
            }
            _ => {
                let segments: Vec<u32> =
                    self.all().map(|(segment, _)| counter(segment.id().to_raw())).collect();
                let grants: Vec<u32> = self.peers[peer].grants.iter().map(|(grant, _)| *grant).collect();
                let message = input.message(&Known {
                    requests: &[1, 2, 3],
                    grants: &grants,
                    serials: &[1, 2, 3, 4],
                    segments: &segments,
                    system_v: &[],
                    around: open_pages(),
                });
                self.send(peer, &message.encode(), &[]);
            }
        }
    }

    /// What the exporter does to memory that its importers may have attached.
    fn change(&mut self, input: &mut Input<'_>) {
        let range = input.range(open_pages());
        let Some(range) = range.intersection(open_pages()) else { return };
        let at = std::ptr::with_exposed_provenance_mut(range.start());
        let kind = input.below(5);
        // SAFETY: nobody refers to the arena but by number.
        unsafe {
            match kind {
                0 => libc::munmap(at, range.len()),
                1 => libc::madvise(at, range.len(), libc::MADV_DONTNEED),
                2 => libc::mprotect(at, range.len(), libc::PROT_READ),
                3 => libc::mprotect(at, range.len(), libc::PROT_READ | libc::PROT_WRITE),
                _ => {
                    renew(range);
                    0
                }
            };
        }
    }

    fn send(&mut self, peer: usize, bytes: &[u8], extra: &[BorrowedFd<'_>]) {
        let peer = &mut self.peers[peer];
        // A queue that is full, or a connection that is no more.
        if peer.wire.send(bytes, extra).is_err() {
            return;
        }
        match Message::decode(bytes) {
            Some(Message::Get { request, .. }) => peer.asked.push(Asked::Permit { request }),
            Some(Message::Resolve { request, attached, .. }) => {
                peer.asked.push(Asked::Page { request });
                peer.attached.push((request, attached));
            }
            Some(Message::Survey { request }) => peer.asked.push(Asked::Counters { request }),
            _ => {}
        }
    }

    /// Hears all answers to what was asked. All are answered, unless the connection is ended.
    fn hear_out(&mut self, peer: usize) {
        let peer = &mut self.peers[peer];
        while !peer.asked.is_empty() && !peer.gone {
            match peer.wire.receive(PATIENCE) {
                Ok(None) => peer.gone = true,
                Ok(Some(parcel)) => {
                    let message = Message::decode(&parcel.bytes).expect("a message");
                    peer.hear(message, &parcel.descriptors);
                }
                Err(errno) => panic!("no answer: {errno}"),
            }
        }
    }
}

impl Peer {
    /// Takes what was asked off the list: something that has this number, since several may have it.
    fn page_asked(&mut self, number: u32) {
        let matches = |asked: &Asked| matches!(asked, Asked::Page { request } if *request == number);
        let at = self.asked.iter().position(matches).expect("an answer to what was asked");
        self.asked.swap_remove(at);
    }

    fn permit_asked(&mut self, number: u32) {
        let matches = |asked: &Asked| matches!(asked, Asked::Permit { request } if *request == number);
        let at = self.asked.iter().position(matches).expect("an answer to what was asked");
        self.asked.swap_remove(at);
    }

    /// The counters of this process; root and its own user may have them.
    fn counters_asked(&mut self, number: u32) {
        let matches = |asked: &Asked| matches!(asked, Asked::Counters { request } if *request == number);
        let at = self.asked.iter().position(matches).expect("an answer to what was asked");
        self.asked.swap_remove(at);
    }

    fn hear(&mut self, message: Message, extra: &[OwnedFd]) {
        match message {
            Message::Granted { request, grant, range, .. } => {
                self.permit_asked(request);
                assert_eq!(extra.len(), 1, "a permit comes with its object");
                nothing_but(&extra[0], range);
                self.grants.push((grant, range));
            }
            Message::Refused { request, .. } => self.permit_asked(request),
            Message::Resolved { request, range, source, .. } => {
                self.page_asked(request);
                let mut fits = self.attached.iter().filter(|(number, _)| *number == request);
                assert!(fits.any(|(_, attached)| attached.covers(range)), "{range} was not attached");
                assert!(matches!(source, Source::Object { .. }), "{source:?} for private memory");
                if let Some(object) = extra.first() {
                    nothing_but(object, open_pages());
                }
            }
            Message::Hole { request } | Message::ReadOnly { request } => self.page_asked(request),
            Message::Surveyed { request } => {
                self.counters_asked(request);
                assert_eq!(extra.len(), 1, "counters are in a file");
                // SAFETY: takes numbers only.
                let flags = unsafe { libc::fcntl(extra[0].as_raw_fd(), libc::F_GETFL) };
                assert_eq!(flags & libc::O_ACCMODE, libc::O_RDONLY, "counters are to be read");
            }
            Message::Status => assert_eq!(extra.len(), 1, "a status word is in a file"),
            Message::Stale { .. }
            | Message::Removed { .. }
            | Message::Closed { .. }
            | Message::Adopted { .. } => {}
            other => panic!("an exporter does not say {other:?}"),
        }
    }
}

/// An object has no pages outside a range.
fn nothing_but(object: &OwnedFd, range: Range) {
    let next = |from: usize| {
        // SAFETY: takes numbers only.
        unsafe { libc::lseek(object.as_raw_fd(), from as i64, libc::SEEK_DATA) }
    };
    let first = next(0);
    assert!(first < 0 || first as usize >= range.start(), "{first:#x} is in the object of {range}");
    let behind = next(range.end());
    assert!(behind < 0, "{behind:#x} is in the object of {range}");
}

fn descriptors_to_send(input: &mut Input<'_>) -> Vec<OwnedFd> {
    let count = [1, 1, 2, 5, 253][input.below(5)];
    let file = std::fs::File::open("/dev/null").expect("/dev/null");
    (0..count).map(|_| file.try_clone().expect("a descriptor").into()).collect()
}

/// Importers send what they like, the exporter changes its memory, and an honest importer is served meanwhile.
pub fn exporter(data: &[u8]) {
    static WORLD: OnceLock<Mutex<World>> = OnceLock::new();
    let world = WORLD.get_or_init(|| Mutex::new(World::new()));
    keep(data);
    world.lock().expect("no panics").run(data);
}
