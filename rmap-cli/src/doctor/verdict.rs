//! What the numbers of a job mean.

use super::Job;
use crate::text;
use rmap_core::counters::Sheet;

/// Whether any two processes have shared memory.
pub(super) fn shared(sheets: &[Sheet]) -> bool {
    sheets.iter().any(|sheet| sheet.counters.permits_got > 0)
}

/// Calls of a process that failed, by kind.
fn errors_by_kind(sheet: &Sheet) -> [(u64, &'static str); 6] {
    let now = &sheet.counters;
    [
        (now.errors_invalid, "a bad argument"),
        (now.errors_no_such_id, "no such segment or permit"),
        (now.errors_denied, "not allowed"),
        (now.errors_resources, "no memory, mappings or descriptors left"),
        (now.errors_timed_out, "no answer in time"),
        (now.errors_other, "another reason"),
    ]
}

/// Calls of a process that failed.
pub(super) fn errors(sheet: &Sheet) -> u64 {
    errors_by_kind(sheet).iter().map(|(number, _)| number).sum()
}

/// Lines for a person.
pub(super) fn of(job: &Job) -> Vec<String> {
    let called = job.said.served.len() + job.said.not_served.len();
    let mut lines = Vec::new();
    if let Some((pid, why)) = job.said.not_served.first() {
        let many = text::count(job.said.not_served.len() as u64, "process");
        lines.push(format!("{many} called the library and cannot be served. Process {pid}: {why}"));
    }
    if called == 0 && job.sheets.is_empty() {
        lines.push("the library was NOT USED: no process of the job has called it".into());
    } else if job.sheets.is_empty() && job.said.not_served.is_empty() {
        lines.push("the library was NOT USED: it was called, but no process has shared memory".into());
    } else if !job.sheets.is_empty() && !shared(&job.sheets) {
        lines.push(
            "the library was NOT USED: processes have offered memory, and none has asked another for it"
                .into(),
        );
    } else if shared(&job.sheets) {
        lines.push(used(job));
        lines.extend(findings(job));
    }
    lines
}

fn sum(job: &Job, of: impl Fn(&Sheet) -> u64) -> u64 {
    job.sheets.iter().map(of).sum()
}

fn used(job: &Job) -> String {
    let hits = sum(job, |sheet| sheet.counters.attach_hits);
    let all = hits + sum(job, |sheet| sheet.counters.attach_misses);
    let learned = sum(job, |sheet| sheet.exporters.iter().map(|peer| peer.bytes).sum());
    let processes = job.sheets.iter().filter(|sheet| !super::partners(sheet).is_empty()).count();
    let used = format!("the library was USED: {processes} processes attached {}", text::times(all));
    let by_kernel = job.said.served.iter().find(|engine| *engine != "clone");
    match by_kernel.filter(|_| learned == 0) {
        Some(engine) => format!("{used}; the kernel showed them the memory (engine {engine})"),
        None => format!(
            "{used}, {} of them to memory that was mapped already; {} were reached",
            percent(hits, all),
            text::bytes(learned)
        ),
    }
}

fn percent(part: u64, all: u64) -> String {
    if all == 0 { "none".into() } else { format!("{:.1} %", part as f64 * 100.0 / all as f64) }
}

/// What costs time, or went wrong.
fn findings(job: &Job) -> Vec<String> {
    let mut lines = Vec::new();
    let worst = job.sheets.iter().max_by_key(|sheet| sheet.counters.stall_ns);
    let took = job.took.as_nanos() as f64;
    if let Some(sheet) = worst.filter(|sheet| sheet.counters.stall_ns as f64 > took / 20.0) {
        lines.push(format!(
            "process {} stood still for {} of the time, while memory was adopted: reuse buffers, and keep freed memory (docs/tuning.md)",
            sheet.pid,
            percent(sheet.counters.stall_ns, job.took.as_nanos() as u64),
        ));
    }
    let hits = sum(job, |sheet| sheet.counters.attach_hits);
    let misses = sum(job, |sheet| sheet.counters.attach_misses);
    // Where the kernel serves, each attachment is a call.
    let by_library = job.said.served.iter().all(|engine| engine == "clone");
    if by_library && misses > 1000 && misses > hits / 10 {
        lines.push(format!(
            "{} attachments were not found mapped: buffers are far apart, RMAP_WINDOW_LIMIT is low, or ulimit -v is set",
            misses
        ));
    }
    let mut note = |number: u64, what: &str| {
        if number > 0 {
            lines.push(format!("{number} {what}"));
        }
    };
    note(
        sum(job, |sheet| sheet.counters.touches_hole),
        "first touches found nothing that can be shown and got SIGBUS: RMAP_LOG=debug says why (docs/troubleshooting.md)",
    );
    note(
        sum(job, |sheet| sheet.counters.stalls_failed),
        "times threads could not be stopped: is a debugger or strace attached? (docs/troubleshooting.md)",
    );
    let evicted = sum(job, |sheet| sheet.counters.evicted_bytes);
    let forks = sum(job, |sheet| if sheet.counters.evicted_bytes > 0 { sheet.counters.forks } else { 0 });
    if evicted > 64 << 20 && forks > 0 {
        lines.push(format!(
            "{} of adopted memory were copied because processes forked {}: posix_spawn needs no copy (docs/tuning.md)",
            text::bytes(evicted),
            text::times(forks),
        ));
    }
    let failed = sum(job, |sheet| sheet.counters.huge_pages_failed);
    if failed > 0 && sum(job, |sheet| sheet.counters.huge_pages) == 0 {
        lines.push("adopted memory got no huge pages: see the feature collapse in rmap info".into());
    }
    let mut failed = std::collections::BTreeMap::new();
    for (number, why) in job.sheets.iter().flat_map(errors_by_kind).filter(|(number, _)| *number > 0) {
        *failed.entry(why).or_insert(0) += number;
    }
    lines.extend(failed.iter().map(|(why, number)| {
        format!("{} failed: {why} (RMAP_LOG=debug says which)", text::count(*number, "call"))
    }));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Said;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;
    use std::time::Duration;

    fn job(served: &[&str], not_served: &[&str]) -> Job {
        let not_served = not_served.iter().map(|why| (7, (*why).to_owned())).collect();
        let served = served.iter().map(|engine| (*engine).to_owned()).collect();
        let said = Said { served, not_served, counting: Vec::new() };
        Job { status: ExitStatus::from_raw(0), took: Duration::from_secs(1), said, sheets: Vec::new() }
    }

    #[test]
    fn it_says_how_far_a_job_came() {
        let cases = [
            (job(&[], &[]), "no process of the job has called it"),
            (job(&["clone"], &[]), "it was called, but no process has shared memory"),
            (job(&["mirror"], &[]), "it was called, but no process has shared memory"),
            (
                job(&[], &["no kernel"]),
                "1 process called the library and cannot be served. Process 7: no kernel",
            ),
        ];
        for (job, text) in cases {
            let lines = of(&job);
            assert!(lines.iter().any(|line| line.contains(text)), "{lines:?}");
            assert_eq!(lines.len(), 1, "{lines:?}");
        }
    }
}
