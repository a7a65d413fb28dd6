"""The autotuner: time every plan on a grid of shapes, and store the fastest for each in a table for this device.

Opt-in, and never inside a training step: `choose_plan` reads the table that `tune` has written.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .chosen import OP
from .layout import HeadLayout, HeadSpec, Kind
from .op import multitask_loss
from .plans import (
    PLANS_OF,
    ROW_BLOCKS,
    Shape,
    device_key,
    table_path,
    tuned_tables,
)

try:
    import fcntl
except ImportError:  # not available on Windows
    fcntl = None  # type: ignore[assignment]


class Trial(NamedTuple):
    """Softmax heads of `sizes` classes over (N, D) features."""

    N: int
    D: int
    sizes: tuple[int, ...]


GRID = tuple(
    Trial(N, D, sizes)
    for N in (512, 4096, 32768)
    for D in (64, 256, 1024)
    for sizes in ((2,) * 8, (10, 5, 5), (17, 50, 50, 30, 4, 4, 2, 2), (17, 2000), (17, 20000))
)
# Trials with more multiply-adds take too long to time: half a second on two cores, a millisecond on a GPU.
MOST_PRODUCTS = {"cpu": 3e10, "cuda": 1e13}
# Every plan is timed at least LEAST_ROUNDS times, then up to MOST_ROUNDS times until a trial has taken TRIAL_SECONDS.
LEAST_ROUNDS, MOST_ROUNDS, TRIAL_SECONDS = 5, 100, 0.3


def tune(
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    grid: tuple[Trial, ...] = GRID,
    progress: Callable[[Trial, dict[str, float]], None] = lambda trial, ms: None,
) -> list[dict[str, Any]]:
    """Time all plans on the trials that this device can handle; return rows of {of, shape, plan, ms by plan}.

    of: the backend, or "triton rows": there a "plan" is one of ROW_BLOCKS, the sizes of the packed plan's programs.
    `progress` is called for every trial. Raises RuntimeError if no kernels run on this device and dtype.
    """
    backend = OP.choose(device.type, dtype)
    if backend.name == "reference":
        raise RuntimeError(f"nothing to tune: {backend.reason}")
    try:
        tuned_tables()
    except ValueError:  # it will be written anew, and plans that read it must run
        save([], device, dtype)
    rows: list[dict[str, Any]] = []
    for trial in grid:
        if trial.N * trial.D * sum(trial.sizes) > MOST_PRODUCTS[device.type]:
            continue
        shape = Shape(trial.N, trial.D, sum(trial.sizes), max(trial.sizes), dtype.itemsize)
        timed: list[tuple[str, dict[str, float]]] = [
            (backend.name, _time(dict(_runs(trial, device, dtype)), device))
        ]
        if "packed" in timed[0][1]:
            timed.append(("triton rows", _time(dict(_runs_of_rows(trial, device, dtype)), device)))
        for of, ms in timed:
            rows.append({"of": of, "shape": shape._asdict(), "plan": min(ms, key=ms.__getitem__), "ms": ms})
            progress(trial, ms)
    return rows


def save(rows: list[dict[str, Any]], device: torch.device, dtype: torch.dtype) -> str:
    """Write rows as this device's table for this dtype, keeping the tables of others; return the file's path.

    The file is replaced atomically.
    """
    path = table_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone_in(path.parent):
        try:
            tables = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            tables = {}
        for of in sorted({row["of"] for row in rows}):
            key = device_key(of, device)
            others = [row for row in tables.get(key, ()) if row["shape"]["itemsize"] != dtype.itemsize]
            tables[key] = others + [row for row in rows if row["of"] == of]
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            written = Path(folder, path.name)
            written.write_text(json.dumps(tables, indent=1), encoding="utf-8")
            os.replace(written, path)
    tuned_tables.cache_clear()
    return str(path)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from saving their tables to this folder during the block, where there are locks."""
    descriptor = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    try:
        if descriptor is not None:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _time(runs: dict[str, Callable[[], None]], device: torch.device) -> dict[str, float]:
    """Return the median milliseconds of every run by name, without those that raise for their shape."""
    times: dict[str, list[float]] = {plan: [] for plan in runs}
    for plan, run in list(runs.items()):
        try:
            run()
        except (RuntimeError, ValueError):
            del runs[plan], times[plan]
    trial_started = time.perf_counter()
    for done in range(MOST_ROUNDS):
        if done >= LEAST_ROUNDS and time.perf_counter() - trial_started > TRIAL_SECONDS:
            break
        for plan, run in runs.items():
            _wait(device)
            started = time.perf_counter()
            run()
            _wait(device)
            times[plan].append(1e3 * (time.perf_counter() - started))
    return {plan: round(statistics.median(ms), 4) for plan, ms in times.items()}


def _runs_of_rows(
    trial: Trial, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield forward and backward of the packed plan by each of ROW_BLOCKS."""
    use = OP.load("triton", "row_blocks").use
    packed = dict(_runs(trial, device, dtype))["packed"]
    for name in ROW_BLOCKS:

        def run(name: str = name) -> None:
            with use(name):
                packed()

        yield name, run


def _runs(trial: Trial, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], None]]]:
    generator = torch.Generator().manual_seed(0)
    layout = HeadLayout(tuple(HeadSpec(Kind.SOFTMAX, size) for size in trial.sizes))

    def randn(*shape: int) -> torch.Tensor:
        return (
            torch.randn(*shape, generator=generator, dtype=torch.float32).to(device, dtype).requires_grad_()
        )

    features, weight, bias = randn(trial.N, trial.D), randn(layout.width, trial.D), randn(layout.width)
    targets = [torch.randint(size, (trial.N,), generator=generator).to(device) for size in trial.sizes]
    task_weights = torch.ones(len(layout), dtype=torch.float32, device=device)
    backend = OP.choose(device.type, dtype).name
    for plan in PLANS_OF[backend]:

        def run(plan: str = plan) -> None:
            features.grad = weight.grad = bias.grad = None
            out = multitask_loss(features, weight, bias, targets, task_weights, layout, plan=plan)
            out.total.backward()

        yield plan, run


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
