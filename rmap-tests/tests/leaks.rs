//! What a process has used, it gives back.

use rmap_tests::{Actor, PAGE, Stage};

fn descriptors(actor: &Actor) -> usize {
    rmap_tests::library_descriptors(actor.pid()).len()
}

/// Segments of memory that comes and goes, with permits on them; `touch` has it looked at.
fn segments_come_and_go(name: &str, touch: bool) {
    let stage = Stage::new(name, 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(16 * PAGE);
    // The connection stays.
    let lasting = exporter.make(address, PAGE);
    importer.get(lasting);
    let before = descriptors(&exporter);
    for pages in 2..=16 {
        exporter.anon_at(address, 16 * PAGE);
        exporter.fill(address, 16, 20);
        let segid = exporter.make(address, pages * PAGE);
        let apid = importer.get(segid);
        let here = importer.attach(apid, 0, pages * PAGE);
        if touch {
            importer.check(here, pages, 20);
        }
        importer.detach(here);
        assert_eq!(importer.release(apid), Ok(0));
        exporter.munmap(address, 16 * PAGE);
        assert_eq!(exporter.remove(segid), Ok(0));
    }
    let after = descriptors(&exporter);
    assert!(after <= before + 4, "{before} descriptors before, {after} after");
}

#[test]
fn segments_that_nobody_touches() {
    segments_come_and_go("segments_that_nobody_touches", false);
}

#[test]
fn segments_that_somebody_touches() {
    segments_come_and_go("segments_that_somebody_touches", true);
}

#[test]
fn an_importer_forgets_objects() {
    let stage = Stage::new("an_importer_forgets_objects", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(16 * PAGE);
    // The connection stays.
    let lasting = exporter.make(address, PAGE);
    importer.get(lasting);
    let before = descriptors(&importer);
    for pages in 2..=16 {
        let segid = exporter.make(address, pages * PAGE);
        let apid = importer.get(segid);
        assert_eq!(importer.release(apid), Ok(0));
        assert_eq!(exporter.remove(segid), Ok(0));
    }
    importer.wait_until("the importer forgets them", || descriptors(&importer) <= before + 4);
}

#[test]
fn segments_of_memory_that_stays() {
    let stage = Stage::new("segments_of_memory_that_stays", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    let address = exporter.anon(64 * PAGE);
    exporter.fill(address, 64, 20);
    let lasting = exporter.make(address, PAGE);
    importer.get(lasting);
    let before = descriptors(&exporter);
    for page in 1..64 {
        let segid = exporter.make(address + page * PAGE, PAGE);
        let apid = importer.get(segid);
        let here = importer.attach(apid, 0, PAGE);
        importer.check(here, 1, 20 + page as u64);
        assert_eq!(importer.release(apid), Ok(0));
        assert_eq!(exporter.remove(segid), Ok(0));
    }
    exporter.wait_until("the exporter gives them back", || descriptors(&exporter) <= before + 60);
    // The memory is as it was.
    exporter.check(address, 64, 20);
}
