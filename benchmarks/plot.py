"""Findings as a plot."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.findings import Findings

_WIDTH = 0.8  # of all bars at one number of connections


def draw(findings: Findings, path: Path) -> None:
    """Write what was measured as a plot: the contenders side by side, or how memory went."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    if findings.measurements:
        _contenders(figure, findings)
    else:
        _courses(figure, findings)
    figure.suptitle(f"{findings.title}\n{findings.machine['CPU']}, {findings.machine['CPUs']} CPUs", fontsize=10)
    with mpl.rc_context(
        {"svg.hashsalt": findings.scenario, "svg.fonttype": "none"}
    ):  # so that the same findings are the same file
        figure.savefig(path, metadata={"Date": None})


def _courses(figure: Figure, findings: Findings) -> None:
    axes = figure.subplots()
    axes.set_title("memory in MiB after so many requests")
    for course in findings.courses:
        axes.plot(*zip(*course.points, strict=True), marker=".", label=course.name)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)


def _contenders(figure: Figure, findings: Findings) -> None:
    """Requests a second and latency of each contender, at each number of connections."""
    rate, latency = figure.subplots(1, 2)
    rate.set_title("requests a second")
    latency.set_title("latency in ms, from p50 to p99")
    latency.set_yscale("log")
    latency.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    latency.yaxis.set_major_formatter("{x:g}")
    latency.yaxis.set_minor_formatter(NullFormatter())
    connections = list(dict.fromkeys(m.connections for m in findings.measurements))
    keys = list(dict.fromkeys(m.key for m in findings.measurements))
    width = _WIDTH / len(keys)
    for i, key in enumerate(keys):
        own = [m for m in findings.measurements if m.key == key]
        places = [connections.index(m.connections) + (i - (len(keys) - 1) / 2) * width for m in own]
        (*_, bar) = rate.bar(places, [m.requests_per_s for m in own], width * 0.9, label=f"{key}: {own[0].name}")
        color = bar.get_facecolor()
        latency.vlines(places, [m.p50_ms for m in own], [m.p99_ms for m in own], color=color, linewidth=2)
        latency.plot(places, [m.p50_ms for m in own], "o", color=color)
    for axes in (rate, latency):
        axes.set_xticks(range(len(connections)), [str(c) for c in connections])
        axes.set_xlabel("connections")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*rate.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
