"""python -m bench.own_encoders: a Trainer's step of small encoders of torch's own layers against an eager loop.

One, three and eight heads of five classes, by AdamW. The step of linear layers is one kernel call; that of torch's
EmbeddingBag is the hardest case for the Trainer, as nearly all of it is torch's own. Ratios above 1 mean that the
Trainer is faster.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.interleaved import Candidate, interleave
from bench.step_cases import eager_step, trainer_step
from bench.step_models import StepModel
from mt2st_fast import Classification, MultiTask, MultiTaskHeads

D, CLASSES, ROUNDS = 128, 5, 25
N_BATCHES = 8


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, D), nn.ReLU(), nn.Linear(D, D), nn.ReLU())


def _bag() -> nn.Module:
    return nn.EmbeddingBag(5000, D)


# By name: the encoder, and N of its inputs.
ENCODERS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "two linear layers": (_mlp, lambda N: torch.randn(N, 64)),
    "EmbeddingBag of 20 words": (_bag, lambda N: torch.randint(5000, (N, 20))),
}


def _model(name: str, K: int, N: int) -> StepModel:
    torch.manual_seed(1)
    make, inputs = ENCODERS[name]
    tasks = {f"task{k}": Classification(CLASSES) for k in range(K)}
    batches = [(inputs(N), {task: torch.randint(CLASSES, (N,)) for task in tasks}) for _ in range(N_BATCHES)]
    heads = MultiTaskHeads(D, tasks, "task0")
    return StepModel(make(), heads, batches, lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True))


def main() -> None:
    """Print a table with a row per encoder, number of heads and rows of a batch."""
    table = Table("encoder", "heads", "N", "Trainer, µs", "eager, µs", "eager / Trainer")
    for name in ENCODERS:
        for K in (1, 3, 8):
            for N in (32, 128, 512):
                model = _model(name, K, N)
                timings = interleave(
                    {
                        "ours": Candidate(trainer_step(model, MultiTask())[1]),
                        "eager": Candidate(eager_step(model, tuple(model.heads.tasks))),
                    },
                    rounds=ROUNDS,
                    settles=True,
                )
                ours, eager = timings.median_us("ours"), timings.median_us("eager")
                ratio = timings.ratio("eager", "ours").of_medians
                table.add_row(name, str(K), str(N), f"{ours:,.0f}", f"{eager:,.0f}", f"{ratio:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
