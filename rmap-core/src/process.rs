//! XPMEM's calls for this process, by id: argument checks in XPMEM's order, tables of permits and attachments, fork.
//!
//! [`Segment`](crate::Segment), [`Permit`](crate::Permit) and [`Attachment`](crate::Attachment) are these calls with
//! owners. The tables belong to the application's threads and are under one lock, which no call holds while it waits for another
//! process; the service thread never takes it.

use crate::config::Config;
use crate::engine::{Access, Engine, Opened, clone};
use crate::error::{Error, Result, failed};
use crate::id::Id;
use crate::log::{self, log};
use crate::own;
use crate::range::Range;
use crate::sys::maps::Maps;
use crate::sys::memory::{self, PAGE};
use core::sync::atomic::{AtomicPtr, Ordering};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

/// The version of XPMEM whose behaviour this library has, as `xpmem_version` encodes it: 2.7.4.
pub const XPMEM_VERSION: i32 = 0x0002_7004;

/// `XPMEM_MAXADDR_SIZE`: up to the end of the address space.
pub const MAX_SIZE: usize = usize::MAX;

/// `XPMEM_PERMIT_MODE`, the only permit type.
pub const PERMIT_MODE: i32 = 1;

#[derive(Clone, Copy)]
struct Held {
    opened: Opened,
    segment: Id,
}

struct Tables {
    config: Option<Config>,
    /// What the probe said.
    usable: Option<Result<()>>,
    /// By the engine's names for them, which are the counters of their ids.
    permits: Option<HashMap<u32, Held>>,
}

static TABLES: Mutex<Tables> = Mutex::new(Tables { config: None, usable: None, permits: None });

/// The engine, once it runs. What is at home in it is found without the lock.
static ENGINE: AtomicPtr<&'static dyn Engine> = AtomicPtr::new(core::ptr::null_mut());

fn running() -> Option<&'static dyn Engine> {
    // SAFETY: null, or what `Tables::engine` has leaked.
    unsafe { ENGINE.load(Ordering::Acquire).as_ref() }.copied()
}

fn engine() -> Result<&'static dyn Engine> {
    running().map_or_else(|| tables().engine(), Ok)
}

/// Settings count from now on, if they did not before.
pub(crate) fn read_environment() {
    tables().config();
}

fn tables() -> MutexGuard<'static, Tables> {
    TABLES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tables {
    fn config(&mut self) -> Config {
        *self.config.get_or_insert_with(|| {
            log::set_from_environment();
            Config::from_environment()
        })
    }

    fn usable(&mut self) -> Result<()> {
        let config = self.config();
        *self.usable.get_or_insert_with(|| {
            if config.disabled {
                return Err(Error::Disabled);
            }
            let usable = clone::probe(config);
            if let Err(error) = usable {
                log!(Error, "this process cannot be served: {error}");
            }
            usable
        })
    }

    fn engine(&mut self) -> Result<&'static dyn Engine> {
        self.usable()?;
        if let Some(engine) = running() {
            return Ok(engine);
        }
        let engine = clone::CloneEngine::start(self.config())?;
        let engine: &'static dyn Engine = Box::leak(Box::new(engine));
        ENGINE.store(Box::leak(Box::new(engine)), Ordering::Release);
        follow_forks();
        Ok(engine)
    }

    fn permits(&mut self) -> &mut HashMap<u32, Held> {
        self.permits.get_or_insert_default()
    }
}

/// The error for an id of another process.
fn foreign(engine: &dyn Engine, id: Id) -> Error {
    if engine.is_alive(id.endpoint()) { Error::Denied } else { Error::NoSuchId }
}

/// The version of XPMEM that this library stands for.
///
/// # Errors
/// Where this process cannot be served at all: [`Error::Unsupported`], [`Error::Disabled`].
pub fn version() -> Result<i32> {
    tables().usable().map(|()| XPMEM_VERSION)
}

/// Offers `size` bytes from `vaddr` to others, by `permit_value`, an octal mode (spec: `xpmem_make`).
///
/// Nothing is touched, and nothing need be mapped. `size` is a multiple of the page size, or [`MAX_SIZE`] with `vaddr` 0.
///
/// # Errors
/// [`Error::Invalid`], [`Error::OutOfIds`], [`Error::OutOfResources`], and those of [`version`], which come first.
pub fn make(vaddr: usize, size: usize, permit_type: i32, permit_value: usize) -> Result<Id> {
    let engine = engine()?;
    if permit_type != PERMIT_MODE {
        return Err(Error::Invalid("the permit type is not XPMEM_PERMIT_MODE"));
    }
    if permit_value & !0o777 != 0 {
        return Err(Error::Invalid("the permit value is not an octal mode"));
    }
    if size == 0 {
        return Err(Error::Invalid("the size is 0"));
    }
    let end_of_addresses = memory::task_size();
    let mut size = size;
    if vaddr.wrapping_add(size) > end_of_addresses {
        if size != MAX_SIZE {
            return Err(Error::Invalid("the range runs past the end of the address space"));
        }
        size = end_of_addresses.saturating_sub(vaddr);
    }
    let range = Range::new(vaddr, size).ok_or(Error::Invalid("not a range of whole pages"))?;
    let counter = engine.offer(range, permit_value as u32)?;
    Id::new(engine.endpoint(), counter).ok_or(Error::OutOfIds)
}

/// Ends a segment of this process (spec: `xpmem_remove`). When this returns, attachments of it show nothing.
///
/// # Errors
/// [`Error::Invalid`] unless the id is positive; [`Error::NoSuchId`]; [`Error::Denied`] if it is another process's.
pub fn remove(segid: i64) -> Result<()> {
    let engine = engine()?;
    let id = Id::from_raw(segid).ok_or(Error::Invalid("not a segment id"))?;
    if id.endpoint() != engine.endpoint() {
        return Err(foreign(engine, id));
    }
    engine.withdraw(id.counter())
}

/// Gets a permit for a segment (spec: `xpmem_get`). `flags` is 0 or 1 to read, 2 to read and write; the permit value of the
/// original call plays no part.
///
/// Waits for the exporter while it lives. Every call gives a new permit.
///
/// # Errors
/// [`Error::Invalid`]; [`Error::NoSuchId`]; [`Error::Denied`] by the segment's mode; [`Error::TimedOut`];
/// [`Error::OutOfIds`]; [`Error::OutOfResources`].
pub fn get(segid: i64, flags: i32, permit_type: i32) -> Result<Id> {
    let engine = engine()?;
    let segment = Id::from_raw(segid).ok_or(Error::Invalid("not a segment id"))?;
    let access = match flags {
        0 | 1 => Access::ReadOnly,
        2 => Access::ReadWrite,
        _ => {
            return Err(Error::Invalid("the flags are neither XPMEM_RDONLY nor XPMEM_RDWR"));
        }
    };
    if permit_type != PERMIT_MODE {
        return Err(Error::Invalid("the permit type is not XPMEM_PERMIT_MODE"));
    }
    let opened = engine.open(segment, access)?;
    let Some(id) = Id::new(engine.endpoint(), opened.grant) else {
        engine.close(opened.grant);
        return Err(Error::OutOfIds);
    };
    tables().permits().insert(opened.grant, Held { opened, segment });
    Ok(id)
}

/// Gives a permit back, and detaches what was attached with it (spec: `xpmem_release`).
///
/// # Errors
/// As [`remove`]. A dead exporter is no error.
pub fn release(apid: i64) -> Result<()> {
    let engine = engine()?;
    let id = Id::from_raw(apid).ok_or(Error::Invalid("not a permit id"))?;
    if id.endpoint() != engine.endpoint() {
        return Err(foreign(engine, id));
    }
    let held = tables().permits().remove(&id.counter()).ok_or(Error::NoSuchId)?;
    engine.close(held.opened.grant);
    Ok(())
}

/// What [`attach`] without an address gives if that memory was attached before: without a lock, a message or a system call. `None` is
/// no error: then ask [`attach`].
#[must_use]
pub fn attach_known(apid: i64, offset: i64, size: usize) -> Option<usize> {
    running()?.map_known(Id::from_raw(apid)?, offset.cast_unsigned(), size)
}

/// What [`detach`] does if the memory stays mapped, under the same terms; false is no error.
///
/// # Safety
/// As [`detach`].
#[must_use]
pub unsafe fn detach_known(vaddr: usize) -> bool {
    running().is_some_and(|engine| engine.unmap_known(vaddr))
}

/// Maps `size` bytes of a segment from `offset` on (spec: `xpmem_attach`): anywhere, or over whatever is at `vaddr`
/// unless that is 0. Returns the address.
///
/// Nothing is touched in the exporter: holes are no error. The size is rounded up to whole pages. Two attachments may share one
/// mapping, and an address; each is detached for itself.
///
/// # Errors
/// [`Error::Invalid`]; [`Error::NoSuchId`] also if the segment was removed or its exporter is gone; [`Error::Denied`] if the
/// permit is another process's; [`Error::RangeTaken`]; [`Error::OutOfResources`].
///
/// # Safety
/// With a `vaddr`, nobody may rely on what is mapped there now.
pub unsafe fn attach(apid: i64, offset: i64, size: usize, vaddr: usize) -> Result<usize> {
    let engine = engine()?;
    let id = Id::from_raw(apid).ok_or(Error::Invalid("not a permit id"))?;
    if vaddr != 0 && vaddr.checked_next_multiple_of(PAGE).is_none_or(|end| end >= memory::task_size()) {
        return Err(Error::Invalid("the address is beyond the end of the address space"));
    }
    if !vaddr.is_multiple_of(PAGE) || !offset.cast_unsigned().is_multiple_of(PAGE as u64) {
        return Err(Error::Invalid("address and offset must be multiples of the page size"));
    }
    if id.endpoint() != engine.endpoint() {
        return Err(foreign(engine, id));
    }
    if let Some(base) = (vaddr == 0).then(|| attach_known(apid, offset, size)).flatten() {
        return Ok(base);
    }
    let grant = id.counter();
    let held = tables().permits().get(&grant).copied().ok_or(Error::NoSuchId)?;
    let segment = held.opened.range;
    let size = size.checked_next_multiple_of(PAGE).unwrap_or(0);
    let remote = usize::try_from(offset)
        .ok()
        .and_then(|offset| Range::new(segment.start().checked_add(offset)?, size))
        .filter(|remote| segment.covers(*remote));
    let place = (vaddr != 0).then_some(vaddr);
    let Some(remote) = remote else {
        engine.check(grant)?;
        return Err(Error::Invalid("not a range inside the segment"));
    };
    if let Some(target) = place.and_then(|place| Range::new(place, size)) {
        let own = held.segment.endpoint() == engine.endpoint();
        if own && target.overlaps(remote) {
            engine.check(grant)?;
            return Err(Error::RangeTaken(target));
        }
    }
    engine.map(grant, remote, place)
}

/// Removes the attachment that covers `vaddr` (spec: `xpmem_detach`). An address where nothing is mapped is no error.
///
/// The memory may stay mapped for the next attachment of it: see `RMAP_WINDOW_LIMIT`.
///
/// # Errors
/// [`Error::Invalid`] if something else is mapped there.
///
/// # Safety
/// Nobody may use the attachment afterwards.
pub unsafe fn detach(vaddr: usize) -> Result<()> {
    // No engine is started for this: what it maps could be at the very address that is asked for.
    match running() {
        Some(engine) if engine.unmap_known(vaddr) || engine.unmap(vaddr)? => return Ok(()),
        Some(_) => {}
        None => tables().usable()?,
    }
    let maps = Maps::new().map_err(failed("open of /proc/thread-self/maps"))?;
    // The library's own memory may have come to where an attachment was.
    match maps.at(vaddr).filter(|vma| vma.file.is_none() || vma.file != own::file_id().ok()) {
        Some(_) => Err(Error::Invalid("not an attachment")),
        None => Ok(()),
    }
}

thread_local! {
    /// Held from before to after a fork.
    static FORKING: core::cell::RefCell<Option<MutexGuard<'static, Tables>>> =
        const { core::cell::RefCell::new(None) };
}

/// Has the library follow `fork`, which `vfork`, `posix_spawn` and `system` do not need.
fn follow_forks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handlers stay in memory: the library is never unloaded.
        unsafe {
            libc::pthread_atfork(Some(before_fork), Some(after_fork_in_parent), Some(after_fork_in_child))
        };
    });
}

extern "C" fn before_fork() {
    let tables = tables();
    if let Some(engine) = running() {
        engine.before_fork();
    }
    FORKING.with(|forking| *forking.borrow_mut() = Some(tables));
}

extern "C" fn after_fork_in_parent() {
    let tables = FORKING.with(|forking| forking.borrow_mut().take());
    if let Some(engine) = running().filter(|_| tables.is_some()) {
        engine.after_fork_in_parent();
    }
}

/// The child has no segments, permits or attachments; it gets an engine of its own when it first needs one.
extern "C" fn after_fork_in_child() {
    let Some(mut tables) = FORKING.with(|forking| forking.borrow_mut().take()) else {
        return;
    };
    if let Some(engine) = running() {
        ENGINE.store(core::ptr::null_mut(), Ordering::Release);
        engine.after_fork_in_child();
    }
    if let Some(permits) = &mut tables.permits {
        permits.clear();
    }
}
