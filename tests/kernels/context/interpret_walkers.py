"""Run the walkers of context prediction in the interpreter and store what they do.

python -m <this> OUT.npz PART..., of which a part is a mode or draws.

Run by `run_interpreted` (tests/kernels/interpreter.py). The interpreter runs one program after
another: a walker sees all steps of those before it.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from mt2st_fast.data.tokens import Tokens
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.kernels.context import walkers as context_walkers
from mt2st_fast.kernels.context.batch import stream_key, word_sampler
from mt2st_fast.kernels.context.on_triton import training as kernels
from mt2st_fast.kernels.context.walkers import WalkOptions, WalkTraining
from mt2st_fast.kernels.context.workspace import Rates, Stream
from mt2st_fast.training.schedules import SingleTask
from mt2st_fast.words.context_run import ContextPlan, ContextRun
from mt2st_fast.words.table_tasks import TableTasks
from tests.kernels.context.walker_cases import CASES, FALL, LEAST, RATE
from tests.kernels.interpreter import poison_fresh_memory

CPU = torch.device("cpu")
SAMPLE = 0.05


def make_text(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, of which some are in no vocabulary, bounds with an empty sentence, counts."""
    V, _, lengths, _, _ = CASES[name]
    generator = np.random.default_rng(0)
    tokens = (V * generator.random(sum(lengths)) ** 2).astype(np.int32)
    counts = np.maximum(1, np.bincount(tokens, minlength=V))
    tokens[5::11] = -1
    bounds = np.concatenate([[0, 0], np.cumsum(lengths)]).astype(np.int64)
    return tokens, bounds, counts


def make_training(name: str, mode: str, **others: object) -> WalkTraining:
    V, D, _, options, kernels.STRETCH = CASES[name]
    generator = np.random.default_rng(1)
    tables = (generator.standard_normal((V, D), np.float32) / 2 for _ in range(2))
    _, _, counts = make_text(name)
    return WalkTraining(
        *tables, word_sampler(counts, SAMPLE), WalkOptions(mode=mode, **options | others), CPU
    )


def run(training: WalkTraining, name: str, parts: tuple[tuple[int, int], ...] | None = None, seed: int = 3):
    """(loss, pairs) after all rounds, in parts."""
    tokens, bounds, _ = make_text(name)
    parts = parts or ((0, training.rounds(len(tokens))),)
    key = stream_key(seed, 0)
    found = [training.run(Stream(tokens, bounds, key), part, Rates(RATE, FALL, LEAST)) for part in parts]
    training.store()
    return np.array(found).sum(0)


def store_case(name: str, mode: str, store: dict[str, np.ndarray]) -> None:
    """Tables before and after, and what was drawn in the one launch."""
    training = make_training(name, mode)
    prefix = f"{mode}/{name}"
    for table in ("inputs", "outputs"):
        store[f"{prefix}/{table}/before"] = getattr(training, table).copy()
    for part in training._scratch:  # what a kernel leaves unwritten shows
        part.fill_(-7)
    store[f"{prefix}/found"] = run(training, name)
    for table in ("inputs", "outputs"):
        store[f"{prefix}/{table}/after"] = getattr(training, table)
    for drawn in ("words", "places", "counts", "rows", "shares", "window"):
        store[f"{prefix}/{drawn}"] = getattr(training._scratch, drawn).numpy()
    for what, value in zip(("tokens", "text bounds", "text counts"), make_text(name), strict=True):
        store[f"{prefix}/{what}"] = value


def store_parts(mode: str, store: dict[str, np.ndarray]) -> None:
    """One walker's epoch in two parts, in launches of a round, and of a text that is not resident; and another seed."""
    name = "ragged"
    training = make_training(name, mode, walkers=1)
    n = training.rounds(sum(CASES[name][2]))
    whole = run(training, name)
    kept = context_walkers.RESIDENT_WORDS, context_walkers.LAUNCH_WORDS
    for what, parts, limits in (
        ("parts", ((0, 2), (2, n)), kept),
        ("launches", None, (kept[0], 1)),
        ("streamed", None, (10, kept[1])),
    ):
        context_walkers.RESIDENT_WORDS, context_walkers.LAUNCH_WORDS = limits
        other = make_training(name, mode, walkers=1)
        same = [np.allclose(run(other, name, parts), whole, rtol=1e-4)]
        same += [np.allclose(other.inputs, training.inputs, atol=1e-6)]
        same += [np.allclose(other.outputs, training.outputs, atol=1e-6)]
        store[f"{mode}/{what}"] = np.array(all(same))
    context_walkers.RESIDENT_WORDS, context_walkers.LAUNCH_WORDS = kept
    again, other = (make_training(name, mode, walkers=1) for _ in range(2))
    run(again, name)
    run(other, name, seed=4)
    store[f"{mode}/the same seed"] = np.array(np.array_equal(again.inputs, training.inputs))
    store[f"{mode}/another seed"] = np.array(not np.allclose(other.inputs, training.inputs))


def store_run(mode: str, store: dict[str, np.ndarray]) -> None:
    """Two topics of four words, learnt by a run as Word2Vec makes it."""
    kernels.STRETCH = 64
    generator = np.random.default_rng(0)
    ids = np.concatenate([generator.integers(0, 4, 6) + 4 * (i % 2) for i in range(30)]).astype(np.int32)
    counts = np.bincount(ids)
    text = Tokens(ids, np.arange(0, len(ids) + 1, 6, dtype=np.int64), Vocabulary([*"abcdefgh"], counts))
    inputs = (generator.random((8, 16), np.float32) - 0.5) / 16
    options = WalkOptions(mode=mode, window=2, walkers=2)
    training = WalkTraining(inputs, np.zeros((8, 16), np.float32), word_sampler(counts, 0), options, CPU)
    tasks = TableTasks({}, text.vocabulary, inputs, None, seed=1)
    plan = ContextPlan(epochs=3, rate=0.3, least_rate=0.01, seed=1)
    work = ContextRun(training, text, tasks, SingleTask(), plan)
    losses = [work.finish_epoch() for _ in range(plan.epochs)]
    unit = inputs / np.linalg.norm(inputs, axis=1, keepdims=True)
    cosine = unit @ unit.T
    store[f"{mode}/losses"] = np.array(losses)
    store[f"{mode}/gap"] = np.array(cosine[:4, :4].mean() - cosine[:4, 4:].mean())
    training._tables[0][3] = float("nan")
    store[f"{mode}/finite"] = np.array([np.isfinite(inputs).all(), training.finite()])


def store_draws(store: dict[str, np.ndarray]) -> None:
    """Many draws of five words: how often each is kept, drawn, and how far windows reach."""
    kernels.STRETCH = 256
    counts = np.array([700, 200, 60, 30, 10])
    tokens = np.random.default_rng(2).permutation(np.repeat(np.arange(5, dtype=np.int32), counts))
    sampler = word_sampler(counts, SAMPLE)
    tables = (np.zeros((5, 4), np.float32) for _ in range(2))
    training = WalkTraining(*tables, sampler, WalkOptions(walkers=4, window=5), CPU)
    training.run(Stream(tokens, np.array([0, 1000]), stream_key(1, 0)), (0, 1), Rates(0.0, 0.0, 0.0))
    s, n = training._scratch, training._scratch.counts.numpy()
    at = np.concatenate([256 * i + np.arange(n[i]) for i in range(4)])
    store["draws/kept"] = np.bincount(s.words.numpy()[at], minlength=5)
    store["draws/expected kept"] = counts * (sampler.keep / 2.0**32)
    store["draws/reach"] = np.bincount(s.places.numpy()[at] % 256, minlength=6)[1:]
    rows = s.rows.numpy()[at][:, 10:]
    store["draws/drawn"] = np.bincount(rows[rows >= 0], minlength=5)
    store["draws/expected drawn"] = counts**0.75 / (counts**0.75).sum()


def main(out: str, parts: list[str]) -> None:
    poison_fresh_memory(True)
    store: dict[str, np.ndarray] = {}
    for part in parts:
        if part == "draws":
            store_draws(store)
            continue
        for name in CASES:
            store_case(name, part, store)
        store_parts(part, store)
        store_run(part, store)
    np.savez(out, **store)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
