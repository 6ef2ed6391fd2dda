//! XPMEM's calls for this process, by id: argument checks in XPMEM's order, tables of permits and attachments, fork.
//!
//! [`Segment`](crate::Segment), [`Permit`](crate::Permit) and [`Attachment`](crate::Attachment) are these calls with
//! owners. The tables belong to the application's threads and are under one lock, which no call holds while it waits for another
//! process; the service thread never takes it.

use crate::config::Config;
use crate::counters::alone::Alone;
use crate::counters::{self, Cell, Counters, sheet};
use crate::detector;
use crate::engine::clone::{self, CloneEngine};
use crate::engine::driver::{self, Driver};
use crate::engine::mirror::{self, MirrorEngine};
use crate::engine::{Access, Engine, Kind, Opened, rendezvous};
use crate::error::{Error, Result, failed};
use crate::id::Id;
use crate::log::{self, log};
use crate::own;
use crate::range::Range;
use crate::report;
use crate::sys::Errno;
use crate::sys::maps::Maps;
use crate::sys::memory::{self, PAGE};
use core::sync::atomic::{AtomicPtr, Ordering};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, Once};

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
    /// What serves this process's own segments.
    chosen: Option<Result<Kind>>,
    /// What the probes said, by engine, if they could say.
    usable: [Option<Result<()>>; 3],
    permits: Option<HashMap<Id, Held>>,
    /// Of engines that have no service thread.
    alone: Option<Alone>,
}

static TABLES: Mutex<Tables> =
    Mutex::new(Tables { config: None, chosen: None, usable: [None; 3], permits: None, alone: None });

/// An engine, once it runs. What is at home in it is found without the lock.
type Running = AtomicPtr<&'static dyn Engine>;
/// A process's own segments are served by one engine. The other runs as well once somebody else's segment needs it: ids say which.
static CLONE: Running = AtomicPtr::new(core::ptr::null_mut());
static MIRROR: Running = AtomicPtr::new(core::ptr::null_mut());
/// The driver, once it is open.
static DRIVER: AtomicPtr<Driver> = AtomicPtr::new(core::ptr::null_mut());

fn running(engine: &Running) -> Option<&'static dyn Engine> {
    // SAFETY: null, or what `Tables::start` has leaked.
    unsafe { engine.load(Ordering::Acquire).as_ref() }.copied()
}

fn open_driver() -> Option<&'static Driver> {
    // SAFETY: null, or what `Tables::start_driver` has leaked.
    unsafe { DRIVER.load(Ordering::Acquire).as_ref() }
}

/// Who serves a call.
#[derive(Clone, Copy)]
enum Server {
    Engine(&'static dyn Engine),
    Driver(&'static Driver),
}

/// Who serves this process's own segments.
fn own_server() -> Result<Server> {
    let mut tables = tables();
    let kind = tables.chosen()?;
    tables.server(kind)
}

/// Who made the id of a segment. It is started for that.
fn server_of_segment(id: Id) -> Result<Server> {
    let mut tables = tables();
    let (kind, chosen) = (id.kind(), tables.chosen()?);
    tables.server(kind).map_err(|error| match error {
        // Then nobody on this machine has made it.
        Error::Unsupported { .. } if kind == Kind::Driver && chosen != kind => Error::NoSuchId,
        error => error,
    })
}

/// Who made an id, if it is one of this process.
fn server_of_own(id: Id) -> Result<Server> {
    let kind = id.kind();
    let engine = match kind {
        Kind::Clone => running(&CLONE),
        Kind::Mirror => running(&MIRROR),
        // Only the driver knows whose it is, also where only the parent of this process has used it.
        Kind::Driver if tables().usable[kind as usize] == Some(Ok(())) => return server_of_segment(id),
        Kind::Driver => None,
    };
    match engine.filter(|engine| engine.endpoint() == id.endpoint()) {
        Some(engine) => Ok(Server::Engine(engine)),
        None if rendezvous::is_alive(id.endpoint()) => Err(Error::Denied),
        None => Err(Error::NoSuchId),
    }
}

/// Whether this process can be served at all, which is looked at before arguments are.
fn ready() -> Result<()> {
    if running(&CLONE).is_some() || running(&MIRROR).is_some() || open_driver().is_some() {
        return Ok(());
    }
    tables().chosen().map(drop)
}

/// Settings count from now on, if they did not before.
pub(crate) fn read_environment() {
    tables().config();
}

fn tables() -> MutexGuard<'static, Tables> {
    detector::lock(&TABLES)
}

/// What serves this process's own segments where nothing was asked for: the kernel's mirrors, if it has them, because they work
/// with all memory and cost nothing in advance; else XPMEM's driver, because whoever has installed it wants it, and programs that are
/// linked to the original library meet there; else what every kernel can do.
const PREFERENCE: [Kind; 3] = [Kind::Mirror, Kind::Driver, Kind::Clone];

impl Tables {
    fn config(&mut self) -> Config {
        *self.config.get_or_insert_with(|| {
            log::set_from_environment();
            Config::from_environment()
        })
    }

    fn chosen(&mut self) -> Result<Kind> {
        if let Some(chosen) = self.chosen {
            return chosen;
        }
        let chosen = self.choose();
        match chosen {
            Err(error) if error.is_passing() => {
                log!(Warn, "whether this process can be served is not known yet: {error}");
                return chosen;
            }
            Ok(kind) => log!(Info, "engine: {kind}"),
            // As somebody wants it.
            Err(Error::Disabled) => log!(Info, "this process is not served: {}", Error::Disabled),
            Err(error) => log!(Error, "this process cannot be served: {error}"),
        }
        self.chosen = Some(chosen);
        report::called(chosen.map(Kind::name));
        chosen
    }

    fn choose(&mut self) -> Result<Kind> {
        let config = self.config();
        if config.disabled {
            return Err(Error::Disabled);
        }
        if let Some(kind) = config.engine {
            return self.usable(kind).map(|()| kind);
        }
        let mut result = Err(Error::Disabled);
        for kind in PREFERENCE {
            result = self.usable(kind).map(|()| kind);
            match result {
                Ok(_) => break,
                Err(Error::Unsupported { errno: Errno::NOENT, .. }) => {}
                // The next would be chosen for good.
                Err(error) if error.is_passing() => break,
                Err(error) => log!(Warn, "engine {kind}: {error}"),
            }
        }
        result
    }

    fn usable(&mut self, kind: Kind) -> Result<()> {
        let known = self.usable[kind as usize];
        known.unwrap_or_else(|| {
            let config = self.config();
            let usable = match kind {
                Kind::Clone => {
                    // The probe uses own memory, which a child must not share.
                    follow_forks();
                    clone::probe(config)
                }
                Kind::Mirror => mirror::probe(),
                Kind::Driver => self.start_driver().map(drop),
            };
            if !usable.is_err_and(|error| error.is_passing()) {
                self.usable[kind as usize] = Some(usable);
            }
            usable
        })
    }

    fn server(&mut self, kind: Kind) -> Result<Server> {
        let engine = match kind {
            Kind::Clone => &CLONE,
            Kind::Mirror => &MIRROR,
            Kind::Driver => {
                self.usable(kind)?;
                return self.start_driver().map(Server::Driver);
            }
        };
        if let Some(engine) = running(engine) {
            return Ok(Server::Engine(engine));
        }
        // Mirrors of others need nothing of this machine's but what they send.
        if kind == Kind::Clone || self.chosen == Some(Ok(kind)) {
            self.usable(kind)?;
        }
        let config = self.config();
        let started: &'static dyn Engine = match kind {
            Kind::Clone => Box::leak(Box::new(CloneEngine::start(config).inspect_err(|error| {
                if !error.is_passing() {
                    log!(Error, "this process cannot be served: {error}");
                }
            })?)),
            _ => {
                sheet::start_alone();
                Box::leak(Box::new(MirrorEngine::start(config)?))
            }
        };
        engine.store(Box::leak(Box::new(started)), Ordering::Release);
        report::started();
        follow_forks();
        Ok(Server::Engine(started))
    }

    fn start_driver(&self) -> Result<&'static Driver> {
        if let Some(driver) = open_driver() {
            return Ok(driver);
        }
        let driver: &'static mut Driver = Box::leak(Box::new(Driver::open()?));
        DRIVER.store(driver, Ordering::Release);
        sheet::start_alone();
        report::started();
        follow_forks();
        Ok(driver)
    }

    fn permits(&mut self) -> &mut HashMap<Id, Held> {
        self.permits.get_or_insert_default()
    }
}

/// Counts a call that has worked, and notes what has come of it, where no service thread does.
fn counted<T: Copy>(
    kind: Kind,
    cell: Cell,
    result: Result<T>,
    note: impl FnOnce(&mut Alone, T),
) -> Result<T> {
    if kind != Kind::Clone
        && let Ok(value) = result
    {
        counters::count_anywhere(cell);
        note(tables().alone.get_or_insert_default(), value);
    }
    result
}

/// Counts a call if it has failed, and says why.
fn noted<T>(call: &str, result: Result<T>) -> Result<T> {
    if let Err(error) = &result {
        counters::count_failure(error);
        log!(Debug, "{call} fails: {error}");
    }
    result
}

/// Notes that a call of the C interface was refused before it came here: counted, and said why, as of all others.
pub fn note_refusal(call: &str, why: &'static str) {
    let _ = noted::<()>(call, Err(Error::Invalid(why)));
}

/// What this process has counted, and how it is now.
///
/// Nothing is started for it: all is 0 in a process that has made no segment and asked for no permit, and in a forked child that has
/// done neither since. Where it is not the clone engine that serves, calls are counted (attachments as such that were asked for), and
/// segments, permits, and what is attached; the kernel does the rest, and nobody counts it.
#[must_use]
pub fn counters() -> Counters {
    if let Some(engine) = running(&CLONE) {
        engine.survey();
    }
    sheet::counters()
}

/// An engine, and whether it can serve this process.
#[derive(Clone, Copy, Debug)]
pub struct EngineState {
    /// As in `RMAP_ENGINE`.
    pub name: &'static str,
    /// How it shares memory.
    pub how: &'static str,
    /// Why it cannot be used, if it cannot.
    pub usable: Result<()>,
    /// Whether it serves this process's segments.
    pub chosen: bool,
}

/// All engines, those first that are taken first where `RMAP_ENGINE` says nothing. Each is tried.
#[must_use]
pub fn engines() -> Vec<EngineState> {
    let mut tables = tables();
    let chosen = tables.chosen();
    let state = |kind: Kind| EngineState {
        name: kind.name(),
        how: kind.how(),
        usable: tables.usable(kind),
        chosen: chosen == Ok(kind),
    };
    PREFERENCE.map(state).to_vec()
}

/// The version of XPMEM that this library stands for.
///
/// # Errors
/// Where this process cannot be served at all: [`Error::Unsupported`], [`Error::Disabled`].
pub fn version() -> Result<i32> {
    noted("xpmem_version", version_of_engine())
}

fn version_of_engine() -> Result<i32> {
    let kind = tables().chosen()?;
    Ok(open_driver().filter(|_| kind == Kind::Driver).map_or(XPMEM_VERSION, Driver::version))
}

/// Offers `size` bytes from `vaddr` to others, by `permit_value`, an octal mode (spec: `xpmem_make`).
///
/// Nothing is touched, and nothing need be mapped. `size` is a multiple of the page size, or [`MAX_SIZE`] with `vaddr` 0.
///
/// # Errors
/// [`Error::Invalid`], [`Error::OutOfIds`], [`Error::OutOfResources`], and those of [`version`], which come first.
pub fn make(vaddr: usize, size: usize, permit_type: i32, permit_value: usize) -> Result<Id> {
    noted("xpmem_make", make_segment(vaddr, size, permit_type, permit_value))
}

fn make_segment(vaddr: usize, size: usize, permit_type: i32, permit_value: usize) -> Result<Id> {
    match own_server()? {
        Server::Engine(engine) => make_with(engine, vaddr, size, permit_type, permit_value),
        Server::Driver(driver) => {
            let made = driver.make(vaddr, size, permit_type, permit_value);
            counted(Kind::Driver, Cell::SegmentsMade, made, |alone, id| {
                let most = memory::task_size().saturating_sub(vaddr);
                if let Some(range) = Range::new(vaddr, size.min(most)) {
                    alone.made(id, range, permit_value as u32);
                }
            })
        }
    }
}

/// As [`make`], but such that importers can pin the memory: for RDMA, `O_DIRECT` and process-shared futexes. It is what [`make`] does where
/// the clone engine serves this process.
///
/// # Errors
/// As [`make`].
pub fn make_pinnable(vaddr: usize, size: usize, permit_type: i32, permit_value: usize) -> Result<Id> {
    noted("make_pinnable", make_pinnable_segment(vaddr, size, permit_type, permit_value))
}

fn make_pinnable_segment(vaddr: usize, size: usize, permit_type: i32, permit_value: usize) -> Result<Id> {
    ready()?;
    let server = tables().server(Kind::Clone)?;
    match server {
        Server::Engine(engine) => make_with(engine, vaddr, size, permit_type, permit_value),
        Server::Driver(driver) => driver.make(vaddr, size, permit_type, permit_value),
    }
}

fn make_with(
    engine: &dyn Engine,
    vaddr: usize,
    size: usize,
    permit_type: i32,
    permit_value: usize,
) -> Result<Id> {
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
    let mode = permit_value as u32;
    let made = engine.offer(range, mode);
    let made = made.and_then(|counter| Id::new(engine.endpoint(), counter).ok_or(Error::OutOfIds));
    let note = |alone: &mut Alone, id| alone.made(id, range, mode);
    counted(engine.endpoint().kind(), Cell::SegmentsMade, made, note)
}

/// Ends a segment of this process (spec: `xpmem_remove`). When this returns, attachments of it show nothing.
///
/// # Errors
/// [`Error::Invalid`] unless the id is positive; [`Error::NoSuchId`]; [`Error::Denied`] if it is another process's.
pub fn remove(segid: i64) -> Result<()> {
    noted("xpmem_remove", remove_segment(segid))
}

fn remove_segment(segid: i64) -> Result<()> {
    ready()?;
    let id = Id::from_raw(segid).ok_or(Error::Invalid("not a segment id"))?;
    let removed = match server_of_own(id)? {
        Server::Engine(engine) => engine.withdraw(id.counter()),
        Server::Driver(driver) => driver.remove(id),
    };
    counted(id.kind(), Cell::SegmentsRemoved, removed, |alone, ()| alone.removed(id))
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
    noted("xpmem_get", get_permit(segid, flags, permit_type))
}

fn get_permit(segid: i64, flags: i32, permit_type: i32) -> Result<Id> {
    ready()?;
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
    let engine = match server_of_segment(segment)? {
        Server::Engine(engine) => engine,
        Server::Driver(driver) => {
            let got = driver.get(segment, flags, permit_type);
            return counted(Kind::Driver, Cell::PermitsGot, got, |alone, id| {
                alone.got(id, driver::maker(segment));
            });
        }
    };
    let opened = engine.open(segment, access)?;
    let Some(id) = Id::new(engine.endpoint(), opened.grant) else {
        engine.close(opened.grant);
        return Err(Error::OutOfIds);
    };
    tables().permits().insert(id, Held { opened, segment });
    counted(segment.kind(), Cell::PermitsGot, Ok(id), |alone, id| alone.got(id, opened.exporter))
}

/// Gives a permit back, and detaches what was attached with it (spec: `xpmem_release`).
///
/// # Errors
/// As [`remove`]. A dead exporter is no error.
pub fn release(apid: i64) -> Result<()> {
    noted("xpmem_release", release_permit(apid))
}

fn release_permit(apid: i64) -> Result<()> {
    ready()?;
    let id = Id::from_raw(apid).ok_or(Error::Invalid("not a permit id"))?;
    let engine = match server_of_own(id)? {
        Server::Engine(engine) => engine,
        Server::Driver(driver) => {
            let released = driver.release(id);
            return counted(id.kind(), Cell::PermitsReleased, released, |alone, ()| alone.released(id));
        }
    };
    let held = tables().permits().remove(&id).ok_or(Error::NoSuchId)?;
    engine.close(held.opened.grant);
    counted(id.kind(), Cell::PermitsReleased, Ok(()), |alone, ()| alone.released(id))
}

/// What [`attach`] without an address gives if that memory was attached before: without a lock, a message or a system call. `None` is
/// no error: then ask [`attach`].
#[must_use]
pub fn attach_known(apid: i64, offset: i64, size: usize) -> Option<usize> {
    running(&CLONE)?.map_known(Id::from_raw(apid)?, offset.cast_unsigned(), size)
}

/// What [`detach`] does if the memory stays mapped, under the same terms; false is no error.
///
/// # Safety
/// As [`detach`].
#[must_use]
pub unsafe fn detach_known(vaddr: usize) -> bool {
    running(&CLONE).is_some_and(|engine| engine.unmap_known(vaddr))
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
    noted("xpmem_attach", map_segment(apid, offset, size, vaddr))
}

fn map_segment(apid: i64, offset: i64, size: usize, vaddr: usize) -> Result<usize> {
    ready()?;
    let id = Id::from_raw(apid).ok_or(Error::Invalid("not a permit id"))?;
    if vaddr != 0 && vaddr.checked_next_multiple_of(PAGE).is_none_or(|end| end >= memory::task_size()) {
        return Err(Error::Invalid("the address is beyond the end of the address space"));
    }
    if !vaddr.is_multiple_of(PAGE) || !offset.cast_unsigned().is_multiple_of(PAGE as u64) {
        return Err(Error::Invalid("address and offset must be multiples of the page size"));
    }
    let note = |alone: &mut Alone, base: usize| {
        let len = size.checked_next_multiple_of(PAGE).unwrap_or(0);
        if let Some(here) = Range::new(base, len) {
            alone.attached(id, here);
        }
    };
    let engine = match server_of_own(id)? {
        Server::Engine(engine) => engine,
        Server::Driver(driver) => {
            // SAFETY: the caller's promise.
            let attached = unsafe { driver.attach(id, offset, size, vaddr) };
            return counted(id.kind(), Cell::AttachMisses, attached, note);
        }
    };
    if let Some(base) = (vaddr == 0).then(|| attach_known(apid, offset, size)).flatten() {
        return Ok(base);
    }
    let grant = id.counter();
    let held = tables().permits().get(&id).copied().ok_or(Error::NoSuchId)?;
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
    counted(id.kind(), Cell::AttachMisses, engine.map(grant, remote, place), note)
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
    noted("xpmem_detach", unmap_segment(vaddr))
}

fn unmap_segment(vaddr: usize) -> Result<()> {
    // No engine is started for this: what it maps could be at the very address that is asked for.
    ready()?;
    let note = |alone: &mut Alone, ()| alone.detached(vaddr);
    for engine in [&CLONE, &MIRROR].into_iter().filter_map(running) {
        if engine.unmap_known(vaddr) || engine.unmap(vaddr)? {
            return counted(engine.endpoint().kind(), Cell::DetachMisses, Ok(()), note);
        }
    }
    if let Some(driver) = open_driver() {
        // SAFETY: the caller's promise.
        let detached = unsafe { driver.detach(vaddr) };
        return counted(Kind::Driver, Cell::DetachMisses, detached, note);
    }
    let maps = Maps::new().map_err(failed("open of /proc/thread-self/maps"))?;
    // The library's own memory may have come to where an attachment was.
    match maps.at(vaddr).filter(|vma| vma.file.is_none() || vma.file != own::file_id()) {
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
    for engine in [&CLONE, &MIRROR].into_iter().filter_map(running) {
        engine.before_fork();
    }
    FORKING.with(|forking| *forking.borrow_mut() = Some(tables));
}

extern "C" fn after_fork_in_parent() {
    let tables = FORKING.with(|forking| forking.borrow_mut().take());
    if tables.is_some() {
        for engine in [&MIRROR, &CLONE].into_iter().filter_map(running) {
            engine.after_fork_in_parent();
        }
    }
}

/// The child has no segments, permits or attachments; it gets an engine of its own when it first needs one.
extern "C" fn after_fork_in_child() {
    let Some(mut tables) = FORKING.with(|forking| forking.borrow_mut().take()) else {
        return;
    };
    for engine in [&MIRROR, &CLONE] {
        if let Some(forked) = running(engine) {
            engine.store(core::ptr::null_mut(), Ordering::Release);
            forked.after_fork_in_child();
        }
    }
    if let Some(driver) = open_driver() {
        DRIVER.store(core::ptr::null_mut(), Ordering::Release);
        driver.forget_after_fork();
    }
    own::forget();
    sheet::forget();
    if let Some(permits) = &mut tables.permits {
        permits.clear();
    }
    tables.alone = None;
}
