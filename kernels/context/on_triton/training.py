"""Training of context prediction on a GPU: programs that walk through the text, position by position.

A position is scored against R rows: in skip-gram the words of its window and M = R - 2 window negatives, in CBOW its
own word and M = R - 1 negatives. Its pairs share the M negatives: the weight of each is negatives / M times the number
of pairs whose output word it is not. So this is a tile of on_numba/tile.py with one position, which draws its own
negatives.

Design. A step is a chain of few loads and sums, whose latency limits a walker. All rows of a position are held in
registers and read once, and every change is added by an atomic that nobody waits for. Nor do walkers wait for one
another, like the threads of word2vec, fastText and gensim: a step sees the tables without the P - 1 steps that others
take meanwhile. So *two runs differ in their last bits*, though they draw the same. Rows are read past the L1 cache,
which would keep stale ones for as long as a program runs.

Quality. The cost of lateness depends on how many steps are late at once, not on the length of a launch: P walkers have
P positions in flight, whereas a batch of the whole launch would have all of its positions. Rows that most walkers
visit, those of frequent words, would be moved too far together: walkers.py chooses so few walkers that this stays
stable. Emulated on a CPU with every change exactly P steps late, 128 walkers learn as much as one or more, since
walkers far apart mix the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...machine.launch import Sample, Variant, on_device_of, types_of
from .draws import context_keep_kernel, context_rows_kernel

STRETCH = 1024  # raw words; windows are cut at the ends of stretches, which costs one pair in some hundred


@triton.jit
def _logistic(b_s):
    """Return (softplus, its derivative); the softplus loses its tail, as it is for monitoring only."""
    b_u = tl.exp(-tl.abs(b_s))
    return tl.log(1.0 + b_u) + tl.maximum(b_s, 0.0), tl.where(b_s >= 0.0, 1.0, b_u) / (1.0 + b_u)


@triton.jit
def _read(p_table, b_row, o_d, D: tl.constexpr):
    """Read (rows, columns) of a table from the L2 cache; NO_ROW reads zeros."""
    m_row = (b_row >= 0)[:, None] & (o_d < D)[None, :]
    p_at = p_table + b_row.to(tl.int64)[:, None] * D + o_d[None, :]
    return tl.load(p_at, mask=m_row, other=0.0, cache_modifier=".cg")


@triton.jit
def _add(p_table, b_row, b_change, o_d, D: tl.constexpr):
    """Add changes (rows, columns) to rows of a table, but nothing to NO_ROW."""
    m_row = (b_row >= 0)[:, None] & (o_d < D)[None, :]
    p_at = p_table + b_row.to(tl.int64)[:, None] * D + o_d[None, :]
    tl.atomic_add(p_at, b_change, mask=m_row, sem="relaxed")


@triton.jit(do_not_specialize=["n_stretches", "n_walkers"])
def context_walk_kernel(
    p_inputs,  # (V, D) float32, trained
    p_outputs,  # (V, D) float32, trained
    p_words,  # (stretches STRETCH,) int32
    p_counts,  # (stretches,) int32
    p_rows,  # (stretches STRETCH, R) int32
    p_shares,  # (stretches STRETCH, R) float32
    p_window,  # (stretches STRETCH, A) int32
    p_pairs,  # (stretches STRETCH,) int32
    p_found,  # (walkers, 2) float32: the loss of all pairs, and their number
    n_stretches,
    n_walkers,
    rate,  # of the first round
    rate_fall,  # per round
    least_rate,
    D: tl.constexpr,
    STRETCH: tl.constexpr,
    WINDOW: tl.constexpr,
    CBOW: tl.constexpr,
    R: tl.constexpr,
    A: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: one walker."""
    i_w = tl.program_id(0)
    o_d, o_r, o_a = tl.arange(0, BLOCK_D), tl.arange(0, R), tl.arange(0, A)
    m_d = o_d < D
    b_label = (o_r < (1 if CBOW else 2 * WINDOW)).to(tl.float32)
    b_loss = tl.zeros((R,), tl.float32)
    pairs = tl.zeros((), tl.int32)
    step = rate
    for i_s in range(i_w, n_stretches, n_walkers):
        n = tl.load(p_counts + i_s)
        begin = (tl.zeros((), tl.int64) + i_s) * STRETCH  # in the interpreter, i_s is no tensor
        for i in range(n):
            at = begin + i
            b_row = tl.load(p_rows + at * R + o_r)
            b_share = tl.load(p_shares + at * R + o_r)
            b_y = _read(p_outputs, b_row, o_d, D)
            if CBOW:
                b_window = tl.load(p_window + at * A + o_a)
                n_window = tl.maximum(tl.sum((b_window >= 0).to(tl.float32), axis=0), 1.0)
                b_h = tl.sum(_read(p_inputs, b_window, o_d, D), axis=0) / n_window
            else:
                p_own = p_inputs + tl.load(p_words + at).to(tl.int64) * D + o_d
                b_h = tl.load(p_own, mask=m_d, other=0.0, cache_modifier=".cg")
            b_score = tl.sum(b_y * b_h[None, :], axis=1)
            b_softplus, b_slope = _logistic(b_score)
            b_loss += b_share * (b_softplus - b_label * b_score)
            pairs += tl.load(p_pairs + at)
            b_pull = step * b_share * (b_label - b_slope)
            _add(p_outputs, b_row, b_pull[:, None] * b_h[None, :], o_d, D)
            b_d_h = tl.sum(b_pull[:, None] * b_y, axis=0)
            if CBOW:  # word2vec's own step: every word of the window gets the whole gradient
                _add(p_inputs, b_window, tl.broadcast_to(b_d_h[None, :], (A, BLOCK_D)), o_d, D)
            else:
                tl.atomic_add(p_own, b_d_h, mask=m_d, sem="relaxed")
        step = tl.maximum(step - rate_fall, least_rate)
    tl.store(p_found + 2 * i_w, tl.sum(b_loss, axis=0))
    tl.store(p_found + 2 * i_w + 1, pairs.to(tl.float32))


# --- sizes of blocks -------------------------------------------------------------------------------------


class Blocks(NamedTuple):
    """Lanes of a position as powers of two: output rows, words of a window, and columns; and warps of a walker."""

    rows: int
    window: int
    columns: int
    warps: int


MOST_WINDOW, MOST_COLUMNS = 16, 512
NEGATIVES, LEAST_NEGATIVES = 12, 8  # of a position, if its rows fit, and at least
MOST_ELEMENTS = 1 << 14  # of a position's rows, all in registers: 64 per thread
# Held by 4 warps; with more elements, 4 warps would need more registers than 8, and 16 would wait longer.
FEW_ELEMENTS = 1 << 10
BLOCK_POSITIONS = 8
KEY_BITS = (1 << 31) - 1  # for each half of a key: it is an int32 whatever the key


def choose_blocks(D: int, window: int, cbow: bool) -> Blocks:
    """A table, not an autotuner. Raises ValueError for a position that is too large for a program."""
    around = triton.next_power_of_2(max(4, 2 * window))
    columns = triton.next_power_of_2(max(16, D))
    rows = triton.next_power_of_2(NEGATIVES + (1 if cbow else 2 * window))
    while rows * columns > MOST_ELEMENTS:
        rows //= 2
    blocks = Blocks(rows, around, columns, 4 if rows * columns <= FEW_ELEMENTS else 8)
    if (
        window > MOST_WINDOW
        or D > MOST_COLUMNS
        or negatives_of(blocks, window, cbow) < LEAST_NEGATIVES
        or around * columns > MOST_ELEMENTS
    ):
        raise ValueError(
            f"window {window} and {D} columns are more than the GPU kernel supports per position"
        )
    return blocks


def negatives_of(blocks: Blocks, window: int, cbow: bool) -> int:
    """M: the number of negatives that a position draws."""
    return blocks.rows - (1 if cbow else 2 * window)


# --- launches --------------------------------------------------------------------------------------------


class Scratch(NamedTuple):
    """The draws for some stretches: see the kernels."""

    words: Tensor
    places: Tensor
    counts: Tensor
    rows: Tensor
    shares: Tensor
    window: Tensor
    pairs: Tensor


class Draws(NamedTuple):
    """A WordSampler on a device; the bits of a uint32 are stored as int32."""

    keep: Tensor
    accept: Tensor
    alias: Tensor


class Walk(NamedTuple):
    """How walkers process a part of the text.

    first_stretch   of the part, as an index in the text
    key             62 random bits
    rate, rate_fall, least_rate   rate of the part's first round, decrease per round, and minimum
    """

    cbow: bool
    window: int
    negatives: float
    walkers: int
    first_stretch: int
    key: int
    rate: float
    rate_fall: float
    least_rate: float


def make_scratch(n_stretches: int, blocks: Blocks, cbow: bool, device: torch.device) -> Scratch:
    """Allocate memory for this many stretches; nothing in it needs to be set."""
    N = n_stretches * STRETCH

    def integers(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    return Scratch(
        integers(N),
        integers(N),
        integers(n_stretches),
        integers(N, blocks.rows),
        torch.empty(N, blocks.rows, dtype=torch.float32, device=device),
        integers(N if cbow else 1, blocks.window),
        integers(N),
    )


def walk_over(
    inputs: Tensor, outputs: Tensor, tokens: Tensor, starts: Tensor, draws: Draws, walk: Walk, s: Scratch
) -> Tensor:
    """Train tables (V, D) on tokens (T,) with starts of sentences (T,).

    At most as many stretches as the scratch has. Returns (walkers, 2) float32, the loss of all pairs and their number;
    never waits.
    """
    V, D = outputs.shape
    n_stretches = triton.cdiv(len(tokens), STRETCH)
    blocks = choose_blocks(D, walk.window, walk.cbow)
    each = walk.negatives / negatives_of(blocks, walk.window, walk.cbow)
    key_low, key_high = walk.key & KEY_BITS, walk.key >> 31 & KEY_BITS
    found = torch.empty(walk.walkers, 2, dtype=torch.float32, device=inputs.device)
    sizes = {
        "STRETCH": STRETCH,
        "WINDOW": walk.window,
        "CBOW": walk.cbow,
        "R": blocks.rows,
        "A": blocks.window,
    }
    with on_device_of(inputs):
        context_keep_kernel[(n_stretches,)](
            tokens, starts, draws.keep, s.words, s.places, s.counts, len(tokens), walk.first_stretch, walk.window,
            key_low, key_high, STRETCH=STRETCH, num_warps=4,
        )  # fmt: skip
        context_rows_kernel[(n_stretches, STRETCH // BLOCK_POSITIONS)](
            s.words, s.places, s.counts, draws.accept, draws.alias, s.rows, s.shares, s.window, s.pairs,
            walk.first_stretch, V, each, key_low, key_high, BLOCK=BLOCK_POSITIONS, num_warps=4, **sizes,
        )  # fmt: skip
        context_walk_kernel[(walk.walkers,)](
            inputs, outputs, s.words, s.counts, s.rows, s.shares, s.window, s.pairs, found, n_stretches, walk.walkers,
            walk.rate, walk.rate_fall, walk.least_rate, D=D, BLOCK_D=blocks.columns, num_warps=blocks.warps, **sizes,
        )  # fmt: skip
    return found


def samples() -> Iterator[Sample]:
    """Yield variants that are launched."""
    types = types_of(
        "*i32 p_tokens p_keep p_words p_places p_counts p_accept p_alias p_rows p_window p_pairs", "*i8 p_starts",
        "*fp32 p_inputs p_outputs p_shares p_found",
        "i32 n_tokens first_stretch window V n_stretches n_walkers key_low key_high",
        "fp32 each rate rate_fall least_rate",
    )  # fmt: skip

    def sample(name: str, kernel: Any, constexprs: dict[str, Any], warps: int = 4) -> Sample:
        own = {arg: types[arg] for arg in kernel.arg_names if arg in types}
        return Sample(name, Variant(kernel, constexprs, {"num_warps": warps}), own)

    yield sample("stretch", context_keep_kernel, {"STRETCH": STRETCH})
    for cbow, (D, window) in product(
        (False, True), ((16, 2), (64, 5), (100, 5), (100, 10), (300, 5), (300, 10), (512, 8))
    ):
        blocks = choose_blocks(D, window, cbow)
        name = f"{'CBOW' if cbow else 'skip-gram'} D={D} window={window}"
        sizes = {"WINDOW": window, "CBOW": cbow, "R": blocks.rows, "A": blocks.window, "STRETCH": STRETCH}
        yield sample(name, context_rows_kernel, {**sizes, "BLOCK": BLOCK_POSITIONS})
        yield sample(name, context_walk_kernel, {**sizes, "D": D, "BLOCK_D": blocks.columns}, blocks.warps)
