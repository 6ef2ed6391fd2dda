//! Decides about each system call of an actor: lets it be made, has it fail, kills or stops its process there.
//!
//! The kernel reports each call by a seccomp filter that the actor installs, and its children and siblings inherit, before it first
//! uses the library. A thread of the test answers.

use crate::{Actor, calls, maps::task_state, tasks};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::HashMap,
    fs,
    io::{Read as _, Write as _},
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Who makes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Caller {
    /// The first thread of the actor, which runs its commands.
    Application,
    /// Its only other thread, which is the library's.
    Service,
    /// A process that shares the actor's memory.
    Sibling,
    /// A process that the actor has forked.
    Child,
}

/// A system call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// Who makes it.
    pub caller: Caller,
    /// What it asks for: `UFFDIO_REGISTER` rather than `ioctl`.
    pub name: String,
}

/// What becomes of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It fails with this errno.
    Fail(i32),
    /// It fails with this errno when [`Supervisor::let_go`] says so.
    Hold(i32),
    /// Its process is killed before it is made.
    Kill,
    /// These process groups are stopped, and go on when all of them have come to a stop.
    Stop(Vec<i32>),
}

/// What to do, and when.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The call.
    pub call: Call,
    /// Which one of its kind, from 0 on.
    pub nth: usize,
    /// So many in a row.
    pub times: usize,
    /// What becomes of it.
    pub action: Action,
}

/// Which calls are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// None: all are made.
    Nothing,
    /// All but those of the application's own thread.
    Library,
    /// All.
    Everything,
}

#[derive(Debug)]
struct State {
    watch: Watch,
    calls: Vec<Call>,
    plan: Option<Plan>,
    seen: usize,
    happened: bool,
    /// A process group that did not come to a stop.
    restless: Option<String>,
}

/// Decides about the calls of one actor, until this is dropped.
#[derive(Debug)]
pub struct Supervisor {
    state: Arc<Mutex<State>>,
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Supervisor {
    /// Supervises an actor that has not used the library yet.
    ///
    /// # Panics
    ///
    /// If the kernel does not allow it.
    pub fn new(actor: &mut Actor, plan: Option<Plan>) -> Self {
        let number = actor.number("supervise");
        let listener = take_descriptor(actor.pid(), number);
        actor.sys(libc::SYS_close, &[number]).expect("close");
        let (watch, calls) = (Watch::Nothing, Vec::new());
        let state = State { watch, calls, plan, seen: 0, happened: false, restless: None };
        let state = Arc::new(Mutex::new(state));
        let (stop, stopped) = UnixStream::pair().expect("a pair of sockets");
        let (shared, pid) = (Arc::clone(&state), actor.pid());
        let thread = std::thread::spawn(move || {
            let mut judge =
                Judge { state: shared, pid, known: HashMap::new(), stopping: None, held: None };
            judge.serve(&listener, &stopped);
        });
        Self { state, stop, thread: Some(thread) }
    }

    /// Counts these from now on.
    pub fn watch(&self, watch: Watch) {
        lock(&self.state).watch = watch;
    }

    /// The calls that were counted.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.state).calls.clone()
    }

    /// Whether what was planned has been done, or is being done.
    pub fn has_happened(&self) -> bool {
        lock(&self.state).happened
    }

    /// Ends the waiting of a call that is being held.
    ///
    /// # Panics
    ///
    /// If nobody answers calls any more.
    pub fn let_go(&self) {
        (&self.stop).write_all(&[0]).expect("the thread that answers");
    }

    /// The threads of a group that was to be stopped and was not.
    pub fn restless(&self) -> Option<String> {
        lock(&self.state).restless.clone()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.stop.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A descriptor of another process.
fn take_descriptor(pid: i32, number: usize) -> OwnedFd {
    // SAFETY: makes a descriptor.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    assert!(process >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
    // SAFETY: just made.
    let process = unsafe { OwnedFd::from_raw_fd(process as i32) };
    // SAFETY: makes a descriptor.
    let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    assert!(taken >= 0, "pidfd_getfd: {}", std::io::Error::last_os_error());
    // SAFETY: just made.
    unsafe { OwnedFd::from_raw_fd(taken as i32) }
}

/// What the kernel is told of a call.
enum Verdict {
    Make,
    Fail(i32),
    FailLater(i32),
}

/// The thread that answers.
struct Judge {
    state: Arc<Mutex<State>>,
    pid: i32,
    known: HashMap<i32, Caller>,
    /// Groups that have been told to stop, and since when.
    stopping: Option<(Vec<i32>, Instant)>,
    /// A call that is to fail later.
    held: Option<libc::seccomp_notif_resp>,
}

impl Judge {
    fn serve(&mut self, listener: &OwnedFd, stop: &UnixStream) {
        loop {
            let limit = if self.stopping.is_some() { PollTimeout::from(1u8) } else { PollTimeout::NONE };
            let mut entries = [listener.as_fd(), stop.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            if poll(&mut entries, limit).is_err() {
                continue;
            }
            let [reported, stopped] = entries.map(|entry| entry.revents().unwrap_or(PollFlags::empty()));
            if !stopped.is_empty() {
                if !matches!((&mut &*stop).read(&mut [0]), Ok(1)) {
                    return;
                }
                if let Some(mut answer) = self.held.take() {
                    send(listener, &mut answer);
                }
            }
            if reported.contains(PollFlags::POLLIN) {
                self.answer(listener);
            } else if !reported.is_empty() {
                // All that had the filter are gone.
                return;
            }
            self.resume();
        }
    }

    /// Has groups go on that have come to a stop. Until then calls are answered: a thread that is held in the kernel stops when another has
    /// let it go.
    fn resume(&mut self) {
        const LONG: Duration = Duration::from_secs(10);
        let Some((groups, since)) = self.stopping.take() else { return };
        let restless = groups.iter().copied().find(|pid| !has_stopped(*pid));
        if restless.is_some() && since.elapsed() < LONG {
            self.stopping = Some((groups, since));
            return;
        }
        lock(&self.state).restless = restless.map(crate::stage::describe);
        signal_groups(&groups, Signal::SIGCONT);
    }

    fn answer(&mut self, listener: &OwnedFd) {
        // SAFETY: all zero is a valid report, and the kernel wants it to be.
        let mut report: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel fills the report.
        let received =
            unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut report) };
        if received != 0 {
            // A signal has come in between, or the thread is gone.
            return;
        }
        let answer = |errno: i32, flags| libc::seccomp_notif_resp { id: report.id, val: 0, error: -errno, flags };
        match self.judge(report.pid.cast_signed(), i64::from(report.data.nr), &report.data.args) {
            Verdict::Make => send(listener, &mut answer(0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32)),
            Verdict::Fail(errno) => send(listener, &mut answer(errno, 0)),
            Verdict::FailLater(errno) => self.held = Some(answer(errno, 0)),
        }
    }

    fn judge(&mut self, tid: i32, number: i64, arguments: &[u64; 6]) -> Verdict {
        let caller = self.caller(tid);
        let call = Call { caller, name: calls::full_name(number, arguments) };
        let action = {
            let mut state = lock(&self.state);
            let counts = match state.watch {
                Watch::Nothing => false,
                Watch::Library => caller != Caller::Application,
                Watch::Everything => true,
            };
            if !counts {
                return Verdict::Make;
            }
            let planned = state.plan.as_ref().is_some_and(|plan| plan.call == call);
            state.calls.push(call);
            let (plan, seen) = (state.plan.as_ref(), state.seen);
            let due = planned && plan.is_some_and(|plan| (plan.nth..plan.nth + plan.times).contains(&seen));
            state.seen += usize::from(planned);
            state.happened |= due;
            state.plan.as_ref().filter(|_| due).map(|plan| plan.action.clone())
        };
        match action {
            None => {}
            Some(Action::Fail(errno)) => return Verdict::Fail(errno),
            Some(Action::Hold(errno)) => return Verdict::FailLater(errno),
            Some(Action::Kill) => {
                let process = if caller == Caller::Sibling { tid } else { self.pid };
                let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
            }
            Some(Action::Stop(groups)) => {
                signal_groups(&groups, Signal::SIGSTOP);
                self.stopping = Some((groups, Instant::now()));
            }
        }
        Verdict::Make
    }

    fn caller(&mut self, tid: i32) -> Caller {
        let pid = self.pid;
        *self.known.entry(tid).or_insert_with(|| {
            if tid == pid {
                Caller::Application
            } else if fs::exists(format!("/proc/{pid}/task/{tid}")).unwrap_or(false) {
                Caller::Service
            } else if shares_memory(pid, tid) {
                Caller::Sibling
            } else {
                Caller::Child
            }
        })
    }
}

/// Answers a call. It is no matter if the thread is gone.
fn send(listener: &OwnedFd, answer: &mut libc::seccomp_notif_resp) {
    // SAFETY: the kernel reads the answer.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, std::ptr::from_mut(answer)) };
}

/// Whether two processes have one address space.
fn shares_memory(one: i32, other: i32) -> bool {
    const KCMP_VM: i32 = 1;
    // SAFETY: compares.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_VM, 0, 0) == 0 }
}

fn signal_groups(leaders: &[i32], signal: Signal) {
    for leader in leaders {
        let _ = kill(Pid::from_raw(-leader), signal);
    }
}

/// Whether nothing goes on in a process that was told to stop. The kernel stops no thread before the one that has taken the signal, which may be
/// in the hands of a tracer that has stopped.
fn has_stopped(pid: i32) -> bool {
    let states: Vec<char> = tasks(pid).into_iter().filter_map(|tid| task_state(pid, tid)).collect();
    let traced = states.contains(&'t');
    states.into_iter().all(|state| matches!(state, 'T' | 't' | 'Z' | 'X') || (traced && state == 'S'))
}
