//! Has another process decide about each system call that this one and its children make from now on.

use crate::{
    command::{Failure, Outcome},
    system::errno,
};
use std::fmt::Write as _;

/// What nobody needs to decide about: these cannot fail, or are the actor's own. `brk` is there so that an answer can be written before
/// anybody listens.
const FREE: [i64; 21] = [
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_sched_yield,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_fstat,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
];

/// Of these, those on the command socket are free.
const STREAM: [i64; 4] = [libc::SYS_read, libc::SYS_write, libc::SYS_recvfrom, libc::SYS_sendto];
const COMMAND_SOCKET: u32 = 1;

/// Offsets in `struct seccomp_data`.
pub(crate) const NUMBER: u32 = 0;
const FIRST_ARGUMENT: u32 = 16;

pub(crate) fn statement(code: u32, value: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k: value }
}

/// Goes on with the next statement if the loaded word is this one, and passes over so many if not.
pub(crate) fn unless(value: u32, skip: u8) -> libc::sock_filter {
    let code = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    libc::sock_filter { code, jt: 0, jf: skip, k: value }
}

fn program() -> Vec<libc::sock_filter> {
    let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let give = |action| statement(libc::BPF_RET | libc::BPF_K, action);
    let allow = give(libc::SECCOMP_RET_ALLOW);
    let number = |call: i64| u32::try_from(call).expect("a small number");
    let mut program = vec![load(NUMBER)];
    for call in FREE {
        program.extend([unless(number(call), 1), allow]);
    }
    for call in STREAM {
        // What is loaded is the number again afterwards.
        program.extend([unless(number(call), 4), load(FIRST_ARGUMENT), unless(COMMAND_SOCKET, 1), allow]);
        program.push(load(NUMBER));
    }
    program.push(give(libc::SECCOMP_RET_USER_NOTIF));
    program
}

/// `supervise`: the answer is the descriptor on which calls are reported.
pub(crate) fn supervise() -> Outcome {
    let mut program = program();
    let mut answer = String::with_capacity(64);
    let listener = install(&mut program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
    let _ = write!(answer, "{listener}");
    Ok(answer)
}

/// Has the kernel ask a program about each call from now on.
pub(crate) fn install(program: &mut [libc::sock_filter], flags: libc::c_ulong) -> Result<i64, Failure> {
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).expect("a short program"),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: takes numbers only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(Failure::Errno(errno()));
    }
    // SAFETY: the kernel reads the program.
    let installed =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter) };
    if installed < 0 { Err(Failure::Errno(errno())) } else { Ok(installed) }
}
