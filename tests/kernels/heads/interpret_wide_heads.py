"""Wide heads of the chunked plan in Triton's interpreter, by small blocks: python -m <this> SHARE OUT.npz.

Run by `run_interpreted` (tests/kernels/interpreter.py). Stores what interpret_plans does for
each case, and some more.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind
from mt2st_fast.kernels.heads.call import HeadsCall
from mt2st_fast.kernels.heads.on_triton import chunked, column_sums, wide_rows
from mt2st_fast.kernels.heads.on_triton.targets import MOST_ADDRESSES
from tests.kernels.heads import interpret_plans
from tests.kernels.heads.interpret_plans import Plan, run_plan, run_promises
from tests.kernels.heads.interpreted_heads import MIXED, PROMISING
from tests.kernels.interpreter import poison_fresh_memory
from tests.kernels.launches import counted_launches

SOFTMAX, BINARY, HUBER = Kind.SOFTMAX, Kind.BINARY, Kind.HUBER


def weights_of(C: int) -> tuple[float, ...]:
    return tuple(0.25 * (c % 5) for c in range(C))


PLAIN = HeadSpec(SOFTMAX, 150)
WEIGHTED = HeadSpec(SOFTMAX, 133, class_weights=weights_of(133), ignore_index=2)
SMOOTHED = HeadSpec(SOFTMAX, 161, label_smoothing=0.2, class_weights=weights_of(161), ignore_index=-1)
VALUES = (HeadSpec(BINARY, 140, pos_weight=tuple(0.5 + c % 3 for c in range(140))), HeadSpec(HUBER, 131))
HALF = torch.float16


class Case(NamedTuple):
    """A plan's case, and what it is computed by."""

    plan: Plan
    rows: int = 1  # of a block
    columns: int = 64
    copied_bytes: int = 0  # of the largest weight that is copied and padded


def wide(*heads: HeadSpec, N: int = 5, D: int = 8, **more: Any) -> Plan:
    return Plan(chunked, heads, N, D, **more)


SHARES = ("first", "second")  # two processes divide the cases
CASES = {
    # Heads that begin and end anywhere between two multiples of 16, one block of columns and several.
    "between": Case(wide(MIXED[0], PLAIN, MIXED[3], WEIGHTED, SMOOTHED, MIXED[0])),
    "between-float16": Case(wide(MIXED[0], WEIGHTED, SMOOTHED, MIXED[3], dtype=HALF)),
    "one-block": Case(wide(MIXED[3], PLAIN, MIXED[3], SMOOTHED), columns=256),
    "two-rows": Case(wide(MIXED[3], PLAIN, N=5), rows=2),
    "copied": Case(wide(MIXED[0], PLAIN, WEIGHTED), copied_bytes=1 << 20),
    "chunks": Case(wide(MIXED[0], PLAIN, WEIGHTED, MIXED[3], N=20, options={"least_rows": 16})),
    "chunks-float16": Case(wide(MIXED[0], WEIGHTED, N=20, dtype=HALF, options={"least_rows": 16})),
    "no-bias": Case(wide(SMOOTHED, MIXED[0], PLAIN, bias=False)),
    "values": Case(wide(MIXED[0], *VALUES, PLAIN)),
    "values-last": Case(wide(PLAIN, *VALUES, N=17, options={"least_rows": 16})),
    "nothing-valid": Case(wide(PLAIN, MIXED[0], VALUES[0], empty=(0, 2))),
    "many": Case(wide(PLAIN, *[MIXED[0], VALUES[1]] * (MOST_ADDRESSES // 2), N=4)),
    # S one and seven more than a multiple of 8.
    **{f"tail-{tail}": Case(wide(HeadSpec(SOFTMAX, 133 + tail), MIXED[0], N=5)) for tail in (1, 7)},
}


def run_case(name: str, store: dict[str, np.ndarray]) -> None:
    plan, rows, columns, copied_bytes = CASES[name]
    blocks, copied = wide_rows.choose_blocks, chunked.COPIED_BYTES
    wide_rows.choose_blocks = lambda *_: wide_rows.Blocks(rows, columns, 4, 96)
    chunked.COPIED_BYTES = copied_bytes
    interpret_plans.PLANS[name] = plan
    try:
        run_plan(name, store)
        if name in PROMISING:
            run_promises(name, store)
    finally:
        wide_rows.choose_blocks, chunked.COPIED_BYTES = blocks, copied


def one_head(
    bias: Tensor, targets: Tensor, head: HeadSpec, least_rows: int | None = None
) -> dict[str, Tensor]:
    """Losses, correct and gradients of a head whose logits are its bias."""
    N, S = len(targets), head.size
    layout, before = HeadLayout((head,)), targets.clone()
    call = HeadsCall(
        torch.zeros(N, 4), torch.zeros(S, 4), bias, [targets], torch.ones(1), layout, (True, True, True)
    )
    result = chunked.forward(call, least_rows=least_rows)
    gradients = chunked.backward(call, result.residual, torch.ones(()), own=True)
    assert torch.equal(before, targets), "targets were written to"
    assert result.total is not None
    return {
        "losses": result.losses, "total": result.total, "correct": result.correct,
        **dict(zip(("d_features", "d_weight", "d_bias"), gradients, strict=True)),
    }  # fmt: skip


def run_outside(store: dict[str, np.ndarray]) -> None:
    """Classes outside [0, C), ignored rows and two wide heads: NaN is the first head's loss, and nothing else."""
    torch.manual_seed(3)
    layout = HeadLayout((HeadSpec(SOFTMAX, 150), HeadSpec(SOFTMAX, 131)))
    features, weight = torch.randn(5, 8), torch.randn(281, 8)
    targets = [torch.tensor([0, 150, 149, -100, -5]), torch.tensor([0, 1, 130, -100, 7])]
    call = HeadsCall(features, weight, None, targets, torch.ones(2), layout, (True, True, False))
    result = chunked.forward(call)
    d_features, d_weight, _ = chunked.backward(call, result.residual, torch.ones(()), own=True)
    leaf = features.clone().requires_grad_()
    z = leaf @ weight.t()
    true = F.cross_entropy(z[[0, 2], :150], targets[0][[0, 2]]) + F.cross_entropy(z[:, 150:], targets[1])
    true.backward()
    store["outside/losses"] = result.losses.numpy()
    store["outside/of-second"] = F.cross_entropy(z[:, 150:], targets[1]).detach().numpy()
    store["outside/d_features"], store["outside/d_weight"] = d_features.numpy(), d_weight.numpy()
    store["outside/true-d_features"] = leaf.grad.numpy()


def run_autocast(store: dict[str, np.ndarray]) -> None:
    """Features of 16 bits and parameters of 32, in one chunk and in two: gradients in the parameters' dtype."""
    torch.manual_seed(4)
    layout, targets = HeadLayout((HeadSpec(SOFTMAX, 150),)), [torch.randint(150, (20,))]
    features, weight, bias = torch.randn(20, 8).half(), torch.randn(150, 8), torch.randn(150)
    call = HeadsCall(features, weight, bias, targets, torch.ones(1), layout, (True, True, True))
    leaves = [t.double().requires_grad_() for t in (features, weight.half(), bias)]
    true = torch.autograd.grad(F.cross_entropy(F.linear(*leaves), targets[0]), leaves)
    for name, least_rows in (("one", None), ("two", 16)):
        residual = chunked.forward(call, least_rows=least_rows).residual
        gradients = chunked.backward(call, residual, torch.ones(()), own=True)
        dtypes = [g.dtype for g in gradients if g is not None]
        store[f"autocast-{name}/dtypes"] = np.array(dtypes == [torch.float16, torch.float32, torch.float32])
        errors = [
            (g.double() - t).norm() / t.norm() for g, t in zip(gradients, true, strict=True) if g is not None
        ]
        store[f"autocast-{name}/errors"] = torch.stack(errors).numpy()


def run_infinite(store: dict[str, np.ndarray], columns: int) -> None:
    """Logits of -inf mask classes out; the maximum may be in an edge, in the first block or in the last; ties."""
    for name, where in (("first", 0), ("inner", 40), ("edge", 148), ("tie", 77)):
        bias = torch.linspace(-1.0, 1.0, 150)
        bias[20:35] = -torch.inf
        bias[where] = 3.0
        if name == "tie":
            bias[100] = 3.0
        targets = torch.tensor([where, 100, 149])
        found = one_head(bias, targets, HeadSpec(SOFTMAX, 150))
        leaf = bias.clone().requires_grad_()
        true = F.cross_entropy(leaf.expand(3, -1), targets)
        true.backward()
        store[f"infinite-{name}-{columns}/losses"] = np.array(
            [found["losses"].item(), true.item(), found["total"].item()]
        )
        store[f"infinite-{name}-{columns}/correct"] = found["correct"].numpy()
        store[f"infinite-{name}-{columns}/d_bias"] = torch.stack([found["d_bias"], leaf.grad]).numpy()


def run_large(store: dict[str, np.ndarray], columns: int) -> None:
    """Logits far beyond the range of exp."""
    bias = torch.randn(150, generator=torch.Generator().manual_seed(1)) * 1e4
    targets = torch.tensor([3, 149, 70])
    found = one_head(bias, targets, HeadSpec(SOFTMAX, 150, label_smoothing=0.1))
    true = F.cross_entropy(bias.double().expand(3, -1), targets, label_smoothing=0.1)
    store[f"large-{columns}/losses"] = np.array([found["losses"].item(), true.item()])
    store[f"large-{columns}/finite"] = np.array(all(torch.isfinite(value).all() for value in found.values()))


def run_column_sums(store: dict[str, np.ndarray]) -> None:
    """Several parts of rows, and a block of columns that is not full."""
    torch.manual_seed(5)
    wide_matrix = torch.randn(150, 544)
    found = column_sums.column_sums(wide_matrix[:, :536])
    store["column-sums/ours"] = found.numpy()
    store["column-sums/truth"] = wide_matrix[:, :536].double().sum(0).numpy()


def run_launches(store: dict[str, np.ndarray]) -> None:
    """What a call forward and backward launches."""
    for name, sizes, copied_bytes in (
        ("vocabulary", (1936, 17, 9, 5, 3), 0),
        ("classes", (1000, 100, 50, 20, 10), 1 << 20),
    ):
        chunked.COPIED_BYTES = copied_bytes
        layout = HeadLayout(tuple(HeadSpec(SOFTMAX, size) for size in sizes))
        targets = [torch.zeros(4, dtype=torch.int64) for _ in sizes]
        features, weight, bias = torch.randn(4, 8), torch.randn(layout.width, 8), torch.randn(layout.width)
        call = HeadsCall(features, weight, bias, targets, torch.ones(5), layout, (True, True, True))
        chunked.forward(call)  # copies tables
        with counted_launches(execute=False) as launches:
            chunked.backward(call, chunked.forward(call).residual, torch.ones(()), own=True)
        store[f"launches/{name}"] = np.array(launches.names)


def main(out: str, share: str) -> None:
    poison_fresh_memory(True)
    store: dict[str, np.ndarray] = {}
    for name in list(CASES)[SHARES.index(share) :: len(SHARES)]:
        run_case(name, store)
    if share == SHARES[0]:
        run_others(store)
    np.savez(out, **store)


def run_others(store: dict[str, np.ndarray]) -> None:
    run_outside(store)
    for columns in (32, 256):
        wide_rows.choose_blocks = lambda *_, columns=columns: wide_rows.Blocks(1, columns, 4, 96)
        run_infinite(store, columns)
        run_large(store, columns)
    run_autocast(store)
    run_column_sums(store)
    poison_fresh_memory(False)  # which fills what is allocated
    run_launches(store)


if __name__ == "__main__":
    main(*sys.argv[1:])
