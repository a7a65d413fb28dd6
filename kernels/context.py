"""Context prediction: word vectors that predict their neighbours among negatives, with word2vec's draws.

A batch is what was drawn: kept words, their windows, negatives that a tile of positions shares. `reference_loss` is
the loss in plain torch, in any floating type, and the oracle; `context_gradients` makes loss and gradients of the
rows that the batch touches in one pass; `ContextTraining` takes whole rounds of steps inside Numba.
"""

from __future__ import annotations

from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .context_loss import LocalBatch

MODES = ("skipgram", "cbow")
TILE = 16  # positions that share their negatives
LEAST_SHARED = 8
SPLIT_WORDS = 1024  # words of a batch; below, a second thread costs more than it saves


class WordSampler(NamedTuple):
    """Which words are kept and which are drawn as negatives; made by `word_sampler`."""

    keep: np.ndarray  # uint32 (V,): probability times 2^32
    accept: np.ndarray  # uint32 (V,) and alias int32 (V,): Walker's table
    alias: np.ndarray


class ContextBatch(NamedTuple):
    """N kept words in tiles of TILE: window i is words[low[i]:high[i]] but for i itself."""

    words: np.ndarray  # int32 (N,)
    low: np.ndarray  # int32 (N,)
    high: np.ndarray  # int32 (N,)
    drawn: np.ndarray  # int32 (tiles, M)
    mode: str  # "skipgram" or "cbow"
    window: int
    negatives: float  # a pair

    @property
    def pairs(self) -> int:
        """Positive pairs: (word, neighbour) in skip-gram, words with a neighbour in CBOW."""
        around = self.high - self.low - 1
        return int((np.minimum(around, 1) if self.mode == "cbow" else around).sum())


class ContextGradients(NamedTuple):
    """Mean loss over the positive pairs, and its gradients: row input_rows[u] of the input table has d_inputs[u]."""

    loss: float
    input_rows: Tensor  # int64 (U,)
    d_inputs: Tensor  # (U, D)
    output_rows: Tensor
    d_outputs: Tensor


class Workspace(NamedTuple):
    """Memory of P shards of N words; rows are what they touch."""

    slot_of: np.ndarray  # (P, V): the row of a word among those of the shard, -1 between calls
    words: np.ndarray  # (P, N) kept words, their rows, and where their windows begin and end
    slots: np.ndarray
    low: np.ndarray
    high: np.ndarray
    drawn: np.ndarray  # (P, tiles * M): negatives, then their rows
    rows: np.ndarray  # (P, U): the words of the rows
    visits: np.ndarray  # (P, U): how often each comes
    counts: np.ndarray  # (P, 2): rows of the input and of the output table; the first of rows
    mark: np.ndarray  # (P, U): the last tile that drew the row
    factors: np.ndarray  # (V,): what the changes of a row are multiplied with, 0 between calls
    x: np.ndarray  # (P, U, ld): copies of the rows, or their changes
    y: np.ndarray
    tile_rows: np.ndarray  # of one tile: see numba_context_tile.py
    band: np.ndarray
    z: np.ndarray
    share: np.ndarray
    h_t: np.ndarray


class Subwords(NamedTuple):
    """The rows of an input table whose mean is word v: ids[bounds[v]:bounds[v + 1]], one at least."""

    ids: np.ndarray  # int32
    bounds: np.ndarray  # int64 (V + 1,)


class SubwordWorkspace(NamedTuple):
    """What training with subwords needs beside a Workspace: P shards of N words that have U rows in all."""

    slot_of: np.ndarray  # (P, R): the number of a row among those of the shard, -1 between calls
    begins: np.ndarray  # (P, N + 1): where in slots the rows of each of the shard's words begin
    slots: np.ndarray  # (P, .)
    rows: np.ndarray  # (P, U)
    visits: np.ndarray  # (P, U): how often a word of the row comes
    counts: np.ndarray  # (P,): rows
    factors: np.ndarray  # (R,): as in Workspace
    x: np.ndarray  # (P, U, ld): copies of the rows, or their changes
    vectors: np.ndarray  # (P, TILE + 2 window, ld): those of a tile's positions, and how they change
    changes: np.ndarray
    x_slots: np.ndarray  # (N,): where in them a position stands


def word_sampler(counts: np.ndarray, sample: float = 1e-3, power: float = 0.75) -> WordSampler:
    """word2vec's subsampling (0 = none) and negative distribution for words seen counts (V,) times."""
    from .numba_draw import alias_table

    V = len(counts)
    keep = np.ones(V)
    if sample > 0:
        threshold = sample * counts.sum()
        keep = (np.sqrt(counts / threshold) + 1) * (threshold / counts)
    shares = counts.astype(np.float64) ** power
    accept, alias = np.empty(V, np.uint32), np.empty(V, np.int32)
    alias_table(shares / shares.sum(), accept, alias)
    return WordSampler(np.minimum(keep * 2.0**32, 2.0**32 - 1).astype(np.uint32), accept, alias)


def make_workspace(V: int, D: int, shards: int, shard_words: int, window: int, shared: int) -> Workspace:
    """Memory for training or for gradients; nothing in it needs to be set between calls."""
    from .numba_simd import WIDTH

    P, N, M = shards, shard_words, shared
    ld = -(-D // WIDTH) * WIDTH
    n_drawn = -(-N // TILE) * M
    n_inputs, n_outputs = min(N, V), min(N + n_drawn, V)
    ldb = -(-(TILE + 2 * window) // WIDTH) * WIDTH

    def integers(*shape: int) -> np.ndarray:
        return np.empty(shape, np.int32)

    def floats(*shape: int) -> np.ndarray:
        return np.empty(shape, np.float32)

    return Workspace(
        slot_of=np.full((P, V), -1, np.int32),
        words=integers(P, N),
        slots=integers(P, N),
        low=integers(P, N),
        high=integers(P, N),
        drawn=integers(P, n_drawn),
        rows=integers(P, n_outputs),
        visits=integers(P, n_outputs),
        counts=np.zeros((P, 2), np.int64),
        mark=integers(P, n_outputs),
        factors=np.zeros(V, np.float32),
        x=floats(P, n_inputs, ld),
        y=floats(P, n_outputs, ld),
        tile_rows=floats(P, 3 * TILE + 2 * M + 2 * window, ld),
        band=floats(P, TILE + 1, ldb),
        z=floats(P, M, TILE),
        share=floats(P, M, TILE),
        h_t=floats(P, ld, TILE),
    )


def make_subword_workspace(
    R: int, subwords: Subwords, D: int, shards: int, shard_words: int, window: int
) -> SubwordWorkspace:
    """Memory for training with subwords; of x only what a shard uses is ever touched."""
    from .numba_simd import WIDTH

    P, N = shards, shard_words
    ld, span = -(-D // WIDTH) * WIDTH, TILE + 2 * window
    sizes = np.sort(np.diff(subwords.bounds))
    n_slots = int(sizes[-N:].sum())
    n_rows = min(n_slots, R)
    return SubwordWorkspace(
        slot_of=np.full((P, R), -1, np.int32),
        begins=np.empty((P, N + 1), np.int64),
        slots=np.empty((P, n_slots), np.int32),
        rows=np.empty((P, n_rows), np.int32),
        visits=np.empty((P, n_rows), np.int32),
        counts=np.zeros(P, np.int64),
        factors=np.zeros(R, np.float32),
        x=np.empty((P, n_rows, ld), np.float32),
        vectors=np.empty((P, span, ld), np.float32),
        changes=np.empty((P, span, ld), np.float32),
        x_slots=np.arange(N) % span,
    )


def stream_key(seed: int, epoch: int) -> Any:
    """The key of an epoch's draws."""
    from .numba_draw import hashed

    return np.uint64(hashed(np.uint64(seed), np.uint64(epoch)))


def draw_batch(
    tokens: np.ndarray,
    bounds: np.ndarray,
    first: int,
    last: int,
    sampler: WordSampler,
    key: Any,
    *,
    mode: str = "skipgram",
    window: int = 5,
    negatives: float = 5,
    shared: int = 16,
) -> ContextBatch:
    """The batch of tokens[first:last]: int32, negative = not in the vocabulary; sentence u begins at bounds[u].

    Raises ValueError for an unknown mode or a `shared` (M) that is no multiple of 8.
    """
    from .numba_draw import draw_negatives, draw_positions

    check_options(mode, window, negatives, shared)
    words, low, high = (np.empty(max(0, last - first), np.int32) for _ in range(3))
    n = draw_positions(tokens, bounds, first, last, sampler.keep, key, window, words, low, high)
    drawn = np.empty((-(-n // TILE), shared), np.int32)
    draw_negatives(key, first, sampler.accept, sampler.alias, drawn.reshape(-1), drawn.size)
    return ContextBatch(words[:n], low[:n], high[:n], drawn, mode, window, negatives)


def check_options(mode: str, window: int, negatives: float, shared: int) -> None:
    """Raise ValueError for options that the kernel does not take."""
    if mode not in MODES:
        raise ValueError(f"the mode of context prediction is skipgram or cbow, not {mode!r}")
    if window < 1 or negatives <= 0:
        raise ValueError(f"window ({window}) and negatives ({negatives}) must be positive")
    if shared < LEAST_SHARED or shared % LEAST_SHARED:
        raise ValueError(f"shared negatives come in multiples of {LEAST_SHARED}, not {shared}")


def reference_loss(inputs: Tensor, outputs: Tensor, batch: ContextBatch | LocalBatch) -> Tensor:
    """The mean loss over the positive pairs, differentiable in both tables (V, D), on their device."""
    words, low, high, drawn = (
        torch.as_tensor(ids, device=inputs.device).long()
        for ids in (batch.words, batch.low, batch.high, batch.drawn)
    )
    N, M = len(words), drawn.shape[1]
    if not N:
        return 0 * (inputs.sum() + outputs.sum())
    i = torch.arange(N, device=inputs.device).unsqueeze(1)
    j = i + torch.arange(-batch.window, batch.window + 1, device=inputs.device)
    in_window = (low.unsqueeze(1) <= j) & (j < high.unsqueeze(1)) & (j != i)
    neighbours = words[j.clamp(0, N - 1)]  # (N, 2 window + 1)
    if batch.mode == "cbow":
        share = in_window.to(inputs.dtype) / in_window.sum(1, keepdim=True).clamp_min(1)
        h = (share.unsqueeze(2) * inputs[neighbours]).sum(1)
        positives, is_pair = words.unsqueeze(1), in_window.any(1, keepdim=True)
    else:
        h, positives, is_pair = inputs[words], neighbours, in_window
    noise = drawn.repeat_interleave(TILE, 0)[:N]
    others = (is_pair.unsqueeze(2) & (positives.unsqueeze(2) != noise.unsqueeze(1))).sum(1)  # (N, M)
    positive = is_pair * F.softplus(-(outputs[positives] * h.unsqueeze(1)).sum(2))
    negative = others * F.softplus((outputs[noise] * h.unsqueeze(1)).sum(2))
    return (positive.sum() + batch.negatives / M * negative.sum()) / is_pair.sum().clamp_min(1)


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
    from . import numba_context

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
        from . import numba_context, numba_subword_context
        from .numba_barrier import abandon, new_barrier
        from .numba_jit import thread_count

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

        with ThreadPoolExecutor(n_threads) as pool:
            try:
                threads = [pool.submit(train, thread) for thread in range(n_threads)]
                wait(threads, return_when=FIRST_EXCEPTION)
            finally:
                abandon(barrier)  # nobody waits for one who failed
        for thread in threads:
            thread.result()
        return float(found[:, 0].sum()), int(found[:, 1].sum())
