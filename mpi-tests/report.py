# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What plot.py and profile.py have in common."""

import math
import statistics

CONSUMERS = {
    "ompi-vader": "Open MPI, vader",
    "ompi-ucx": "Open MPI over UCX",
    "mpich-ucx": "MPICH over UCX",
    "impi": "Intel MPI",
}


def placement_boundary(times):
    """If round trips of a cache line (nanoseconds) are of two kinds, a time between the kinds; None if all are alike."""
    times = sorted(math.log(max(t, 1)) for t in times)
    times = times[len(times) // 50 : len(times) - len(times) // 50]
    low, high = times[0], times[-1]
    for _ in range(50):
        middle = (low + high) / 2
        below = [t for t in times if t < middle]
        above = [t for t in times if t >= middle]
        if not below or not above:
            return None
        low, high = statistics.median(below), statistics.median(above)
    enough = min(len(below), len(above)) >= len(times) / 50
    return math.exp((low + high) / 2) if enough and high - low > math.log(2.5) else None


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
