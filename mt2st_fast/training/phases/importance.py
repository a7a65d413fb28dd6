"""How much every part of a model matters to every task, measured on held-out batches; nothing moves.

A part is anything that can be frozen by itself: a layer, a head, or some rows of a row-sparse table, grouped by how
many of the batches use them. With g the gradient of a task's mean loss on a batch, and w a part's parameters, the
importance is the mean over the batches of

    taylor  (sum g w)^2    the loss change if the part is set to zero, to first order, squared (Molchanov et al.
                           2017, arXiv 1611.06440; squared as in Molchanov et al. 2019, arXiv 1906.10771)
    fisher  sum g^2        the diagonal of the empirical Fisher information, of batches instead of examples: how fast
                           the loss falls, to first order, if a gradient step moves only this part

The cost of a part is how many of its numbers a step moves: all numbers of a layer; for a table, those in the rows that
a batch uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.modes import evaluating
from mt2st_fast.model.shared_parameters import of_encoder
from mt2st_fast.training.engines import StepParts
from mt2st_fast.training.inputs.batch import Batch, some_rows, to_device
from mt2st_fast.training.inputs.encoding import encode_shared
from mt2st_fast.training.optimizers.row_sparse import RowSparseOptimizer, unfuse
from mt2st_fast.training.schedules.shown import Importances, Measure, ModelPart

MOST_BATCHES = 4  # batches to measure on: a few steps' worth, whatever the held-out data
MOST_AUXILIARY_BATCHES = 1  # of these, for tasks about to retire: nothing depends on their importance


class _Moments(NamedTuple):
    """Sums over a parameter's gradient g in one batch: over all its numbers, or for each row (U,) with a gradient."""

    rows: Tensor | None
    products: Tensor  # () or (U,), sums of g w
    squares: Tensor  # () or (U,), sums of g^2


def importances(parts: StepParts, batches: Iterable[Batch], measure: Measure) -> Importances:
    """Measure everything that trains, for every active task that the held-out batches have targets for.

    Uses some rows of the first MOST_BATCHES batches for the main task, and of fewer for the others. Raises ValueError
    if no batch has a target of the main task.
    """
    layers = list(_layers(parts))
    trained = [p for _, _, owned in layers for p in owned]
    seen = _gradients(parts, trained, batches)
    main = parts.heads.main
    if main not in seen:
        raise ValueError(
            f"no held-out batch has a target of the main task {main}: importance cannot be measured"
        )
    found = [part for layer in layers for part in _parts_of(layer, trained, seen[main], parts)]
    by_task = {
        task: tuple(_importance(part, trained, of_batches, measure) for part in found)
        for task, of_batches in seen.items()
    }
    return Importances(main, tuple(found), by_task)


# --- gradients -------------------------------------------------------------------------------------------


def _gradients(
    parts: StepParts, trained: Sequence[nn.Parameter], batches: Iterable[Batch]
) -> dict[str, list[list[_Moments | None]]]:
    """Return, by task and batch with its targets, the moments of each parameter's gradient; None: no gradient."""
    seen: dict[str, list[list[_Moments | None]]] = {}
    # Dropout would draw random numbers, and so change those of training.
    with evaluating(parts.encoder), _gradients_of_tables(parts), torch.enable_grad():
        for batch in islice(batches, MOST_BATCHES):
            inputs, targets = (to_device(part, parts.device) for part in some_rows(batch))
            with parts.autocast():
                features, mask = encode_shared(parts.encoder, inputs)
            present = [n for n in parts.heads.active if n in targets and _is_wanted(n, parts.heads, seen)]
            for task in present:
                with parts.autocast():
                    loss = parts.heads(features, {task: targets[task]}, {task: 1.0}, mask=mask).total
                found = torch.autograd.grad(
                    loss, trained, retain_graph=task != present[-1], allow_unused=True
                )
                moments = [_moments(g, p) for g, p in zip(found, trained, strict=True)]
                seen.setdefault(task, []).append(moments)
    return seen


def _is_wanted(task: str, heads: MultiTaskHeads, seen: Mapping[str, Sequence[object]]) -> bool:
    """Return whether to measure a task on one more batch."""
    if heads.is_word_task(task):  # it has no loss on features
        return False
    return task == heads.main or len(seen.get(task, ())) < MOST_AUXILIARY_BATCHES


@contextmanager
def _gradients_of_tables(parts: StepParts) -> Iterator[None]:
    """Within the block, the backward pass makes the gradients of tables that it would otherwise step."""
    unfuse(parts.fused_tables)
    try:
        yield
    finally:
        if parts.fused_tables:
            assert isinstance(parts.optimizer, RowSparseOptimizer)
            parts.optimizer.fuse(parts.fused_tables)


def _moments(gradient: Tensor | None, parameter: Tensor) -> _Moments | None:
    if gradient is None:
        return None
    values, exact = parameter.detach(), torch.float64
    if not gradient.is_sparse:
        return _Moments(None, (gradient * values).sum(dtype=exact), gradient.square().sum(dtype=exact))
    # Autograd drops the mark of a coalesced gradient; it matters if rows occur twice.
    gradient = gradient.coalesce()
    rows, g = gradient._indices()[0], gradient._values().flatten(1)
    products, squares = g * values[rows].flatten(1), g.square()
    return _Moments(rows, products.sum(1).to(exact), squares.sum(1).to(exact))


# --- parts -----------------------------------------------------------------------------------------------

_Layer = tuple[str, str | None, tuple[nn.Parameter, ...]]  # name, task of a head, parameters


def _layers(parts: StepParts) -> Iterator[_Layer]:
    """Yield every module with trained parameters of its own, and every active task's head. A parameter comes once."""
    seen: set[int] = set()

    def new(parameters: Iterable[nn.Parameter]) -> tuple[nn.Parameter, ...]:
        found = [p for p in parameters if p.requires_grad and id(p) not in seen]
        seen.update(map(id, found))
        return tuple(found)

    # An encoder may hold the heads as well: they count as heads, but for parameters that it has itself.
    of_shared = {id(p) for p in of_encoder(parts.encoder, parts.heads)}
    heads = [
        (task, new(p for p in _parameters_of(parts.heads, task) if id(p) not in of_shared))
        for task in parts.heads.active
    ]
    for path, module in parts.encoder.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if owned := new(own.values()):
            # A module with one parameter is named after it: a table, not the encoder around it.
            name = f"{path}.{next(iter(own))}".strip(".") if len(own) == 1 else path
            yield f"encoder/{name}".rstrip("/"), None, owned
    yield from ((f"heads/{task}", task, owned) for task, owned in heads if owned)


def _parameters_of(heads: MultiTaskHeads, task: str) -> Iterator[nn.Parameter]:
    """Return a task's own parameters."""
    if heads.is_word_task(task):
        return iter(())
    module = heads.open_task(task) if heads.is_open_task(task) else heads.linear(task)
    return module.parameters()


def _parts_of(
    layer: _Layer,
    trained: Sequence[nn.Parameter],
    of_batches: Sequence[Sequence[_Moments | None]],
    parts: StepParts,
) -> Iterator[ModelPart]:
    """Yield the layer itself; for a row-sparse table whose rows can be frozen, groups of rows with similar use."""
    name, task, owned = layer
    place = next(i for i, p in enumerate(trained) if p is owned[0])
    used = [moments[place] for moments in of_batches]
    rows_used = [m.rows for m in used if m is not None and m.rows is not None]
    can_be_split = isinstance(parts.optimizer, RowSparseOptimizer) and not parts.fused_tables
    if len(owned) > 1 or not rows_used:
        yield ModelPart(name, owned, float(sum(p.numel() for p in owned)), None, task)
        return
    table = owned[0]
    per_row = table.numel() // len(table)
    uses = torch.zeros(len(table), dtype=torch.int64, device=table.device)
    for rows in rows_used:
        uses[rows] += 1
    if not can_be_split:
        yield ModelPart(name, owned, float(uses.sum()) * per_row / len(of_batches), None, task)
        return
    for low, high in _bands(len(of_batches)):
        rows = (uses >= low) & (uses <= high)
        if rows.any():
            times = f"{low}" if low == high else f"{low} to {high}"
            text = f"{name}, rows in {times} of {len(of_batches)} batches"
            yield ModelPart(text, owned, float(uses[rows].sum()) * per_row / len(of_batches), rows, task)


def _bands(n_batches: int) -> Iterator[tuple[int, int]]:
    """Yield ranges (first, last) of numbers of uses to group: 0, 1, 2 to 3, 4 to 7, ..., all."""
    yield 0, 0
    low = 1
    while low < n_batches:
        yield low, min(2 * low, n_batches) - 1
        low *= 2
    yield n_batches, n_batches


def _importance(
    part: ModelPart,
    trained: Sequence[nn.Parameter],
    of_batches: Sequence[Sequence[_Moments | None]],
    measure: Measure,
) -> float:
    """Return the mean over the batches."""
    owned = {id(p) for p in part.parameters}
    places = [i for i, p in enumerate(trained) if id(p) in owned]
    found = [_of_batch([moments[i] for i in places], part.rows, measure) for moments in of_batches]
    return sum(found) / len(found)


def _of_batch(moments: Sequence[_Moments | None], rows: Tensor | None, measure: Measure) -> float:
    sums = [0.0, 0.0]
    for each in moments:
        if each is None:
            continue
        chosen = slice(None) if rows is None or each.rows is None else rows[each.rows]
        for i, values in enumerate((each.products, each.squares)):
            sums[i] += float(values.reshape(-1)[chosen].sum())
    products, squares = sums
    return products**2 if measure == "taylor" else squares
