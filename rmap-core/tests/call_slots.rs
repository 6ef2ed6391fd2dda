//! The interleavings of callers and of the thread that serves them, over the slots that the library uses.
//!
//! loom, not shuttle: the protocol is small enough to go through it systematically, and what could be wrong in it are the memory
//! orderings, which shuttle does not look at.
//!
//! The source is the library's own. What it stands on is replaced: atomics and cells by loom's, futexes by a model of the kernel's.

use loom::sync::{Condvar, Mutex};
use loom::thread;
use std::collections::HashMap;
use std::sync::Arc;

#[path = "../src/engine/clone/slots.rs"]
mod slots;

mod detector {
    pub(crate) fn tell() {}

    pub(crate) fn hear() {}
}

mod handed {
    /// A place for a value; loom fails if two threads use it at once.
    pub(crate) struct Handed<T>(loom::cell::UnsafeCell<Option<T>>);

    impl<T> Handed<T> {
        pub(crate) fn new() -> Self {
            Self(loom::cell::UnsafeCell::new(None))
        }

        /// # Safety
        /// As of the real one, but loom looks on.
        pub(crate) unsafe fn put(&self, value: T) {
            // SAFETY: loom has made sure that nobody else uses the place.
            self.0.with_mut(|place| unsafe { *place = Some(value) });
        }

        /// # Safety
        /// As of the real one, but loom looks on.
        pub(crate) unsafe fn take(&self) -> T {
            // SAFETY: loom has made sure that nobody else uses the place.
            self.0.with_mut(|place| unsafe { (*place).take() }).expect("nothing was put in")
        }
    }
}

mod sys {
    pub(crate) mod futex {
        pub(crate) use loom::sync::atomic::AtomicU32 as Word;
        use std::time::Duration;

        /// Time does not pass here.
        pub(crate) fn wait(word: &Word, expected: u32, _limit: Option<Duration>) -> bool {
            crate::KERNEL.wait(word, expected);
            false
        }

        pub(crate) fn wake(word: &Word) {
            crate::KERNEL.wake(word);
        }
    }
}

type Queues = HashMap<usize, Arc<Condvar>>;

/// Who sleeps on which word. Looking at the word and going to sleep are one step, as in the kernel, and nobody is woken for another
/// word: so a lost wake-up is a deadlock, which loom finds.
#[derive(Default)]
struct Kernel {
    queues: Mutex<Queues>,
}

loom::lazy_static! {
    static ref KERNEL: Kernel = Kernel::default();
}

fn queue(queues: &mut Queues, word: &sys::futex::Word) -> Arc<Condvar> {
    let queue = queues.entry(std::ptr::from_ref(word).addr());
    queue.or_insert_with(|| Arc::new(Condvar::new())).clone()
}

impl Kernel {
    fn wait(&self, word: &sys::futex::Word, expected: u32) {
        let mut queues = self.queues.lock().unwrap();
        if word.load(loom::sync::atomic::Ordering::SeqCst) == expected {
            let queue = queue(&mut queues, word);
            drop(queue.wait(queues).unwrap());
        }
    }

    fn wake(&self, word: &sys::futex::Word) {
        let mut queues = self.queues.lock().unwrap();
        queue(&mut queues, word).notify_all();
    }
}

/// An eventfd in an epoll.
struct Doorbell {
    rung: Mutex<bool>,
    waiter: Condvar,
}

impl Doorbell {
    fn new() -> Self {
        Self { rung: Mutex::new(false), waiter: Condvar::new() }
    }

    fn ring(&self) -> bool {
        *self.rung.lock().unwrap() = true;
        self.waiter.notify_one();
        true
    }

    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.waiter.wait(rung).unwrap();
        }
    }

    fn clear(&self) {
        *self.rung.lock().unwrap() = false;
    }
}

#[derive(Clone, Copy)]
enum Service {
    /// Answers a call when it has taken it.
    AtOnce,
    /// Answers when all calls are taken that were posted, the last one first.
    Late,
}

/// Has `callers` threads make `each` calls over `SLOTS` slots, and this one serve them, with at most so many preemptions.
fn explore<const SLOTS: usize>(callers: usize, each: usize, service: Service, preemptions: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(move || {
        let shared = Arc::new((slots::Slots::<usize, usize, SLOTS>::default(), Doorbell::new()));
        let threads: Vec<_> = (0..callers)
            .map(|caller| {
                let shared = shared.clone();
                thread::spawn(move || {
                    for call in (0..each).map(|call| 10 * caller + call) {
                        let answer = shared.0.post(call, || shared.1.ring());
                        assert_eq!(answer, Some(1000 + call), "the answer to another call");
                    }
                })
            })
            .collect();
        let (slots, doorbell) = &*shared;
        let mut left = callers * each;
        let mut taken = Vec::new();
        while left > 0 {
            doorbell.wait();
            doorbell.clear();
            while let Some((ticket, call)) = slots.take() {
                left -= 1;
                match service {
                    Service::AtOnce => slots.answer(ticket, 1000 + call),
                    Service::Late => taken.push((ticket, call)),
                }
            }
            while let Some((ticket, call)) = taken.pop() {
                slots.answer(ticket, 1000 + call);
            }
        }
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

#[test]
fn one_caller() {
    explore::<1>(1, 2, Service::AtOnce, 5);
}

#[test]
fn a_slot_for_each_caller() {
    explore::<2>(2, 1, Service::AtOnce, 2);
}

#[test]
fn answers_that_come_late() {
    explore::<2>(2, 1, Service::Late, 2);
}

#[test]
fn two_callers_and_one_slot() {
    explore::<1>(2, 1, Service::AtOnce, 2);
}

#[test]
fn a_slot_that_goes_from_caller_to_caller() {
    explore::<1>(2, 2, Service::AtOnce, 2);
}

#[test]
fn three_callers_and_two_slots() {
    explore::<2>(3, 1, Service::Late, 1);
}

#[test]
fn a_caller_that_cannot_ring() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let shared = Arc::new((slots::Slots::<usize, usize, 1>::default(), Doorbell::new()));
        let silent = thread::spawn({
            let shared = shared.clone();
            move || {
                // The other side may find the call when somebody else rings.
                let answer = shared.0.post(7, || false);
                assert!(matches!(answer, None | Some(1007)), "{answer:?}");
            }
        });
        let caller = thread::spawn({
            let shared = shared.clone();
            move || assert_eq!(shared.0.post(1, || shared.1.ring()), Some(1001))
        });
        let (slots, doorbell) = &*shared;
        let mut served = false;
        while !served {
            doorbell.wait();
            doorbell.clear();
            while let Some((ticket, call)) = slots.take() {
                served |= call == 1;
                slots.answer(ticket, 1000 + call);
            }
        }
        silent.join().unwrap();
        caller.join().unwrap();
    });
}
