//! The interleavings of threads that attach and detach, and of the thread that gives windows back, over the gate that the library uses.
//!
//! loom, for the memory orderings are what could be wrong. The source is the library's own; only atomics are replaced.

use atomics::{AtomicI32, AtomicUsize, Ordering};
use gate::Gate;
use loom::cell::UnsafeCell;
use loom::thread;
use std::sync::Arc;

/// loom takes sequentially consistent accesses for weaker ones, but knows the fences. So one such fence stands in for the order
/// between counting in and looking at the gate; on the other side, the code has it itself.
mod atomics {
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::{Ordering, fence};

    pub(crate) const PATIENCE: usize = 1;

    fn for_load(order: Ordering) -> Ordering {
        if order == Ordering::SeqCst { Ordering::Acquire } else { order }
    }

    #[derive(Debug)]
    pub(crate) struct AtomicUsize(loom::sync::atomic::AtomicUsize);

    impl AtomicUsize {
        pub(crate) fn new(value: usize) -> Self {
            Self(loom::sync::atomic::AtomicUsize::new(value))
        }

        pub(crate) fn load(&self, order: Ordering) -> usize {
            self.0.load(for_load(order))
        }

        pub(crate) fn store(&self, value: usize, order: Ordering) {
            self.0.store(value, order);
        }

        pub(crate) fn swap(&self, value: usize, order: Ordering) -> usize {
            self.0.swap(value, order)
        }
    }

    #[derive(Debug)]
    pub(crate) struct AtomicI32(loom::sync::atomic::AtomicI32);

    impl AtomicI32 {
        pub(crate) fn new(value: i32) -> Self {
            Self(loom::sync::atomic::AtomicI32::new(value))
        }

        pub(crate) fn load(&self, order: Ordering) -> i32 {
            self.0.load(for_load(order))
        }

        pub(crate) fn fetch_add(&self, value: i32, order: Ordering) -> i32 {
            let before = self.0.fetch_add(value, order);
            if order == Ordering::SeqCst {
                fence(Ordering::SeqCst);
            }
            before
        }

        pub(crate) fn fetch_sub(&self, value: i32, order: Ordering) -> i32 {
            self.0.fetch_sub(value, order)
        }
    }
}

#[path = "../src/engine/clone/gate.rs"]
mod gate;

/// A table of one window, and the window.
struct World {
    gate: Gate,
    listed: AtomicUsize,
    counts: [AtomicI32; 2],
    /// loom fails if somebody reads it while it is unmapped.
    memory: UnsafeCell<bool>,
}

// SAFETY: loom looks who uses the memory when.
unsafe impl Sync for World {}
// SAFETY: as above.
unsafe impl Send for World {}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            gate: Gate::from(AtomicUsize::new(0)),
            listed: AtomicUsize::new(1),
            counts: [AtomicI32::new(0), AtomicI32::new(0)],
            memory: UnsafeCell::new(true),
        })
    }

    /// Attaches, reads and detaches; false if there is no window, or nobody knows at the moment.
    fn use_it(&self, shard: usize) -> bool {
        let Some(pass) = self.gate.pass() else { return false };
        if self.listed.load(Ordering::Relaxed) == 0 || !self.gate.count_in(pass, &self.counts[shard]) {
            return false;
        }
        // SAFETY: loom looks whether anybody writes at the same time.
        assert!(self.memory.with(|mapped| unsafe { *mapped }), "attached to what is not mapped");
        assert!(gate::count_out(&self.counts[shard]), "detached before");
        true
    }

    /// Gives the window back if nobody is attached.
    fn give_back(&self) -> bool {
        let shut = self.gate.shut();
        let unused = gate::total(self.counts.iter()) == 0;
        if unused {
            self.listed.store(0, Ordering::Relaxed);
        }
        self.gate.open(shut);
        if unused {
            // SAFETY: loom looks whether anybody reads at the same time.
            self.memory.with_mut(|mapped| unsafe { *mapped = false });
        }
        unused
    }
}

/// Goes through what up to three preemptions can do.
fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(run);
}

#[test]
fn nothing_is_unmapped_under_who_is_attached() {
    model(|| {
        let world = World::new();
        let users: Vec<_> = (0..2)
            .map(|shard| {
                let world = Arc::clone(&world);
                thread::spawn(move || world.use_it(shard))
            })
            .collect();
        let gone = world.give_back();
        let used = users.into_iter().map(|user| user.join().unwrap()).filter(|used| *used).count();
        assert_eq!(gate::total(world.counts.iter()), 0, "counts that are left");
        if !gone {
            assert!(used > 0 || world.give_back(), "kept for nobody");
        }
    });
}

#[test]
fn one_thread_detaches_what_another_has_attached() {
    model(|| {
        let world = World::new();
        // Two attachments of one thread; another ends one of them, and must ask for it.
        for _ in 0..2 {
            let pass = world.gate.pass().unwrap();
            assert!(world.gate.count_in(pass, &world.counts[0]));
        }
        let other = {
            let world = Arc::clone(&world);
            thread::spawn(move || assert!(!gate::count_out(&world.counts[1]), "nothing is counted there"))
        };
        let gone = world.give_back();
        assert!(!gone, "two are attached");
        other.join().unwrap();
        assert_eq!(gate::total(world.counts.iter()), 2);
    });
}

#[test]
fn what_is_read_is_of_one_time() {
    model(|| {
        let gate = Arc::new((Gate::from(AtomicUsize::new(0)), AtomicUsize::new(1), AtomicUsize::new(1)));
        let reader = {
            let gate = Arc::clone(&gate);
            thread::spawn(move || {
                let (gate, one, two) = &*gate;
                let Some(pass) = gate.pass() else { return };
                let (one, two) = (one.load(Ordering::Relaxed), two.load(Ordering::Relaxed));
                if gate.is_valid(pass) {
                    assert_eq!(one, two, "a mixture");
                }
            })
        };
        let (gate, one, two) = &*gate;
        for value in 2..4 {
            let shut = gate.shut();
            // Within another change, as when a report of the kernel's is seen to.
            let within = gate.shut();
            one.store(value, Ordering::Relaxed);
            gate.open(within);
            two.store(value, Ordering::Relaxed);
            gate.open(shut);
        }
        reader.join().unwrap();
    });
}
