//! Moving memory of this process into an object, in place, and back, while its threads stand still.

use super::attributes::huge_page_advice;
use super::extract::{self, Extract, Order};
use super::huge::HugePages;
use super::numa::Placement;
use super::object::{Object, Objects};
use super::pins::OldPages;
use super::staging::{Stager, Staging};
use super::watch::Watchers;
use crate::error::{Error, Result, failed};
use crate::log::log;
use crate::range::Range;
use crate::sys::maps::{Attributes, FileId, HugePageAdvice, Maps, Vma};
use crate::sys::memory::{self, MapFlags, PAGE, ProtFlags};
use crate::sys::pagemap::Pagemap;
use crate::sys::uffd::Userfaultfd;
use crate::sys::{Errno, Said, SysResult};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Copies `range` of this process to its place in the object.
///
/// # Errors
/// The page that could not be copied is a hole.
pub(crate) fn fill(object: &Object, range: Range) -> SysResult<()> {
    fill_by_descriptor(object.own(), range)
}

/// The same, by system calls alone.
pub(super) fn fill_by_descriptor(object: BorrowedFd<'_>, range: Range) -> SysResult<()> {
    write(object, range.start(), range).map_err(|(at, errno)| {
        let page = Range::page_at(at);
        let _ = memory::punch(object, page.start() as u64, page.len() as u64);
        errno
    })
}

/// Copies the memory at `from` to `to` in the object.
pub(crate) fn copy_to(object: &Object, from: usize, to: Range) -> SysResult<()> {
    write(object.own(), from, to).map_err(|(_, errno)| errno)
}

/// The same; an error says how far it came.
fn write(object: BorrowedFd<'_>, from: usize, to: Range) -> core::result::Result<(), (usize, Errno)> {
    let mut done = 0;
    while done < to.len() {
        let at = to.start() + done;
        match memory::write_from(object, from + done, to.len() - done, at as u64) {
            Ok(0) => return Err((at, Errno::IO)),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err((at, errno)),
        }
    }
    Ok(())
}

/// Copies `range`: of private memory those pages that exist. A page of a private file mapping always does: in the file, if nowhere else.
fn fill_existing(
    object: &Object,
    range: Range,
    vma: &Vma,
    pagemap: &Pagemap,
    placement: &Placement,
    staging: &mut Option<Staging<'_>>,
) -> SysResult<()> {
    let mut fill = |part| match staging {
        Some(staging) => staging.fill(part),
        None => fill(object, part),
    };
    if vma.shared || vma.file.is_some() {
        return placement.copy(range, fill);
    }
    each_run(range, pagemap, |run| placement.copy(run, &mut fill))
}

/// Maps the object where its offsets say.
///
/// # Safety
/// It must show what is there now, and nobody may store to that meanwhile.
pub(super) unsafe fn map_home(object: &Object, range: Range, prot: ProtFlags) -> SysResult<()> {
    let flags = MapFlags::SHARED | MapFlags::NORESERVE;
    // SAFETY: the caller's promise.
    unsafe { memory::map_over(range.start(), range.len(), prot, flags, object.own(), range.start() as u64) }
}

/// Calls `each` for every run of pages that exist, until it fails.
pub(crate) fn each_run(
    range: Range,
    pagemap: &Pagemap,
    mut each: impl FnMut(Range) -> SysResult<()>,
) -> SysResult<()> {
    pagemap.each_run(range.start(), range.end(), |start, end| {
        Range::between(start, end).map_or(Ok(()), &mut each)
    })
}

/// Gives a mapping the attributes that the mapping in its place had. Failing to is not worth failing for.
pub(crate) fn restore_attributes(range: Range, attributes: &Attributes, prot: ProtFlags) {
    let (start, len) = (range.start(), range.len());
    let advices = [
        (attributes.dont_fork, libc::MADV_DONTFORK),
        (attributes.wipe_on_fork, libc::MADV_WIPEONFORK),
        (attributes.mergeable, libc::MADV_MERGEABLE),
        (attributes.dont_dump, libc::MADV_DONTDUMP),
        (attributes.huge_pages == HugePageAdvice::Wanted, libc::MADV_HUGEPAGE),
        (attributes.huge_pages == HugePageAdvice::Refused, libc::MADV_NOHUGEPAGE),
    ];
    for (wanted, advice) in advices {
        if wanted {
            let _ = memory::advise(start, len, advice);
        }
    }
    if attributes.protection_key != 0 {
        // SAFETY: sets the protection that the range has anyway.
        let _ = unsafe { memory::protect_with_key(start, len, prot, attributes.protection_key) };
    }
    if attributes.locked {
        let _ = memory::lock(start, len);
    }
}

/// What the application has asked for that does not show on memory that was private while it is adopted: shared memory cannot have it, or the
/// library has it set on all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    pub(crate) dont_fork: bool,
    wipe_on_fork: bool,
    mergeable: bool,
}

impl Wishes {
    pub(crate) fn of(attributes: &Attributes) -> Self {
        let Attributes { dont_fork, wipe_on_fork, mergeable, .. } = *attributes;
        Self { dont_fork, wipe_on_fork, mergeable }
    }

    /// The same for memory that children do not get.
    pub(crate) fn without_children(self) -> Self {
        Self { dont_fork: true, ..self }
    }

    /// The attributes that memory gets back which is private again, and was mapped with these.
    pub(crate) fn granted(self, adopted: &Attributes) -> Attributes {
        let Self { dont_fork, wipe_on_fork, mergeable } = self;
        // Without the flag, the application has taken its wish back.
        Attributes { dont_fork: dont_fork && adopted.dont_fork, wipe_on_fork, mergeable, ..*adopted }
    }
}

/// The attributes of memory that is adopted. A child that comes without the library's knowledge (a raw `clone`, `_Fork`) would share what was
/// private: it gets nothing of that.
fn while_adopted(attributes: &Attributes, was_shared: bool) -> Attributes {
    Attributes {
        dont_fork: attributes.dont_fork || !was_shared,
        wipe_on_fork: false,
        mergeable: false,
        ..*attributes
    }
}

/// What an adoption takes besides the memory itself.
#[derive(Debug)]
pub(crate) struct Means<'a> {
    pub(crate) maps: &'a Maps,
    pub(crate) pagemap: &'a Pagemap,
    pub(crate) watchers: &'a Watchers,
    pub(crate) stager: &'a Stager,
    pub(crate) huge_pages: &'a mut HugePages,
    /// All of it is blocks that are to be huge pages.
    pub(crate) whole: bool,
    pub(crate) placement: &'a Placement,
    /// Given where a device may write to the memory: only private anonymous memory can be asked.
    pub(crate) mover: Option<&'a Userfaultfd>,
}

/// How an adoption went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Adopted {
    Done,
    /// A device may write to one of the pages. Nothing has changed.
    Pinned,
    /// The application is itself told of missing pages here. Nothing has changed.
    Foreign,
}

/// Moves `range`, which lies in `vma`, into the object. The range is mapped at every moment, with the same bytes; with a mover, but for
/// a moment between two calls.
///
/// # Errors
/// Nothing has changed then.
///
/// # Safety
/// No other thread of the process may run from the first copy until this returns; `still_stopped` is asked before the step that
/// would lose a store.
pub(crate) unsafe fn adopt(
    object: &Object,
    range: Range,
    vma: &Vma,
    mut attributes: Attributes,
    means: Means<'_>,
    still_stopped: impl FnOnce() -> bool,
) -> Result<Adopted> {
    let Means { maps, pagemap, watchers, stager, huge_pages, whole, placement, mover } = means;
    let undo = |error: Error| {
        let _ = object.punch(range);
        error
    };
    // Where importers see the object they may have stored to what was copied.
    let seen = !whole && mover.is_none() && vma.prot.contains(ProtFlags::WRITE);
    let undo_copy = |error: Error| {
        if seen {
            // SAFETY: nobody runs, and nothing there is watched.
            let given = unsafe { extract::give_back(object, range, placement) };
            if let Err(errno) = given {
                log!(Error, "what importers have just stored to {range} is lost: {errno}", errno = Said(errno));
            }
        }
        undo(error)
    };
    // An importer with write access may have put pages where there was nothing.
    object.punch(range).map_err(failed("fallocate"))?;
    let policy = placement.begin(object, range);
    let mut staging = stager.stage(object, range, whole);
    let copied = fill_existing(object, range, vma, pagemap, placement, &mut staging);
    if let Some(staging) = staging.as_ref().filter(|_| whole && copied.is_ok()) {
        huge_pages.note(range, staging.collapsed());
    }
    if !still_stopped() {
        // The memory may be newer than the copy.
        return Err(undo(Error::OutOfResources { call: "stopping the threads", errno: Errno::AGAIN }));
    }
    // To replace what the application watches would wait for the application. Only this tells: what cannot be watched is not watched.
    if watchers.watch(Range::page_at(range.start())) == Err(Errno::BUSY) {
        return object.punch(range).map(|()| Adopted::Foreign).map_err(failed("fallocate"));
    }
    // Also what was watched before: where a file was until a moment ago, say.
    watchers.forget(range).map_err(failed("UFFDIO_UNREGISTER")).map_err(undo)?;
    copied.map_err(failed("copy to a memfd")).map_err(undo_copy)?;
    if attributes.huge_pages == HugePageAdvice::Unasked {
        attributes.huge_pages = huge_page_advice(maps, range);
    }
    let old = match mover {
        // SAFETY: nobody runs, and the object takes the place of the pages at once.
        Some(_) => Some(unsafe { OldPages::take(range) }.map_err(failed("mremap")).map_err(undo)?),
        None => None,
    };
    // SAFETY: the object shows the same bytes, and nobody could change them meanwhile.
    let mapped = unsafe {
        match staging {
            Some(staging) => staging.put_in_place(vma.prot).map_err(failed("mremap")),
            None => map_home(object, range, vma.prot).map_err(failed("mmap")),
        }
    };
    if let (Some(mover), Some(old)) = (mover, old) {
        let asked = mapped
            .and_then(|()| old.any_is_pinned(&attributes, pagemap, mover).map_err(failed("UFFDIO_MOVE")));
        let settled = match asked {
            Ok(false) => old.copy_again(object, pagemap).map(|()| Adopted::Done),
            Ok(true) => Ok(Adopted::Pinned),
            Err(error) => Err(error),
        };
        if settled != Ok(Adopted::Done) {
            // SAFETY: nobody runs.
            match unsafe { old.put_back(object, vma.prot, pagemap) } {
                Ok(()) => {
                    restore_attributes(range, &attributes, vma.prot);
                    let _ = object.punch(range);
                    return settled;
                }
                Err(error) if mapped.is_err() => {
                    log!(Error, "{range} is lost: {error}");
                    return Err(undo(error));
                }
                // The object has the bytes.
                Err(error) => log!(Error, "what a device writes to {range} now is lost: {error}"),
            }
        }
    }
    mapped.map_err(undo_copy)?;
    placement.give(range, policy);
    restore_attributes(range, &while_adopted(&attributes, vma.shared), vma.prot);
    if let Err(errno) = watchers.watch(range) {
        // SAFETY: the same promise: nothing runs.
        let undone = unsafe { privatize(object, range, Order::CopyFirst, vma.prot, watchers, placement) };
        return Err(match undone {
            Ok(()) => {
                restore_attributes(range, &attributes, vma.prot);
                undo(Error::OutOfResources { call: "UFFDIO_REGISTER", errno })
            }
            Err(error) => error,
        });
    }
    Ok(Adopted::Done)
}

/// Makes `range`, which maps the object, private memory again, with the same bytes. The object keeps its pages.
///
/// # Errors
/// Nothing has changed then.
///
/// # Safety
/// As [`adopt`]: nobody may write to the range meanwhile.
pub(crate) unsafe fn privatize(
    object: &Object,
    range: Range,
    order: Order,
    prot: ProtFlags,
    watchers: &Watchers,
    placement: &Placement,
) -> Result<()> {
    privatize_from(object, range, range, order, prot, watchers, placement)
}

/// Puts private memory over `to` that has what the object has at `from`.
///
/// # Errors
/// Nothing has changed then.
pub(crate) fn privatize_moved(
    object: &Object,
    from: Range,
    to: Range,
    prot: ProtFlags,
    watchers: &Watchers,
    placement: &Placement,
) -> Result<()> {
    privatize_from(object, from, to, Order::TakeFirst, prot, watchers, placement)
}

fn privatize_from(
    object: &Object,
    from: Range,
    to: Range,
    order: Order,
    prot: ProtFlags,
    watchers: &Watchers,
    placement: &Placement,
) -> Result<()> {
    let all = ProtFlags::READ | ProtFlags::WRITE;
    // It is moved to `to` in the end.
    let staging = memory::map_agreeing(to.len(), to.start(), all).map_err(failed("mmap"))?;
    let put_in_place = || {
        // After the copy, so that the pages are where they were, not where the policy would have them.
        if let Some(staging) = Range::new(staging, to.len()) {
            placement.carry(to.start(), staging);
        }
        // SAFETY: narrows what may be done with the staging area, at most.
        unsafe { memory::protect(staging, to.len(), prot) }.map_err(failed("mprotect"))?;
        // Replacing a watched range would raise an event that this very thread would have to read.
        watchers.forget(to).map_err(failed("UFFDIO_UNREGISTER"))?;
        // SAFETY: the staging area has the bytes, and nobody writes to the range (callers see to that).
        unsafe { memory::move_over(staging, to.len(), to.start()) }.map_err(failed("mremap")).inspect_err(
            |_| {
                let _ = watchers.watch(to);
            },
        )
    };
    // SAFETY: the staging area is ours, and as long.
    let privatized =
        unsafe { Extract::take(object, from, to, staging, order, placement) }.and_then(|extract| {
            put_in_place().inspect_err(|_| {
                // SAFETY: nobody else uses the staging area, which may be readable no more.
                let _ = unsafe { memory::protect(staging, to.len(), ProtFlags::READ) };
                extract.put_back();
            })
        });
    if privatized.is_err() {
        // SAFETY: the staging area is ours.
        let _ = unsafe { memory::unmap(staging, to.len()) };
    }
    privatized
}

/// What `/proc/PID/maps` says of files of the library's behind shared memory of the application's.
pub(super) const OWN_FILES_PATH: &[u8] = b"/memfd:rmap-shared";

/// Gives shared memory that was adopted a file of its own, with the same bytes: what a child of this process maps as well must not be in an
/// object, which is punched when this process alone unmaps it.
///
/// # Errors
/// Nothing has changed then.
///
/// # Safety
/// As [`adopt`]: nobody may write to the range meanwhile.
pub(crate) unsafe fn give_own_file(
    object: &Object,
    range: Range,
    prot: ProtFlags,
    watchers: &Watchers,
    placement: &Placement,
) -> Result<OwnedFd> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let fd = rustix::fs::memfd_create(c"rmap-shared", flags).map_err(failed("memfd_create"))?;
    rustix::fs::ftruncate(&fd, range.len() as u64).map_err(failed("ftruncate"))?;
    let all = ProtFlags::READ | ProtFlags::WRITE;
    let view = memory::map(range.len(), all, MapFlags::SHARED, fd.as_fd(), 0).map_err(failed("mmap"))?;
    // SAFETY: the view is ours, and as long.
    let given = unsafe { Extract::take(object, range, range, view, Order::TakeFirst, placement) }.and_then(
        |extract| {
            if let Some(view) = Range::new(view, range.len()) {
                placement.carry(range.start(), view);
            }
            let put_in_place = || {
                watchers.forget(range).map_err(failed("UFFDIO_UNREGISTER"))?;
                // SAFETY: the file has the bytes, and nobody writes to the range.
                unsafe { memory::map_over(range.start(), range.len(), prot, MapFlags::SHARED, fd.as_fd(), 0) }
                    .map_err(failed("mmap"))
                    .inspect_err(|_| {
                        let _ = watchers.watch(range);
                    })
            };
            put_in_place().inspect_err(|_| extract.put_back())
        },
    );
    // SAFETY: the view is ours.
    let _ = unsafe { memory::unmap(view, range.len()) };
    given.map(|()| fd)
}

/// Copies a range that does not change into the protected object of its domain.
pub(crate) fn copy(objects: &mut Objects, domain: Range, range: Range) -> Result<u32> {
    let object = objects.for_domain(domain, true)?;
    object.punch(range).map_err(failed("fallocate"))?;
    if let Err(errno) = fill(object, range) {
        let _ = object.punch(range);
        return Err(failed("pwrite")(errno));
    }
    Ok(object.serial)
}

/// Where the bytes that an object shows at a range of addresses come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Private memory, adopted.
    Private,
    /// The same, without file, name, or a wish that children are concerned with: what `mmap` gives.
    Plain,
    /// Shared anonymous memory that nobody else mapped, adopted.
    Shared,
    /// A copy of pages of this file.
    Copied(FileId),
}

/// What an object shows at a range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backing {
    pub(crate) serial: u32,
    pub(crate) origin: Origin,
    pub(crate) wishes: Wishes,
}

impl Backing {
    /// By memory that had these attributes.
    pub(crate) fn adopted(serial: u32, origin: Origin, attributes: &Attributes) -> Self {
        let wishes = Wishes::of(attributes);
        let special = wishes != Wishes::default() || attributes.grows_down;
        let origin = if origin == Origin::Plain && special { Origin::Private } else { origin };
        Self { serial, origin, wishes }
    }

    /// By memory of which no more is known.
    pub(crate) fn new(serial: u32, origin: Origin) -> Self {
        Self { serial, origin, wishes: Wishes::default() }
    }
}

/// Pushes the lower end of the main stack's mapping down, so that a part remains that the kernel can grow when the rest is adopted. The
/// kernel reads the byte, so a stack at its limit gives an error, not a signal.
pub(crate) fn extend_stack(start: usize) -> bool {
    const ROOM: usize = 16 * PAGE;
    let Ok(scratch) = crate::own::scratch() else {
        return false;
    };
    start
        .checked_sub(ROOM)
        .is_some_and(|below| memory::write_from(scratch, below, 1, crate::own::SCRATCH).is_ok())
}
