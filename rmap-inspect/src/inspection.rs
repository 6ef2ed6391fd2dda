//! An inspection: from opening a range to giving it back.

use crate::error::{Error, Result, failed};
use crate::mirror::{self, Mirror};
use crate::moving::Moved;
use crate::plan::{self, FileId, Part, Source};
use crate::process::{PAGE, Process};
use crate::stopped::Stopped;
use crate::view::View;
use core::ops::Range;
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, OwnedFd};

/// How a piece is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the kernel module.
    Kernel,
    /// From the file that the process shares it from.
    Descriptor,
    /// From a memfd to which it was moved.
    Moved,
}

/// A range that is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The other process's addresses.
    pub range: Range<usize>,
    /// How.
    pub way: Way,
    /// The file, and the offset that address 0 would have.
    origin: Option<(FileId, u64)>,
}

/// A range of another process's memory, mapped here.
///
/// It belongs to the thread that has opened it only while it is opened and closed; it may be sent to others in between. A forked child must not
/// use it.
#[derive(Debug)]
pub struct Inspection {
    process: Process,
    view: View,
    pieces: Vec<Piece>,
    moved: Option<Moved>,
    mirror: Option<Mirror>,
}

impl Inspection {
    /// Maps `range` of process `pid` here; with `writable`, stores go to the process. The ends are moved outwards to whole pages.
    ///
    /// What cannot be shown is left out; see [`pieces`](Self::pieces).
    ///
    /// # Errors
    /// If nothing can be shown; nothing has changed in the process then.
    pub fn open(pid: i32, range: Range<usize>, writable: bool) -> Result<Self> {
        let end = range.end.checked_next_multiple_of(PAGE).ok_or(Error::NoRange)?;
        let range = range.start / PAGE * PAGE..end;
        if range.is_empty() {
            return Err(Error::NoRange);
        }
        let process = Process::open(pid)?;
        let view = View::of(range.clone(), writable)?;
        if mirror::is_there() {
            let mirror = mirror::show(&process, &range, &view, writable)?;
            let pieces = vec![Piece { range, way: Way::Kernel, origin: None }];
            return Ok(Self { process, view, pieces, moved: None, mirror: Some(mirror) });
        }
        let mut inspection = Self { process, view, pieces: Vec::new(), moved: None, mirror: None };
        inspection.take(&range, writable)?;
        Ok(inspection)
    }

    fn take(&mut self, range: &Range<usize>, writable: bool) -> Result<()> {
        let process = &self.process;
        let mut parts = plan::parts(process, range)?;
        let mut reason = Error::Hole(range.start);
        let is_private = |part: &Part| part.source == Source::Private;
        if parts.iter().any(is_private) {
            process.check_movable()?;
            let stopped = Stopped::all(process)?;
            // As it is now that nothing changes any more.
            parts = plan::parts(process, range)?;
            let private: Vec<Part> = parts.iter().filter(|part| is_private(part)).cloned().collect();
            if !private.is_empty() {
                let moved = Moved::take(process, &stopped, &private, &self.view)?;
                let origin = Some(moved.origin());
                let piece = |part: Part| Piece { range: part.range, way: Way::Moved, origin };
                self.pieces.extend(private.into_iter().map(piece));
                self.moved = Some(moved);
            }
        }
        for part in parts {
            let Source::Shared { file, offset } = part.source else { continue };
            match open_shared(process, file, writable)
                .and_then(|fd| self.view.show(&part.range, fd.as_fd(), offset))
            {
                Ok(()) => {
                    let origin = Some((file, offset.wrapping_sub(part.range.start as u64)));
                    self.pieces.push(Piece { range: part.range, way: Way::Descriptor, origin });
                }
                Err(error) => reason = error,
            }
        }
        self.pieces.sort_by_key(|piece| piece.range.start);
        if self.pieces.is_empty() { Err(reason) } else { Ok(()) }
    }

    /// The ranges that are shown, in order.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Whether the process has not ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.process.lives()
    }

    /// Forgets what the process has unmapped or replaced since. The kernel module does that by itself.
    ///
    /// # Errors
    /// [`Error::NoProcess`] if it has ended: what is shown is what it had last.
    pub fn refresh(&mut self) -> Result<()> {
        if self.pieces.iter().all(|piece| piece.way == Way::Kernel) {
            return if self.is_alive() { Ok(()) } else { Err(Error::NoProcess(self.process.pid)) };
        }
        let maps = self.process.all_mappings()?;
        let mut pieces = Vec::new();
        for piece in &self.pieces {
            let mut rest = piece.range.clone();
            for map in &maps {
                let (start, end) = (map.address.0 as usize, map.address.1 as usize);
                let there = rest.start.max(start)..rest.end.min(end);
                let origin = plan::file_of(map).map(|file| (file, map.offset.wrapping_sub(start as u64)));
                if there.is_empty() || origin != piece.origin {
                    continue;
                }
                if rest.start < there.start {
                    self.view.hide(&(rest.start..there.start))?;
                }
                rest.start = there.end;
                pieces.push(Piece { range: there, ..*piece });
            }
            if !rest.is_empty() {
                self.view.hide(&rest)?;
            }
        }
        self.pieces = pieces;
        Ok(())
    }

    /// Copies the bytes at `addr` of the process.
    ///
    /// # Errors
    /// [`Error::Hole`] with the first address that is not shown.
    pub fn read(&self, addr: usize, bytes: &mut [u8]) -> Result<()> {
        match &self.mirror {
            // What the module shows cannot be pinned, which is how the kernel copies out of a view.
            Some(mirror) => self.view.check(addr, bytes.len()).and_then(|()| mirror.read(addr, bytes)),
            None => self.view.read(addr, bytes),
        }
    }

    /// Stores bytes at `addr` of the process.
    ///
    /// # Errors
    /// [`Error::Hole`] with the first address that is not shown, or may not be written.
    pub fn write(&self, addr: usize, bytes: &[u8]) -> Result<()> {
        match &self.mirror {
            Some(mirror) => self.view.check(addr, bytes.len()).and_then(|()| mirror.write(addr, bytes)),
            None => self.view.write(addr, bytes),
        }
    }

    /// Where the byte at `addr` of the process is shown here, until the inspection ends. Null if it is not.
    ///
    /// Other processes store to it at any time: use volatile or atomic accesses. It may become a hole at any time: then a touch is
    /// `SIGSEGV` or `SIGBUS`.
    #[must_use]
    pub fn as_ptr(&self, addr: usize) -> *mut u8 {
        let shown = self.pieces.iter().any(|piece| piece.range.contains(&addr));
        if shown { self.view.at(addr) } else { core::ptr::null_mut() }
    }

    /// Ends the inspection: what was moved is the process's private memory again.
    ///
    /// # Errors
    /// What could not be given back stays in the memfd; the process goes on with that.
    pub fn close(mut self) -> Result<()> {
        self.give_back()
    }

    fn give_back(&mut self) -> Result<()> {
        let Some(moved) = self.moved.take() else { return Ok(()) };
        match Stopped::all(&self.process) {
            Ok(stopped) => moved.give_back(&self.process, &stopped),
            // It has taken everything with it.
            Err(_) if !self.process.lives() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// As [`Inspection::close`], but errors are not told.
impl Drop for Inspection {
    fn drop(&mut self) {
        let _ = self.give_back();
    }
}

/// Opens a file that the process maps: by a descriptor of the process's, or by the name of the file.
fn open_shared(process: &Process, file: FileId, writable: bool) -> Result<OwnedFd> {
    let access = if writable { OFlags::RDWR } else { OFlags::RDONLY } | OFlags::CLOEXEC;
    let mut errno = rustix::io::Errno::NOENT;
    for descriptor in process.descriptors_of(file.device, file.inode) {
        // Opened anew, for the access that is wanted.
        match rustix::fs::open(descriptor.path(), access, Mode::empty()) {
            Ok(fd) => return Ok(fd),
            Err(error) => errno = error,
        }
        if let Some(Ok(fd)) = descriptor.of_first_thread().map(|number| process.descriptor(number))
            && rustix::fs::fcntl_getfl(&fd).is_ok_and(|flags| !writable || flags.contains(OFlags::RDWR))
        {
            return Ok(fd);
        }
    }
    for map in process.all_mappings()? {
        let name = match &map.pathname {
            procfs::process::MMapPath::Path(path) if plan::file_of(&map) == Some(file) => path,
            _ => continue,
        };
        let in_its_root = format!("/proc/{}/root{}", process.pid, name.display());
        let links = format!("/proc/{}/map_files/{:x}-{:x}", process.pid, map.address.0, map.address.1);
        for path in [in_its_root, links] {
            match rustix::fs::open(path, access, Mode::empty()) {
                Ok(fd) if is_it(&fd, file) => return Ok(fd),
                Ok(_) => {}
                Err(error) => errno = error,
            }
        }
    }
    Err(failed("open of the file behind the memory")(errno))
}

fn is_it(fd: &OwnedFd, file: FileId) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| {
        let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        stat.st_ino == file.inode && (major.cast_signed(), minor.cast_signed()) == file.device
    })
}
