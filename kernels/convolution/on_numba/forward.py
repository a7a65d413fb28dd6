"""A convolution over sequences as products of matrices: rows of windows, which overlap, by the weight.

Arrays: see `windows.py`.
"""

from __future__ import annotations

import numba
import numpy as np

from ...heads.on_numba.stages import SKEW, multiply_panels, pack_for_logits, round_up, scratch
from ...machine.elementary import ZERO
from ...machine.gemm import BLOCK_ROWS, PANEL, copy_floats, transpose_block
from ...machine.jit import address_of, helper, pointer_to_float32
from ...machine.simd import FLOAT_BYTES, WIDTH, load, splat, store
from ...machine.team import Kernel, in_parallel
from .windows import Sizes


@helper
def _pack(weight):
    """Pack a weight (C, depth) in panels (n, depth * PANEL)."""
    C, depth = weight.shape
    panels = scratch(-(-C // PANEL), depth * PANEL)
    for panel in range(len(panels)):
        pack_for_logits(weight, panel * PANEL, min(PANEL, C - panel * PANEL), panels[panel])
    return panels


@helper
def _sequence(b, sizes, inputs, panels, bias, outputs):
    """Compute the outputs of a sequence (C, T)."""
    E, L, C, T, depth = sizes.E, sizes.L, sizes.C, sizes.T, sizes.K * sizes.E
    rows = round_up(T, WIDTH)
    # With the zeros beyond its ends, and room for the windows of whole blocks of rows.
    padded = scratch((rows - 1) * sizes.stride + sizes.K, E)
    product, turned = scratch(rows, round_up(C, WIDTH) + SKEW), scratch(round_up(C, WIDTH), rows)
    padded[: sizes.padding] = ZERO
    padded[sizes.padding + L :] = ZERO
    used = min(L, len(padded) - sizes.padding)
    x = address_of(padded)
    copy_floats(inputs + FLOAT_BYTES * b * L * E, x + FLOAT_BYTES * sizes.padding * E, used * E)
    p, z = address_of(product), address_of(turned)
    ldp = product.shape[1]
    multiply_panels(x, sizes.stride * E, round_up(T, BLOCK_ROWS), depth, address_of(panels), depth * PANEL, C, p, ldp)
    for c in range(0, C, WIDTH):
        for t in range(0, rows, WIDTH):
            transpose_block(p + FLOAT_BYTES * (t * ldp + c), ldp, z + FLOAT_BYTES * (c * rows + t), rows)
    for c in range(C):
        own = z + FLOAT_BYTES * c * rows
        for t in range(0, FLOAT_BYTES * rows, FLOAT_BYTES * WIDTH):
            store(load(own + t) + bias[c], own + t)
        copy_floats(own, outputs + FLOAT_BYTES * (b * C + c) * T, T)


def _convolve(team, sizes_of, inputs, weight, bias, outputs):
    """Addresses of float32: inputs (B, L, E), weight (C, K, E), bias (C,) or 0; written: outputs (B, C, T)."""
    sizes = Sizes(*sizes_of)
    panels = _pack(numba.carray(pointer_to_float32(weight), (sizes.C, sizes.K * sizes.E)))
    of_channels = np.zeros(sizes.C, np.float32)
    if bias:
        of_channels[:] = numba.carray(pointer_to_float32(bias), (sizes.C,))
    in_parallel(team, sizes.B, _sequence, (sizes, inputs, panels, of_channels, outputs))


convolve = Kernel(_convolve, beside_torch=True)
