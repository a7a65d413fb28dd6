"""Batches for tasks on words: pairs with human scores, and analogies, from files in the usual formats."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.data.sampler import RowStream
from mt2st_fast.data.text.lines import open_lines
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.kernels.context.batch import (
    LocalBatch,
    check_options,
    draw_batch,
    local_words,
    stream_key,
    word_sampler,
)
from mt2st_fast.numbers import spells_number

# Bytes of a text, possibly mapped, that are read to recognize it, and the size of the pieces.
DIGEST_BYTES, DIGEST_PIECE = 2**26, 2**14
log = logging.getLogger("mt2st_fast")
# Negatives shared by 16 positions.
SHARED_NEGATIVES = 16
# Random streams, so that two tasks with the same seed shuffle differently.
SIMILARITY_STREAM, ANALOGY_STREAM = 101, 102


class WordBatches:
    """Resumable batches (word types int64 (B, W), {task: target (B,)}) of rows of words, in another order every pass.

    `close` releases its arrays; the trainer calls it when the task retires.
    """

    def __init__(
        self, types: np.ndarray, target: np.ndarray, task: str, batch_size: int, seed: int, stream: int
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch size must be positive, not {batch_size}")
        self.task = task
        self._types, self._target = torch.from_numpy(types), torch.from_numpy(target)
        self._batch_size = min(batch_size, len(types))
        self._rows = RowStream(np.arange(len(types)), seed, stream)
        self._seed, self._part = seed, (0, 1)

    def __len__(self) -> int:
        return -(-len(self._types) // self._batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for _ in range(len(self)):
            first, step = self._part
            rows = torch.from_numpy(self._rows.draw(self._batch_size)[first::step])
            yield self._types[rows], {self.task: self._target[rows]}

    def take_part(self, rank: int, count: int) -> None:
        """Return only one of `count` parts of the rows of every batch, as `TrainingBatches` do."""
        self._part = (rank, count)

    def close(self) -> None:
        """Release the words."""
        self._types, self._target = self._types[:0], self._target[:0]

    @cached_property
    def _digest(self) -> str:
        return digest_of(self._types.numpy(), self._target.numpy())

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the shuffled stream."""
        rows = self._rows
        return {"pass": rows.pass_number, "position": rows.position, "data": self._digest, "seed": self._seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken. Raises InputError for other rows."""
        _check_same(self.task, state, self._digest)
        self._rows.seek(state["pass"], state["position"])


class ContextBatches:
    """Endless batches (LocalBatch, {task: nothing}) over a stream of tokens, which is repeated from its beginning.

    A batch is `words` consecutive tokens; sentence u is tokens[bounds[u] : bounds[u + 1]]. In every pass, frequent ones
    are subsampled, and windows and negatives are drawn anew (as in word2vec; kernels/context/batch.py). Raises
    InputError for a text that its bounds or counts do not fit.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        bounds: np.ndarray,
        counts: np.ndarray,
        *,
        task: str = "context",
        words: int = 2048,
        mode: str = "skipgram",
        window: int = 5,
        negatives: float = 5,
        sample: float = 1e-3,
        seed: int = 1,
    ) -> None:
        check_options(mode, window, negatives, SHARED_NEGATIVES)
        if words < 1 or not len(tokens):
            raise InputError(
                f"context batches need at least 1 word per batch (not {words}) and a text (not {len(tokens)} tokens)"
            )
        _check_text(tokens, bounds, len(counts))
        self.task = task
        self._tokens, self._bounds = tokens, bounds
        self._sampler = word_sampler(np.asarray(counts), sample)
        self._words, self._seed = words, seed
        self._options: dict[str, Any] = {
            "mode": mode,
            "window": window,
            "negatives": negatives,
            "shared": SHARED_NEGATIVES,
        }
        self._pass = self._batch = 0

    def __len__(self) -> int:
        return -(-len(self._tokens) // self._words)

    def __iter__(self) -> Iterator[tuple[LocalBatch, dict[str, Tensor]]]:
        while True:
            first = self._batch * self._words
            batch = draw_batch(
                self._tokens, self._bounds, first, min(len(self._tokens), first + self._words), self._sampler,
                stream_key(self._seed, self._pass), **self._options,
            )  # fmt: skip
            self._batch += 1
            ends_pass = self._batch == len(self)
            if ends_pass:
                self._pass, self._batch = self._pass + 1, 0
            yield local_words(batch), {self.task: torch.zeros(1, dtype=torch.float32)}
            if ends_pass:
                return

    def take_part(self, rank: int, count: int) -> None:
        """Raise InputError for more than one part: the random draws of a batch belong to all of its words."""
        del rank
        if count > 1:
            raise InputError(
                f"the context batches of {self.task} cannot be divided among {count} processes; train in one "
                "process, or give each process batches of its own text in a loader without take_part"
            )

    def close(self) -> None:
        """Release the text, mapped or in memory."""
        self._tokens = self._tokens[:0].copy()
        self._bounds = self._bounds[:1].copy()

    @cached_property
    def _digest(self) -> str:
        return digest_of(self._tokens, self._bounds)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the text where the next batch begins."""
        return {"pass": self._pass, "batch": self._batch, "data": self._digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken. Raises InputError for another text."""
        _check_same(self.task, state, self._digest)
        self._pass, self._batch = state["pass"], state["batch"]


def _check_text(tokens: np.ndarray, bounds: np.ndarray, num_types: int) -> None:
    """Raise InputError for a text by which kernels would read beyond an array. Mapped tokens are trusted."""
    ends = (int(bounds[0]), int(bounds[-1])) if len(bounds) else ()
    if ends != (0, len(tokens)) or (np.diff(bounds) < 0).any():
        raise InputError(
            f"the bounds of {len(tokens):,} tokens must rise from 0 to {len(tokens)}: where each sentence begins, and "
            "the end of the last"
        )
    if not isinstance(tokens, np.memmap) and (most := int(tokens.max())) >= num_types:
        raise InputError(f"the text contains the word type {most}, but there are counts of {num_types:,}")


def digest_of(*arrays: np.ndarray) -> str:
    """Return a checksum of arrays; of those above DIGEST_BYTES, which may be mapped, only evenly spaced pieces are
    read.
    """
    state = hashlib.sha256()
    for array in arrays:
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        state.update(f"{array.dtype} {array.shape}".encode())
        pieces = -(-len(flat) // DIGEST_PIECE)
        step = max(1, -(-pieces * DIGEST_PIECE // DIGEST_BYTES))
        for piece in sorted({*range(0, pieces, step), pieces - 1}) if pieces else ():
            state.update(flat[piece * DIGEST_PIECE : (piece + 1) * DIGEST_PIECE].data)
    return state.hexdigest()


def _check_same(task: str, state: dict[str, Any], digest: str) -> None:
    if state["data"] != digest:
        raise InputError(
            f"the data of {task} has changed since the checkpoint; use the original file, or start a new run without "
            "resume"
        )


def similarity_batches(
    path: str | Path,
    vocabulary: Vocabulary,
    *,
    task: str = "similarity",
    highest: float = 10.0,
    batch_size: int = 256,
    seed: int = 1,
) -> WordBatches:
    """Read pairs from a file: word, word and score (0 to `highest`) per line, separated by tabs, commas or blanks; #
    comments.

    Targets are scores over `highest`. Pairs with a word outside the vocabulary are left out. Raises InputError for a
    malformed line, a score out of range, and where no pair is left.
    """
    types, scores, n_read = [], [], 0
    may_be_heading = True
    for number, line in open_lines(Path(path)):
        fields = _fields(line)
        if not fields:
            continue
        was_first, may_be_heading = may_be_heading, False
        if len(fields) != 3 or not spells_number(fields[2]):
            if was_first and len(fields) >= 3:
                continue
            raise InputError(f"{path}:{number}: expected two words and a score, found {line.strip()!r}")
        score = float(fields[2])
        if not 0.0 <= score <= highest:
            raise InputError(
                f"{path}:{number}: score {score:g} is outside 0 to {highest:g}; fix it or set highest="
            )
        n_read += 1
        pair = [_lookup(word, vocabulary) for word in fields[:2]]
        if min(pair) >= 0:
            types.append(pair)
            scores.append(score / highest)
    _check_any(types, n_read, path, "pair")
    return WordBatches(
        np.array(types), np.array(scores, np.float32), task, batch_size, seed, SIMILARITY_STREAM
    )


def analogy_batches(
    path: str | Path, vocabulary: Vocabulary, *, task: str = "analogy", batch_size: int = 256, seed: int = 1
) -> WordBatches:
    """Read analogies in the questions-words format: four words per line, `: section` lines between; `# ` comments.

    Lines with a word outside the vocabulary are left out. Raises InputError for a malformed line and where no analogy
    is left.
    """
    types, n_read = [], 0
    for number, line in open_lines(Path(path)):
        words = line.split()
        if not words or words[0].startswith(":") or words[0] == "#":
            continue
        if len(words) != 4:
            raise InputError(f"{path}:{number}: expected four words, found {line.strip()!r}")
        n_read += 1
        row = [_lookup(word, vocabulary) for word in words]
        if min(row) >= 0:
            types.append(row)
    _check_any(types, n_read, path, "analogy")
    return WordBatches(
        np.array(types), np.zeros(len(types), np.float32), task, batch_size, seed, ANALOGY_STREAM
    )


def _fields(line: str) -> list[str]:
    if line.lstrip().startswith("#"):
        return []
    separator = "\t" if "\t" in line else "," if "," in line else None
    return [field.strip() for field in line.strip().split(separator)] if line.strip() else []


def _lookup(word: str, vocabulary: Vocabulary) -> int:
    found = vocabulary.get(word, -1)
    return found if found >= 0 else vocabulary.get(word.lower(), -1)


def _check_any(types: list[list[int]], n_read: int, path: str | Path, what: str) -> None:
    """Log how many rows of a file are used. Raises InputError if none are."""
    if not types:
        raise InputError(f"{path}: no {what} has all its words in the vocabulary; train on more text")
    log.info("%s: using %d of %d rows, those with all words in the vocabulary", path, len(types), n_read)
