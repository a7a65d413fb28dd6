"""Multiply gradients that are complete except for the upstream gradient g, a scalar on the device, by g.

g is 1 unless the caller scales the loss. Then a tensor that may be handed out as it is needs no work, but asking the
device would stall the host: the programs check g themselves, and exit.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...machine.launch import on_device_of

BLOCK = 2048
WARPS = 8
MAX_PROGRAMS = 1024


@triton.jit(do_not_specialize=["n"])
def upstream_kernel(
    p_gradient,  # (n,)
    p_out,  # (n,), the same as p_gradient if IN_PLACE
    p_upstream,  # () of any floating dtype
    n,
    IN_PLACE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = upstream * gradient; a program takes every num_programs-th block."""
    upstream = tl.load(p_upstream).to(tl.float32)
    n_blocks = (n - 1) // BLOCK + 1  # tl.cdiv adds BLOCK first, which overflows just below 2^31
    if IN_PLACE:
        n_blocks = tl.where(upstream == 1.0, 0, n_blocks)
    for i_block in range(tl.program_id(0), n_blocks, tl.num_programs(0)):
        o = tl.arange(0, BLOCK).to(tl.int64) + i_block * BLOCK
        b = tl.load(p_gradient + o, mask=o < n, other=0.0).to(tl.float32) * upstream
        tl.store(p_out + o, b.to(p_out.dtype.element_ty), mask=o < n)


def times_upstream(gradient: Tensor, upstream: Tensor, dtype: torch.dtype, own: bool) -> Tensor:
    """Return upstream * gradient in `dtype`, contiguous; rounded once.

    With `own` nobody else holds the gradient: if its dtype fits, it is scaled in place and returned.
    """
    in_place = own and gradient.dtype is dtype
    out = gradient if in_place else torch.empty_like(gradient, dtype=dtype)
    n = gradient.numel()
    if n:
        with on_device_of(gradient):
            upstream_kernel[(min(MAX_PROGRAMS, triton.cdiv(n, BLOCK)),)](
                gradient, out, upstream, n, IN_PLACE=in_place, BLOCK=BLOCK, num_warps=WARPS
            )
    return out


def _variants() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    variants = []
    for gradient, out, in_place in (("bf16", "bf16", True), ("fp32", "fp32", True), ("fp32", "fp16", False)):
        signature = {"p_gradient": f"*{gradient}", "p_out": f"*{out}", "p_upstream": "*fp32", "n": "i64"}
        constexprs = {"IN_PLACE": in_place, "BLOCK": BLOCK}
        name = f"{gradient} to {out}{' in place' if in_place else ''}"
        variants.append((name, upstream_kernel, signature, constexprs, {"num_warps": WARPS}))
    return variants


VARIANTS = _variants()
