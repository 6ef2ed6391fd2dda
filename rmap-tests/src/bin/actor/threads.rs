//! Threads that do one thing until they are stopped.

use crate::{
    command::{Arguments, Failure, Outcome},
    system,
};
use std::{
    collections::HashMap,
    ffi::c_void,
    mem, ptr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering},
    },
    time::Duration,
};

/// What a thread gives at its end, as words.
pub(crate) type Report = String;

/// What a thread does.
pub(crate) type Work = Box<dyn FnOnce(&Control) -> Report + Send>;

/// What ends a wait of a thread, where a signal is not the way.
pub(crate) type Waker = Box<dyn Fn() + Send>;

/// What a thread and its starter share.
#[derive(Default)]
pub(crate) struct Control {
    stop: AtomicBool,
    done: AtomicBool,
    tid: AtomicI32,
    progress: AtomicU64,
    waker: Mutex<Option<Waker>>,
}

impl Control {
    /// Whether to go on.
    pub(crate) fn on(&self) -> bool {
        !self.stop.load(Ordering::Acquire)
    }

    /// Counts a step.
    pub(crate) fn step(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    /// Has this called to stop the thread, instead of signals.
    pub(crate) fn wake_by(&self, waker: Waker) {
        *self.waker.lock().expect("no panics") = Some(waker);
    }
}

/// A started thread.
pub(crate) struct Thread {
    handle: libc::pthread_t,
    control: Arc<Control>,
    report: Arc<Mutex<Report>>,
}

struct Start {
    control: Arc<Control>,
    report: Arc<Mutex<Report>>,
    work: Work,
    ticks: Option<u64>,
}

extern "C" fn body(start: *mut c_void) -> *mut c_void {
    // SAFETY: `spawn` made it from a box and gives it to this thread alone.
    let start = unsafe { Box::from_raw(start.cast::<Start>()) };
    let Start { control, report, work, ticks } = *start;
    // SAFETY: no arguments.
    control.tid.store(unsafe { libc::gettid() }, Ordering::Release);
    let timer = ticks.map(Timer::start);
    let words = work(&control);
    drop(timer);
    *report.lock().expect("no panics") = words;
    control.done.store(true, Ordering::Release);
    ptr::null_mut()
}

/// Starts a thread, on a given stack if there is one.
pub(crate) fn spawn(stack: Option<(usize, usize)>, ticks: Option<u64>, work: Work) -> Thread {
    let (control, report) = (Arc::<Control>::default(), Arc::default());
    let start = Start { control: Arc::clone(&control), report: Arc::clone(&report), work, ticks };
    let start = Box::into_raw(Box::new(start));
    // SAFETY: all zero is room for an attribute object, which is initialized next.
    let mut attributes: libc::pthread_attr_t = unsafe { mem::zeroed() };
    // SAFETY: a valid place.
    unsafe { libc::pthread_attr_init(&raw mut attributes) };
    if let Some((address, len)) = stack {
        // SAFETY: the test gives memory that it leaves to this thread.
        let result = unsafe {
            libc::pthread_attr_setstack(&raw mut attributes, ptr::with_exposed_provenance_mut(address), len)
        };
        assert_eq!(result, 0, "a stack for a thread");
    }
    let mut handle = 0;
    // SAFETY: `body` takes the start over.
    let result = unsafe { libc::pthread_create(&raw mut handle, &raw const attributes, body, start.cast()) };
    assert_eq!(result, 0, "a thread");
    // SAFETY: initialized above.
    unsafe { libc::pthread_attr_destroy(&raw mut attributes) };
    Thread { handle, control, report }
}

impl Thread {
    /// Tells it to stop, sees to it that it does, and gives its report.
    pub(crate) fn stop(self) -> Report {
        self.control.stop.store(true, Ordering::Release);
        let waker = self.control.waker.lock().expect("no panics").take();
        if let Some(waker) = waker {
            waker();
        } else {
            while !self.control.done.load(Ordering::Acquire) {
                // It may be just before the system call that it would sleep in: so again and again.
                // SAFETY: not joined yet.
                unsafe { libc::pthread_kill(self.handle, WAKE) };
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.join()
    }

    /// Waits for its end.
    pub(crate) fn join(self) -> Report {
        // SAFETY: joined once, since `self` is gone after it.
        let result = unsafe { libc::pthread_join(self.handle, ptr::null_mut()) };
        assert_eq!(result, 0, "join");
        mem::take(&mut self.report.lock().expect("no panics"))
    }
}

/// Ends a wait with EINTR.
const WAKE: i32 = libc::SIGUSR2;

/// The signal of thread timers.
fn tick() -> i32 {
    libc::SIGRTMIN() + 1
}

static TICKS: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_wake(_signal: i32) {}

extern "C" fn on_tick(_signal: i32) {
    // A frame of some size, so that the stack is used.
    let mut frame = [0_u64; 64];
    std::hint::black_box(&mut frame);
    TICKS.fetch_add(1, Ordering::Relaxed);
}

/// How many timer signals all threads took.
pub(crate) fn ticks() -> u64 {
    TICKS.load(Ordering::Relaxed)
}

/// Sets the handlers.
pub(crate) fn install() {
    system::on_signal(WAKE, on_wake as *const () as usize, 0);
    system::on_signal(tick(), on_tick as *const () as usize, libc::SA_RESTART);
}

/// A timer that sends its thread signals.
struct Timer(libc::timer_t);

impl Timer {
    fn start(microseconds: u64) -> Self {
        // SAFETY: all zero is a valid sigevent.
        let mut event: libc::sigevent = unsafe { mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = tick();
        // SAFETY: no arguments.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer = ptr::null_mut();
        // SAFETY: valid places.
        let result = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
        assert_eq!(result, 0, "a timer");
        let nanoseconds = i64::try_from(microseconds * 1000).expect("a short interval");
        let interval = libc::timespec { tv_sec: 0, tv_nsec: nanoseconds };
        let setting = libc::itimerspec { it_interval: interval, it_value: interval };
        // SAFETY: a timer that was just made.
        let result = unsafe { libc::timer_settime(timer, 0, &raw const setting, ptr::null_mut()) };
        assert_eq!(result, 0, "a running timer");
        Self(timer)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: made by `start`.
        unsafe { libc::timer_delete(self.0) };
    }
}

static THREADS: Mutex<Option<HashMap<usize, Thread>>> = Mutex::new(None);

fn table<T>(act: impl FnOnce(&mut HashMap<usize, Thread>) -> T) -> T {
    act(THREADS.lock().expect("no panics").get_or_insert_default())
}

/// `start [on ADDRESS LEN] [ticking MICROSECONDS] WORK...`: the number of the thread.
pub(crate) fn start(arguments: &mut Arguments<'_>) -> Outcome {
    let stack = if arguments.take("on") { Some((arguments.number()?, arguments.number()?)) } else { None };
    let ticks = if arguments.take("ticking") { Some(arguments.number()?) } else { None };
    let work = crate::work::work(arguments)?;
    let thread = spawn(stack, ticks, work);
    let number = table(|threads| {
        let number = (0..).find(|number| !threads.contains_key(number)).expect("a free number");
        threads.insert(number, thread);
        number
    });
    Ok(number.to_string())
}

/// `stop N`: the report of the thread.
pub(crate) fn stop(arguments: &mut Arguments<'_>) -> Outcome {
    let number = arguments.number()?;
    let thread = table(|threads| threads.remove(&number));
    thread.map(Thread::stop).ok_or_else(|| Failure::Usage("no such thread".into()))
}

fn with<T: ToString>(arguments: &mut Arguments<'_>, look: impl FnOnce(&Control) -> T) -> Outcome {
    let number: usize = arguments.number()?;
    let found = table(|threads| threads.get(&number).map(|thread| look(&thread.control)));
    found.map(|value| value.to_string()).ok_or_else(|| Failure::Usage("no such thread".into()))
}

/// `tid N`: the thread's id, once it has one.
pub(crate) fn tid(arguments: &mut Arguments<'_>) -> Outcome {
    with(arguments, |control| {
        loop {
            match control.tid.load(Ordering::Acquire) {
                0 => std::thread::yield_now(),
                tid => return tid,
            }
        }
    })
}

/// `progress N`: how many steps the thread has done.
pub(crate) fn progress(arguments: &mut Arguments<'_>) -> Outcome {
    with(arguments, |control| control.progress.load(Ordering::Relaxed))
}
