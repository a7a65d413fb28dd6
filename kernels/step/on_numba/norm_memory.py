"""The memory of the LayerNorms and RMSNorms of a stack of layers: made once for a model, and used in every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...machine.simd import WIDTH
from ..stack_model import Layer, Norm
from .dense_memory import parameter_address, up

# A LayerNorm or RMSNorm of a layer of H outputs, for N rows. Addresses are of float32.
NORM = np.dtype(
    [
        ("here", np.int64),  # 1; 0 if the layer has none
        ("centred", np.int64),  # 0 for an RMSNorm
        ("eps", np.float32),
        ("weight", np.int64),  # (H,), ones without one
        ("bias", np.int64),  # (H,), zeros without one
        ("normed", np.int64),  # (N, ld) rows of mean 0 and variance 1, or of mean square 1
        ("scales", np.int64),  # (N,) what their rows were multiplied by to be that
        ("zeros", np.int64),  # as many as the layer's outputs in whole vectors
    ]
)


def norm_records(
    layers: Sequence[Layer], records: np.ndarray, padded: int, n_tiles: int, make: Callable[..., int]
) -> np.ndarray | None:
    """Return a record of NORM for each layer, or None if no layer has a LayerNorm or RMSNorm.

    records: of LAYER, to which the sums of gradients are added. padded: rows that there is room for. make: makes zeros
    of a shape, and returns their address.
    """
    if not any(isinstance(layer.norm, Norm) for layer in layers):
        return None
    norms = np.zeros(len(layers), NORM)
    for layer, record, found in zip(layers, records, norms, strict=True):
        if isinstance(layer.norm, Norm):
            _lay_out(layer.norm, record, found, padded, make)
            record["d_norm_weight"], record["d_norm_bias"] = (
                make(n_tiles, layer.norm.width) for _ in range(2)
            )
    return norms


def _lay_out(norm: Norm, record: np.void, found: np.void, padded: int, make: Callable[..., int]) -> None:
    found["here"], found["centred"], found["eps"] = 1, norm.centred, norm.eps
    found["zeros"] = make(up(norm.width, WIDTH))
    found["weight"] = parameter_address(norm.weight) or make(norm.width, value=1)
    found["bias"] = parameter_address(norm.bias) or found["zeros"]
    found["normed"], found["scales"] = make(padded, int(record["ld"])), make(padded)
