"""A whole training step of heads over a hidden layer over windows of words: from word types to moved weights.

Four rounds of pieces of work, each on all threads:
1. the vectors of the batch's types, the mean of their rows; the hidden weight packed for both its products;
2. tiles of windows: gather and drop out, hidden layer, logits, losses, and all gradients down to the windows;
   beside them, which types every row is in;
3. dense parameters: the gradient of some rows over all windows, and their step; and the gradient of every type;
4. rows of the table: the sum over their types, and their step.

What a piece computes does not depend on the others, and a sum is taken by one piece in the order of its terms: the same
call gives the same bits on any number of threads. No gradient of the table or of a dense parameter is ever held whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from ...bags.on_numba.row_sums import sum_rows
from ...bags.on_numba.row_updates import update_from_transposed, update_row
from ...bags.rules import RowRule, packed
from ...heads.on_numba.loss_pass import LANES
from ...heads.on_numba.passes import NO_ROWS_LEFT_OUT, survey_batch
from ...heads.on_numba.stages import (
    DEPTH,
    SKEW,
    add_weight_gradient,
    feature_gradient,
    logits,
    pack_for_features,
    pack_for_logits,
    round_up,
    scratch,
)
from ...heads.on_numba.tile import columns_of, loss_tile, pack_heads
from ...machine.gemm import (
    BLOCK_ROWS,
    PANEL,
    add_by_column,
    add_by_column_1,
    add_by_row,
    add_by_row_1,
    multiply_by_row,
    multiply_by_row_1,
)
from ...machine.jit import helper, pointer_to_float32, pointer_to_int64
from ...machine.simd import FLOAT_BYTES, WIDTH
from ...machine.team import Kernel, in_parallel
from ..window import HEAD_BIAS, HEAD_WEIGHT, HIDDEN_BIAS, HIDDEN_WEIGHT, Dropout, WindowModel
from .dropout import PART_BITS, draw_factors
from .window_batch import NONE, BatchIndex, first_unknown, index_rows, index_types, new_index

ZERO, ONE = np.float32(0), np.float32(1)
NO_SCALES = np.zeros(0, np.float32)
TILE_ROWS = 64  # windows of a tile: what a thread holds of them stays within half of a 1 MiB cache
TYPES_A_PIECE, ROWS_A_PIECE = 64, 256


class Table(NamedTuple):
    """The table (V, D), what its rule (rules[0]) remembers, and the rows of the types; addresses are of float32."""

    address: int
    D: int
    per_row: np.ndarray
    first: int
    second: int
    rows_of_type: np.ndarray


class Buffers(NamedTuple):
    """What a step writes down between its rounds, for N windows of W words, H hidden outputs and S of heads."""

    vectors: np.ndarray  # (U, D) of the types
    d_vectors: np.ndarray  # (U, D)
    x: np.ndarray  # (N, ldx) windows after dropout
    d_x: np.ndarray  # (N, W * D)
    a: np.ndarray  # (N, lda) hidden outputs
    d_a: np.ndarray  # (N, lda), before the ReLU
    z: np.ndarray  # (tiles, S, ldz) gradients of the logits, transposed
    forward: np.ndarray  # the hidden weight, packed by panels of H
    backward: np.ndarray  # by panels of W * D
    losses: np.ndarray  # (tiles, K) float64
    correct: np.ndarray  # (tiles, K) int64
    d_head_bias: np.ndarray  # (tiles, S)
    d_hidden_bias: np.ndarray  # (tiles, H)


class Drop(NamedTuple):
    """Dropout as the kernel draws it: see draw_factors. A threshold of 0 drops nothing."""

    key: np.uint64
    threshold: np.uint64
    kept: np.float32


# --- round 1: types, and the hidden weight ---------------------------------------------------------------


@helper
def _prepare(p, table, index, hidden, b):
    """Piece 0 packs the hidden weight (H, W D); the others make the vectors of some types."""
    if p == 0:
        H = len(hidden)
        for panel in range(-(-H // PANEL)):
            pack_for_logits(hidden, panel * PANEL, min(PANEL, H - panel * PANEL), b.forward[panel])
        pack_for_features(hidden, 0, H, b.backward)
        return
    for u in range((p - 1) * TYPES_A_PIECE, min(index.counts[0], p * TYPES_A_PIECE)):
        first, last = index.starts[u], index.starts[u + 1]
        sum_rows(table.address, table.D, index.ids, first, last, NO_SCALES, b.vectors[u].ctypes.data)
        scale = ONE / np.float32(max(1, last - first))
        for d in range(table.D):
            b.vectors[u, d] *= scale


# --- round 2: tiles --------------------------------------------------------------------------------------


@helper
def _gather(first, rows, padded, W, D, index, drop, factors, b):
    """Windows first.. into x, dropped out by factors (rows, W * D); zero behind the last row and column."""
    F = W * D
    for i in range(rows):
        x = b.x[first + i]
        if drop.threshold > 0:
            draw_factors(factors[i], F, drop.key, first + i, drop.threshold, drop.kept)
        for w in range(W):
            slot = np.int64(index.slots[(first + i) * W + w])
            if slot == NONE:
                for d in range(D):
                    x[w * D + d] = ZERO
            elif drop.threshold > 0:
                for d in range(D):
                    x[w * D + d] = b.vectors[slot, d] * factors[i, w * D + d]
            else:
                for d in range(D):
                    x[w * D + d] = b.vectors[slot, d]
        for f in range(F, len(x)):
            x[f] = ZERO
    for i in range(rows, padded):
        for f in range(b.x.shape[1]):
            b.x[first + i, f] = ZERO


@helper
def _multiply(a, lda, rows, depth, panels, n, c, ldc):
    """c (rows, n) = a (rows, depth) times packed panels (depth, PANEL); whole blocks of rows and vectors of columns."""
    for panel in range(-(-n // PANEL)):
        wide = n - panel * PANEL > WIDTH
        for k in range(0, depth, DEPTH):
            part = min(DEPTH, depth - k)
            packed = panels + FLOAT_BYTES * (panel * depth + k) * PANEL
            for i in range(0, rows, BLOCK_ROWS):
                a_i = a + FLOAT_BYTES * (i * lda + k)
                c_i = c + FLOAT_BYTES * (i * ldc + panel * PANEL)
                if k == 0:
                    if wide:
                        multiply_by_row(a_i, lda, packed, PANEL, c_i, ldc, part)
                    else:
                        multiply_by_row_1(a_i, lda, packed, PANEL, c_i, ldc, part)
                elif wide:
                    add_by_row(a_i, lda, packed, PANEL, c_i, ldc, part)
                else:
                    add_by_row_1(a_i, lda, packed, PANEL, c_i, ldc, part)


@helper
def _hidden_outputs(first, rows, padded, F, H, bias, b):
    """a = ReLU(x W^T + bias) of a tile, zero behind the last row and column. Not a number stays that."""
    lda = b.a.shape[1]
    _multiply(
        b.x[first].ctypes.data, b.x.shape[1], padded, F, b.forward.ctypes.data, H, b.a[first].ctypes.data, lda
    )
    for i in range(first, first + rows):
        for h in range(H):
            value = b.a[i, h] + bias[h]
            b.a[i, h] = ZERO if value <= ZERO else value
        for h in range(H, lda):
            b.a[i, h] = ZERO
    for i in range(first + rows, first + padded):
        for h in range(lda):
            b.a[i, h] = ZERO


@helper
def _hidden_gradient(first, rows, H, b, d_bias):
    """Through the ReLU: d_a is 0 where a is; d_bias (H,) = its sum over the tile."""
    for h in range(H):
        d_bias[h] = ZERO
    for i in range(first, first + rows):
        for h in range(H):
            if not b.a[i, h] > ZERO and b.a[i, h] <= ZERO:
                b.d_a[i, h] = ZERO
            d_bias[h] += b.d_a[i, h]


@helper
def _run_tile(
    p, N, W, D, index, drop, hidden_bias, for_logits, for_features, head_bias, heads, columns, column_weights, targets,
    scale, b,
):  # fmt: skip
    """Windows of tile p: losses, and the gradients of logits, hidden layer and windows. Piece 0 is no tile."""
    if p == 0:
        index_rows(index)
        return
    tile, H, S, F = p - 1, len(hidden_bias), columns[-1], W * D
    first = tile * TILE_ROWS
    rows = min(TILE_ROWS, N - first)
    padded = round_up(rows, WIDTH)
    ldx, lda, ldz = b.x.shape[1], b.a.shape[1], b.z.shape[2]
    factors = scratch(rows if drop.threshold > 0 else 0, F)
    _gather(first, rows, padded, W, D, index, drop, factors, b)
    _hidden_outputs(first, rows, padded, F, H, hidden_bias, b)
    a, d_a, z = b.a[first].ctypes.data, b.d_a[first].ctypes.data, b.z[tile]
    product, lanes = scratch(WIDTH, PANEL), scratch(LANES, padded)
    gathered, tile_bias_gradient = np.empty(rows, np.int64), np.zeros(S, np.float32)
    loss_k, correct_k, d_head_bias = b.losses[tile], b.correct[tile], b.d_head_bias[tile]
    for k in range(len(heads)):
        loss_k[k], correct_k[k] = 0.0, 0
    for s in range(S):
        d_head_bias[s] = ZERO
    logits(a, lda, rows, H, S, for_logits.ctypes.data, product.ctypes.data, z.ctypes.data, ldz)
    loss_tile(
        z, head_bias, heads, columns, column_weights, targets, N, NO_ROWS_LEFT_OUT, first, rows, scale, True, loss_k,
        correct_k, d_head_bias, tile_bias_gradient, gathered, lanes,
    )  # fmt: skip
    feature_gradient(z.ctypes.data, ldz, rows, S, H, for_features.ctypes.data, d_a, lda, False)
    _hidden_gradient(first, rows, H, b, b.d_hidden_bias[tile])
    d_x = scratch(padded, ldx)
    _multiply(d_a, lda, round_up(rows, BLOCK_ROWS), H, b.backward.ctypes.data, F, d_x.ctypes.data, ldx)
    for i in range(rows):
        if drop.threshold > 0:
            for f in range(F):
                b.d_x[first + i, f] = d_x[i, f] * factors[i, f]
        else:
            for f in range(F):
                b.d_x[first + i, f] = d_x[i, f]


# --- round 3: dense parameters, and the gradients of types -----------------------------------------------


@helper
def _hidden_weight_gradient(begin, n, N, F, b, gradient):
    """Rows begin..begin + n of the hidden weight's gradient (., ld), over all windows; writes whole blocks of rows."""
    ldg, lda, ldx = gradient.shape[1], b.d_a.shape[1], b.x.shape[1]
    for i in range(0, N, DEPTH):
        depth = min(DEPTH, N - i)
        for panel in range(-(-F // PANEL)):
            x = b.x[i].ctypes.data + FLOAT_BYTES * panel * PANEL
            wide = F - panel * PANEL > WIDTH
            for r in range(0, n, BLOCK_ROWS):
                d_a = b.d_a[i].ctypes.data + FLOAT_BYTES * (begin + r)
                g = gradient[r].ctypes.data + FLOAT_BYTES * panel * PANEL
                if wide:
                    add_by_column(d_a, lda, x, ldx, g, ldg, depth)
                else:
                    add_by_column_1(d_a, lda, x, ldx, g, ldg, depth)


@helper
def _head_weight_gradient(column, n, N, H, b, gradient):
    """Rows of the heads' weight gradient (., ld) from an output of the heads on; writes whole half blocks of rows."""
    ldg, lda, ldz = gradient.shape[1], b.a.shape[1], b.z.shape[2]
    for tile in range(-(-N // TILE_ROWS)):
        first = tile * TILE_ROWS
        z = b.z[tile].ctypes.data + FLOAT_BYTES * column * ldz
        rows = min(TILE_ROWS, N - first)
        add_weight_gradient(z, ldz, b.a[first].ctypes.data, lda, rows, n, H, gradient.ctypes.data, ldg)


@helper
def _bias_gradient(sums, n_tiles, column, gradient, n):
    """gradient, n numbers = the sums over the tiles of sums (tiles, .) from a column on."""
    for i in range(n):
        total = ZERO
        for tile in range(n_tiles):
            total += sums[tile, column + i]
        gradient[i] = total


@helper
def _gradient_of_piece(piece, column_of, N, F, H, b, gradient):
    """The gradient of a piece, (rows, ld), or of a bias one number after another. column_of (K,): -1 = not computed."""
    of, n_tiles = piece["of"], -(-N // TILE_ROWS)
    if of == HIDDEN_WEIGHT:
        _hidden_weight_gradient(piece["begin"], piece["rows"], N, F, b, gradient)
    elif of == HIDDEN_BIAS:
        _bias_gradient(b.d_hidden_bias, n_tiles, 0, gradient[0], H)
    else:
        column = column_of[piece["head"]]
        if column < 0:
            return
        if of == HEAD_WEIGHT:
            _head_weight_gradient(column + piece["begin"], piece["rows"], N, H, b, gradient)
        else:
            _bias_gradient(b.d_head_bias, n_tiles, column, gradient[0], piece["rows"] * piece["columns"])


@helper
def _move_piece(piece, rules, decays, column_of, N, F, H, b):
    """A step of a piece of a dense parameter."""
    R, C, rule = piece["rows"], piece["columns"], rules[piece["rule"]]
    is_bias = piece["of"] == HIDDEN_BIAS or piece["of"] == HEAD_BIAS
    ld = round_up(R * C, PANEL) if is_bias else round_up(C, PANEL) + SKEW
    gradient = scratch(1 if is_bias else round_up(R, BLOCK_ROWS), ld)
    for r in range(len(gradient)):
        for c in range(ld):
            gradient[r, c] = ZERO
    _gradient_of_piece(piece, column_of, N, F, H, b, gradient)
    step_between = C if is_bias else ld
    parameter = numba.carray(pointer_to_float32(piece["parameter"]), (R * C,))
    decay = decays[piece["rule"]]
    if decay != ONE:
        for i in range(R * C):
            parameter[i] *= decay
    counts = numba.carray(pointer_to_float32(piece["per_row"]), (R if piece["per_row"] else 0,))
    own = np.empty(1, np.float32)
    for r in range(R):
        at, offset = gradient.ctypes.data + FLOAT_BYTES * r * step_between, FLOAT_BYTES * r * C
        first = piece["first"] + offset if piece["first"] else 0
        second = piece["second"] + offset if piece["second"] else 0
        if piece["whole"]:
            if len(counts):
                own[0] = counts[0]
            update_row(rule, piece["parameter"] + offset, 0, at, C, own, first, second)
        else:
            # A state of one number a row, whose address the row's is.
            update_row(rule, piece["parameter"] + offset, 0, at, C, counts[r:], first, second)


@helper
def _move_dense(p, pieces, rules, decays, column_of, N, W, D, H, index, b):
    """The first pieces are of dense parameters; the others make the gradients of some types."""
    if p < len(pieces):
        _move_piece(pieces[p], rules, decays, column_of, N, W * D, H, b)
        return
    first = (p - len(pieces)) * TYPES_A_PIECE
    for u in range(first, min(index.counts[0], first + TYPES_A_PIECE)):
        sum_rows(
            b.d_x.ctypes.data, D, index.positions, index.begins[u], index.begins[u + 1], NO_SCALES,
            b.d_vectors[u].ctypes.data,
        )  # fmt: skip
        scale = ONE / np.float32(max(1, index.starts[u + 1] - index.starts[u]))
        for d in range(D):
            b.d_vectors[u, d] *= scale


# --- round 4: rows ---------------------------------------------------------------------------------------


@helper
def _move_rows(p, rule, table, index, b):
    first = p * ROWS_A_PIECE
    update_from_transposed(
        rule, table.address, index.rows, index.row_begins, index.row_types, first,
        min(index.counts[1], first + ROWS_A_PIECE), NO_SCALES, b.d_vectors.ctypes.data, table.D, table.per_row,
        table.first, table.second,
    )  # fmt: skip


# --- the step --------------------------------------------------------------------------------------------


@helper
def _vector_at(address, n):
    """(n,) float32 at an address, zeros at 0."""
    if address == 0:
        return np.zeros(n, np.float32)
    return numba.carray(pointer_to_float32(address), (n,)).copy()


@helper
def _head_biases(heads, addresses, S):
    """(S,) the biases of these heads in the places of the layout; 0 without one."""
    bias_s = np.zeros(S, np.float32)
    for k in range(len(heads)):
        a, C, address = heads[k]["offset"], heads[k]["size"], addresses[heads[k]["index"]]
        if address:
            bias_s[a : a + C] = numba.carray(pointer_to_float32(address), (C,))
    return bias_s


def _step_on_windows(  # type: ignore[no-untyped-def]
    team, rules, decays, types, table, hidden, hidden_bias, weights, biases, pieces, counts, heads, column_weights,
    targets, mean_scale, scale, drop, index, b, losses_address, correct_address,
):  # fmt: skip
    """One step on N windows types (N, W); losses and hits of the heads.

    rules and decays are a step's; hidden (H, W D) and hidden_bias (its address) are of the hidden layer; weights and
    biases (K,) addresses of all heads' in the layout, 0 = no bias; pieces and counts are a WindowModel's. heads are the
    records of those that are computed; the rest is as in tile_pass.
    """
    N, W = types.shape
    H, D, K = hidden.shape[0], table.D, len(heads)
    losses = numba.carray(pointer_to_float32(losses_address), (len(targets),))
    correct = numba.carray(pointer_to_int64(correct_address), (len(targets),))
    columns = columns_of(heads)
    column_of = np.full(len(targets), -1)
    for k in range(K):
        column_of[heads[k]["index"]] = columns[k]
    index_types(types.reshape(N * W), table.rows_of_type, index)
    n_types = -(-index.counts[0] // TYPES_A_PIECE)
    in_parallel(team, 1 + n_types, _prepare, (table, index, hidden, b))
    for_logits, for_features = pack_heads(weights[heads["index"]], H, heads, columns, True)
    hidden_bias_h = _vector_at(hidden_bias, H)
    head_bias_s = _head_biases(heads, biases, len(column_weights))
    n_tiles = -(-N // TILE_ROWS)
    in_parallel(team, 1 + n_tiles, _run_tile, (
        N, W, D, index, drop, hidden_bias_h, for_logits, for_features, head_bias_s, heads, columns, column_weights,
        targets, scale, b,
    ))  # fmt: skip
    in_parallel(
        team, len(pieces) + n_types, _move_dense, (pieces, rules, decays, column_of, N, W, D, H, index, b)
    )
    n_row_pieces = -(-index.counts[1] // ROWS_A_PIECE)
    in_parallel(team, n_row_pieces, _move_rows, (rules[0], table, index, b))
    for i in range(len(counts)):
        numba.carray(pointer_to_float32(counts[i]), (1,))[0] += ONE
    for k in range(K):
        task = heads[k]["index"]
        losses[task] = b.losses[:n_tiles, k].sum() * mean_scale[task]
        correct[task] = b.correct[:n_tiles, k].sum()


step_on_windows = Kernel(_step_on_windows)


# --- the host --------------------------------------------------------------------------------------------


class Memory(NamedTuple):
    """A model's buffers, for up to n_rows windows."""

    n_rows: int
    index: BatchIndex
    buffers: Buffers


def _memory(model: WindowModel, N: int) -> Memory:
    held: Memory | None = model.buffers
    if held is None or held.n_rows < N:
        held = model.buffers = Memory(N, new_index(model, N * model.width), _new_buffers(model, N))
    return held


def _new_buffers(model: WindowModel, N: int) -> Buffers:
    H, F = model.hidden[0].parameter.shape
    D, K, S = model.table.parameter.shape[1], len(model.layout), sum(spec.size for spec in model.layout.heads)
    U = min(N * model.width, len(model.rows_of_type))
    n_tiles, ldx, lda = -(-N // TILE_ROWS), _up(F, PANEL) + SKEW, _up(H, PANEL) + SKEW
    padded = n_tiles * TILE_ROWS

    def floats(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.float32)

    return Buffers(
        vectors=floats(U, D),
        d_vectors=floats(U, D),
        x=floats(padded, ldx),
        d_x=floats(N, F),
        a=floats(padded, lda),
        d_a=floats(padded, lda),
        z=floats(n_tiles, _up(S, PANEL) + PANEL, _up(TILE_ROWS, WIDTH) + SKEW),
        forward=floats(-(-H // PANEL), F * PANEL),
        backward=floats(-(-F // PANEL) * H * PANEL),
        losses=np.zeros((n_tiles, K)),
        correct=np.zeros((n_tiles, K), np.int64),
        d_head_bias=floats(n_tiles, S),
        d_hidden_bias=floats(n_tiles, H),
    )


def _up(n: int, step: int) -> int:
    return -(-n // step) * step


def drop_of(dropout: Dropout) -> Drop:
    """Dropout as the kernel draws it."""
    threshold = min(round(dropout.probability * (1 << PART_BITS)), 1 << PART_BITS)
    kept = 0.0 if dropout.probability >= 1 else 1.0 / (1.0 - dropout.probability)
    return Drop(np.uint64(dropout.key), np.uint64(threshold), np.float32(kept))


def _addresses(model: WindowModel, part: int) -> np.ndarray:
    """(K,) of the heads' weights (part 0) or biases (1); 0 without one."""
    parts = [head[part] for head in model.heads]
    return np.array([0 if dense is None else dense.parameter.data_ptr() for dense in parts], np.int64)


def step(
    model: WindowModel,
    rules: Sequence[RowRule],
    decays: Sequence[float],
    types: Tensor,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    dropout: Dropout,
) -> tuple[Tensor, Tensor]:
    """(losses (K,), correct (K,)) of `window_step` in step/window.py."""
    batch = survey_batch(targets, task_weights, model.layout, skip_zero_weights=True)
    types_nw = np.ascontiguousarray(types.numpy(), np.int32)
    n_types = len(model.rows_of_type) - 1
    wrong = first_unknown(types_nw.reshape(-1), n_types)
    if wrong >= 0:
        raise ValueError(
            f"inputs hold the word type {types_nw.reshape(-1)[wrong]}; there are {n_types:,}, and -1 for none"
        )
    K = len(model.heads)
    losses, correct = torch.zeros(K, dtype=torch.float32), torch.zeros(K, dtype=torch.int64)
    memory = _memory(model, len(types_nw))
    weight, bias = model.hidden
    step_on_windows(
        packed(rules), np.array(decays, np.float32), types_nw, _table(model), weight.parameter.numpy(),
        0 if bias is None else bias.parameter.data_ptr(), _addresses(model, 0), _addresses(model, 1), model.pieces,
        model.counts, batch.computed(), batch.table.column_weights, batch.addresses, batch.scale, batch.gradient_scale,
        drop_of(dropout), memory.index, memory.buffers, losses.data_ptr(), correct.data_ptr(),
    )  # fmt: skip
    return losses, correct


def _table(model: WindowModel) -> Table:
    table, state = model.table.parameter, model.table.state
    per_row = NO_SCALES if state.per_row is None else state.per_row.numpy()
    first, second = (0 if part is None else part.data_ptr() for part in state[1:])
    return Table(table.data_ptr(), table.shape[1], per_row, first, second, model.rows_of_type)


__all__: list[Any] = ["drop_of", "step"]
