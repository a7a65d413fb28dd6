"""The measuring rule: candidates take turns (A B C A B C ...) in one process, and medians are compared.

A turn is a short burst of calls, the same number for every candidate. This resembles training, where a call follows an
equal one, and not another candidate's, during which the worker threads fell asleep (waking one takes 0.1 ms on a
virtual machine). A slow phase affects all candidates alike, so ratios are more robust to a changing clock than times
are. They are NOT robust to other work on the same cores: every parallel region then waits for a thread that has lost
its core, for up to milliseconds each, so the ratio then depends on the number of parallel regions. The spread does not
show this. So a measurement records the share of the processors that others used meanwhile. Nor are they robust to cores
that a host moves (bench/cores.py): of the rounds, those with the fastest placement are kept, if there are enough, and
the others are counted.

On a GPU a turn is timed by a pair of CUDA events around the burst: this is the time of the device, and of the host if
the device waits for it, as it does in training. There every burst has the same duration, so that a slow peer has fewer
calls in it: a GPU is only available for minutes, and its workers do not fall asleep.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from bench.cores import placements_of, round_trip_ns
from bench.load import CpuLoad

PERCENTILES = (5, 25, 50, 75, 95)
WARM_UP_ROUNDS = 5
BURST_US = 5_000  # approximate duration of a turn of the fastest candidate, on a GPU of every one
MOST_CALLS = 50
MIN_ROUNDS = 10
MOST_ROUNDS = 2  # times those that were asked for, to make up for rounds that are left out


class Candidate(NamedTuple):
    """What is timed, and the untimed preparation before each time."""

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


class Ratio(NamedTuple):
    """The time of one candidate over that of another: of the medians, and the quartiles of the rounds' ratios."""

    of_medians: float
    p25: float
    p75: float


class Timings:
    """The microseconds of every candidate in every round."""

    def __init__(
        self,
        rounds_us: Mapping[str, np.ndarray],
        others_cpu_share: float | None = None,
        *,
        round_trip_ns: float | None = None,
        left_out: int = 0,
    ) -> None:
        self.rounds_us = dict(rounds_us)
        self.others_cpu_share = others_cpu_share  # 0 to 1, None where it is unknown
        self.round_trip_ns = round_trip_ns  # between cores, the rounds' median; None where it is unknown
        self.left_out = left_out  # rounds with another placement of the cores

    @property
    def rounds(self) -> int:
        """How often each candidate was timed."""
        return len(next(iter(self.rounds_us.values())))

    def median_us(self, name: str) -> float:
        """Return the median of one candidate."""
        return float(np.median(self.rounds_us[name]))

    def percentiles_us(self, name: str) -> dict[str, float]:
        """Return {"p5": ..., "p95": ...} of one candidate."""
        values = np.percentile(self.rounds_us[name], PERCENTILES)
        return {f"p{p}": round(float(value), 2) for p, value in zip(PERCENTILES, values, strict=True)}

    def ratio(self, numerator: str, denominator: str) -> Ratio:
        """Return the time of `numerator` over the time of `denominator`."""
        p25, p75 = np.percentile(self.rounds_us[numerator] / self.rounds_us[denominator], (25, 75))
        return Ratio(self.median_us(numerator) / self.median_us(denominator), float(p25), float(p75))


def interleave(
    candidates: Mapping[str, Candidate],
    *,
    rounds: int,
    burst_us: float = BURST_US,
    limit_seconds: float | None = None,
    device: torch.device | None = None,
    watches_cores: bool = True,
    settles: bool = False,
) -> Timings:
    """Time each candidate once per round, after a warm-up; a time is the mean over a burst of calls.

    limit_seconds: ends the measurement early, but not before MIN_ROUNDS (or `rounds`, if fewer). watches_cores: keep
    rounds of one placement of the cores; beside busy processes nobody could tell. settles: on a CPU, a burst begins
    with as many calls that are not timed, which bring back to the caches what other candidates have driven out: tables
    of tens of megabytes, which stay there while a model trains. Raises ValueError without candidates or rounds.
    """
    if not candidates or rounds < 1:
        raise ValueError("interleave needs at least one candidate and one round")
    on_gpu = device is not None and device.type == "cuda"
    burst = _cuda_burst_us if on_gpu else _settled_burst_us if settles else _burst_us
    once = np.ones(len(candidates), dtype=int)
    warm_up_us = [_round(candidates, once, burst) for _ in range(WARM_UP_ROUNDS)]
    last_us = np.array(warm_up_us[-1])
    calls = np.clip(burst_us / (last_us if on_gpu else np.full_like(last_us, last_us.min())), 1, MOST_CALLS)
    rows_us: list[list[float]] = []
    trip_ns = (lambda: None) if on_gpu or not watches_cores else round_trip_ns
    trips_ns = [trip_ns()]
    started = time.perf_counter()
    load = CpuLoad()
    kept = np.zeros(0, bool)
    with _garbage_collector_off():
        while len(rows_us) < MOST_ROUNDS * rounds and kept.sum() < rounds:
            late = limit_seconds is not None and time.perf_counter() - started > limit_seconds
            if late and len(rows_us) >= MIN_ROUNDS:
                break
            rows_us.append(_round(candidates, calls.astype(int), burst))
            trips_ns.append(trip_ns())
            kept = _best_placed(trips_ns, np.array(rows_us).sum(1), min(MIN_ROUNDS, rounds))
    if not kept.any():
        kept[:] = True
    columns_us = np.array(rows_us)[kept].T
    return Timings(
        dict(zip(candidates, columns_us, strict=True)), load.others_share(), round_trip_ns=_median(trips_ns, kept),
        left_out=int((~kept).sum()),
    )  # fmt: skip


def _best_placed(trips_ns: Sequence[float | None], rounds_us: np.ndarray, enough: int) -> np.ndarray:
    """Return for every round whether to keep it: those with the placement of cores in which rounds are fastest.

    trips_ns: before the first round, and after each; a round counts if both of its own are of one placement. None are
    kept if no placement has enough rounds; all, if nothing is known.
    """
    if None in trips_ns:
        return np.ones(len(rounds_us), bool)
    placements = placements_of(np.array(trips_ns, float))
    same = placements[:-1] == placements[1:]
    found = [same & (placements[1:] == placement) for placement in np.unique(placements)]
    found = [rounds for rounds in found if rounds.sum() >= enough]
    return min(found, key=lambda rounds: np.median(rounds_us[rounds]), default=np.zeros(len(rounds_us), bool))


def _median(trips_ns: Sequence[float | None], kept: np.ndarray) -> float | None:
    known = [trip for trip, is_kept in zip(trips_ns[1:], kept, strict=True) if is_kept and trip is not None]
    return round(float(np.median(known)), 1) if known else None


Burst = Callable[[Candidate, int], float]


def _round(candidates: Mapping[str, Candidate], calls: np.ndarray, burst: Burst) -> list[float]:
    """Return microseconds per call of each candidate, the mean over a burst of its calls."""
    return [burst(candidate, int(n)) for candidate, n in zip(candidates.values(), calls, strict=True)]


def _burst_us(candidate: Candidate, calls: int) -> float:
    elapsed_ns = 0
    for _ in range(calls):
        candidate.prepare()
        started_ns = time.perf_counter_ns()
        candidate.run()
        elapsed_ns += time.perf_counter_ns() - started_ns
    return elapsed_ns / calls / 1e3


def _settled_burst_us(candidate: Candidate, calls: int) -> float:
    _burst_us(candidate, calls)
    return _burst_us(candidate, calls)


def _cuda_burst_us(candidate: Candidate, calls: int) -> float:
    started, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    started.record()
    for _ in range(calls):
        candidate.prepare()
        candidate.run()
    ended.record()
    ended.synchronize()
    return started.elapsed_time(ended) * 1e3 / calls


def cold_us(candidate: Candidate, device: torch.device, calls: int = 30) -> float:
    """Return the median microseconds of a call on a GPU with a cold L2 cache.

    A buffer larger than the cache is written before each call; meanwhile the host runs ahead, so this is hardly more
    than the device's own time.
    """
    buffer = torch.empty(2**28, dtype=torch.uint8, device=device)
    pairs = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(calls)
    ]
    for started, ended in pairs:
        candidate.prepare()
        buffer.zero_()
        started.record()
        candidate.run()
        ended.record()
    torch.cuda.synchronize()
    return float(np.median([started.elapsed_time(ended) * 1e3 for started, ended in pairs]))


@contextmanager
def _garbage_collector_off() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
