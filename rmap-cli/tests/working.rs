//! `rmap top`, `rmap doctor` and `rmap bench`, the real program, with processes that share memory.

use rmap_core::report::{Listener, News, Report, VARIABLE};
use rmap_tests::{Setup, Stage};
use serde_json::Value;
use std::process::Output;

mod program;
use program::{json, rmap, text};

const PAGES: usize = 64;

/// A job of two processes that share memory.
fn job() -> Vec<String> {
    let program = rmap(&[]).get_program().to_string_lossy().into_owned();
    [&program, "bench", "--json", "--seconds", "0.2"].map(str::to_owned).to_vec()
}

fn doctor(options: &[&str], job: &[&str]) -> Output {
    let words: Vec<&str> = ["doctor"].iter().chain(options).chain(&["--"]).chain(job).copied().collect();
    rmap(&words).output().unwrap()
}

#[test]
fn top_shows_both_sides_once() {
    let stage = Stage::new("top_shows_both_sides_once", 60);
    let (exporter, importer, _) = stage.pair(PAGES);
    let pids = [exporter.pid().to_string(), importer.pid().to_string()];
    let output = rmap(&["top", "--once", &pids[0], &pids[1]]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let lines = text(&output);
    assert_eq!(lines.lines().count(), 3, "{lines}");
    for pid in &pids {
        let line = lines.lines().find(|line| line.trim_start().starts_with(pid)).expect("a line for each");
        assert!(line.contains("rmap-test-actor"), "{line}");
    }
    assert!(lines.contains("256.0 KiB"), "{lines}");
    let output = rmap(&["top", "-n", "3", "-d", "0.05", &pids[0]]).output().unwrap();
    assert_eq!(text(&output).matches("rmap-test-actor").count(), 3);
}

#[test]
fn bench_measures_all_of_it() {
    let output = rmap(&["bench", "--json", "--seconds", "0.5"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let found = json(&output);
    for name in ["attach_and_detach_ns", "first_touch_gb_per_s", "longest_stall_ns"] {
        assert!(found[name].as_f64().unwrap() > 0.0, "{found}");
    }
    let copies = found["copies_gb_per_s"].as_array().unwrap();
    assert_eq!(copies.len(), 4);
    for copy in copies {
        for way in ["memcpy", "attachment", "process_vm_readv"] {
            assert!(copy[way].as_f64().unwrap() > 0.0, "{copy}");
        }
    }
    let output = rmap(&["bench", "--seconds", "0.2"]).output().unwrap();
    assert_eq!(text(&output).matches('|').count(), 0);
    assert!(text(&output).contains("####"), "{output:?}");
}

#[test]
fn doctor_sees_a_job_that_shares_memory() {
    let job = job();
    let job: Vec<&str> = job.iter().map(String::as_str).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let output = doctor(&["--json", "--output", path], &job);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(json(&output)["attach_and_detach_ns"].is_number(), "the job's output is its own");
    let report: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!((&report["used"], &report["status"], &report["called"]), (&true.into(), &0.into(), &2.into()));
    let processes = report["processes"].as_array().unwrap();
    assert_eq!(processes.len(), 2);
    let importer = processes.iter().find(|process| process["counters"]["permits_got"] == 1).unwrap();
    let exporter = processes.iter().find(|process| process["counters"]["permits_given"] == 1).unwrap();
    assert_eq!(importer["exporters"][0]["pid"], exporter["pid"]);
    assert_eq!(exporter["importers"][0]["pid"], importer["pid"]);
    assert!(importer["counters"]["attach_hits"].as_u64().unwrap() > 0);
    assert!(exporter["counters"]["stalls"].as_u64().unwrap() > 0);
    let output = doctor(&[], &job);
    let report = String::from_utf8(output.stderr).unwrap();
    assert!(report.contains("was USED: 2 processes attached"), "{report}");
}

#[test]
fn doctor_sees_a_job_that_does_not() {
    let output = doctor(&[], &["true"]);
    assert_eq!(output.status.code(), Some(3));
    let report = String::from_utf8(output.stderr).unwrap();
    assert!(report.contains("NOT USED: no process of the job has called it"), "{report}");
    assert!(report.contains("libxpmem.so.0"), "{report}");
}

#[test]
fn doctor_gives_the_status_of_the_job() {
    assert_eq!(doctor(&[], &["sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(doctor(&[], &["sh", "-c", "kill -TERM $$"]).status.code(), Some(128 + 15));
    let output = doctor(&[], &["/nonexistent/job"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("/nonexistent/job"));
}

#[test]
fn doctor_says_why_a_job_cannot_be_served() {
    let job = job();
    let mut words: Vec<&str> = vec!["env", "RMAP_ENGINE=clone", "RMAP_DISABLE=ptrace"];
    words.extend(job.iter().map(String::as_str));
    let output = doctor(&[], &words);
    assert_eq!(output.status.code(), Some(1), "the job's own");
    let report = String::from_utf8(output.stderr).unwrap();
    assert!(report.contains("called the library and cannot be served"), "{report}");
    assert!(report.contains("ptrace"), "{report}");
}

/// The C library reports as well, a killed process is not lost, and a child of a fork is a process of its own.
#[test]
fn processes_report_themselves() {
    let stage = Stage::new("processes_report_themselves", 60);
    let listener = Listener::new().unwrap();
    let setup = Setup::with_env(VARIABLE, listener.name());
    let mut exporter = stage.actor_with(&setup);
    // They have said so when their calls return.
    let hear = |count: usize| -> Vec<Report> {
        let one = || {
            let reporter = listener.accept().unwrap().expect("somebody reports");
            reporter.hear().expect("it has said something").expect("a report")
        };
        (0..count).map(|_| one()).collect()
    };
    exporter.make_all();
    let heard = hear(2);
    assert!(heard.iter().all(|report| report.pid == exporter.pid().cast_unsigned()));
    assert!(matches!(&heard[0].news, News::Served(engine) if engine == "clone"), "{heard:?}");
    let News::Started(counting) = &heard[1].news else { panic!("{heard:?}") };
    assert_eq!(counting.read(10).unwrap().segments.len(), 1);

    let mut child = exporter.fork();
    child.make_all();
    let heard = hear(1);
    let News::Started(of_child) = &heard[0].news else { panic!("{heard:?}") };
    assert_eq!(of_child.read(10).unwrap().pid, child.pid().cast_unsigned());
    assert_eq!(of_child.read(10).unwrap().counters.segments_made, 1);
    child.exit();
    exporter.kill();
    let sheet = counting.read(10).unwrap();
    assert_eq!((sheet.counters.segments_made, sheet.counters.forks), (1, 1));
}

/// A listener that does not listen holds nobody up.
#[test]
fn a_report_to_nobody_is_no_error() {
    let stage = Stage::new("a_report_to_nobody_is_no_error", 60);
    for name in ["rmap-report-nobody", "/nonexistent/socket", "", &"x".repeat(500)] {
        let mut actor = stage.actor_with(&Setup::with_env(VARIABLE, name));
        actor.make_all();
        actor.exit();
    }
}
