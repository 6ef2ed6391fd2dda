//! Why a job may not have used the library, and what to try.

use super::Job;
use std::ffi::{CStr, OsString};
use std::path::Path;
use std::process::Command;

/// Hints for a job that has not used the library.
pub(super) fn of(job: &Job, command: &[OsString]) -> Vec<String> {
    let mut hints = Vec::new();
    if !job.said.not_served.is_empty() {
        return vec!["run `rmap info` as the same user, in the same container: it says what is missing and how to get it".into()];
    }
    if job.sheets.is_empty() && job.said.served.is_empty() {
        hints.push(which_library());
    }
    if !job.sheets.is_empty() {
        hints.push(format!(
            "{} offered memory: was there more than one process on this machine, and was there a message long enough?",
            job.sheets.len()
        ));
    }
    let program = command.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    hints.extend(runtime(&program));
    hints
}

/// What a program that asks for `libxpmem.so.0` here gets.
fn which_library() -> String {
    // SAFETY: a C string; the constructors are those of the library that the job would load.
    let handle = unsafe { libc::dlopen(c"libxpmem.so.0".as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        return "no libxpmem.so.0 is found here: set LD_LIBRARY_PATH to the folder it is in, or start the job with with-rmap, \
            and see that the launcher passes it on (mpirun -x LD_LIBRARY_PATH)"
            .into();
    }
    // SAFETY: a handle of dlopen, and a C string.
    let (version, ours) = unsafe {
        (libc::dlsym(handle, c"xpmem_version".as_ptr()), libc::dlsym(handle, c"rmap_counters".as_ptr()))
    };
    // SAFETY: all-zero is a valid value; dladdr fills it in.
    let mut about: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: a valid place.
    let known = unsafe { libc::dladdr(version, &raw mut about) } != 0 && !about.dli_fname.is_null();
    let path = if known {
        // SAFETY: a C string of the loaded library, which stays loaded.
        unsafe { CStr::from_ptr(about.dli_fname) }.to_string_lossy().into_owned()
    } else {
        "libxpmem.so.0".into()
    };
    if ours.is_null() {
        format!(
            "programs here find {path}, which is not rmap's: start the job with with-rmap, or set LD_LIBRARY_PATH"
        )
    } else {
        format!("programs here find {path}, which is rmap's: so the runtime has not asked for it")
    }
}

/// The output of a program that tells about a runtime.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn runtime(program: &str) -> Vec<String> {
    let name =
        Path::new(program).file_name().map_or(program.into(), |name| name.to_string_lossy().into_owned());
    let mut hints = Vec::new();
    if name.contains("mpirun")
        || name.contains("mpiexec")
        || name.contains("orterun")
        || name.contains("prterun")
    {
        hints.extend(open_mpi());
    }
    hints.extend(ucx());
    hints.push(
        "Intel MPI: I_MPI_FABRICS=shm I_MPI_SHM_XPMEM=1. MPICH with its own shared memory: MPIR_CVAR_CH4_XPMEM_ENABLE=1. docs/tuning.md has \
         settings for each runtime"
            .into(),
    );
    hints
}

fn open_mpi() -> Option<String> {
    let four = output("ompi_info", &["--param", "btl", "vader", "--level", "9", "--parsable"])?;
    let five =
        output("ompi_info", &["--param", "smsc", "xpmem", "--level", "9", "--parsable"]).unwrap_or_default();
    Some(if five.contains("smsc_xpmem") || five.contains("mca:smsc:xpmem") {
        "Open MPI has the component smsc/xpmem: --mca pml ob1 --mca btl sm,self --mca smsc xpmem".into()
    } else if four.contains("xpmem") {
        "Open MPI's vader is built with XPMEM: --mca pml ob1 --mca btl vader,self --mca btl_vader_single_copy_mechanism xpmem".into()
    } else {
        "the Open MPI that ompi_info tells about is built without XPMEM: configure it --with-xpmem, or build the one component \
         (mpi-tests/setup.sh), or use UCX"
            .into()
    })
}

fn ucx() -> Option<String> {
    let transports = output("ucx_info", &["-d"])?;
    Some(if transports.contains("xpmem") {
        "UCX has the transport xpmem: UCX_TLS=xpmem,self, and for Open MPI --mca pml ucx --mca opal_common_ucx_tls any".into()
    } else {
        "the UCX that ucx_info tells about has no transport xpmem: configure it --with-xpmem".into()
    })
}
