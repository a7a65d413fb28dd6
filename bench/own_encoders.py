"""python -m bench.own_encoders: a Trainer's step of small encoders of torch's own layers against an eager loop.

One, three and eight heads of five classes, by AdamW, which moves the whole table of an EmbeddingBag in every step.
Steps of the first six encoders are one kernel call each; those of the others are autograd's, around the kernels of
the heads, of recurrent layers, and of convolutions below a maximum over time. Ratios above 1 mean that the Trainer is
faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from bench.interleaved import Candidate, interleave
from bench.step_cases import eager_step, trainer_step
from bench.step_models import (
    StepModel,
    adamw,
    convolution_model,
    embedding_model,
    layered_mlp_model,
    mlp_model,
    recurrent_model,
    text_convolution_model,
)
from mt2st_fast import MultiTask

ROUNDS = 25
CPU = torch.device("cpu")


def _bags(K: int, N: int) -> StepModel:
    return replace(embedding_model(5000, 128, N, 20, (5,) * K, CPU), make_optimizer=adamw)


def _under(model: StepModel, *layers: nn.Module) -> StepModel:
    return replace(model, encoder=nn.Sequential(model.encoder, *layers))


def _layered(K: int, N: int, make: Callable[[], tuple[nn.Module, ...]]) -> StepModel:
    return layered_mlp_model(make, K, N, CPU)


# By the encoder's name, for K heads and N rows.
MODELS: dict[str, Callable[[int, int], StepModel]] = {
    "two linear layers": lambda K, N: mlp_model(K, N, CPU),
    "EmbeddingBag of 20 words": _bags,
    "the same under a linear layer": lambda K, N: _under(_bags(K, N), nn.Linear(128, 128), nn.ReLU()),
    "linear layers, LayerNorm": lambda K, N: _layered(K, N, lambda: (nn.LayerNorm(128), nn.ReLU())),
    "linear layers, BatchNorm1d": lambda K, N: _layered(K, N, lambda: (nn.BatchNorm1d(128), nn.ReLU())),
    "linear layers, SiLU": lambda K, N: _layered(K, N, lambda: (nn.SiLU(),)),
    "Conv1d, 24 positions": lambda K, N: convolution_model(K, N, CPU),
    "TextCNN, 40 words": lambda K, N: text_convolution_model(K, N, CPU),
    "GRU, 12 positions": lambda K, N: recurrent_model(K, N, CPU),
    "LSTM, 12 positions": lambda K, N: recurrent_model(K, N, CPU, nn.LSTM),
}


def main(
    kinds: Annotated[str, typer.Option(help="Only encoders whose name contains this.")] = "",
) -> None:
    """Print a table with a row per encoder, number of heads and rows of a batch."""
    table = Table("encoder", "heads", "N", "Trainer, µs", "with clip_norm", "eager, µs", "eager / Trainer")
    for name, model_of in MODELS.items():
        if kinds not in name:
            continue
        for K in (1, 3, 8):
            for N in (32, 128, 512):
                model = model_of(K, N)
                timings = interleave(
                    {
                        "ours": Candidate(trainer_step(model, MultiTask())[1]),
                        "clipped": Candidate(trainer_step(model, MultiTask(), clip_norm=1.0)[1]),
                        "eager": Candidate(eager_step(model, tuple(model.heads.tasks))),
                    },
                    rounds=ROUNDS,
                    settles=True,
                )
                shown = [f"{timings.median_us(each):,.0f}" for each in ("ours", "clipped", "eager")]
                ratio = timings.ratio("eager", "ours").of_medians
                table.add_row(name, str(K), str(N), *shown, f"{ratio:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
