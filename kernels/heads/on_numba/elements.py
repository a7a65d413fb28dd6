"""The element functions of all kinds of heads, compiled by Numba on vectors of rows, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np

from ...machine.elementary import ZERO, exp32, exp_of_any, log32, softplus_and_sigmoid
from ...machine.jit import elementwise
from ...machine.simd import absolute, select, splat
from ..kind import Kind, elementwise_kinds

NAN = np.float32(np.nan)


# The functions of ../elements.py.
WORDS = {
    "where": select,
    "absolute": absolute,
    "exp": exp_of_any,
    "exp_of_negative": exp32,
    "log": log32,
    "log1p_and_reciprocal": softplus_and_sigmoid,
}


def compiled(function: Callable, names: dict[str, Any], name: str) -> Any:
    """Compile the function, renamed and with these additional globals, for inlining into its callers."""
    copy = FunctionType(function.__code__, {**function.__globals__, **names}, name)
    copy.__qualname__ = name
    return elementwise(copy)


@elementwise
def _unknown_kind(kind, z, y, weight, options):
    """Return NaN, which cannot be mistaken for a loss: no kind has this code."""
    return splat(NAN), splat(NAN), splat(ZERO)


def _no_hit(z, y):
    return splat(ZERO)


def _element_or_other(kind, z, y, weight, options):
    """One link of the chain: this kind's element function, or else the remaining links."""
    if kind == CODE:  # noqa: F821
        loss, dz = ELEMENT(z, y, weight, options)  # noqa: F821
        return loss, dz, HIT(z, y)  # noqa: F821
    return OTHERS(kind, z, y, weight, options)  # noqa: F821


def _chain(kinds: tuple[Kind, ...]) -> Any:
    chain = _unknown_kind
    for kind in kinds:
        assert kind.element is not None
        names = {
            "CODE": kind.code,
            "ELEMENT": compiled(kind.element, WORDS, f"element_of_{kind.name}"),
            "HIT": compiled(kind.hit or _no_hit, WORDS, f"hit_of_{kind.name}"),
            "OTHERS": chain,
        }
        chain = compiled(_element_or_other, names, f"{kind.name}_or_other")
    return chain


# element_of(kind, z, y, weight, options) -> (loss, d loss/d z, 1 where right) for vectors of rows of one output.
element_of = _chain(elementwise_kinds())
