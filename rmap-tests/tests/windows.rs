//! Windows that stay mapped when nobody is attached to them.

use rmap_tests::{Actor, PAGE, Reply, Setup, Stage, maps};

const ARENA: usize = 0x2000_0000_0000;
/// How much of an exporter one window shows.
const BLOCK: usize = 1 << 30;

fn limited(windows: usize) -> Setup {
    Setup::with_env("RMAP_WINDOW_LIMIT", &windows.to_string())
}

/// Mappings of objects in an importer that exports nothing.
fn windows(importer: &Actor) -> usize {
    maps(importer.pid()).iter().filter(|mapping| mapping.name == "/memfd:rmap").count()
}

#[test]
fn memory_that_was_attached_needs_nobody() {
    let stage = Stage::new("memory_that_was_attached_needs_nobody", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    exporter.anon_at(ARENA, 64 * PAGE);
    exporter.fill(ARENA, 64, 1);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let here = importer.attach(apid, ARENA, 64 * PAGE);
    importer.check(here, 64, 1);
    importer.detach(here);
    let before = windows(&importer);
    exporter.freeze();
    // Any part of it, again and again, and several times at once.
    for round in 0..1000 {
        let (offset, len) = (round % 48 * PAGE, (1 + round % 16) * PAGE);
        let one = importer.attach(apid, ARENA + offset, len);
        let two = importer.attach(apid, ARENA + offset, len);
        importer.check(one, 1 + round % 16, 1 + (round % 48) as u64);
        importer.detach(one);
        importer.check(two, 1 + round % 16, 1 + (round % 48) as u64);
        importer.detach(two);
    }
    assert_eq!(windows(&importer), before);
    exporter.thaw();
    importer.exit();
    exporter.exit();
}

#[test]
fn attachments_that_share_a_window_end_one_by_one() {
    let stage = Stage::new("attachments_that_share_a_window_end_one_by_one", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor_with(&limited(1)));
    exporter.anon_at(ARENA, 8 * PAGE);
    exporter.fill(ARENA, 8, 1);
    let segid = exporter.make(ARENA, 8 * PAGE);
    let others: Vec<i64> = (0..40).map(|_| exporter.make(ARENA, 8 * PAGE)).collect();
    let apid = importer.get(segid);
    let there: Vec<usize> = (0..8).map(|page| importer.attach(apid, page * PAGE, PAGE)).collect();
    for (page, here) in there.iter().enumerate() {
        importer.detach(*here);
        // Whatever makes room does not take what somebody is attached to.
        for other in &others {
            let apid = importer.get(*other);
            let here = importer.attach(apid, 0, PAGE);
            importer.detach(here);
            assert_eq!(importer.release(apid), Ok(0));
        }
        for (left, here) in there.iter().enumerate().skip(page + 1) {
            importer.check(*here, 1, 1 + left as u64);
        }
    }
    importer.exit();
    exporter.exit();
}

#[test]
fn the_limit_is_on_windows_that_nobody_uses() {
    let stage = Stage::new("the_limit_is_on_windows_that_nobody_uses", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor_with(&limited(8)));
    let count = 60;
    let segids: Vec<i64> = (0..count)
        .map(|number| {
            exporter.anon_at(ARENA + number * PAGE, PAGE);
            exporter.fill(ARENA + number * PAGE, 1, number as u64);
            exporter.make(ARENA + number * PAGE, PAGE)
        })
        .collect();
    let apids: Vec<i64> = segids.iter().map(|segid| importer.get(*segid)).collect();
    // Every third stays attached.
    let mut used = Vec::new();
    for round in 0..3 {
        for (number, apid) in apids.iter().enumerate() {
            let here = importer.attach(*apid, 0, PAGE);
            importer.check(here, 1, number as u64);
            if round == 0 && number % 3 == 0 {
                used.push((number, here));
            } else {
                importer.detach(here);
            }
        }
        let (windows, most) = (windows(&importer), used.len() + 2 * 8);
        assert!(windows <= most, "{windows} windows, {most} at most");
    }
    for (number, here) in &used {
        importer.check(*here, 1, *number as u64);
        importer.detach(*here);
    }
    for apid in apids {
        assert_eq!(importer.release(apid), Ok(0));
    }
    assert_eq!(windows(&importer), 0);
    importer.exit();
    exporter.exit();
}

#[test]
fn a_heap_of_many_pieces_takes_few_mappings() {
    let stage = Stage::new("a_heap_of_many_pieces_takes_few_mappings", 120);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let pieces = 2000;
    // Two pieces to a huge page.
    let piece = |number: usize| ARENA + number * (1 << 20);
    exporter.anon_at(ARENA, pieces << 20);
    for number in 0..pieces {
        exporter.fill(piece(number), 1, number as u64);
    }
    let before = maps(importer.pid()).len();
    for round in 0..3 {
        for number in 0..pieces {
            let here = importer.attach(apid, piece(number), PAGE);
            if round == 0 {
                importer.check(here, 1, number as u64);
            }
            importer.detach(here);
        }
    }
    let grown = maps(importer.pid()).len() - before;
    assert!(grown <= 2 * (pieces << 20).div_ceil(BLOCK) + 8, "{grown} mappings more");
    importer.exit();
    exporter.exit();
}

#[test]
fn windows_end_with_their_segment() {
    let stage = Stage::new("windows_end_with_their_segment", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    exporter.anon_at(ARENA, 8 * PAGE);
    for used in [false, true] {
        exporter.fill(ARENA, 8, 1);
        let segid = exporter.make(ARENA, 8 * PAGE);
        let other = exporter.make(ARENA, 8 * PAGE);
        let (apid, otherwise) = (importer.get(segid), importer.get(other));
        let (here, there) = (importer.attach(apid, 0, 8 * PAGE), importer.attach(otherwise, 0, 8 * PAGE));
        importer.check(here, 8, 1);
        importer.check(there, 8, 1);
        if !used {
            importer.detach(here);
        }
        assert_eq!(exporter.remove(segid), Ok(0));
        // At once, not when the importer has heard of it.
        assert_eq!(importer.try_attach(apid, 0, PAGE), Err(libc::ENOENT));
        importer.check(there, 8, 1);
        let again = importer.attach(otherwise, PAGE, PAGE);
        importer.check(again, 1, 2);
        if used {
            assert!(importer.load(here).unwrap_err().is_hole_at(here));
            importer.detach(here);
        }
        importer.wait_until("the window goes", || windows(&importer) == 1);
        assert_eq!(importer.release(apid), Ok(0));
        assert_eq!(importer.release(otherwise), Ok(0));
        assert_eq!(exporter.remove(other), Ok(0));
    }
    importer.exit();
    exporter.exit();
}

#[test]
fn windows_end_with_their_exporter() {
    for how in ["killed", "exits", "becomes another program"] {
        let stage = Stage::new("windows_end_with_their_exporter", 60);
        let (mut exporter, mut importer) = (stage.actor(), stage.actor());
        exporter.anon_at(ARENA, 8 * PAGE);
        exporter.fill(ARENA, 8, 1);
        let segid = exporter.make_all();
        let apid = importer.get(segid);
        let here = importer.attach(apid, ARENA, 8 * PAGE);
        importer.check(here, 8, 1);
        importer.detach(here);
        assert_eq!(windows(&importer), 1);
        match how {
            "killed" => exporter.kill(),
            "exits" => exporter.exit(),
            _ => {
                exporter.tell("exec");
                exporter.forget();
            }
        }
        importer.wait_until("the window goes", || windows(&importer) == 0);
        assert_eq!(importer.try_attach(apid, ARENA, PAGE), Err(libc::ENOENT));
        assert_eq!(importer.release(apid), Ok(0));
        importer.exit();
    }
}

#[test]
fn a_part_that_the_application_takes_is_its_own() {
    let stage = Stage::new("a_part_that_the_application_takes_is_its_own", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    exporter.anon_at(ARENA, 16 * PAGE);
    exporter.fill(ARENA, 16, 1);
    let file = exporter.memfd(4 * PAGE) as usize;
    let shared = (libc::MAP_SHARED | libc::MAP_FIXED) as usize;
    let rw = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    exporter.sys(libc::SYS_mmap, &[ARENA + 12 * PAGE, 4 * PAGE, rw, shared, file, 0]).unwrap();
    exporter.fill(ARENA + 12 * PAGE, 4, 13);
    let segid = exporter.make(ARENA, 16 * PAGE);
    let apid = importer.get(segid);
    // From the object, and from the file.
    for taken in [4, 13] {
        let one = importer.attach(apid, 0, 16 * PAGE);
        importer.check(one, 16, 1);
        let two = importer.attach(apid, 8 * PAGE, 2 * PAGE);
        importer.check(two, 2, 9);
        let place = one + taken * PAGE;
        // The attachment is not detached: its owner has put something else there.
        importer.anon_at(place, PAGE);
        importer.fill(place, 1, 99);
        // Attached again, it is whole.
        let again = importer.attach(apid, 0, 16 * PAGE);
        importer.check(again, 16, 1);
        importer.check(two, 2, 9);
        importer.detach(two);
        importer.check(one, 4, 1);
        importer.detach(one);
        importer.detach(again);
        importer.check(place, 1, 99);
        // Nor is it taken by what makes room, or ends all.
        exporter.anon_at(ARENA, 4 * PAGE);
        exporter.fill(ARENA, 4, 1);
        importer.check(place, 1, 99);
    }
    assert_eq!(importer.release(apid), Ok(0));
    assert_eq!(windows(&importer), 0);
    importer.exit();
    exporter.exit();
}

#[test]
fn an_attachment_that_the_application_moves_away() {
    let stage = Stage::new("an_attachment_that_the_application_moves_away", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    exporter.anon_at(ARENA, 8 * PAGE);
    exporter.fill(ARENA, 8, 1);
    let segid = exporter.make(ARENA, 8 * PAGE);
    let apid = importer.get(segid);
    let here = importer.attach(apid, 0, 8 * PAGE);
    importer.check(here, 8, 1);
    let place = importer.place(8 * PAGE);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let arguments = [here, 8 * PAGE, 8 * PAGE, flags as usize, place];
    assert_eq!(importer.sys(libc::SYS_mremap, &arguments), Ok(place));
    importer.check(place, 8, 1);
    let again = importer.attach(apid, 0, 8 * PAGE);
    importer.check(again, 8, 1);
    importer.detach(again);
    importer.munmap(place, 8 * PAGE);
    assert_eq!(importer.release(apid), Ok(0));
    importer.exit();
    exporter.exit();
}

#[test]
fn little_address_space_is_enough() {
    let stage = Stage::new("little_address_space_is_enough", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    exporter.anon_at(ARENA, 64 * PAGE);
    exporter.fill(ARENA, 64, 1);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let status = std::fs::read_to_string(format!("/proc/{}/status", importer.pid())).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let size = size.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10;
    let limits = importer.board();
    importer.store(limits, size + (64 << 20)).unwrap();
    importer.store(limits + 8, size + (64 << 20)).unwrap();
    importer.sys(libc::SYS_setrlimit, &[libc::RLIMIT_AS as usize, limits]).unwrap();
    for page in 0..64 {
        let here = importer.attach(apid, ARENA + page * PAGE, PAGE);
        importer.check(here, 1, 1 + page as u64);
    }
    // More than fits, one after the other.
    for number in 0..100 {
        let here = importer.attach(apid, ARENA + number * (2 << 20), 2 << 20);
        importer.detach(here);
    }
    importer.exit();
    exporter.exit();
}

#[test]
fn places_that_do_not_exist() {
    let stage = Stage::new("places_that_do_not_exist", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(16 * PAGE);
    exporter.fill(address, 16, 20);
    let segid = exporter.make_all();
    let apid = importer.get(segid);
    let here = importer.attach(apid, address, 16 * PAGE);
    importer.check(here, 16, 20);
    let before = rmap_tests::maps(importer.pid()).len();
    for _ in 0..20 {
        for place in [usize::MAX - PAGE + 1, 1 << 63, 0x7fff_ffff_f000] {
            assert_eq!(importer.try_attach_at(apid, address, 16 * PAGE, place), Err(libc::EINVAL));
        }
    }
    let now = rmap_tests::maps(importer.pid()).len();
    assert!(now < before + 10, "{before} mappings before, {now} after");
    importer.check(here, 16, 20);
}

#[test]
fn many_segments_that_are_removed_at_once() {
    let stage = Stage::new("many_segments_that_are_removed_at_once", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(PAGE);
    exporter.fill(address, 1, 20);
    // More than are read from one exporter before others are served, and not more than a socket holds.
    let segments: Vec<i64> = (0..200).map(|_| exporter.make(address, PAGE)).collect();
    let permits: Vec<i64> = segments.iter().map(|segid| importer.get(*segid)).collect();
    let here = importer.attach(permits[199], 0, PAGE);
    importer.check(here, 1, 20);
    importer.freeze();
    for segid in segments {
        assert_eq!(exporter.remove(segid), Ok(0));
    }
    // The very first that it does is to attach what is gone.
    importer.tell(&format!("xpmem attach {} 0x0 {PAGE:#x} 0x0", permits[199]));
    importer.thaw();
    let Reply::Ok(words) = importer.answer() else { panic!("no answer") };
    assert_eq!(words, format!("-1 {}", libc::ENOENT));
}
