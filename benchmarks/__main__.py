"""`python -m benchmarks`: run scenarios, or look at where the time goes in one."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from adapter.exceptions import AdapterError
from benchmarks import load, machine, plot, report
from benchmarks.comparison import Comparison, Effort
from benchmarks.exceptions import BenchmarkError
from benchmarks.findings import Findings
from benchmarks.scenarios import Scenario, scenarios
from benchmarks.stage import Stage

RESULTS = Path(__file__).with_name("results")


def _connections(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        found = tuple(int(part) for part in value.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 1,16,64.")
    return found


@click.group()
def main() -> None:
    """Measure adapter against others, under load from wrk."""


@main.command()
@click.argument("names", nargs=-1, metavar="[SCENARIO]…")
@click.option("--rounds", type=click.IntRange(min=1), default=Effort.rounds, show_default=True)
@click.option("--seconds", type=click.IntRange(min=1), default=Effort.seconds, show_default=True, help="Of each round.")
@click.option("--connections", metavar="N,N…", callback=_connections, help="Instead of each scenario's own.")
@click.option(
    "--requests", type=click.IntRange(min=100), default=Effort.requests, show_default=True, help="Of `soak`, in all."
)
@click.option(
    "--results", type=click.Path(file_okay=False, path_type=Path), default=RESULTS, help="The folder to write to."
)
def run(
    names: Sequence[str],
    rounds: int,
    seconds: int,
    connections: tuple[int, ...] | None,
    requests: int,
    results: Path,
) -> None:
    """Run scenarios (by default most of them: see `list`), print tables, and write them as JSON, plot and page."""
    effort = Effort(rounds=rounds, seconds=seconds, connections=connections, requests=requests)
    for scenario in _chosen(names):
        findings = measure(scenario, effort)
        click.echo(f"\n## {findings.title}\n\n{report.table(findings)}")
        write(findings, results)
    click.echo(f"\nThe results are in {results}.")


@main.command(name="list")
def list_scenarios() -> None:
    """List the scenarios."""
    for scenario in scenarios().values():
        click.echo(f"{scenario.name:12} {scenario.title}{'' if scenario.by_default else ' (not by default)'}")


@main.command()
@click.argument("name", metavar="SCENARIO")
@click.argument("key", metavar="CONTENDER")
@click.option("--connections", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--seconds", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--native", is_flag=True, help="Show the frames of libraries written in C, too.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="*.svg, or *.json."
)
def profile(name: str, key: str, connections: int, seconds: int, native: bool, output: Path) -> None:
    """Record with py-spy where the process of one contender spends its time under load.

    An SVG is a flame graph; any other file is read by speedscope.
    """
    (scenario,) = _chosen([name])
    if not isinstance(scenario, Comparison):
        raise click.UsageError(f"{name} has no contenders.")
    with _explained(), Stage.open() as stage:
        contenders = {contender.key: contender for contender in scenario.contenders(stage)}
        if key not in contenders:
            raise BenchmarkError(f"{name} has no contender {key!r}; it has {', '.join(contenders)}.")
        contender = contenders[key]
        requests = stage.folder / key
        load.prepare(contender.url, contender.headers, contender.samples, requests)
        spy = [str(Path(sys.executable).with_name("py-spy")), "record", "--pid", str(contender.server.workers()[0])]
        spy += ["--duration", str(seconds), "--rate", "250", "--output", str(output)]
        spy += [
            "--format",
            "flamegraph" if output.suffix == ".svg" else "speedscope",
            *(["--native"] if native else []),
        ]
        with subprocess.Popen(spy, stdout=subprocess.DEVNULL) as recorder:
            time.sleep(0.5)
            reading = load.run(
                contender.url, requests, mode="measure", connections=connections, seconds=seconds + 1, threads=1
            )
        if recorder.returncode:
            raise BenchmarkError(f"py-spy ended with {recorder.returncode}: it may need to run as root.")
    click.echo(f"{reading.requests_per_s:.0f} req/s while it was watched; see {output}.")


def measure(scenario: Scenario, effort: Effort) -> Findings:
    """Run one scenario on a stage of its own."""
    with _explained():
        wrk = machine.wrk_version(load.program())
        with Stage.open() as stage:
            return scenario.run(stage, effort, machine.describe(stage.installation.version, wrk))


def write(findings: Findings, folder: Path) -> None:
    """Write the findings as JSON and plot, and the page of all that lie there."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(findings.to_dict(), indent=1)
    (folder / f"{findings.scenario}.json").write_text(text + "\n", encoding="utf-8")
    if findings.measurements or findings.courses:
        plot.draw(findings, folder / f"{findings.scenario}.svg")
    order = list(scenarios())
    written = [Findings.from_dict(json.loads(path.read_text(encoding="utf-8"))) for path in folder.glob("*.json")]
    known = sorted((f for f in written if f.scenario in order), key=lambda f: order.index(f.scenario))
    (folder / "README.md").write_text(report.page(known), encoding="utf-8")


def _chosen(names: Sequence[str]) -> list[Scenario]:
    known = scenarios()
    for name in names:
        if name not in known:
            raise click.UsageError(f"There is no scenario {name!r}; there are {', '.join(known)}.")
    return [known[name] for name in names] or [s for s in known.values() if s.by_default]


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Let a person see what went wrong as one message, and not as a traceback."""
    try:
        yield
    except (BenchmarkError, AdapterError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
