"""Context prediction on a GPU: walkers that train two tables over a text; see on_triton/training.py for the design."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .backends import OP
from .batch import MODES, WordSampler
from .workspace import Rates, Stream

# Beyond this many, a GPU takes hardly more steps per second, but more of them are late.
MOST_WALKERS = 128
# Most pairs in flight that involve the most frequent row. Emulated on a CPU, 240 were stable on 20 words, 590 cost the
# first epochs, and 970 diverged to NaN.
MOST_VISITS = 150
WALKER_WORDS = 4096  # least text per walker: with less, a step would hardly be seen before the next epoch
LAUNCH_WORDS = 1 << 19  # most words per launch, but at least one round: memory for the draws
RESIDENT_WORDS = 1 << 29  # longest text that is kept on the device, at five bytes a word
KEY_MASK = (1 << 62) - 1


@dataclass(frozen=True)
class WalkOptions:
    """How WalkTraining steps. walkers: see `choose_walkers`; the other options are described at ContextOptions."""

    mode: str = "skipgram"
    window: int = 5
    negatives: float = 5
    walkers: int = MOST_WALKERS


def choose_walkers(n_words: int, counts: np.ndarray, sampler: WordSampler, options: WalkOptions) -> int:
    """Return the number of walkers that is stable for a text of n_words whose words have counts (V,)."""
    kept, drawn = counts * (sampler.keep / 2.0**32), _drawn_shares(sampler)
    # Expected number of pairs of a position; in CBOW this many words of a window get the whole gradient.
    pairs = options.window + 1
    visits = pairs * (kept / kept.sum() + options.negatives * drawn)
    return int(np.clip(min(n_words // WALKER_WORDS, MOST_VISITS / visits.max()), 1, MOST_WALKERS))


def walk_obstacle(mode: str, window: int, D: int) -> str | None:
    """Why tables of D columns cannot be trained with such windows on a GPU, or None."""
    try:
        OP.choose("cuda", torch.float32, "triton")
        OP.load("triton", "training").choose_blocks(D, window, mode == "cbow")
    except (RuntimeError, ValueError) as error:
        return f"does not train it: {error}"
    return None


def _drawn_shares(sampler: WordSampler) -> np.ndarray:
    """Return how often each word is drawn as a negative by Walker's table, (V,)."""
    V = len(sampler.alias)
    accepted = sampler.accept / (2.0**32 - 1)
    return (accepted + np.bincount(sampler.alias, 1 - accepted, V)) / V


class WalkTraining:
    """Train two float32 tables (V, D) over a stream of tokens on a device, as ContextTraining does on a CPU.

    The arrays are copied to the device; they hold the result only after `store`. Two runs make the same draws, but
    differ in their last bits. measured: 1, the loss covers all pairs.

    Raises ValueError for options that the kernel does not support, RuntimeError if Triton does not run on the device.
    """

    measured = 1.0

    def __init__(
        self,
        inputs: np.ndarray,
        outputs: np.ndarray,
        sampler: WordSampler,
        options: WalkOptions,
        device: torch.device,
    ):
        if options.mode not in MODES or options.negatives <= 0 or options.window < 1 or options.walkers < 1:
            raise ValueError(
                f"window, negatives and walkers must be positive, and the mode one of {MODES}: {options}"
            )
        OP.choose(device.type, torch.float32, "triton")
        self._kernels: Any = OP.load("triton", "training")
        self.inputs, self.outputs, self.options, self._device = inputs, outputs, options, device
        cbow = options.mode == "cbow"
        blocks = self._kernels.choose_blocks(outputs.shape[1], options.window, cbow)
        self._round_words = options.walkers * self._kernels.STRETCH
        self._rounds_at_once = max(1, LAUNCH_WORDS // self._round_words)
        self._scratch = self._kernels.make_scratch(
            self._rounds_at_once * options.walkers, blocks, cbow, device
        )
        self._draws = self._kernels.Draws(
            *(torch.from_numpy(part.view(np.int32)).to(device) for part in sampler)
        )
        self._tables = tuple(torch.from_numpy(table).to(device, copy=True) for table in (inputs, outputs))
        self._text: tuple[np.ndarray, Tensor, Tensor] | None = None

    def rounds(self, n_words: int) -> int:
        """Return the number of rounds in an epoch over n_words; in a round each walker takes one stretch."""
        return -(-n_words // self._round_words)

    def run(self, text: Stream, rounds: tuple[int, int], rates: Rates) -> tuple[float, int]:
        """Return the loss sum and the pairs of all words. Waits for the device once, at the end."""
        o, found = self.options, []
        fall = rates.fall * self._round_words
        for first in range(rounds[0], rounds[1], self._rounds_at_once):
            end = min(first + self._rounds_at_once, rounds[1])
            words = first * self._round_words, min(end * self._round_words, len(text.tokens))
            walk = self._kernels.Walk(
                o.mode == "cbow", o.window, float(o.negatives), o.walkers, first * o.walkers, int(text.key) & KEY_MASK,
                float(max(rates.least, rates.first - fall * first)), float(fall), float(rates.least),
            )  # fmt: skip
            part = self._part(text.tokens, text.bounds, *words)
            found.append(self._kernels.walk_over(*self._tables, *part, self._draws, walk, self._scratch))
        loss, pairs = torch.stack(found).sum((0, 1), dtype=torch.float64).tolist()
        return loss, round(pairs)

    def finite(self) -> bool:
        """Whether all input vectors are finite."""
        return bool(self._tables[0].isfinite().all())

    def store(self) -> None:
        """Copy the tables back to the arrays that they came from."""
        for array, table in zip((self.inputs, self.outputs), self._tables, strict=True):
            torch.from_numpy(array).copy_(table)

    def _part(self, tokens: np.ndarray, bounds: np.ndarray, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Return tokens and sentence starts of words first..last on the device.

        A short text is uploaded once and kept there.
        """
        if len(tokens) > RESIDENT_WORDS:
            return self._uploaded(tokens, bounds, first, last)
        if self._text is None or self._text[0] is not tokens:
            self._text = tokens, *self._uploaded(tokens, bounds, 0, len(tokens))
        return self._text[1][first:last], self._text[2][first:last]

    def _uploaded(
        self, tokens: np.ndarray, bounds: np.ndarray, first: int, last: int
    ) -> tuple[Tensor, Tensor]:
        starts = torch.zeros(last - first, dtype=torch.int8, device=self._device)
        inside = bounds[np.searchsorted(bounds, first) : np.searchsorted(bounds, last)] - first
        starts.index_fill_(0, torch.from_numpy(inside).to(self._device), 1)
        # Copied: a memory-mapped text is read-only, which torch does not accept.
        return torch.from_numpy(np.array(tokens[first:last])).to(self._device), starts
