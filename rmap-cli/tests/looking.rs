//! `rmap info`, `rmap ls` and `rmap attach`, the real program, beside other processes.

use rmap_tests::{Actor, PAGE, Setup, Stage, is_root, skip};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

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
fn ls_finds_processes_of_another_network_by_their_directory() {
    let name = "ls_finds_processes_of_another_network_by_their_directory";
    let stage = Stage::new(name, 60);
    let directory = std::env::temp_dir().join(format!("rmap-ls-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let place = directory.to_str().unwrap();
    let exporter = stage.contained(&Setup::with_env("RMAP_RENDEZVOUS", place), libc::CLONE_NEWNET);
    let seen = exporter.map(|mut exporter| {
        let segid = exporter.make_all();
        let pid = exporter.pid().to_string();
        let ls = |place: &str| {
            json(&rmap(&["ls", "--json", &pid]).env("RMAP_RENDEZVOUS", place).output().unwrap())
        };
        (segid, ls(place), ls(""))
    });
    std::fs::remove_dir_all(&directory).unwrap();
    match seen {
        Err(why) => skip(name, &why),
        Ok((segid, with, without)) => {
            assert_eq!(with[0]["segments"][0]["id"], segid, "{with}");
            assert_eq!(without.as_array().map(Vec::len), Some(0), "{without}");
        }
    }
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
fn shells_can_complete_its_words() {
    let script = |shell| text(&rmap(&["completions", shell]).output().unwrap());
    let tried =
        "source /dev/stdin; COMP_WORDS=(rmap do) COMP_CWORD=1; _rmap rmap do rmap; echo \"${COMPREPLY[*]}\"";
    let mut bash = Command::new("bash")
        .args(["-c", tried])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    bash.stdin.take().unwrap().write_all(script("bash").as_bytes()).unwrap();
    assert_eq!(text(&bash.wait_with_output().unwrap()), "doctor\n");
    for (shell, head) in [("zsh", "#compdef rmap"), ("fish", "complete -c rmap")] {
        let script = script(shell);
        assert!(script.lines().any(|line| line.starts_with(head)) && script.contains("doctor"), "{script}");
    }
    assert_eq!(rmap(&["completions", "csh"]).output().unwrap().status.code(), Some(2));
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

fn attach(actor: &Actor, address: usize, len: usize, more: &[&str]) -> Command {
    let words = [actor.pid().to_string(), format!("{address:#x}"), len.to_string()];
    let mut command = rmap(&["attach", &words[0], &words[1], &words[2]]);
    command.args(more);
    command
}

fn is_private(actor: &Actor, address: usize) -> bool {
    let maps = rmap_tests::maps(actor.pid());
    maps.iter().any(|map| map.range.contains(&address) && map.flags.ends_with('p'))
}

#[test]
fn attach_shows_bytes_and_holes() {
    let stage = Stage::new("attach_shows_bytes_and_holes", 60);
    let mut actor = stage.actor();
    let address = actor.anon(2 * PAGE);
    actor.store(address, 0x4141_4242_4343_4444).unwrap();
    actor.munmap(address + PAGE, PAGE);
    let output = attach(&actor, address, 32, &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let line =
        format!("{address:016x}  44 44 43 43 42 42 41 41  00 00 00 00 00 00 00 00  |DDCCBBAA........|\n");
    assert!(text(&output).starts_with(&line), "{output:?}");
    let output = attach(&actor, address + PAGE - 16, 32, &[]).output().unwrap();
    assert!(text(&output).lines().nth(1).unwrap().contains(" -- -- "), "{output:?}");
    let raw = attach(&actor, address, 2 * PAGE, &["--raw"]).output().unwrap();
    assert_eq!((raw.stdout.len(), &raw.stdout[..8]), (2 * PAGE, b"DDCCBBAA".as_slice()));
    assert!(is_private(&actor, address));
    actor.exit();
}

#[test]
fn attach_stores() {
    let stage = Stage::new("attach_stores", 60);
    let mut actor = stage.actor();
    let address = actor.anon(PAGE);
    actor.store(address, 1).unwrap();
    let output = attach(&actor, address, 8, &["--store", "ff00ff0000000000"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(actor.load(address), Ok(0xff_00ff));
    let output = attach(&actor, address, 8, &["--store", "f"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    actor.exit();
}

#[test]
fn attach_watches_until_it_is_interrupted() {
    let stage = Stage::new("attach_watches_until_it_is_interrupted", 60);
    let mut actor = stage.actor();
    let address = actor.anon(PAGE);
    actor.store(address, 1).unwrap();
    let mut child = attach(&actor, address, 16, &["--watch", "-d", "0.01"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    for value in 1..5 {
        actor.store(address, value).unwrap();
        // The first value may have been seen before.
        let wanted = format!("  {value:02x} 00 ");
        assert!(lines.any(|line| line.contains(&wanted)));
    }
    // SAFETY: our own child, which has not been waited for.
    unsafe { libc::kill(child.id().cast_signed(), libc::SIGINT) };
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(is_private(&actor, address));
    assert_eq!(actor.load(address), Ok(4));
    actor.exit();
}

#[test]
fn attach_says_why_not() {
    let _stage = Stage::new("attach_says_why_not", 60);
    let output = rmap(&["attach", "2147483647", "0x1000", "1K"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "rmap: there is no process 2147483647\n");
}
