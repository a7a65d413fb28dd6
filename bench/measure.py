"""python -m bench.measure [heads|step|memory|scaling|floors|all] [--device cpu|cuda]: measure and append records.

Correctness first: a case whose check fails is reported as such, has no speed, and makes the exit code 1. A peer
that is not installed, cannot run or computes something else is skipped by name in one line.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from bench import ledger
from bench.accuracy import InaccurateError
from bench.cases import DIRECTIONS, MEMORY_CASE, Direction, HeadCase, dtype_name, head_cases
from bench.device import find
from bench.environment import describe
from bench.floors import copy_bytes_per_second, gemm_flops_per_second
from bench.interleaved import BURST_US, Candidate, Timings, cold_us, interleave
from bench.memory import UnmeasurableError, peak_extra_bytes, peak_on_gpu
from bench.peers import OURS, Check, Peer, builders, obstacle
from bench.printing import Measured, field, record_and_print
from bench.scaling import PEERS as SCALING_PEERS
from bench.scaling import points
from bench.step_cases import (
    SWITCHED_PEERS,
    Step,
    StepCase,
    check_step,
    multi_and_single,
    step_cases,
    step_ratios,
    switched_and_stl,
)

console = Console(width=150)


# A step follows hundreds of its like, and finds the optimizer's tables in cache: every candidate has its own, and a
# stranger's have thrown them out.
STEP_BURST_US = 50_000


class Suite(StrEnum):
    """What to measure."""

    floors = "floors"
    heads = "heads"
    step = "step"
    memory = "memory"
    scaling = "scaling"
    all = "all"


class Measurement:
    """What every suite is told: where, how often, how long, and where the records go."""

    def __init__(self, device: torch.device, rounds: int, limit_seconds: float, records: Path) -> None:
        self.device, self.rounds, self.limit_seconds, self.records = device, rounds, limit_seconds, records
        self.environment = describe(device)

    def interleave(self, candidates: Mapping[str, Candidate], burst_us: float = BURST_US) -> Timings:
        """By the measuring rule of bench/interleaved.py."""
        return interleave(
            candidates,
            rounds=self.rounds,
            limit_seconds=self.limit_seconds,
            device=self.device,
            burst_us=burst_us,
        )

    def append(self, made: Iterable[ledger.Record]) -> None:
        """Put records on file."""
        ledger.append(made, self.records)


def main(
    suite: Annotated[Suite, typer.Argument(help="What to measure.")] = Suite.all,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each candidate is timed.")] = 100,
    limit_seconds: Annotated[
        float, typer.Option(min=0.0, help="A case ends after this, but not before 10 rounds.")
    ] = 60.0,
    case: Annotated[str | None, typer.Option(help="Only the cases whose name contains this.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: CUDA where there is one.")] = "auto",
    total_seconds: Annotated[
        float | None, typer.Option(help="No case begins after this; what is left is named.")
    ] = None,
    records: Annotated[Path, typer.Option(help="The folder of the records.")] = ledger.FOLDER,
) -> None:
    """Measure, print and append records."""
    try:
        found = find(device)
    except ValueError as error:
        console.print(str(error))
        raise typer.Exit(0 if device == "cuda" else 2) from None
    m = Measurement(found, rounds, limit_seconds, records)
    started = time.perf_counter()
    red = 0
    for name, run in _work(suite, case, m):
        if total_seconds is not None and time.perf_counter() - started > total_seconds:
            console.print(f"[yellow]skipped {name}: {total_seconds:g} s are over[/yellow]")
            continue
        red += not _survived(name, run)
        if found.type == "cuda":
            torch.cuda.empty_cache()
    if red:
        raise typer.Exit(1)


def _survived(name: str, run: Callable[[], bool]) -> bool:
    """Run one case; one that breaks must not take the others with it."""
    try:
        return run()
    except Exception:
        console.print(f"[red]{name}: broken[/red]")
        console.print(traceback.format_exc(), highlight=False, markup=False)
        return False


def _work(suite: Suite, part: str | None, m: Measurement):  # type: ignore[no-untyped-def]
    """(name, what measures it and is False where a check is red) of everything asked for."""
    kind = m.device.type

    def wanted(*suites: Suite) -> bool:
        return suite in (*suites, Suite.all)

    if wanted(Suite.floors):
        yield "floors", lambda: measure_floors(m)
    if wanted(Suite.heads):
        for case in _named(head_cases(kind), part):
            # The required results are of forward and backward; a GPU's time is short.
            for direction in DIRECTIONS if kind == "cpu" else DIRECTIONS[:1]:
                yield case.name, lambda case=case, direction=direction: measure_heads(case, direction, m)
    if wanted(Suite.step):
        for step_case in _named(step_cases(kind), part):
            yield step_case.name, lambda case=step_case: measure_step(case, m)
    if wanted(Suite.memory) and kind == "cpu":
        yield MEMORY_CASE.name, lambda: measure_memory(MEMORY_CASE, m)
    if wanted(Suite.scaling):
        for point in points(kind):
            if part is None or part in point.case.name:
                yield point.case.name, lambda case=point.case: measure_scaling(case, m)


def _named(cases, part):  # type: ignore[no-untyped-def]
    return [case for case in cases if part is None or part in case.name]


# --- suites ----------------------------------------------------------------------------------------------


def measure_floors(m: Measurement) -> bool:
    """Copy bandwidth and GEMM rate of the device."""
    dtypes = (torch.float32,) if m.device.type == "cpu" else (torch.bfloat16, torch.float32)
    found = {"copy": ("bytes/s", copy_bytes_per_second(m.device))} | {
        f"GEMM {dtype_name(dtype)}": ("FLOP/s", gemm_flops_per_second(m.device, dtype)) for dtype in dtypes
    }
    for name, (unit, value) in found.items():
        console.print(f"{name}: {value:.3g} {unit}")
    m.append(
        ledger.make_value(m.environment, "floors", name, "", "device", unit, value)
        for name, (unit, value) in found.items()
    )
    return True


def measure_heads(case: HeadCase, direction: Direction, m: Measurement) -> bool:
    """All peers of one case and direction; False where our own code fails or is inaccurate."""
    title = f"{case.name}: {case.shape}, {direction}"
    peers, more, green = _checked_peers(case, direction, m, tuple(builders(m.device)))
    timings = m.interleave({name: peer.candidate() for name, peer in peers.items()})
    if m.device.type == "cuda":
        for name, peer in peers.items():
            more[name]["cold_us"] = round(cold_us(peer.candidate(), m.device), 2)
    _report("heads", case.name, case.shape, direction, title, timings, _over_eager(peers), m, more)
    return green


def _over_eager(peers: Mapping[str, Peer]) -> dict[str, tuple[str, str]]:
    return {name: ("eager", name) for name in peers if name != "eager" and "eager" in peers}


def _checked_peers(
    case: HeadCase, direction: Direction, m: Measurement, names: tuple[str, ...]
) -> tuple[dict[str, Peer], dict[str, dict[str, Any]], bool]:
    """The peers that compute the right thing, what their records say beside times, and whether ours are among them."""
    inputs = case.inputs(device=m.device)
    check = Check(inputs, direction)
    peers: dict[str, Peer] = {}
    more: dict[str, dict[str, Any]] = {}
    green = True
    for name, build in builders(m.device).items():
        if name not in names:
            continue
        if reason := obstacle(name, m.device, case.dtype):
            _skip(name, reason)
            continue
        try:
            peer = build(inputs, direction)
            check(peer)
            more[name] = {"dtype": dtype_name(case.dtype)}
            if m.device.type == "cuda" and not peer.own_gradients:
                more[name]["peak_extra_bytes"] = peak_on_gpu(peer)
            peers[name] = peer
        except Exception as error:  # a peer is someone else's code, and may raise anything
            green = green and name not in OURS
            _skip(name, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}")
    return peers, more, green


def _skip(name: str, reason: str) -> None:
    console.print(f"[yellow]skipped {name}: {reason}[/yellow]", highlight=False)


def measure_step(case: StepCase, m: Measurement) -> bool:
    """Steps of one model; False where the check is red."""
    if reason := case.obstacle():
        _skip(case.name, reason)
        return True
    model = case.build(m.device)
    try:
        check_step(model)
    except InaccurateError as error:
        console.print(f"[red]{case.name}: not measured, {error}[/red]")
        return False
    for title, steps, ratios in (
        ("training step", multi_and_single(model, skip=_skip), step_ratios(m.device)),
        ("step after the switch", switched_and_stl(model), SWITCHED_PEERS),
    ):
        timings = m.interleave({name: Candidate(step) for name, step in steps.items()}, STEP_BURST_US)
        title = f"{case.name}: {model.shape}, {title}"
        _report("step", case.name, model.shape, "step", title, timings, _present(ratios, steps), m)
    return True


def _present(ratios: Mapping[str, tuple[str, str]], steps: Mapping[str, Step]) -> dict[str, tuple[str, str]]:
    return {name: pair for name, pair in ratios.items() if set(pair) <= set(steps)}


def measure_memory(case: HeadCase, m: Measurement) -> bool:
    """Peak memory and time of the vocabulary case on a CPU."""
    return _measure_time_and_memory("memory", case, m, ("eager", "linear_cross_entropy", "ours", "gemms"))


def measure_scaling(case: HeadCase, m: Measurement) -> bool:
    """Time and peak memory of one point of a sweep."""
    return _measure_time_and_memory("scaling", case, m, SCALING_PEERS[m.device.type])


def _measure_time_and_memory(suite: str, case: HeadCase, m: Measurement, names: tuple[str, ...]) -> bool:
    title = f"{case.name}: {case.shape}, time and peak memory"
    peers, more, green = _checked_peers(case, "forward+backward", m, names)
    timings = m.interleave({name: peer.candidate() for name, peer in peers.items()})
    if m.device.type == "cpu":
        for name in peers:
            if name != "gemms":
                more[name].update(_peak_on_cpu(case, name, m))
    _report(suite, case.name, case.shape, "forward+backward", title, timings, _over_eager(peers), m, more)
    return green


def _peak_on_cpu(case: HeadCase, name: str, m: Measurement) -> dict[str, int]:
    try:
        return {"peak_extra_bytes": peak_extra_bytes(case, name, m.device)}
    except UnmeasurableError as error:
        console.print(f"[yellow]no memory of {name}: {error}[/yellow]")
        return {}


def _report(
    suite: str,
    case: str,
    shape: str,
    direction: str,
    title: str,
    timings: Timings,
    ratios: Mapping[str, tuple[str, str]],
    m: Measurement,
    more: Mapping[str, dict[str, Any]] | None = None,
) -> None:
    """Print a table and append its records; `ratios` gives numerator and denominator by candidate."""
    made = record_and_print(
        console,
        Measured(m.environment, suite, case, shape, direction),
        timings,
        ratios,
        title=title,
        more=more,
        columns={"cold µs": field("cold_us"), "peak MB": field("peak_extra_bytes", 1e-6)},
    )
    m.append(made)


if __name__ == "__main__":
    typer.run(main)
