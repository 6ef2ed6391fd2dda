//! Where programs and libraries are loaded.

use super::memory::PAGE;
use core::ffi::c_void;

struct Search {
    addr: usize,
    found: Option<(usize, usize)>,
}

/// Start and end of the program or library that has `addr`, whole pages.
///
/// It takes the dynamic linker's lock.
pub(crate) fn loaded_around(addr: usize) -> Option<(usize, usize)> {
    let mut search = Search { addr, found: None };
    // SAFETY: `look` takes what it is given here, while it is there.
    unsafe { libc::dl_iterate_phdr(Some(look), core::ptr::from_mut(&mut search).cast()) };
    search.found
}

/// An address in the dynamic linker; 0 if there is none.
pub(crate) fn dynamic_linker() -> usize {
    // SAFETY: looks up a number.
    unsafe { libc::getauxval(libc::AT_BASE) as usize }
}

extern "C" fn look(info: *mut libc::dl_phdr_info, _: usize, search: *mut c_void) -> i32 {
    // SAFETY: the linker gives a description that is good during the call, with that many headers; the search is the one above.
    let (info, search) = unsafe { (&*info, &mut *search.cast::<Search>()) };
    // SAFETY: as above.
    let headers = unsafe { core::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let base = info.dlpi_addr as usize;
    let loaded = headers.iter().filter(|header| header.p_type == libc::PT_LOAD).map(|header| {
        let start = base.wrapping_add(header.p_vaddr as usize);
        (start & !(PAGE - 1), start.wrapping_add(header.p_memsz as usize).next_multiple_of(PAGE))
    });
    let all = loaded.reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)));
    search.found = all.filter(|(start, end)| (*start..*end).contains(&search.addr));
    i32::from(search.found.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_data_of_a_library_are_in_one_range() {
        static mut WORD: u64 = 1;
        let code = loaded_around(loaded_around as *const () as usize).unwrap();
        assert_eq!(loaded_around((&raw const WORD).addr()), Some(code));
        let library = loaded_around(libc::getpid as *const () as usize).unwrap();
        assert_ne!(library, code);
        assert!(loaded_around(dynamic_linker()).is_some_and(|linker| linker != library && linker != code));
        assert_eq!(loaded_around((&raw const code).addr()), None);
    }
}
