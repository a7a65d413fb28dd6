"""Multiply gradients that are complete except for the upstream gradient g, a scalar on the device, by g: one launch.

g is 1 unless the caller scales the loss. Then a tensor that may be handed out as it is needs no work, but asking the
device would stall the host: the programs check g themselves, and exit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...machine.launch import Sample, Variant, cdiv, types_of

BLOCK = 2048
WARPS = 8
MAX_PROGRAMS = 1024
MOST_INT32 = (1 << 31) - 1


@triton.jit
def _scale(p_gradient, p_out, upstream, n, IN_PLACE: tl.constexpr, BLOCK: tl.constexpr):
    """out = upstream * gradient, n elements; a program takes every num_programs-th block."""
    n_blocks = (n - 1) // BLOCK + 1  # tl.cdiv adds BLOCK first, which overflows just below 2^31
    if IN_PLACE:
        n_blocks = tl.where(upstream == 1.0, 0, n_blocks)
    for i_block in range(tl.program_id(0), n_blocks, tl.num_programs(0)):
        o = tl.arange(0, BLOCK).to(tl.int64) + i_block * BLOCK
        b = tl.load(p_gradient + o, mask=o < n, other=0.0).to(tl.float32) * upstream
        tl.store(p_out + o, b.to(p_out.dtype.element_ty), mask=o < n)


@triton.jit(do_not_specialize=["n_features", "n_weight", "n_bias"])
def upstream_kernel(
    p_features,  # (n_features,)
    p_features_out,  # (n_features,), the same as p_features if FEATURES_IN_PLACE
    p_weight,
    p_weight_out,
    p_bias,
    p_bias_out,
    p_upstream,  # () of any floating dtype
    n_features,
    n_weight,
    n_bias,
    FEATURES_IN_PLACE: tl.constexpr,
    WEIGHT_IN_PLACE: tl.constexpr,
    BIAS_IN_PLACE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Scale the gradients of features, weight and bias; 0 elements: it is not needed."""
    upstream = tl.load(p_upstream).to(tl.float32)
    _scale(p_features, p_features_out, upstream, n_features, FEATURES_IN_PLACE, BLOCK)
    _scale(p_weight, p_weight_out, upstream, n_weight, WEIGHT_IN_PLACE, BLOCK)
    _scale(p_bias, p_bias_out, upstream, n_bias, BIAS_IN_PLACE, BLOCK)


def times_upstream(
    gradients: Sequence[Tensor | None], dtypes: Sequence[torch.dtype], upstream: Tensor, own: bool
) -> tuple[Tensor | None, ...]:
    """Return upstream * gradient for three contiguous gradients, each in its dtype and rounded once; None stays None.

    With `own` nobody else holds the gradients: one whose dtype fits is scaled in place and returned.
    """
    scaled = [
        None if g is None else g if own and g.dtype is dtype else torch.empty_like(g, dtype=dtype)
        for g, dtype in zip(gradients, dtypes, strict=True)
    ]
    sizes = [0 if gradient is None else gradient.numel() for gradient in gradients]
    in_place = tuple(out is gradient for out, gradient in zip(scaled, gradients, strict=True))
    # An argument that is never read still needs a pointer.
    pairs = [
        upstream if tensor is None else tensor
        for pair in zip(gradients, scaled, strict=True)
        for tensor in pair
    ]
    _variant(in_place).launch(
        min(MAX_PROGRAMS, cdiv(max(sizes), BLOCK)),
        (*pairs, upstream),
        sizes,
        known=tuple(size > MOST_INT32 for size in sizes),
    )
    return tuple(scaled)


@cache
def _variant(in_place: tuple[bool, ...]) -> Variant:
    names = ("FEATURES_IN_PLACE", "WEIGHT_IN_PLACE", "BIAS_IN_PLACE")
    constexprs = {**dict(zip(names, in_place, strict=True)), "BLOCK": BLOCK}
    return Variant(upstream_kernel, constexprs, {"num_warps": WARPS})


def samples() -> Iterator[Sample]:
    """Yield variants that `times_upstream` launches."""
    for gradient, out, size in (("bf16", "bf16", "i32"), ("fp32", "fp32", "i64"), ("fp32", "fp16", "i32")):
        types = types_of(
            f"*{gradient} p_features p_weight", f"*{out} p_features_out p_weight_out p_bias_out",
            "*fp32 p_bias p_upstream", f"{size} n_features n_weight n_bias",
        )  # fmt: skip
        same = gradient == out
        name = f"{gradient} to {out}{' in place' if same else ''}, sizes {size}"
        yield Sample(name, _variant((same, same, out == "fp32")), types)
