"""The memory of linear layers and heads in a step: made once for a model, and used in every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np

from ...heads.layout import HeadLayout
from ...heads.on_numba.stages import LINE, SKEW
from ...machine.gemm import BLOCK_ROWS, PANEL
from ...machine.held import Doubles2, Floats2, Floats3, Ints1, Ints2
from ...machine.simd import FLOAT_BYTES, WIDTH
from ..dense_model import FIRST_VECTOR, Dense, Linear

HALVES = 2  # of the rows, over each of which the gradients of weights are summed first

# A linear layer (H, F) and its arrays for N rows: inputs (N, ld), outputs after its activation, and gradients of the
# outputs before it. Addresses are of float32, 0 for what is not there.
LAYER = np.dtype(
    [
        ("weight", np.int64),
        ("bias", np.int64),
        ("rows", np.int64),  # H
        ("columns", np.int64),  # F
        ("activation", np.int64),
        ("padded_bias", np.int64),  # the bias in whole vectors; zeros without one
        ("inputs", np.int64),
        ("ld_inputs", np.int64),
        ("outputs", np.int64),
        ("ld", np.int64),  # of outputs, d_outputs and slopes
        ("d_outputs", np.int64),
        ("slopes", np.int64),  # derivatives of the outputs by what they were before activation and dropout
        ("d_bias", np.int64),  # (tiles, H)
        ("d_norm_weight", np.int64),  # (tiles, H), of a norm before the activation
        ("d_norm_bias", np.int64),
        ("forward", np.int64),  # the weight, packed by panels of H
        ("backward", np.int64),  # packed by panels of F
    ]
)


class DenseBuffers(NamedTuple):
    """What a step keeps of layers and heads between its rounds, for N rows, H inputs of heads and S outputs of them."""

    layers: Annotated[np.ndarray, LAYER, 1]
    weights: Ints1  # (K,) addresses of the heads' weights
    biases: Ints1  # (K,) addresses of their biases, 0 without one
    features: int  # the address of their inputs (N, ld)
    ld: int
    H: int
    z: Floats3  # (tiles, S, ldz) gradients of the logits, transposed
    losses: Doubles2  # (tiles, K) float64
    correct: Ints2  # (tiles, K) int64
    d_head_bias: Floats2  # (tiles, S)
    sums: Floats3  # (HALVES, pieces, floats) gradients of the pieces of weights over each half of the rows
    # An empty array, for helpers with an optional argument: an empty global would be another type, compiled apart.
    all_rows: Ints1  # (0,) int64


def dense_buffers(
    layers: np.ndarray,
    heads: Sequence[Linear],
    layout: HeadLayout,
    pieces: np.ndarray,
    features: tuple[int, int, int],
    n_tiles: int,
    tile_rows: int,
) -> DenseBuffers:
    """Make the buffers of heads, and of sums over the rows for all pieces.

    features: of the heads, (N, ld): their address, ld, and how many of the ld numbers there are.
    """
    K, S = len(layout), sum(spec.size for spec in layout.heads)
    weights, biases = (
        np.array([parameter_address(part) for part in parts], np.int64) for parts in zip(*heads, strict=True)
    )
    return DenseBuffers(
        layers, weights, biases, *features,
        z=floats(n_tiles, up(S, PANEL) + PANEL, up(tile_rows, WIDTH) + SKEW),
        losses=np.zeros((n_tiles, K)),
        correct=np.zeros((n_tiles, K), np.int64),
        d_head_bias=floats(n_tiles, S),
        sums=floats(HALVES, len(pieces), max(map(_floats_of, pieces), default=0)),
        all_rows=np.zeros(0, np.int64),
    )  # fmt: skip


def parameter_address(part: Dense | None) -> int:
    """Return the address of a parameter, 0 without one."""
    return 0 if part is None else part.parameter.data_ptr()


def array_address(array: np.ndarray) -> int:
    """Return the address of its first number, in a third of the time that `array.ctypes` takes."""
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


def floats(*shape: int) -> np.ndarray:
    """Zeros whose first number begins a cache line."""
    n = math.prod(shape)
    whole = np.zeros(n + LINE, np.float32)
    first = -(whole.ctypes.data // FLOAT_BYTES) % LINE
    return whole[first : first + n].reshape(shape)


def _floats_of(piece: np.void) -> int:
    """Return how many numbers the gradient of a piece of a weight takes, with what the kernels write past its edges.

    0 for a vector, which is a single piece, however long: its sums over tiles are stored elsewhere.
    """
    if piece["of"] >= FIRST_VECTOR:
        return 0
    return up(int(piece["rows"]), BLOCK_ROWS) * (up(int(piece["columns"]), PANEL) + SKEW)


def up(n: int, step: int) -> int:
    """Round up to a multiple of step."""
    return -(-n // step) * step
