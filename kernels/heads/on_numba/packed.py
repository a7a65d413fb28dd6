"""The packed plan on a CPU: by chunks of rows, a GEMM for all heads' logits, the loss pass, a GEMM a gradient.

Denominators are counted first, so that a chunk's gradients come out scaled and its logits can be dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...machine.simd import WIDTH
from ..layout import HeadLayout, HeadSpec, Kind
from ..protocol import Forward, Needs
from .loss_pass import segment_loss
from .passes import (
    RESIDUAL_IS_GRADIENT,
    Batch,
    Outputs,
    backward,
    kernel_tensor,
    residual_like,
    survey_batch,
)

__all__ = ["RESIDUAL_IS_GRADIENT", "backward", "chunk_rows", "forward", "residual_like", "warm_up"]

# Below this many logits the start of a parallel region costs more than it saves.
PARALLEL_LOGITS = 1 << 15
# The logits of a chunk of rows are made, turned into gradients and used up while they are in cache.
CHUNK_BYTES = 4 << 20
# Rows of a tile lie a buffer's row apart: for a power of two they would fall into the same cache sets. The
# loss pass works in whole vectors and may write behind the last row.
PADDING = 16
# The widest head's tile is swept three times: keep it within about half of a 1 MiB cache.
TILE_FLOATS = 1 << 17


def chunk_rows(n_rows: int, width: int) -> int:
    """Rows whose logits are held at a time: even chunks within CHUNK_BYTES, but no sliver of a GEMM."""
    n_chunks = -(-n_rows * width * 4 // CHUNK_BYTES)
    return max(256, -(-n_rows // n_chunks // 16) * 16) if n_chunks > 1 else n_rows


def forward(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    layout: HeadLayout,
    needs: Needs,
    skip_zero_weights: bool = True,
) -> Forward:
    """Losses of all heads, and as residual the gradients of the total that `needs` asks for.

    The gradients are made at once, chunk by chunk, while the logits are in cache: what is kept is of the
    size of the inputs, and the logits are never held whole. bfloat16 and float16 are computed in float32.
    Raises ValueError for a class target outside [0, C) that is not ignore_index.
    """
    batch = survey_batch(targets, task_weights, layout, skip_zero_weights)
    outputs = Outputs(features, weight, batch, needs)
    heads = batch.computed()
    if len(heads):
        _compute(
            batch,
            heads,
            kernel_tensor(features).detach(),
            kernel_tensor(weight).detach(),
            bias,
            outputs,
            needs,
        )
    return outputs.forward()


def _compute(
    batch: Batch,
    heads: np.ndarray,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    outputs: Outputs,
    needs: Needs,
) -> None:
    """All rows of some heads (records), whose rows of the weight are packed anew if they are not all."""
    table, N = batch.table, batch.n_rows
    records, column_weights, index = heads.copy(), table.column_weights, heads["index"]
    bias_s = table.no_bias if bias is None else kernel_tensor(bias).detach().numpy()
    rows_s = None
    if len(heads) < len(table.records):
        rows_s = np.concatenate([np.arange(r["offset"], r["offset"] + r["size"]) for r in records])
        records["offset"] = np.cumsum(records["size"]) - records["size"]
        weight, bias_s = weight[torch.from_numpy(rows_s)], bias_s[rows_s]
        column_weights = column_weights[rows_s]
    S = weight.shape[0]
    tile_rows = max(WIDTH, min(256, TILE_FLOATS // int(records["size"].max()) // WIDTH * WIDTH))
    d_weight_s = torch.zeros(weight.shape if needs[1] else 0)
    loss_sums, correct, bias_gradient = (
        np.zeros(len(heads)),
        np.zeros(len(heads), np.int64),
        np.zeros(S, np.float32),
    )
    B = chunk_rows(N, S)
    buffer = torch.empty(S, B + PADDING)
    for first in range(0, N, B):
        rows = min(B, N - first)
        chunk = features[first : first + rows]
        logits = buffer[:, :rows]
        torch.mm(weight, chunk.t(), out=logits)
        part = segment_loss(
            buffer.numpy(), bias_s, first, rows, tile_rows, records, column_weights, batch.addresses[index], N,
            batch.gradient_scale[index], outputs.wanted, parallel=rows > tile_rows and rows * S >= PARALLEL_LOGITS,
        )  # fmt: skip
        if needs[0]:
            torch.mm(logits.t(), weight, out=outputs.d_features[first : first + rows])
        if needs[1]:
            d_weight_s.addmm_(logits, chunk)
        loss_sums, correct, bias_gradient = loss_sums + part[0], correct + part[1], bias_gradient + part[2]
    outputs.features_written = True
    outputs.losses.numpy()[index] = loss_sums * batch.scale[index]
    outputs.correct.numpy()[index] = correct
    at = slice(None) if rows_s is None else torch.from_numpy(rows_s)
    if needs[1]:
        outputs.d_weight[at] = d_weight_s
    if needs[2]:
        outputs.d_bias[at] = torch.from_numpy(bias_gradient)


def warm_up() -> None:
    """Compile both variants of the loss pass, or load them from Numba's cache: they serve every layout."""
    layout = HeadLayout((HeadSpec(Kind.SOFTMAX, 3), HeadSpec(Kind.SQUARED, 1)))
    targets = (torch.zeros(2, dtype=torch.int64), torch.zeros(2, 1))
    batch = survey_batch(targets, torch.ones(2), layout, skip_zero_weights=True)
    for parallel in (False, True):
        segment_loss(
            np.zeros((4, 2 + PADDING), np.float32), batch.table.no_bias, 0, 2, WIDTH, batch.table.records,
            batch.table.column_weights, batch.addresses, 2, np.ones(2, np.float32), True, parallel=parallel,
        )  # fmt: skip
