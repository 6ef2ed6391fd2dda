//! What threads do. Each piece of work checks itself and reports counts; a test looks at them.

use crate::{
    api, block, churn,
    command::{Arguments, Failure},
    cuts, memory, mutex, revoke, system,
    threads::{self, Control, Report, Work},
    trap,
};
use rmap_tests::{PAGE, Random, pattern::Seen};
use std::{hint::black_box, ptr, time::Instant};

/// The work that a command names.
pub(crate) fn work(arguments: &mut Arguments<'_>) -> Result<Work, Failure> {
    Ok(match arguments.word()? {
        "inc" => {
            increment(arguments.number()?, arguments.number()?, arguments.number()?, arguments.number()?)
        }
        "add" => add(arguments.number()?),
        "locked" => mutex::work(arguments.number()?),
        "read" => transfer(arguments, read_into)?,
        "pread" => transfer(arguments, pread_into)?,
        "write" => transfer(arguments, write_from)?,
        "calls" => calls(arguments.number()?),
        "recurse" => Box::new(recurse),
        "heap" => heap(arguments.number()?),
        "naps" => Box::new(naps),
        "threads" => Box::new(threads_come_and_go),
        "children" => Box::new(children),
        "forks" => forks(arguments.number()?, arguments.number()?),
        "cuts" => {
            cuts::work(arguments.number()?, arguments.number()?, arguments.number()?, arguments.number()?)
        }
        "scan" => scan(arguments.number()?, arguments.number()?, arguments.number()?),
        "churn" => churn::work(arguments.number()?, arguments.number()?, arguments.number()?),
        "block" => block::work(arguments)?,
        "revoke" => revoke::look(arguments.number()?),
        "api" => api::work(arguments)?,
        other => return Err(Failure::Usage(format!("no work {other}"))),
    })
}

/// How system calls ended.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) calls: u64,
    pub(crate) eintr: u64,
    pub(crate) efault: u64,
    pub(crate) other: u64,
    pub(crate) errno: i32,
    pub(crate) wrong: u64,
}

impl Tally {
    /// Notes the outcome of a call. What ends a thread that is told to stop does not count.
    pub(crate) fn note(&mut self, control: &Control, outcome: Result<usize, i32>) -> Option<usize> {
        self.calls += 1;
        control.step();
        let errno = match outcome {
            Ok(value) => return Some(value),
            Err(_) if !control.on() => return None,
            Err(errno) => errno,
        };
        match errno {
            libc::EINTR => self.eintr += 1,
            libc::EFAULT => self.efault += 1,
            _ => (self.other, self.errno) = (self.other + 1, errno),
        }
        None
    }

    pub(crate) fn report(&self) -> Report {
        let Self { calls, eintr, efault, other, errno, wrong } = self;
        format!("calls={calls} eintr={eintr} efault={efault} other={other} errno={errno} wrong={wrong}")
    }
}

/// `inc ADDRESS COUNT STRIDE SLOT`: plain increments of word SLOT, which nobody else writes, of every so many
/// bytes.
fn increment(address: usize, pages: usize, stride: usize, slot: usize) -> Work {
    Box::new(move |control| {
        let word = |page: usize| ptr::with_exposed_provenance_mut::<u64>(address + page * stride + slot * 8);
        // SAFETY: the test gives memory for this; only this thread uses the slot.
        let load = |page| unsafe { word(page).read_volatile() };
        let mut expected: Vec<u64> = (0..pages).map(load).collect();
        let mut steps = 0_u64;
        while control.on() {
            for (page, count) in expected.iter_mut().enumerate() {
                // SAFETY: as in `load`.
                unsafe { word(page).write_volatile(load(page) + 1) };
                *count += 1;
            }
            steps += 1;
            control.step();
        }
        let lost = expected.iter().enumerate().filter(|(page, count)| load(*page) != **count).count();
        format!("steps={steps} lost={lost} ticks={}", threads::ticks())
    })
}

/// `add ADDRESS`: atomic increments of a word that others add to as well.
fn add(address: usize) -> Work {
    Box::new(move |control| {
        let (mut done, mut faults) = (0_u64, 0_u64);
        while control.on() {
            match trap::add(address, 1) {
                Ok(_) => done += 1,
                Err(_) => faults += 1,
            }
            control.step();
        }
        format!("done={done} faults={faults}")
    })
}

/// A range that only this thread uses, and bytes to compare it with.
struct Transfer {
    address: usize,
    len: usize,
    random: Random,
    bytes: Vec<u8>,
    back: Vec<u8>,
}

const LONGEST: usize = 3 * PAGE;

impl Transfer {
    /// New bytes and a new place for them.
    fn draw(&mut self) -> usize {
        let len = 1 + self.random.below(LONGEST.min(self.len));
        let first = self.random.number() as u8;
        self.bytes = (0..len).map(|index| first.wrapping_add(index as u8)).collect();
        self.back = vec![0; len];
        self.address + self.random.below(self.len - len + 1)
    }
}

/// `read|pread|write ADDRESS LEN`: system calls with a buffer in a range.
fn transfer(
    arguments: &mut Arguments<'_>,
    act: fn(&mut Transfer, &Control, &mut Tally),
) -> Result<Work, Failure> {
    let (address, len) = (arguments.number()?, arguments.number()?);
    let random = Random::new(address as u64);
    let mut state = Transfer { address, len, random, bytes: Vec::new(), back: Vec::new() };
    Ok(Box::new(move |control| {
        let mut tally = Tally::default();
        while control.on() {
            act(&mut state, control, &mut tally);
        }
        tally.report()
    }))
}

/// The two ends of a pipe.
pub(crate) struct Pipe {
    pub(crate) reader: usize,
    pub(crate) writer: usize,
}

impl Pipe {
    pub(crate) fn new() -> Self {
        let mut ends = [0_i32; 2];
        // SAFETY: room for two descriptors.
        let result = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) };
        assert_eq!(result, 0, "a pipe");
        let [reader, writer] = ends.map(|end| end.unsigned_abs() as usize);
        Self { reader, writer }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        close(self.reader);
        close(self.writer);
    }
}

pub(crate) fn close(descriptor: usize) {
    let _ = system::call(libc::SYS_close, [descriptor, 0, 0, 0, 0, 0]);
}

fn read(descriptor: usize, address: usize, len: usize) -> Result<usize, i32> {
    system::call(libc::SYS_read, [descriptor, address, len, 0, 0, 0])
}

fn write(descriptor: usize, address: usize, len: usize) -> Result<usize, i32> {
    system::call(libc::SYS_write, [descriptor, address, len, 0, 0, 0])
}

fn same(address: usize, bytes: &[u8], back: &mut [u8]) -> bool {
    trap::copy(back.as_mut_ptr() as usize, address, bytes.len()).is_ok() && bytes == back
}

fn read_into(state: &mut Transfer, control: &Control, tally: &mut Tally) {
    let at = state.draw();
    let pipe = Pipe::new();
    let len = state.bytes.len();
    if tally.note(control, write(pipe.writer, state.bytes.as_ptr() as usize, len)) == Some(len)
        && let Some(done) = tally.note(control, read(pipe.reader, at, len))
        && (done != len || !same(at, &state.bytes, &mut state.back))
    {
        tally.wrong += 1;
    }
}

fn write_from(state: &mut Transfer, control: &Control, tally: &mut Tally) {
    let at = state.draw();
    let pipe = Pipe::new();
    let len = state.bytes.len();
    if trap::copy(at, state.bytes.as_ptr() as usize, len).is_err() {
        tally.wrong += 1;
    }
    if tally.note(control, write(pipe.writer, at, len)) == Some(len)
        && let Some(done) = tally.note(control, read(pipe.reader, state.back.as_mut_ptr() as usize, len))
        && (done != len || state.back != state.bytes)
    {
        tally.wrong += 1;
    }
}

fn pread_into(state: &mut Transfer, control: &Control, tally: &mut Tally) {
    let at = state.draw();
    let len = state.bytes.len();
    let Ok(file) = system::call(libc::SYS_memfd_create, [c"pread".as_ptr() as usize, 1, 0, 0, 0, 0]) else {
        tally.other += 1;
        return;
    };
    if tally.note(control, write(file, state.bytes.as_ptr() as usize, len)) == Some(len)
        && let Some(done) = tally.note(control, system::call(libc::SYS_pread64, [file, at, len, 0, 0, 0]))
        && (done != len || !same(at, &state.bytes, &mut state.back))
    {
        tally.wrong += 1;
    }
    close(file);
}

/// `calls ADDRESS`: system calls that write their results into a page.
fn calls(address: usize) -> Work {
    Box::new(move |control| {
        let mut tally = Tally::default();
        while control.on() {
            let mut call = |number, arguments| tally.note(control, system::call(number, arguments));
            call(libc::SYS_uname, [address, 0, 0, 0, 0, 0]);
            call(libc::SYS_fstat, [0, address + 512, 0, 0, 0, 0]);
            call(libc::SYS_clock_gettime, [libc::CLOCK_MONOTONIC as usize, address + 1024, 0, 0, 0, 0]);
            call(libc::SYS_getrandom, [address + 1100, 100, 0, 0, 0, 0]);
            call(libc::SYS_rt_sigprocmask, [0, 0, address + 1400, 8, 0, 0]);
            call(libc::SYS_sched_getaffinity, [0, 128, address + 2048, 0, 0, 0]);
            call(libc::SYS_getrusage, [0, address + 3000, 0, 0, 0, 0]);
        }
        tally.report()
    })
}

fn descend(depth: usize, seed: u64) -> u64 {
    let mut frame = [0_u64; 96];
    for (index, word) in frame.iter_mut().enumerate() {
        *word = seed.wrapping_mul(31).wrapping_add(index as u64);
    }
    let below = if depth == 0 { 0 } else { descend(depth - 1, black_box(&frame)[depth % 96]) };
    let intact = black_box(&frame)
        .iter()
        .enumerate()
        .all(|(index, word)| *word == seed.wrapping_mul(31).wrapping_add(index as u64));
    below + u64::from(!intact)
}

/// `recurse`: deep calls whose frames must stay intact.
fn recurse(control: &Control) -> Report {
    let (mut steps, mut wrong) = (0_u64, 0_u64);
    while control.on() {
        wrong += descend(60, steps);
        steps += 1;
        control.step();
    }
    format!("steps={steps} wrong={wrong} ticks={}", threads::ticks())
}

/// `heap SEED`: malloc, realloc and free, with contents that must stay.
fn heap(seed: u64) -> Work {
    struct Block {
        address: *mut u8,
        len: usize,
        mark: u8,
    }
    // SAFETY (of all accesses): blocks come from malloc and realloc and are not used after free.
    fn intact(block: &Block) -> bool {
        // SAFETY: see above.
        let bytes = unsafe { std::slice::from_raw_parts(block.address, block.len) };
        [0, block.len / 2, block.len - 1].iter().all(|at| bytes[*at] == block.mark)
    }
    fn mark(block: &Block) {
        // SAFETY: see above.
        unsafe { block.address.write_bytes(block.mark, block.len) };
    }
    Box::new(move |control| {
        let mut random = Random::new(seed);
        let mut blocks: Vec<Block> = Vec::new();
        let (mut steps, mut wrong) = (0_u64, 0_u64);
        while control.on() {
            let len = *random.pick(&[40, 1000, 5000, 70_000, 200_000, 1 << 20]) + random.below(999);
            if blocks.len() < 20 {
                // SAFETY: takes a number only.
                let address = unsafe { libc::malloc(len) }.cast::<u8>();
                blocks.push(Block { address, len, mark: random.number() as u8 });
                mark(&blocks[blocks.len() - 1]);
            } else {
                let at = random.below(blocks.len());
                let mut block = blocks.swap_remove(at);
                wrong += u64::from(!intact(&block));
                if random.below(3) == 0 {
                    let keep = block.len.min(len);
                    // SAFETY: a block from malloc.
                    block.address = unsafe { libc::realloc(block.address.cast(), len) }.cast();
                    block.len = keep;
                    // The middle and the end have moved, the bytes are the same.
                    wrong += u64::from(!intact(&block));
                    block.len = len;
                    mark(&block);
                    blocks.push(block);
                } else {
                    // SAFETY: a block from malloc.
                    unsafe { libc::free(block.address.cast()) };
                }
            }
            steps += 1;
            control.step();
        }
        for block in blocks {
            wrong += u64::from(!intact(&block));
            // SAFETY: a block from malloc.
            unsafe { libc::free(block.address.cast()) };
        }
        format!("steps={steps} wrong={wrong}")
    })
}

/// `naps`: short sleeps that must not be cut short.
fn naps(control: &Control) -> Report {
    let mut tally = Tally::default();
    let nap = libc::timespec { tv_sec: 0, tv_nsec: 2_000_000 };
    while control.on() {
        let start = Instant::now();
        let outcome = system::call(libc::SYS_nanosleep, [&raw const nap as usize, 0, 0, 0, 0, 0]);
        if tally.note(control, outcome).is_some() && start.elapsed().as_nanos() < 2_000_000 {
            tally.wrong += 1;
        }
    }
    tally.report()
}

/// `threads`: starts threads and waits for them.
fn threads_come_and_go(control: &Control) -> Report {
    let (mut steps, mut wrong) = (0_u64, 0_u64);
    while control.on() {
        let threads: Vec<_> = (0..4)
            .map(|number| threads::spawn(None, None, Box::new(move |_| descend(20, number).to_string())))
            .collect();
        wrong += threads.into_iter().map(threads::Thread::join).filter(|report| report != "0").count() as u64;
        steps += 1;
        control.step();
    }
    format!("steps={steps} wrong={wrong}")
}

/// `children`: runs programs and waits for them.
fn children(control: &Control) -> Report {
    let (mut steps, mut wrong) = (0_u64, 0_u64);
    while control.on() {
        let mut program = std::process::Command::new("/bin/true");
        let program = program.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        wrong += u64::from(!program.status().is_ok_and(|status| status.success()));
        steps += 1;
        control.step();
    }
    format!("steps={steps} wrong={wrong}")
}

/// `forks ADDRESS PAGES`: children must have what was there at the fork, and what they do must not come back.
fn forks(address: usize, pages: usize) -> Work {
    let shows = move |stamp: u64| {
        let wrong = |page: &usize| memory::see(address + page * PAGE) != Seen::Stamp(stamp);
        (0..pages).find(wrong)
    };
    let write =
        move |stamp: u64| (0..pages).all(|page| memory::stamp_page(address + page * PAGE, stamp).is_ok());
    Box::new(move |control| {
        let (mut steps, mut wrong) = (0_u64, 0_u64);
        while control.on() {
            steps += 1;
            let before = write(steps);
            let child = Child::fork(|| match shows(steps) {
                Some(page) => 100 + page as i32,
                None if !write(steps + 1_000_000) => 1,
                None => shows(steps + 1_000_000).map_or(0, |_| 2),
            });
            let status = child.and_then(Child::wait);
            let after = shows(steps);
            if !before || status != Ok(0) || after.is_some() {
                wrong += 1;
                let found = after.map(|page| memory::see(address + page * PAGE));
                eprintln!(
                    "fork {steps}: written {before}, child {status:?}, then wrong {after:?}: {found:?}"
                );
            }
            control.step();
        }
        format!("steps={steps} wrong={wrong}")
    })
}

/// A forked child.
pub(crate) struct Child(libc::pid_t);

impl Child {
    /// Runs something in a child; what it gives is the child's status.
    pub(crate) fn fork(act: impl FnOnce() -> i32) -> Result<Self, i32> {
        // SAFETY: the child uses what it has and ends without clean-up.
        Self::run(unsafe { libc::fork() }, act)
    }

    /// The same in a child that is made by the system call alone, without the C library's handlers.
    pub(crate) fn fork_raw(act: impl FnOnce() -> i32) -> Result<Self, i32> {
        // SAFETY: as above; what it runs uses no locks.
        Self::run(unsafe { libc::syscall(libc::SYS_fork) } as libc::pid_t, act)
    }

    fn run(child: libc::pid_t, act: impl FnOnce() -> i32) -> Result<Self, i32> {
        if child == 0 {
            let status = act();
            // SAFETY: ends the child.
            unsafe { libc::_exit(status) };
        }
        if child < 0 { Err(system::errno()) } else { Ok(Self(child)) }
    }

    /// Its status; negative if a signal has ended it.
    pub(crate) fn wait(self) -> Result<i32, i32> {
        loop {
            let mut status = 0;
            // SAFETY: a valid place for the status.
            if unsafe { libc::waitpid(self.0, &raw mut status, 0) } == self.0 {
                return Ok(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -status });
            }
        }
    }
}

/// `scan ADDRESS PAGES SEED`: looks at random pages all the time.
fn scan(address: usize, pages: usize, seed: u64) -> Work {
    Box::new(move |control| {
        let mut random = Random::new(seed);
        let (mut stamps, mut holes, mut others, mut faults) = (0_u64, 0_u64, 0_u64, 0_u64);
        while control.on() {
            match memory::see(address + random.below(pages) * PAGE) {
                Seen::Stamp(_) => stamps += 1,
                Seen::Hole => holes += 1,
                Seen::Other => others += 1,
                Seen::Fault => faults += 1,
            }
            control.step();
        }
        format!("stamps={stamps} holes={holes} others={others} faults={faults}")
    })
}
