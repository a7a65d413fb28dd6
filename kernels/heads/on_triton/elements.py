"""The element functions of all kinds of heads, compiled by Triton on blocks of logits, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import triton
import triton.language as tl

from ...machine.triton_elementary import log1p
from ..kind import Kind, elementwise_kinds


@triton.jit
def _where(condition, yes, no):
    return tl.where(condition, yes, no)


@triton.jit
def _absolute(b_x):
    return tl.abs(b_x)


@triton.jit
def _exp(b_x):
    return tl.exp(b_x)


@triton.jit
def _log(b_x):
    return tl.log(b_x)


@triton.jit
def _log1p_and_reciprocal(b_u):
    return log1p(b_u), 1.0 / (1.0 + b_u)


# The functions of ../elements.py.
WORDS = {
    "where": _where,
    "absolute": _absolute,
    "exp": _exp,
    "exp_of_negative": _exp,
    "log": _log,
    "log1p_and_reciprocal": _log1p_and_reciprocal,
}


def _compiled(function: Callable, names: dict[str, Any], name: str) -> Any:
    """Compile the function, with these additional globals, for inlining into its callers.

    Triton distinguishes functions by their qualified names, and its interpreter needs `tl`.
    """
    copy = FunctionType(function.__code__, {**function.__globals__, "tl": tl, **names}, function.__name__)
    copy.__qualname__ = name
    return triton.jit(copy)


@triton.jit
def _unknown_kind(kind, b_z, b_y, b_w, options):
    """Return NaN, which cannot be mistaken for a loss: no kind has this code."""
    b_nan = tl.full(b_z.shape, float("nan"), tl.float32)
    return b_nan, b_nan, tl.full(b_z.shape, 1, tl.int32)


def _no_hit(b_z, b_y):
    return tl.zeros_like(b_z)


def _element_or_other(kind, b_z, b_y, b_w, options):
    """One link of the chain: this kind's element function, or else the remaining links."""
    if kind == CODE:  # noqa: F821
        b_loss, b_dz = ELEMENT(b_z, b_y, b_w, options)  # noqa: F821
        b_wrong = (HIT(b_z, b_y) < 0.5).to(tl.int32)  # noqa: F821
    else:
        b_loss, b_dz, b_wrong = OTHERS(kind, b_z, b_y, b_w, options)  # noqa: F821
    return b_loss, b_dz, b_wrong


def _chain(kinds: tuple[Kind, ...]) -> Any:
    chain = _unknown_kind
    for kind in kinds:
        assert kind.element is not None
        names = {
            "CODE": tl.constexpr(kind.code),
            "ELEMENT": _compiled(kind.element, WORDS, f"element_of_{kind.name}"),
            "HIT": _compiled(kind.hit or _no_hit, WORDS, f"hit_of_{kind.name}"),
            "OTHERS": chain,
        }
        chain = _compiled(_element_or_other, names, f"{kind.name}_or_other")
    return chain


# element_of(kind, b_z, b_y, b_w, options) -> (loss, d loss/d z, 1 where wrong) for a block.
element_of = _chain(elementwise_kinds())


@triton.jit
def dense_elements(b_z, b_y, b_w, m_valid, kind, options):
    """Return (loss, gradient, 1 where an output is wrong) for every float target of a head of any elementwise kind.

    b_y is finite; b_w holds the column weights. Loss and gradient are 0 where not m_valid.
    """
    b_loss, b_dz, b_wrong = element_of(kind, b_z, b_y, b_w, options)
    return tl.where(m_valid, b_loss, 0.0), tl.where(m_valid, b_dz, 0.0), tl.where(m_valid, b_wrong, 0)
