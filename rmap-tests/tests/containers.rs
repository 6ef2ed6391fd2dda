//! Processes in different namespaces: who they are to each other, and what they find of each other.

use libc::{CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWUTS};
use rmap_tests::{Actor, Contained, Engine, Log, PAGE, RDONLY, RDWR, Setup, Stage, compare, is_root, skip};

/// Ids that no account has.
const USERS: [u32; 3] = [64_001, 64_002, 64_003];
const GROUPS: [u32; 3] = [64_101, 64_102, 64_103];
/// What users and groups without a number look like.
const OVERFLOW: u32 = 65_534;

fn user(number: usize) -> Setup {
    Setup { user: Some((USERS[number], GROUPS[number])), ..Setup::default() }
}

/// The effective user and group of this test, and of actors.
fn own_ids() -> (u32, u32) {
    (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
}

/// An actor that is root in a user namespace of its own, which has nobody else, and left others with it. Says so if the machine does not
/// allow that.
fn rootless(stage: &Stage, name: &str, namespaces: i32) -> Option<Actor> {
    let mut actor = stage.actor();
    if let Err(errno) = actor.unshare(CLONE_NEWUSER | namespaces) {
        skip(name, &format!("user namespaces are refused: errno {errno}"));
        return None;
    }
    let (user, group) = own_ids();
    actor.map_ids(&[(0, user, 1)], &[(0, group, 1)]);
    Some(actor)
}

/// A segment of one page, and its address.
fn segment(exporter: &mut Actor, stamp: u64, mode: u32) -> (i64, usize) {
    let address = exporter.anon(PAGE);
    exporter.fill(address, 1, stamp);
    (exporter.try_make(address, PAGE, mode).unwrap(), address)
}

/// The importer gets the segment, and finds what the exporter has there.
#[track_caller]
fn expect_shared(importer: &mut Actor, segid: i64, exporter: &mut Actor, address: usize, stamp: u64) {
    let here = importer.get_attach(segid, 0, PAGE);
    importer.check(here, 1, stamp);
    importer.fill(here, 1, stamp + 1);
    exporter.check(address, 1, stamp + 1);
    importer.fill(here, 1, stamp);
}

#[track_caller]
fn expect_denied(importer: &mut Actor, segid: i64) {
    for flags in [RDONLY, RDWR] {
        assert_eq!(importer.try_get(segid, flags), Err(libc::EACCES), "flags {flags}");
    }
}

#[test]
fn strangers_that_look_like_the_exporter() {
    let name = "strangers_that_look_like_the_exporter";
    if !is_root() {
        return skip(name, "only root can run processes of several users");
    }
    if Engine::of_actors() == Engine::Driver {
        return skip(name, "the driver compares users without numbers");
    }
    let stage = Stage::new(name, 120);
    // User `nobody` of a container that has one, as most have.
    let mut exporter = stage.actor();
    if let Err(errno) = exporter.unshare(CLONE_NEWUSER) {
        return skip(name, &format!("user namespaces are refused: errno {errno}"));
    }
    exporter.map_ids(
        &[(0, USERS[0], 1), (OVERFLOW, USERS[1], 1)],
        &[(0, GROUPS[0], 1), (OVERFLOW, GROUPS[1], 1)],
    );
    exporter.become_user(OVERFLOW, OVERFLOW);
    assert_eq!(exporter.sys(libc::SYS_getuid, &[]), Ok(OVERFLOW as usize));
    let mut same = exporter.fork();
    same.renew();
    // Everybody outside is called the same by the container. Not even the very user can be told from others.
    let (mut stranger, mut outside) = (stage.actor_with(&user(2)), stage.actor_with(&user(1)));
    for mode in [0o600, 0o660, 0o060] {
        let (segid, address) = segment(&mut exporter, 10, mode);
        expect_denied(&mut stranger, segid);
        expect_denied(&mut outside, segid);
        if mode & 0o600 == 0o600 {
            expect_shared(&mut same, segid, &mut exporter, address, 10);
        } else {
            expect_denied(&mut same, segid);
        }
    }
    // What everybody may have.
    let (segid, address) = segment(&mut exporter, 30, 0o606);
    expect_shared(&mut stranger, segid, &mut exporter, address, 30);
    // A member of the group that is known here is one.
    let member = Setup { user: Some((USERS[2], GROUPS[1])), ..Setup::default() };
    let mut member = stage.actor_with(&member);
    let (segid, _) = segment(&mut exporter, 40, 0o660);
    expect_denied(&mut member, segid);
}

#[test]
fn an_exporter_whose_namespace_has_nobody() {
    let name = "an_exporter_whose_namespace_has_nobody";
    let stage = Stage::new(name, 120);
    let mut exporter = stage.actor();
    if let Err(errno) = exporter.unshare(CLONE_NEWUSER) {
        return skip(name, &format!("user namespaces are refused: errno {errno}"));
    }
    // It is without a number to itself, as is everybody.
    exporter.renew();
    assert_eq!(exporter.sys(libc::SYS_getuid, &[]), Ok(OVERFLOW as usize));
    let mut same = exporter.fork();
    let (segid, address) = segment(&mut exporter, 10, 0o600);
    expect_shared(&mut same, segid, &mut exporter, address, 10);
    if Engine::of_actors() == Engine::Driver {
        return;
    }
    expect_denied(&mut stage.actor(), segid);
    if !is_root() {
        return skip(name, "only root can run processes of several users: strangers are left out");
    }
    for number in 0..USERS.len() {
        expect_denied(&mut stage.actor_with(&user(number)), segid);
    }
    // The user of that very number is a stranger, too.
    let nobody = Setup { user: Some((OVERFLOW, OVERFLOW)), ..Setup::default() };
    expect_denied(&mut stage.actor_with(&nobody), segid);
}

#[test]
fn the_overflow_user_of_the_machine() {
    let name = "the_overflow_user_of_the_machine";
    if !is_root() {
        return skip(name, "only root can run processes of several users");
    }
    let stage = Stage::new(name, 120);
    let nobody = Setup { user: Some((OVERFLOW, OVERFLOW)), ..Setup::default() };
    let mut exporter = stage.actor_with(&nobody);
    let (segid, address) = segment(&mut exporter, 10, 0o600);
    // Everybody has a number here, so this one is a user like others.
    expect_shared(&mut stage.actor_with(&nobody), segid, &mut exporter, address, 10);
    expect_denied(&mut stage.actor_with(&user(0)), segid);
    // Those who have no number where they are have one here.
    for (number, allowed) in [(OVERFLOW, true), (USERS[2], false)] {
        let mut inside = stage.actor_with(&Setup { user: Some((number, number)), ..Setup::default() });
        if let Err(errno) = inside.unshare(CLONE_NEWUSER) {
            return skip(name, &format!("user namespaces are refused: errno {errno}"));
        }
        assert_eq!(inside.sys(libc::SYS_getuid, &[]), Ok(OVERFLOW as usize));
        if allowed {
            expect_shared(&mut inside, segid, &mut exporter, address, 10);
        } else {
            expect_denied(&mut inside, segid);
        }
    }
}

#[test]
fn capabilities_of_a_namespace_of_ones_own() {
    let name = "capabilities_of_a_namespace_of_ones_own";
    if !is_root() {
        return skip(name, "only root can run processes of several users");
    }
    if Engine::of_actors() == Engine::Driver {
        return skip(name, "the driver has a rule of its own");
    }
    let stage = Stage::new(name, 120);
    let mut exporter = stage.actor_with(&user(0));
    let (segid, address) = segment(&mut exporter, 10, 0o600);
    expect_shared(&mut stage.actor(), segid, &mut exporter, address, 10);
    // User 0, with all capabilities, where there is nobody else.
    let Some(mut alone) = rootless(&stage, name, 0) else { return };
    expect_denied(&mut alone, segid);
    // Where the exporter's user is, but not its group.
    let inside = |users: &[_], groups: &[_]| {
        let mut actor = stage.actor();
        actor.unshare(CLONE_NEWUSER).unwrap();
        actor.map_ids(users, groups);
        actor
    };
    let mut half = inside(&[(0, 0, 1), (5, USERS[0], 1)], &[(0, 0, 1)]);
    expect_denied(&mut half, segid);
    // Who may make such a namespace could become that user.
    let mut above = inside(&[(0, 0, 1), (5, USERS[0], 1)], &[(0, 0, 1), (7, GROUPS[0], 1)]);
    expect_shared(&mut above, segid, &mut exporter, address, 10);
    let mut everybody = inside(&[(0, 0, u32::MAX)], &[(0, 0, u32::MAX)]);
    expect_shared(&mut everybody, segid, &mut exporter, address, 10);
}

#[test]
fn root_of_a_container() {
    let name = "root_of_a_container";
    if !is_root() {
        return skip(name, "only root can run processes of several users");
    }
    if Engine::of_actors() == Engine::Driver {
        return skip(name, "the driver has a rule of its own");
    }
    let stage = Stage::new(name, 120);
    let mut root = stage.actor();
    if let Err(errno) = root.unshare(CLONE_NEWUSER) {
        return skip(name, &format!("user namespaces are refused: errno {errno}"));
    }
    root.map_ids(&[(0, USERS[0], 2)], &[(0, GROUPS[0], 2)]);
    let mut exporter = root.fork();
    exporter.become_user(1, 1);
    root.sys(libc::SYS_setresgid, &[0, 0, 0]).unwrap();
    root.sys(libc::SYS_setresuid, &[0, 0, 0]).unwrap();
    root.renew();
    let (segid, address) = segment(&mut exporter, 10, 0o600);
    // With its capability in the exporter's own namespace.
    expect_shared(&mut root, segid, &mut exporter, address, 10);
    // The same user outside has none.
    expect_denied(&mut stage.actor_with(&user(0)), segid);
    // Nor where it has made another namespace.
    let mut again = stage.actor_with(&user(0));
    again.unshare(CLONE_NEWUSER).unwrap();
    again.map_ids(&[(0, USERS[0], 1)], &[(0, GROUPS[0], 1)]);
    expect_denied(&mut again, segid);
}

#[test]
fn system_v_memory_of_another_ipc_namespace() {
    let name = "system_v_memory_of_another_ipc_namespace";
    if Engine::of_actors() != Engine::Clone {
        return skip(name, "only the clone engine names segments");
    }
    let stage = Stage::new(name, 120);
    let Some(mut exporter) = rootless(&stage, name, CLONE_NEWIPC) else { return };
    let Some(mut importer) = rootless(&stage, name, CLONE_NEWIPC) else { return };
    let mut neighbour = exporter.fork();
    let make = |actor: &mut Actor, stamp| {
        let id = actor.sys(libc::SYS_shmget, &[0, 4 * PAGE, 0o600]).unwrap();
        let place = actor.place(4 * PAGE);
        let address = actor.sys(libc::SYS_shmat, &[id, place, 0]).unwrap();
        actor.fill(address, 4, stamp);
        (id, address)
    };
    // The first of each namespace: they have the same number.
    let (theirs, address) = make(&mut exporter, 100);
    let (own, secret) = make(&mut importer, 500);
    assert_eq!(theirs, own);
    let segid = exporter.make_all();
    let here = importer.get_attach(segid, address, 4 * PAGE);
    for page in 0..4 {
        let fault = importer.load(here + page * PAGE).unwrap_err();
        assert!(fault.is_hole_at(here + page * PAGE), "page {page}: {fault:?}");
        assert!(importer.store(here + page * PAGE, 1).is_err(), "page {page}");
    }
    importer.check(secret, 4, 500);
    exporter.check(address, 4, 100);
    // The exporter is not to blame: other memory of it is found.
    let (more, there) = segment(&mut exporter, 7, 0o600);
    expect_shared(&mut importer, more, &mut exporter, there, 7);
    // Where the number means the same, it is attached.
    let here = neighbour.get_attach(segid, address, 4 * PAGE);
    neighbour.check(here, 4, 100);
    neighbour.fill(here, 4, 200);
    exporter.check(address, 4, 200);
}

const PAGES: usize = 64;

/// What is shared, followed, forked and revoked everywhere.
fn work(exporter: &mut Actor, importer: &mut Actor) {
    let address = exporter.anon(PAGES * PAGE);
    exporter.fill(address, PAGES, 20);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let here = importer.attach(apid, address, PAGES * PAGE);
    importer.check(here, PAGES, 20);
    importer.fill(here, 8, 400);
    exporter.check(address, 8, 400);
    // A thread of the importer waits for memory that comes, and gets a signal where none is.
    exporter.munmap(address + 16 * PAGE, 16 * PAGE);
    assert!(importer.load(here + 20 * PAGE).unwrap_err().is_hole_at(here + 20 * PAGE));
    exporter.anon_at(address + 16 * PAGE, 16 * PAGE);
    exporter.fill(address + 16 * PAGE, 16, 700);
    importer.check(here + 16 * PAGE, 16, 700);
    compare(exporter, importer, address, here, PAGES).unwrap();
    // A file.
    let file = exporter.memfd(4 * PAGE);
    let mapped = exporter.mmap(0, 4 * PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file, 0);
    exporter.fill(mapped, 4, 900);
    let shown = importer.attach(apid, mapped, 4 * PAGE);
    importer.check(shown, 4, 900);
    exporter.munmap(mapped, 4 * PAGE);
    assert!(importer.load(shown).unwrap_err().is_hole_at(shown));
    assert_eq!(importer.release(apid), Ok(0));
    assert_eq!(exporter.remove(segid), Ok(0));
}

/// Both ways between a process inside and one outside, and between two containers.
fn works_with(name: &str, namespaces: i32) {
    let stage = Stage::new(name, 120);
    let start = || stage.contained(&Setup::default(), namespaces);
    let (mut inside, mut other): (Contained, Contained) = match (start(), start()) {
        (Ok(inside), Ok(other)) => (inside, other),
        (Err(why), _) | (_, Err(why)) => return skip(name, &why),
    };
    let mut outside = stage.actor();
    work(&mut inside, &mut outside);
    work(&mut outside, &mut inside);
    work(&mut inside, &mut other);
}

#[test]
fn separate_pid_namespaces() {
    works_with("separate_pid_namespaces", CLONE_NEWPID);
}

#[test]
fn separate_mount_namespaces() {
    works_with("separate_mount_namespaces", CLONE_NEWNS);
}

#[test]
fn separate_ipc_and_uts_namespaces() {
    works_with("separate_ipc_and_uts_namespaces", CLONE_NEWIPC | CLONE_NEWUTS);
}

#[test]
fn separate_user_namespaces_of_one_user() {
    works_with("separate_user_namespaces_of_one_user", CLONE_NEWUSER);
}

#[test]
fn everything_separate_but_the_network() {
    let all = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS;
    works_with("everything_separate_but_the_network", all);
}

#[test]
fn separate_networks_do_not_meet() {
    let name = "separate_networks_do_not_meet";
    let stage = Stage::new(name, 60);
    let mut inside = match stage.contained(&Setup::default(), CLONE_NEWNET) {
        Ok(inside) => inside,
        Err(why) => return skip(name, &why),
    };
    if Engine::of_actors() == Engine::Driver {
        return skip(name, "the driver does not ask for networks");
    }
    let (segid, _) = segment(&mut inside, 1, 0o600);
    assert_eq!(stage.actor().try_get(segid, RDWR), Err(libc::ENOENT));
    // Its own it finds.
    inside.get(segid);
}

#[test]
fn different_names_of_one_user() {
    let name = "different_names_of_one_user";
    if !is_root() {
        return skip(name, "only root can give users several names");
    }
    let stage = Stage::new(name, 120);
    // The same user is 0 in one container and 7 in another.
    let inside = |number: u32| {
        let mut actor = stage.actor();
        actor.unshare(CLONE_NEWUSER)?;
        actor.map_ids(
            &[(number, USERS[0], 1), (9, USERS[1], 1)],
            &[(number, GROUPS[0], 1), (9, GROUPS[1], 1)],
        );
        actor.become_user(number, number);
        Ok::<_, i32>(actor)
    };
    let (mut root, mut seven) = match (inside(0), inside(7)) {
        (Ok(root), Ok(seven)) => (root, seven),
        (Err(errno), _) | (_, Err(errno)) => {
            return skip(name, &format!("user namespaces are refused: errno {errno}"));
        }
    };
    let mut outside = stage.actor_with(&user(0));
    work(&mut root, &mut seven);
    work(&mut seven, &mut root);
    work(&mut seven, &mut outside);
    work(&mut outside, &mut root);
    // Another user that has the same number in one as this one has in the other.
    let (segid, _) = segment(&mut seven, 1, 0o600);
    expect_denied(&mut stage.actor_with(&user(1)), segid);
}

#[test]
fn a_proc_of_another_pid_namespace() {
    let name = "a_proc_of_another_pid_namespace";
    let stage = Stage::new(name, 60);
    let log = Log::new();
    let mut first = stage.actor_with(&Setup::logging("error", &log));
    let user = if is_root() { 0 } else { CLONE_NEWUSER };
    if let Err(errno) = first.unshare(CLONE_NEWPID | user) {
        return skip(name, &format!("pid namespaces are refused: errno {errno}"));
    }
    if Engine::of_actors() != Engine::Clone {
        return skip(name, "only the clone engine needs /proc");
    }
    // Its threads have other numbers in the /proc that it sees: it must not take those of others for its own.
    let mut inside = first.fork();
    assert_eq!(inside.xpmem("version"), Err(libc::ENOENT));
    assert_eq!(inside.try_make(0, PAGE, 0o600), Err(libc::ENOENT));
    let lines = log.lines_with(" error: this process cannot be served: ");
    assert_eq!(lines.len(), 1, "{}", log.text());
    assert!(lines[0].contains("pid namespace"), "{lines:?}");
}

#[test]
fn peers_that_cannot_be_seen() {
    let name = "peers_that_cannot_be_seen";
    if !is_root() {
        return skip(name, "only root can run processes of several users");
    }
    if Engine::of_actors() == Engine::Driver {
        return skip(name, "the driver does not look for processes");
    }
    let stage = Stage::new(name, 60);
    // The exporter does not see root outside: so it cannot tell what root may, and yields nothing but what the mode allows.
    let mut inside = match stage.contained(&Setup::default(), CLONE_NEWPID) {
        Ok(inside) => inside,
        Err(why) => return skip(name, &why),
    };
    inside.become_user(USERS[0], GROUPS[0]);
    let (segid, address) = segment(&mut inside, 10, 0o600);
    expect_denied(&mut stage.actor(), segid);
    expect_shared(&mut stage.actor_with(&user(0)), segid, &mut inside, address, 10);
    let (segid, address) = segment(&mut inside, 20, 0o606);
    expect_shared(&mut stage.actor(), segid, &mut inside, address, 20);
}
