#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Makes the tables of docs/profile.md of what profile.sh recorded.

    profile.py FOLDER DOCUMENT
"""

import re
import statistics
import sys
from collections import Counter, defaultdict
from pathlib import Path

from report import CONSUMERS, placement_boundary, replace_block, size_text, value_text

BEGIN = "<!-- tables: written by mpi-tests/profile.sh -->"
END = "<!-- end of tables -->"
SAMPLES_A_SECOND = 9973  # As profile.sh asks for.
HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


def call_names():
    text = HEADER.read_text() if HEADER.exists() else ""
    return {int(number): name for name, number in re.findall(r"#define __NR_(\w+) (\d+)", text)}


def answers(path):
    """One dictionary for each round of commands: the lines of both ranks."""
    rows = [line.split() for line in path.read_text().splitlines()]
    return [(a[1:], b[1:]) for a, b in zip(rows[::2], rows[1::2])]


def times(rounds, accept):
    """Microseconds for each message of the kinds that were measured between two rallies that are accepted."""
    found, last, pending = defaultdict(list), None, []
    for zero, one in rounds:
        if zero[0] == "watched":
            last, pending = None, []
        elif zero[0] == "rally":
            if last is not None and accept(last) and accept(float(zero[1])):
                for what, value in pending:
                    found[what].append(value)
            last, pending = float(zero[1]), []
        elif zero[0] in ("steady", "floor", "copy", "first") and int(zero[1]) > 0:
            pending.append((zero[0], (float(zero[2]) + float(one[2])) / 2))
    return {what: statistics.median(values) for what, values in found.items()}


class Counts:
    """System calls and page faults by who made them."""

    def __init__(self, path, threads, names):
        self.calls = {who: Counter() for who in ("application", "service thread", "sibling")}
        self.faults = Counter()
        for line in path.read_text().splitlines():
            fields = line.split()
            pid, thread = fields[0].split("/")
            if pid not in threads:
                who = "sibling"
            else:
                who = "service thread" if thread in threads[pid] else "application"
            if "page-faults" in fields[1]:
                self.faults[who] += 1
            else:
                number = int(fields[3])
                self.calls[who][names.get(number, f"call {number}")] += 1


def service_threads(path):
    """Of each process, the threads that block all signals that can be blocked."""
    threads = defaultdict(set)
    for line in path.read_text().splitlines():
        pid, thread, blocked = line.split()
        threads[pid]
        # glibc's two own signals, SIGKILL and SIGSTOP may be left out.
        if int(blocked, 16) | 0x180040100 == 0xFFFFFFFFFFFFFFFF:
            threads[pid].add(thread)
    return threads


def component(line):
    match = re.search(r"\(([^()]*)\)\s*$", line)
    name = match.group(1) if match else "?"
    if "kernel" in name:
        return "kernel"
    name = name.rsplit("/", 1)[-1].split(".so")[0]
    if name == "libc":
        return "memcpy"
    if name == "libxpmem":
        return "this library"
    return "the runtime"


def samples(path, messages):
    """Microseconds of processor time for each message, both ranks together, by where they were sampled."""
    where = Counter(component(line) for line in path.read_text().splitlines())
    return {what: n * 1e6 / SAMPLES_A_SECOND / messages for what, n in where.items()}


def per_message(count, base, messages):
    return max(count - base, 0) / messages


def count_text(value):
    return "0" if value < 0.005 else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, document = Path(sys.argv[1]), Path(sys.argv[2])
    names = call_names()
    jobs = [(c, s) for c in CONSUMERS for s in (65536, 1048576) if (folder / f"{c}.{s}.proof").exists()]
    if not jobs:
        sys.exit(f"nothing in {folder}")
    rounds = {job: answers(folder / f"{job[0]}.{job[1]}.answers") for job in jobs}
    rallies = [float(zero[1]) for r in rounds.values() for zero, _ in r if zero[0] == "rally"]
    boundary = placement_boundary(rallies)
    # Separate cores, if all jobs have times there.
    placements = {"": lambda t: True}
    if boundary is not None:
        placements = {"two separate cores": lambda t: t >= boundary, "two hyperthreads of one core": lambda t: t < boundary}
    for placement, accept in placements.items():
        found = {job: times(rounds[job], accept) for job in jobs}
        if all({"steady", "floor", "copy", "first"} <= set(t) for t in found.values()):
            break
    else:
        sys.exit("not all times were measured on like cores; run it again, or with more RMAP_PROFILE_ROUNDS")
    hop = statistics.median(t for t in rallies if accept(t)) / 2000

    time_rows, count_rows, call_rows = [], [], []
    for job in jobs:
        name = f"{CONSUMERS[job[0]]}, {size_text(job[1])}"
        path = lambda what: folder / f"{job[0]}.{job[1]}.{what}"  # noqa: E731
        t = found[job]
        sampled = [zero for zero, _ in rounds[job] if zero[0] == "steady"][-1]
        spent = samples(path("samples"), 2 * int(sampled[1]))
        time_rows.append(
            f"| {name} | {value_text(t['steady'])} | {value_text(t['floor'])} | {value_text(t['copy'])} | {value_text(hop)} | "
            f"{value_text(max(t['steady'] - t['floor'], 0))} | {value_text(spent.get('memcpy', 0))} | "
            f"{value_text(spent.get('this library', 0))} | {value_text(spent.get('kernel', 0))} |"
        )
        threads = service_threads(path("threads"))
        none = Counts(path("none"), threads, names)
        for what, word in (("steady", "steady"), ("first", "first touch")):
            command = next(zero for zero, _ in reversed(rounds[job]) if zero[0] == what)
            if what == "steady":
                # The one that was counted, not the one that was sampled.
                command = [zero for zero, _ in rounds[job] if zero[0] == what and int(zero[1]) > 0][-2]
            messages = 2 * int(command[1])
            counts = Counts(path(what), threads, names)
            cells, faults = [], 0
            for who in ("application", "service thread", "sibling"):
                calls = per_message(sum(counts.calls[who].values()), sum(none.calls[who].values()), messages)
                faults += per_message(counts.faults[who], none.faults[who], messages)
                cells.append(count_text(calls))
            told = per_message(
                counts.calls["service thread"]["sendmsg"] + counts.calls["service thread"]["sendto"],
                none.calls["service thread"]["sendmsg"] + none.calls["service thread"]["sendto"],
                messages,
            )
            count_rows.append(f"| {name} | {word} | {value_text(t[what])} | {' | '.join(cells)} | {count_text(faults)} | {count_text(told)} |")
            for who in ("application", "service thread", "sibling"):
                rates = {call: per_message(n, none.calls[who][call], messages) for call, n in counts.calls[who].most_common()}
                listed = [f"{call} {count_text(rate)}" for call, rate in rates.items() if rate >= (0.005 if what == "steady" else 0.2)]
                if listed and job[1] == 1048576:
                    call_rows.append(f"| {CONSUMERS[job[0]]} | {word} | {who} | {', '.join(listed)} |")

    lines = [
        f"Microseconds for each message, one way{', on ' + placement if placement else ''}:",
        "",
        "| | MPI | floor | memcpy alone | cache line | MPI less floor | sampled in memcpy | in this library | in the kernel |",
        "|---|---|---|---|---|---|---|---|---|",
        *time_rows,
        "",
        "System calls and page faults for each message, in both processes together:",
        "",
        "| | | µs | calls of application threads | of service threads | of siblings | page faults | messages of this library |",
        "|---|---|---|---|---|---|---|---|",
        *count_rows,
        "",
        "The system calls of the 1 MiB messages; what does not appear makes none:",
        "",
        "| | | by | calls for each message |",
        "|---|---|---|---|",
        *call_rows,
    ]
    replace_block(document, BEGIN, END, lines)
    print("\n".join(lines))


main()
