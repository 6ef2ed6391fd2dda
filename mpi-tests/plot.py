#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Draws what measure.sh measured, tabulates it and computes crossover sizes.

    plot.py FOLDER DOCUMENTS

reads FOLDER/*.job and FOLDER/conditions; writes FOLDER/results.csv, DOCUMENTS/mpi-*.svg and DOCUMENTS/mpi-results.md, replaces the
block between the two crossover marks in DOCUMENTS/tuning.md if there is such a file, and prints that block.
Needs Debian's python3-matplotlib.
"""

import csv
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

from report import CONSUMERS, choose, read, replace_block, size_text, value_text  # noqa: E402

TRANSPORTS = {"xpmem": "rmap", "tuned": "rmap, tuned", "cma": "CMA", "copy": "copy"}
# Told apart without colours, too.
STYLES = {
    "xpmem": {"color": "#0060a8", "linestyle": "-", "marker": "o"},
    "tuned": {"color": "#3fa0dc", "linestyle": "-.", "marker": "D"},
    "cma": {"color": "#c85000", "linestyle": "--", "marker": "s"},
    "copy": {"color": "#555555", "linestyle": ":", "marker": "^"},
}
# name: title, unit, factor from the program's unit, whether more is better
MEASUREMENTS = {
    "latency": ("Latency", "µs", 1, False),
    "bandwidth": ("Bandwidth", "GB/s", 1e-3, True),
    "bibandwidth": ("Bandwidth, both directions together", "GB/s", 1e-3, True),
    "rate": ("Message rate", "million messages/s", 1, True),
    "bcast": ("Broadcast", "µs", 1, False),
    "allreduce": ("Allreduce (sum of floats)", "µs", 1, False),
    "alltoall": ("All-to-all", "µs", 1, False),
}
SHORT = {name: name for name in MEASUREMENTS} | {"bibandwidth": "both ways", "rate": "message rate"}
COLLECTIVE = ("bcast", "allreduce", "alltoall")
# Differences below this are noise.
TOLERANCE = 0.05
BEGIN = "<!-- crossover sizes: written by `make plots` -->"
END = "<!-- end of crossover sizes -->"


def summarise(batches):
    """point[measurement][consumer][transport][size] = (median, lower quartile, upper quartile, median of the slowest)"""
    groups = defaultdict(list)
    for b in batches:
        groups[b["measurement"], b["consumer"], b["transport"], b["size"]].append(b)
    points = {m: {c: {t: {} for t in TRANSPORTS} for c in CONSUMERS} for m in MEASUREMENTS}
    for (measurement, consumer, transport, size), group in groups.items():
        factor = MEASUREMENTS[measurement][2]
        values = sorted(b["value"] * factor for b in group)
        slowest = [b["slowest"] for b in group if b["slowest"] is not None]
        points[measurement][consumer][transport][size] = (
            statistics.median(values),
            values[(len(values) - 1) // 4],
            values[(3 * len(values) - 1) // 4 if len(values) > 1 else 0],
            statistics.median(slowest) if slowest else None,
        )
    return points


def draw(measurement, points, path, note, overview=False):
    """One picture with a panel for each consumer; an overview has large messages only and a linear axis."""
    title, unit, _, _ = MEASUREMENTS[measurement]
    consumers = [c for c in CONSUMERS if any(points[c][t] for t in TRANSPORTS)]
    rows = (len(consumers) + 1) // 2
    figure, axes = plt.subplots(rows, min(2, len(consumers)), figsize=(9, 3.1 * rows + 0.6), sharex=True, sharey=True, squeeze=False)
    for axis, consumer in zip(axes.flat, consumers):
        for transport, name in TRANSPORTS.items():
            sizes = sorted(s for s in points[consumer][transport] if not overview or s >= 4096)
            entries = [points[consumer][transport][s] for s in sizes]
            if not sizes:
                continue
            style = STYLES[transport]
            axis.plot(sizes, [e[0] for e in entries], label=name, linewidth=1.6, markersize=3.2, **style)
            axis.fill_between(sizes, [e[1] for e in entries], [e[2] for e in entries], color=style["color"], alpha=0.13, linewidth=0)
        axis.set_title(CONSUMERS[consumer], fontsize=10)
        axis.set_xscale("log", base=2)
        if not overview:
            axis.set_yscale("log")
        axis.grid(True, which="major", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    all_sizes = sorted({s for c in consumers for t in TRANSPORTS for s in points[c][t] if not overview or s >= 4096})
    ticks = [s for s in all_sizes if int(math.log2(s)) % (2 if overview else 4) == 0]
    for axis in axes.flat:
        axis.set_xticks(ticks)
        axis.set_xticklabels([size_text(s).replace(" ", "\u2009") for s in ticks], fontsize=8, rotation=30)
        axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda v, _: f"{v:g}"))
        axis.tick_params(axis="y", labelsize=8)
    if overview:
        axes.flat[0].set_ylim(bottom=0)
    for row in axes:
        row[0].set_ylabel(unit, fontsize=9)
    for axis in axes.flat[len(consumers) :]:
        axis.set_visible(False)
    legend = {}
    for axis in axes.flat:
        legend.update(zip(*reversed(axis.get_legend_handles_labels())))
    labels = [name for name in TRANSPORTS.values() if name in legend]
    handles = [legend[name] for name in labels]
    figure.suptitle(title + (" between two ranks" if overview else ""), fontsize=12, x=0.02, ha="left")
    figure.legend(handles, labels, loc="upper right", ncol=4, frameon=False, fontsize=10)
    figure.text(0.02, 0.005, note, fontsize=7, color="#555555")
    figure.tight_layout(rect=(0, 0.025, 1, 0.97))
    figure.savefig(path, metadata={"Date": None, "Creator": None}, facecolor="white")
    plt.close(figure)
    # Lines without blanks at the end, and no more digits than a pixel needs.
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def ratio(measurement, ours, other):
    """How much better ours is: 1 is the same."""
    return ours / other if MEASUREMENTS[measurement][3] else other / ours


def ranges(sizes, all_sizes):
    """Sizes as text, neighbours put together."""
    parts = []
    for size in sizes:
        at = all_sizes.index(size)
        if parts and parts[-1][1] == at - 1:
            parts[-1][1] = at
        else:
            parts.append([at, at])
    texts = []
    for first, last in parts:
        begin, end = size_text(all_sizes[first]), size_text(all_sizes[last])
        texts.append(begin if first == last else f"{begin} to {end}")
    return ", ".join(texts)


def crossover(measurement, ours, other):
    """From which size on ours is better at every size, and the sizes at which it is worse."""
    sizes = sorted(set(ours) & set(other))
    better_from, worse = None, []
    for size in sizes:
        r = ratio(measurement, ours[size][0], other[size][0])
        if r < 1 + TOLERANCE:
            better_from = None
        elif better_from is None:
            better_from = size
        if r < 1 - TOLERANCE:
            worse.append(size)
    return (size_text(better_from) if better_from else "none"), (ranges(worse, sizes) or "none")


def crossover_table(points):
    lines = [
        "| consumer | measurement | faster than CMA from | slower at | faster than copying from | slower at |",
        "|---|---|---|---|---|---|",
    ]
    for consumer, name in CONSUMERS.items():
        for measurement in MEASUREMENTS:
            of = points[measurement][consumer]
            for transport, suffix in (("xpmem", ""), ("tuned", ", tuned")):
                if of[transport]:
                    cells = [text for other in ("cma", "copy") for text in crossover(measurement, of[transport], of[other])]
                    lines.append(f"| {name}{suffix} | {SHORT[measurement]} | {' | '.join(cells)} |")
    return lines


def result_table(measurement, points):
    consumers = [c for c in CONSUMERS if any(points[c][t] for t in TRANSPORTS)]
    lines = [
        "| size | " + " | ".join(CONSUMERS[c] for c in consumers) + " |",
        "|---|" + "---|" * len(consumers),
    ]
    sizes = sorted({s for c in consumers for t in TRANSPORTS for s in points[c][t]})
    for size in (s for s in sizes if int(math.log2(s)) % 2 == 0):
        row = []
        for consumer in consumers:
            cell = []
            for transport in TRANSPORTS:
                if transport == "tuned" and not points[consumer]["tuned"]:
                    continue
                entry = points[consumer][transport].get(size)
                text = "-" if entry is None else value_text(entry[0])
                if entry is not None and entry[3] is not None:
                    text += f" ({value_text(entry[3])})"
                cell.append(text)
            row.append(" / ".join(cell))
        lines.append(f"| {size_text(size)} | " + " | ".join(row) + " |")
    return lines


def machine_text(conditions):
    kind = "virtual machine" if conditions["virtual"] == "yes" else "machine"
    return f"{kind} with {conditions['cores']} cores ({conditions['processor']}), Linux {conditions['kernel']}"


def ranks_text(batches):
    many = {b["consumer"]: b["ranks"] for b in batches if b["measurement"] == "rate"}
    if not many:
        return "2 ranks"
    usual = max(set(many.values()), key=list(many.values()).count)
    others = [f"{CONSUMERS[c]}: {n}" for c, n in many.items() if n != usual]
    return f"{usual} ranks" + (f" ({', '.join(others)})" if others else "")


def write_results(path, points, batches, used, boundary, placement, conditions):
    ranks = ranks_text(batches)
    lines = [
        "<!-- Written by `make plots`: changes here are lost. -->",
        "# MPI results",
        "",
        f"Four unmodified MPI consumers, each through this library (rmap), through CMA (`process_vm_readv`) and copying in and out of shared memory, on a "
        f"{machine_text(conditions)}. rmap {conditions['rmap']}; Debian's Open MPI {conditions['openmpi']}, UCX {conditions['ucx']}, MPICH {conditions['mpich']}; "
        f"Intel MPI {conditions['impi']}. Measured {conditions['date']} as an ordinary user without capabilities.",
        "",
        "## How it was measured",
        "",
        "- `make plots` does it all: `mpi-tests/measure.sh` runs `mpi-tests/programs/measure.c`, `mpi-tests/plot.py` draws and writes this page. "
        "`RMAP_PLOT_QUICK=1 make plots` is a quick pass.",
        "- Latency: half of a round trip. Bandwidth: windows of 64 messages (of 64 MiB at most), each window answered; every message is received in a "
        "place of its own. Message rate: the same with half of the ranks sending to the other half. Collective operations: after a barrier each time, average "
        "of the ranks and, in brackets, the slowest rank. Buffers are reused, and checked once for each size.",
        f"- Latency and bandwidth have 2 ranks; message rate and collective operations have {ranks}, so with more ranks than cores these include the scheduler.",
        f"- {conditions['repeats']} repetitions, in each of which the three mechanisms take turns; 5 batches for each size in each. Figures are medians, the bands in the pictures the middle half. ",
        "- In every job the runtime itself said that it used the mechanism (`mpi-tests/run.sh` has how); a job without that is not counted.",
        "- Settings are those of `mpi-tests/run.sh`, thresholds as the runtimes have them"
        + "".join(f"; tuned, {CONSUMERS[key[6:]]}: `{value}`" for key, value in sorted(conditions.items()) if key.startswith("tuned."))
        + ".",
    ]
    if boundary is not None:
        lines.append(
            f"- Two virtual cores may be two hyperthreads of one physical core, where everything in caches is several times as fast, and the hypervisor moves them "
            f"every few seconds. So the round trip of a cache line between the ranks is measured around each batch: it was less than {boundary:.0f} ns or more. Only batches that were measured on "
            f"**{placement}** are used."
        )
    lines += ["", "## Crossover sizes", "", *crossover_text(points)]
    for measurement, (title, unit, _, _) in MEASUREMENTS.items():
        if not any(points[measurement][c][t] for c in CONSUMERS for t in TRANSPORTS):
            continue
        brackets = ", slowest rank in brackets" if measurement in COLLECTIVE else ""
        lines += ["", f"## {title}", "", f"![{title}](mpi-{measurement}.svg)", "", f"{unit}, rmap / rmap tuned (where there is a recommended setting) / CMA / copy{brackets}:", "", *result_table(measurement, points[measurement])]
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n")


def crossover_text(points):
    percent = round(TOLERANCE * 100)
    return [
        f"\"Faster from\": from this size on at every size that was measured, by more than {percent} %. \"Slower at\": by more than {percent} %. At sizes that are in neither, "
        "the two are equal within that; below a runtime's threshold all three copy.",
        "",
        *crossover_table(points),
    ]


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, documents = Path(sys.argv[1]), Path(sys.argv[2])
    batches = read(folder)
    if not batches:
        sys.exit(f"no results in {folder}")
    conditions = dict(line.split("=", 1) for line in (folder / "conditions").read_text().splitlines())
    used, boundary, placement = choose(batches)
    with open(folder / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(batches[0]))
        writer.writeheader()
        writer.writerows(batches)
    points = summarise(used)
    matplotlib.rcParams.update({"svg.hashsalt": "rmap", "font.family": "DejaVu Sans", "path.simplify": True})
    documents.mkdir(parents=True, exist_ok=True)
    for measurement in MEASUREMENTS:
        if not any(points[measurement][c][t] for c in CONSUMERS for t in TRANSPORTS):
            continue
        few = measurement in ("latency", "bandwidth", "bibandwidth")
        note = f"{machine_text(conditions)}; {'2 ranks' if few else ranks_text(batches)}; {placement + '; ' if boundary else ''}medians, and bands with the middle half of all batches"
        draw(measurement, points[measurement], documents / f"mpi-{measurement}.svg", note)
        if measurement == "bandwidth":
            draw(measurement, points[measurement], documents / "bandwidth.svg", note, overview=True)
    write_results(documents / "mpi-results.md", points, batches, used, boundary, placement, conditions)
    text = crossover_text(points)
    replace_block(documents / "tuning.md", BEGIN, END, text)
    print("\n".join(text))
    if boundary is not None:
        print(f"\nused: {len(used)} of {len(batches)} batches, on {placement} (boundary {boundary:.0f} ns)")


main()
