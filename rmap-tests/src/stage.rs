//! The processes of one test: started together, ended together.

use crate::{PAGE, maps, random::factor, state_of, tasks};
use nix::{
    errno::Errno,
    sys::{
        memfd::{MFdFlags, memfd_create},
        prctl::set_child_subreaper,
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// The length of the board.
pub const BOARD_LEN: usize = 4 * PAGE;

/// How long a killed process may take to be gone.
const DEATH: Duration = Duration::from_secs(20);

/// What one test runs on.
#[derive(Debug)]
pub struct Stage {
    pub(crate) shared: Arc<Shared>,
    watchdog: Option<JoinHandle<()>>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    name: String,
    pub(crate) deadline: Instant,
    pub(crate) board: Board,
    members: Mutex<Members>,
    over: Condvar,
}

#[derive(Debug, Default)]
struct Members {
    over: bool,
    /// May be killed.
    alive: Vec<i32>,
    /// Killed or gone, and to be waited for.
    ended: Vec<i32>,
}

impl Stage {
    /// A stage whose processes are killed after this many seconds.
    ///
    /// # Panics
    ///
    /// If the machine has no room for it.
    pub fn new(name: &str, seconds: usize) -> Self {
        // Orphans of actors come to this process, which can then wait for them.
        set_child_subreaper(true).expect("become a subreaper");
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            deadline: Instant::now() + Duration::from_secs((seconds * factor()) as u64) * patience(),
            board: Board::new(),
            members: Mutex::default(),
            over: Condvar::new(),
        });
        let watched = Arc::clone(&shared);
        let watchdog = std::thread::spawn(move || watched.watch());
        Self { shared, watchdog: Some(watchdog) }
    }

    /// Memory that all actors of this stage see, whatever the library does.
    pub fn board(&self) -> &Board {
        &self.shared.board
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.over.notify_all();
        if let Some(watchdog) = self.watchdog.take() {
            let _ = watchdog.join();
        }
        self.shared.kill_all();
        let stuck = self.shared.reap();
        if !stuck.is_empty() && !std::thread::panicking() {
            panic!("{}: processes {stuck:?} do not die", self.shared.name);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self) {
        let mut members = self.lock();
        while !members.over {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(members);
                eprintln!("{}: the time of this test is up\n{}", self.name, self.describe());
                return self.kill_all();
            }
            members = self.over.wait_timeout(members, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(crate) fn add(&self, pid: i32) {
        self.lock().alive.push(pid);
    }

    /// Ends one process. It is waited for now if it is a child of this one, otherwise when the stage ends.
    pub(crate) fn end(&self, pid: i32) {
        let mut members = self.lock();
        if let Some(at) = members.alive.iter().position(|member| *member == pid) {
            members.alive.swap_remove(at);
            members.ended.push(pid);
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    /// Takes a process off the list that somebody else has waited for.
    pub(crate) fn forget(&self, pid: i32) {
        self.lock().alive.retain(|member| *member != pid);
    }

    /// Waits for one process that is ending. Gives its status if it is a child of this one.
    pub(crate) fn wait(&self, pid: i32) -> Option<WaitStatus> {
        let until = Instant::now() + DEATH * patience();
        loop {
            match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => {}
                Ok(status) => {
                    let mut members = self.lock();
                    members.alive.retain(|member| *member != pid);
                    members.ended.retain(|member| *member != pid);
                    return Some(status);
                }
                Err(Errno::ECHILD) if matches!(state_of(pid), None | Some('Z' | 'X')) => return None,
                Err(_) => {}
            }
            assert!(Instant::now() < until, "process {pid} does not end\n{}", describe(pid));
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn kill_all(&self) {
        let mut members = self.lock();
        let alive = std::mem::take(&mut members.alive);
        for pid in &alive {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        members.ended.extend(alive);
    }

    /// Waits for all ended processes. Those that do not end are given back.
    fn reap(&self) -> Vec<i32> {
        let mut ended = std::mem::take(&mut self.lock().ended);
        let until = Instant::now() + DEATH * patience();
        loop {
            ended.retain(|pid| match waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => true,
                Ok(_) => false,
                // Somebody else's child, until its parent is waited for.
                Err(_) => state_of(*pid).is_some(),
            });
            if ended.is_empty() || Instant::now() > until {
                return ended;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    pub(crate) fn describe(&self) -> String {
        let alive = self.lock().alive.clone();
        alive.into_iter().map(describe).collect()
    }
}

/// What the threads of a process are doing.
pub(crate) fn describe(pid: i32) -> String {
    let mut text = format!("  process {pid} state {:?}, {} mappings\n", state_of(pid), {
        maps::maps_if_alive(pid).map_or(0, |maps| maps.len())
    });
    for tid in tasks(pid) {
        let look = |what: &str| {
            let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/{what}")).unwrap_or_default();
            text.trim().lines().take(6).collect::<Vec<_>>().join(" < ")
        };
        let state = look("stat");
        let state = state.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).unwrap_or("?");
        text += &format!("    {tid} {} {state} [{}] {}\n", look("comm"), look("syscall"), look("stack"));
    }
    text
}

/// The factor on deadlines.
pub(crate) fn patience() -> u32 {
    std::env::var("RMAP_TEST_PATIENCE").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// A small shared memory file that actors have on descriptor 0 and find with [`crate::Actor::board`].
#[derive(Debug)]
pub struct Board(pub(crate) File);

impl Board {
    fn new() -> Self {
        let file =
            File::from(memfd_create(c"rmap-tests-board", MFdFlags::MFD_CLOEXEC).expect("a memory file"));
        file.set_len(BOARD_LEN as u64).expect("room for the board");
        Self(file)
    }

    /// Word `index`.
    pub fn get(&self, index: usize) -> u64 {
        let mut word = [0; 8];
        self.0.read_exact_at(&mut word, index as u64 * 8).expect("a word of the board");
        u64::from_ne_bytes(word)
    }

    /// Sets word `index`.
    pub fn set(&self, index: usize, value: u64) {
        self.0.write_all_at(&value.to_ne_bytes(), index as u64 * 8).expect("a word of the board");
    }
}
