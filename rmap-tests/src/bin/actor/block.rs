//! Threads that sleep in system calls, and count what wakes them before they are told to stop.

use crate::{
    command::{Arguments, Failure},
    system,
    threads::{self, Work},
    work::{Pipe, Tally, close},
};
use std::{ptr, sync::atomic::AtomicU32};

/// An hour: nobody waits that long.
static LONG: libc::timespec = libc::timespec { tv_sec: 3600, tv_nsec: 0 };

/// `block CALL`, `block futexat ADDRESS`, `block semat ADDRESS`, `block condat ADDRESS`, `block joinon ADDRESS
/// LEN`, `block wait PID`.
pub(crate) fn work(arguments: &mut Arguments<'_>) -> Result<Work, Failure> {
    Ok(match arguments.word()? {
        "futexat" => futex_at(arguments.number()?),
        "semat" => semaphore_at(arguments.number()?),
        "condat" => condition_at(arguments.number()?),
        "joinon" => join_on(arguments.number()?, arguments.number()?),
        "wait" => {
            let pid: i32 = arguments.number()?;
            sleeper(move || system::call(libc::SYS_wait4, [pid as usize, 0, 0, 0, 0, 0]))
        }
        call => sleeper(sleep_in(call)?),
    })
}

/// Sleeps in a call again and again. Any return before the stop is one too many.
fn sleeper(mut call: impl FnMut() -> Result<usize, i32> + Send + 'static) -> Work {
    Box::new(move |control| {
        let mut tally = Tally::default();
        while control.on() {
            if tally.note(control, call()).is_some() && control.on() {
                tally.wrong += 1;
            }
        }
        tally.report()
    })
}

type Call = Box<dyn FnMut() -> Result<usize, i32> + Send>;

fn sleep_in(name: &str) -> Result<Call, Failure> {
    let long = || &raw const LONG as usize;
    Ok(match name {
        "poll" => {
            let pipe = Pipe::new();
            Box::new(move || {
                // All of it, or it is closed.
                let pipe = &pipe;
                let mut entry = libc::pollfd { fd: pipe.reader as i32, events: libc::POLLIN, revents: 0 };
                system::call(libc::SYS_poll, [&raw mut entry as usize, 1, usize::MAX, 0, 0, 0])
            })
        }
        "select" => Box::new(move || {
            let mut limit = libc::timeval { tv_sec: 3600, tv_usec: 0 };
            system::call(libc::SYS_select, [0, 0, 0, 0, &raw mut limit as usize, 0])
        }),
        "epoll_wait" => {
            let epoll = system::call(libc::SYS_epoll_create1, [0; 6]).map_err(Failure::Errno)?;
            Box::new(move || {
                let mut event = libc::epoll_event { events: 0, u64: 0 };
                system::call(libc::SYS_epoll_wait, [epoll, &raw mut event as usize, 1, usize::MAX, 0, 0])
            })
        }
        "nanosleep" => Box::new(move || system::call(libc::SYS_nanosleep, [long(), 0, 0, 0, 0, 0])),
        "clock_nanosleep" => {
            let clock = libc::CLOCK_MONOTONIC as usize;
            Box::new(move || system::call(libc::SYS_clock_nanosleep, [clock, 0, long(), 0, 0, 0]))
        }
        "futex" | "futex_timed" => {
            let word = Box::new(AtomicU32::new(0));
            let limit = if name == "futex" { 0 } else { long() };
            let operation = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as usize;
            Box::new(move || {
                system::call(libc::SYS_futex, [word.as_ptr() as usize, operation, 0, limit, 0, 0])
            })
        }
        "read" => {
            let pipe = Pipe::new();
            let mut byte = Box::new(0_u8);
            Box::new(move || {
                let pipe = &pipe;
                system::call(libc::SYS_read, [pipe.reader, &raw mut *byte as usize, 1, 0, 0, 0])
            })
        }
        "recv" | "recv_timed" => receive(name == "recv_timed")?,
        "accept" => {
            let socket = socket()?;
            system::call(libc::SYS_bind, [socket, &raw const UNNAMED as usize, 2, 0, 0, 0])
                .map_err(Failure::Errno)?;
            system::call(libc::SYS_listen, [socket, 1, 0, 0, 0, 0]).map_err(Failure::Errno)?;
            Box::new(move || system::call(libc::SYS_accept4, [socket, 0, 0, 0, 0, 0]))
        }
        "sigtimedwait" => {
            let set = Box::new(1_u64 << (libc::SIGUSR1 - 1));
            Box::new(move || {
                let set = &raw const *set as usize;
                system::call(libc::SYS_rt_sigtimedwait, [set, 0, long(), 8, 0, 0])
            })
        }
        "pause" => Box::new(move || system::call(libc::SYS_pause, [0; 6])),
        "semop" => semop()?,
        other => return Err(Failure::Usage(format!("nobody sleeps in {other}"))),
    })
}

static UNNAMED: libc::sa_family_t = libc::AF_UNIX as libc::sa_family_t;

fn socket() -> Result<usize, Failure> {
    let kind = (libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC) as usize;
    system::call(libc::SYS_socket, [libc::AF_UNIX as usize, kind, 0, 0, 0, 0]).map_err(Failure::Errno)
}

fn receive(timed: bool) -> Result<Call, Failure> {
    let mut ends = [0_i32; 2];
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: room for two descriptors.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) } != 0 {
        return Err(Failure::Errno(system::errno()));
    }
    let end = ends[0].unsigned_abs() as usize;
    if timed {
        let limit = libc::timeval { tv_sec: 3600, tv_usec: 0 };
        let (level, option) = (libc::SOL_SOCKET as usize, libc::SO_RCVTIMEO as usize);
        let (value, len) = (&raw const limit as usize, size_of_val(&limit));
        system::call(libc::SYS_setsockopt, [end, level, option, value, len, 0]).map_err(Failure::Errno)?;
    }
    let mut byte = Box::new(0_u8);
    Ok(Box::new(move || system::call(libc::SYS_recvfrom, [end, &raw mut *byte as usize, 1, 0, 0, 0])))
}

fn semop() -> Result<Call, Failure> {
    struct Semaphore(usize);
    impl Drop for Semaphore {
        fn drop(&mut self) {
            let _ = system::call(libc::SYS_semctl, [self.0, 0, libc::IPC_RMID as usize, 0, 0, 0]);
        }
    }
    let set =
        system::call(libc::SYS_semget, [0, 1, 0o600, 0, 0, 0]).map(Semaphore).map_err(Failure::Errno)?;
    Ok(Box::new(move || {
        let mut down = libc::sembuf { sem_num: 0, sem_op: -1, sem_flg: 0 };
        let set = &set;
        system::call(libc::SYS_semop, [set.0, &raw mut down as usize, 1, 0, 0, 0])
    }))
}

/// Sleeps on a word until it is not 0, by a futex that is not private: the kernel finds it by its page.
fn futex_at(address: usize) -> Work {
    Box::new(move |control| {
        let word = ptr::with_exposed_provenance_mut::<u32>(address);
        control.wake_by(Box::new(move || {
            let word = ptr::with_exposed_provenance_mut::<u32>(address);
            // SAFETY: the test gives a word for this.
            unsafe { AtomicU32::from_ptr(word) }.store(1, std::sync::atomic::Ordering::SeqCst);
            let _ = system::call(
                libc::SYS_futex,
                [address, libc::FUTEX_WAKE as usize, usize::MAX >> 33, 0, 0, 0],
            );
        }));
        let mut tally = Tally::default();
        // SAFETY: as above.
        while unsafe { AtomicU32::from_ptr(word) }.load(std::sync::atomic::Ordering::SeqCst) == 0 {
            match system::call(libc::SYS_futex, [address, libc::FUTEX_WAIT as usize, 0, 0, 0, 0]) {
                Err(libc::EAGAIN) => {}
                outcome => drop(tally.note(control, outcome)),
            }
        }
        tally.report()
    })
}

/// Sleeps on a semaphore that processes share.
fn semaphore_at(address: usize) -> Work {
    Box::new(move |control| {
        let semaphore = ptr::with_exposed_provenance_mut::<libc::sem_t>(address);
        // SAFETY: the test gives room for a semaphore.
        unsafe { libc::sem_init(semaphore, 1, 0) };
        control.wake_by(Box::new(move || {
            // SAFETY: initialized above.
            unsafe { libc::sem_post(ptr::with_exposed_provenance_mut(address)) };
        }));
        control.step();
        // SAFETY: initialized above.
        let result = unsafe { libc::sem_wait(semaphore) };
        format!("result={}", result.unsigned_abs())
    })
}

/// Sleeps on a condition variable, with its mutex next to it.
fn condition_at(address: usize) -> Work {
    Box::new(move |control| {
        let mutex = ptr::with_exposed_provenance_mut::<libc::pthread_mutex_t>(address);
        let condition = ptr::with_exposed_provenance_mut::<libc::pthread_cond_t>(address + 256);
        // SAFETY: all zero is room for an attribute object.
        let mut mutex_kind: libc::pthread_mutexattr_t = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut condition_kind: libc::pthread_condattr_t = unsafe { std::mem::zeroed() };
        let shared = libc::PTHREAD_PROCESS_SHARED;
        // SAFETY: attribute objects of this frame.
        unsafe { libc::pthread_mutexattr_init(&raw mut mutex_kind) };
        // SAFETY: initialized.
        unsafe { libc::pthread_mutexattr_setpshared(&raw mut mutex_kind, shared) };
        // SAFETY: attribute objects of this frame.
        unsafe { libc::pthread_condattr_init(&raw mut condition_kind) };
        // SAFETY: initialized.
        unsafe { libc::pthread_condattr_setpshared(&raw mut condition_kind, shared) };
        // SAFETY: the test gives room for both.
        unsafe { libc::pthread_mutex_init(mutex, &raw const mutex_kind) };
        // SAFETY: the test gives room for both.
        unsafe { libc::pthread_cond_init(condition, &raw const condition_kind) };
        control.wake_by(Box::new(move || {
            let mutex = ptr::with_exposed_provenance_mut(address);
            // The lock makes sure that the other thread sleeps, or has not looked yet.
            // SAFETY: initialized above, as is the condition.
            unsafe { libc::pthread_mutex_lock(mutex) };
            // SAFETY: as above.
            unsafe { libc::pthread_cond_signal(ptr::with_exposed_provenance_mut(address + 256)) };
            // SAFETY: locked above.
            unsafe { libc::pthread_mutex_unlock(mutex) };
        }));
        // SAFETY: initialized above.
        unsafe { libc::pthread_mutex_lock(mutex) };
        control.step();
        let mut result = 0;
        while control.on() && result == 0 {
            // SAFETY: initialized above and locked.
            result = unsafe { libc::pthread_cond_wait(condition, mutex) };
        }
        // SAFETY: locked.
        unsafe { libc::pthread_mutex_unlock(mutex) };
        format!("result={}", result.unsigned_abs())
    })
}

/// Joins a thread that sleeps on a given stack, which holds the word that the kernel clears at its end.
fn join_on(address: usize, len: usize) -> Work {
    Box::new(move |control| {
        let pipe = Pipe::new();
        let (reader, writer) = (pipe.reader, pipe.writer);
        let child = threads::spawn(
            Some((address, len)),
            None,
            Box::new(move |_| {
                let mut byte = 0_u8;
                let outcome = system::call(libc::SYS_read, [reader, &raw mut byte as usize, 1, 0, 0, 0]);
                format!("read={}", outcome.unwrap_or(0))
            }),
        );
        control.wake_by(Box::new(move || {
            let _ = system::call(libc::SYS_write, [writer, (&raw const LONG).addr(), 1, 0, 0, 0]);
        }));
        control.step();
        let report = child.join();
        close(pipe.reader);
        report
    })
}
