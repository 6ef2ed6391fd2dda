//! An errno in words.

use super::Errno;
use core::fmt;

/// Shows an errno. Its own words come from the standard library, which asks `malloc` for them: the service thread must not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said(pub(crate) Errno);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const WORDS: [(Errno, &str); 28] = [
            (Errno::ACCESS, "Permission denied"),
            (Errno::ADDRINUSE, "Address already in use"),
            (Errno::AGAIN, "Resource temporarily unavailable"),
            (Errno::BADF, "Bad file descriptor"),
            (Errno::BUSY, "Device or resource busy"),
            (Errno::CONNREFUSED, "Connection refused"),
            (Errno::CONNRESET, "Connection reset by peer"),
            (Errno::EXIST, "File exists"),
            (Errno::FAULT, "Bad address"),
            (Errno::FBIG, "File too large"),
            (Errno::INTR, "Interrupted system call"),
            (Errno::INVAL, "Invalid argument"),
            (Errno::IO, "Input/output error"),
            (Errno::MFILE, "Too many open files"),
            (Errno::NFILE, "Too many open files in system"),
            (Errno::NOBUFS, "No buffer space available"),
            (Errno::NODEV, "No such device"),
            (Errno::NOENT, "No such file or directory"),
            (Errno::NOMEM, "Cannot allocate memory"),
            (Errno::NOSPC, "No space left on device"),
            (Errno::NOSYS, "Function not implemented"),
            (Errno::NOTTY, "Inappropriate ioctl for device"),
            (Errno::OPNOTSUPP, "Operation not supported"),
            (Errno::PERM, "Operation not permitted"),
            (Errno::PIPE, "Broken pipe"),
            (Errno::SRCH, "No such process"),
            (Errno::STALE, "Stale file handle"),
            (Errno::TOOMANYREFS, "Too many references"),
        ];
        let known = WORDS.iter().find(|(errno, _)| *errno == self.0);
        let words = known.map_or("Error", |(_, words)| words);
        write!(f, "{words} (os error {})", self.0.raw_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_the_standard_library_says() {
        for errno in [Errno::NOMEM, Errno::MFILE, Errno::AGAIN, Errno::PERM] {
            assert_eq!(Said(errno).to_string(), errno.to_string());
        }
        assert_eq!(Said(Errno::from_raw_os_error(4000)).to_string(), "Error (os error 4000)");
    }
}
