"""Run the Triton kernels of context prediction in the interpreter and store what they compute.

python -m <this> OUT.npz PART..., of which a part is a mode or sums.

Run by `run_interpreted` (tests/kernels/interpreter.py). Results that are measured are stored
as `ours`, `torch` (the oracle in float32) and `truth` (in float64), the others as flags.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.kernels.bags.on_triton import bags as triton_embedding
from mt2st_fast.kernels.bags.on_triton import blocks as triton_blocks
from mt2st_fast.kernels.context.batch import (
    ContextBatch,
    LocalBatch,
    draw_batch,
    local_words,
    stream_key,
    word_sampler,
)
from mt2st_fast.kernels.context.op import context_loss
from tests.kernels.interpreter import poison_fresh_memory

RESULTS = ("loss", "d_inputs", "d_outputs")
# (V, D, lengths of sentences, options): ragged columns and tiles, one tile, words that are their own negatives,
# more negatives than positions of a tile, wide windows.
CASES = {
    "ragged": (60, 37, (1, 1, 9, 2, 40, 16, 3), {}),
    "few words": (3, 40, (30, 7), {}),
    "one tile": (50, 16, (16,), {"window": 1, "shared": 8}),
    "many negatives": (90, 21, (40, 13), {"window": 3, "shared": 24}),
    "wide window": (40, 5, (50, 20), {"window": 12}),
    "no pairs": (20, 5, (1, 1, 1), {}),
}
LARGE = 30.0


def make_batch(name: str, mode: str) -> ContextBatch:
    V, _, lengths, options = CASES[name]
    generator = np.random.default_rng(0)
    shares = 1 / np.arange(1, V + 1)
    tokens = generator.choice(V, sum(lengths), p=shares / shares.sum()).astype(np.int32)
    bounds = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    sampler = word_sampler(np.maximum(1, np.bincount(tokens, minlength=V)), 0)
    return draw_batch(tokens, bounds, 0, len(tokens), sampler, stream_key(3, 0), mode=mode, **options)


def make_vectors(batch: LocalBatch, D: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(n, D, generator=generator) / 3 for n in (batch.n_kept, len(batch.types)))


def outcome(
    vectors: tuple[Tensor, Tensor], batch: LocalBatch, backend: str, dtype: torch.dtype
) -> list[Tensor]:
    """Loss and gradients of twice the loss."""
    leaves = [tensor.to(dtype).clone().requires_grad_() for tensor in vectors]
    loss = context_loss(*leaves, batch, backend)
    (2 * loss).backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


def run_case(name: str, mode: str, store: dict[str, np.ndarray]) -> None:
    batch, D = local_words(make_batch(name, mode)), CASES[name][1]
    vectors = make_vectors(batch, D)
    before = [tensor.clone() for tensor in (*vectors, *batch[2:7], batch.types)]
    runs = [outcome(vectors, batch, "triton", torch.float32) for _ in range(2)]
    pairs = [*zip(*runs, strict=True), *zip(before, (*vectors, *batch[2:7], batch.types), strict=True)]
    store[f"{mode}/{name}/same-bits"] = np.array(all(torch.equal(a, b) for a, b in pairs))
    kinds = {
        "ours": runs[0],
        "torch": outcome(vectors, batch, "reference", torch.float32),
        "truth": outcome(vectors, batch, "reference", torch.float64),
    }
    for kind, results in kinds.items():
        for key, value in zip(RESULTS, results, strict=True):
            store[f"{mode}/{name}/{key}/{kind}"] = value.double().numpy()


def run_large(mode: str, store: dict[str, np.ndarray]) -> None:
    """Scores of hundreds, whose exponentials overflow float32."""
    batch = local_words(make_batch("ragged", mode))
    vectors = tuple(LARGE * tensor for tensor in make_vectors(batch, 37))
    for kind, backend, dtype in (
        ("ours", "triton", torch.float32),
        ("torch", "reference", torch.float32),
        ("truth", "reference", torch.float64),
    ):
        for key, value in zip(RESULTS, outcome(vectors, batch, backend, dtype), strict=True):
            store[f"{mode}/large/{key}/{kind}"] = value.double().numpy()


def run_empty(mode: str, store: dict[str, np.ndarray]) -> None:
    """A batch of which no word was kept."""
    batch = make_batch("ragged", mode)
    nothing = local_words(
        batch._replace(words=batch.words[:0], low=batch.low[:0], high=batch.high[:0], drawn=batch.drawn[:0])
    )
    loss, d_inputs, d_outputs = outcome(make_vectors(nothing, 5), nothing, "triton", torch.float32)
    store[f"{mode}/empty"] = np.array(loss == 0 and d_inputs.shape == d_outputs.shape == (0, 5))


def run_sums(store: dict[str, np.ndarray]) -> None:
    """sum_by_row over rows that no gradient has, rows outside, and segments of many pieces."""
    generator = torch.Generator().manual_seed(2)
    gradient = torch.randn(300, 21, generator=generator)
    rows = torch.randint(0, 9, (300,), generator=generator, dtype=torch.int32) ** 2 // 3
    rows[::2], rows[::17] = 11, 10**6
    known = rows < 30
    expected = torch.zeros(30, 21, dtype=torch.float64)
    expected.index_add_(0, rows[known].long(), gradient[known].double())
    found = triton_embedding.sum_by_row(gradient, rows, 30)
    store["sums"] = np.array(
        bool((found.double() - expected).abs().max() < 1e-5)
        and bool((expected.abs().sum(1) == 0).any())
        and not found[expected.abs().sum(1) == 0].any()
        and triton_embedding.sum_by_row(gradient[:0], rows[:0], 4).shape == (4, 21)
    )


def main(out: str, parts: list[str]) -> None:
    poison_fresh_memory(True)
    triton_blocks.PIECE, triton_blocks.SHARED_COLUMNS = 4, 16
    store: dict[str, np.ndarray] = {}
    for part in parts:
        if part == "sums":
            run_sums(store)
            continue
        for name in CASES:
            run_case(name, part, store)
        run_large(part, store)
        run_empty(part, store)
    np.savez(out, **store)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
