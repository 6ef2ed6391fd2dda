//! Asking the processes of this machine what they have counted, and whom they share memory with.
//!
//! A process is found by the name of its socket. It answers its own user and root. Nobody is waited for longer than the caller says.

use super::protocol::{self, Message};
use super::rendezvous::Name;
use crate::counters::Sheet;
use crate::engine::Kind;
use crate::engine::directory::Directory;
use crate::error::{Error, Result, failed};
use crate::process;
use crate::sys::socket::{self, Peer};
use crate::sys::{Errno, procfs};
use core::time::Duration;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::os::fd::OwnedFd;
use std::time::Instant;

/// Why a process has not said anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Silence {
    /// It is another user's.
    Denied,
    /// It is stopped, by a signal or a debugger.
    Stopped,
    /// It has not answered in time.
    Late,
    /// The kernel shares its memory (the engine `mirror`), and what it counts cannot be read from here: it is another user's, or has closed the descriptor.
    Uncounted,
    /// What it says is not understood: it has another version of the library, or none.
    Strange,
}

/// A process that others may share memory with.
#[derive(Clone, Debug)]
pub struct Process {
    /// The name of the socket where others meet it, which does not tell the ids of its segments; empty if it has none (the engine `driver`).
    pub socket: String,
    /// Its id here; 0 if it is in a pid namespace that cannot be seen from here.
    pub pid: u32,
    /// Its effective user, when it first used the library.
    pub uid: u32,
    /// What it says.
    pub sheet: core::result::Result<Sheet, Silence>,
}

/// The names in the text of `/proc/net/unix` of sockets that listen.
fn names(text: &str) -> Vec<Name> {
    const LISTENS: u64 = 0x1_0000;
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let flags = u64::from_str_radix(words.nth(3)?, 16).ok()?;
            let name = words.nth(3)?.strip_prefix('@')?;
            Name::parse(name.as_bytes()).filter(|_| flags & LISTENS != 0)
        })
        .collect()
}

/// Somebody who has been asked.
struct Asked {
    name: Name,
    socket: OwnedFd,
    peer: Peer,
}

const REQUEST: u32 = 1;

fn ask(name: Name, wanted: impl Fn(u32) -> bool) -> Option<Asked> {
    let socket = name.connect_at_once().ok()?;
    let peer = socket::peer(&socket).ok().filter(|peer| wanted(peer.pid))?;
    if name.kind() == Kind::Clone {
        // Whether it was sent shows when no answer comes.
        let _ = socket::send(&socket, &Message::Survey { request: REQUEST }.encode(), None);
    }
    Some(Asked { name, socket, peer })
}

fn answer(socket: &OwnedFd, rows: usize) -> Option<core::result::Result<Sheet, Silence>> {
    let mut bytes = [0; protocol::SIZE + 1];
    match socket::receive(socket, &mut bytes) {
        Err(Errno::AGAIN) => None,
        // The process has ended.
        Ok((0, _)) | Err(_) => Some(Err(Silence::Late)),
        Ok((len, file)) => Some(match (Message::decode(&bytes[..len]), file) {
            (Some(Message::Surveyed { request: REQUEST }), Some(file)) => {
                Sheet::read(&file, rows).map_err(|_| Silence::Strange)
            }
            (Some(Message::Refused { request: REQUEST, errno }), _)
                if errno == libc::EACCES.unsigned_abs() =>
            {
                Err(Silence::Denied)
            }
            _ => Err(Silence::Strange),
        }),
    }
}

/// The answers of these, in order, as far as they come in time.
fn answers(asked: Vec<Asked>, limit: Duration, rows: usize) -> Result<Vec<Process>> {
    let until = Instant::now() + limit;
    let uncounted = |asked: &Asked| (asked.name.kind() != Kind::Clone).then_some(Err(Silence::Uncounted));
    let mut answers: Vec<_> = asked.iter().map(uncounted).collect();
    loop {
        let waiting: Vec<usize> = (0..asked.len()).filter(|index| answers[*index].is_none()).collect();
        let left = until.saturating_duration_since(Instant::now());
        if waiting.is_empty() || left.is_zero() {
            break;
        }
        let mut entries: Vec<_> =
            waiting.iter().map(|index| PollFd::new(&asked[*index].socket, PollFlags::IN)).collect();
        let left = Timespec::try_from(left).map_err(|_| Error::Invalid("the limit is too long"))?;
        match rustix::event::poll(&mut entries, Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(failed("poll")(errno)),
        }
        for index in waiting {
            answers[index] = answer(&asked[index].socket, rows);
        }
    }
    let found = asked.into_iter().zip(answers).map(|(asked, answer)| Process {
        socket: asked.name.to_string(),
        pid: asked.peer.pid,
        uid: asked.peer.uid,
        sheet: answer.unwrap_or_else(|| {
            Err(if procfs::is_stopped(asked.peer.pid) { Silence::Stopped } else { Silence::Late })
        }),
    });
    Ok(found.collect())
}

/// The processes that can be met in this network namespace, or in the directory of `RMAP_RENDEZVOUS`, and whose ids are wanted, each with at most so many rows of
/// segments and of others. None is waited for longer than the limit.
///
/// # Errors
/// [`Error::OutOfResources`] if `/proc/net/unix` cannot be read, or descriptors run out.
pub(crate) fn processes(wanted: impl Fn(u32) -> bool, limit: Duration, rows: usize) -> Result<Vec<Process>> {
    // So many descriptors at once are everybody's.
    const BATCH: usize = 256;
    let text = std::fs::read_to_string("/proc/net/unix").map_err(|error| {
        failed("read of /proc/net/unix")(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    })?;
    process::read_environment();
    let mut names = names(&text);
    if let Some(directory) = Directory::open() {
        directory
            .each_name(|name| names.push(name))
            .map_err(failed("read of the directory of RMAP_RENDEZVOUS"))?;
    }
    names.sort_unstable();
    names.dedup();
    let mut found = Vec::new();
    for names in names.chunks(BATCH) {
        let asked = names.iter().filter_map(|name| ask(*name, &wanted)).collect();
        found.extend(answers(asked, limit, rows)?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_told_from_connections() {
        let text = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0005 01 17 @rmap-c-0123456789abcdef\n\
            0000000000000000: 00000003 00000000 00000000 0005 03 18 @rmap-c-0123456789abcdef\n\
            0000000000000000: 00000002 00000000 00010000 0005 01 19 @rmap-c-0123456789abcdef0\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 20 /run/rmap-c-0123456789abcdef\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 21\n";
        let found: Vec<_> = names(text).iter().map(Name::to_string).collect();
        assert_eq!(found, ["rmap-c-0123456789abcdef"]);
    }

    #[test]
    fn any_text_is_read() {
        for text in ["", "\n\n", "a b c d e f g h i", "0: 0 0 zz 0 0 0 @rmap-c-0000000000000000"] {
            assert_eq!(names(text).len(), 0);
        }
    }
}
