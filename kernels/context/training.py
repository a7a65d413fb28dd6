"""Context prediction on a CPU: word vectors trained to predict neighbours among negatives, in rounds of many steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .backends import load_numba
from .batch import MODES, WordSampler, check_options
from .workspace import (
    Rates,
    Steps,
    Stream,
    SubwordParts,
    Tables,
    WordRows,
    make_subword_workspace,
    make_workspace,
)

NO_LOCKS = np.empty(0, np.float32)
WORDS_A_CALL = 1 << 19  # about half a second; Ctrl-C is handled between calls


@dataclass(frozen=True)
class ContextOptions:
    """How ContextTraining steps.

    shared   negatives that a tile of 16 words draws, a multiple of 8
    shards   parts of the corpus that are read in parallel, by up to that many threads
    shard_words   raw words of a shard per round; shards see each other's updates only between rounds
    pull     assumed speed at which a row approaches its optimum, per visit and rate. P shards that visit a row often
             would together move it P times too far, so their changes are shrunk by
             (1 - e^-Pk) / (P (1 - e^-k)), k = pull * rate * visits / P
    true_mean   CBOW: use the gradient of the mean; word2vec's own step omits the division by the window's size
    mean   CBOW: predict from the mean of a window; else from its sum, whose gradient is shared among its words
    shrink   draw windows of 1 to `window` words; else all have `window`
    """

    mode: str = "cbow"
    window: int = 5
    negatives: float = 5
    shared: int = 8
    shards: int = 2
    shard_words: int = 8192
    pull: float = 4.0
    true_mean: bool = False
    mean: bool = True
    shrink: bool = True

    def steps(self, negatives: float) -> Steps:
        """Convert to the form that the kernels take."""
        return Steps(
            MODES.index(self.mode), self.window, negatives, self.shrink, self.mean, self.mean and not self.true_mean,
            float(self.pull), self.shard_words,
        )  # fmt: skip


class TextTraining(Protocol):
    """Training of word vectors on a text. An epoch has `rounds(n_words)` rounds.

    measured: the share of the pairs whose loss `run` returns.
    """

    measured: float

    def rounds(self, n_words: int) -> int:
        """Return the number of rounds in an epoch over n_words."""
        ...

    def run(self, text: Stream, rounds: tuple[int, int], rates: Rates) -> tuple[float, int]:
        """Train rounds [first, last) of an epoch; return the measured pairs' loss sum, and their number."""
        ...

    def finite(self) -> bool:
        """Whether all input vectors are finite."""
        ...

    def store(self) -> None:
        """Copy the tables to the arrays that they came from, where they are trained elsewhere."""
        ...


class TrainingInPlace:
    """What trainings on a CPU have in common: rounds over shards of a text, which move the caller's own arrays."""

    inputs: np.ndarray
    options: ContextOptions

    def rounds(self, n_words: int) -> int:
        """Return the number of rounds in an epoch over n_words."""
        of_a_shard = -(-n_words // self.options.shards)
        return -(-of_a_shard // self.options.shard_words)

    def finite(self) -> bool:
        """Whether all input vectors are finite."""
        return bool(np.isfinite(self.inputs).all())

    def store(self) -> None:
        """Do nothing: the tables are trained in place."""

    def _calls(self, rounds: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """Divide rounds [first, last) among kernel calls of about WORDS_A_CALL words."""
        at_once = max(1, WORDS_A_CALL // (self.options.shards * self.options.shard_words))
        for first in range(*rounds, at_once):
            yield first, min(first + at_once, rounds[1])


class ContextTraining(TrainingInPlace):
    """Train two tables in place over a stream of tokens. Each call depends only on its arguments and the tables.

    inputs, outputs: (V, D); with subwords inputs are (R, D), the rows whose means are the words' vectors.
    locks: see Tables; not supported with subwords.
    Raises ValueError for options that the kernel does not support, RuntimeError if the environment requests another
    backend than Numba.
    """

    measured = 1 / 8

    def __init__(
        self,
        inputs: np.ndarray,
        outputs: np.ndarray,
        sampler: WordSampler,
        options: ContextOptions,
        subwords: WordRows | None = None,
        locks: np.ndarray = NO_LOCKS,
    ):
        check_options(options.mode, options.window, options.negatives, options.shared)
        self._kernels: Any = load_numba("training", "ContextTraining")
        self.inputs, self.outputs, self.sampler, self.options = inputs, outputs, sampler, options
        self.subwords, self.locks = subwords, locks
        V, D = outputs.shape
        o = options
        self._workspace = make_workspace(V, D, o.shards, o.shard_words, o.window, o.shared)
        if subwords is not None:
            self._subword_workspace = make_subword_workspace(
                len(inputs), subwords, D, o.shards, o.shard_words, o.window
            )

    def run(self, text: Stream, rounds: tuple[int, int], rates: Rates) -> tuple[float, int]:
        """Return the loss sum and the pairs of an eighth of the tiles."""
        o = self.options
        steps = o.steps(float(o.negatives))
        tables, parts = Tables(self.inputs, self.outputs, self.locks), None
        if self.subwords is not None:
            parts = SubwordParts(self.subwords, self._subword_workspace)
        found, falling = np.zeros((o.shards, 2)), np.array(rates)
        for some in self._calls(rounds):
            self._kernels.train_rounds(
                text, self.sampler, steps, falling, some, tables, parts, self._workspace, found
            )
        return float(found[:, 0].sum()), int(found[:, 1].sum())
