"""What the kernels of recurrent layers share: tiles of rows, and the products of a tile with the hidden weight.

Rows of a batch do not depend on each other, so a tile goes through all steps while its state is in cache. Everything
that all steps can do together (the products with the inputs, the gradients of weights) is left to torch's GEMMs.
"""

from __future__ import annotations

import numba
import numpy as np

from ...heads.on_numba.stages import pack_for_features, pack_for_logits, scratch
from ...machine.elementary import ONE, ZERO, exp32
from ...machine.gemm import BLOCK_ROWS, PANEL
from ...machine.jit import address_of, elementwise, helper, pointer_to_float32
from ...machine.simd import FLOAT_BYTES, WIDTH, absolute, load, select, splat, store

MOST_ROWS, TILES = 32, 4


def tile_rows(n_rows: int) -> int:
    """Return the rows of a tile; it depends on the batch alone, so that sums have the same bits on any threads."""
    return min(MOST_ROWS, -(-n_rows // (TILES * BLOCK_ROWS)) * BLOCK_ROWS)


tile_rows_of = helper(tile_rows)


@elementwise
def sigmoid32(x):
    """1 / (1 + exp(-x))."""
    u = exp32(absolute(x) * -ONE)
    r = ONE / (ONE + u)
    return select(x < ZERO, u * r, r)


@helper
def pack_gates(weight):
    """Pack a hidden weight (gates, H) for products with states (rows, H): panels (n, H * PANEL)."""
    gates, H = weight.shape
    panels = scratch(-(-gates // PANEL), H * PANEL)
    for panel in range(len(panels)):
        pack_for_logits(weight, panel * PANEL, min(PANEL, gates - panel * PANEL), panels[panel])
    return panels


@helper
def pack_states(weight):
    """Pack a hidden weight (gates, H) for products with gradients of gates (rows, gates): panels (n, gates * PANEL)."""
    gates, H = weight.shape
    panels = scratch(-(-H // PANEL), gates * PANEL)
    pack_for_features(weight, 0, gates, panels.reshape(panels.size))
    return panels


@helper
def load_tile(source, first, rows, H, tile):
    """Load rows first.. of an address (N, H) into tile (rows, ld), zeros for address 0; zero up to whole blocks."""
    to, ld, row_bytes = address_of(tile), tile.shape[1], FLOAT_BYTES * H
    for i in range(len(tile)):
        for at in range(0, row_bytes, FLOAT_BYTES * WIDTH):
            begin = splat(ZERO)
            if i < rows and source:
                begin = load(source + (first + i) * row_bytes + at)
            store(begin, to + FLOAT_BYTES * i * ld + at)


@helper
def bias_of(address, n):
    """Return a bias (n,); zeros for address 0."""
    bias = np.zeros(n, np.float32)
    if address:
        given = numba.carray(pointer_to_float32(address), (n,))
        for i in range(n):
            bias[i] = given[i]
    return bias


@helper
def add_step(of_step_g, sums_g):
    """Add the sums of one step (n,) to those of all, and begin the next: short sums lose less to rounding."""
    for g in range(len(sums_g)):
        sums_g[g] += of_step_g[g]
        of_step_g[g] = ZERO


@helper
def add_tiles(sums_tg, total_g):
    """total (n,) = the sums (tiles, n) of all tiles, in their order."""
    for g in range(len(total_g)):
        total_g[g] = ZERO
    for tile in range(len(sums_tg)):
        for g in range(len(total_g)):
            total_g[g] += sums_tg[tile, g]


def beyond(hidden: int) -> int:
    """Return how many numbers a state of this size lacks for whole vectors."""
    return -hidden % WIDTH
