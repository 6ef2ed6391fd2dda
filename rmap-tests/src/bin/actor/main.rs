//! A process that does what a test tells it: it maps and unmaps memory, calls `libxpmem.so`, runs threads.
//!
//! Commands come on descriptor 1, a stream socket, one a line; each is answered by one line. Descriptor 0 is
//! the board: a memory file that all processes of a test share.
//!
//! An actor has no memory of its own to protect. The addresses in its commands are the test's to choose, and
//! the code here takes them as given.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the actor's trapped accesses are written for x86-64");

mod api;
mod block;
mod churn;
mod command;
mod confine;
mod cost;
mod cuts;
mod cycle;
mod library;
mod memory;
mod mutex;
mod revoke;
mod supervise;
mod system;
mod threads;
mod trap;
mod work;
mod workers;

use command::{Arguments, Outcome};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    mem::ManuallyDrop,
    os::{fd::FromRawFd as _, unix::net::UnixStream},
};

fn main() {
    system::end_with_parent();
    trap::install();
    threads::install();
    library::load();
    serve();
}

/// The command socket.
fn socket() -> ManuallyDrop<UnixStream> {
    // SAFETY: descriptor 1 is the command socket by this program's contract, and nobody closes it.
    ManuallyDrop::new(unsafe { UnixStream::from_raw_fd(1) })
}

/// Answers commands until there are no more.
fn serve() -> ! {
    let socket = socket();
    for line in BufReader::new(&*socket).lines() {
        let Ok(line) = line else { break };
        if line == "exit" {
            break;
        }
        if line == "endthread" {
            // The program goes on without its first thread: /proc shows no memory for it then.
            std::thread::spawn(|| {
                let _ = self::socket().write_all(b"ok \n");
                serve()
            });
            system::end_thread();
        }
        let answer = command::text(execute(&line));
        if (&*socket).write_all(answer.as_bytes()).is_err() {
            break;
        }
    }
    std::process::exit(0)
}

/// Does what one line says.
fn execute(line: &str) -> Outcome {
    let mut arguments = Arguments::new(line);
    let verb = arguments.word()?;
    match verb {
        "hello" => Ok(String::new()),
        "worker" => workers::call(&mut arguments),
        "send" => workers::send(&mut arguments),
        "receive" => workers::receive(&mut arguments),
        "finished" => workers::finished(&mut arguments),
        "xpmem" => library::call(&mut arguments),
        "counters" => library::counters(),
        "cost" => cost::cost(&mut arguments),
        "cycle" => cycle::cycle(&mut arguments),
        "start" => threads::start(&mut arguments),
        "stop" => threads::stop(&mut arguments),
        "tid" => threads::tid(&mut arguments),
        "progress" => threads::progress(&mut arguments),
        "fork" => system::fork(&mut arguments),
        "mutex" => mutex::init(&mut arguments),
        "supervise" => supervise::supervise(),
        "confine" => confine::confine(&mut arguments),
        "rounds" => revoke::rounds(&mut arguments),
        _ => memory::command(verb, &mut arguments).unwrap_or_else(|| system::command(verb, &mut arguments)),
    }
}
