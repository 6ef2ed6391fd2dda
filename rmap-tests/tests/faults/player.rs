//! An actor that something may befall while it works.

use rmap_tests::{Actor, Fault, Log, PAGE, PERMIT_MODE, RDWR, Reply, Supervisor, Watch, pattern::Seen};
use std::sync::Arc;

/// A process is gone, as planned, and what went on with it is over.
#[derive(Debug)]
pub(crate) struct Gone;

pub(crate) type Played<T> = Result<T, Gone>;

/// What may befall a play.
#[derive(Clone, Debug)]
pub(crate) struct Fate {
    pub(crate) supervisor: Arc<Supervisor>,
    pub(crate) log: Log,
    /// A call may fail, once.
    pub(crate) fails: bool,
    /// A process may be gone.
    pub(crate) kills: bool,
    /// All may stop for a while.
    pub(crate) stops: bool,
    /// How often to look again at what should be there.
    pub(crate) looks: usize,
}

impl Fate {
    /// Something is not as it should be. It is no wonder if a process has been killed.
    #[track_caller]
    pub(crate) fn wrong<T>(&self, what: &str) -> Played<T> {
        assert!(self.kills && self.supervisor.has_happened(), "{what}\n{}", self.log.text());
        Err(Gone)
    }
}

/// What was seen of a failure.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// The call of the library that failed: the log names it. `None`: an access got a signal; the log names the errno behind it.
    pub(crate) call: Option<String>,
    pub(crate) what: String,
}

/// An actor of a play.
#[derive(Debug)]
pub(crate) struct Player {
    pub(crate) actor: Actor,
    pub(crate) fate: Fate,
    /// What was seen of the failure, and what the log must say about it.
    pub(crate) failures: Vec<Failure>,
}

/// Errnos that the documentation names for want of something.
const WANT: [i32; 7] =
    [libc::ENOMEM, libc::EMFILE, libc::ENFILE, libc::EAGAIN, libc::ENOBUFS, libc::ENOSPC, libc::EPERM];

impl Player {
    pub(crate) fn new(actor: Actor, fate: &Fate) -> Self {
        Self { actor, fate: fate.clone(), failures: Vec::new() }
    }

    fn ask(&mut self, command: &str) -> Played<Reply> {
        let library = command.starts_with("xpmem");
        self.fate.supervisor.watch(if library { Watch::Everything } else { Watch::Library });
        match self.actor.ask_if_alive(command) {
            Some(reply) => Ok(reply),
            None => self.fate.wrong(&format!("a process is gone at {command}")),
        }
    }

    fn words(&mut self, command: &str) -> Played<String> {
        match self.ask(command)? {
            Reply::Ok(words) => Ok(words),
            other => self.fate.wrong(&format!("{other:?} to {command}")),
        }
    }

    /// Notes a failure that may be the planned one.
    #[track_caller]
    fn note(&mut self, failure: Failure) -> Played<()> {
        if self.fate.fails && self.fate.supervisor.has_happened() {
            self.failures.push(failure);
            return Ok(());
        }
        self.fate.wrong(&failure.what)
    }

    fn try_call(&mut self, call: &str) -> Played<Result<i64, i32>> {
        let words = self.words(&format!("xpmem {call}"))?;
        let (value, errno) = words.split_once(' ').expect("result and errno");
        let value = value.parse().expect("a number");
        Ok(if value == -1 { Err(errno.parse().expect("an errno")) } else { Ok(value) })
    }

    /// A call of the library. If it fails, it works when it is made again.
    pub(crate) fn call(&mut self, call: &str) -> Played<i64> {
        let errno = match self.try_call(call)? {
            Ok(value) => return Ok(value),
            Err(errno) => errno,
        };
        let (name, _) = call.split_once(' ').expect("arguments");
        self.note(Failure { call: Some(name.to_owned()), what: format!("errno {errno} from {call}") })?;
        assert!(WANT.contains(&errno), "errno {errno} from {call} is not documented");
        match self.try_call(call)? {
            Ok(value) => Ok(value),
            Err(errno) => self.fate.wrong(&format!("errno {errno} from {call}, again")),
        }
    }

    pub(crate) fn make(&mut self, address: usize, len: usize) -> Played<i64> {
        self.call(&format!("make {address:#x} {len:#x} {PERMIT_MODE} 0o666"))
    }

    pub(crate) fn get(&mut self, segid: i64) -> Played<i64> {
        self.call(&format!("get {segid} {RDWR} {PERMIT_MODE} 0"))
    }

    pub(crate) fn attach(&mut self, apid: i64, offset: usize, pages: usize) -> Played<usize> {
        let len = pages * PAGE;
        Ok(self.call(&format!("attach {apid} {offset:#x} {len:#x} 0"))?.cast_unsigned() as usize)
    }

    pub(crate) fn sys(&mut self, number: i64, arguments: &[usize]) -> Played<usize> {
        let words: String = arguments.iter().map(|argument| format!(" {argument:#x}")).collect();
        Ok(self.words(&format!("sys {number}{words}"))?.parse().expect("a number"))
    }

    fn look(&mut self, address: usize, pages: usize) -> Played<Vec<Seen>> {
        let words = self.words(&format!("look {address:#x} {pages}"))?;
        Ok(words.split(' ').map(|word| Seen::parse(word).expect("a page")).collect())
    }

    /// Looks at pages. A hole that should be none is none when it is touched again.
    pub(crate) fn sees(&mut self, address: usize, wanted: &[Seen]) -> Played<()> {
        let seen = self.look(address, wanted.len())?;
        if seen == wanted {
            return Ok(());
        }
        let explained = seen.iter().zip(wanted).all(|(seen, wanted)| seen == wanted || *seen == Seen::Hole);
        if !explained {
            return self.fate.wrong(&difference(&seen, wanted));
        }
        self.note(Failure { call: None, what: difference(&seen, wanted) })?;
        let mut again = seen;
        for _ in 0..self.fate.looks {
            again = self.look(address, wanted.len())?;
            if again == wanted {
                return Ok(());
            }
        }
        self.fate.wrong(&format!("again: {}", difference(&again, wanted)))
    }

    /// Looks at what was in a file that the exporter does not map any more. Where an importer has been stopped meanwhile, it may show it for a
    /// moment.
    pub(crate) fn sees_no_file(&mut self, address: usize, pages: usize) -> Played<()> {
        let holes = vec![Seen::Hole; pages];
        while self.fate.stops && self.look(address, pages)? != holes {}
        self.sees(address, &holes)
    }

    /// Looks at pages that have the stamps of [`Actor::fill`].
    pub(crate) fn sees_stamps(&mut self, address: usize, pages: usize, stamp: u64) -> Played<()> {
        self.sees(address, &stamps(pages, stamp))
    }

    pub(crate) fn fill(&mut self, address: usize, pages: usize, stamp: u64) -> Played<()> {
        self.words(&format!("fill {address:#x} {pages} {stamp} 1")).map(drop)
    }

    pub(crate) fn store(&mut self, address: usize, value: u64) -> Played<()> {
        let command = format!("store {address:#x} {value}");
        let fault = match self.ask(&command)? {
            Reply::Ok(_) => return Ok(()),
            Reply::Fault(fault @ Fault { signal: libc::SIGBUS, .. }) => fault,
            other => return self.fate.wrong(&format!("{other:?} to {command}")),
        };
        self.note(Failure { call: None, what: format!("{fault:?} at {command}") })?;
        self.words(&command).map(drop)
    }

    pub(crate) fn loads(&mut self, address: usize, value: u64) -> Played<()> {
        let found = self.words(&format!("load {address:#x}"))?;
        if found == value.to_string() { Ok(()) } else { self.fate.wrong(&format!("{found}, not {value}")) }
    }

    /// Forks a child; it is an actor of its own.
    pub(crate) fn forks(&mut self, play: impl FnOnce(&mut Actor)) -> Played<()> {
        self.fate.supervisor.watch(Watch::Library);
        if self.fate.kills {
            // A child whose parent is killed goes with it, at any moment.
            return Ok(());
        }
        let mut child = self.actor.fork();
        play(&mut child);
        child.exit();
        Ok(())
    }
}

pub(crate) fn stamps(pages: usize, stamp: u64) -> Vec<Seen> {
    (0..pages as u64).map(|page| Seen::Stamp(stamp + page)).collect()
}

fn difference(seen: &[Seen], wanted: &[Seen]) -> String {
    let first = seen.iter().zip(wanted).position(|(seen, wanted)| seen != wanted).unwrap_or(0);
    let count = seen.iter().zip(wanted).filter(|(seen, wanted)| seen != wanted).count();
    format!("{count} pages differ, the first is {first}: {:?}, not {:?}", seen[first], wanted[first])
}
