//! An honest peer: a child of the process under test.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

/// A request, and its answer: what it means is between the two.
pub(crate) type Words = [u64; 4];

/// A child that answers requests.
pub(crate) struct Child(UnixStream);

fn to_bytes(words: Words) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (part, word) in bytes.chunks_exact_mut(8).zip(words) {
        part.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

fn read(stream: &mut UnixStream) -> Option<Words> {
    let mut bytes = [0; 32];
    stream.read_exact(&mut bytes).ok()?;
    let mut words = [0; 4];
    for (part, word) in bytes.chunks_exact(8).zip(&mut words) {
        *word = u64::from_ne_bytes(part.try_into().expect("eight bytes"));
    }
    Some(words)
}

impl Child {
    /// Forks. Must come before the first use of the library.
    pub(crate) fn start(answer: fn() -> Box<dyn FnMut(Words) -> Words>) -> Self {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        // SAFETY: no other thread is there yet that could hold a lock.
        match unsafe { libc::fork() } {
            -1 => panic!("fork: {}", std::io::Error::last_os_error()),
            0 => {
                drop(ours);
                // SAFETY: takes numbers only.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                let mut answer = answer();
                while let Some(request) = read(&mut theirs) {
                    if theirs.write_all(&to_bytes(answer(request))).is_err() {
                        break;
                    }
                }
                // SAFETY: ends the process.
                unsafe { libc::_exit(0) }
            }
            _ => Self(ours),
        }
    }

    /// Asks, and waits for the answer.
    pub(crate) fn ask(&mut self, request: Words) -> Words {
        self.0.write_all(&to_bytes(request)).expect("the honest peer lives");
        read(&mut self.0).expect("the honest peer lives")
    }
}
