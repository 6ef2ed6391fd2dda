//! Under the seccomp filters of containers: what the library needs is there, or it says what is not.

use rmap_tests::{Actor, Engine, Log, PAGE, RDWR, Setup, Stage, compare, skip};
use std::fs::File;

const PAGES: usize = 64;

/// The calls that Docker's default profile refuses to a process without capabilities, but for some that nobody has used for long. Old versions of
/// it allow `io_uring`.
const REFUSED: [i64; 43] = [
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_get_mempolicy,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kcmp,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_set_mempolicy,
    libc::SYS_setns,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// Has a process live under a filter that refuses these calls, and `clone3` as Docker does: for an old kernel's.
fn confine(actor: &mut Actor, refused: &[i64]) {
    let mut command = format!("confine {} {}", libc::SYS_clone3, libc::ENOSYS);
    for call in refused {
        command += &format!(" {call} {}", libc::EPERM);
    }
    actor.ok(&command);
    for call in refused {
        assert_eq!(actor.sys(*call, &[usize::MAX; 6]), Err(libc::EPERM), "call {call}");
    }
}

fn confined(stage: &Stage, setup: &Setup, refused: &[i64]) -> Actor {
    let mut actor = stage.actor_with(setup);
    confine(&mut actor, refused);
    actor
}

/// Whether this process can open what a container may be given. Says so if not.
fn has_device(name: &str) -> bool {
    let opened = File::open("/dev/userfaultfd");
    if let Err(why) = &opened {
        skip(name, &format!("/dev/userfaultfd: {why}"));
    }
    opened.is_ok()
}

/// All that needs a feature: sharing, following, threads, a fork.
fn work(exporter: &mut Actor, importer: &mut Actor) {
    let address = exporter.anon(PAGES * PAGE);
    exporter.fill(address, PAGES, 20);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let here = importer.attach(apid, address, PAGES * PAGE);
    importer.check(here, PAGES, 20);
    importer.fill(here, 8, 400);
    exporter.check(address, 8, 400);
    exporter.munmap(address + 16 * PAGE, 16 * PAGE);
    assert!(importer.load(here + 20 * PAGE).unwrap_err().is_hole_at(here + 20 * PAGE));
    exporter.anon_at(address + 16 * PAGE, 16 * PAGE);
    exporter.fill(address + 16 * PAGE, 16, 700);
    compare(exporter, importer, address, here, PAGES).unwrap();
    let mut child = exporter.fork();
    child.fill(address, 4, 1);
    importer.check(here, 4, 400);
    exporter.check(address, 4, 400);
    child.exit();
    assert_eq!(importer.release(apid), Ok(0));
    assert_eq!(exporter.remove(segid), Ok(0));
}

/// The process is refused, and the log says why in one line.
#[track_caller]
fn expect_refused(actor: &mut Actor, log: &Log, parts: &[&str]) {
    assert_eq!(actor.xpmem("version"), Err(libc::ENOENT));
    assert_eq!(actor.try_make(0, PAGE, 0o600), Err(libc::ENOENT));
    assert_eq!(actor.try_get(1 << 62 | 77, RDWR), Err(libc::ENOENT));
    let lines = log.lines_with(" error: this process cannot be served: ");
    assert_eq!(lines.len(), 1, "{}", log.text());
    for part in parts {
        assert!(lines[0].contains(part), "no {part} in {lines:?}");
    }
}

/// Whether the test can do what it is about.
fn applies(name: &str) -> bool {
    let applies = Engine::of_actors() == Engine::Clone;
    if !applies {
        skip(name, "the kernel's engines need none of these calls");
    }
    applies
}

#[test]
fn dockers_filter_refuses_what_is_needed_and_that_is_said() {
    let name = "dockers_filter_refuses_what_is_needed_and_that_is_said";
    if !applies(name) {
        return;
    }
    let (stage, log) = (Stage::new(name, 60), Log::new());
    let setup = Setup::logging("error", &log).and_env("RMAP_DISABLE", "userfaultfd-device");
    let mut inside = confined(&stage, &setup, &REFUSED);
    expect_refused(&mut inside, &log, &["userfaultfd", "seccomp", "/dev/userfaultfd", "not permitted"]);
    // Nothing is left behind, and the program goes on.
    let address = inside.anon(PAGE);
    inside.fill(address, 1, 7);
    inside.check(address, 1, 7);
    inside.exit();
}

#[test]
fn dockers_filter_and_the_device() {
    let name = "dockers_filter_and_the_device";
    if !applies(name) || !has_device(name) {
        return;
    }
    let stage = Stage::new(name, 120);
    let plain = Setup::default();
    let (mut inside, mut other) = (confined(&stage, &plain, &REFUSED), confined(&stage, &plain, &REFUSED));
    let mut outside = stage.actor();
    work(&mut inside, &mut outside);
    work(&mut outside, &mut inside);
    work(&mut inside, &mut other);
}

#[test]
fn a_filter_that_refuses_all_but_userfaultfd() {
    let name = "a_filter_that_refuses_all_but_userfaultfd";
    if !applies(name) {
        return;
    }
    // What is left is what a profile must allow: also without a device.
    let stage = Stage::new(name, 120);
    let refused: Vec<i64> = REFUSED.into_iter().filter(|call| *call != libc::SYS_userfaultfd).collect();
    let start = || confined(&stage, &Setup::default(), &refused);
    let (mut inside, mut other, mut outside) = (start(), start(), stage.actor());
    work(&mut inside, &mut outside);
    work(&mut outside, &mut inside);
    work(&mut inside, &mut other);
}

#[test]
fn other_calls_that_a_filter_may_refuse() {
    let name = "other_calls_that_a_filter_may_refuse";
    if !applies(name) {
        return;
    }
    let stage = Stage::new(name, 60);
    for (call, said) in [
        (libc::SYS_ptrace, "ptrace"),
        (libc::SYS_close_range, "close_range"),
        (libc::SYS_memfd_create, "memfd"),
        (libc::SYS_signalfd4, "signalfd"),
    ] {
        let log = Log::new();
        let mut actor = confined(&stage, &Setup::logging("error", &log), &[call]);
        let made = actor.try_make(0, PAGE, 0o600);
        assert_eq!(made, Err(libc::ENOENT), "{said}: {}", log.text());
        let lines = log.lines_with(" error: this process cannot be served: ");
        assert!(lines.iter().any(|line| line.contains(said)), "{said} is not named: {}", log.text());
        actor.exit();
    }
}
