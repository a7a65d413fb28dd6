"""Context prediction on a CPU: word vectors that predict their neighbours among negatives, in rounds of many steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .batch import MODES, WordSampler, check_options
from .room import load_numba
from .workspace import (
    Steps,
    Stream,
    SubwordParts,
    Tables,
    WordRows,
    make_subword_workspace,
    make_workspace,
)

NO_LOCKS = np.empty(0, np.float32)
WORDS_A_CALL = 1 << 19  # about half a second; between calls Ctrl-C is heard


@dataclass(frozen=True)
class ContextOptions:
    """How ContextTraining steps.

    shared   negatives that a tile of 16 words draws, a multiple of 8
    shards   parts of the corpus that are read side by side, by as many threads as there are, up to that number
    shard_words   raw words of a shard in a round; shards see each other's steps between rounds
    pull     how fast a row is taken to approach its optimum, per visit and rate: P shards that visit a row often
             move it P times too far together, and their changes are shrunk by (1 - e^-Pk) / (P (1 - e^-k)),
             k = pull * rate * visits / P
    true_mean   CBOW: the gradient of the mean; word2vec's own step omits the division by the window's size
    mean   CBOW predicts from the mean of a window, else from its sum, whose gradient is shared out among its words
    shrink   windows are drawn from 1 to `window` words, else are all of `window`
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
        """As the kernels take them."""
        return Steps(
            MODES.index(self.mode), self.window, negatives, self.shrink, self.mean, self.mean and not self.true_mean,
            float(self.pull), self.shard_words,
        )  # fmt: skip


class ContextTraining:
    """Trains two tables in place over a stream of tokens; what it does next is a function of its arguments alone.

    inputs and outputs are (V, D); with subwords inputs are (R, D), the rows that the words are means of. locks: see
    Tables; not for subwords.
    Raises ValueError for options that the kernel does not take, RuntimeError for a backend that is asked for and is not
    Numba. measured: the share of the pairs whose loss `run` returns.
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
        backend: str = "auto",
    ):
        check_options(options.mode, options.window, options.negatives, options.shared)
        self._kernels: Any = load_numba("training", "ContextTraining", backend)
        self.inputs, self.outputs, self.sampler, self.options = inputs, outputs, sampler, options
        self.subwords, self.locks = subwords, locks
        V, D = outputs.shape
        o = options
        self._workspace = make_workspace(V, D, o.shards, o.shard_words, o.window, o.shared)
        if subwords is not None:
            self._subword_workspace = make_subword_workspace(
                len(inputs), subwords, D, o.shards, o.shard_words, o.window
            )

    def rounds(self, n_words: int) -> int:
        """Rounds of an epoch over n_words."""
        of_a_shard = -(-n_words // self.options.shards)
        return -(-of_a_shard // self.options.shard_words)

    def run(
        self,
        tokens: np.ndarray,
        bounds: np.ndarray,
        key: Any,
        rounds: tuple[int, int],
        rate: float,
        rate_fall: float,
        least_rate: float,
    ) -> tuple[float, int]:
        """Rounds [first, last) of an epoch over tokens int32 (T,) in sentences bounds.

        Returns (loss sum, positive pairs) of an eighth of the tiles. The rate of a round is at least least_rate, else
        rate - rate_fall times the epoch's words before it.
        """
        o = self.options
        stream = Stream(tokens, bounds, key)
        steps = o.steps(float(o.negatives))
        tables, parts = Tables(self.inputs, self.outputs, self.locks), None
        if self.subwords is not None:
            parts = SubwordParts(self.subwords, self._subword_workspace)
        found, rates = np.zeros((o.shards, 2)), np.array([rate, rate_fall, least_rate])
        at_once = max(1, WORDS_A_CALL // (o.shards * o.shard_words))
        for first in range(rounds[0], rounds[1], at_once):
            some = first, min(first + at_once, rounds[1])
            self._kernels.train_rounds(
                stream, self.sampler, steps, rates, some, tables, parts, self._workspace, found
            )
        return float(found[:, 0].sum()), int(found[:, 1].sum())

    def finite(self) -> bool:
        """Whether all input vectors are numbers."""
        return bool(np.isfinite(self.inputs).all())

    def store(self) -> None:
        """The tables are trained in place: there is nothing to copy back."""
