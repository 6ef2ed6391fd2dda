//! Watches the system calls of an actor's threads.

use crate::{Actor, calls, maps::task_blocked_in, tasks};
use nix::{
    errno::Errno,
    sys::{
        ptrace,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// A system call of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entered {
    /// The thread.
    pub tid: i32,
    /// The number of the call.
    pub number: i64,
    /// Its first argument.
    pub first: u64,
}

impl Entered {
    /// The name of the call, of those that the library makes, or its number.
    pub fn name(&self) -> String {
        calls::name(self.number)
    }

    /// Whether it is the write of an actor's answer.
    fn is_answer(&self) -> bool {
        self.first == 1 && [libc::SYS_write, libc::SYS_sendto].contains(&self.number)
    }

    /// Whether it is the read of an actor's command.
    fn is_command(&self) -> bool {
        self.first == 1 && [libc::SYS_read, libc::SYS_recvfrom].contains(&self.number)
    }

    /// Whether it sends something to another process.
    pub fn is_message(&self) -> bool {
        [libc::SYS_sendmsg, libc::SYS_sendto, libc::SYS_sendmmsg].contains(&self.number)
    }
}

/// The threads of an actor, traced by the calling thread until this is dropped.
#[derive(Debug)]
pub struct Tracer {
    pid: i32,
    threads: Vec<i32>,
    entered: Vec<Entered>,
}

const ANY: WaitPidFlag = WaitPidFlag::__WALL.union(WaitPidFlag::__WNOTHREAD);

fn of(tid: i32) -> Pid {
    Pid::from_raw(tid)
}

impl Tracer {
    /// Traces the threads that the actor has now. It must be idle.
    ///
    /// # Panics
    ///
    /// If the kernel does not allow it.
    pub fn new(actor: &Actor) -> Self {
        let mut tracer = Self { pid: actor.pid(), threads: Vec::new(), entered: Vec::new() };
        for tid in tasks(actor.pid()) {
            ptrace::seize(of(tid), ptrace::Options::PTRACE_O_TRACESYSGOOD).expect("PTRACE_SEIZE");
            ptrace::interrupt(of(tid)).expect("PTRACE_INTERRUPT");
            waitpid(of(tid), Some(WaitPidFlag::__WALL)).expect("a thread stops");
            tracer.threads.push(tid);
            ptrace::syscall(of(tid), None).expect("PTRACE_SYSCALL");
        }
        tracer.settle(actor);
        tracer.entered.clear();
        tracer
    }

    /// Has the actor do something, and gives the system calls of all its threads until all are idle again. Those that carry
    /// the command and its answer are left out.
    pub fn watch(&mut self, actor: &mut Actor, command: &str) -> (crate::Reply, Vec<Entered>) {
        actor.tell(command);
        while !self.entered.iter().any(Entered::is_answer) {
            self.step(WaitPidFlag::empty());
        }
        self.settle(actor);
        let reply = actor.answer();
        let mut calls = std::mem::take(&mut self.entered);
        calls.retain(|call| !call.is_answer() && !call.is_command());
        (reply, calls)
    }

    /// Lets the threads run until all of them wait for something.
    fn settle(&mut self, actor: &Actor) {
        let waiting = [libc::SYS_epoll_wait, libc::SYS_epoll_pwait, libc::SYS_read, libc::SYS_recvfrom];
        actor.wait_until("traced threads are idle", || {
            while self.step(WaitPidFlag::WNOHANG) {}
            let idle = |tid: &i32| {
                task_blocked_in(self.pid, *tid).is_some_and(|number| waiting.contains(&number))
                    && crate::maps::task_state(self.pid, *tid) == Some('S')
            };
            self.threads.iter().all(idle)
        });
    }

    /// Takes one report of a thread and lets it go on. Gives whether there was one.
    fn step(&mut self, how: WaitPidFlag) -> bool {
        let status = match waitpid(None, Some(ANY | how)) {
            Ok(WaitStatus::StillAlive) => return false,
            Err(Errno::EINTR) => return true,
            Ok(status) => status,
            Err(why) => panic!("waitpid: {why}"),
        };
        let (tid, signal) = match status {
            WaitStatus::PtraceSyscall(tid) => {
                self.note(tid.as_raw());
                (tid, None)
            }
            WaitStatus::PtraceEvent(tid, ..) => (tid, None),
            WaitStatus::Stopped(tid, signal) => (tid, Some(signal)),
            other => panic!("a traced thread has ended: {other:?}"),
        };
        ptrace::syscall(tid, signal).expect("PTRACE_SYSCALL");
        true
    }

    fn note(&mut self, tid: i32) {
        let registers = ptrace::getregs(of(tid)).expect("PTRACE_GETREGS");
        // The kernel puts this there until the call has a result.
        if registers.rax.cast_signed() == -i64::from(libc::ENOSYS) {
            let number = registers.orig_rax.cast_signed();
            self.entered.push(Entered { tid, number, first: registers.rdi });
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // A thread that is gone, or that a failed test leaves behind, is no matter here: the stage kills it.
        for tid in self.threads.iter().copied().map(of) {
            if ptrace::interrupt(tid).is_ok() && waitpid(tid, Some(WaitPidFlag::__WALL)).is_ok() {
                let _ = ptrace::detach(tid, None);
            }
        }
    }
}
