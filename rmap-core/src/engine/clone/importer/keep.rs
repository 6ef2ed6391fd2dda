//! Windows that are kept: attached to again and again without a system call, and given back when too many are not in use.

use super::window::Window;
use super::{Importer, Permit};
use crate::engine::clone::BLOCK;
use crate::engine::clone::windows::{Listed, Windows};
use crate::error::{Error, Result, failed};
use crate::log::log;
use crate::own::OwnVec;
use crate::range::Range;
use crate::sys::memory::{self, HUGE_PAGE};
use crate::sys::{Errno, Said};

/// Where something was attached, and the window that was made for it, if one was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub(crate) base: usize,
    pub(crate) made: Option<Range>,
}

/// What one window shows: neighbours are attached with it, too. Address space is all that its size takes.
pub(super) fn block() -> usize {
    if memory::address_space_is_limited() { HUGE_PAGE } else { BLOCK }
}

/// The blocks of this size around `remote`, as far as the permit allows.
fn rounded(remote: Range, limit: Range, block: usize) -> Range {
    remote.around(block).intersection(limit).unwrap_or(remote)
}

impl Importer {
    /// The tables that the application's threads look into.
    pub(crate) fn kept_windows(&self) -> &'static Windows {
        self.listing.windows()
    }

    /// Attaches by a window that is kept, an old one or a new one.
    pub(super) fn map_kept(&mut self, permit: &Permit, remote: Range) -> Result<Mapped> {
        let offset = remote.start() - permit.range.start();
        if let Some(base) = self.listing.attach(permit.number, offset, remote.len()) {
            return Ok(Mapped { base, made: None });
        }
        self.make_room();
        let (window, _) = self.keep_window(permit, remote)?;
        let base = window.range.start() + (remote.start() - window.remote);
        Ok(Mapped { base, made: Some(window.range) })
    }

    /// Makes a window before anybody attaches to it: the exporter has memory there that others have reached.
    pub(super) fn make_ahead(&mut self, host: u32, remote: Range) {
        // The exporter of this process learns of new windows first. And where there is little room, nothing is made that may not be needed.
        if !self.removed.is_empty() || self.block < BLOCK {
            return;
        }
        for index in 0..self.permits.len() {
            let permit = self.permits[index];
            let part = remote.intersection(permit.range).filter(|_| permit.host == host && !permit.removed);
            let Some(part) = part else { continue };
            let page = Range::page_at(part.start());
            let shows = |window: &Window| {
                (window.permit, window.slot.is_some()) == (permit.number, true)
                    && window.to_local(page).is_some()
            };
            if self.windows.len() >= self.config.window_limit || self.windows.iter().any(shows) {
                continue;
            }
            let made =
                self.made.reserve(1).map_err(failed("mmap")).and_then(|()| self.keep_window(&permit, page));
            match made {
                Ok((window, slot)) => {
                    let _ = self.made.push(window.range);
                    if let Some(slot) = slot {
                        self.listing.detach(slot);
                    }
                }
                Err(error) => log!(Debug, "no window ahead of time: {error}"),
            }
        }
    }

    /// Makes a window that is kept, with one attachment.
    fn keep_window(&mut self, permit: &Permit, remote: Range) -> Result<(Window, Option<u32>)> {
        let window = self.make_kept_window(permit, remote)?;
        let host = &self.hosts[self.host(permit.host).ok_or(Error::NoSuchId)?];
        let listed = Listed {
            permit: permit.number,
            offset: window.remote - permit.range.start(),
            local: window.range,
            status: host.status().ok_or(Error::NoSuchId)?.address(),
            expected: host.expected(),
        };
        let slot = match self.listing.insert(&listed) {
            Ok(slot) => {
                if let Some(index) = self.window_at(window.range.start()) {
                    self.windows[index].slot = Some(slot);
                }
                Some(slot)
            }
            Err(errno) => {
                log!(Warn, "window {} is not kept: {errno}", window.range, errno = Said(errno));
                None
            }
        };
        Ok((window, slot))
    }

    /// Makes a window that has `remote` and as much around it as may be had.
    fn make_kept_window(&mut self, permit: &Permit, remote: Range) -> Result<Window> {
        let wanted = rounded(remote, permit.range, self.block);
        match self.make_window(permit, wanted, None) {
            // Limits of the address space, of mappings or of locked memory: what was not asked for goes first, then what is not in use.
            Err(Error::OutOfResources { errno: Errno::NOMEM | Errno::AGAIN, .. }) => {
                let small = rounded(remote, permit.range, HUGE_PAGE);
                self.make_window(permit, small, None).or_else(|_| {
                    self.give_back_all_but(0);
                    self.make_window(permit, remote, None)
                })
            }
            made => made,
        }
    }

    /// Gives windows back if so many are not in use that the limit says so.
    fn make_room(&mut self) {
        self.listing.next_epoch();
        if self.windows.len() < self.make_room_at {
            return;
        }
        let limit = self.config.window_limit;
        // More than necessary, so that the next ones need not look.
        let unused = self.give_back_all_but(limit - limit / 8);
        self.make_room_at = self.windows.len() - unused + limit;
    }

    /// Gives windows back that are not in use, but for so many that were used last; returns how many of those there are now.
    fn give_back_all_but(&mut self, most: usize) -> usize {
        let mut unused: OwnVec<(u32, usize)> = OwnVec::new();
        for window in self.windows.iter() {
            let Some(slot) = window.slot.filter(|slot| !self.listing.is_used(*slot)) else { continue };
            if unused.push((self.listing.last_used(slot), window.range.start())).is_err() {
                break;
            }
        }
        unused.sort_unstable();
        let excess = unused.len().saturating_sub(most);
        for (_, start) in unused.iter().take(excess) {
            if let Some(index) = self.window_at(*start) {
                self.give_back_window(index);
            }
        }
        unused.len() - excess
    }

    /// Gives a window back if it is kept and not in use.
    pub(super) fn give_back_window(&mut self, index: usize) -> bool {
        let Some(window) = self.windows.get(index).copied() else { return false };
        let Some(slot) = window.slot else { return false };
        if !self.listing.remove(slot, false) {
            return false;
        }
        log!(Trace, "window {} given back", window.range);
        self.remove_all(|window| window.slot == Some(slot)).is_ok()
    }

    fn remove_all(&mut self, is_to_go: impl Fn(&Window) -> bool) -> Result<()> {
        let mut result = Ok(());
        let mut index = 0;
        while let Some(window) = self.windows.get(index) {
            if is_to_go(window) {
                result = result.and(self.remove_window(index));
            } else {
                index += 1;
            }
        }
        result
    }

    /// Has nobody attach to windows of this permit any more; those that nobody is attached to go.
    pub(super) fn close_windows(&mut self, permit: u32) {
        self.listing.close(permit);
        let mut index = 0;
        while let Some(window) = self.windows.get(index) {
            if window.permit != permit || !self.give_back_window(index) {
                index += 1;
            }
        }
    }

    /// Removes all windows of a permit.
    pub(super) fn remove_windows(&mut self, permit: u32) -> Result<()> {
        let mut result = Ok(());
        while let Some(window) = self.windows.iter().find(|window| window.permit == permit).copied() {
            if let Some(slot) = window.slot {
                self.listing.remove(slot, true);
            }
            result = result.and(self.remove_all(|other| (other.slot, other.permit) == (window.slot, permit)));
        }
        result
    }

    /// Detaches from the window that covers `addr`.
    pub(crate) fn unmap(&mut self, addr: usize) -> Result<()> {
        let index = self.window_at(addr).ok_or(Error::NoSuchId)?;
        match self.windows[index] {
            Window { slot: Some(slot), .. } => {
                self.listing.detach(slot);
                if self.listing.is_closed(slot) {
                    self.give_back_window(index);
                }
                Ok(())
            }
            Window { slot: None, permit, whole, .. } => {
                self.remove_all(|window| (window.slot, window.permit, window.whole) == (None, permit, whole))
            }
        }
    }

    /// Takes a window that was made ahead of time.
    pub(crate) fn take_made(&mut self) -> Option<Range> {
        self.made.remove(self.made.len().wrapping_sub(1))
    }

    /// Takes the windows that were removed since the last time.
    pub(crate) fn take_removed(&mut self, mut each: impl FnMut(Range)) {
        while let Some(range) = self.removed.remove(self.removed.len().wrapping_sub(1)) {
            each(range);
        }
    }

    /// Takes what windows have shown until now and do not any more.
    pub(crate) fn take_changed(&mut self) -> Option<Range> {
        self.changed.remove(self.changed.len().wrapping_sub(1))
    }
}
