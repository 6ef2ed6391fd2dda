//! Moving private memory of a stopped process to a memfd, in place, and back.

use crate::error::{Error, Result, failed};
use crate::plan::{FileId, Part, file_of};
use crate::process::Process;
use crate::remote_call::Caller;
use crate::stopped::Stopped;
use crate::view::View;
use core::ops::Range;
use procfs::process::VmFlags;
use rustix::fs::SeekFrom;
use std::os::fd::{AsFd, OwnedFd};

/// Private memory of a process that is in a memfd now.
#[derive(Debug)]
pub(crate) struct Moved {
    memfd: OwnedFd,
    file: FileId,
    /// The address that offset 0 has.
    start: usize,
    parts: Vec<Part>,
}

/// How much is copied at a time.
const CHUNK: usize = 1 << 20;

impl Moved {
    /// Moves the parts, and has the view show them.
    pub(crate) fn take(process: &Process, stopped: &Stopped, parts: &[Part], view: &View) -> Result<Self> {
        let caller = Caller::choose(process, stopped)?;
        let number = caller.with_text(c"rmap-inspect", |name| {
            let flags = libc::MFD_CLOEXEC as usize;
            caller.call("memfd_create", libc::SYS_memfd_create, [name, flags, 0, 0, 0, 0])
        })?;
        let moved = Self::fill(process, parts, view, number as i32);
        let result = moved.and_then(|mut moved| {
            while let Some(part) = parts.get(moved.parts.len()) {
                if let Err(error) = moved.put_in_place(&caller, part, number) {
                    let _ = moved.give_back_by(process, &caller);
                    return Err(error);
                }
                moved.parts.push(part.clone());
            }
            Ok(moved)
        });
        let _ = caller.call("close", libc::SYS_close, [number, 0, 0, 0, 0, 0]);
        result
    }

    /// Copies what is there. Nothing changes in the process.
    fn fill(process: &Process, parts: &[Part], view: &View, number: i32) -> Result<Self> {
        let memfd = process.descriptor(number)?;
        let start = view.range.start;
        rustix::fs::ftruncate(&memfd, view.range.len() as u64).map_err(failed("ftruncate"))?;
        let stat = rustix::fs::fstat(&memfd).map_err(failed("fstat"))?;
        let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        let file = FileId { device: (major.cast_signed(), minor.cast_signed()), inode: stat.st_ino };
        let mut buffer = vec![0; CHUNK];
        for part in parts {
            // Of a file, pages exist that were never touched.
            let runs = match part.file_backed {
                true => vec![part.range.clone()],
                false => process.existing(&part.range)?,
            };
            for run in runs {
                for from in run.clone().step_by(CHUNK) {
                    let Some(bytes) = buffer.get_mut(..CHUNK.min(run.end - from)) else { continue };
                    process.read(from, bytes)?;
                    write_all(&memfd, bytes, (from - start) as u64)?;
                }
            }
            view.show(&part.range, memfd.as_fd(), (part.range.start - start) as u64)?;
        }
        Ok(Self { memfd, file, start, parts: Vec::new() })
    }

    fn put_in_place(&self, caller: &Caller<'_>, part: &Part, number: usize) -> Result<()> {
        let flags = (libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE) as usize;
        let offset = part.range.start - self.start;
        let protection = part.protection as usize;
        let arguments = [part.range.start, part.range.len(), protection, flags, number, offset];
        caller.call("mmap", libc::SYS_mmap, arguments)?;
        advise(caller, &part.range, part.flags);
        Ok(())
    }

    /// The file, and the offset that address 0 would have.
    pub(crate) fn origin(&self) -> (FileId, u64) {
        (self.file, 0u64.wrapping_sub(self.start as u64))
    }

    /// Makes private memory again of what the process still maps from here.
    pub(crate) fn give_back(&self, process: &Process, stopped: &Stopped) -> Result<()> {
        let caller = Caller::choose(process, stopped)?;
        self.give_back_by(process, &caller)
    }

    fn give_back_by(&self, process: &Process, caller: &Caller<'_>) -> Result<()> {
        let maps = process.all_mappings()?;
        for part in &self.parts {
            for map in &maps {
                let (start, end) = (map.address.0 as usize, map.address.1 as usize);
                let there = part.range.start.max(start)..part.range.end.min(end);
                let origin = file_of(map).map(|file| (file, map.offset.wrapping_sub(start as u64)));
                if !there.is_empty() && origin == Some(self.origin()) {
                    self.make_private(
                        process,
                        caller,
                        &there,
                        crate::plan::protection(map.perms),
                        part.flags,
                    )?;
                }
            }
        }
        Ok(())
    }

    fn make_private(
        &self,
        process: &Process,
        caller: &Caller<'_>,
        range: &Range<usize>,
        protection: i32,
        attributes: VmFlags,
    ) -> Result<()> {
        let all = (libc::PROT_READ | libc::PROT_WRITE) as usize;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as usize;
        let (at, len) = (range.start, range.len());
        let staging = caller.call("mmap", libc::SYS_mmap, [0, len, all, flags, usize::MAX, 0])?;
        let put = || {
            self.copy_back(process, range, staging)?;
            let narrow = [staging, len, protection as usize, 0, 0, 0];
            caller.call("mprotect", libc::SYS_mprotect, narrow)?;
            let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as usize;
            caller.call("mremap", libc::SYS_mremap, [staging, len, len, flags, at, 0])
        };
        if let Err(error) = put() {
            let _ = caller.call("munmap", libc::SYS_munmap, [staging, len, 0, 0, 0, 0]);
            return Err(error);
        }
        advise(caller, range, attributes);
        Ok(())
    }

    fn copy_back(&self, process: &Process, range: &Range<usize>, staging: usize) -> Result<()> {
        let mut buffer = vec![0; CHUNK];
        let (mut at, end) = ((range.start - self.start) as u64, (range.end - self.start) as u64);
        // Holes stay holes.
        while let Ok(data) = rustix::fs::seek(&self.memfd, SeekFrom::Data(at)) {
            if data >= end {
                break;
            }
            let hole = rustix::fs::seek(&self.memfd, SeekFrom::Hole(data)).map_err(failed("lseek"))?;
            at = data;
            while at < hole.min(end) {
                let len = (CHUNK as u64).min(hole.min(end) - at) as usize;
                let Some(bytes) = buffer.get_mut(..len) else { break };
                let count = rustix::io::pread(&self.memfd, &mut *bytes, at).map_err(failed("pread"))?;
                let Some(bytes) = bytes.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
                process.write(staging + (at as usize + self.start - range.start), bytes)?;
                at += count as u64;
            }
        }
        Ok(())
    }
}

/// Gives a mapping the attributes of the one that was there. That it does not work is no error.
fn advise(caller: &Caller<'_>, range: &Range<usize>, flags: VmFlags) {
    let advices = [
        (VmFlags::DC, libc::MADV_DONTFORK),
        (VmFlags::DD, libc::MADV_DONTDUMP),
        (VmFlags::HG, libc::MADV_HUGEPAGE),
        (VmFlags::NH, libc::MADV_NOHUGEPAGE),
    ];
    for (flag, advice) in advices {
        if flags.contains(flag) {
            let arguments = [range.start, range.len(), advice as usize, 0, 0, 0];
            let _ = caller.call("madvise", libc::SYS_madvise, arguments);
        }
    }
    if flags.contains(VmFlags::LO) {
        let _ = caller.call("mlock", libc::SYS_mlock, [range.start, range.len(), 0, 0, 0, 0]);
    }
}

fn write_all(memfd: &OwnedFd, mut bytes: &[u8], mut offset: u64) -> Result<()> {
    while !bytes.is_empty() {
        let count = rustix::io::pwrite(memfd, bytes, offset).map_err(failed("pwrite"))?;
        bytes = bytes.get(count..).unwrap_or_default();
        offset += count as u64;
        if count == 0 {
            return Err(Error::Failed { call: "pwrite", errno: rustix::io::Errno::IO });
        }
    }
    Ok(())
}
