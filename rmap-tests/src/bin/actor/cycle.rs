//! Attaches and detaches pieces of a heap over and over, as a runtime does that caches no attachments.

use crate::{
    command::{Arguments, Failure, Outcome},
    library, trap,
};
use rmap_tests::{PAGE, Random};

/// `cycle APID HEAP PIECES PAGES COUNT SEED`: so many times attaches one of the pieces, of so many pages each, loads the first word
/// of a page of it, and detaches it. Page `i` of the heap begins with the word `i + 1`.
pub(crate) fn cycle(arguments: &mut Arguments<'_>) -> Outcome {
    let (apid, heap): (i64, usize) = (arguments.number()?, arguments.number()?);
    let (pieces, pages): (usize, usize) = (arguments.number()?, arguments.number()?);
    let (count, seed): (usize, u64) = (arguments.number()?, arguments.number()?);
    let mut random = Random::new(seed);
    for _ in 0..count {
        let first = random.below(pieces) * pages;
        let offset = i64::try_from(heap + first * PAGE).expect("an address");
        let here = library::attach(apid, offset, pages * PAGE, 0).result().map_err(Failure::Errno)?;
        let here = here.cast_unsigned() as usize;
        let page = random.below(pages);
        let found = trap::load(here + page * PAGE)?;
        if found != (first + page + 1) as u64 {
            return Err(Failure::Usage(format!("page {page} of the piece at {first} begins with {found}")));
        }
        library::detach(here).result().map_err(Failure::Errno)?;
    }
    Ok(String::new())
}
