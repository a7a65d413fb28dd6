"""Bags of words on a GPU: passes over documents compared with our CPU kernels, and row updates with the copy of their
bytes.

A pass handles every document once, by fused steps over batches that are already on the device. The CPU's pass uses
THREADS threads, in the same run and with the same taking of turns. The floor of an update is the time of copying its
bytes at the bandwidth measured just before: every input read once, every row and its state read and written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from bench import ledger
from bench.accuracy import InaccurateError, relative_error
from bench.bag_cases import CLASSES, FAMILIES, Documents, bags_of
from bench.device import captured
from bench.floors import copy_bytes_per_second
from bench.interleaved import Candidate, Timings, interleave
from bench.printing import Measured, field, record_and_print
from mt2st_fast import BagEncoder, Classification, MultiTaskHeads, RowwiseAdagrad
from mt2st_fast.kernels import OPS, RowRule, RowState, choose_embedding_backend
from mt2st_fast.kernels.bags import reference as oracle
from mt2st_fast.kernels.bags.batch import Bags
from mt2st_fast.kernels.bags.rules import ADAGRAD, ADAM, RowRuleKind
from mt2st_fast.kernels.machine.registry import REFERENCE

console = Console(width=150)

THREADS = 2
CPU = f"ours on a CPU, {THREADS} threads"
HEADS = {"one head": 1, "five heads": len(FAMILIES)}
# Relative to what a step changes: a wrong step is off by 1, rounding errors are far smaller.
ALLOWED_ERROR = 1e-3


class UpdateCase(NamedTuple):
    """An update of U rows of a table (V, D) by their gradients, or of the rows in B bags of L ids."""

    name: str
    V: int
    D: int
    U: int = 0
    B: int = 0
    L: int = 0
    kind: RowRuleKind = ADAGRAD
    dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> str:
        """The shapes of the table and of the update."""
        rows = f"U={self.U}" if self.U else f"B={self.B} L={self.L}"
        rule = {"sgd": "SGD"}.get(self.kind.name, self.kind.name.capitalize())
        return f"{rows} V={self.V} D={self.D} {str(self.dtype).removeprefix('torch.')} {rule}"

    def floor_bytes(self, n_rows: int) -> int:
        """Return the bytes that must be moved if n_rows rows are touched."""
        item = self.dtype.itemsize
        gradient = n_rows * (8 + self.D * item)
        if self.B:
            ids, starts, scales = 4 * self.B * self.L, 8 * (self.B + 1), 4 * self.B
            gradient = ids + starts + scales + self.B * self.D * item
        kept = 4 * (self.kind.per_row is not None) + 4 * self.D * len(self.kind.tables)
        return gradient + 2 * n_rows * (self.D * item + kept)


class Sizes(NamedTuple):
    """The sizes of all measurements."""

    documents: int
    L: int
    V: int
    dim: int
    cpu_batch: int
    batches: tuple[int, ...]  # divisors of the number of documents, so that every batch of a pass is full
    updates: tuple[UpdateCase, ...]


BF16 = torch.bfloat16
# The long tables are many times larger than a cache, and rows are seldom touched twice.
FULL = Sizes(
    documents=50_000,
    L=40,
    V=50_000,
    dim=100,
    cpu_batch=500,
    batches=(5_000, 12_500),
    updates=(
        UpdateCase("rows of a long table", V=4_000_000, D=128, U=1_000_000),
        UpdateCase("rows of a long table, bfloat16", V=4_000_000, D=128, U=1_000_000, dtype=BF16),
        UpdateCase("rows of a long table, Adam", V=4_000_000, D=128, U=1_000_000, kind=ADAM),
        UpdateCase("bags on a long table", V=4_000_000, D=128, B=32_768, L=40),
        UpdateCase("bags of documents", V=50_000, D=100, B=12_500, L=40),
    ),
)


def measure_gpu(
    environment: ledger.Record, device: torch.device, rounds: int, sizes: Sizes = FULL
) -> Iterator[ledger.Record]:
    """Yield every record as soon as it is measured.

    Raises InaccurateError if a step on this device differs from that on a CPU, or from the oracle; RuntimeError if the
    CPU's kernels cannot run.
    """
    on_cpu = choose_embedding_backend(torch.device("cpu"))
    if on_cpu.name != "numba":
        raise RuntimeError(
            f"the CPU kernels cannot run, so there is nothing to compare with: {on_cpu.reason}"
        )
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        _check_steps(sizes, device)
        for case, n_heads in HEADS.items():
            yield from measure_passes(environment, device, case, n_heads, rounds, sizes)
        yield from measure_updates(environment, device, sizes)
    finally:
        torch.set_num_threads(before)


# --- passes ----------------------------------------------------------------------------------------------


class Pass(NamedTuple):
    """A model's pass over all documents, and its table."""

    run: Callable[[], None]
    table: Tensor


def make_pass(documents: Documents, sizes: Sizes, n_heads: int, batch: int, device: torch.device) -> Pass:
    """Forward, backward and row-wise Adagrad over batches on the device, always with the same initial weights."""
    torch.manual_seed(0)
    encoder = BagEncoder(sizes.V, sizes.dim, sparse=True).to(device)
    tasks = {name: Classification(CLASSES) for name in FAMILIES[:n_heads]}
    heads = MultiTaskHeads(sizes.dim, tasks, FAMILIES[0]).to(device)
    optimizer = RowwiseAdagrad([*encoder.parameters(), *heads.parameters()], lr=0.1)
    optimizer.fuse([encoder.table])
    weights = torch.ones(n_heads, device=device)
    batches = []
    for first in range(0, len(documents.words), batch):
        ids, starts = bags_of(documents.words[first : first + batch])
        labels = torch.from_numpy(documents.labels[first : first + batch]).to(device)
        targets = {name: labels[:, k].contiguous() for k, name in enumerate(tasks)}
        batches.append(((ids.to(device), starts.to(device)), targets))

    def run() -> None:
        for inputs, targets in batches:
            heads(encoder(inputs), targets, weights).total.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return Pass(run, encoder.table)


def measure_passes(
    environment: ledger.Record, device: torch.device, case: str, n_heads: int, rounds: int, sizes: Sizes
) -> list[ledger.Record]:
    """Measure tokens/s of passes with each batch size, with and without a CUDA graph, and of a pass on the CPU."""
    documents = Documents.make(sizes.documents, sizes.L, sizes.V)
    passes = {CPU: make_pass(documents, sizes, n_heads, sizes.cpu_batch, torch.device("cpu"))}
    for batch in sizes.batches:
        passes[f"ours, B={batch}"] = make_pass(documents, sizes, n_heads, batch, device)
    runs = {name: made.run for name, made in passes.items()}
    for batch in sizes.batches if device.type == "cuda" else ():
        try:
            runs[f"ours, B={batch}, graph"] = captured(passes[f"ours, B={batch}"].run, device, warm_ups=1)
        except Exception as error:  # whatever breaks a capture, the other passes are still worth measuring
            console.print(f"[yellow]skipped B={batch}, graph: {type(error).__name__}: {error}[/yellow]")
    timings = interleave(
        {name: Candidate(run) for name, run in runs.items()}, rounds=rounds, burst_us=1.0, device=device
    )
    tokens = sizes.documents * sizes.L
    shape = f"{sizes.documents} documents, L={sizes.L} V={sizes.V} D={sizes.dim}"
    more = {name: {"tokens_per_second": round(tokens / timings.median_us(name) * 1e6)} for name in runs}
    return _report(environment, case, shape, "a pass", timings, CPU, more)


def _check_steps(sizes: Sizes, device: torch.device) -> None:
    """Check that two batches change the table on this device as they do on a CPU."""
    documents = Documents.make(2 * sizes.cpu_batch, sizes.L, sizes.V)
    moves = []
    for place in (device, torch.device("cpu")):
        made = make_pass(documents, sizes, len(FAMILIES), sizes.cpu_batch, place)
        before = made.table.detach().double().cpu().clone()
        made.run()
        moves.append(made.table.detach().double().cpu() - before)
    _hold("a pass", *moves)


def _hold(name: str, ours: Tensor, truth: Tensor) -> None:
    error = relative_error(ours, truth)
    if not error <= ALLOWED_ERROR:  # NaN must fail
        raise InaccurateError(f"{name}: the table's change is off by {error:.3g}")


# --- updates ---------------------------------------------------------------------------------------------


class Update:
    """One case on a device: the kernels, a table, its state, and the inputs of the update."""

    def __init__(self, case: UpdateCase, device: torch.device) -> None:
        self.case = case
        self.rule = RowRule(case.kind, 0.1)
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device).to(case.dtype)

        self.table = normal(case.V, case.D)
        self.state, self.kernels = _state(case, self.table), _kernels_for(self.table)
        if case.B:
            ids = _ids(case, generator, device)
            starts = torch.arange(0, case.B * case.L + 1, case.L, device=device)
            scales = torch.full((case.B,), 1 / case.L, device=device)
            self.moved_by: tuple[Any, Tensor] = (Bags(ids, starts, scales), normal(case.B, case.D))
            self.n_rows = len(ids.unique())
        else:
            rows = torch.randperm(case.V, generator=generator, device=device)[: case.U].sort().values
            self.moved_by = (rows, normal(case.U, case.D))
            self.n_rows = case.U

    def run(self) -> None:
        """Run one update."""
        self._move(self.kernels, self.table, self.moved_by, self.state)

    def check(self) -> None:
        """Compare an update of copies with the oracle's in float64. Raises InaccurateError."""
        truth, ours = self.table.double(), self.table.clone()
        by, gradient = self.moved_by
        exact = (by._replace(scales=by.scales.double()) if self.case.B else by), gradient.double()
        self._move(oracle, truth, exact, _state(self.case, truth))
        self._move(self.kernels, ours, self.moved_by, _state(self.case, ours))
        if self.case.dtype is torch.float32:
            _hold(self.case.name, ours.double() - self.table.double(), truth - self.table.double())
        # In a shorter type, the change is only exact to the rounding of the whole value.
        elif not relative_error(ours, truth) <= torch.finfo(self.case.dtype).eps:
            raise InaccurateError(f"{self.case.name}: the table is off by more than a rounding")

    def _move(
        self, kernels: ModuleType, table: Tensor, moved_by: tuple[Any, Tensor], state: RowState
    ) -> None:
        update = kernels.update_from_bags if self.case.B else kernels.update_rows
        update(self.rule, table, *moved_by, state)


def _ids(case: UpdateCase, generator: torch.Generator, device: torch.device) -> Tensor:
    """Return int32 (B L,): Zipf-distributed if the table is short enough for a text's words, else uniform."""
    total = case.B * case.L
    if case.V > FULL.V:
        ids = torch.randint(case.V, (total,), generator=generator, device=device)
    else:
        words = Documents.make(case.B, case.L, case.V).words
        ids = torch.from_numpy(words.ravel()).to(device)
    return ids.to(torch.int32)


def _state(case: UpdateCase, table: Tensor) -> RowState:
    """Return a state of zeros, in float64 for a table of the oracle."""
    dtype = torch.promote_types(table.dtype, torch.float32)

    def zeros(name: str, shape: tuple[int, ...]) -> Tensor:
        del name
        return torch.zeros(shape, dtype=dtype, device=table.device)

    return case.kind.new_state(zeros, case.V, case.D)


def _kernels_for(table: Tensor) -> ModuleType:
    """Return the protocol's functions for the table's device. Raises RuntimeError if they cannot serve it."""
    op = OPS["bags"]
    name = choose_embedding_backend(table.device).name
    reason = None if name == REFERENCE else op.backends[name].obstacle(table.device.type, table.dtype)
    if reason:
        raise RuntimeError(f"{name}: {reason}")
    return op.load(name, "bags")


def measure_updates(
    environment: ledger.Record, device: torch.device, sizes: Sizes, rounds: int = 30
) -> Iterator[ledger.Record]:
    """Measure the time of every update over that of a copy of its bytes."""
    bytes_per_second = copy_bytes_per_second(device)
    for case in sizes.updates:
        small = case._replace(V=min(case.V, 5_000), U=min(case.U, 2_000), B=min(case.B, 200))
        Update(small, device).check()
        update = Update(case, device)
        floor_bytes = case.floor_bytes(update.n_rows)
        floor_us = floor_bytes / bytes_per_second * 1e6
        timings = interleave({"ours": Candidate(update.run)}, rounds=rounds, limit_seconds=2.0, device=device)
        times = {"ours": timings.rounds_us["ours"], "bytes": np.full(timings.rounds, floor_us)}
        fields = {"floor_us": round(floor_us, 2), "floor_bytes": floor_bytes}
        made = _report(
            environment, case.name, case.shape, "update", Timings(times, timings.others_cpu_share), "bytes",
            {"ours": fields},
        )  # fmt: skip
        yield from (record for record in made if record["peer"] != "bytes")


# --- records ---------------------------------------------------------------------------------------------


def _report(
    environment: ledger.Record,
    case: str,
    shape: str,
    direction: str,
    timings: Timings,
    peer: str,
    more: Mapping[str, dict[str, Any]],
) -> list[ledger.Record]:
    """Print and make records: a pass by its speed-up over its peer, an update by its time over its floor."""
    others = [name for name in timings.rounds_us if name != peer]
    return record_and_print(
        console,
        Measured(environment, "bags", case, shape, direction),
        timings,
        {name: (peer, name) if direction == "a pass" else (name, peer) for name in others},
        more=more,
        columns={"million tokens/s": field("tokens_per_second", 1e-6)},
    )
