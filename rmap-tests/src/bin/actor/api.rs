//! Random calls of the library from many threads at once.

use crate::{
    command::{Arguments, Failure},
    library::{self, Called},
    threads::{Control, Report, Work},
    trap,
};
use rmap_tests::{PAGE, PERMIT_MODE, RDONLY, RDWR, Random};
use std::collections::BTreeMap;

/// What a thread works on: a segment of another process or of this one.
struct Target {
    segid: i64,
    address: usize,
    pages: usize,
}

/// `api SEED [SEGID ADDRESS PAGES]...`: the first word of each page of these segments is the page's own address
/// in its process, or 0.
pub(crate) fn work(arguments: &mut Arguments<'_>) -> Result<Work, Failure> {
    let seed = arguments.number()?;
    let mut targets = Vec::new();
    while let Some(word) = arguments.next() {
        let segid = Arguments::new(word).number()?;
        targets.push(Target { segid, address: arguments.number()?, pages: arguments.number()? });
    }
    Ok(Box::new(move |control| Caller::new(seed, targets).run(control)))
}

struct Attachment {
    address: usize,
    pages: usize,
    remote: usize,
}

struct Permit {
    apid: i64,
    target: usize,
    attachments: Vec<Attachment>,
}

struct Caller {
    random: Random,
    targets: Vec<Target>,
    permits: Vec<Permit>,
    own: Vec<i64>,
    steps: u64,
    loads: u64,
    holes: u64,
    wrong: u64,
    faults: u64,
    errors: BTreeMap<String, u64>,
}

impl Caller {
    fn new(seed: u64, targets: Vec<Target>) -> Self {
        let random = Random::new(seed);
        let (permits, own, errors) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self { random, targets, permits, own, steps: 0, loads: 0, holes: 0, wrong: 0, faults: 0, errors }
    }

    /// Notes an error that should not be.
    fn check(&mut self, what: &str, called: &Called) -> Option<i64> {
        match called.result() {
            Ok(value) => Some(value),
            Err(errno) => {
                *self.errors.entry(format!("{what}_errno_{errno}")).or_default() += 1;
                None
            }
        }
    }

    fn run(mut self, control: &Control) -> Report {
        while control.on() {
            match self.random.below(12) {
                0 if self.permits.len() < 4 => self.get(),
                1 | 2 if !self.permits.is_empty() => self.attach(),
                3 => self.detach(),
                4 => self.release(),
                5 => self.make(),
                6 => self.remove(),
                _ => self.touch(),
            }
            self.steps += 1;
            control.step();
        }
        while !self.permits.is_empty() {
            self.release();
        }
        while !self.own.is_empty() {
            self.remove();
        }
        let Self { steps, loads, holes, wrong, faults, errors, .. } = self;
        let errors: String = errors.iter().map(|(what, count)| format!(" {what}={count}")).collect();
        format!("steps={steps} loads={loads} holes={holes} wrong={wrong} faults={faults}{errors}")
    }

    fn get(&mut self) {
        let target = self.random.below(self.targets.len());
        let flags = *self.random.pick(&[RDWR, RDWR, RDONLY]);
        let called = library::get(self.targets[target].segid, flags, PERMIT_MODE, 0);
        if let Some(apid) = self.check("get", &called) {
            self.permits.push(Permit { apid, target, attachments: Vec::new() });
        }
    }

    fn attach(&mut self) {
        let at = self.random.below(self.permits.len());
        let (apid, target) = (self.permits[at].apid, &self.targets[self.permits[at].target]);
        let first = self.random.below(target.pages);
        let pages = 1 + self.random.below(target.pages - first);
        let remote = target.address + first * PAGE;
        // Not always a whole number of pages: the library rounds up.
        let len = pages * PAGE - self.random.below(PAGE);
        let called = library::attach(apid, (first * PAGE) as i64, len, 0);
        if let Some(address) = self.check("attach", &called) {
            let address = address.cast_unsigned() as usize;
            self.permits[at].attachments.push(Attachment { address, pages, remote });
        }
    }

    /// A random attachment, as the places of the permit and in it.
    fn some_attachment(&mut self) -> Option<(usize, usize)> {
        let with: Vec<usize> =
            (0..self.permits.len()).filter(|at| !self.permits[*at].attachments.is_empty()).collect();
        if with.is_empty() {
            return None;
        }
        let permit = *self.random.pick(&with);
        Some((permit, self.random.below(self.permits[permit].attachments.len())))
    }

    fn detach(&mut self) {
        let Some((permit, at)) = self.some_attachment() else {
            return;
        };
        let attachment = self.permits[permit].attachments.swap_remove(at);
        let inside = attachment.address + self.random.below(attachment.pages * PAGE);
        let called = library::detach(inside);
        self.check("detach", &called);
    }

    fn release(&mut self) {
        if self.permits.is_empty() {
            return;
        }
        let at = self.random.below(self.permits.len());
        let permit = self.permits.swap_remove(at);
        let called = library::release(permit.apid);
        self.check("release", &called);
    }

    fn make(&mut self) {
        let target = &self.targets[0];
        let called = library::make(target.address, PAGE * (1 + self.random.below(8)), PERMIT_MODE, 0o600);
        if let Some(segid) = self.check("make", &called) {
            self.own.push(segid);
        }
    }

    fn remove(&mut self) {
        if let Some(segid) = self.own.pop() {
            let called = library::remove(segid);
            self.check("remove", &called);
        }
    }

    fn touch(&mut self) {
        let Some((permit, at)) = self.some_attachment() else {
            return;
        };
        let attachment = &self.permits[permit].attachments[at];
        let page = self.random.below(attachment.pages);
        let (address, remote) = (attachment.address + page * PAGE, attachment.remote + page * PAGE);
        match trap::load(address) {
            Ok(value) if value == remote as u64 || value == 0 => self.loads += 1,
            Ok(_) => self.wrong += 1,
            Err(fault) if fault.is_hole_at(address) => self.holes += 1,
            Err(_) => self.faults += 1,
        }
    }
}
