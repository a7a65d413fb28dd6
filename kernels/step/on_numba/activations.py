"""Activations of a layer's outputs on a CPU, forward with bias, norm and dropout, and backward.

ReLU is known from its outputs. For other activations, and for dropout without one, the forward pass stores slopes: the
derivatives of the outputs by what they were before. Rows are processed in whole vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba

from ...heads.on_numba.elements import WORDS, compiled
from ...heads.on_numba.stages import round_up, scratch
from ...machine.elementary import ONE, ZERO, expm1_32, tanh32
from ...machine.jit import address_of, elementwise, helper, pointer_to_float32
from ...machine.simd import FLOAT_BYTES, WIDTH, load, select, splat, store
from ..activations import ACTIVATIONS, NAMES, Activation
from .batch_norms import differentiate, standardise, sum_products
from .dropout import draw_factors
from .norms import denormalise, normalise

NONE, RELU = NAMES.index("none"), NAMES.index("relu")
OWN_WORDS = {**WORDS, "tanh": tanh32, "expm1_of_negative": expm1_32}


@elementwise
def _as_it_is(activation, x, a, b):
    return x, splat(ONE)


def _element_or_other(activation, x, a, b):
    """One link of the chain: this activation's function, or else the remaining links."""
    if activation == CODE:  # noqa: F821
        return ELEMENT(x, a, b)  # noqa: F821
    return OTHERS(activation, x, a, b)  # noqa: F821


def _chain(activations: Sequence[Activation]) -> Any:
    chain = _as_it_is
    for each in activations:
        names = {
            "CODE": NAMES.index(each.name),
            "ELEMENT": compiled(each.element, OWN_WORDS, f"element_of_{each.name}"),
            "OTHERS": chain,
        }
        chain = compiled(_element_or_other, names, f"{each.name}_or_other")
    return chain


# (activation, x, a, b) -> (value, derivative) for vectors: of those in every stack, and of all.
_COMPILED = [each for each in ACTIVATIONS if each.element is not None]
usual_value_and_slope = _chain([each for each in _COMPILED if each.always])
value_and_slope = _chain(_COMPILED)


@helper
def activate(n, layer, norms, batch_norms, options, drop, first, rows, factors, words):
    """Outputs of rows first.., from products with the weight: add the bias, normalise, activate, drop.

    n: the layer's number. norms, batch_norms: records of NORM or BATCH_NORM, one a layer; None if no layer has such a
    norm. options (layers, 2): of activations; None if all are among the usual ones.
    factors: zeros at first, for at least the layer's outputs in whole vectors; words: scratch of draw_factors.
    """
    H, ld, activation, drops = layer["rows"], layer["ld"], layer["activation"], drop["threshold"] > 0
    added = layer["padded_bias"]
    if norms is not None and norms[n]["here"]:
        added = norms[n]["zeros"]
    if batch_norms is not None and batch_norms[n]["here"]:
        added = batch_norms[n]["shift"]
    n_bytes, factor = FLOAT_BYTES * round_up(H, WIDTH), address_of(factors)
    for i in range(first, first + rows):
        outputs, slopes = (
            layer["outputs"] + FLOAT_BYTES * i * ld,
            layer["slopes"] + FLOAT_BYTES * i * ld,
        )
        if drops:
            draw_factors(factors[:H], H, drop["key"], i, drop["threshold"], drop["kept"], words)
        if norms is not None and norms[n]["here"]:
            normalise(layer, norms[n], i)
        if batch_norms is not None and batch_norms[n]["here"]:
            standardise(layer, batch_norms[n], i)
        for at in range(0, n_bytes, FLOAT_BYTES * WIDTH):
            x = load(outputs + at) + load(added + at)
            if activation == RELU:
                x = select(splat(ZERO) >= x, ZERO, x)  # NaN stays NaN
                if drops:
                    x = x * load(factor + at)
            elif activation != NONE or drops:
                if options is None:
                    x, slope = usual_value_and_slope(activation, x, ZERO, ZERO)
                else:
                    x, slope = value_and_slope(activation, x, options[n, 0], options[n, 1])
                if drops:
                    x, slope = x * load(factor + at), slope * load(factor + at)
                store(slope, slopes + at)
            store(x, outputs + at)


@helper
def deactivate(n, layer, norms, batch_norms, drop, tile, first, rows):
    """Backward through dropout, activation and norm: the gradients of rows first.., and their sums for a tile.

    Not through a BatchNorm that takes the batch's statistics.
    """
    H, ld, activation, drops = layer["rows"], layer["ld"], layer["activation"], drop["threshold"] > 0
    kept = drop["kept"] if drops else ONE
    sums = scratch(1, round_up(H, WIDTH))
    total, n_bytes = address_of(sums), FLOAT_BYTES * round_up(H, WIDTH)
    for at in range(0, n_bytes, FLOAT_BYTES * WIDTH):
        store(splat(ZERO), total + at)
    for i in range(first, first + rows):
        outputs, slopes, gradients = (
            layer["outputs"] + FLOAT_BYTES * i * ld,
            layer["slopes"] + FLOAT_BYTES * i * ld,
            layer["d_outputs"] + FLOAT_BYTES * i * ld,
        )
        for at in range(0, n_bytes, FLOAT_BYTES * WIDTH):
            d = load(gradients + at)
            if activation == RELU:
                d = select(splat(ZERO) >= load(outputs + at), ZERO, d * kept)  # NaN stays NaN
            elif activation != NONE or drops:
                d = d * load(slopes + at)
            store(d, gradients + at)
            store(load(total + at) + d, total + at)
        if norms is not None and norms[n]["here"]:
            denormalise(layer, norms[n], tile, i, i == first)
    of_added = layer["d_bias"]
    if norms is not None and norms[n]["here"]:
        of_added = layer["d_norm_bias"]
    if batch_norms is not None and batch_norms[n]["here"]:
        of_added = layer["d_norm_bias"]
    _copy(sums, of_added + FLOAT_BYTES * tile * H, H)
    if batch_norms is not None and batch_norms[n]["here"]:
        sum_products(layer, batch_norms[n], first, rows, total)
        _copy(sums, layer["d_norm_weight"] + FLOAT_BYTES * tile * H, H)
        if batch_norms[n]["of_batch"] == 0:
            undo_standardise(layer, batch_norms[n], tile, first, rows)


@helper
def undo_standardise(layer, norm, tile, first, rows):
    """Backward through a BatchNorm: the gradients of rows first.., and those of the layer's bias for a tile."""
    H = layer["rows"]
    sums = scratch(1, round_up(H, WIDTH))
    differentiate(layer, norm, first, rows, address_of(sums))
    _copy(sums, layer["d_bias"] + FLOAT_BYTES * tile * H, H)


@helper
def _copy(sums, d_bias, H):
    """d_bias (H,), an address = the first numbers of sums, which is kept alive here."""
    target = numba.carray(pointer_to_float32(d_bias), (H,))
    for h in range(H):
        target[h] = sums[0, h]
