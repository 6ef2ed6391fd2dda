//! Counts the instructions and system calls of single calls, exactly, by single steps.
//!
//! Valgrind cannot run the library: it knows neither `userfaultfd`, without which the library says that it is not
//! available, nor the processes that the library clones. Hardware counters are missing in most virtual machines, and an
//! ordinary user may be refused them. So a child is stepped through the code with `ptrace`, which needs no right but that over
//! a child and sees each instruction of user mode once.
//!
//! Only the calling thread is stepped. What service threads do meanwhile is not counted.

use std::{
    fmt, io,
    mem::offset_of,
    ops::{Add, AddAssign},
    ptr,
};

/// What a call has executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count {
    /// Instructions of user mode, the `syscall`s among them. One with a `rep` prefix is one.
    pub instructions: u64,
    /// System calls.
    pub calls: u64,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.instructions += other.instructions;
        self.calls += other.calls;
    }
}

impl Add for Count {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} instructions, {} system calls", self.instructions, self.calls)
    }
}

/// Begins and ends counting, in the child.
#[derive(Debug)]
pub struct Gate(());

impl Gate {
    /// From here on the calls of this thread are counted. The library must have been used before: it does not work in a process that
    /// is traced when it first looks.
    pub fn open(&self) {
        // SAFETY: takes no addresses.
        unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, ptr::null_mut::<u8>(), ptr::null_mut::<u8>()) };
        stop();
    }

    /// Up to here.
    pub fn close(&self) {
        stop();
    }
}

/// Stops this thread for its tracer.
fn stop() {
    // SAFETY: takes a number only.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// Runs `body` in a child and counts the calls of `functions` that it makes between opening and closing the gate: for each its
/// place in the list, and what it executed.
///
/// # Errors
///
/// What `ptrace` or `fork` say, or that the child has failed.
pub fn counted(functions: &[usize], body: impl FnOnce(&Gate) -> bool) -> io::Result<Vec<(usize, Count)>> {
    // SAFETY: the child runs `body` only. glibc's malloc works in it; no lock of this program's is held by another thread
    // for longer than a moment while none of them is told to do something.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    if child == 0 {
        // SAFETY: takes numbers only.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        let done = body(&Gate(()));
        // SAFETY: ends the child, without the clean-up that is the parent's.
        unsafe { libc::_exit(i32::from(!done)) };
    }
    let result = Stepper { child, functions, counts: Vec::new() }.run();
    if result.is_err() {
        // SAFETY: takes numbers only; the child has not been waited for to its end.
        unsafe { libc::kill(child, libc::SIGKILL) };
        let _ = wait(child);
    }
    result
}

struct Stepper<'a> {
    child: i32,
    functions: &'a [usize],
    counts: Vec<(usize, Count)>,
}

/// A call that is being executed.
struct Open {
    function: usize,
    /// Where it returns to.
    back: u64,
    /// The stack pointer at its entry.
    stack: u64,
    count: Count,
}

impl Stepper<'_> {
    fn run(mut self) -> io::Result<Vec<(usize, Count)>> {
        loop {
            let status = wait(self.child)?;
            if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0 {
                return Ok(self.counts);
            }
            if !libc::WIFSTOPPED(status) {
                return Err(io::Error::other(format!("the counted process has ended: status {status:#x}")));
            }
            self.session()?;
        }
    }

    /// From an open gate to its close.
    fn session(&mut self) -> io::Result<()> {
        let mut open: Option<Open> = None;
        let mut signal = 0;
        let mut last = 0;
        loop {
            let at = self.register(offset_of!(libc::user_regs_struct, rip))?;
            let stack = self.register(offset_of!(libc::user_regs_struct, rsp))?;
            if let Some(call) = open.take_if(|call| at == call.back && stack > call.stack) {
                self.counts.push((call.function, call.count));
            }
            if open.is_none()
                && let Some(function) = self.functions.iter().position(|entry| *entry as u64 == at)
            {
                open = Some(Open { function, back: self.peek(stack)?, stack, count: Count::default() });
            }
            // A repeated instruction stops at itself after each repetition.
            if let Some(call) = &mut open
                && at != last
            {
                const SYSCALL: u64 = 0x050f;
                let word = self.peek(at)?;
                call.count += Count { instructions: 1, calls: u64::from(word & 0xffff == SYSCALL) };
            }
            last = at;
            trace(libc::PTRACE_SINGLESTEP, self.child, 0, signal)?;
            let status = wait(self.child)?;
            if !libc::WIFSTOPPED(status) {
                return Err(io::Error::other(format!("ended while it was counted: status {status:#x}")));
            }
            signal = match libc::WSTOPSIG(status) {
                libc::SIGTRAP => 0,
                libc::SIGSTOP => return trace(libc::PTRACE_DETACH, self.child, 0, 0).map(drop),
                other => other as u64,
            };
        }
    }

    fn register(&self, offset: usize) -> io::Result<u64> {
        trace(libc::PTRACE_PEEKUSER, self.child, (offset_of!(libc::user, regs) + offset) as u64, 0)
    }

    fn peek(&self, address: u64) -> io::Result<u64> {
        trace(libc::PTRACE_PEEKTEXT, self.child, address, 0)
    }
}

fn trace(request: libc::c_uint, pid: i32, address: u64, data: u64) -> io::Result<u64> {
    // SAFETY: the addresses are the child's, and glibc has a place of its own for the word that a PEEK gives.
    unsafe {
        *libc::__errno_location() = 0;
        let result = libc::ptrace(request, pid, address, data);
        if result == -1 && *libc::__errno_location() != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(result.cast_unsigned())
    }
}

fn wait(child: i32) -> io::Result<i32> {
    let mut status = 0;
    // SAFETY: a valid place for the status.
    if unsafe { libc::waitpid(child, &raw mut status, 0) } == child {
        Ok(status)
    } else {
        Err(io::Error::last_os_error())
    }
}
