//! System calls that a stopped thread of another process is led through.
//!
//! The thread gets registers for the call, runs to the call's end, and then gets its own back. If it was in a system call itself when it
//! was stopped, that goes on as after any other stop: the kernel decides at the very place where it would have without us.

use crate::error::{Error, Result, failed};
use crate::process::{PAGE, Process};
use crate::stopped::{self, Stop, Stopped, request};
use rustix::io::Errno;

const SYSCALL: [u8; 2] = [0x0f, 0x05];
const CODE_OF_64_BITS: u64 = 0x33;
const NOT_IN_A_CALL: u64 = u64::MAX;

/// `struct ptrace_rseq_configuration` (Linux 5.13).
#[repr(C)]
#[derive(Default)]
struct RseqConfiguration {
    area: u64,
    size: u32,
    signature: u32,
    flags: u32,
    padding: u32,
}

const GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const GETSIGMASK: libc::c_uint = 0x420a;
const SETSIGMASK: libc::c_uint = 0x420b;

/// A thread that makes calls for us, until this is dropped.
#[derive(Debug)]
pub(crate) struct Caller<'a> {
    process: &'a Process,
    tid: i32,
    /// Where there is a system call instruction.
    instruction: usize,
    registers: libc::user_regs_struct,
    signals: u64,
}

impl<'a> Caller<'a> {
    /// Chooses a thread.
    pub(crate) fn choose(process: &'a Process, stopped: &Stopped) -> Result<Self> {
        let instruction = find_instruction(process)?;
        let mut candidates = Vec::new();
        for tid in stopped.threads() {
            let Ok(registers) = registers(*tid) else { continue };
            if registers.cs != CODE_OF_64_BITS {
                return Err(Error::OtherMachine(process.pid));
            }
            let sleeps = registers.orig_rax != NOT_IN_A_CALL;
            candidates.push((!sleeps, *tid, registers));
        }
        // Best one that is in a system call: it is in no restartable sequence, which would lose its protection.
        candidates.sort_by_key(|(runs, tid, _)| (*runs, *tid));
        for (runs, tid, registers) in candidates {
            if runs && is_in_sequence(process, tid) {
                continue;
            }
            let mut signals = 0u64;
            let size = size_of_val(&signals);
            request(GETSIGMASK, tid, size, (&raw mut signals).expose_provenance())
                .map_err(failed("PTRACE_GETSIGMASK"))?;
            set_signals(tid, u64::MAX)?;
            return Ok(Self { process, tid, instruction, registers, signals });
        }
        Err(Error::Failed { call: "finding a thread to make calls", errno: Errno::AGAIN })
    }

    /// Has the thread make a system call.
    pub(crate) fn call(
        &self,
        name: &'static str,
        number: libc::c_long,
        arguments: [usize; 6],
    ) -> Result<usize> {
        let [rdi, rsi, rdx, r10, r8, r9] = arguments.map(|argument| argument as u64);
        let mut registers = self.registers;
        registers.rax = number as u64;
        registers.orig_rax = NOT_IN_A_CALL;
        registers.rip = self.instruction as u64;
        (registers.rdi, registers.rsi, registers.rdx) = (rdi, rsi, rdx);
        (registers.r10, registers.r8, registers.r9) = (r10, r8, r9);
        set_registers(self.tid, &registers)?;
        // Into the call, and out of it.
        for _ in 0..2 {
            self.run_to_call()?;
        }
        let result = self::registers(self.tid)?.rax.cast_signed();
        match i32::try_from(-result) {
            Ok(errno @ 1..=4095) => Err(failed(name)(Errno::from_raw_os_error(errno))),
            _ => Ok(result.cast_unsigned() as usize),
        }
    }

    /// The same with a string for the second half of the first argument: it lies below the thread's stack meanwhile.
    pub(crate) fn with_text<T>(
        &self,
        text: &core::ffi::CStr,
        call: impl FnOnce(usize) -> Result<T>,
    ) -> Result<T> {
        // The 128 bytes below the stack pointer are the thread's.
        let bytes = text.to_bytes_with_nul();
        let at = (self.registers.rsp as usize).wrapping_sub(128 + bytes.len());
        let mut before = vec![0; bytes.len()];
        self.process.read(at, &mut before)?;
        self.process.write(at, bytes)?;
        let result = call(at);
        self.process.write(at, &before)?;
        result
    }

    fn run_to_call(&self) -> Result<()> {
        loop {
            request(libc::PTRACE_SYSCALL, self.tid, 0, 0).map_err(failed("PTRACE_SYSCALL"))?;
            match stopped::wait(self.tid)? {
                Some(Stop::SystemCall) => return Ok(()),
                // All signals are held back but those that stop a process: it goes on stopping afterwards.
                Some(Stop::Interrupted | Stop::Signal(_)) => {}
                None => return Err(Error::NoProcess(self.process.pid)),
            }
        }
    }
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        let _ = set_registers(self.tid, &self.registers);
        // To the place where the kernel decides whether an interrupted call starts again.
        let _ = request(libc::PTRACE_INTERRUPT, self.tid, 0, 0);
        let _ = request(libc::PTRACE_CONT, self.tid, 0, 0);
        while let Ok(Some(stop)) = stopped::wait(self.tid) {
            if stop == Stop::Interrupted {
                break;
            }
            let _ = request(libc::PTRACE_CONT, self.tid, 0, 0);
        }
        let _ = set_signals(self.tid, self.signals);
    }
}

fn registers(tid: i32) -> Result<libc::user_regs_struct> {
    // SAFETY: all-zero is valid for registers.
    let mut registers: libc::user_regs_struct = unsafe { core::mem::zeroed() };
    request(libc::PTRACE_GETREGS, tid, 0, (&raw mut registers).expose_provenance())
        .map_err(failed("PTRACE_GETREGS"))?;
    Ok(registers)
}

fn set_registers(tid: i32, registers: &libc::user_regs_struct) -> Result<()> {
    request(libc::PTRACE_SETREGS, tid, 0, core::ptr::from_ref(registers).expose_provenance())
        .map_err(failed("PTRACE_SETREGS"))
}

fn set_signals(tid: i32, signals: u64) -> Result<()> {
    let size = size_of_val(&signals);
    request(SETSIGMASK, tid, size, (&raw const signals).expose_provenance())
        .map_err(failed("PTRACE_SETSIGMASK"))
}

/// Whether a thread is in a restartable sequence, as far as the kernel can tell.
fn is_in_sequence(process: &Process, tid: i32) -> bool {
    let mut configuration = RseqConfiguration::default();
    let size = size_of_val(&configuration);
    let asked = request(GET_RSEQ_CONFIGURATION, tid, size, (&raw mut configuration).expose_provenance());
    if asked.is_err() || configuration.area == 0 {
        return false;
    }
    // `struct rseq`: the pointer to the sequence is at 8.
    let mut sequence = [0; 8];
    let read = process.read(configuration.area as usize + 8, &mut sequence);
    read.is_err() || u64::from_ne_bytes(sequence) != 0
}

/// Finds a system call instruction: best in the vDSO.
fn find_instruction(process: &Process) -> Result<usize> {
    use procfs::process::{MMPermissions, MMapPath};
    let mut code = process.all_mappings()?;
    code.retain(|map| map.perms.contains(MMPermissions::READ | MMPermissions::EXECUTE));
    code.sort_by_key(|map| map.pathname != MMapPath::Vdso);
    for map in code {
        for page in (map.address.0 as usize..map.address.1 as usize).step_by(PAGE) {
            let mut bytes = [0; PAGE];
            if process.read(page, &mut bytes).is_err() {
                break;
            }
            if let Some(at) = bytes.windows(2).position(|pair| pair == SYSCALL) {
                return Ok(page + at);
            }
        }
    }
    Err(Error::Failed { call: "finding a system call instruction", errno: Errno::NOENT })
}
