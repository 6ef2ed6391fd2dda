//! Who gets at what, and that nobody gets at more.

use nix::errno::Errno;
use rmap_tests::{
    Actor, Door, Engine, PAGE, RDONLY, RDWR, Reply, Setup, Stage, Wire, is_root, maps, pattern::Seen, skip,
    socket_name,
};
use std::path::PathBuf;
use std::time::Duration;

const ARENA: usize = 0x2000_0000_0000;
const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// Ids that no account has.
const USERS: [u32; 3] = [64_001, 64_002, 64_003];
const GROUPS: [u32; 2] = [64_101, 64_102];

fn user(user: u32, group: u32) -> Setup {
    Setup { user: Some((user, group)), ..Setup::default() }
}

#[test]
fn modes_between_users() {
    let name = "modes_between_users";
    if !is_root() {
        return skip(name, "only root can run processes of several users");
    }
    let stage = Stage::new(name, 120);
    let mut exporter = stage.actor_with(&user(USERS[0], GROUPS[0]));
    let mut owner = stage.actor_with(&user(USERS[0], GROUPS[1]));
    let mut member = stage.actor_with(&user(USERS[1], GROUPS[0]));
    let mut other = stage.actor_with(&user(USERS[2], GROUPS[1]));
    let mut root = stage.actor();
    let address = exporter.anon(PAGE);
    exporter.fill(address, 1, 77);
    for mode in [
        0o000, 0o400, 0o600, 0o200, 0o040, 0o060, 0o004, 0o006, 0o640, 0o604, 0o066, 0o666, 0o606, 0o660,
        0o777,
    ] {
        let segid = exporter.try_make(address, PAGE, mode).unwrap();
        // The owner bits are the owner's only bits, even where others have more.
        for (actor, bits, who) in [
            (&mut owner, mode >> 6, "owner"),
            (&mut member, mode >> 3, "group"),
            (&mut other, mode, "others"),
        ] {
            let (read, write) = (bits & 4 != 0, bits & 2 != 0);
            for (flags, allowed) in [(RDONLY, read), (0, read), (RDWR, read && write)] {
                let got = actor.try_get(segid, flags);
                let expected = if allowed { None } else { Some(libc::EACCES) };
                assert_eq!(got.err(), expected, "mode {mode:o} flags {flags} for {who}");
                if let Ok(apid) = got {
                    let here = actor.attach(apid, 0, PAGE);
                    actor.check(here, 1, 77);
                    let stored = actor.store(here + 8, actor_word(77)).is_ok();
                    assert_eq!(stored, flags == RDWR, "mode {mode:o} flags {flags} for {who}");
                    assert_eq!(actor.release(apid), Ok(0));
                }
            }
        }
        assert!(root.try_get(segid, RDWR).is_ok(), "root may all");
    }
}

/// The second word of a page with this stamp: storing it changes nothing.
fn actor_word(stamp: u64) -> u64 {
    rmap_tests::pattern::word(stamp, 1)
}

#[test]
fn another_user_cannot_use_ids_of_others() {
    let name = "another_user_cannot_use_ids_of_others";
    if !is_root() {
        return skip(name, "only root can run processes of several users");
    }
    let stage = Stage::new(name, 60);
    let mut exporter = stage.actor_with(&user(USERS[0], GROUPS[0]));
    let mut importer = stage.actor_with(&user(USERS[0], GROUPS[0]));
    let mut thief = stage.actor_with(&user(USERS[2], GROUPS[1]));
    let address = exporter.anon(PAGE);
    let segid = exporter.make(address, PAGE);
    let apid = importer.get(segid);
    assert_eq!(thief.try_get(segid, RDWR), Err(libc::EACCES));
    assert_eq!(thief.try_get(segid, RDONLY), Err(libc::EACCES));
    assert_eq!(thief.try_attach(apid, 0, PAGE), Err(libc::EACCES));
    assert_eq!(thief.release(apid), Err(libc::EACCES));
    assert_eq!(thief.remove(segid), Err(libc::EACCES));
    let here = importer.attach(apid, 0, PAGE);
    assert_eq!(importer.load(here), Ok(0));
}

#[test]
fn a_permit_to_read_is_not_one_to_write() {
    let stage = Stage::new("a_permit_to_read_is_not_one_to_write", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(4 * PAGE);
    exporter.fill(address, 4, 30);
    let segid = exporter.make(address, 4 * PAGE);
    for flags in [RDONLY, 0] {
        let apid = importer.try_get(segid, flags).unwrap();
        let here = importer.attach(apid, 0, 4 * PAGE);
        // Before and after the page is there.
        assert_eq!(importer.store(here + 3 * PAGE, 1).unwrap_err().signal, libc::SIGSEGV);
        importer.check(here, 4, 30);
        assert_eq!(importer.store(here, 1).unwrap_err().signal, libc::SIGSEGV);
        // Nor can it be made one.
        let raised = importer.sys(libc::SYS_mprotect, &[here, 4 * PAGE, RW as usize]);
        if raised.is_ok() {
            // Whatever becomes of this store, it does not reach the exporter.
            let _ = importer.store(here + PAGE, 1);
        }
        exporter.check(address, 4, 30);
        // What the exporter does goes on being seen.
        exporter.fill(address, 1, 90);
        importer.check(here, 1, 90);
        exporter.fill(address, 1, 30);
        importer.detach(here);
        assert_eq!(importer.release(apid), Ok(0));
    }
    let apid = importer.get(segid);
    let here = importer.attach(apid, 0, 4 * PAGE);
    importer.fill(here, 4, 60);
    exporter.check(address, 4, 60);
}

#[test]
fn a_reading_and_a_writing_permit_side_by_side() {
    let stage = Stage::new("a_reading_and_a_writing_permit_side_by_side", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(4 * PAGE);
    let segid = exporter.make(address, 4 * PAGE);
    let reading = importer.try_get(segid, RDONLY).unwrap();
    let writing = importer.get(segid);
    let (read, write) = (importer.attach(reading, 0, 4 * PAGE), importer.attach(writing, 0, 4 * PAGE));
    importer.fill(write, 4, 5);
    importer.check(read, 4, 5);
    exporter.check(address, 4, 5);
    assert_eq!(importer.store(read, 1).unwrap_err().signal, libc::SIGSEGV);
    assert_eq!(importer.release(reading), Ok(0));
    importer.fill(write, 4, 50);
    exporter.check(address, 4, 50);
}

#[test]
fn memory_that_its_owner_may_only_read() {
    let stage = Stage::new("memory_that_its_owner_may_only_read", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    // Constants of the program.
    let words = exporter.ok("place rodata");
    let constants: usize = words.split(' ').next().unwrap().parse().unwrap();
    let here = importer.attach(apid, constants, PAGE);
    let before = exporter.load(constants).unwrap();
    assert_eq!(importer.load(here), Ok(before));
    assert!(importer.store(here, 1).is_err(), "a store into .rodata");
    assert_eq!(exporter.load(constants), Ok(before));
    // A memory file of which there is only a mapping to read.
    let file = exporter.memfd(PAGE);
    let writable = exporter.mmap(0, PAGE, RW, libc::MAP_SHARED, file, 0);
    let readable = exporter.mmap(0, PAGE, libc::PROT_READ, libc::MAP_SHARED, file, 0);
    exporter.fill(writable, 1, 4);
    let here = importer.attach(apid, readable, PAGE);
    importer.check(here, 1, 4);
    assert!(importer.store(here, 1).is_err(), "a store into a shared mapping for reading");
    exporter.check(writable, 1, 4);
}

#[test]
fn a_segment_ends_where_it_ends() {
    let stage = Stage::new("a_segment_ends_where_it_ends", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    exporter.anon_at(ARENA, 16 * PAGE);
    exporter.fill(ARENA, 16, 1000);
    let segid = exporter.make(ARENA + 4 * PAGE, 4 * PAGE);
    let apid = importer.get(segid);
    let here = importer.attach(apid, 0, 4 * PAGE);
    importer.check(here, 4, 1004);
    for (offset, len) in [(4 * PAGE, PAGE), (3 * PAGE, 2 * PAGE), (0, 5 * PAGE), (PAGE, 4 * PAGE)] {
        assert_eq!(importer.try_attach(apid, offset, len), Err(libc::EINVAL));
    }
    assert_eq!(importer.xpmem(&format!("attach {apid} -4096 8192 0")), Err(libc::EINVAL));
}

/// The secret pages of an exporter do not show up in any memory that this process can reach.
#[track_caller]
fn expect_no_secret(importer: &mut Actor, secret: u64) {
    for mapping in maps(importer.pid()).into_iter().filter(|mapping| !mapping.name.starts_with("[v")) {
        let pages = (mapping.range.len() / PAGE).min(4096);
        let shown = importer.look(mapping.range.start, pages);
        assert!(!shown.contains(&Seen::Stamp(secret)), "the secret lies in {mapping:x?}");
    }
}

/// Has a process take over all descriptors that the library has in it, as they are. `None` if the kernel cannot do that.
fn take_from_the_library(actor: &mut Actor) -> Option<Vec<(usize, PathBuf)>> {
    let Some(service) = rmap_tests::service_thread(actor.pid()) else {
        // The engines of the kernel keep theirs in the process's own table.
        assert!(!Engine::of_actors().shares_ordinary_memory(), "no service thread");
        let mut all = rmap_tests::application_descriptors(actor.pid());
        all.retain(|(_, file)| {
            matches!(file.to_str(), Some("/[rmap] (deleted)" | "/dev/rmap" | "/dev/xpmem"))
        });
        assert!(!all.is_empty(), "no descriptor of the kernel's");
        return Some(all.into_iter().map(|(number, file)| (number as usize, file)).collect());
    };
    let thread = libc::O_EXCL as usize;
    let owner = match actor.sys(libc::SYS_pidfd_open, &[service as usize, thread]) {
        Err(libc::EINVAL) => {
            skip("the library's descriptors", "taking them needs PIDFD_THREAD (Linux 6.9)");
            return None;
        }
        opened => opened.unwrap(),
    };
    let all = rmap_tests::library_descriptors(actor.pid());
    let take = |(number, file): (i32, _)| {
        let taken = actor.sys(libc::SYS_pidfd_getfd, &[owner, number as usize, 0]);
        (taken.unwrap_or_else(|errno| panic!("descriptor {number}: errno {errno}")), file)
    };
    Some(all.into_iter().map(take).collect())
}

/// Maps every descriptor of the importer at the exporter's addresses and around zero.
#[track_caller]
fn expect_no_secret_in_descriptors(importer: &mut Actor, address: usize, secret: u64) {
    for (descriptor, _) in take_from_the_library(importer).into_iter().flatten() {
        for offset in [address, address - 8 * PAGE, 0] {
            for prot in [libc::PROT_READ, RW] {
                let (len, shared) = (32 * PAGE, libc::MAP_SHARED as usize);
                let arguments = [0, len, prot as usize, shared, descriptor, offset];
                let Ok(view) = importer.sys(libc::SYS_mmap, &arguments) else {
                    continue;
                };
                let shown = importer.look(view, 32);
                importer.munmap(view, len);
                assert!(!shown.contains(&Seen::Stamp(secret)), "descriptor {descriptor} at {offset:#x}");
            }
        }
    }
}

#[test]
fn a_peer_cannot_reach_beyond_its_segment() {
    let stage = Stage::new("a_peer_cannot_reach_beyond_its_segment", 60);
    let (mut exporter, mut importer, mut friend) = (stage.actor(), stage.actor(), stage.actor());
    let secret = 0x5ec_2e7;
    exporter.anon_at(ARENA, 16 * PAGE);
    exporter.fill_same(ARENA, 16, secret);
    exporter.fill(ARENA + 4 * PAGE, 4, 1);
    let open = exporter.make(ARENA + 4 * PAGE, 4 * PAGE);
    let closed = exporter.make(ARENA, 16 * PAGE);
    // Somebody with a right to it has looked at all of it: it lies wherever shared memory lies.
    let there = friend.get_attach(closed, 0, 16 * PAGE);
    friend.look(there, 16);
    let apid = importer.get(open);
    let here = importer.attach(apid, 0, 4 * PAGE);
    importer.check(here, 4, 1);
    expect_no_secret(&mut importer, secret);
    // Growing the attachment shows no more.
    let grown = importer.mremap(here, 4 * PAGE, 8 * PAGE, libc::MREMAP_MAYMOVE, 0);
    if let Ok(grown) = grown {
        let shown = importer.look(grown, 8);
        assert!(!shown.contains(&Seen::Stamp(secret)), "a grown attachment shows the secret");
    }
    expect_no_secret_in_descriptors(&mut importer, ARENA + PAGE, secret);
    expect_no_secret_in_descriptors(&mut importer, ARENA + 12 * PAGE, secret);
}

#[test]
fn a_reader_finds_no_way_to_write() {
    let stage = Stage::new("a_reader_finds_no_way_to_write", 60);
    let (mut exporter, mut importer, mut friend) = (stage.actor(), stage.actor(), stage.actor());
    exporter.anon_at(ARENA, 4 * PAGE);
    exporter.fill(ARENA, 4, 1);
    let segid = exporter.make(ARENA, 4 * PAGE);
    let there = friend.get_attach(segid, 0, 4 * PAGE);
    friend.check(there, 4, 1);
    let apid = importer.try_get(segid, RDONLY).unwrap();
    let here = importer.attach(apid, 0, 4 * PAGE);
    importer.check(here, 4, 1);
    for (descriptor, _) in take_from_the_library(&mut importer).into_iter().flatten() {
        for offset in [ARENA, 0] {
            let arguments = [0, 4 * PAGE, RW as usize, libc::MAP_SHARED as usize, descriptor, offset];
            let Ok(view) = importer.sys(libc::SYS_mmap, &arguments) else {
                continue;
            };
            if importer.look(view, 1) == [Seen::Stamp(1)] {
                let _ = importer.store(view + 100 * 8, 1);
            }
            importer.munmap(view, 4 * PAGE);
            let path = importer.text(&format!("/proc/self/fd/{descriptor}"));
            let at = libc::AT_FDCWD as isize as usize;
            if let Ok(again) = importer.sys(libc::SYS_openat, &[at, path, libc::O_RDWR as usize]) {
                let _ = importer.sys(libc::SYS_pwrite64, &[again, path, 8, offset + 800]);
                importer.sys(libc::SYS_close, &[again]).unwrap();
            }
        }
    }
    exporter.check(ARENA, 4, 1);
}

#[test]
fn another_user_who_may_read_finds_no_way_to_write() {
    let name = "another_user_who_may_read_finds_no_way_to_write";
    if !is_root() {
        return skip(name, "only root can run processes of several users");
    }
    let stage = Stage::new(name, 60);
    let mut exporter = stage.actor_with(&user(USERS[0], GROUPS[0]));
    let mut reader = stage.actor_with(&user(USERS[1], GROUPS[1]));
    exporter.anon_at(ARENA, 4 * PAGE);
    exporter.fill(ARENA, 4, 1);
    let segid = exporter.try_make(ARENA, 4 * PAGE, 0o644).unwrap();
    assert_eq!(reader.try_get(segid, RDWR), Err(libc::EACCES));
    let apid = reader.try_get(segid, RDONLY).unwrap();
    let here = reader.attach(apid, 0, 4 * PAGE);
    reader.check(here, 4, 1);
    // Asking again, after it has been served.
    assert_eq!(reader.try_get(segid, RDWR), Err(libc::EACCES));
    let at = libc::AT_FDCWD as isize as usize;
    let mut found = 0;
    let taken = take_from_the_library(&mut reader);
    let is_known = taken.is_some();
    for (descriptor, link) in taken.into_iter().flatten() {
        // The clone engine's, the mirror engine's.
        if !["/memfd:rmap (deleted)", "/[rmap] (deleted)"]
            .iter()
            .any(|name| link == std::path::Path::new(name))
        {
            continue;
        }
        found += 1;
        let path = reader.text(&format!("/proc/self/fd/{descriptor}"));
        assert_eq!(reader.sys(libc::SYS_pwrite64, &[descriptor, path, 8, ARENA]), Err(libc::EBADF));
        assert!(reader.sys(libc::SYS_fallocate, &[descriptor, 3, ARENA, PAGE]).is_err(), "a hole is punched");
        for flags in [libc::O_RDWR, libc::O_WRONLY, libc::O_RDWR | libc::O_TRUNC] {
            let opened = reader.sys(libc::SYS_openat, &[at, path, flags as usize]);
            assert!(matches!(opened, Err(libc::EACCES | libc::ENXIO)), "{opened:?}");
        }
        assert_eq!(reader.sys(libc::SYS_fchmod, &[descriptor, 0o666]), Err(libc::EPERM));
        let shared = libc::MAP_SHARED as usize;
        let arguments = [0, PAGE, libc::PROT_READ as usize, shared, descriptor, ARENA];
        let view = reader.sys(libc::SYS_mmap, &arguments).unwrap();
        assert_eq!(reader.sys(libc::SYS_mprotect, &[view, PAGE, RW as usize]), Err(libc::EACCES));
    }
    // Of the driver it has no descriptor but the device's.
    assert_eq!(found > 0, is_known && Engine::of_actors() != Engine::Driver, "{found} objects");
    // Its attachment is a private view, which may become writable: for itself.
    if reader.sys(libc::SYS_mprotect, &[here, 4 * PAGE, RW as usize]).is_ok() {
        reader.fill(here, 2, 99);
    }
    exporter.check(ARENA, 4, 1);
    // Nor by the memory of the process.
    let path = reader.text(&format!("/proc/{}/mem", exporter.pid()));
    assert!(reader.sys(libc::SYS_openat, &[at, path, libc::O_RDWR as usize]).is_err());
}

#[test]
fn a_segment_of_one_page_is_one_page() {
    let stage = Stage::new("a_segment_of_one_page_is_one_page", 60);
    let (mut exporter, mut importer, mut friend) = (stage.actor(), stage.actor(), stage.actor());
    let secret = 0x5ec_2e7;
    exporter.anon_at(ARENA, 8 * PAGE);
    exporter.fill_same(ARENA, 8, secret);
    exporter.fill(ARENA + 3 * PAGE, 1, 1);
    let one = exporter.make(ARENA + 3 * PAGE, PAGE);
    let all = exporter.make(ARENA, 8 * PAGE);
    // The memory is shared as a whole before and after somebody has the page alone.
    let there = friend.get_attach(all, 0, 8 * PAGE);
    friend.look(there, 8);
    let apid = importer.get(one);
    for (offset, len) in [(0, PAGE + 1), (0, 2 * PAGE), (PAGE, PAGE), (0, 0)] {
        assert_eq!(importer.try_attach(apid, offset, len), Err(libc::EINVAL), "{len} bytes at {offset}");
    }
    let here = importer.attach(apid, 0, 1);
    importer.check(here, 1, 1);
    importer.fill(here, 1, 2);
    assert_eq!(friend.look(there, 8)[3], Seen::Stamp(2));
    friend.look(there, 8);
    expect_no_secret(&mut importer, secret);
    expect_no_secret_in_descriptors(&mut importer, ARENA + 3 * PAGE, secret);
    expect_no_secret_in_descriptors(&mut importer, ARENA, secret);
    exporter.check(ARENA + 3 * PAGE, 1, 2);
    for page in [2, 4] {
        assert_eq!(exporter.oracle(ARENA + page * PAGE, 1), [Some(Seen::Stamp(secret))]);
    }
}

#[test]
fn an_importer_that_changes_its_user() {
    let name = "an_importer_that_changes_its_user";
    if !is_root() {
        return skip(name, "only root can change its user");
    }
    let stage = Stage::new(name, 60);
    let mut exporter = stage.actor_with(&user(USERS[0], GROUPS[0]));
    let mut importer = stage.actor();
    let address = exporter.anon(8 * PAGE);
    exporter.fill(address, 8, 20);
    let segid = exporter.make(address, 8 * PAGE);
    let other = exporter.make(address, 8 * PAGE);
    // Root may all; what it has got it keeps.
    let apid = importer.get(segid);
    let here = importer.attach(apid, 0, 8 * PAGE);
    importer.check(here, 4, 20);
    importer.ok(&format!("seteuid {}", USERS[1]));
    for segid in [segid, other] {
        assert_eq!(importer.try_get(segid, RDWR), Err(libc::EACCES));
        assert_eq!(importer.try_get(segid, RDONLY), Err(libc::EACCES));
    }
    importer.check(here, 8, 20);
    importer.ok("seteuid 0");
    importer.ok(&format!("seteuid {}", USERS[0]));
    let own = importer.get(other);
    importer.ok("seteuid 0");
    let again = importer.attach(own, 0, 8 * PAGE);
    importer.check(again, 8, 20);
    assert!(importer.try_get(other, RDWR).is_ok());
    exporter.munmap(address, PAGE);
    assert!(importer.load(here).unwrap_err().is_hole_at(here));
}

#[test]
fn an_exporter_that_changes_its_user() {
    let name = "an_exporter_that_changes_its_user";
    if !is_root() {
        return skip(name, "only root can change its user");
    }
    let stage = Stage::new(name, 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let mut other = stage.actor_with(&user(USERS[1], GROUPS[1]));
    let address = exporter.anon(8 * PAGE);
    exporter.fill(address, 8, 20);
    let segid = exporter.make(address, 8 * PAGE);
    let here = importer.get_attach(segid, 0, 8 * PAGE);
    importer.check(here, 8, 20);
    exporter.ok(&format!("seteuid {}", USERS[1]));
    // It is root's segment still: rights are those of the user who first used the library.
    assert_eq!(other.try_get(segid, RDWR), Err(libc::EACCES));
    let late = exporter.make(address, 8 * PAGE);
    assert_eq!(other.try_get(late, RDWR), Err(libc::EACCES));
    assert!(importer.try_get(late, RDWR).is_ok());
    // What it takes away is gone.
    importer.check(here, 8, 20);
    exporter.munmap(address, PAGE);
    exporter.madvise(address + PAGE, PAGE, libc::MADV_DONTNEED);
    exporter.anon_at(address + 2 * PAGE, PAGE);
    exporter.store(address + 2 * PAGE, 5).unwrap();
    for (page, seen) in importer.look(here, 3).into_iter().enumerate() {
        assert_ne!(seen, Seen::Stamp(20 + page as u64), "page {page} is an old one");
    }
    importer.check(here + 3 * PAGE, 5, 23);
    // And it does not have to wait long for that, although it may not look at its own threads any more.
    for _ in 0..30 {
        exporter.munmap(address + 7 * PAGE, PAGE);
        exporter.anon_at(address + 7 * PAGE, PAGE);
        exporter.madvise(address + 6 * PAGE, PAGE, libc::MADV_DONTNEED);
        importer.look(here + 6 * PAGE, 1);
    }
}

#[test]
fn nobody_takes_the_name_of_a_living_process() {
    let stage = Stage::new("nobody_takes_the_name_of_a_living_process", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(8 * PAGE);
    exporter.fill(address, 8, 20);
    let segid = exporter.make(address, 8 * PAGE);
    let apid = importer.get(segid);
    let here = importer.attach(apid, 0, 8 * PAGE);
    if Engine::of_actors() == Engine::Driver {
        // Its ids name no socket.
        return;
    }
    assert_eq!(Door::named_like(segid).unwrap_err(), Errno::EADDRINUSE);
    importer.check(here, 1, 20);
    // Whoever has the name next gets nothing from those who knew the one before.
    let squatter = squat(&importer, exporter, segid);
    assert_eq!(importer.try_attach(apid, 0, PAGE), Err(libc::ENOENT));
    let seen = importer.look(here, 8);
    assert!(
        seen.iter()
            .enumerate()
            .all(|(page, seen)| matches!(seen, Seen::Hole) || *seen == Seen::Stamp(20 + page as u64))
    );
    assert_eq!(importer.release(apid), Ok(0));
    assert_eq!(squatter.open(Duration::ZERO).unwrap_err(), Errno::EAGAIN, "somebody came");
}

/// An exporter has ended, and somebody listens under its name in its place.
fn squat(importer: &Actor, exporter: Actor, segid: i64) -> Door {
    exporter.kill();
    // A sibling that was stopping threads ends a moment later.
    let mut squatter = None;
    importer.wait_until("the name is free", || {
        squatter = Door::named_like(segid).ok();
        squatter.is_some()
    });
    squatter.unwrap()
}

/// What a squatter says, given the number that the importer has drawn and its proof.
type Lie<'a> = dyn Fn(&Wire, u64, u64) + 'a;

#[test]
fn a_squatter_cannot_pose_as_an_exporter() {
    let name = "a_squatter_cannot_pose_as_an_exporter";
    if Engine::of_actors() == Engine::Driver {
        return skip(name, "ids of the driver name no socket");
    }
    let stage = Stage::new(name, 120);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(PAGE);
    let segid = exporter.make(address, PAGE);
    // Who knows the id can have the exporter prove that it does: to keep the answer.
    let number = 77;
    let wire = Wire::to_name(&socket_name(segid)).unwrap();
    wire.say_hello(segid, number).unwrap();
    let kept = wire.hear_proof().unwrap().expect("a proof");
    drop(wire);
    let squatter = squat(&importer, exporter, segid);
    let lies: [&Lie<'_>; 5] = [
        // What it has kept; what it has been told; nothing at all; another message; silence, and it hangs up.
        &|wire, _, _| wire.say_proof(kept).unwrap(),
        &|wire, _, proof| wire.say_proof(proof).unwrap(),
        &|wire, number, _| wire.say_proof(number).unwrap(),
        &|wire, _, _| wire.send(&[0; 64], &[]).unwrap(),
        &|_, _, _| {},
    ];
    let mut drawn = vec![number];
    for (lie, say) in lies.iter().enumerate() {
        importer.tell(&format!("xpmem get {segid} {RDWR} 1 0"));
        let wire = squatter.open_silently(Duration::from_secs(30)).unwrap();
        let [number, proof] = wire.hear_hello().unwrap().expect("a greeting");
        assert!(!drawn.contains(&number), "a number is drawn twice");
        drawn.push(number);
        say(&wire, number, proof);
        // It hangs up if it has nothing to say.
        let wire = (lie + 1 < lies.len()).then_some(wire);
        assert_eq!(importer.answer(), Reply::Ok(format!("-1 {}", libc::ENOENT)), "lie {lie}");
        drop(wire);
    }
}

#[test]
fn a_name_gives_no_right() {
    let name = "a_name_gives_no_right";
    if Engine::of_actors() == Engine::Driver {
        return skip(name, "ids of the driver name no socket");
    }
    let stage = Stage::new(name, 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(PAGE);
    exporter.fill(address, 1, 7);
    // Everybody may have it who knows the id.
    let segid = exporter.try_make(address, PAGE, 0o666).unwrap();
    let socket = socket_name(segid);
    // Everybody sees the name, and it says nothing of the id.
    let names = std::fs::read_to_string("/proc/net/unix").unwrap();
    assert!(names.lines().any(|line| line.ends_with(&format!("@{socket}"))));
    assert!(!names.contains(&format!("{:09x}", segid >> 27)), "a part of an id is public");
    let wrong = segid ^ 1 << 40;
    for say in [&(|wire: &Wire| wire.say_hello(wrong, 5).unwrap()) as &dyn Fn(&Wire), &|wire| {
        wire.say_proof(5).unwrap()
    }] {
        let wire = Wire::to_name(&socket).unwrap();
        say(&wire);
        assert_eq!(
            wire.hear_proof().unwrap(),
            None,
            "the exporter answers somebody who does not know the id"
        );
    }
    // The id itself gives it.
    drop(Wire::to(segid).unwrap());
    let here = importer.get_attach(segid, 0, PAGE);
    importer.check(here, 1, 7);
    assert_eq!(importer.try_get(wrong, RDWR), Err(libc::ENOENT));
}

#[test]
fn ids_of_processes_that_are_gone() {
    let stage = Stage::new("ids_of_processes_that_are_gone", 120);
    let mut importer = stage.actor();
    let mut gone: Vec<(i64, i64)> = Vec::new();
    for round in 0..20 {
        let mut exporter = stage.actor();
        let address = exporter.anon(PAGE);
        exporter.fill(address, 1, round);
        let segids = [exporter.make(address, PAGE), exporter.make(address, PAGE)];
        let apid = importer.get(segids[0]);
        let here = importer.attach(apid, 0, PAGE);
        importer.check(here, 1, round);
        for (segid, old) in &gone {
            assert!(!segids.contains(segid), "an id came twice");
            assert_ne!(*old, apid, "an id came twice");
            assert_eq!(importer.try_get(*segid, RDWR), Err(libc::ENOENT));
            assert_eq!(importer.try_attach(*old, 0, PAGE), Err(libc::ENOENT));
            // To a new process they are another's, whoever made them.
            assert!(matches!(exporter.remove(*segid), Err(libc::EACCES | libc::ENOENT)));
        }
        gone.push((segids[0], apid));
        // In the same process, another program.
        if round % 2 == 0 {
            exporter.ok("exec");
            exporter.ok("hello");
            assert_eq!(importer.try_get(segids[1], RDWR), Err(libc::ENOENT));
            let own = exporter.anon(PAGE);
            let segid = exporter.make(own, PAGE);
            if Engine::of_actors().draws_ids() {
                assert!(!segids.contains(&segid));
            } else {
                assert_eq!(segid, segids[0], "the driver starts to count again");
            }
            assert_eq!(importer.try_get(segids[1], RDWR), Err(libc::ENOENT));
        }
        exporter.exit();
    }
}

#[test]
fn a_removed_segment_is_a_hole() {
    let stage = Stage::new("a_removed_segment_is_a_hole", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(8 * PAGE);
    exporter.fill(address, 8, 20);
    let (segid, other) = (exporter.make(address, 8 * PAGE), exporter.make(address, 8 * PAGE));
    let apid = importer.get(segid);
    let here = importer.attach(apid, 0, 8 * PAGE);
    let there = importer.get_attach(other, 0, 8 * PAGE);
    importer.check(here, 4, 20);
    importer.check(there, 4, 20);
    assert_eq!(exporter.remove(segid), Ok(0));
    // Pages that were touched and pages that were not.
    for page in [0, 3, 4, 7] {
        assert!(importer.load(here + page * PAGE).unwrap_err().is_hole_at(here + page * PAGE), "page {page}");
    }
    assert_eq!(importer.try_attach(apid, 0, PAGE), Err(libc::ENOENT));
    assert_eq!(importer.try_get(segid, RDWR), Err(libc::ENOENT));
    // The other segment over the same memory is not touched by it, nor is the memory.
    importer.check(there, 8, 20);
    importer.fill(there, 8, 60);
    exporter.check(address, 8, 60);
    importer.detach(here);
    assert_eq!(importer.release(apid), Ok(0));
}

#[test]
fn a_released_permit_takes_its_attachments_along() {
    let stage = Stage::new("a_released_permit_takes_its_attachments_along", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(8 * PAGE);
    exporter.fill(address, 8, 20);
    let segid = exporter.make(address, 8 * PAGE);
    let (apid, other) = (importer.get(segid), importer.get(segid));
    assert_ne!(apid, other);
    let gone = [importer.attach(apid, 0, 8 * PAGE), importer.attach(apid, PAGE, PAGE)];
    let stays = importer.attach(other, 0, 8 * PAGE);
    importer.check(gone[0], 8, 20);
    assert_eq!(importer.release(apid), Ok(0));
    for here in gone {
        importer.expect_gone(here, 1, if here == gone[0] { 20 } else { 21 });
        importer.detach(here);
    }
    assert_eq!(importer.release(apid), Err(libc::ENOENT));
    assert_eq!(importer.try_attach(apid, 0, PAGE), Err(libc::ENOENT));
    importer.check(stays, 8, 20);
}

#[test]
fn detach_by_any_address_inside() {
    let stage = Stage::new("detach_by_any_address_inside", 60);
    let mut exporter = stage.actor();
    let mut keeper = stage.actor();
    // No window is kept that nobody is attached to.
    let unkept = Setup::with_env("RMAP_WINDOW_LIMIT", "0");
    let mut importer = stage.actor_with(&unkept);
    let address = exporter.anon(8 * PAGE);
    exporter.fill(address, 8, 20);
    let segid = exporter.make(address, 8 * PAGE);
    let (apid, kept) = (importer.get(segid), keeper.get(segid));
    for inside in [0, 1, PAGE, 3 * PAGE + 17, 8 * PAGE - 1] {
        for touched in [false, true] {
            let here = importer.attach(apid, 0, 8 * PAGE);
            let there = keeper.attach(kept, 0, 8 * PAGE);
            if touched {
                importer.check(here, 8, 20);
                keeper.check(there, 8, 20);
            }
            importer.detach(here + inside);
            keeper.detach(there + inside);
            importer.expect_gone(here, 8, 20);
            // Once more does no harm.
            importer.detach(here + inside);
            keeper.detach(there + inside);
        }
    }
    assert_eq!(keeper.release(kept), Ok(0));
    importer.detach(0);
    // Memory that is no attachment is refused and stays.
    let own = importer.anon(PAGE);
    assert_eq!(importer.xpmem(&format!("detach {own:#x}")), Err(libc::EINVAL));
    importer.store(own, 1).unwrap();
}

#[test]
fn a_detached_range_is_free_for_other_things() {
    let stage = Stage::new("a_detached_range_is_free_for_other_things", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(8 * PAGE);
    exporter.fill(address, 8, 1);
    let segid = exporter.make(address, 8 * PAGE);
    let apid = importer.get(segid);
    for round in 0..50 {
        let here = importer.attach(apid, 0, 8 * PAGE);
        importer.check(here, 1 + round % 8, 1);
        importer.detach(here);
        importer.anon_at(here, 8 * PAGE);
        importer.fill(here, 8, 100);
        exporter.check(address, 8, 1);
        importer.check(here, 8, 100);
        importer.munmap(here, 8 * PAGE);
    }
}

#[test]
fn an_application_may_unmap_an_attachment() {
    let stage = Stage::new("an_application_may_unmap_an_attachment", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(8 * PAGE);
    exporter.fill(address, 8, 1);
    let segid = exporter.make(address, 8 * PAGE);
    let apid = importer.get(segid);
    // Whole, in part, and by mapping something else over it.
    let here = importer.attach(apid, 0, 8 * PAGE);
    importer.check(here, 4, 1);
    importer.munmap(here, 8 * PAGE);
    importer.expect_gone(here, 8, 1);
    importer.detach(here);
    let here = importer.attach(apid, 0, 8 * PAGE);
    importer.munmap(here + 2 * PAGE, 2 * PAGE);
    importer.check(here, 2, 1);
    importer.check(here + 4 * PAGE, 4, 5);
    importer.detach(here);
    let here = importer.attach(apid, 0, 8 * PAGE);
    importer.check(here, 8, 1);
    importer.anon_at(here + PAGE, PAGE);
    importer.fill(here + PAGE, 1, 9);
    exporter.munmap(address, 4 * PAGE);
    importer.check(here + PAGE, 1, 9);
    importer.check(here + 4 * PAGE, 4, 5);
    assert!(importer.load(here).unwrap_err().is_hole_at(here));
    assert_eq!(importer.release(apid), Ok(0));
    importer.exit();
    exporter.check(address + 4 * PAGE, 4, 5);
}
