"""Run Triton kernels in the interpreter and store what they and torch compute: python <this> GROUP OUT.npz.

GROUP is loss-pass or the name of a plan.

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
from mt2st_fast.kernels.heads.on_triton import chunked, loss_blocks, loss_pass, loss_sums, packed

MIXED = (
    HeadSpec(Kind.SOFTMAX, 3),
    HeadSpec(Kind.BINARY, 1),
    HeadSpec(Kind.SOFTMAX, 7, label_smoothing=0.1, class_weights=(0.5, 1, 2, 0, 1.5, 3, 1), ignore_index=-1),
    HeadSpec(Kind.BINARY, 5, pos_weight=(0.5, 1.0, 3.0, 7.0, 0.25)),
    HeadSpec(Kind.SQUARED, 2),
    HeadSpec(Kind.HUBER, 3, delta=0.7),
)
# 37 and 20 columns take several column blocks of 16.
WIDE = (
    HeadSpec(Kind.SOFTMAX, 37, label_smoothing=0.2),
    HeadSpec(Kind.SOFTMAX, 1),
    HeadSpec(Kind.BINARY, 20),
    HeadSpec(Kind.SOFTMAX, 33, class_weights=tuple(0.1 * (1 + c % 5) for c in range(33))),
    HeadSpec(Kind.HUBER, 18, delta=2.0),
)
# Begin at multiples of 16; the last one's columns end within 16 of them.
ALIGNED = (
    HeadSpec(Kind.SOFTMAX, 48, label_smoothing=0.1, class_weights=tuple(0.1 * (c % 3) for c in range(48))),
    HeadSpec(Kind.BINARY, 32),
    HeadSpec(Kind.SOFTMAX, 37, label_smoothing=0.2),
)
# A narrow head between wide ones, one of which begins at a multiple of 16.
GROUPS = (
    HeadSpec(Kind.SOFTMAX, 144, label_smoothing=0.1),
    HeadSpec(Kind.SOFTMAX, 3),
    HeadSpec(Kind.HUBER, 130),
)
CHUNKED = (MIXED[2], HeadSpec(Kind.SOFTMAX, 135, label_smoothing=0.1), MIXED[3], MIXED[0])
SMALL_BLOCKS = loss_blocks.Blocks(4, 16, 4, 80)
SMALL_ALIGNED = loss_blocks.Blocks(2, 32, 4, 80, aligned=True)

# name: (heads, N, dtype, bias, blocks, magnitude of the logits, tasks without any valid row)
CASES = {
    "mixed-5": (MIXED, 5, torch.float32, True, None, 2.0, ()),
    "mixed-33": (MIXED, 33, torch.float32, True, None, 2.0, ()),
    "mixed-33-no-bias": (MIXED, 33, torch.float32, False, None, 2.0, ()),
    "mixed-33-float16": (MIXED, 33, torch.float16, True, None, 2.0, ()),
    "wide-33": (WIDE, 33, torch.float32, True, SMALL_BLOCKS, 2.0, ()),
    "wide-33-float16": (WIDE, 33, torch.float16, True, SMALL_BLOCKS, 2.0, ()),
    "wide-17-large-logits": (WIDE, 17, torch.float32, True, SMALL_BLOCKS, 60.0, ()),
    "wide-one-block": (WIDE, 9, torch.float32, True, None, 2.0, ()),
    "aligned-9": (ALIGNED, 9, torch.float32, True, SMALL_ALIGNED, 2.0, ()),
    "aligned-9-float16": (ALIGNED, 9, torch.float16, False, SMALL_ALIGNED, 2.0, ()),
    "groups-9": (GROUPS, 9, torch.float32, True, None, 2.0, ()),
    "nothing-valid": (MIXED, 5, torch.float32, True, None, 2.0, (0, 2, 3, 5)),
    "no-rows": (MIXED, 0, torch.float32, True, None, 2.0, (0, 1, 2, 3, 4, 5)),
}


def make_targets(heads: tuple[HeadSpec, ...], N: int, empty: tuple[int, ...]) -> list[Tensor]:
    """About a fifth of the targets missing; everything missing in the tasks `empty`."""
    targets = []
    for k, head in enumerate(heads):
        missing = torch.rand(N, head.size) < (2.0 if k in empty else 0.2)
        if head.kind is Kind.SOFTMAX:
            dtype = torch.int32 if k % 2 else torch.int64
            target = torch.randint(head.size, (N,), dtype=dtype)
            targets.append(target.masked_fill(missing[:, 0], head.ignore_index))
        else:
            values = (
                torch.rand(N, head.size).round() if head.kind is Kind.BINARY else torch.randn(N, head.size)
            )
            targets.append(values.masked_fill(missing, float("nan")))
    return targets


def summed_loss(logits: Tensor, target: Tensor, head: HeadSpec) -> tuple[Tensor, Tensor, Tensor]:
    """(summed loss, denominator, correct) of one head by torch's own losses in the logits' dtype."""
    weights = torch.tensor(head.column_weights, dtype=logits.dtype)
    if head.kind is Kind.SOFTMAX:
        target = target.long()
        valid = target != head.ignore_index
        loss = F.cross_entropy(
            logits,
            target,
            weight=weights,
            ignore_index=head.ignore_index,
            label_smoothing=head.label_smoothing,
            reduction="sum",
        )
        right = (logits.argmax(1) == target) & valid if len(target) else valid
        return loss, weights[target[valid]].sum(), right.sum()
    target = target.to(logits.dtype)
    valid = ~torch.isnan(target)
    filled = target.nan_to_num()
    if head.kind is Kind.BINARY:
        loss = F.binary_cross_entropy_with_logits(logits, filled, reduction="none", pos_weight=weights)
        right = (((logits > 0) == (filled > 0.5)) | ~valid).all(1) & valid.any(1)
    else:
        squared = head.kind is Kind.SQUARED
        loss = (
            F.mse_loss(logits, filled, reduction="none")
            if squared
            else F.huber_loss(logits, filled, reduction="none", delta=head.delta)
        )
        right = torch.zeros(len(target))
    return torch.where(valid, loss, 0.0).sum(), valid.sum().to(logits.dtype), right.sum()


def by_torch(
    logits: Tensor, bias: Tensor | None, targets: list[Tensor], layout: HeadLayout, dtype: torch.dtype
) -> dict[str, Tensor]:
    z = logits.to(dtype).requires_grad_()
    biased = z if bias is None else z + bias.to(dtype)
    parts = [
        summed_loss(biased[:, first:last], target, head)
        for (first, last, head), target in zip(layout, targets, strict=True)
    ]
    (dz,) = torch.autograd.grad(sum(loss for loss, _, _ in parts), z)
    scale = torch.stack([torch.where(d > 0, 1 / d, 0.0) for _, d, _ in parts])
    losses = torch.stack([loss.detach() for loss, _, _ in parts]) * scale
    # torch would keep the gradient in the logits' dtype.
    rounded = dz if dtype is torch.float64 else dz.to(logits.dtype)
    return {
        "losses": losses,
        "scale": scale,
        "correct": torch.stack([right for _, _, right in parts]),
        "logit_gradient": rounded,
        "bias_gradient": dz.sum(0),
    }


def in_padded_rows(logits: Tensor, layout: HeadLayout) -> Tensor:
    """The logits as the first columns of a longer row, as the plans hold them; the rest is NaN."""
    width = loss_blocks.padded_width(layout) if layout.heads != ALIGNED else 128
    buffer = logits.new_full((len(logits), width), float("nan"))
    buffer[:, : layout.width] = logits
    return buffer[:, : layout.width]


def run_case(name: str, store: dict[str, np.ndarray]) -> None:
    heads, N, dtype, has_bias, blocks, magnitude, empty = CASES[name]
    torch.manual_seed(len(name) + N)
    layout = HeadLayout(heads)
    logits = (torch.randn(N, layout.width) * magnitude).to(dtype)
    if N > 3:
        # Equal logits: the first maximum counts.
        logits[1] = logits[1, 0].clone()
        logits[2] = -logits[2].abs().max()
    bias = torch.randn(layout.width).to(dtype) if has_bias else None
    targets = make_targets(heads, N, empty)
    runs = []
    for _ in range(2):
        overwritten = in_padded_rows(logits, layout)
        result = loss_pass.segment_loss(overwritten, bias, targets, layout, need_gradient=True, blocks=blocks)
        runs.append((*result, overwritten))
    untouched = in_padded_rows(logits, layout)
    forward = loss_pass.segment_loss(untouched, bias, targets, layout, need_gradient=False, blocks=blocks)
    store[f"{name}/same-bits"] = np.array(
        all(torch.equal(a, b) for a, b in zip(*runs, strict=True)) and not runs[0][-1].isnan().any()
    )
    store[f"{name}/forward-only"] = np.array(
        torch.equal(untouched, logits)
        and forward.bias_gradient is None
        and all(torch.equal(a, b) for a, b in zip(forward[:3], runs[0][:3], strict=True))
    )
    losses, scale, correct, bias_gradient, logit_gradient = runs[0]
    ours = {
        "losses": losses,
        "scale": scale,
        "correct": correct,
        "logit_gradient": logit_gradient,
        "bias_gradient": bias_gradient,
    }
    for kind, results in (
        ("ours", ours),
        ("torch", by_torch(logits, bias, targets, layout, torch.float32)),
        ("truth", by_torch(logits, bias, targets, layout, torch.float64)),
    ):
        for key, value in results.items():
            store[f"{name}/{key}/{kind}"] = value.detach().double().numpy()


def run_outside(store: dict[str, np.ndarray]) -> None:
    """Class indices outside [0, C), with and without other valid rows in their task."""
    layout = HeadLayout((HeadSpec(Kind.SOFTMAX, 3), HeadSpec(Kind.SOFTMAX, 4), HeadSpec(Kind.SOFTMAX, 2)))
    logits = torch.randn(5, layout.width)
    targets = [torch.tensor([0, 3, 1, -100, 2]), torch.tensor([-1] * 5), torch.tensor([0, 1, 1, 0, 1])]
    result = loss_pass.segment_loss(logits, None, targets, layout, need_gradient=True)
    store["outside/losses"] = result.losses.numpy()
    store["outside/gradient"] = logits.numpy()


def run_infinite(store: dict[str, np.ndarray]) -> None:
    """Logits of -inf mask classes out, as in torch; the first column blocks hold nothing else."""
    layout = HeadLayout((HeadSpec(Kind.SOFTMAX, 40),))
    logits = torch.randn(4, 40)
    logits[:, :35] = float("-inf")
    target = torch.tensor([35, 36, 39, 38])
    store["infinite/truth"] = F.cross_entropy(logits.double(), target).numpy()
    result = loss_pass.segment_loss(logits, None, [target], layout, need_gradient=True, blocks=SMALL_BLOCKS)
    store["infinite/ours"] = result.losses.numpy()
    store["infinite/gradient"] = logits.numpy()


def run_skip(store: dict[str, np.ndarray]) -> None:
    """Tasks of weight 0: their targets are not read, their logits may hold anything, their gradient is 0."""
    torch.manual_seed(5)
    layout, N = HeadLayout(MIXED), 19
    logits, targets = torch.randn(N, layout.width), make_targets(MIXED, N, ())
    skip_by = torch.tensor([1.0, 0.0, 0.0, -2.0, 1e-30, 0.0])
    every = logits.clone()
    whole = loss_pass.segment_loss(every, None, targets, layout, need_gradient=True)
    some = logits.clone()
    for k, (first, last, head) in enumerate(layout):
        if skip_by[k] == 0:
            some[:, first:last] = float("inf")
            every[:, first:last] = 0.0
            targets[k] = torch.full_like(targets[k], 99 if head.kind is Kind.SOFTMAX else float("inf"))
    unread = some.clone()
    result = loss_pass.segment_loss(some, None, targets, layout, need_gradient=True, skip_by=skip_by)
    forward = loss_pass.segment_loss(unread, None, targets, layout, need_gradient=False, skip_by=skip_by)
    no_bias = loss_pass.segment_loss(
        unread, None, targets, layout, need_gradient=True, need_bias_gradient=False, skip_by=skip_by
    )
    kept = skip_by != 0
    store["skip/kept"] = np.array(
        all(torch.equal(a[kept], b[kept]) for a, b in zip(result[:3], whole[:3], strict=True))
        and torch.equal(some, every)
        and all(torch.equal(a, b) for a, b in zip(result[:3], forward[:3], strict=True))
    )
    store["skip/no-bias-gradient"] = np.array(no_bias.bias_gradient is None and torch.equal(unread, some))
    skipped = torch.cat([value[~kept].double() for value in result[:3]])
    store["skip/skipped"] = torch.cat([skipped, result.bias_gradient[3:11].double()]).numpy()


def run_many_blocks(store: dict[str, np.ndarray]) -> None:
    """Sums of more blocks of rows than `finalize` adds at a time, a ragged number of both tasks and outputs."""
    torch.manual_seed(6)
    layout, n_blocks = HeadLayout((HeadSpec(Kind.SOFTMAX, 40), HeadSpec(Kind.BINARY, 30))), 601
    sums, bias = torch.rand(n_blocks, len(layout), 3), torch.randn(n_blocks, layout.width)
    sums[..., 2] = sums[..., 2].mul(9).round()
    ours = loss_sums.finalize(loss_sums.LossParts(sums, bias), layout)
    loss, denominator, correct = sums.double().sum(dim=0).unbind(dim=1)
    truth = (loss / denominator, 1 / denominator, correct, bias.double().sum(dim=0))
    for name, value, true in zip(ours._fields, ours, truth, strict=True):
        store[f"many-blocks/{name}/ours"] = value.double().numpy()
        store[f"many-blocks/{name}/truth"] = true.numpy()


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
        return torch.tensor([*(1.0, 0.3, 1e-4, -2.0, 1.0)[: len(self.heads) - 1], 0.0])


PLANS = {
    "packed": Plan(packed, MIXED, 33, 12, empty=(4,)),
    "packed-float16": Plan(packed, MIXED, 33, 12, torch.float16, empty=(4,)),
    "packed-no-bias": Plan(packed, MIXED, 33, 12, bias=False),
    "packed-one-kind": Plan(packed, (MIXED[1], MIXED[3], MIXED[5]), 21, 20),
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
    if group == "loss-pass":
        for name in CASES:
            run_case(name, store)
        run_outside(store)
        run_infinite(store)
        run_skip(store)
        run_many_blocks(store)
    for name in PLANS:
        if name.split("-")[0] == group:
            run_plan(name, store)
    if group == "chunked":
        run_plan_outside(group, chunked, store)
    np.savez(out, **store)


if __name__ == "__main__":
    main(*sys.argv[1:])
