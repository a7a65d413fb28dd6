"""python -m bench.measure [heads|step|all]: measure every case, print it, and append records.

Correctness first: a case whose check fails is reported as such, has no speed, and makes the exit code 1.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench import ledger
from bench.accuracy import InaccurateError
from bench.cases import DIRECTIONS, HEAD_CASES, Direction, HeadCase
from bench.environment import describe
from bench.interleaved import Candidate, Timings, interleave
from bench.load import DISTURBED_SHARE
from bench.peers import BUILDERS, Peer, check, obstacle
from bench.step_cases import STEP_CASES, Step, StepCase, check_step, multi_and_single, switched_and_stl

console = Console()


class Suite(StrEnum):
    """What to measure."""

    heads = "heads"
    step = "step"
    all = "all"


def main(
    suite: Annotated[Suite, typer.Argument(help="What to measure.")] = Suite.all,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each candidate is timed.")] = 100,
    limit_seconds: Annotated[
        float, typer.Option(min=0.0, help="A case ends after this, but not before 10 rounds.")
    ] = 60.0,
    case: Annotated[str | None, typer.Option(help="Only the cases whose name contains this.")] = None,
) -> None:
    """Measure, print and append to bench/records/."""
    environment = describe()
    red = 0
    if suite in (Suite.heads, Suite.all):
        for head_case in _named(HEAD_CASES, case):
            for direction in DIRECTIONS:
                red += not measure_heads(head_case, direction, rounds, limit_seconds, environment)
    if suite in (Suite.step, Suite.all):
        for step_case in _named(STEP_CASES, case):
            red += not measure_step(step_case, rounds, limit_seconds, environment)
    if red:
        raise typer.Exit(1)


def _named(cases, part):  # type: ignore[no-untyped-def]
    return [case for case in cases if part is None or part in case.name]


def measure_heads(
    case: HeadCase, direction: Direction, rounds: int, limit_seconds: float, environment: ledger.Record
) -> bool:
    """All peers of one case and direction; False where a check is red."""
    title = f"{case.name}: {case.shape}, {direction}"
    try:
        peers = _checked_peers(case, direction)
    except InaccurateError as error:
        console.print(f"[red]{title}: not measured, {error}[/red]")
        return False
    candidates = {name: peer.candidate() for name, peer in peers.items()}
    timings = interleave(candidates, rounds=rounds, limit_seconds=limit_seconds)
    ratios = {name: ("eager", name) for name in peers if name != "eager"}
    _report("heads", case.name, case.shape, direction, title, timings, ratios, environment)
    return True


def _checked_peers(case: HeadCase, direction: Direction) -> dict[str, Peer]:
    inputs = case.inputs()
    peers = {}
    for name, build in BUILDERS.items():
        if reason := obstacle(name):
            console.print(f"[yellow]skipped {name}: {reason}[/yellow]")
            continue
        peers[name] = build(inputs, direction)
        check(peers[name], inputs, direction)
    return peers


def measure_step(case: StepCase, rounds: int, limit_seconds: float, environment: ledger.Record) -> bool:
    """Steps of one model; False where the check is red."""
    if reason := case.obstacle():
        console.print(f"[yellow]skipped {case.name}: {reason}[/yellow]")
        return True
    model = case.build()
    try:
        check_step(model)
    except InaccurateError as error:
        console.print(f"[red]{case.name}: not measured, {error}[/red]")
        return False
    for title, steps, ratios in (
        (
            "training step",
            multi_and_single(model),
            {
                "ours multi": ("ours multi", "ours single"),
                "eager multi": ("eager multi", "eager single"),
                "eager single": ("eager single", "ours single"),
            },
        ),
        ("step after the switch", switched_and_stl(model), {"after switch": ("after switch", "stl")}),
    ):
        timings = _interleave_steps(steps, rounds, limit_seconds)
        title = f"{case.name}: {model.shape}, {title}"
        _report("step", case.name, model.shape, "step", title, timings, ratios, environment)
    return True


def _interleave_steps(steps: dict[str, Step], rounds: int, limit_seconds: float) -> Timings:
    candidates = {name: Candidate(step) for name, step in steps.items()}
    return interleave(candidates, rounds=rounds, limit_seconds=limit_seconds)


def _report(
    suite: str,
    case: str,
    shape: str,
    direction: str,
    title: str,
    timings: Timings,
    ratios: dict[str, tuple[str, str]],
    environment: ledger.Record,
) -> None:
    """Print a table and append its records; `ratios` gives numerator and denominator by candidate."""
    table = Table(title=f"{title}, {timings.rounds} rounds", title_justify="left")
    for heading in ("", "µs, median", "p25 to p75", "ratio", "p25 to p75", "of"):
        table.add_column(heading, justify="left" if heading in ("", "of") else "right")
    made = []
    for name in timings.rounds_us:
        ratio_name = " / ".join(ratios[name]) if name in ratios else None
        ratio = timings.ratio(*ratios[name]) if name in ratios else None
        p = timings.percentiles_us(name)
        cells = ("", "", "")
        if ratio is not None and ratio_name is not None:
            cells = (f"{ratio.of_medians:.2f}", f"{ratio.p25:.2f} to {ratio.p75:.2f}", ratio_name)
        table.add_row(name, f"{p['p50']:,.0f}", f"{p['p25']:,.0f} to {p['p75']:,.0f}", *cells)
        made.append(
            ledger.make_record(environment, suite, case, shape, name, direction, timings, ratio_name, ratio)
        )
    console.print(table)
    if (timings.others_cpu_share or 0.0) > DISTURBED_SHARE:
        console.print(
            f"[yellow]disturbed: others used {timings.others_cpu_share:.0%} of the processors; "
            "measure again on a quiet machine[/yellow]"
        )
    ledger.append(made)


if __name__ == "__main__":
    typer.run(main)
