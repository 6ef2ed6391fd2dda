# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What plot.py and profile.py have in common.

    report.py FOLDER

prints the jobs whose results have a gap, for measure.sh: a size for which there is no batch in the placement of cores that is used.
"""

import math
import statistics
import sys
from pathlib import Path

CONSUMERS = {
    "ompi-vader": "Open MPI, vader",
    "ompi-ucx": "Open MPI over UCX",
    "mpich-ucx": "MPICH over UCX",
    "impi": "Intel MPI",
}

# Nanoseconds: a round trip of a cache line that took longer was interrupted.
INTERRUPTED = 1500


def placement_boundary(times):
    """If round trips of a cache line (nanoseconds) are of two kinds, a time between the kinds; None if all are alike."""
    times = sorted(math.log(max(t, 1)) for t in times if t < INTERRUPTED)
    if not times:
        return None
    low, high = times[0], times[-1]
    for _ in range(50):
        middle = (low + high) / 2
        below = [t for t in times if t < middle]
        above = [t for t in times if t >= middle]
        if not below or not above:
            return None
        low, high = statistics.median(below), statistics.median(above)
    # A kind is narrow; a few that were disturbed are not.
    def is_kind(part):
        return len(part) >= len(times) / 200 and part[3 * len(part) // 4] - part[len(part) // 4] < math.log(1.6)

    return math.exp((low + high) / 2) if is_kind(below) and is_kind(above) and high - low > math.log(2.5) else None



def size_text(size):
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


def value_text(value):
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def replace_block(path, begin, end, lines):
    """Puts lines between two marks in a file, if it is there and has them."""
    if not path.exists():
        return
    text = path.read_text()
    if begin in text and end in text:
        head, rest = text.split(begin, 1)
        tail = rest.split(end, 1)[1]
        path.write_text(head + begin + "\n" + "\n".join(lines) + "\n" + end + tail)


def read(folder):
    """All batches: dictionaries with what a result line has and which job it is from."""
    batches = []
    for path in sorted(folder.glob("*.job")):
        repeat, consumer, transport, kind, _ = path.name.split(".", 4)
        for line in path.read_text().splitlines():
            if not line.startswith("result "):
                continue
            _, measurement, ranks, size, value, slowest, before, after = line.split()
            batches.append(
                {
                    "consumer": consumer,
                    "transport": transport,
                    "kind": kind,
                    "repeat": int(repeat),
                    "measurement": measurement,
                    "ranks": int(ranks),
                    "size": int(size),
                    "value": float(value),
                    "slowest": None if slowest == "-" else float(slowest),
                    "before": float(before),
                    "after": float(after),
                }
            )
    return batches


def point(batch):
    return batch["measurement"], batch["consumer"], batch["transport"], batch["size"]


def choose(batches):
    """The batches to use, the boundary between placements of cores if there are two, and the name of the one that is used.

    Separate cores, because that is what ranks have on machines that were made for them, unless more points have batches on shared ones."""
    boundary = placement_boundary([b[k] for b in batches for k in ("before", "after")])
    if boundary is None:
        return batches, None, ""
    apart = [b for b in batches if min(b["before"], b["after"]) >= boundary]
    together = [b for b in batches if max(b["before"], b["after"]) < boundary]
    if len({point(b) for b in together}) > len({point(b) for b in apart}):
        return together, boundary, "two hyperthreads of one core"
    return apart, boundary, "two separate cores"


def main():
    batches = read(Path(sys.argv[1]))
    used, _, _ = choose(batches)
    there = {point(b) for b in used}
    for consumer, transport, kind in sorted({(b["consumer"], b["transport"], b["kind"]) for b in batches if point(b) not in there}):
        print(consumer, transport, kind)


if __name__ == "__main__":
    main()
