"""The last programs of calls with as many rows as there may be, in Triton's interpreter: python -m <this> OUT.npz.

Tensors lie in memory that is reserved only where it is touched. The interpreter refuses every sum and product of 32
bits that overflows, and an offset that does so all the same misses the rows that are looked at.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from triton.runtime import interpreter

from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind
from mt2st_fast.kernels.context.on_triton.draws import context_rows_kernel
from mt2st_fast.kernels.context.on_triton.training import STRETCH
from mt2st_fast.kernels.heads.call import HeadsCall
from mt2st_fast.kernels.heads.on_triton import chunk_losses, targets, tile, upstream
from mt2st_fast.kernels.heads.on_triton.chunk import Chunk
from mt2st_fast.kernels.heads.on_triton.mean_scales import Scales
from mt2st_fast.kernels.heads.on_triton.packed import logit_losses
from mt2st_fast.kernels.heads.on_triton.row_blocks import BESIDE_WIDE
from mt2st_fast.kernels.heads.on_triton.tables import head_tables
from mt2st_fast.kernels.heads.on_triton.targets import MOST_ADDRESSES, MOST_ROWS, locate_targets
from mt2st_fast.kernels.machine.launch import Variant, cdiv
from tests.kernels.heads.interpreted_heads import summed_loss

NO_RESERVE = 0x4000  # Linux; Python names it from 3.13 on
LOOKED_AT = 3  # rows at the end that have targets
BUILDER = interpreter.interpreter_builder


class Sparse:
    """Tensors of any size, zero at first, of which only touched pages take memory."""

    def __init__(self, n_bytes: int = 1 << 42) -> None:
        self._memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
        self._used = 0

    def empty(self, *shape: Any, dtype: torch.dtype = torch.float32, **_: Any) -> Tensor:
        """As torch.empty."""
        sizes = shape[0] if shape and not isinstance(shape[0], int) else shape
        count = max(1, prod(sizes))
        flat = torch.frombuffer(self._memory, dtype=dtype, count=count, offset=self._used)
        self._used += -(-count * dtype.itemsize // 4096) * 4096
        return flat[: prod(sizes)].view(*sizes)


def _first_of(tensor: Tensor) -> Tensor:
    """The interpreter copies the whole storage of an argument: here, a storage of the first element alone."""
    place = (ctypes.c_char * tensor.element_size()).from_address(tensor.data_ptr())
    return torch.frombuffer(place, dtype=tensor.dtype, count=1)


@contextmanager
def _program(number: int, of: int) -> Iterator[None]:
    """What is interpreted meanwhile is that program of so many, with checks for overflow."""

    def set_grid_idx(x: int, y: int, z: int) -> None:
        BUILDER.grid_idx, BUILDER.grid_dim = (number, 0, 0), (of, 1, 1)

    options = replace(BUILDER.options, debug=True)
    with (
        mock.patch.object(BUILDER, "set_grid_idx", set_grid_idx),
        mock.patch.object(BUILDER, "options", options),
    ):
        yield


def _launch_last(
    self: Variant, n_programs: int, tensors: Sequence[Tensor], integers: Sequence[int], known: Any = None
) -> None:
    with _program(n_programs - 1, n_programs):
        self.kernel[(1,)](*map(_first_of, tensors), *integers, **self.constexprs, **self.options)


def _targets(sparse: Sparse, layout: HeadLayout, N: int) -> list[Tensor]:
    """The last rows have classes and values; the others have class 0, which nobody reads."""
    made = []
    for head in layout.heads:
        if head.kind is Kind.SOFTMAX:
            target = sparse.empty(N, dtype=torch.int64)
            target[-LOOKED_AT:] = torch.randint(head.size, (LOOKED_AT,))
        else:
            target = sparse.empty(N, head.size)
            target[-LOOKED_AT:] = torch.randn(LOOKED_AT, head.size)
        made.append(target)
    return made


def _expected(logits: Tensor, layout: HeadLayout, of_rows: Sequence[Tensor]) -> np.ndarray:
    """The sums (K, 3) of the rows at the end."""
    found = [
        summed_loss(logits[:, first:last].double(), target[-LOOKED_AT:], head)
        for (first, last, head), target in zip(layout, of_rows, strict=True)
    ]
    return np.array([[float(part) for part in sums] for sums in found])


def _call(sparse: Sparse, layout: HeadLayout, N: int, D: int) -> HeadsCall:
    features = sparse.empty(N, D, dtype=torch.float16)
    features[-LOOKED_AT:] = torch.randn(LOOKED_AT, D)
    weight = torch.randn(layout.width, D, dtype=torch.float16)
    own = _targets(sparse, layout, N)
    return HeadsCall(features, weight, None, own, torch.ones(len(layout)), layout, (True, True, True))


def run_tile(sparse: Sparse, store: dict[str, np.ndarray]) -> None:
    """Both launches of the tile plan; the mean of all blocks would take the interpreter hours.

    The last part of the weight's gradient is a short one, whose rows would end past 2^31 if it were not.
    """
    layout = HeadLayout((HeadSpec(Kind.SOFTMAX, 5), HeadSpec(Kind.SQUARED, 3), HeadSpec(Kind.SOFTMAX, 9)))
    N = MOST_ROWS - 64 + LOOKED_AT  # the last block of rows has those that are looked at, and no others
    call, found = _call(sparse, layout, N, 16), []
    with (
        mock.patch.object(tile, "take_means", lambda sums, weights: found.append(sums) or mock.Mock()),
        mock.patch.object(tile, "rows_per_part", lambda N, D, blocks: N // 128 // blocks.rows * blocks.rows),
    ):
        dz = tile.forward(call).residual[0]
        # The last program is a tile's if the features' gradient is needed, else a part's.
        d_features, d_weight = (
            tile.backward(call._replace(needs=needs), (dz, torch.ones(3)), torch.ones(()), own=False)[i]
            for i, needs in enumerate(((True, True, False), (False, True, False)))
        )
    assert d_features is not None
    assert d_weight is not None
    of_tile = dz[-LOOKED_AT:, : layout.width].float() @ call.weight.float()
    store["tile-features"], store["tile-features/true"] = d_features[-LOOKED_AT:].numpy(), of_tile.numpy()
    of_last_row = dz[-LOOKED_AT:, layout.width - 1].float() @ call.features[-LOOKED_AT:].float()
    store["tile-weight"], store["tile-weight/true"] = d_weight[-1].numpy(), of_last_row.numpy()
    logits = call.features[-LOOKED_AT:].float() @ call.weight.float().t()
    store["tile"], store["tile/true"] = found[0][-1].numpy(), _expected(logits, layout, call.targets)


def run_rows(sparse: Sparse, store: dict[str, np.ndarray]) -> None:
    """Losses from logits: of the packed plan, and of narrow heads beside a wide one of either kind."""
    wide = (HeadSpec(Kind.SOFTMAX, 5), HeadSpec(Kind.SOFTMAX, 150), HeadSpec(Kind.SQUARED, 140))
    for name, heads in (("packed", wide[:1] * 2), ("chunked", wide)):
        layout = HeadLayout(heads)
        N, n_columns = MOST_ROWS - 128 + LOOKED_AT, 8 * -(-layout.width // 8)
        row_stride = 16 * -(-n_columns // 16)
        call = _call(sparse, layout, N, 1)
        logits = sparse.empty(N, row_stride, dtype=torch.float16)[:, :n_columns]
        logits[-LOOKED_AT:] = torch.randn(LOOKED_AT, n_columns)
        expected = _expected(logits[-LOOKED_AT:].float(), layout, call.targets)
        if name == "packed":
            sums = logit_losses(call, logits).sums[-1]
        else:
            split, rows = chunk_losses.split_heads(layout, n_columns), 64
            of_blocks = sparse.empty(chunk_losses.n_sums(split, N, rows), len(layout), 3)
            located, tables = (
                locate_targets(call.targets, layout, N),
                head_tables(layout, logits.device),
            )
            scales = Scales(torch.ones(len(layout)), None)
            chunk_losses.take_losses(Chunk(call, tables, located, scales, logits, 0, of_blocks), split, rows)
            assert split.narrow is not None
            # A program of the narrow head has other rows than one of the wide heads.
            sums = torch.stack(
                [
                    of_blocks[cdiv(N, BESIDE_WIDE.rows(split.narrow.columns)) - 1, 0],
                    *of_blocks[cdiv(N, rows) - 1, 1:],
                ]
            )
        store[name], store[f"{name}/true"] = sums.numpy(), expected


def run_many_heads(sparse: Sparse, store: dict[str, np.ndarray]) -> None:
    """So many heads that their classes lie side by side; with 2^28 rows, a head's take 2^31 bytes."""
    layout = HeadLayout((HeadSpec(Kind.SOFTMAX, 2),) * (MOST_ADDRESSES + 1))
    N = (1 << 28) + LOOKED_AT
    classes = sparse.empty(len(layout), N, dtype=torch.int64)
    classes[:, -LOOKED_AT:] = torch.randint(2, (len(layout), LOOKED_AT))
    call = _call(sparse, layout, N, 16)._replace(targets=list(classes))
    found: list[Tensor] = []
    with (
        mock.patch.object(tile, "take_means", lambda sums, weights: found.append(sums) or mock.Mock()),
        mock.patch.object(targets, "pack_targets", return_value=(classes, None)),
    ):
        tile.forward(call)
    logits = call.features[-LOOKED_AT:].float() @ call.weight.float().t()
    store["many"], store["many/true"] = found[0][-1].numpy(), _expected(logits, layout, call.targets)


def run_upstream(sparse: Sparse, store: dict[str, np.ndarray]) -> None:
    """A gradient of almost 2^31 elements: the last block is scaled, too."""
    n = (1 << 31) - 1024
    gradient = sparse.empty(n, dtype=torch.float16)
    gradient[-LOOKED_AT:] = 1.0
    with _program(upstream.MAX_PROGRAMS - 1, upstream.MAX_PROGRAMS):
        one, size = _first_of(gradient), {"n_features": n, "n_weight": 0, "n_bias": 0}
        in_place = {"FEATURES_IN_PLACE": True, "WEIGHT_IN_PLACE": True, "BIAS_IN_PLACE": True}
        upstream.upstream_kernel[(1,)](
            *[one] * 6, torch.tensor(3.0), **size, **in_place, BLOCK=upstream.BLOCK
        )
    store["upstream"], store["upstream/true"] = gradient[-LOOKED_AT:].numpy(), np.full(LOOKED_AT, 3.0)


def run_draws(sparse: Sparse, store: dict[str, np.ndarray]) -> None:
    """So many walkers that the rows of their words number 2^31: what the last draws is what the first would, there."""
    R, last = 32, 1 << 16
    table = torch.zeros(9, dtype=torch.int32)
    found = {}
    for name, i_s, first_stretch in (("draws", last, 0), ("draws/true", 0, last)):
        N = (i_s + 1) * STRETCH
        words, places, counts = (sparse.empty(n, dtype=torch.int32) for n in (N, N, i_s + 1))
        words[i_s * STRETCH :][:3], places[i_s * STRETCH :][:3] = torch.tensor([3, 1, 4]), 2
        counts[i_s] = 3
        rows, shares = sparse.empty(N, R, dtype=torch.int32), sparse.empty(N, R)
        pairs = sparse.empty(N, dtype=torch.int32)
        tensors = words, places, counts, table, table, rows, shares, table, pairs
        with _program(i_s, i_s + 1):
            context_rows_kernel[(1,)](
                *map(_first_of, tensors), first_stretch, 9, 0.5, 7, 11,
                STRETCH=STRETCH, WINDOW=2, CBOW=False, R=R, A=4, BLOCK=8,
            )  # fmt: skip
        last_words = slice(i_s * STRETCH, i_s * STRETCH + 3)
        parts = (rows[last_words], shares[last_words], pairs[last_words, None].expand(3, R))
        found[name] = torch.cat(parts).numpy()
    assert found["draws/true"].any()
    store.update(found)


def run_in_sparse_memory(
    run: Callable[[Sparse, dict[str, np.ndarray]], None], store: dict[str, np.ndarray]
) -> None:
    """Run what launches kernels: it gets sparse tensors, and its last programs are interpreted."""
    sparse = Sparse()

    def empty_like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return sparse.empty(tensor.shape, dtype=dtype or tensor.dtype)

    def new_empty(tensor: Tensor, *shape: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return sparse.empty(*shape, dtype=dtype or tensor.dtype)

    with (
        mock.patch.object(Variant, "launch", _launch_last),
        mock.patch.object(torch, "empty", sparse.empty),
        mock.patch.object(torch, "empty_like", empty_like),
        mock.patch.object(Tensor, "new_empty", new_empty),
    ):
        run(sparse, store)


def main(out: str) -> None:
    store: dict[str, np.ndarray] = {}
    for run in (run_tile, run_rows, run_many_heads, run_upstream, run_draws):
        run_in_sparse_memory(run, store)
    np.savez(out, **store)


if __name__ == "__main__":
    main(*sys.argv[1:])
