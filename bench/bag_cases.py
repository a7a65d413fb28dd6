"""Documents as bags of words, and the libraries that train on them: this package, fastText, torch's EmbeddingBag."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mt2st_fast import BagEncoder, Classification, MultiTaskHeads, RowwiseAdagrad
from mt2st_fast.training.engines.kernel_calls.bag_training import BagTraining
from mt2st_fast.words.supervised import train_supervised
from mt2st_fast.words.supervised_model import SupervisedModel

FAMILIES = ("topic", "tone", "source", "reader", "length")
CLASSES = 10
MARKERS = 3  # words of a document that indicate one of its labels
WORDS_OF_CLASS = 20
M_PERTURB = -6  # from malloc.h


@dataclass(frozen=True)
class Documents:
    """Zipf words (N, L), a few of which indicate the labels (N, K)."""

    words: np.ndarray
    labels: np.ndarray

    @classmethod
    def make(cls, N: int, L: int = 40, V: int = 50_000, seed: int = 0) -> Documents:
        """Make N documents of L words. The marker words are as rare as the middle of the vocabulary."""
        rng = np.random.default_rng(seed)
        frequency = 1.0 / np.arange(1, V + 1)
        words = rng.choice(V, size=(N, L), p=frequency / frequency.sum())
        labels = rng.integers(0, CLASSES, size=(N, len(FAMILIES)))
        for k in range(len(FAMILIES)):
            first = V // 50 + (k * CLASSES + labels[:, k, None]) * WORDS_OF_CLASS
            places = k * MARKERS + np.arange(MARKERS)
            words[:, places] = first + rng.integers(0, WORDS_OF_CLASS, size=(N, MARKERS))
        return cls(words, labels)

    def write(self, path: Path, families: Sequence[str] = FAMILIES) -> Path:
        """Write lines in fastText's format; a single family is written without its name, as fastText knows only one."""
        columns = [FAMILIES.index(family) for family in families]
        with path.open("w", encoding="utf-8") as file:
            for words, labels in zip(self.words.tolist(), self.labels.tolist(), strict=True):
                of_line = [
                    f"__label__{FAMILIES[k]}__{labels[k]}" if len(columns) > 1 else f"__label__{labels[k]}"
                    for k in columns
                ]
                file.write(" ".join([*of_line, *(f"w{word}" for word in words)]) + "\n")
        return path


# --- whole runs ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One training run: the time of the whole call, of its training if known, and the quality."""

    seconds: float
    train_seconds: float | None
    accuracy: float


def fasttext_obstacle() -> str | None:
    """Return why there can be no comparison with fastText, or None."""
    try:
        import fasttext  # noqa: F401
    except ImportError:
        return "the package fasttext is not installed (pip install fasttext)"
    return None


def run_fasttext(train: Path, test: Path, epoch: int, **options: Any) -> Run:
    """Train fastText on as many threads as torch has."""
    import fasttext

    with _zeroed_memory():
        started = time.perf_counter()
        model = fasttext.train_supervised(
            str(train), epoch=epoch, thread=torch.get_num_threads(), verbose=0, **options
        )
        seconds = time.perf_counter() - started
    return Run(seconds, None, model.test(str(test))[1])


@contextmanager
def _zeroed_memory() -> Iterator[None]:
    """Make glibc's malloc return zeros.

    fastText 0.9.3 reads memory that it has not written if `dim` is not a multiple of a vector: most runs then end with
    "Encountered NaN", depending on the content of that memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(M_PERTURB, 0xFF)  # memory is filled with the complement
    try:
        yield
    finally:
        mallopt(M_PERTURB, 0)


def run_ours(train: Path, test: Path, epoch: float, **options: Any) -> Run:
    """Run train_supervised; the accuracy is the mean over the families."""
    started = time.perf_counter()
    model: SupervisedModel = train_supervised(train, epoch=epoch, **options)
    seconds = time.perf_counter() - started
    accuracies = model.test(test).values()
    return Run(seconds, model.history.train_seconds, sum(accuracies) / len(accuracies))


# --- single steps ----------------------------------------------------------------------------------------

Step = Callable[[], None]


def bags_of(words: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return (ids int32 (total,), starts (B + 1,)) of documents of equal length."""
    B, L = words.shape
    return torch.from_numpy(words.astype(np.int32).ravel()), torch.arange(0, B * L + 1, L)


def our_step(V: int, dim: int, words: np.ndarray, labels: np.ndarray, *, fused: bool = True) -> Step:
    """Forward, backward and row-wise Adagrad of all heads on a batch of bags."""
    encoder, heads, optimizer, inputs, targets, weights = _our_parts(V, dim, words, labels)
    if fused:
        optimizer.fuse([encoder.table])

    def step() -> None:
        heads(encoder(inputs), targets, weights).total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _our_parts(V: int, dim: int, words: np.ndarray, labels: np.ndarray) -> tuple[Any, ...]:
    """Return (encoder, heads, optimizer, inputs, targets, weights) of K heads, one per column of labels."""
    encoder = BagEncoder(V, dim, sparse=True)
    tasks = {FAMILIES[k]: Classification(CLASSES) for k in range(labels.shape[1])}
    heads = MultiTaskHeads(dim, tasks, FAMILIES[0])
    optimizer = RowwiseAdagrad([*encoder.parameters(), *heads.parameters()], lr=0.1)
    targets = {name: torch.from_numpy(labels[:, k].copy()) for k, name in enumerate(tasks)}
    return encoder, heads, optimizer, bags_of(words), targets, torch.ones(len(tasks))


def our_kernel_step(V: int, dim: int, words: np.ndarray, labels: np.ndarray, *, fixed: bool = False) -> Step:
    """The same step as one kernel call, as the Trainer does it by default; fixed: with repeated batches."""
    encoder, heads, optimizer, inputs, targets, weights = _our_parts(V, dim, words, labels)
    training = BagTraining(encoder, heads, optimizer, fixed_batches=fixed)
    return lambda: training(inputs, targets, weights)


def torch_step(V: int, dim: int, words: np.ndarray, labels: np.ndarray, *, sparse: bool) -> Step:
    """nn.EmbeddingBag, one nn.Linear and one loss per task, and torch's Adagrad."""
    table = nn.EmbeddingBag(V, dim, mode="mean", sparse=sparse)
    linears = nn.ModuleList([nn.Linear(dim, CLASSES) for _ in range(labels.shape[1])])
    optimizer = torch.optim.Adagrad([*table.parameters(), *linears.parameters()], lr=0.1)
    ids, starts = bags_of(words)
    ids, offsets = ids.long(), starts[:-1]
    targets = [torch.from_numpy(labels[:, k].copy()) for k in range(labels.shape[1])]

    def step() -> None:
        features = table(ids, offsets)
        losses = [
            nn.functional.cross_entropy(linear(features), target)
            for linear, target in zip(linears, targets, strict=True)
        ]
        torch.stack(losses).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
