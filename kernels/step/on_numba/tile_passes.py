"""The passes of a step over all tiles of rows: one, and two more for every BatchNorm that takes the batch's statistics.

Such a norm needs all rows. So a pass ends where it has measured its own tile, and the next one begins there; the same
holds on the way back. In between, one thread combines what the tiles have measured.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

# Layers are numbered from the inputs to the heads; ends are exclusive.
TILE_PASS = np.dtype(
    [
        ("begins", np.int64),  # 1: from the inputs; else from the norm of layer `up`, after its product
        ("up", np.int64),
        ("up_end", np.int64),
        ("measures", np.int64),  # 1: the last of these layers is not normalised yet
        ("turns", np.int64),  # 1: computes the heads, and turns back
        ("down", np.int64),
        ("down_end", np.int64),
        ("pauses", np.int64),  # 1: the last of these is not differentiated through its norm yet
        ("ends", np.int64),  # 1: reaches what is before the layers
    ]
)


@lru_cache
def tile_passes_of(L: int, reach: int, cuts: tuple[int, ...]) -> np.ndarray:
    """Return (passes,) TILE_PASS for L layers.

    reach: how many layers gradients are computed for. cuts: the layers whose norms need all rows.
    """
    ups = [0, *cuts]
    lowest = max(-1, L - 1 - reach)
    downs = [L - 1, *(cut for cut in reversed(cuts) if cut > lowest)]
    passes = [
        (int(n == 0), up, (cuts[n] + 1 if n < len(cuts) else L), int(n < len(cuts)), 0, 0, 0, 0, 0)
        for n, up in enumerate(ups)
    ]
    last = len(downs) - 1
    back = [
        (down, downs[n + 1] - 1 if n < last else lowest, int(n < last), int(n == last))
        for n, down in enumerate(downs)
    ]
    passes[-1] = (*passes[-1][:4], 1, *back[0])
    return np.array([*passes, *((0, 0, 0, 0, 0, *each) for each in back[1:])], TILE_PASS)
