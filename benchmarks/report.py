"""Findings as text: the table that is printed, and the page in `results/`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.findings import Check, Findings


def table(findings: Findings) -> str:
    """The findings as Markdown that reads well in a terminal, too."""
    parts = []
    if findings.measurements:
        rows = [
            (
                f"({m.key})" if len(m.key) == 1 else m.key,
                m.name,
                str(m.connections),
                f"{m.requests_per_s:,.0f}",
                f"{m.p50_ms:.2f}",
                f"{m.p99_ms:.2f}",
                f"{m.spread:.0%}",
            )
            for m in findings.measurements
        ]
        parts.append(grid(("", "what", "connections", "req/s", "p50 ms", "p99 ms", "spread"), rows, left=2))
    if findings.checks:
        checks = [(c.name, f"{c.value:.2f}", _limit(c), _number(c.aim), _verdict(c)) for c in findings.checks]
        parts.append(grid(("figure", "found", "limit", "aim", ""), checks, left=1))
    parts += [f"- {note}" for note in findings.notes]
    return "\n\n".join(parts)


def page(all_findings: Iterable[Findings]) -> str:
    """One page of all findings, with the machine of each named."""
    parts = [
        "# Results",
        "Written by `make bench`. Figures are medians over rounds in which the contenders take turns; `spread` is how "
        "far the rounds lie apart. Ratios compare what ran in the same minutes on the same machine.",
    ]
    machine: dict[str, str] | None = None
    for findings in all_findings:
        parts.append(f"## {findings.title}")
        told = {name: value for name, value in findings.machine.items() if name not in ("date", "busy before")}
        when = f"{findings.machine['date']}, the CPUs {findings.machine['busy before']} busy before."
        if told == machine:
            parts.append(f"The same machine; {when}")
        else:
            parts.append("\n".join(f"- {name}: {value}" for name, value in told.items()) + f"\n- when: {when}")
            machine = told
        parts.append(table(findings))
        if findings.measurements or findings.courses:
            parts.append(f"![{findings.title}]({findings.scenario}.svg)")
    return "\n\n".join(parts) + "\n"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """A Markdown table with columns of even width; the first `left` columns are aligned left, the others right."""
    widths = [max(3, *(len(row[i]) for row in (head, *rows))) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        placed = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(placed)} |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(head), line(rule), *map(line, rows)])


def _limit(check: Check) -> str:
    limits = [f">= {_number(check.floor)}"] * (check.floor is not None)
    limits += [f"<= {_number(check.ceiling)}"] * (check.ceiling is not None)
    return ", ".join(limits)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _verdict(check: Check) -> str:
    return {True: "met", False: "MISSED", None: ""}[check.met]
