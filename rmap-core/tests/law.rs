//! The service thread never allocates: who holds the allocator's lock may be waiting for it. `tests/c/law.c` looks for more, and at the C library.

use rmap_core::{Access, Permit, Segment};
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

/// The system's allocator, which looks who calls.
struct Watched;

static SERVICE: AtomicI32 = AtomicI32::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

fn look() {
    let service = SERVICE.load(Ordering::Relaxed);
    // SAFETY: no arguments.
    if service != 0 && service == unsafe { libc::gettid() } {
        CALLS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        look();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        look();
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

fn threads() -> BTreeSet<i32> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
}

const LEN: usize = 64 << 12;

#[test]
fn the_service_thread_does_not_allocate() {
    let before = threads();
    let segment = Segment::whole_address_space(0o600).unwrap();
    let started: Vec<i32> = threads().difference(&before).copied().collect();
    assert_eq!(started.len(), 1, "one thread is started");
    SERVICE.store(started[0], Ordering::Relaxed);
    // This process is on both sides.
    let permit = Permit::get(segment.id(), Access::ReadWrite).unwrap();
    for round in 0..20u8 {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new memory, used by its address and unmapped below.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), LEN, prot, flags, -1, 0) }.cast::<u8>();
        // SAFETY: as above.
        unsafe { memory.write_bytes(round, LEN) };
        let attachment = permit.attach(memory.expose_provenance() as u64, LEN).unwrap();
        let mut byte = [0];
        attachment.read(LEN / 2, &mut byte).unwrap();
        assert_eq!(byte, [round]);
        drop(attachment);
        // SAFETY: nobody uses it any more.
        assert_eq!(unsafe { libc::munmap(memory.cast(), LEN) }, 0);
        let range = rmap_core::Range::new(0x1000 << 12, LEN).unwrap();
        drop(Segment::new(range, 0o600).unwrap());
        assert!(Permit::get(segment.id(), Access::ReadOnly).is_ok());
    }
    drop(permit);
    drop(segment);
    assert_eq!(CALLS.load(Ordering::Relaxed), 0, "calls of the allocator");
}
