"""Run the Triton loss pass in the interpreter, and store what it and torch compute: python -m <this> OUT.npz.

A process of its own, because TRITON_INTERPRET is read when triton is imported. Every case stores, for each
result: `ours`, `torch` (the same loss by torch in float32) and `truth` (in float64).
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind
from mt2st_fast.kernels.heads.on_triton import loss_blocks, loss_pass, loss_sums
from tests.kernels.heads.interpreted_heads import MIXED, WIDE, make_targets, summed_loss

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


def main(out: str) -> None:
    # Fills every torch.empty with NaN, so whatever a kernel leaves unwritten shows.
    torch.use_deterministic_algorithms(True)
    store: dict[str, np.ndarray] = {}
    for name in CASES:
        run_case(name, store)
    run_outside(store)
    run_infinite(store)
    run_skip(store)
    run_many_blocks(store)
    np.savez(out, **store)


if __name__ == "__main__":
    main(*sys.argv[1:])
