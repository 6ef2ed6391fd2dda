//! `rmap info` and `rmap ls`, the real program, beside processes that share memory.

use rmap_tests::{Actor, PAGE, Stage, is_root, skip};
use serde_json::Value;
use std::os::unix::process::CommandExt as _;

mod program;
use program::{json, rmap, text};

const PAGES: usize = 64;

#[test]
fn info_says_that_processes_are_served() {
    let output = rmap(&["info", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let info = json(&output);
    assert_eq!(info["served"], true);
    assert!(["clone", "mirror", "driver"].contains(&info["engine"].as_str().unwrap()));
    let features = info["features"].as_array().unwrap();
    assert_eq!(features.len(), rmap_core::features::all().len());
    let required = |feature: &&Value| feature["required"] == true;
    assert!(features.iter().filter(required).all(|feature| feature["available"] == true));
    assert_eq!(info["engines"].as_array().unwrap().len(), 3);
    let output = rmap(&["info"]).output().unwrap();
    assert!(text(&output).contains("processes are served"), "{output:?}");
}

#[test]
fn info_says_what_is_missing_and_how_to_get_it() {
    let output =
        rmap(&["info"]).env("RMAP_ENGINE", "clone").env("RMAP_DISABLE", "ptrace,collapse").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = text(&output);
    for part in ["NOT served", "MISSING", "without collapse", "without ptrace", "ptrace_scope 0 or 1"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    let output = rmap(&["info", "--json"]).env("RMAP_DISABLE", "1").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(json(&output)["served"], false);
}

#[test]
fn ls_shows_segments_importers_and_bytes() {
    let stage = Stage::new("ls_shows_segments_importers_and_bytes", 60);
    let (exporter, importer, segid) = stage.pair(PAGES);
    let pids = [exporter.pid().to_string(), importer.pid().to_string()];
    let output = rmap(&["ls", "--json", &pids[0], &pids[1]]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let all = json(&output);
    let of = |actor: &Actor| {
        let same = |process: &&Value| process["pid"] == actor.pid();
        all.as_array().unwrap().iter().find(same).expect("the process").clone()
    };
    let seen = of(&exporter);
    assert_eq!(seen["segments"][0]["id"], segid);
    assert_eq!(seen["segments"][0]["permits"], 1);
    assert_eq!(seen["importers"][0]["pid"], importer.pid());
    assert_eq!(seen["counters"]["adopted_bytes"], PAGES * PAGE);
    assert_eq!(seen["counters"]["shown_bytes"], PAGES * PAGE);
    let seen = of(&importer);
    assert_eq!(seen["exporters"][0]["pid"], exporter.pid());
    assert_eq!(seen["exporters"][0]["bytes"], PAGES * PAGE);
    assert!(seen["counters"]["window_bytes"].as_u64().unwrap() >= (PAGES * PAGE) as u64);

    let output = rmap(&["ls", &pids[0]]).output().unwrap();
    let text = text(&output);
    let importer = format!("process {}", importer.pid());
    for part in [
        "rmap-test-actor",
        "1 segment, 1 importer",
        "attached never",
        &format!("{segid:#x}"),
        "256.0 KiB shown",
        &importer,
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

#[test]
fn ls_without_such_a_process_fails() {
    let output = rmap(&["ls", &std::process::id().to_string()]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).is_empty());
}

#[test]
fn other_users_see_that_there_is_a_process_and_nothing_of_it() {
    if !is_root() {
        return skip("other_users_see_nothing", "only root can have other users");
    }
    let stage = Stage::new("other_users_see_nothing", 60);
    let (exporter, _importer, segid) = stage.pair(PAGES);
    let output = rmap(&["ls", &exporter.pid().to_string()]).uid(65532).gid(65532).output().unwrap();
    let text = text(&output);
    assert!(text.contains("another user's"), "{text}");
    assert!(!text.contains(&format!("{segid:#x}")) && !text.contains("importer"), "{text}");
}
