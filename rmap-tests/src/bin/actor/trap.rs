//! Loads and stores that report a SIGSEGV or SIGBUS instead of dying of it.
//!
//! The accesses are a few instructions of assembly that keep the address of a fault record in a register. The
//! handler looks whether the interrupted instruction is one of them, fills the record and lets the thread go
//! on behind them. No jump buffer, no thread-local state: it works on any stack.

use std::{ffi::c_void, ptr};

/// A signal that an access got.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fault {
    pub(crate) signal: i32,
    pub(crate) code: i32,
    pub(crate) address: usize,
}

impl Fault {
    /// Whether it says that there is a hole in the page of this address.
    pub(crate) fn is_hole_at(&self, address: usize) -> bool {
        // Only the kernel itself can say BUS_ADRERR; a library's own thread can queue the signal.
        let code = [libc::BUS_ADRERR, libc::SI_QUEUE].contains(&self.code);
        self.signal == libc::SIGBUS && code && self.address >> 12 == address >> 12
    }
}

// All four take the record in r8, the fifth argument, and touch no stack.
std::arch::global_asm!(
    ".pushsection .text",
    "rmap_trap_start:",
    "rmap_trap_copy:", // to rdi, from rsi, length rcx
    "rep movsb",
    "ret",
    "rmap_trap_load:",
    "mov rax, [rdi]",
    "ret",
    "rmap_trap_store:",
    "mov [rdi], rsi",
    "ret",
    "rmap_trap_add:",
    "mov rax, rsi",
    "lock xadd [rdi], rax",
    "rmap_trap_end:",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    fn rmap_trap_start();
    fn rmap_trap_end();
    fn rmap_trap_copy(to: usize, from: usize, unused: usize, len: usize, fault: *mut Fault);
    fn rmap_trap_load(address: usize, _1: usize, _2: usize, _3: usize, fault: *mut Fault) -> u64;
    fn rmap_trap_store(address: usize, value: u64, _2: usize, _3: usize, fault: *mut Fault);
    fn rmap_trap_add(address: usize, value: u64, _2: usize, _3: usize, fault: *mut Fault) -> u64;
}

extern "C" fn handler(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid context, which is this thread's own.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize].cast_unsigned() as usize;
    let end = rmap_trap_end as *const () as usize;
    if !(rmap_trap_start as *const () as usize..end).contains(&at) {
        // A queued signal can come late, when another one has ended the wait and its handler runs. The access
        // is tried again after it.
        // SAFETY: the kernel gives a handler with SA_SIGINFO a valid siginfo.
        if unsafe { (*info).si_code } == libc::SI_QUEUE {
            return;
        }
        // Not one of ours: the instruction runs again and the process dies of it.
        // SAFETY: as above.
        let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
        last_words(signal, code, address, at);
        // SAFETY: SIG_DFL is a valid action.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    let record =
        ptr::with_exposed_provenance_mut::<Fault>(registers[libc::REG_R8 as usize].cast_unsigned() as usize);
    // SAFETY: `info` is valid as the context is, and a fault has an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // SAFETY: the interrupted instruction is one of the functions above, which hold the record in r8.
    unsafe { record.write(Fault { signal, code, address }) };
    registers[libc::REG_RIP as usize] = end as i64;
}

/// Tells of a fault that ends the process, without the heap and without a lock.
fn last_words(signal: i32, code: i32, address: usize, at: usize) {
    use std::io::Write as _;
    let mut text = [0; 160];
    let mut rest = &mut text[..];
    let _ = writeln!(rest, "fatal signal {signal} code {code} at {address:#x}, instruction at {at:#x}");
    let left = rest.len();
    // SAFETY: a valid buffer of this length.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len() - left) };
}

/// Sets the handlers.
pub(crate) fn install() {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        crate::system::on_signal(signal, handler as *const () as usize, libc::SA_SIGINFO | libc::SA_ONSTACK);
    }
}

/// Takes the handlers away: from now on, a fault ends the process.
pub(crate) fn uninstall() {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        crate::system::on_signal(signal, libc::SIG_DFL, 0);
    }
}

fn outcome<T>(value: T, fault: Fault) -> Result<T, Fault> {
    if fault.signal == 0 { Ok(value) } else { Err(fault) }
}

/// Copies bytes. On a fault, those before it have been copied.
pub(crate) fn copy(to: usize, from: usize, len: usize) -> Result<(), Fault> {
    let mut fault = Fault::default();
    // SAFETY: a bad address is reported by the handler. A good one is the test's to choose.
    unsafe { rmap_trap_copy(to, from, 0, len, &raw mut fault) };
    outcome((), fault)
}

/// Loads a word.
pub(crate) fn load(address: usize) -> Result<u64, Fault> {
    let mut fault = Fault::default();
    // SAFETY: as in `copy`.
    let value = unsafe { rmap_trap_load(address, 0, 0, 0, &raw mut fault) };
    outcome(value, fault)
}

/// Stores a word.
pub(crate) fn store(address: usize, value: u64) -> Result<(), Fault> {
    let mut fault = Fault::default();
    // SAFETY: as in `copy`.
    unsafe { rmap_trap_store(address, value, 0, 0, &raw mut fault) };
    outcome((), fault)
}

/// Adds to a word in one step and gives the word before.
pub(crate) fn add(address: usize, value: u64) -> Result<u64, Fault> {
    let mut fault = Fault::default();
    // SAFETY: as in `copy`.
    let before = unsafe { rmap_trap_add(address, value, 0, 0, &raw mut fault) };
    outcome(before, fault)
}
