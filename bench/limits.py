"""python -m bench.limits: on both sides of the sizes by which a step is given to torch or to the kernels, on a CPU.

One softmax head behind a linear layer by torch and by the kernels (`MOST_PRODUCTS` in mt2st_fast/model/one_head.py),
and the step of an MLP of two layers as one kernel call and by autograd (`MOST_WIDTH` in kernels/step/stack.py), each
without its limit. Ratios above 1 mean that the kernels are faster. Takes half a minute.
"""

from __future__ import annotations

import math
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from bench.interleaved import Candidate, interleave
from bench.step_cases import ENDLESS_STEPS, Step
from bench.step_models import adamw
from mt2st_fast import Classification, MultiTask, MultiTaskHeads, Trainer
from mt2st_fast.kernels.step import stack
from mt2st_fast.model import one_head

ROUNDS = 15
D = 128
# N and C of one head.
HEADS = ((128, 5), (512, 5), (128, 50), (2048, 5), (512, 50), (2048, 17), (2048, 50))
# N, inputs and width of an MLP.
MLPS = (
    (32, 64, 64),
    (128, 64, 512),
    (512, 512, 512),
    (128, 2048, 2048),
    (512, 8192, 128),
    (512, 20_000, 128),
)


def _step_of_head(N: int, C: int, backend: str) -> Step:
    torch.manual_seed(1)
    layer, heads = nn.Linear(D, D), MultiTaskHeads(D, {"a": Classification(C)}, "a", backend=backend)
    inputs, targets, weights = torch.randn(N, D), {"a": torch.randint(C, (N,))}, torch.ones(1)
    parameters = [*layer.parameters(), *heads.parameters()]

    def step() -> None:
        heads.backward(torch.relu(layer(inputs)), targets, weights)
        for parameter in parameters:
            parameter.grad = None

    return step


def _step_of_mlp(N: int, F: int, H: int, backward: str) -> Step:
    torch.manual_seed(1)
    encoder = nn.Sequential(nn.Linear(F, H), nn.ReLU(), nn.Linear(H, H), nn.ReLU())
    heads = MultiTaskHeads(H, {"a": Classification(5)}, "a")
    trainer = Trainer(encoder, heads, schedule=MultiTask(), optimizer=adamw, device="cpu", backward=backward)
    batches = [(torch.randn(N, F), {"a": torch.randint(5, (N,))}) for _ in range(4)]
    return trainer.begin(batches, epochs=ENDLESS_STEPS).step


def _row(table: Table, case: tuple[str, ...], by_torch: Step, by_kernels: Step) -> None:
    steps = {"torch": Candidate(by_torch), "kernels": Candidate(by_kernels)}
    timings = interleave(steps, rounds=ROUNDS, settles=True)
    ratio = timings.ratio("torch", "kernels").of_medians
    table.add_row(*case, *(f"{timings.median_us(name):,.0f}" for name in steps), f"{ratio:.2f}")


def main() -> None:
    """Print both tables."""
    times = ("torch, µs", "kernels, µs", "torch / kernels")
    heads = Table("N", "D", "C", "log2(N D C)", *times, title="one head")
    with patch.object(one_head, "MOST_PRODUCTS", math.inf):
        for N, C in HEADS:
            case = (f"{N:,}", str(D), str(C), f"{math.log2(N * D * C):.1f}")
            _row(heads, case, _step_of_head(N, C, "auto"), _step_of_head(N, C, "numba"))
    mlps = Table("N", "inputs", "width", *times, title="MLP of two layers, one head, AdamW")
    with patch.object(stack, "MOST_WIDTH", math.inf):
        for N, F, H in MLPS:
            case = (f"{N:,}", f"{F:,}", f"{H:,}")
            _row(mlps, case, _step_of_mlp(N, F, H, "autograd"), _step_of_mlp(N, F, H, "auto"))
    for table in (heads, mlps):
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
