"""The memory of the BatchNorms of a stack of layers: made once for a model, and used in every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...machine.simd import WIDTH
from ..stack_model import BatchNorm, Layer
from .dense_memory import parameter_address, up

# A BatchNorm of a layer of H outputs, for N rows. Addresses are of float32, unless another type is stated; 0 for what
# is not there. Vectors are as many numbers as the layer's outputs in whole vectors of the processor: up(H).
BATCH_NORM = np.dtype(
    [
        ("here", np.int64),  # 1; 0 if the layer has none
        ("of_batch", np.int64),  # 1 if the statistics are those of the batch
        ("eps", np.float64),
        ("weight", np.int64),  # (H,)
        ("bias", np.int64),  # (H,)
        ("running_mean", np.int64),  # (H,)
        ("running_variance", np.int64),  # (H,)
        ("batches", np.int64),  # () int64
        ("momentum", np.float64),  # below 0: all batches count the same
        ("normed", np.int64),  # (N, ld) columns of mean 0 and variance 1
        ("means", np.int64),  # (tiles, up(H)) of the rows of a tile, less its first row
        ("squares", np.int64),  # (tiles, up(H)) sums of squared differences from its mean
        ("centre", np.int64),  # what is subtracted
        ("centre_rest", np.int64),  # and what float32 has no digits for in that
        ("scale", np.int64),  # and then multiplied by
        ("gain", np.int64),  # the weight, or ones
        ("shift", np.int64),  # the bias, or zeros
        ("d_mean", np.int64),  # the mean over all rows of the gradients of outputs
        ("d_product", np.int64),  # and of their products with `normed`
    ]
)
VECTORS = ("centre", "centre_rest", "scale", "gain", "shift", "d_mean", "d_product")


def batch_norm_records(
    layers: Sequence[Layer], records: np.ndarray, padded: int, n_tiles: int, make: Callable[..., int]
) -> np.ndarray | None:
    """Return a record of BATCH_NORM for each layer, or None if no layer has a BatchNorm: see `norm_records`."""
    if not any(isinstance(layer.norm, BatchNorm) for layer in layers):
        return None
    norms = np.zeros(len(layers), BATCH_NORM)
    for layer, record, found in zip(layers, records, norms, strict=True):
        if isinstance(layer.norm, BatchNorm):
            _lay_out(layer.norm, record, found, padded, n_tiles, make)
            record["d_norm_weight"], record["d_norm_bias"] = (
                make(n_tiles, layer.norm.width) for _ in range(2)
            )
    return norms


def _lay_out(
    norm: BatchNorm, record: np.void, found: np.void, padded: int, n_tiles: int, make: Callable[..., int]
) -> None:
    found["here"], found["of_batch"], found["eps"] = 1, norm.of_batch, norm.eps
    found["weight"], found["bias"] = parameter_address(norm.weight), parameter_address(norm.bias)
    if (running := norm.running) is not None:
        found["running_mean"], found["running_variance"] = (
            running.mean.data_ptr(),
            running.variance.data_ptr(),
        )
        found["batches"] = 0 if running.batches is None else running.batches.data_ptr()
        found["momentum"] = -1.0 if running.momentum is None else running.momentum
    found["normed"] = make(padded, int(record["ld"]))
    width = up(norm.width, WIDTH)
    found["means"], found["squares"] = make(n_tiles, width), make(n_tiles, width)
    for name in VECTORS:
        found[name] = make(width)
