//! What the arena of an exporter must look like.

use crate::program::{Access, Kind, PAGES};
use rmap_tests::pattern::Seen;
use std::ops::Range;

/// A page of a mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    pub(crate) access: Access,
    pub(crate) shared: bool,
    /// The file behind it and the page in the file.
    pub(crate) file: Option<(usize, usize)>,
    /// What the process wrote, if it is its own.
    own: Option<u64>,
}

impl Page {
    /// The file behind it, if it has no name, and the page in the file.
    fn anonymous_file(self) -> Option<(usize, usize)> {
        self.file.filter(|(file, _)| *file != SHARED_FILE && *file != PRIVATE_FILE)
    }
}

/// All pages, and the files behind them.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) pages: Vec<Option<Page>>,
    /// Shared anonymous memory that was there before it was unmapped: the file, and the page in the file.
    left: Vec<Option<(usize, usize)>>,
    files: Vec<Vec<u64>>,
    /// Pages of the heap.
    pub(crate) heap: Vec<u64>,
}

/// What a page must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Stamp(u64),
    Hole,
    /// Not there, but what was there is shared memory, which stays with those who have attached it.
    Left(u64),
    /// There, but not to be read: an attachment may show what it likes.
    Hidden,
}

impl Expected {
    /// Whether the kernel's word for the exporter's page fits.
    pub(crate) fn fits_exporter(self, real: Option<Seen>) -> bool {
        match self {
            Self::Stamp(stamp) => real == Some(Seen::Stamp(stamp)),
            Self::Hole | Self::Left(_) | Self::Hidden => real.is_none(),
        }
    }

    /// Whether what an attachment shows fits.
    pub(crate) fn fits_importer(self, shown: Seen) -> bool {
        match self {
            Self::Stamp(stamp) => shown == Seen::Stamp(stamp),
            Self::Hole => shown == Seen::Hole,
            Self::Left(stamp) => shown == Seen::Hole || shown == Seen::Stamp(stamp),
            Self::Hidden => shown != Seen::Fault,
        }
    }
}

/// The file that is mapped shared, and the one that is mapped privately.
pub(crate) const SHARED_FILE: usize = 0;
pub(crate) const PRIVATE_FILE: usize = 1;
/// The length of both, in pages.
pub(crate) const FILE_PAGES: usize = 3 * PAGES;

/// The stamp of a page of the private file.
pub(crate) fn private_stamp(index: usize) -> u64 {
    0xf11e_0000 + index as u64
}

impl Model {
    pub(crate) fn new() -> Self {
        let private = (0..FILE_PAGES).map(private_stamp).collect();
        let files = vec![vec![0; FILE_PAGES], private];
        Self { pages: vec![None; PAGES], left: vec![None; PAGES], files, heap: Vec::new() }
    }

    pub(crate) fn expected(&self, page: usize) -> Expected {
        match self.pages[page] {
            None => self.left[page].map_or(Expected::Hole, |(file, index)| {
                Expected::Left(self.files[file].get(index).copied().unwrap_or(0))
            }),
            Some(Page { access: Access::None, .. }) => Expected::Hidden,
            Some(page) => self.stamp(page).map_or(Expected::Hole, Expected::Stamp),
        }
    }

    /// The stamp of a page, or `None` for a page behind the end of its file.
    fn stamp(&self, page: Page) -> Option<u64> {
        match (page.own, page.file) {
            (Some(stamp), _) => Some(stamp),
            (None, None) => Some(0),
            (None, Some((file, index))) => self.files[file].get(index).copied(),
        }
    }

    /// Whether all pages are there.
    pub(crate) fn whole(&self, range: Range<usize>) -> bool {
        self.pages[range].iter().all(Option::is_some)
    }

    /// Whether any of these pages is of shared memory without a file that has a name.
    pub(crate) fn shares_anonymous_memory(&self, range: Range<usize>) -> bool {
        self.pages[range].iter().flatten().any(|page| page.anonymous_file().is_some())
    }

    /// The parts of a range that can be written.
    pub(crate) fn writable(&self, range: Range<usize>) -> Vec<usize> {
        let writable = |page: &Page| page.access == Access::Write && self.stamp(*page).is_some();
        range.filter(|page| self.pages[*page].as_ref().is_some_and(writable)).collect()
    }

    pub(crate) fn map(&mut self, range: Range<usize>, kind: Kind, access: Access, index: usize) {
        let first = range.start;
        let file = match kind {
            Kind::Anonymous => None,
            Kind::SharedFile => Some((SHARED_FILE, index)),
            Kind::PrivateFile => Some((PRIVATE_FILE, index)),
            Kind::SharedAnonymous => {
                self.files.push(vec![0; range.len()]);
                Some((self.files.len() - 1, 0))
            }
        };
        let shared = matches!(kind, Kind::SharedAnonymous | Kind::SharedFile);
        for page in range {
            let file = file.map(|(file, index)| (file, index + page - first));
            self.pages[page] = Some(Page { access, shared, file, own: None });
        }
    }

    pub(crate) fn unmap(&mut self, range: Range<usize>) {
        for page in range {
            if let Some(mapped) = self.pages[page].take() {
                self.left[page] = mapped.anonymous_file();
            }
        }
    }

    pub(crate) fn protect(&mut self, range: Range<usize>, access: Access) {
        for page in self.pages[range].iter_mut().flatten() {
            page.access = access;
        }
    }

    pub(crate) fn forget(&mut self, range: Range<usize>) {
        for page in self.pages[range].iter_mut().flatten() {
            page.own = None;
        }
    }

    pub(crate) fn erase(&mut self, range: Range<usize>) {
        for page in range {
            if let Some(Page { file: Some((file, index)), .. }) = self.pages[page]
                && let Some(stamp) = self.files[file].get_mut(index)
            {
                *stamp = 0;
            }
        }
    }

    pub(crate) fn write(&mut self, page: usize, stamp: u64) {
        let Some(page) = &mut self.pages[page] else { return };
        match page.file {
            Some((file, index)) if page.shared => self.files[file][index] = stamp,
            _ => page.own = Some(stamp),
        }
    }

    /// Moves pages, with more or fewer of them at the new place.
    pub(crate) fn relocate(&mut self, from: Range<usize>, to: Range<usize>, keep: bool) {
        let moved: Vec<Option<Page>> = self.pages[from.clone()].to_vec();
        let last = moved[moved.len() - 1];
        if keep {
            self.forget(from.clone());
        } else {
            self.pages[from.clone()].fill(None);
            self.left[from].fill(None);
        }
        for (offset, page) in to.enumerate() {
            self.pages[page] = moved.get(offset).copied().unwrap_or_else(|| {
                // The mapping goes on as it was: into the file, or with zeros.
                let beyond = offset - (moved.len() - 1);
                last.map(|last| Page {
                    file: last.file.map(|(file, index)| (file, index + beyond)),
                    own: None,
                    ..last
                })
            });
        }
    }
}
