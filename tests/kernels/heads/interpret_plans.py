"""Run a Triton plan in the interpreter, and store what it and torch compute: python -m <this> PLAN OUT.npz.

A process of its own, because TRITON_INTERPRET is read when triton is imported. Every case stores, for each
result: `ours`, `torch` (the same loss by torch in float32) and `truth` (in float64).
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any, NamedTuple

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind
from mt2st_fast.kernels.heads.call import HeadsCall
from mt2st_fast.kernels.heads.on_triton import chunked, packed, tile
from tests.kernels.heads.interpreted_heads import MIXED, WIDE, make_targets, summed_loss

CHUNKED = (MIXED[2], HeadSpec(Kind.SOFTMAX, 135, label_smoothing=0.1), MIXED[3], MIXED[0])


class Plan(NamedTuple):
    """A case for a whole plan."""

    module: ModuleType
    heads: tuple[HeadSpec, ...]
    N: int
    D: int
    dtype: torch.dtype = torch.float32
    bias: bool = True
    empty: tuple[int, ...] = ()  # tasks without any valid row
    options: dict[str, Any] = {}  # noqa: RUF012 - of the module's forward

    @property
    def task_weights(self) -> Tensor:
        """Of every size and sign, the last one 0."""
        values = (1.0, 0.3, 1e-4, -2.0, 1.0, 0.7, 2.0) * 3
        return torch.tensor([*values[: len(self.heads) - 1], 0.0])


PLANS = {
    "packed": Plan(packed, MIXED, 33, 12, empty=(4,)),
    "packed-float16": Plan(packed, MIXED, 33, 12, torch.float16, empty=(4,)),
    "packed-no-bias": Plan(packed, MIXED, 33, 12, bias=False),
    "packed-one-kind": Plan(packed, (MIXED[1], MIXED[3], MIXED[5]), 21, 20),
    "packed-many": Plan(packed, MIXED * 3, 17, 12),
    "packed-wide": Plan(packed, WIDE, 33, 12, empty=(2,)),
    "packed-no-rows": Plan(packed, MIXED, 0, 12),
    "tile": Plan(tile, MIXED, 33, 12, empty=(4,)),
    "tile-float16": Plan(tile, MIXED, 33, 12, torch.float16, empty=(4,)),
    "tile-no-bias": Plan(tile, MIXED, 33, 140, bias=False),
    "tile-one-kind": Plan(tile, (MIXED[1], MIXED[3], MIXED[5]), 80, 20),
    "tile-many": Plan(tile, MIXED[:2] * 9, 17, 12),
    "tile-no-rows": Plan(tile, MIXED, 0, 12),
    # One wide head in chunks of 16 rows between narrow ones.
    "chunked": Plan(chunked, CHUNKED, 24, 12, options={"least_rows": 16}),
    "chunked-float16": Plan(chunked, CHUNKED, 24, 12, torch.float16, options={"least_rows": 16}),
    "chunked-no-bias": Plan(chunked, CHUNKED[1:], 21, 12, bias=False),
    "chunked-narrow": Plan(chunked, WIDE, 24, 12, options={"least_rows": 16}),
    "chunked-no-rows": Plan(chunked, CHUNKED, 0, 12),
}
NEEDS = ((True, False, False), (False, True, False), (False, False, True), (False, False, False))


def run_plan(name: str, store: dict[str, np.ndarray]) -> None:
    """Forward and backward against torch in float32 and float64, with an upstream gradient of 3."""
    plan = PLANS[name]
    module, heads, N, D, dtype, has_bias, empty, options = plan
    torch.manual_seed(11)
    layout, weights, upstream = HeadLayout(heads), plan.task_weights, torch.tensor(3.0)
    features, weight = torch.randn(N, D).to(dtype), (torch.randn(layout.width, D) / D**0.5).to(dtype)
    bias = torch.randn(layout.width).to(dtype) if has_bias else None
    # Equal logits: the first maximum counts.
    for tensor in (weight, bias):
        if tensor is not None:
            tensor[1] = tensor[0]
    targets = make_targets(heads, N, empty)
    every = (True, True, has_bias)

    def forward(needs: tuple[bool, bool, bool], skip: bool = False) -> Any:
        call = HeadsCall(features, weight, bias, targets, weights, layout, needs, skip)
        return module.forward(call, **options)

    def backward(residual: Any, needs: tuple[bool, bool, bool], own: bool, g: Tensor = upstream) -> Any:
        call = HeadsCall(features, weight, bias, (), weights, layout, needs)
        return module.backward(call, residual, g, own=own)

    def same(a: Any, b: Any) -> bool:
        return all(x is y if x is None or y is None else torch.equal(x, y) for x, y in zip(a, b, strict=True))

    once, again = forward(every), forward(every)
    arguments = [t for t in (features, weight, bias, weights, upstream, *once.residual) if t is not None]
    before = [tensor.clone() for tensor in arguments]
    gradients = backward(once.residual, every, own=False)
    like = module.residual_like(HeadsCall(features, weight, bias, (), weights, layout, every))
    store[f"{name}/writes-to-no-argument"] = np.array(same(before, arguments))
    store[f"{name}/residual-like"] = np.array(
        all(a.shape == b.shape and a.dtype is b.dtype for a, b in zip(once.residual, like, strict=True))
    )
    store[f"{name}/same-bits"] = np.array(
        same((*once[:2], *gradients), (*again[:2], *backward(again.residual, every, own=True)))
    )
    store[f"{name}/dtypes"] = np.array(all(g is None or g.dtype is dtype for g in gradients))
    # An upstream gradient of 1 changes nothing.
    ones = backward(once.residual, every, own=False, g=torch.tensor(1.0))
    store[f"{name}/upstream-1"] = np.array(
        same(ones, backward(forward(every).residual, every, own=True, g=torch.tensor(1.0)))
    )
    store[f"{name}/needs"] = np.array(
        all(
            same(part[:2], once[:2])
            and (
                not any(needs)
                or same(
                    backward(part.residual, needs, own=False),
                    [g if need else None for g, need in zip(gradients, needs, strict=True)],
                )
            )
            for needs, part in ((n, forward(n)) for n in NEEDS if has_bias or not n[2])
        )
    )
    skipping = forward(every, skip=True)
    store[f"{name}/skip"] = np.array(
        bool(skipping.losses[-1] == 0)
        and bool(skipping.correct[-1] == 0)
        and torch.equal(skipping.losses[:-1], once.losses[:-1])
        and same(gradients, backward(skipping.residual, every, own=False))
    )
    ours = dict(zip(("d_features", "d_weight", "d_bias"), gradients, strict=True))
    ours |= {"losses": once.losses, "correct": once.correct}
    for kind, wide in (("ours", None), ("torch", torch.float32), ("truth", torch.float64)):
        results = ours
        if wide is not None:
            of = wide if kind == "truth" else dtype
            results = plan_by_torch(plan, layout, features.to(of), weight.to(of), bias, targets, wide)
        for key, value in results.items():
            if value is not None:
                store[f"{name}/{key}/{kind}"] = value.detach().double().numpy()


def plan_by_torch(
    plan: Plan,
    layout: HeadLayout,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: list[Tensor],
    wide: torch.dtype,
) -> dict[str, Tensor | None]:
    """The plan's results by torch; logits are `wide` in the losses, as under autocast."""
    leaves = [features.detach().requires_grad_(), weight.detach().requires_grad_()]
    if bias is not None:
        leaves.append(bias.detach().to(features.dtype).requires_grad_())
    z = F.linear(*leaves).to(wide)
    parts = [
        summed_loss(z[:, first:last], target, head)
        for (first, last, head), target in zip(layout, targets, strict=True)
    ]
    losses = torch.stack([torch.where(d > 0, loss / d.clamp_min(1e-9), 0.0) for loss, d, _ in parts])
    total = 3.0 * (losses * plan.task_weights.to(wide)).sum()
    gradients = [*torch.autograd.grad(total, leaves), None]
    return {
        **dict(zip(("d_features", "d_weight", "d_bias"), gradients[:3], strict=True)),
        "losses": losses,
        "correct": torch.stack([right for _, _, right in parts]),
    }


def run_plan_outside(name: str, module: ModuleType, store: dict[str, np.ndarray]) -> None:
    """Class indices outside [0, C) through a whole plan: NaN losses of their tasks, finite gradients."""
    layout = HeadLayout((HeadSpec(Kind.SOFTMAX, 3), HeadSpec(Kind.SOFTMAX, 4), HeadSpec(Kind.SOFTMAX, 2)))
    targets = [torch.tensor([0, 3, 1, -100, 2]), torch.tensor([-1] * 5), torch.tensor([0, 1, 1, 0, 1])]
    features, weight = torch.randn(5, 8), torch.randn(9, 8)
    every, weights = (True, True, False), torch.ones(3)
    call = HeadsCall(features, weight, None, targets, weights, layout, every)
    result = module.forward(call)
    d_features, d_weight, _ = module.backward(call, result.residual, torch.ones(()), own=True)
    store[f"{name}-outside/losses"] = result.losses.numpy()
    store[f"{name}-outside/d_weight"] = d_weight.numpy()
    store[f"{name}-outside/d_features"] = d_features.numpy()


def main(group: str, out: str) -> None:
    # Fills every torch.empty with NaN, so whatever a kernel leaves unwritten shows.
    torch.use_deterministic_algorithms(True)
    store: dict[str, np.ndarray] = {}
    for name in PLANS:
        if name.split("-")[0] == group:
            run_plan(name, store)
    run_plan_outside(group, {"chunked": chunked, "packed": packed, "tile": tile}[group], store)
    np.savez(out, **store)


if __name__ == "__main__":
    main(*sys.argv[1:])
