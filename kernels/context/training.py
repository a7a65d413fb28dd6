"""Context prediction on a CPU: word vectors that predict their neighbours among negatives.

`context_gradients` makes loss and gradients of the rows that a batch touches in one pass; `ContextTraining` takes whole
rounds of steps inside Numba.
"""

from __future__ import annotations

from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .batch import MODES, ContextBatch, WordSampler, check_options
from .workspace import Subwords, Workspace, make_subword_workspace, make_workspace

SPLIT_WORDS = 1024  # words of a batch; below, a second thread costs more than it saves


class ContextGradients(NamedTuple):
    """Mean loss over the positive pairs, and its gradients: row input_rows[u] of the input table has d_inputs[u]."""

    loss: float
    input_rows: Tensor  # int64 (U,)
    d_inputs: Tensor  # (U, D)
    output_rows: Tensor
    d_outputs: Tensor


def context_gradients(
    inputs: Tensor,
    outputs: Tensor,
    batch: ContextBatch,
    *,
    workspace: Workspace | None = None,
    splits: int | None = None,
) -> ContextGradients:
    """Loss and gradients of the rows that a batch touches, for tables (V, D) of float32; nothing is updated.

    Of the inputs the rows after the last kept word may be missing.

    A workspace with at least as many shards as splits and the words of the batch saves the O(V) of making one. The same
    splits give the same bits. Raises ValueError for tables that do not fit each other.
    """
    from .on_numba import rounds as numba_context

    fit = inputs.shape[1:] == outputs.shape[1:] and len(inputs) <= len(outputs)
    if not fit or inputs.dtype != torch.float32 or outputs.dtype != torch.float32:
        raise ValueError(
            f"both tables are float32 (V, D), not {inputs.dtype} {tuple(inputs.shape)} and "
            f"{outputs.dtype} {tuple(outputs.shape)}"
        )
    V, D = outputs.shape
    N, M = len(batch.words), batch.drawn.shape[1]
    splits = splits or (2 if N >= SPLIT_WORDS else 1)
    w = workspace or make_workspace(V, D, splits, max(1, N), batch.window, M)
    w.words[0, :N] = batch.words
    w.drawn[0, : batch.drawn.size] = batch.drawn.reshape(-1)
    d_x = np.empty((splits, *w.x.shape[1:]), np.float32)
    d_y = np.empty((splits, *w.y.shape[1:]), np.float32)
    loss, n_inputs, n_outputs = numba_context.gradients(
        MODES.index(batch.mode), batch.low, batch.high, N, float(batch.negatives), batch.window,
        np.float32(1 / max(1, batch.pairs)), inputs.detach().contiguous().numpy(),
        outputs.detach().contiguous().numpy(), d_x, d_y, w, parallel=splits > 1,
    )  # fmt: skip
    rows = torch.from_numpy(w.rows[0].astype(np.int64))
    return ContextGradients(
        loss / max(1, batch.pairs),
        rows[:n_inputs],
        torch.from_numpy(d_x[0, :n_inputs, :D]),
        rows[:n_outputs],
        torch.from_numpy(d_y[0, :n_outputs, :D]),
    )


@dataclass(frozen=True)
class ContextOptions:
    """How ContextTraining steps.

    shared   negatives that a tile of 16 words draws, a multiple of 8
    shards   parts of the corpus that are read side by side; on no more threads than that
    shard_words   raw words of a shard in a round; shards see each other's steps between rounds
    pull     how fast a row is taken to approach its optimum, per visit and rate: P shards that visit a row often
             move it P times too far together, and their changes are shrunk by (1 - e^-Pk) / (P (1 - e^-k)),
             k = pull * rate * visits / P
    true_mean   CBOW: the gradient of the mean; word2vec's own step omits the division by the window's size
    """

    mode: str = "cbow"
    window: int = 5
    negatives: float = 5
    shared: int = 8
    shards: int = 2
    shard_words: int = 8192
    pull: float = 4.0
    true_mean: bool = False


class ContextTraining:
    """Trains two tables in place over a stream of tokens; what it does next is a function of its arguments alone.

    inputs and outputs are (V, D); with subwords inputs are (R, D), the rows that the words are means of.
    """

    def __init__(
        self,
        inputs: np.ndarray,
        outputs: np.ndarray,
        sampler: WordSampler,
        options: ContextOptions,
        subwords: Subwords | None = None,
    ):
        check_options(options.mode, options.window, options.negatives, options.shared)
        self.inputs, self.outputs, self.sampler, self.options = inputs, outputs, sampler, options
        self.subwords = subwords
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

    def words_after(self, rounds: int, n_words: int) -> int:
        """Raw words read after that many rounds of an epoch."""
        return min(n_words, rounds * self.options.shards * self.options.shard_words)

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
        from ..machine.barrier import fail, new_barrier, stop
        from ..machine.jit import thread_count
        from .on_numba import rounds as numba_context
        from .on_numba import subword_rounds as numba_subword_context

        o, mode = self.options, MODES.index(self.options.mode)
        kernels: Any = numba_context
        rows_of_words: tuple[np.ndarray, ...] = ()
        workspaces: tuple[Any, ...] = (self._workspace,)
        if self.subwords is not None:
            kernels, rows_of_words = numba_subword_context, tuple(self.subwords)
            workspaces = (self._workspace, self._subword_workspace)
        n_threads = min(thread_count(), o.shards)
        barrier, found = new_barrier(), np.zeros((o.shards, 2))
        rates = np.array([rate, rate_fall, least_rate])

        def train(thread: int) -> None:
            kernels.train_rounds(
                tokens, bounds, key, *self.sampler, mode, o.window, float(o.negatives), not o.true_mean, rates,
                float(o.pull), o.shard_words, *rounds, *rows_of_words, self.inputs, self.outputs, *workspaces, thread,
                barrier, n_threads, found, parallel=False,
            )  # fmt: skip

        threads: list[Future[None]] = []
        with ThreadPoolExecutor(n_threads) as pool:
            try:
                threads += (pool.submit(train, thread) for thread in range(n_threads))
                finished, _ = wait(threads, return_when=FIRST_EXCEPTION)
            except BaseException:  # Ctrl-C: at a meeting of all threads, if all have begun
                (stop if len(threads) == n_threads else fail)(barrier)
                raise
            if any(thread.exception() for thread in finished):
                fail(barrier)
        for thread in threads:
            thread.result()
        return float(found[:, 0].sum()), int(found[:, 1].sum())
