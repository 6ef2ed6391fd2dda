//! `/proc/thread-self/maps`, read piece by piece on the stack, and its per-address query (`PROCMAP_QUERY`, Linux 6.11).

use super::features::Feature;
use super::memory::ProtFlags;
use super::{Errno, SysResult, procfs, raw};
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicBool, Ordering};
use rustix::fs::SeekFrom;
use std::os::fd::{AsRawFd, OwnedFd};

/// A file as the kernel's maps name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) inode: u64,
}

impl FileId {
    /// The identity of an open file.
    pub(crate) fn of(fd: impl std::os::fd::AsFd) -> SysResult<Self> {
        let stat = rustix::fs::fstat(fd)?;
        Ok(Self {
            major: rustix::fs::major(stat.st_dev),
            minor: rustix::fs::minor(stat.st_dev),
            inode: stat.st_ino,
        })
    }
}

/// One mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vma {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) prot: ProtFlags,
    pub(crate) shared: bool,
    pub(crate) offset: u64,
    /// `None` for anonymous memory.
    pub(crate) file: Option<FileId>,
}

impl Vma {
    /// The file offset that `addr` shows.
    pub(crate) fn offset_of(&self, addr: usize) -> u64 {
        self.offset.wrapping_add(addr as u64).wrapping_sub(self.start as u64)
    }
}

/// Room for the longest line: a path of `PATH_MAX` with every byte escaped does not fit, and is cut.
const BUFFER: usize = 8192;

fn each_vma(fd: &OwnedFd, mut each: impl FnMut(&Vma, &[u8]) -> ControlFlow<()>) -> SysResult<()> {
    rustix::fs::seek(fd, SeekFrom::Start(0))?;
    let mut buffer = [0u8; BUFFER];
    let mut filled = 0;
    let mut skipping = false;
    loop {
        let count = match rustix::io::read(fd, &mut buffer[filled..]) {
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        filled += count;
        let mut start = 0;
        while let Some(len) = buffer[start..filled].iter().position(|b| *b == b'\n') {
            let line = &buffer[start..start + len];
            start += len + 1;
            if core::mem::take(&mut skipping) {
                continue;
            }
            if let Some((vma, path)) = parse(line)
                && each(&vma, path).is_break()
            {
                return Ok(());
            }
        }
        if count == 0 {
            return Ok(());
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
        if filled == BUFFER {
            if !core::mem::replace(&mut skipping, true)
                && let Some((vma, path)) = parse(&buffer)
                && each(&vma, path).is_break()
            {
                return Ok(());
            }
            filled = 0;
        }
    }
}

fn parse(line: &[u8]) -> Option<(Vma, &[u8])> {
    let mut words = line.splitn(6, |b| *b == b' ');
    let mut range = words.next()?.split(|b| *b == b'-');
    let flags = words.next()?;
    let offset = procfs::number(words.next()?, 16);
    let mut device = words.next()?.split(|b| *b == b':');
    let inode = procfs::number(words.next()?, 10);
    let path = words.next().unwrap_or_default().trim_ascii_start();
    let has = |letter: u8, flag| {
        if flags.contains(&letter) { flag } else { ProtFlags::empty() }
    };
    let file = FileId {
        major: procfs::number(device.next()?, 16) as u32,
        minor: procfs::number(device.next()?, 16) as u32,
        inode,
    };
    let vma = Vma {
        start: procfs::number(range.next()?, 16) as usize,
        end: procfs::number(range.next()?, 16) as usize,
        prot: has(b'r', ProtFlags::READ) | has(b'w', ProtFlags::WRITE) | has(b'x', ProtFlags::EXEC),
        shared: flags.last() == Some(&b's'),
        offset,
        // System V segments have inode numbers that start at 0.
        file: (inode != 0 || path.starts_with(b"/")).then_some(file),
    };
    Some((vma, path))
}

/// The mappings of this process: one after the other, and by address.
#[derive(Debug)]
pub(crate) struct Maps {
    fd: OwnedFd,
    supported: AtomicBool,
}

#[repr(C)]
#[derive(Default)]
struct QueryArgs {
    size: u64,
    flags: u64,
    addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    major: u32,
    minor: u32,
    name_size: u32,
    build_id_size: u32,
    name_addr: u64,
    build_id_addr: u64,
}

const QUERY: usize = 0xc068_6611;
const WRITABLE: u64 = 0x02;
const SHARED: u64 = 0x08;
const COVERING_OR_NEXT: u64 = 0x10;
const OF_FILES: u64 = 0x20;

/// The name of a mapping, as in the text of the maps. One that is too long is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name {
    bytes: [u8; Self::LONGEST],
    len: usize,
}

impl Name {
    const LONGEST: usize = 512;

    fn new(text: &[u8]) -> Self {
        let mut name = Self { bytes: [0; Self::LONGEST], len: text.len().min(Self::LONGEST) };
        name.bytes[..name.len].copy_from_slice(&text[..name.len]);
        name
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Maps {
    pub(crate) fn new() -> SysResult<Self> {
        Ok(Self { fd: procfs::open(c"/proc/thread-self/maps")?, supported: AtomicBool::new(true) })
    }

    /// Calls `each` for every mapping with its path, in order of address. It must not ask for mappings in turn.
    pub(crate) fn each_vma(&self, each: impl FnMut(&Vma, &[u8]) -> ControlFlow<()>) -> SysResult<()> {
        each_vma(&self.fd, each)
    }

    /// Whether [`at_or_after`](Self::at_or_after) asks for one mapping, and does not read them all (Linux 6.11).
    pub(crate) fn finds_by_address(&self) -> bool {
        self.supported.load(Ordering::Relaxed)
    }

    /// The mapping that covers `addr`, else the next one above it.
    ///
    /// # Errors
    /// It cannot be found out now. That is not to be taken for no mapping.
    pub(crate) fn find_at_or_after(&self, addr: usize) -> SysResult<Option<Vma>> {
        if self.supported.load(Ordering::Relaxed) {
            match self.query(addr) {
                Ok(vma) => return Ok(Some(vma)),
                Err(Errno::NOENT) => return Ok(None),
                // The text may be there.
                Err(Errno::NOMEM | Errno::AGAIN) => {}
                Err(_) => self.supported.store(false, Ordering::Relaxed),
            }
        }
        let mut found = None;
        self.each_vma(|vma, _| {
            if vma.end > addr {
                found = Some(*vma);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// As [`Self::find_at_or_after`], where a mapping that is not found does no harm.
    pub(crate) fn at_or_after(&self, addr: usize) -> Option<Vma> {
        self.find_at_or_after(addr).ok().flatten()
    }

    /// The mapping that covers `addr`.
    ///
    /// # Errors
    /// As [`Self::find_at_or_after`].
    pub(crate) fn find_at(&self, addr: usize) -> SysResult<Option<Vma>> {
        Ok(self.find_at_or_after(addr)?.filter(|vma| vma.start <= addr))
    }

    /// As [`Self::find_at`], where a mapping that is not found does no harm.
    pub(crate) fn at(&self, addr: usize) -> Option<Vma> {
        self.at_or_after(addr).filter(|vma| vma.start <= addr)
    }

    /// The mapping that covers `addr`, with its name.
    pub(crate) fn named_at(&self, addr: usize) -> SysResult<Option<(Vma, Name)>> {
        if self.supported.load(Ordering::Relaxed) {
            let mut name = Name::new(&[0; Name::LONGEST]);
            match self.ask(addr, COVERING_OR_NEXT, Some(&mut name)) {
                Ok(vma) => return Ok((vma.start <= addr).then_some((vma, name))),
                Err(Errno::NOENT) => return Ok(None),
                // The text says more: the name is too long for the query.
                Err(_) => {}
            }
        }
        let mut found = None;
        self.each_vma(|vma, path| {
            if vma.end <= addr {
                return ControlFlow::Continue(());
            }
            if vma.start <= addr {
                found = Some((*vma, Name::new(path)));
            }
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// Whether a file is mapped shared and writable whose name satisfies `wanted`. Of a mapping that is known `known` says where to go on
    /// behind it.
    pub(crate) fn any_shared_file(
        &self,
        known: impl Fn(&Vma) -> Option<usize>,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> SysResult<bool> {
        let mut addr = 0;
        while self.supported.load(Ordering::Relaxed) {
            let next = self.ask(addr, COVERING_OR_NEXT | OF_FILES | SHARED | WRITABLE, None);
            if let Some((vma, behind)) = next.ok().and_then(|vma| Some((vma, known(&vma)?))) {
                addr = behind.max(vma.end);
                continue;
            }
            let mut name = Name::new(&[0; Name::LONGEST]);
            match next.and_then(|vma| self.ask(vma.start, COVERING_OR_NEXT, Some(&mut name))) {
                Ok(_) if wanted(name.as_bytes()) => return Ok(true),
                Ok(vma) => addr = vma.end,
                Err(Errno::NOENT) => return Ok(false),
                Err(_) => break,
            }
        }
        let mut found = false;
        self.each_vma(|vma, path| {
            let asked = vma.shared && vma.prot.contains(ProtFlags::WRITE) && known(vma).is_none();
            found = asked && wanted(path);
            if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(found)
    }

    /// Whether the kernel finds one mapping by its address (Linux 6.11).
    pub(crate) fn can_query(&self) -> SysResult<()> {
        match self.query(0) {
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn query(&self, addr: usize) -> SysResult<Vma> {
        self.ask(addr, COVERING_OR_NEXT, None)
    }

    /// Makes a query, also for the name if there is room for it: all of `name` is.
    fn ask(&self, addr: usize, flags: u64, mut name: Option<&mut Name>) -> SysResult<Vma> {
        Feature::ProcmapQuery.check()?;
        let mut args = QueryArgs {
            size: size_of::<QueryArgs>() as u64,
            flags,
            addr: addr as u64,
            ..QueryArgs::default()
        };
        if let Some(name) = name.as_deref_mut() {
            args.name_size = name.len as u32;
            args.name_addr = name.bytes.as_mut_ptr().expose_provenance() as u64;
        }
        let pointer = core::ptr::from_mut(&mut args).expose_provenance();
        loop {
            // SAFETY: PROCMAP_QUERY fills the struct, whose size it is told, and the name, whose room it is told; the build id is not
            // asked for.
            match unsafe {
                raw::syscall(libc::SYS_ioctl, [self.fd.as_raw_fd() as usize, QUERY, pointer, 0, 0, 0])
            } {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
                Ok(_) => break,
            }
        }
        if let Some(name) = name {
            // With the NUL at the end; 0 if there is no name.
            name.len = (args.name_size as usize).saturating_sub(1);
        }
        let has = |bit, flag| {
            if args.vma_flags & bit != 0 { flag } else { ProtFlags::empty() }
        };
        let file = FileId { major: args.major, minor: args.minor, inode: args.inode };
        Ok(Vma {
            start: args.vma_start as usize,
            end: args.vma_end as usize,
            prot: has(1, ProtFlags::READ) | has(2, ProtFlags::WRITE) | has(4, ProtFlags::EXEC),
            shared: args.vma_flags & 8 != 0,
            offset: args.vma_offset,
            file: (args.inode != 0 || args.major != 0 || args.minor != 0).then_some(file),
        })
    }
}

/// What the application has said of huge pages in a mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum HugePageAdvice {
    /// Nothing.
    #[default]
    Neutral,
    Wanted,
    Refused,
    /// Not known yet.
    Unasked,
}

/// Attributes of a mapping that a new mapping in its place must get again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) dont_fork: bool,
    /// A forked child finds zeroes.
    pub(crate) wipe_on_fork: bool,
    /// KSM may merge its pages with equal ones.
    pub(crate) mergeable: bool,
    pub(crate) dont_dump: bool,
    pub(crate) huge_pages: HugePageAdvice,
    pub(crate) locked: bool,
    pub(crate) grows_down: bool,
    /// Device or page-frame mapping, one whose missing pages the application itself provides (userfaultfd), or one whose pages the kernel
    /// may drop (`MAP_DROPPABLE`): must not be touched.
    pub(crate) device: bool,
    pub(crate) protection_key: u32,
    /// Bytes in its pages; 0 if that is not known.
    pub(crate) page_size: usize,
}

/// `/proc/thread-self/smaps`. To read of a mapping there, the kernel walks the page tables of that mapping and of all below.
#[derive(Debug)]
pub(crate) struct Smaps(OwnedFd);

impl Smaps {
    pub(crate) fn new() -> SysResult<Self> {
        Ok(Self(procfs::open(c"/proc/thread-self/smaps")?))
    }

    /// The attributes of the mapping that covers `addr`.
    pub(crate) fn attributes(&self, addr: usize) -> SysResult<Attributes> {
        attributes(&self.0, addr)
    }
}

fn attributes(fd: &OwnedFd, addr: usize) -> SysResult<Attributes> {
    rustix::fs::seek(fd, SeekFrom::Start(0))?;
    let mut buffer = [0u8; BUFFER];
    let mut filled = 0;
    let mut inside = false;
    let mut found = Attributes::default();
    loop {
        let count = match rustix::io::read(fd, &mut buffer[filled..]) {
            Ok(0) => return Ok(found),
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        filled += count;
        let mut start = 0;
        while let Some(len) = buffer[start..filled].iter().position(|b| *b == b'\n') {
            let line = &buffer[start..start + len];
            start += len + 1;
            if line.first().is_some_and(|b| b.is_ascii_digit() || b.is_ascii_lowercase()) {
                if inside {
                    return Ok(found);
                }
                inside = parse(line).is_some_and(|(vma, _)| (vma.start..vma.end).contains(&addr));
            } else if inside {
                attribute_line(line, &mut found);
            }
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
        if filled == BUFFER {
            filled = 0;
        }
    }
}

fn attribute_line(line: &[u8], found: &mut Attributes) {
    if let Some(flags) = line.strip_prefix(b"VmFlags:") {
        for flag in flags.split(|b| *b == b' ') {
            match flag {
                b"dc" => found.dont_fork = true,
                b"wf" => found.wipe_on_fork = true,
                b"mg" => found.mergeable = true,
                b"dd" => found.dont_dump = true,
                b"hg" => found.huge_pages = HugePageAdvice::Wanted,
                b"nh" => found.huge_pages = HugePageAdvice::Refused,
                b"lo" => found.locked = true,
                b"gd" => found.grows_down = true,
                b"io" | b"pf" | b"mm" | b"um" | b"ui" | b"dp" => found.device = true,
                _ => {}
            }
        }
    } else if let Some(size) = line.strip_prefix(b"KernelPageSize:") {
        found.page_size = (procfs::number(size.trim_ascii_start(), 10) as usize) << 10;
    } else if let Some(key) = line.strip_prefix(b"ProtectionKey:") {
        found.protection_key = procfs::number(key.trim_ascii_start(), 10) as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memory;

    #[test]
    fn a_line_of_maps_is_understood() {
        let (vma, path) = parse(b"7f00-8f00 rw-s 00002000 00:01 1234    /memfd:x (deleted)").unwrap();
        assert_eq!((vma.start, vma.end, vma.offset), (0x7f00, 0x8f00, 0x2000));
        assert!(vma.shared);
        assert_eq!(vma.prot, ProtFlags::READ | ProtFlags::WRITE);
        assert_eq!(vma.file, Some(FileId { major: 0, minor: 1, inode: 1234 }));
        assert_eq!(path, b"/memfd:x (deleted)");
        assert_eq!(parse(b"7f00-8f00 ---p 00000000 00:00 0").unwrap().0.file, None);
    }

    #[test]
    fn the_query_agrees_with_the_text() {
        let query = Maps::new().unwrap();
        let here = core::ptr::from_ref(&query).addr();
        let mut text = None;
        let mut text_name = Name::new(b"");
        query
            .each_vma(|vma, path| {
                if (vma.start..vma.end).contains(&here) {
                    text = Some(*vma);
                    text_name = Name::new(path);
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        let queried = query.at(here).unwrap();
        let text = text.unwrap();
        let (named, name) = query.named_at(here).unwrap().unwrap();
        assert_eq!((named, name.as_bytes()), (queried, text_name.as_bytes()));
        // The stack may have grown in between.
        assert_eq!((queried.end, queried.prot, queried.shared), (text.end, text.prot, text.shared));
    }

    #[test]
    fn flags_of_a_mapping_are_understood() {
        let flags = |line: &[u8]| {
            let mut found = Attributes::default();
            attribute_line(line, &mut found);
            found
        };
        let plain = Attributes::default();
        assert_eq!(flags(b"VmFlags: rd wr mr mw me ac sd "), plain);
        let kept_from_children = flags(b"VmFlags: rd wr mr mw me dc ac wf mg");
        assert_eq!(
            kept_from_children,
            Attributes { dont_fork: true, wipe_on_fork: true, mergeable: true, ..plain }
        );
        // What `getrandom` of the vdso keeps its state in.
        let droppable = flags(b"VmFlags: rd wr mr mw me nr wf dd dp");
        assert!(droppable.device && droppable.wipe_on_fork && droppable.dont_dump);
    }

    #[test]
    fn names_of_files_are_found() {
        let maps = Maps::new().unwrap();
        let without =
            Maps { fd: procfs::open(c"/proc/thread-self/maps").unwrap(), supported: AtomicBool::new(false) };
        let program = std::env::current_exe().unwrap();
        let program = program.as_os_str().as_encoded_bytes();
        let file = rustix::fs::memfd_create(c"shared here", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, memory::PAGE as u64).unwrap();
        let id = FileId::of(&file).unwrap();
        let both = ProtFlags::READ | ProtFlags::WRITE;
        memory::map(memory::PAGE, both, memory::MapFlags::SHARED, std::os::fd::AsFd::as_fd(&file), 0)
            .unwrap();
        for maps in [maps, without] {
            let is_here = |name: &[u8]| name.starts_with(b"/memfd:shared here");
            assert!(maps.any_shared_file(|_| None, is_here).unwrap());
            let behind = |vma: &Vma| (vma.file == Some(id)).then_some(vma.end);
            assert!(!maps.any_shared_file(behind, is_here).unwrap());
            // Mapped, but not so.
            assert!(!maps.any_shared_file(|_| None, |name| name == program).unwrap());
        }
        let query = Maps::new().unwrap();
        let mut files = 0;
        let mut all = Vec::new();
        query
            .each_vma(|vma, path| {
                if vma.file.is_some() {
                    all.push((vma.start, path.to_vec()));
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        for (start, path) in all.iter().filter(|(_, path)| path.starts_with(b"/")) {
            if let Some((vma, name)) = query.named_at(*start).unwrap()
                && vma.start == *start
            {
                assert_eq!(name.as_bytes(), path);
                files += 1;
            }
        }
        assert!(files > 0);
    }
}
