//! System calls, signals, fork and exec.

use crate::command::{Arguments, Failure, Outcome};
use crate::work::{Child, Pipe};
use rmap_tests::PAGE;
use std::{
    ffi::{CString, c_void},
    mem,
    os::{fd::AsRawFd as _, linux::net::SocketAddrExt as _, unix::net::SocketAddr, unix::net::UnixStream},
    process::Stdio,
    ptr,
};

/// The errno of this thread.
pub(crate) fn errno() -> i32 {
    // SAFETY: glibc gives each thread a valid errno.
    unsafe { *libc::__errno_location() }
}

/// Sets the errno of this thread.
pub(crate) fn set_errno(errno: i32) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Sets a signal handler. The address is that of an `extern "C"` function fit for the flags.
pub(crate) fn on_signal(signal: i32, handler: usize, flags: i32) {
    // SAFETY: all zero is a valid sigaction.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: the callers give addresses of handlers.
    let result = unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    assert_eq!(result, 0, "sigaction");
}

/// Has the kernel kill this process when the test ends.
pub(crate) fn end_with_parent() {
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// Ends this thread only.
pub(crate) fn end_thread() -> ! {
    let _ = call(libc::SYS_exit, [0; 6]);
    unreachable!("the thread has ended")
}

/// A system call.
pub(crate) fn call(number: i64, arguments: [usize; 6]) -> Result<usize, i32> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: what the test asks for is the test's to choose.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result == -1 { Err(errno()) } else { Ok(result.cast_unsigned() as usize) }
}

/// A command of this module.
pub(crate) fn command(verb: &str, arguments: &mut Arguments<'_>) -> Outcome {
    match verb {
        "sys" => {
            let number = arguments.number()?;
            let mut values = [0; 6];
            for value in &mut values {
                *value = arguments.next().map_or(Ok(0), |word| Arguments::new(word).number())?;
            }
            call(number, values).map(|value| value.to_string()).map_err(Failure::Errno)
        }
        "seteuid" => set_euid(arguments.number()?),
        "crowd" => crowd(arguments.number()?, arguments.number()?),
        "sbrk" => sbrk(arguments.number()?),
        "malloc" => malloc(arguments.number()?),
        "realloc" => realloc(arguments.number()?, arguments.number()?),
        "free" => free(arguments.number()?),
        "rawfork" => raw_fork(arguments.number()?),
        "exec" => exec(),
        "shell" => shell(arguments.rest()),
        "spawn" => spawn(arguments.rest()),
        _ => Err(Failure::Usage(format!("no command {verb}"))),
    }
}

/// `seteuid UID`: for all threads, as the C library does it.
fn set_euid(user: u32) -> Outcome {
    // SAFETY: takes a number only.
    if unsafe { libc::seteuid(user) } == 0 { Ok(String::new()) } else { Err(Failure::Errno(errno())) }
}

/// `crowd ADDRESS PAGES`: splits a mapping into as many as the process may have. Answers with how many pages that took.
fn crowd(address: usize, pages: usize) -> Outcome {
    let changed = (0..pages).take_while(|page| {
        let prot = if page % 2 == 0 { libc::PROT_READ } else { libc::PROT_NONE };
        let at = ptr::with_exposed_provenance_mut(address + page * PAGE);
        // SAFETY: memory that the test has set aside for this.
        unsafe { libc::mprotect(at, PAGE, prot) == 0 }
    });
    Ok(changed.count().to_string())
}

fn sbrk(by: i64) -> Outcome {
    let by = libc::intptr_t::try_from(by).expect("64 bits");
    // SAFETY: moves the end of the heap. glibc's malloc bears with others that do so, and the test lowers it
    // only by what it raised it before.
    let before = unsafe { libc::sbrk(by) } as usize;
    if before == usize::MAX { Err(Failure::Errno(errno())) } else { Ok(before.to_string()) }
}

fn malloc(len: usize) -> Outcome {
    // SAFETY: takes a number only.
    Ok((unsafe { libc::malloc(len) } as usize).to_string())
}

fn realloc(address: usize, len: usize) -> Outcome {
    let old = ptr::with_exposed_provenance_mut::<c_void>(address);
    // SAFETY: the test gives what `malloc` or `realloc` gave.
    Ok((unsafe { libc::realloc(old, len) } as usize).to_string())
}

fn free(address: usize) -> Outcome {
    // SAFETY: as in `realloc`.
    unsafe { libc::free(ptr::with_exposed_provenance_mut(address)) };
    Ok(String::new())
}

/// `fork NAME`: the child goes on as an actor of its own, with its commands from the abstract socket NAME.
pub(crate) fn fork(arguments: &mut Arguments<'_>) -> Outcome {
    let name = arguments.word()?.to_owned();
    // SAFETY: the child runs code that allocates, which glibc allows after fork, and takes no lock that
    // another thread of this program holds for longer than a moment while no command runs.
    match unsafe { libc::fork() } {
        -1 => Err(Failure::Errno(errno())),
        0 => {
            let address = SocketAddr::from_abstract_name(name).expect("an abstract name");
            let Ok(socket) = UnixStream::connect_addr(&address) else {
                // The test is not interested. Nothing of the parent's is to be run down.
                // SAFETY: ends the process.
                unsafe { libc::_exit(0) }
            };
            // SAFETY: puts the new socket in place of the parent's.
            unsafe { libc::dup2(socket.as_raw_fd(), 1) };
            drop(socket);
            crate::serve()
        }
        child => Ok(child.to_string()),
    }
}

/// `rawfork ADDRESS`: what a load finds in a child that the library does not know of: the word or, negative, the signal.
fn raw_fork(address: usize) -> Outcome {
    let pipe = Pipe::new();
    let child = Child::fork_raw(|| {
        let found =
            crate::trap::load(address).unwrap_or_else(|fault| u64::from((-fault.signal).cast_unsigned()));
        let wrote = call(libc::SYS_write, [pipe.writer, (&raw const found).addr(), 8, 0, 0, 0]);
        i32::from(wrote != Ok(8))
    });
    let mut found = 0_u64;
    let status = child.and_then(Child::wait).map_err(Failure::Errno)?;
    let read = call(libc::SYS_read, [pipe.reader, (&raw mut found).addr(), 8, 0, 0, 0]);
    if (status, read) == (0, Ok(8)) {
        Ok((found as i32).to_string())
    } else {
        Err(Failure::Usage(format!("the child ended with {status}, and {read:?} was read")))
    }
}

/// Starts this program anew in the same process.
fn exec() -> Outcome {
    let program = CString::new("/proc/self/exe").expect("no zero byte");
    let arguments = [program.as_ptr(), ptr::null()];
    let answer = crate::command::text(Ok(String::new()));
    // The new program reads commands where this one stopped. It says hello when asked.
    // SAFETY: writes from a valid buffer.
    unsafe { libc::write(1, answer.as_ptr().cast(), answer.len()) };
    // SAFETY: C strings, and a list that ends with null.
    unsafe { libc::execv(program.as_ptr(), arguments.as_ptr()) };
    Err(Failure::Errno(errno()))
}

/// `shell COMMAND`: `system(3)`.
fn shell(line: &str) -> Outcome {
    let line = CString::new(line).map_err(|_| Failure::Usage("zero byte".into()))?;
    // SAFETY: a C string.
    Ok(unsafe { libc::system(line.as_ptr()) }.to_string())
}

/// `spawn COMMAND`: `posix_spawn` of a shell, and its status.
fn spawn(line: &str) -> Outcome {
    let mut shell = std::process::Command::new("/bin/sh");
    // The command socket is not the shell's.
    shell.args(["-c", line]).stdin(Stdio::null()).stdout(Stdio::null());
    let status = shell.status().map_err(|why| Failure::Errno(why.raw_os_error().unwrap_or(0)))?;
    Ok(status.code().unwrap_or(-1).to_string())
}
