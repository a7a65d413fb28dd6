"""Run a Triton plan in the interpreter, and store what it and torch compute: python -m <this> PLAN OUT.npz.

Run by `run_interpreted` (tests/kernels/interpreter.py). Every case stores, for each
result: `ours`, `torch` (the same loss by torch in float32) and `truth` (in float64).
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind
from mt2st_fast.kernels.heads.call import HeadsCall
from mt2st_fast.kernels.heads.on_triton import chunked, packed, tile
from tests.kernels.heads.interpreted_heads import EQUAL, MIXED, PROMISING, WIDE, make_targets, summed_loss
from tests.kernels.interpreter import poison_fresh_memory

ONE_CLASS = (HeadSpec(Kind.SOFTMAX, 1, label_smoothing=0.1, class_weights=(0.7,)), MIXED[0])
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
        values = (1.0, 0.3, 1e-4, -2.0, 1.0, 0.7, 2.0) * 4
        return torch.tensor([*values[: len(self.heads) - 1], 0.0])


PLANS = {
    "packed": Plan(packed, MIXED, 33, 12, empty=(4,)),
    "packed-float16": Plan(packed, MIXED, 33, 12, torch.float16, empty=(4,)),
    "packed-no-bias": Plan(packed, MIXED, 33, 12, bias=False),
    "packed-one-kind": Plan(packed, (MIXED[1], MIXED[3], MIXED[5]), 21, 20),
    "packed-many": Plan(packed, MIXED * 3, 17, 12),
    "packed-equal": Plan(packed, EQUAL, 17, 12, empty=(7,)),
    "packed-wide": Plan(packed, WIDE, 33, 12, empty=(2,)),
    "packed-one-class": Plan(packed, ONE_CLASS, 21, 12),
    "packed-no-rows": Plan(packed, MIXED, 0, 12),
    "tile": Plan(tile, MIXED, 33, 12, empty=(4,)),
    "tile-float16": Plan(tile, MIXED, 33, 12, torch.float16, empty=(4,)),
    "tile-no-bias": Plan(tile, MIXED, 33, 140, bias=False),
    "tile-one-kind": Plan(tile, (MIXED[1], MIXED[3], MIXED[5]), 80, 20),
    "tile-many": Plan(tile, MIXED[:2] * 9, 17, 12),
    "tile-equal": Plan(tile, EQUAL, 17, 12, empty=(7,)),
    "tile-one-class": Plan(tile, ONE_CLASS, 21, 12),
    "tile-no-rows": Plan(tile, MIXED, 0, 12),
    # One wide head in chunks of 16 rows between narrow ones.
    "chunked": Plan(chunked, CHUNKED, 24, 12, options={"least_rows": 16}),
    "chunked-float16": Plan(chunked, CHUNKED, 24, 12, torch.float16, options={"least_rows": 16}),
    "chunked-no-bias": Plan(chunked, CHUNKED[1:], 21, 12, bias=False),
    "chunked-narrow": Plan(chunked, WIDE, 24, 12, options={"least_rows": 16}),
    "chunked-equal": Plan(chunked, (*CHUNKED[:1], *EQUAL), 24, 12, empty=(7,), options={"least_rows": 16}),
    "chunked-one-class": Plan(chunked, ONE_CLASS, 21, 12),
    "chunked-no-rows": Plan(chunked, CHUNKED, 0, 12),
}
NEEDS = ((True, False, False), (False, True, False), (False, False, True), (False, False, False))


class Calls:
    """A plan's calls on tensors of its own."""

    def __init__(self, plan: Plan) -> None:
        torch.manual_seed(11)
        self.plan, self.layout, self.task_weights = plan, HeadLayout(plan.heads), plan.task_weights
        N, D, dtype = plan.N, plan.D, plan.dtype
        self.upstream = torch.tensor(3.0)
        self.features = torch.randn(N, D).to(dtype)
        self.weight = (torch.randn(self.layout.width, D) / D**0.5).to(dtype)
        self.bias = torch.randn(self.layout.width).to(dtype) if plan.bias else None
        # Equal logits: the first maximum counts.
        for tensor in (self.weight, self.bias):
            if tensor is not None:
                tensor[1] = tensor[0]
        self.targets = make_targets(plan.heads, N, plan.empty)
        self.every = (True, True, plan.bias)

    def forward(self, needs: tuple[bool, bool, bool], skip: bool = False) -> Any:
        call = HeadsCall(
            self.features, self.weight, self.bias, self.targets, self.task_weights, self.layout, needs, skip
        )
        return self.plan.module.forward(call, **self.plan.options)

    def backward(
        self, residual: Any, needs: tuple[bool, bool, bool], own: bool, g: Tensor | None = None
    ) -> Any:
        return self.plan.module.backward(
            self._without_targets(needs), residual, self.upstream if g is None else g, own=own
        )

    def residual_like(self) -> Any:
        return self.plan.module.residual_like(self._without_targets(self.every))

    def _without_targets(self, needs: tuple[bool, bool, bool]) -> HeadsCall:
        return HeadsCall(self.features, self.weight, self.bias, (), self.task_weights, self.layout, needs)


def _same(a: Any, b: Any) -> bool:
    return all(x is y if x is None or y is None else torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _are_apart(tensors: list[Tensor]) -> bool:
    """Whether no two share memory, which results of a custom op may not."""
    return len({tensor.untyped_storage()._cdata for tensor in tensors}) == len(tensors)


def run_plan(name: str, store: dict[str, np.ndarray]) -> None:
    """Forward and backward against torch in float32 and float64, with an upstream gradient of 3."""
    plan = PLANS[name]
    calls = Calls(plan)
    once, again = calls.forward(calls.every), calls.forward(calls.every)
    parts = (calls.features, calls.weight, calls.bias, calls.task_weights, calls.upstream, *once.residual)
    arguments = [t for t in parts if t is not None]
    before = [tensor.clone() for tensor in arguments]
    gradients = calls.backward(once.residual, calls.every, own=False)
    store[f"{name}/writes-to-no-argument"] = np.array(_same(before, arguments))
    store[f"{name}/residual-like"] = np.array(
        all(
            a.shape == b.shape and a.dtype is b.dtype
            for a, b in zip(once.residual, calls.residual_like(), strict=True)
        )
    )
    store[f"{name}/same-bits"] = np.array(
        _same((*once[:2], *gradients), (*again[:2], *calls.backward(again.residual, calls.every, own=True)))
    )
    store[f"{name}/dtypes"] = np.array(all(g is None or g.dtype is plan.dtype for g in gradients))
    ours = dict(zip(("d_features", "d_weight", "d_bias"), gradients, strict=True))
    ours |= {"losses": once.losses, "correct": once.correct}
    for kind, wide in (("ours", None), ("torch", torch.float32), ("truth", torch.float64)):
        results = ours
        if wide is not None:
            of = wide if kind == "truth" else plan.dtype
            results = plan_by_torch(
                plan,
                calls.layout,
                calls.features.to(of),
                calls.weight.to(of),
                calls.bias,
                calls.targets,
                wide,
            )
        for key, value in results.items():
            if value is not None:
                store[f"{name}/{key}/{kind}"] = value.detach().double().numpy()


def run_promises(name: str, store: dict[str, np.ndarray]) -> None:
    """What no need, no weight and an upstream gradient of 1 change: nothing of the rest."""
    calls = Calls(PLANS[name])
    every = calls.every
    once = calls.forward(every)
    gradients = calls.backward(once.residual, every, own=False)
    one = torch.tensor(1.0)
    store[f"{name}/upstream-1"] = np.array(
        _same(
            calls.backward(once.residual, every, own=False, g=one),
            calls.backward(calls.forward(every).residual, every, own=True, g=one),
        )
    )
    store[f"{name}/needs"] = np.array(
        all(
            _same(part[:2], once[:2])
            and _are_apart([part.losses, part.correct, *part.residual])
            and (
                not any(needs)
                or _same(
                    calls.backward(part.residual, needs, own=False),
                    [g if need else None for g, need in zip(gradients, needs, strict=True)],
                )
            )
            for needs, part in ((n, calls.forward(n)) for n in NEEDS if calls.plan.bias or not n[2])
        )
    )
    skipping = calls.forward(every, skip=True)
    store[f"{name}/skip"] = np.array(
        bool(skipping.losses[-1] == 0)
        and bool(skipping.correct[-1] == 0)
        and torch.equal(skipping.losses[:-1], once.losses[:-1])
        and _same(gradients, calls.backward(skipping.residual, every, own=False))
    )


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


def main(out: str, group: str) -> None:
    poison_fresh_memory(True)
    store: dict[str, np.ndarray] = {}
    for name in PLANS:
        if name.split("-")[0] == group:
            run_plan(name, store)
            if name in PROMISING:
                run_promises(name, store)
    run_plan_outside(group, {"chunked": chunked, "packed": packed, "tile": tile}[group], store)
    np.savez(out, **store)


if __name__ == "__main__":
    main(*sys.argv[1:])
