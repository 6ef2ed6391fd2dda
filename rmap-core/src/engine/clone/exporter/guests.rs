//! Guests: processes that are connected and have no permit. They leave for whoever needs the room.

use super::Exporter;
use crate::error::{Error, Result};
use crate::log::log;
use crate::sys::Errno;
use crate::sys::event::Poller;

impl Exporter {
    /// The process that has been connected without a permit for longest, but for this one.
    pub(super) fn oldest_guest(&self, but: Option<u32>) -> Option<u32> {
        let guest = self.clients.iter().find(|client| client.is_guest() && Some(client.number) != but);
        guest.map(|client| client.number)
    }

    /// Hangs up on the oldest guest, unless that gets a permit now. False if there is none.
    pub(crate) fn dismiss_guest(&mut self, poller: &Poller, token: u64) -> bool {
        while let Some(number) = self.oldest_guest(None) {
            // It may have asked a moment ago.
            self.client_readable(number, poller, token);
            let Some(index) = self.client(number) else { return true };
            if self.clients[index].is_guest() {
                self.send_away(number);
                return true;
            }
        }
        false
    }

    /// Has guests leave who are too many: whoever may do nothing here must not take the application's descriptors.
    pub(super) fn limit_guests(&mut self, poller: &Poller, token: u64) {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let Some(most) = limit.map(|limit| limit / 4) else { return };
        while self.clients.iter().filter(|client| client.is_guest()).count() as u64 > most {
            if !self.dismiss_guest(poller, token) {
                return;
            }
        }
    }

    pub(super) fn send_away(&mut self, number: u32) {
        if let Some(index) = self.client(number) {
            log!(Warn, "process {} has no permit and is sent away", self.clients[index].pid());
            self.drop_client(number);
        }
    }

    /// Does what takes descriptors. Guests make room for them, but for the one that asks.
    pub(super) fn with_room<T>(
        &mut self,
        but: Option<u32>,
        mut make: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<T> {
        loop {
            match make(self) {
                Err(Error::OutOfResources { call, errno: Errno::MFILE }) => match self.oldest_guest(but) {
                    Some(guest) => self.send_away(guest),
                    None => return Err(Error::OutOfResources { call, errno: Errno::MFILE }),
                },
                made => return made,
            }
        }
    }
}
