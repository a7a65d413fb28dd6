"""python -m bench.measure [heads|step|memory|floors|all] [--device cpu|cuda]: measure and append records.

Correctness first: a case whose check fails is reported as such, has no speed, and makes the exit code 1. A peer
that is not installed, cannot run or computes something else is skipped by name in one line.
"""

from __future__ import annotations

import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn, TypeVar

import numpy as np
import torch
import typer
from rich.console import Console

from bench import ledger
from bench.accuracy import InaccurateError
from bench.cases import DIRECTIONS, MEMORY_CASE, DeviceKind, Direction, HeadCase, dtype_name, head_cases
from bench.device import find
from bench.environment import describe
from bench.floors import copy_bytes_per_second, gemm_flops_per_second
from bench.held_out import held_out_passes
from bench.interleaved import BURST_US, Candidate, Timings, cold_us, interleave
from bench.memory import UnmeasurableError, peak_extra_bytes, peak_on_gpu
from bench.peer_checks import Check
from bench.peers import FIRST, LATER, OURS, Peer, builders, obstacle
from bench.printing import Measured, field, record_and_print
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
from bench.step_models import StepModel
from bench.step_peers import LIBRARIES, RATIOS, library_steps

console = Console(width=150)


# On a CPU, a step in training finds the optimizer's tables in cache. Here every candidate has its own tables, and
# other candidates' tables evict them.
STEP_BURST_US = {"cpu": 50_000, "cuda": 10_000}
# Share of a case's time after which no further peer is built, so that time is left to measure the others.
BUILDING_SHARE = 0.6
LEAST_SECONDS = 1.0
COLD_SECONDS, COLD_CALLS = 0.2, 30


Case = TypeVar("Case", HeadCase, StepCase)


class Suite(StrEnum):
    """What to measure."""

    floors = "floors"
    heads = "heads"
    step = "step"
    memory = "memory"
    all = "all"


class Measurement:
    """The settings of every suite: where, how often, how long, and where the records go."""

    def __init__(self, device: torch.device, rounds: int, limit_seconds: float, records: Path) -> None:
        self.device, self.rounds, self.limit_seconds, self.records = device, rounds, limit_seconds, records
        self.environment = describe(device)
        self._building_ends = self._ends = math.inf

    def begin(self, seconds: float) -> None:
        """Begin a case that may take this long."""
        now = time.perf_counter()
        self._building_ends, self._ends = now + BUILDING_SHARE * seconds, now + seconds

    @property
    def has_time_to_build(self) -> bool:
        """Whether there is time to build an optional peer for the current case."""
        return time.perf_counter() < self._building_ends

    def interleave(
        self, candidates: Mapping[str, Candidate], burst_us: float = BURST_US, *, settles: bool = False
    ) -> Timings:
        """Time candidates by the measuring rule of bench/interleaved.py."""
        return interleave(
            candidates,
            rounds=self.rounds,
            limit_seconds=min(self.limit_seconds, max(LEAST_SECONDS, self._ends - time.perf_counter())),
            device=self.device,
            burst_us=burst_us,
            settles=settles,
        )

    def append(self, made: Iterable[ledger.Record]) -> None:
        """Append records to the file."""
        ledger.append(made, self.records)


def main(
    suite: Annotated[Suite, typer.Argument(help="What to measure.")] = Suite.all,
    rounds: Annotated[int, typer.Option(min=1, help="Number of times to time each candidate.")] = 100,
    limit_seconds: Annotated[
        float, typer.Option(min=0.0, help="Time limit per case; at least 10 rounds are run.")
    ] = 60.0,
    case: Annotated[str | None, typer.Option(help="Measure only cases whose name contains this.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto (CUDA if available).")] = "auto",
    total_seconds: Annotated[
        float | None,
        typer.Option(help="Time limit for all cases together; cases that do not start in time are listed."),
    ] = None,
    records: Annotated[Path, typer.Option(help="Folder for the records.")] = ledger.FOLDER,
    first: Annotated[
        int, typer.Option(min=0, help="Index of the first case to run; set after a case has lost the device.")
    ] = 0,
) -> None:
    """Measure, print and append records."""
    found = find(device)
    m = Measurement(found, rounds, limit_seconds, records)
    started = time.perf_counter()
    red = first > 0
    work = list(_work(suite, case, m))
    for place, job in enumerate(work[first:], first):
        left = math.inf if total_seconds is None else total_seconds - (time.perf_counter() - started)
        if left <= 0:
            console.print(f"[yellow]skipped {job.name}: the {total_seconds:g} s are used up[/yellow]")
            continue
        m.begin(left * job.weight / sum(other.weight for other in work[place:]))
        red |= not _survived(job)
        if found.type == "cuda" and _is_lost(found) and place + 1 < len(work):
            _go_on_in_another_process(place + 1, time.perf_counter() - started, total_seconds)
    if red:
        raise typer.Exit(1)


def _is_lost(device: torch.device) -> bool:
    """Whether this process can no longer use the device, as after an illegal memory access; else frees its memory."""
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except RuntimeError:
        return True
    return False


def _go_on_in_another_process(first: int, seconds: float, total_seconds: float | None) -> NoReturn:
    """Run this program again from another case on, so that a case that broke the device does not affect the others."""
    console.print("[yellow]this process has lost the device; another one continues[/yellow]")
    arguments = [*sys.argv[1:], "--first", str(first)]
    if total_seconds is not None:
        arguments += ["--total-seconds", f"{max(0.1, total_seconds - seconds):.1f}"]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "bench.measure", *arguments])


class Work(NamedTuple):
    """A case to measure: `run` returns whether its checks passed; weight: of its share of the time."""

    name: str
    run: Callable[[], bool]
    weight: float = 1.0


def _survived(work: Work) -> bool:
    """Run one case, so that a failure does not affect the others."""
    try:
        return work.run()
    except Exception:
        console.print(f"[red]{work.name}: failed[/red]")
        console.print(traceback.format_exc(), highlight=False, markup=False)
        return False


def _work(suite: Suite, part: str | None, m: Measurement) -> Iterator[Work]:
    """Yield the cases of a suite whose names contain `part`."""
    kind: DeviceKind = "cuda" if m.device.type == "cuda" else "cpu"

    def wanted(*suites: Suite) -> bool:
        return suite in (*suites, Suite.all)

    if wanted(Suite.floors):
        yield Work("floors", partial(measure_floors, m))
    if wanted(Suite.heads):
        for case in _named(head_cases(kind), part):
            # Requirements are for forward and backward; time on a GPU is short.
            for direction in DIRECTIONS if kind == "cpu" else DIRECTIONS[:1]:
                yield Work(case.name, partial(measure_heads, case, direction, m), case.weight)
    if wanted(Suite.step):
        for step_case in _named(step_cases(kind), part):
            yield Work(step_case.name, partial(measure_step, step_case, m))
    if wanted(Suite.memory) and kind == "cpu":
        yield Work(MEMORY_CASE.name, partial(measure_memory, MEMORY_CASE, m))


def _named(cases: Sequence[Case], part: str | None) -> list[Case]:
    return [case for case in cases if part is None or part in case.name]


# --- suites ----------------------------------------------------------------------------------------------


def measure_floors(m: Measurement) -> bool:
    """Measure copy bandwidth and GEMM rate of the device."""
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
    """Measure all peers of one case and direction; False if our own code fails or is inaccurate."""
    title = f"{case.name}: {case.shape}, {direction}"
    peers, more, green = checked_peers(case, direction, m, tuple(builders(m.device)))
    timings = m.interleave({name: peer.candidate() for name, peer in peers.items()})
    if m.device.type == "cuda":
        for name, peer in peers.items():
            calls = int(np.clip(COLD_SECONDS * 1e6 / timings.median_us(name), 3, COLD_CALLS))
            more[name]["cold_us"] = round(cold_us(peer.candidate(), m.device, calls), 2)
    _report("heads", case.name, case.shape, direction, title, timings, over_eager(peers), m, more)
    return green


def over_eager(peers: Mapping[str, Peer]) -> dict[str, tuple[str, str]]:
    """Return the ratio of eager over each; a peer without a bias is compared with ours without one."""
    ratios = {name: ("eager", name) for name in peers if name != "eager" and "eager" in peers}
    without = [name for name, peer in peers.items() if peer.weights and not peer.biases]
    for name in without:
        ratios.pop(name, None)
        if "ours_no_bias" in peers and name != "ours_no_bias":
            ratios[name] = (name, "ours_no_bias")
    return ratios


class CheckedPeers(NamedTuple):
    """The peers that compute the right thing, more fields of their records, and whether all of ours are among them."""

    peers: dict[str, Peer]
    more: dict[str, dict[str, Any]]
    green: bool


def checked_peers(
    case: HeadCase, direction: Direction, m: Measurement, names: tuple[str, ...]
) -> CheckedPeers:
    """Build these peers, as far as they are there and time is left, and check them."""
    inputs = case.inputs(device=m.device)
    check = Check(inputs, direction)
    peers: dict[str, Peer] = {}
    more: dict[str, dict[str, Any]] = {}
    green = True
    build_of = builders(m.device)
    for name in (*FIRST, *LATER):
        if name not in names or name not in build_of:
            continue
        if reason := obstacle(name, m.device, case.dtype):
            _skip(name, reason)
        elif name in LATER and not m.has_time_to_build:
            _skip(name, "no time left for it in this case")
        else:
            try:
                peers[name], more[name] = _checked(build_of[name](inputs, direction), check, m)
            except Exception as error:  # a peer is third-party code and may raise anything
                green = green and name not in OURS
                _skip(name, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}")
    shown = [name for name in build_of if name in peers]
    return CheckedPeers({name: peers[name] for name in shown}, more, green)


def _checked(peer: Peer, check: Check, m: Measurement) -> tuple[Peer, dict[str, Any]]:
    """Return a peer that has passed its rule, and the fields of its records."""
    rule = check(peer)
    fields: dict[str, Any] = {"dtype": dtype_name(peer.features_nd.dtype)}
    if rule is not None:
        fields |= {"accuracy_rule": rule, "bias": bool(peer.biases)}
    if m.device.type == "cuda" and not peer.own_gradients:
        fields["peak_extra_bytes"] = peak_on_gpu(peer)
    return peer, fields


def _skip(name: str, reason: str) -> None:
    console.print(f"[yellow]skipped {name}: {reason}[/yellow]", highlight=False)


def measure_step(case: StepCase, m: Measurement) -> bool:
    """Measure steps of one model; False if the check fails."""
    if reason := case.obstacle():
        _skip(case.name, reason)
        return True
    model = case.build(m.device)
    try:
        check_step(model)
    except InaccurateError as error:
        console.print(f"[red]{case.name}: not measured, {error}[/red]")
        return False
    groups: list[tuple[str, str, Callable[..., dict[str, Step]], Mapping[str, tuple[str, str]]]] = [
        (
            "training step",
            "step",
            partial(multi_and_single, compiled=lambda: m.has_time_to_build),
            step_ratios(m.device),
        ),
        ("step after the switch", "step", switched_and_stl, SWITCHED_PEERS),
    ]
    if case.libraries:
        groups.append(("training step by other libraries", LIBRARIES, library_steps, RATIOS))
    for title, direction, build, ratios in groups:
        steps = build(model, skip=_skip)
        if not steps:
            continue
        timings = m.interleave(
            {name: Candidate(step) for name, step in steps.items()},
            STEP_BURST_US[m.device.type],
            settles=True,
        )
        title = f"{case.name}: {model.shape}, {title}"
        _report("step", case.name, model.shape, direction, title, timings, _present(ratios, steps), m)
    return model.held_out is None or _measure_held_out(case.name, model, m)


def _measure_held_out(name: str, model: StepModel, m: Measurement) -> bool:
    """Measure evaluations of all tasks; False if they do not agree."""
    assert model.held_out is not None
    try:
        passes = held_out_passes(model)
    except InaccurateError as error:
        console.print(f"[red]{name}: not measured, {error}[/red]")
        return False
    timings = m.interleave({each: Candidate(evaluation) for each, evaluation in passes.items()})
    shape = f"N={len(model.held_out[0])}"
    title = f"{name}: {shape}, held-out rows"
    _report("step", name, shape, "held out", title, timings, {"eager": ("eager", "ours")}, m)
    return True


def _present(ratios: Mapping[str, tuple[str, str]], steps: Mapping[str, Step]) -> dict[str, tuple[str, str]]:
    return {name: pair for name, pair in ratios.items() if set(pair) <= set(steps)}


def measure_memory(case: HeadCase, m: Measurement) -> bool:
    """Measure peak memory and time of the vocabulary case on a CPU; False if our own code fails or is inaccurate."""
    title = f"{case.name}: {case.shape}, time and peak memory"
    names = ("eager", "linear_cross_entropy", "ours", "gemms")
    peers, more, green = checked_peers(case, "forward+backward", m, names)
    timings = m.interleave({name: peer.candidate() for name, peer in peers.items()})
    for name in peers:
        if name != "gemms":
            more[name].update(_peak_on_cpu(case, name))
    _report("memory", case.name, case.shape, "forward+backward", title, timings, over_eager(peers), m, more)
    return green


def _peak_on_cpu(case: HeadCase, name: str) -> dict[str, int]:
    try:
        return {"peak_extra_bytes": peak_extra_bytes(case, name)}
    except UnmeasurableError as error:
        console.print(f"[yellow]memory of {name} not measured: {error}[/yellow]")
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
