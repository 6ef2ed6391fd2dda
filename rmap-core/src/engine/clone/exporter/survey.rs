//! Who is who to this process, for others of its user who ask, and for root: they get what it has counted, to read.

use super::Exporter;
use crate::counters::sheet;
use crate::counters::{self, Cell};
use crate::error::{Error, Result, failed};
use crate::log::log;
use crate::own::OwnVec;
use std::os::fd::AsFd;

/// A client that has asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    client: u32,
    request: u32,
}

impl Exporter {
    /// Notes a question, to be answered when the service thread has looked at all of itself.
    pub(super) fn survey_asked(&mut self, client: u32, request: u32) -> Result<()> {
        let Some(index) = self.client(client) else { return Ok(()) };
        let user = self.clients[index].user();
        if !user.is(0) && !user.is_own() {
            return self.clients[index].refuse(request, &Error::Denied);
        }
        self.asked.push(Asked { client, request }).map_err(failed("mmap"))
    }

    /// Whether somebody has asked.
    pub(crate) fn is_asked(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Notes how it is now.
    pub(crate) fn survey_self(&mut self) {
        let mut permits = OwnVec::new();
        let counted = self.segments.iter().try_for_each(|_| permits.push(0u64)).is_ok();
        let (mut importers, mut all) = (0, 0);
        for client in self.clients.iter() {
            let mut held = 0;
            for segment in client.permits() {
                held += 1;
                let place = self.segments.binary_search_by_key(&segment, |segment| segment.counter);
                if let Some(number) = place.ok().and_then(|place| permits.get_mut(place)) {
                    *number += 1;
                }
            }
            self.peer_rows.set_permits(client.row, held);
            importers += u64::from(held > 0);
            all += held;
        }
        for (segment, permits) in self.segments.iter().zip(permits.iter()).filter(|_| counted) {
            self.segment_rows.set_permits(segment.row, *permits);
        }
        let bytes = |object: &super::Object| object.bytes().unwrap_or(0);
        counters::set(Cell::Segments, self.segments.len() as u64);
        counters::set(Cell::Importers, importers);
        counters::set(Cell::PermitsGivenNow, all);
        counters::set(Cell::ShownBytes, self.backed.iter().map(|span| span.range.len() as u64).sum());
        counters::set(Cell::ObjectBytes, self.objects.iter().map(bytes).sum());
    }

    /// Answers those who have asked.
    pub(crate) fn answer_surveys(&mut self) {
        while let Some(Asked { client, request }) = self.asked.remove(0) {
            let Some(index) = self.client(client) else { continue };
            let answered = match sheet::to_be_read() {
                Ok(file) => self.clients[index].surveyed(request, file.as_fd()),
                Err(errno) => self.clients[index].refuse(request, &failed("open of the counters")(errno)),
            };
            if let Err(error) = answered {
                log!(Warn, "process {} dropped: {error}", self.clients[index].pid());
                self.drop_client(client);
            }
        }
    }
}
