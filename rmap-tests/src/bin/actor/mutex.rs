//! A mutex that processes share, and the word behind it.

use crate::{
    command::{Arguments, Failure, Outcome},
    system,
    threads::Work,
};
use std::{mem, ptr};

fn mutex(address: usize) -> *mut libc::pthread_mutex_t {
    ptr::with_exposed_provenance_mut(address)
}

/// `mutex ADDRESS`: makes one.
pub(crate) fn init(arguments: &mut Arguments<'_>) -> Outcome {
    let address = arguments.number()?;
    // SAFETY: all zero is room for an attribute object, which is initialized next.
    let mut kind: libc::pthread_mutexattr_t = unsafe { mem::zeroed() };
    // SAFETY: valid places; the test gives room for a mutex.
    let result = unsafe {
        libc::pthread_mutexattr_init(&raw mut kind);
        libc::pthread_mutexattr_setpshared(&raw mut kind, libc::PTHREAD_PROCESS_SHARED);
        libc::pthread_mutex_init(mutex(address), &raw const kind)
    };
    if result == 0 { Ok(String::new()) } else { Err(Failure::Errno(result)) }
}

/// `locked ADDRESS`: counts up the word 64 bytes behind a mutex, which it holds meanwhile.
pub(crate) fn work(address: usize) -> Work {
    Box::new(move |control| {
        let word = ptr::with_exposed_provenance_mut::<u64>(address + 64);
        let (mut steps, mut errors) = (0_u64, 0_u64);
        while control.on() {
            // SAFETY: the test has made a mutex there, and nobody else uses the word without it.
            unsafe {
                errors += u64::from(libc::pthread_mutex_lock(mutex(address)) != 0);
                let before = word.read_volatile();
                if steps.is_multiple_of(16) {
                    // So that others find it locked.
                    let _ = system::call(libc::SYS_sched_yield, [0; 6]);
                }
                word.write_volatile(before + 1);
                errors += u64::from(libc::pthread_mutex_unlock(mutex(address)) != 0);
            }
            steps += 1;
            control.step();
        }
        format!("steps={steps} errors={errors}")
    })
}
