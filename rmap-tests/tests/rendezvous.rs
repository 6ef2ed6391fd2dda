//! `RMAP_RENDEZVOUS`: processes that share a directory and no network.

use libc::{CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUTS};
use rmap_tests::{
    Actor, Contained, Door, Engine, Log, PAGE, RDWR, Reply, Setup, Stage, Wire, is_root, skip, socket_name,
};
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const USERS: [u32; 2] = [64_001, 64_002];

/// A directory that everybody may use, like `/tmp`.
fn directory() -> TempDir {
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o1777)).unwrap();
    directory
}

fn meeting_in(directory: &Path) -> Setup {
    Setup::with_env("RMAP_RENDEZVOUS", directory.to_str().unwrap())
}

/// Whether the test can do what it is about. Says so if not.
fn applies(name: &str) -> bool {
    let applies = Engine::of_actors() != Engine::Driver;
    if !applies {
        skip(name, "ids of the driver name no socket");
    }
    applies
}

fn segment(exporter: &mut Actor, stamp: u64, mode: u32) -> (i64, usize) {
    let address = exporter.anon(PAGE);
    exporter.fill(address, 1, stamp);
    (exporter.try_make(address, PAGE, mode).unwrap(), address)
}

#[track_caller]
fn expect_shared(importer: &mut Actor, segid: i64, exporter: &mut Actor, address: usize, stamp: u64) {
    let apid = importer.get(segid);
    let here = importer.attach(apid, 0, PAGE);
    importer.check(here, 1, stamp);
    importer.fill(here, 1, stamp + 1);
    exporter.check(address, 1, stamp + 1);
    exporter.fill(address, 1, stamp);
    importer.check(here, 1, stamp);
    exporter.munmap(address, PAGE);
    assert!(importer.load(here).unwrap_err().is_hole_at(here));
    exporter.anon_at(address, PAGE);
    exporter.fill(address, 1, stamp);
    importer.check(here, 1, stamp);
    assert_eq!(importer.release(apid), Ok(0));
}

/// An actor in a network namespace of its own; says so if that is refused.
fn apart(stage: &Stage, name: &str, setup: &Setup) -> Option<Contained> {
    stage.contained(setup, CLONE_NEWNET).map_err(|why| skip(name, &why)).ok()
}

fn names(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn processes_of_different_networks_meet() {
    let name = "processes_of_different_networks_meet";
    if !applies(name) {
        return;
    }
    let (stage, directory) = (Stage::new(name, 120), directory());
    let setup = meeting_in(directory.path());
    let (Some(mut one), Some(mut other)) = (apart(&stage, name, &setup), apart(&stage, name, &setup)) else {
        return;
    };
    let mut outside = stage.actor_with(&setup);
    for stamp in [10, 20] {
        let (segid, address) = segment(&mut one, stamp, 0o600);
        expect_shared(&mut other, segid, &mut one, address, stamp);
        expect_shared(&mut outside, segid, &mut one, address, stamp);
        // Who does not know the directory does not find it.
        assert_eq!(stage.actor().try_get(segid, RDWR), Err(libc::ENOENT));
    }
    let (segid, address) = segment(&mut outside, 30, 0o600);
    expect_shared(&mut one, segid, &mut outside, address, 30);
    // Here they meet without it, too.
    expect_shared(&mut stage.actor(), segid, &mut outside, address, 30);
    let mut plain = stage.actor();
    let (segid, address) = segment(&mut plain, 40, 0o600);
    expect_shared(&mut outside, segid, &mut plain, address, 40);
}

#[test]
fn containers_that_share_nothing_but_the_directory() {
    let name = "containers_that_share_nothing_but_the_directory";
    if !applies(name) {
        return;
    }
    let (stage, directory) = (Stage::new(name, 120), directory());
    let setup = meeting_in(directory.path());
    let all = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET | libc::CLONE_NEWUSER;
    let start = || stage.contained(&setup, all);
    let (mut one, mut other) = match (start(), start()) {
        (Ok(one), Ok(other)) => (one, other),
        (Err(why), _) | (_, Err(why)) => return skip(name, &why),
    };
    let (segid, address) = segment(&mut one, 10, 0o600);
    expect_shared(&mut other, segid, &mut one, address, 10);
    let apid = other.get(segid);
    let here = other.attach(apid, 0, PAGE);
    other.check(here, 1, 10);
    // Its end is noticed by who does not see it.
    drop(one);
    let errno = loop {
        if let Err(errno) = other.try_attach(apid, 0, PAGE) {
            break errno;
        }
    };
    assert_eq!(errno, libc::ENOENT);
    assert_eq!(other.try_get(segid, RDWR), Err(libc::ENOENT));
    other.check(here, 1, 10);
}

#[test]
fn children_meet_as_parents_do() {
    let name = "children_meet_as_parents_do";
    if !applies(name) {
        return;
    }
    let (stage, directory) = (Stage::new(name, 120), directory());
    let setup = meeting_in(directory.path());
    let Some(mut importer) = apart(&stage, name, &setup) else { return };
    let mut exporter = stage.actor_with(&setup);
    let (segid, address) = segment(&mut exporter, 10, 0o600);
    expect_shared(&mut importer, segid, &mut exporter, address, 10);
    let mut child = exporter.fork();
    let (of_child, there) = segment(&mut child, 20, 0o600);
    expect_shared(&mut importer, of_child, &mut child, there, 20);
    expect_shared(&mut importer, segid, &mut exporter, address, 10);
    // What has become another program is not there any more, and is again.
    child.renew();
    assert_eq!(importer.try_get(of_child, RDWR), Err(libc::ENOENT));
    let (of_child, there) = segment(&mut child, 30, 0o600);
    expect_shared(&mut importer, of_child, &mut child, there, 30);
    expect_shared(&mut importer, segid, &mut exporter, address, 10);
}

#[test]
fn a_directory_with_a_long_path() {
    let name = "a_directory_with_a_long_path";
    if !applies(name) {
        return;
    }
    let (stage, short) = (Stage::new(name, 60), directory());
    // Longer than the address of a socket may be.
    let long = short.path().join("a".repeat(100)).join("b".repeat(200));
    fs::create_dir_all(&long).unwrap();
    let setup = meeting_in(&long);
    let Some(mut importer) = apart(&stage, name, &setup) else { return };
    let mut exporter = stage.actor_with(&setup);
    let (segid, address) = segment(&mut exporter, 10, 0o600);
    expect_shared(&mut importer, segid, &mut exporter, address, 10);
}

#[test]
fn what_the_dead_leave_is_removed() {
    let name = "what_the_dead_leave_is_removed";
    if !applies(name) {
        return;
    }
    let (stage, directory) = (Stage::new(name, 240), directory());
    let setup = meeting_in(directory.path());
    let mut living = stage.actor_with(&setup);
    let (segid, address) = segment(&mut living, 10, 0o600);
    let mut dead = stage.actor_with(&setup);
    let (gone, _) = segment(&mut dead, 20, 0o600);
    let left = directory.path().join(socket_name(gone));
    assert!(fs::symlink_metadata(&left).unwrap().file_type().is_socket());
    dead.kill();
    let mut importer = stage.actor_with(&setup);
    assert_eq!(importer.try_get(gone, RDWR), Err(libc::ENOENT));
    // By who looks for it. A sibling of the dead one that was stopping threads may have had the socket for a moment.
    importer.wait_until("the file is gone", || !left.exists() || Wire::to_name(&socket_name(gone)).is_ok());
    // By any process of the user's that comes: each looks at a sixteenth.
    let mut dead = stage.actor_with(&setup);
    let (gone, _) = segment(&mut dead, 20, 0o600);
    let left = directory.path().join(socket_name(gone));
    dead.kill();
    for _ in 0..500 {
        if !left.exists() {
            break;
        }
        let mut passer_by = stage.actor_with(&setup);
        segment(&mut passer_by, 1, 0o600);
        passer_by.kill();
    }
    assert!(!left.exists(), "nobody has removed it");
    // Nobody takes away what is in use.
    assert!(directory.path().join(socket_name(segid)).exists());
    if let Some(mut importer) = apart(&stage, name, &setup) {
        expect_shared(&mut importer, segid, &mut living, address, 10);
    }
}

#[test]
fn directories_that_are_not_used() {
    let name = "directories_that_are_not_used";
    if !applies(name) {
        return;
    }
    let stage = Stage::new(name, 60);
    let open = directory();
    fs::set_permissions(open.path(), Permissions::from_mode(0o777)).unwrap();
    let missing = open.path().join("missing");
    let file = open.path().join("file");
    fs::write(&file, "").unwrap();
    for (place, said) in [
        (open.path().to_str().unwrap(), "others may remove files"),
        (missing.to_str().unwrap(), "cannot be opened"),
        (file.to_str().unwrap(), "cannot be opened"),
        ("tmp", "not the path of a directory from the root"),
    ] {
        let log = Log::new();
        let setup = Setup::logging("error", &log).and_env("RMAP_RENDEZVOUS", place);
        let (mut exporter, mut importer) = (stage.actor_with(&setup), stage.actor_with(&setup));
        let (segid, address) = segment(&mut exporter, 10, 0o600);
        // They meet as if there were none.
        expect_shared(&mut importer, segid, &mut exporter, address, 10);
        let lines = log.lines_with("RMAP_RENDEZVOUS");
        assert_eq!(lines.len(), 2, "one for each of two processes: {}", log.text());
        assert!(lines.iter().all(|line| line.contains(said)), "{lines:?}");
    }
    assert_eq!(names(open.path()), [file]);
}

#[test]
fn what_others_put_into_the_directory() {
    let name = "what_others_put_into_the_directory";
    if !applies(name) {
        return;
    }
    let (stage, directory) = (Stage::new(name, 120), directory());
    let setup = meeting_in(directory.path());
    // It does not use the directory, so that its name is free there.
    let mut exporter = stage.actor();
    let mut importer = stage.actor_with(&setup);
    let (segid, address) = segment(&mut exporter, 10, 0o600);
    let place = directory.path().join(socket_name(segid));
    let elsewhere = directory.path().join("elsewhere");
    // Nobody is to come here.
    let trap = Door::at(&elsewhere, segid);
    symlink(&elsewhere, &place).unwrap();
    expect_shared(&mut importer, segid, &mut exporter, address, 10);
    fs::remove_file(&place).unwrap();
    for make in [
        &(|| fs::write(&place, "a file").unwrap()) as &dyn Fn(),
        &|| nix::unistd::mkfifo(&place, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        &|| symlink("/nowhere", &place).unwrap(),
    ] {
        make();
        expect_shared(&mut importer, segid, &mut exporter, address, 10);
        assert!(fs::symlink_metadata(&place).is_ok(), "it was not the library's to remove");
        fs::remove_file(&place).unwrap();
    }
    assert_eq!(
        trap.open_silently(Duration::ZERO).unwrap_err(),
        nix::errno::Errno::EAGAIN,
        "a link was followed"
    );
    // Somebody who listens there and knows nothing.
    let squatter = Door::at(&place, segid);
    importer.tell(&format!("xpmem get {segid} {RDWR} 1 0"));
    let wire = squatter.open_silently(Duration::from_secs(30)).unwrap();
    wire.hear_hello().unwrap().expect("a greeting");
    wire.say_proof(7).unwrap();
    assert_eq!(importer.answer(), Reply::Ok(format!("-1 {}", libc::ENOENT)));
}

#[test]
fn modes_of_segments_count_in_the_directory() {
    let name = "modes_of_segments_count_in_the_directory";
    if !is_root() {
        return skip(name, "only root can run processes of several users");
    }
    if !applies(name) {
        return;
    }
    let (stage, directory) = (Stage::new(name, 120), directory());
    let as_user = |user: u32| Setup { user: Some((user, user)), ..meeting_in(directory.path()) };
    let mut exporter = stage.actor_with(&as_user(USERS[0]));
    // Whatever it keeps from others otherwise.
    exporter.sys(libc::SYS_umask, &[0o777]).unwrap();
    let (open, address) = segment(&mut exporter, 10, 0o606);
    let (closed, _) = segment(&mut exporter, 20, 0o600);
    let apart = |user: u32| {
        let mut actor = stage.actor_with(&meeting_in(directory.path()));
        actor.unshare(CLONE_NEWNET).map(|()| {
            actor.become_user(user, user);
            actor
        })
    };
    let (mut same, mut other) = match (apart(USERS[0]), apart(USERS[1])) {
        (Ok(same), Ok(other)) => (same, other),
        (Err(errno), _) | (_, Err(errno)) => {
            return skip(name, &format!("network namespaces are refused: errno {errno}"));
        }
    };
    expect_shared(&mut other, open, &mut exporter, address, 10);
    expect_shared(&mut same, open, &mut exporter, address, 10);
    assert_eq!(other.try_get(closed, RDWR), Err(libc::EACCES));
    assert!(same.try_get(closed, RDWR).is_ok());
    // Nobody else may take its socket away.
    let at = libc::AT_FDCWD as isize as usize;
    let path = other.text(directory.path().join(socket_name(open)).to_str().unwrap());
    assert_eq!(other.sys(libc::SYS_unlinkat, &[at, path, 0]), Err(libc::EPERM));
}
