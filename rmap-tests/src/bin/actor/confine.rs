//! A seccomp filter, as containers have.

use crate::command::{Arguments, Outcome};
use crate::supervise::{NUMBER, install, statement, unless};

/// `confine CALL ERRNO CALL ERRNO ...`: these calls fail with these errnos from now on; everything else is allowed.
pub(crate) fn confine(arguments: &mut Arguments<'_>) -> Outcome {
    let give = |action| statement(libc::BPF_RET | libc::BPF_K, action);
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, NUMBER)];
    while let Some(call) = arguments.next() {
        let call = Arguments::new(call).number()?;
        let errno: u32 = arguments.number()?;
        program.extend([unless(call, 1), give(libc::SECCOMP_RET_ERRNO | errno)]);
    }
    program.push(give(libc::SECCOMP_RET_ALLOW));
    install(&mut program, 0).map(|_| String::new())
}
