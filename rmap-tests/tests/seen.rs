//! What others see of a process, whichever engine serves it: its counters, its segments, and who shares memory with whom.

use rmap_core::counters::Sheet;
use rmap_core::report::{Listener, News, VARIABLE};
use rmap_core::survey::{Process, processes};
use rmap_tests::{Actor, Engine, PAGE, Setup, Stage, is_root, skip};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);
const PAGES: usize = 16;

fn all(pids: &[u32]) -> Vec<Process> {
    processes(|id| pids.contains(&id), PATIENCE, 100).unwrap()
}

fn sheet(actor: &Actor) -> Sheet {
    let mut found = all(&[actor.pid().cast_unsigned()]);
    assert_eq!(found.len(), 1, "{found:?}");
    let process = found.remove(0);
    process.sheet.unwrap_or_else(|silence| panic!("{silence:?}"))
}

#[test]
fn segments_exporters_importers_and_bytes() {
    let stage = Stage::new("segments_exporters_importers_and_bytes", 60);
    let mut exporter = stage.actor();
    let mut importers = stage.actors(2);
    let address = exporter.anon(PAGES * PAGE);
    exporter.fill(address, PAGES, 7);
    let segid = exporter.make(address, PAGES * PAGE);
    let other = exporter.try_make(address, PAGE, 0o444).unwrap();
    let mut held = Vec::new();
    for importer in &mut importers {
        let apid = importer.get(segid);
        let here = importer.attach(apid, 0, PAGES * PAGE);
        importer.check(here, PAGES, 7);
        held.push((apid, here));
    }
    let own = exporter.pid().cast_unsigned();

    let seen = sheet(&exporter);
    assert_eq!((seen.pid, seen.name.as_str()), (own, "rmap-test-actor"));
    let segments: Vec<_> =
        seen.segments.iter().map(|segment| (segment.id, segment.range.len(), segment.mode)).collect();
    assert_eq!(segments, [(segid, PAGES * PAGE, 0o600), (other, PAGE, 0o444)]);
    assert!(seen.segments.iter().all(|segment| segment.range.start() == address));
    let mut partners: Vec<_> =
        seen.importers.iter().map(|peer| (peer.pid, peer.connected, peer.permits)).collect();
    partners.sort_unstable();
    let mut expected: Vec<_> =
        importers.iter().map(|importer| (importer.pid().cast_unsigned(), true, 1)).collect();
    expected.sort_unstable();
    assert_eq!(partners, expected);
    let now = &seen.counters;
    assert_eq!((now.segments, now.segments_made, now.importers, now.permits_given_now), (2, 2, 2, 2));
    assert_eq!(now.object_bytes > 0, Engine::of_actors() == Engine::Clone, "adopted: {now:?}");

    for importer in &importers {
        let seen = sheet(importer);
        let [peer] = seen.exporters[..] else { panic!("{:?}", seen.exporters) };
        assert_eq!((peer.pid, peer.connected, peer.permits, peer.permits_ever), (own, true, 1, 1));
        let now = &seen.counters;
        assert_eq!((now.exporters, now.permits_held, now.windows), (1, 1, 1));
        assert!(now.window_bytes >= (PAGES * PAGE) as u64, "{now:?}");
        assert_eq!(now.attach_misses + now.attach_hits, 1);
    }

    for (importer, (apid, here)) in importers.iter_mut().zip(held) {
        importer.detach(here);
        importer.release(apid).unwrap();
        let now = sheet(importer).counters;
        assert_eq!((now.exporters, now.permits_held), (0, 0), "{now:?}");
        assert!(now.window_bytes == 0 || Engine::of_actors() == Engine::Clone, "{now:?}");
    }
    exporter.remove(segid).unwrap();
    let seen = sheet(&exporter);
    let left: Vec<_> = seen.segments.iter().map(|segment| segment.id).collect();
    assert_eq!(left, [other]);
    assert_eq!((seen.counters.segments, seen.counters.importers), (1, 0));
}

#[test]
fn what_is_released_takes_its_attachments() {
    let stage = Stage::new("what_is_released_takes_its_attachments", 60);
    let (mut exporter, mut importer) = (stage.actor(), stage.actor());
    if Engine::of_actors() == Engine::Clone {
        return skip("what_is_released_takes_its_attachments", "windows stay for the next");
    }
    let address = exporter.anon(PAGES * PAGE);
    let segid = exporter.make(address, PAGES * PAGE);
    let permits = [importer.get(segid), importer.get(segid)];
    for apid in permits {
        importer.attach(apid, 0, PAGES * PAGE);
        importer.attach(apid, PAGE, PAGE);
    }
    let bytes = |importer: &Actor| {
        let now = sheet(importer).counters;
        (now.windows, now.window_bytes / PAGE as u64, now.permits_held)
    };
    assert_eq!(bytes(&importer), (4, 34, 2));
    importer.release(permits[0]).unwrap();
    assert_eq!(bytes(&importer), (2, 17, 1));
    importer.release(permits[1]).unwrap();
    assert_eq!(bytes(&importer), (0, 0, 0));
}

#[test]
fn a_child_is_another_process() {
    let stage = Stage::new("a_child_is_another_process", 60);
    let mut parent = stage.actor();
    let segid = parent.make_all();
    let mut child = parent.fork();
    assert!(all(&[child.pid().cast_unsigned()]).is_empty(), "it has not used the library");
    let own = child.make_all();
    let ids =
        |actor: &Actor| -> Vec<i64> { sheet(actor).segments.iter().map(|segment| segment.id).collect() };
    assert_eq!(ids(&child), [own]);
    assert_eq!(ids(&parent), [segid]);
    child.exit();
}

#[test]
fn another_user_sees_nothing_of_it() {
    if !is_root() {
        return skip("another_user_sees_nothing_of_it", "only root can have other users");
    }
    let stage = Stage::new("another_user_sees_nothing_of_it", 60);
    let mut exporter = stage.actor_with(&Setup { user: Some((65533, 65533)), ..Setup::default() });
    exporter.make_all();
    let pid = exporter.pid().cast_unsigned();
    // Credentials are a thread's.
    let found = std::thread::spawn(move || {
        // SAFETY: takes numbers only.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65532, 65532, 65532) }, 0);
        all(&[pid])
    });
    let found = found.join().unwrap();
    assert!(found.iter().all(|process| process.sheet.is_err()), "{found:?}");
    // Root does.
    assert_eq!(sheet(&exporter).counters.segments, 1);
}

#[test]
fn a_process_reports_itself_and_outlives_itself() {
    let stage = Stage::new("a_process_reports_itself_and_outlives_itself", 60);
    let listener = Listener::new().unwrap();
    let mut exporter = stage.actor_with(&Setup::with_env(VARIABLE, listener.name()));
    exporter.make_all();
    let hear = || {
        let reporter = listener.accept().unwrap().expect("somebody reports");
        reporter.hear().expect("it has said something").expect("a report").news
    };
    // In one order or the other: the driver is opened to see whether it is there.
    let news = [hear(), hear()];
    assert!(news.iter().any(|news| matches!(news, News::Served(_))), "{news:?}");
    let counting = news.iter().find_map(|news| match news {
        News::Started(counting) => Some(counting),
        _ => None,
    });
    exporter.kill();
    let sheet = counting.expect("counters").read(10).unwrap();
    assert_eq!((sheet.counters.segments_made, sheet.segments.len()), (1, 1));
}
