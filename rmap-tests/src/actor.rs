//! The test's end of an actor.

use crate::{
    Log, PAGE, actor_program, library,
    pattern::{Page, Seen},
    stage::{Shared, Stage, describe, patience},
};
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        uio::{RemoteIoVec, process_vm_readv},
        wait::WaitStatus,
    },
    unistd::Pid,
};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    io::{BufRead as _, BufReader, IoSliceMut, Write as _},
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener, UnixStream},
        unix::process::CommandExt as _,
    },
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// How long one command may take.
const COMMAND: Duration = Duration::from_secs(30);

/// How many commands a failure shows.
const REMEMBERED: usize = 12;

/// How an actor is started.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Another user and group. Only root can do that.
    pub user: Option<(u32, u32)>,
    /// Environment variables.
    pub env: Vec<(&'static str, String)>,
    /// Where its standard error goes.
    pub log: Option<Log>,
    /// It leads a process group of its own, as a job of a batch system does.
    pub leads: bool,
}

impl Setup {
    /// With one variable more in its environment than others.
    pub fn with_env(name: &'static str, value: &str) -> Self {
        Self { env: vec![(name, value.to_owned())], ..Self::default() }
    }

    /// And this one, too.
    #[must_use]
    pub fn and_env(mut self, name: &'static str, value: &str) -> Self {
        self.env.push((name, value.to_owned()));
        self
    }

    /// In a process group of its own.
    #[must_use]
    pub fn leading(mut self) -> Self {
        self.leads = true;
        self
    }

    /// With what the library says at this level.
    pub fn logging(level: &str, log: &Log) -> Self {
        Self { log: Some(log.clone()), ..Self::with_env("RMAP_LOG", level) }
    }
}

/// A signal that an access got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its number.
    pub signal: i32,
    /// Its `si_code`.
    pub code: i32,
    /// Its `si_addr`.
    pub address: usize,
}

impl Fault {
    /// Whether this is what a hole in an attachment gives at this address.
    pub fn is_hole_at(&self, address: usize) -> bool {
        // Only the kernel itself can say BUS_ADRERR; a library's own thread can queue the signal.
        let code = [libc::BUS_ADRERR, libc::SI_QUEUE].contains(&self.code);
        self.signal == libc::SIGBUS && code && self.address / PAGE == address / PAGE
    }
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It worked, and these are its words.
    Ok(String),
    /// It failed with this errno.
    Errno(i32),
    /// The access got a signal.
    Fault(Fault),
}

/// What a thread of an actor counted.
pub type Report = BTreeMap<String, u64>;

/// A thread that counts errors (`*errno_*`), wrong bytes and signals has counted none.
///
/// # Panics
///
/// If it has.
#[track_caller]
pub fn expect_clean(report: &Report) {
    let counts_faults = |key: &str| key.contains("errno_") || ["wrong", "faults"].contains(&key);
    let bad: Vec<_> = report.iter().filter(|(key, count)| **count != 0 && counts_faults(key)).collect();
    assert!(bad.is_empty(), "{bad:?} in {report:?}");
}

/// A process that does what it is told.
#[derive(Debug)]
pub struct Actor {
    pid: i32,
    stream: BufReader<UnixStream>,
    stage: Arc<Shared>,
    recent: VecDeque<String>,
    /// What it has been told without waiting for the answer.
    owed: usize,
    /// Where the next mapping goes.
    free: usize,
}

/// Mappings of the tests lie where the kernel puts none, so that what a test unmaps stays unmapped.
const FIRST_FREE: usize = 0x3000_0000_0000;

static NUMBER: AtomicUsize = AtomicUsize::new(0);

impl Stage {
    /// Starts an actor.
    pub fn actor(&self) -> Actor {
        self.actor_with(&Setup::default())
    }

    /// Starts several actors.
    pub fn actors(&self, count: usize) -> Vec<Actor> {
        (0..count).map(|_| self.actor()).collect()
    }

    /// An exporter, an importer that has read so many pages of it, and the id of the segment.
    pub fn pair(&self, pages: usize) -> (Actor, Actor, i64) {
        let (mut exporter, mut importer) = (self.actor(), self.actor());
        let address = exporter.anon(pages * PAGE);
        exporter.fill(address, pages, 20);
        let segid = exporter.make_all();
        let here = importer.get_attach(segid, address, pages * PAGE);
        importer.check(here, pages, 20);
        (exporter, importer, segid)
    }

    /// Starts an actor in a given way.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn actor_with(&self, setup: &Setup) -> Actor {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let board = OwnedFd::from(self.board().0.try_clone().expect("another descriptor"));
        let mut command = Command::new(actor_program());
        command
            .env("RMAP_TEST_LIB", library())
            .stdin(Stdio::from(board))
            .stdout(Stdio::from(OwnedFd::from(theirs)));
        for (name, value) in &setup.env {
            command.env(name, value);
        }
        if let Some(log) = &setup.log {
            command.stderr(log.stdio());
        }
        if let Some((user, group)) = setup.user {
            command.uid(user).gid(group);
        }
        if setup.leads {
            command.process_group(0);
        }
        #[expect(clippy::zombie_processes, reason = "the stage waits for it by its id")]
        let child =
            command.spawn().unwrap_or_else(|why| panic!("cannot run {}: {why}", actor_program().display()));
        let pid = i32::try_from(child.id()).expect("a pid");
        self.shared.add(pid);
        let mut actor = Actor::new(pid, ours, Arc::clone(&self.shared), FIRST_FREE);
        actor.ok("hello");
        actor
    }
}

impl Actor {
    fn new(pid: i32, stream: UnixStream, stage: Arc<Shared>, free: usize) -> Self {
        Self { pid, stream: BufReader::new(stream), stage, recent: VecDeque::new(), owed: 0, free }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    // ---- commands ----

    /// Tells it something without waiting for the answer.
    pub fn tell(&mut self, command: &str) {
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back(command.to_owned());
        self.owed += 1;
        // A process that is gone is noticed when the answer is read.
        let _ = self.stream.get_ref().write_all(format!("{command}\n").as_bytes());
    }

    /// Waits for an answer, or gives `None` if the process is gone.
    ///
    /// # Panics
    ///
    /// If the answer does not come in time, or says that the command was not understood.
    pub fn answer_if_alive(&mut self) -> Option<Reply> {
        let now = Instant::now();
        let until = self.stage.deadline.min(now + COMMAND * patience());
        let left = until.saturating_duration_since(now).max(Duration::from_millis(1));
        self.stream.get_ref().set_read_timeout(Some(left)).expect("a time limit on a socket");
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => {
                self.owed -= 1;
                Some(self.parse(line.trim_end()))
            }
            Err(why) if why.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(why) => panic!("no answer from {}: {why}\n{}", self.describe(), self.stage.describe()),
        }
    }

    fn parse(&self, line: &str) -> Reply {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        let mut numbers = rest.split(' ').map(|word| word.parse::<i64>());
        let mut number = || numbers.next().and_then(Result::ok).expect("a number in an answer");
        match kind {
            "ok" => Reply::Ok(rest.to_owned()),
            "errno" => Reply::Errno(i32::try_from(number()).expect("an errno")),
            "fault" => {
                let signal = i32::try_from(number()).expect("a signal");
                let code = i32::try_from(number()).expect("a code");
                Reply::Fault(Fault { signal, code, address: number().cast_unsigned() as usize })
            }
            _ => panic!("{}: {line}", self.describe()),
        }
    }

    /// Waits for an answer.
    ///
    /// # Panics
    ///
    /// If the process is gone.
    pub fn answer(&mut self) -> Reply {
        self.answer_if_alive().unwrap_or_else(|| {
            let status = self.stage.wait(self.pid);
            panic!("{} is gone: {status:?}", self.describe())
        })
    }

    /// Tells it something and waits for the answer.
    pub fn ask(&mut self, command: &str) -> Reply {
        assert_eq!(self.owed, 0, "an answer is owed");
        self.tell(command);
        self.answer()
    }

    /// As [`Actor::ask`], or gives `None` if the process is gone.
    pub fn ask_if_alive(&mut self, command: &str) -> Option<Reply> {
        self.tell(command);
        self.answer_if_alive()
    }

    /// A command that must work.
    ///
    /// # Panics
    ///
    /// If it does not.
    pub fn ok(&mut self, command: &str) -> String {
        match self.ask(command) {
            Reply::Ok(words) => words,
            other => panic!("{other:?} to `{command}` by {}", self.describe()),
        }
    }

    /// A command that must work and gives a number.
    pub fn number(&mut self, command: &str) -> usize {
        self.ok(command).parse().expect("a number")
    }

    fn describe(&self) -> String {
        let recent: Vec<_> = self.recent.iter().map(String::as_str).collect();
        format!("actor {} after\n    {}\n", self.pid, recent.join("\n    "))
    }

    /// What its threads are doing.
    pub fn describe_threads(&self) -> String {
        describe(self.pid)
    }

    // ---- system calls ----

    /// A system call.
    ///
    /// # Errors
    ///
    /// Its errno.
    pub fn sys(&mut self, number: i64, arguments: &[usize]) -> Result<usize, i32> {
        let mut command = format!("sys {number}");
        for argument in arguments {
            let _ = write!(command, " {argument:#x}");
        }
        match self.ask(&command) {
            Reply::Ok(value) => Ok(value.parse().expect("a number")),
            Reply::Errno(errno) => Err(errno),
            Reply::Fault(fault) => panic!("{fault:?} in a system call"),
        }
    }

    /// `mmap` of private anonymous memory, readable and writable, apart from all else.
    pub fn anon(&mut self, len: usize) -> usize {
        self.mmap(0, len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    }

    /// Private anonymous memory at an address, in place of what is there.
    pub fn anon_at(&mut self, address: usize, len: usize) {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        self.mmap(address, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
    }

    /// `mmap`, which must work. Address 0 stands for a place apart from all else.
    pub fn mmap(
        &mut self,
        address: usize,
        len: usize,
        prot: i32,
        flags: i32,
        fd: i32,
        offset: usize,
    ) -> usize {
        let (address, flags) = match address {
            0 => (self.place(len), flags | libc::MAP_FIXED),
            address => (address, flags),
        };
        let words = [prot, flags, fd].map(|word| i64::from(word).cast_unsigned() as usize);
        self.sys(libc::SYS_mmap, &[address, len, words[0], words[1], words[2], offset]).expect("mmap")
    }

    /// Addresses where nothing is and nothing comes by itself.
    pub fn place(&mut self, len: usize) -> usize {
        const APART: usize = 1 << 20;
        let address = self.free;
        self.free = (address + len).next_multiple_of(APART) + APART;
        address
    }

    /// `munmap`, which must work.
    pub fn munmap(&mut self, address: usize, len: usize) {
        self.sys(libc::SYS_munmap, &[address, len]).expect("munmap");
    }

    /// `mprotect`, which must work.
    pub fn mprotect(&mut self, address: usize, len: usize, prot: i32) {
        self.sys(libc::SYS_mprotect, &[address, len, prot.cast_unsigned() as usize]).expect("mprotect");
    }

    /// `madvise`, which must work.
    pub fn madvise(&mut self, address: usize, len: usize, advice: i32) {
        self.sys(libc::SYS_madvise, &[address, len, advice.cast_unsigned() as usize]).expect("madvise");
    }

    /// `mremap`.
    ///
    /// # Errors
    ///
    /// Its errno.
    pub fn mremap(
        &mut self,
        old: usize,
        len: usize,
        new_len: usize,
        flags: i32,
        new: usize,
    ) -> Result<usize, i32> {
        self.sys(libc::SYS_mremap, &[old, len, new_len, flags.cast_unsigned() as usize, new])
    }

    /// A memory file of this length.
    pub fn memfd(&mut self, len: usize) -> i32 {
        let name = self.text("rmap-tests");
        let fd = self.sys(libc::SYS_memfd_create, &[name, 0]).expect("memfd_create");
        self.sys(libc::SYS_ftruncate, &[fd, len]).expect("ftruncate");
        i32::try_from(fd).expect("a descriptor")
    }

    /// Puts a text into the actor's scratch memory and gives its address.
    pub fn text(&mut self, text: &str) -> usize {
        let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.number(&format!("text {hex}00"))
    }

    /// Where it has the board.
    pub fn board(&mut self) -> usize {
        self.number("board")
    }

    // ---- memory ----

    /// Loads a word.
    pub fn load(&mut self, address: usize) -> Result<u64, Fault> {
        match self.ask(&format!("load {address:#x}")) {
            Reply::Ok(value) => Ok(value.parse().expect("a number")),
            Reply::Fault(fault) => Err(fault),
            Reply::Errno(errno) => panic!("errno {errno} from a load"),
        }
    }

    /// Stores a word.
    pub fn store(&mut self, address: usize, value: u64) -> Result<(), Fault> {
        match self.ask(&format!("store {address:#x} {value}")) {
            Reply::Ok(_) => Ok(()),
            Reply::Fault(fault) => Err(fault),
            Reply::Errno(errno) => panic!("errno {errno} from a store"),
        }
    }

    /// Fills pages: page `i` gets stamp `stamp + i`.
    pub fn fill(&mut self, address: usize, pages: usize, stamp: u64) {
        self.ok(&format!("fill {address:#x} {pages} {stamp} 1"));
    }

    /// Fills pages with one stamp.
    pub fn fill_same(&mut self, address: usize, pages: usize, stamp: u64) {
        self.ok(&format!("fill {address:#x} {pages} {stamp} 0"));
    }

    /// Maps pages at an address, each of which has its own address as its first word.
    pub fn label(&mut self, address: usize, pages: usize) {
        self.anon_at(address, pages * PAGE);
        for page in 0..pages {
            let address = address + page * PAGE;
            self.store(address, address as u64).expect("own memory");
        }
    }

    /// Whether the pages carry the stamps of [`Actor::fill`]; if not, the first that does not.
    pub fn check(&mut self, address: usize, pages: usize, stamp: u64) {
        let wrong = self.ok(&format!("check {address:#x} {pages} {stamp} 1"));
        assert_eq!(wrong, "", "wrong page, found, at {address:#x} by {}", self.describe());
    }

    /// What the pages show.
    pub fn look(&mut self, address: usize, pages: usize) -> Vec<Seen> {
        let words = self.ok(&format!("look {address:#x} {pages}"));
        words.split(' ').map(|word| Seen::parse(word).expect("a page")).collect()
    }

    /// Checks that pages are no attachment any more, of memory that has the stamps of [`Actor::fill`]. What the kernel
    /// has put there since is another matter.
    #[track_caller]
    pub fn expect_gone(&mut self, address: usize, pages: usize, stamp: u64) {
        for (page, seen) in self.look(address, pages).into_iter().enumerate() {
            let attached = seen == Seen::Hole || seen == Seen::Stamp(stamp + page as u64);
            assert!(!attached, "page {page} at {address:#x} still shows {seen:?}");
        }
    }

    /// What `process_vm_readv` finds in the pages of the actor. `None` is a page that cannot be read.
    pub fn oracle(&self, address: usize, pages: usize) -> Vec<Option<Seen>> {
        (0..pages).map(|index| self.page(address + index * PAGE).map(|page| Seen::of(&page))).collect()
    }

    /// A page of the actor as `process_vm_readv` reads it.
    pub fn page(&self, address: usize) -> Option<Box<Page>> {
        let mut page = Box::new([0; PAGE]);
        let remote = [RemoteIoVec { base: address, len: PAGE }];
        match process_vm_readv(Pid::from_raw(self.pid), &mut [IoSliceMut::new(&mut page[..])], &remote) {
            Ok(PAGE) => Some(page),
            Ok(_) | Err(Errno::EFAULT | Errno::ESRCH) => None,
            Err(why) => panic!("process_vm_readv of {}: {why}", self.pid),
        }
    }

    // ---- the library ----

    /// A call of the library: its result, or the errno of -1.
    ///
    /// # Panics
    ///
    /// If a call that worked touched errno.
    pub fn xpmem(&mut self, call: &str) -> Result<i64, i32> {
        let command = format!("xpmem {call}");
        match self.ask(&command) {
            Reply::Ok(words) => {
                let (value, errno) = words.split_once(' ').expect("result and errno");
                let value = value.parse().expect("a number");
                let errno = errno.parse().expect("an errno");
                if value == -1 {
                    return Err(errno);
                }
                assert_eq!(errno, 0, "{call} worked, gave {value:#x} and touched errno");
                Ok(value)
            }
            other => panic!("{other:?} to {command}"),
        }
    }

    /// `xpmem_make` with mode bits.
    ///
    /// # Errors
    ///
    /// Its errno.
    pub fn try_make(&mut self, address: usize, len: usize, mode: u32) -> Result<i64, i32> {
        self.xpmem(&format!("make {address:#x} {len:#x} {} {mode:#o}", crate::PERMIT_MODE))
    }

    /// `xpmem_make` with mode 0600, which must work.
    pub fn make(&mut self, address: usize, len: usize) -> i64 {
        self.try_make(address, len, 0o600).expect("xpmem_make")
    }

    /// `xpmem_make` of the whole address space, as the runtimes do it.
    pub fn make_all(&mut self) -> i64 {
        self.make(0, crate::MAXADDR)
    }

    /// `xpmem_get`.
    ///
    /// # Errors
    ///
    /// Its errno.
    pub fn try_get(&mut self, segid: i64, flags: i32) -> Result<i64, i32> {
        self.xpmem(&format!("get {segid} {flags} {} 0", crate::PERMIT_MODE))
    }

    /// `xpmem_get` for reading and writing, which must work.
    pub fn get(&mut self, segid: i64) -> i64 {
        self.try_get(segid, crate::RDWR).expect("xpmem_get")
    }

    /// `xpmem_attach` at an address of the library's choice.
    ///
    /// # Errors
    ///
    /// Its errno.
    pub fn try_attach(&mut self, apid: i64, offset: usize, len: usize) -> Result<usize, i32> {
        self.try_attach_at(apid, offset, len, 0)
    }

    /// `xpmem_attach`.
    ///
    /// # Errors
    ///
    /// Its errno.
    pub fn try_attach_at(&mut self, apid: i64, offset: usize, len: usize, at: usize) -> Result<usize, i32> {
        let address = self.xpmem(&format!("attach {apid} {offset:#x} {len:#x} {at:#x}"))?;
        Ok(address.cast_unsigned() as usize)
    }

    /// `xpmem_attach`, which must work.
    pub fn attach(&mut self, apid: i64, offset: usize, len: usize) -> usize {
        self.try_attach(apid, offset, len).expect("xpmem_attach")
    }

    /// Gets a segment and attaches a piece of it.
    pub fn get_attach(&mut self, segid: i64, offset: usize, len: usize) -> usize {
        let apid = self.get(segid);
        self.attach(apid, offset, len)
    }

    /// `xpmem_detach`, which must work.
    pub fn detach(&mut self, address: usize) {
        assert_eq!(self.xpmem(&format!("detach {address:#x}")), Ok(0));
    }

    /// `xpmem_release`.
    ///
    /// # Errors
    ///
    /// Its errno.
    pub fn release(&mut self, apid: i64) -> Result<i64, i32> {
        self.xpmem(&format!("release {apid}"))
    }

    /// `xpmem_remove`.
    ///
    /// # Errors
    ///
    /// Its errno.
    pub fn remove(&mut self, segid: i64) -> Result<i64, i32> {
        self.xpmem(&format!("remove {segid}"))
    }

    // ---- threads ----

    /// Starts a thread that does one thing until it is stopped.
    pub fn start(&mut self, what: &str) -> usize {
        self.number(&format!("start {what}"))
    }

    /// Stops a thread and gives what it counted.
    pub fn stop(&mut self, thread: usize) -> Report {
        let words = self.ok(&format!("stop {thread}"));
        parse_report(&words)
    }

    /// The thread id of a started thread.
    pub fn tid(&mut self, thread: usize) -> i32 {
        self.ok(&format!("tid {thread}")).parse().expect("a thread id")
    }

    /// Waits until a started thread sleeps in a system call.
    pub fn wait_blocked(&mut self, thread: usize, number: i64) {
        let tid = self.tid(thread);
        self.wait_until("a thread sleeps", || crate::task_blocked_in(self.pid, tid) == Some(number));
    }

    /// Waits until something holds that no event tells of.
    ///
    /// # Panics
    ///
    /// If it does not in time.
    pub fn wait_until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let until = self.stage.deadline.min(Instant::now() + COMMAND * patience());
        while !holds() {
            assert!(Instant::now() < until, "waited in vain: {what}\n{}", self.stage.describe());
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    // ---- limits ----

    /// Limits a resource of the actor's, in a way that it can undo; gives the limit of before.
    ///
    /// # Panics
    ///
    /// If that is not allowed.
    pub fn limit(&self, resource: u32, limit: u64) -> u64 {
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the kernel writes the limits of before.
        let asked = unsafe { libc::prlimit(self.pid, resource, std::ptr::null(), &raw mut before) };
        assert_eq!(asked, 0, "prlimit: {}", Errno::last());
        let new = libc::rlimit { rlim_cur: limit.min(before.rlim_max), rlim_max: before.rlim_max };
        // SAFETY: the kernel reads the new limits.
        let set = unsafe { libc::prlimit(self.pid, resource, &raw const new, std::ptr::null_mut()) };
        assert_eq!(set, 0, "prlimit: {}", Errno::last());
        before.rlim_cur
    }

    /// A number of kB from the actor's `/proc/PID/status`.
    ///
    /// # Panics
    ///
    /// If it is not there.
    pub fn status_kib(&self, field: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("the status");
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.unwrap_or_else(|| panic!("no {field} in the status of {}", self.pid))
    }

    // ---- life ----

    /// Forks. The child is an actor as well.
    ///
    /// # Panics
    ///
    /// If the child does not come up.
    pub fn fork(&mut self) -> Actor {
        let name = format!("rmap-tests-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let address = SocketAddr::from_abstract_name(&name).expect("an abstract name");
        let listener = UnixListener::bind_addr(&address).expect("listen");
        listener.set_nonblocking(true).expect("a socket that does not block");
        let pid = i32::try_from(self.number(&format!("fork {name}"))).expect("a pid");
        self.stage.add(pid);
        let mut stream = None;
        self.wait_until("a forked child answers", || {
            stream = listener.accept().ok();
            stream.is_some() || !matches!(crate::state_of(pid), Some('R' | 'S' | 'D'))
        });
        let (stream, _) = stream.unwrap_or_else(|| panic!("the forked child of {} died", self.describe()));
        stream.set_nonblocking(false).expect("a socket that blocks");
        let mut child = Self::new(pid, stream, Arc::clone(&self.stage), self.free);
        child.ok("hello");
        child
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).expect("kill");
    }

    /// Stops it with SIGSTOP and waits until all its threads are.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        // A thread may be stopped by another kind of stop already.
        let still =
            |tid: &i32| matches!(crate::maps::task_state(self.pid, *tid), None | Some('T' | 't' | 'Z' | 'X'));
        self.wait_until("a process is stopped", || crate::tasks(self.pid).iter().all(still));
    }

    /// Undoes [`Actor::freeze`].
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill(self) {
        self.stage.end(self.pid);
        self.stage.wait(self.pid);
    }

    /// Has it exit in the orderly way and checks that it does.
    ///
    /// # Panics
    ///
    /// If it does not end with status 0.
    pub fn exit(mut self) {
        assert_eq!(self.owed, 0, "an answer is owed");
        self.tell("exit");
        assert_eq!(self.answer_if_alive(), None, "{}", self.describe());
        if let Some(status) = self.stage.wait(self.pid) {
            assert!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?} of {}", self.describe());
        }
    }

    /// Waits until it is gone and gives its status, if it was a child of this process.
    pub fn wait_end(self) -> Option<WaitStatus> {
        self.stage.wait(self.pid)
    }

    /// Leaves this process to the actor that waits for it.
    pub fn forget(self) {
        self.stage.forget(self.pid);
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.stage.end(self.pid);
    }
}

fn parse_report(words: &str) -> Report {
    words
        .split_whitespace()
        .map(|word| {
            let (key, value) = word.split_once('=').expect("key=value");
            (key.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}
