"""Digests of training data, by which a resumed run recognizes it.

A row (an input with its targets) is one number, and a data set is the sum of its rows' numbers: their order and their
division into batches do not count, as both may differ in every run. Rows that share their inputs but not their targets
differ, and so do shuffled labels.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

MOST_BATCHES, MOST_BYTES = 20_000, 2**30  # of a list of which every row is read
REMEMBERED_ROWS = 64  # of the first batch of a pass
KNOWN_AGAIN = 0.95  # the share of these that must reappear: a last, incomplete batch may be left out
SEARCH_SECONDS = 30.0


def content_of(loader: Any) -> str | None:
    """Return the digest of all rows of a list of batches or of a DataLoader over tensors; None if they cannot be read.

    The loader itself is not called: neither its order nor its random numbers change. For a Subset, the rows are those
    that it holds; for a list that several processes have divided, those of all.
    """
    loader = getattr(loader, "whole", loader)
    if isinstance(loader, list | tuple):
        # By the built-in type: a subclass may do more when it is iterated.
        batches = list(tuple.__iter__(loader) if isinstance(loader, tuple) else list.__iter__(loader))
        if len(batches) > MOST_BATCHES or sum(map(_n_bytes, batches)) > MOST_BYTES:
            return None
        return _digest([row_numbers(batch) for batch in batches])
    if isinstance(loader, DataLoader) and (rows := _rows_of(loader.dataset)) is not None:
        return _digest([rows])
    return None


def held_out_digest(batches: Any) -> str | None:
    """Return a digest that identifies held-out batches; None if they cannot be read, or if there are none."""
    if batches is None:
        return None
    own = getattr(batches, "digest", None)
    return str(own()) if callable(own) else content_of(batches)


def row_numbers(batch: Any) -> np.ndarray:
    """(N,) uint64, a number for each row of a batch; (1,) for the whole batch if its tensors do not all have N rows."""
    parts = list(_parts(batch, ""))
    lengths = {len(value) for _, value in parts if isinstance(value, Tensor) and value.dim() > 0}
    if len(lengths) != 1 or any(not isinstance(value, Tensor) or value.dim() == 0 for _, value in parts):
        return np.array([sum(int(n) for n in _whole(parts)) % 2**64], np.uint64)
    return _summed(parts, lengths.pop())


def remembered(batch: Any) -> list[int]:
    """Return the numbers of a batch's first rows."""
    return [int(number) for number in row_numbers(batch)[:REMEMBERED_ROWS]]


def known_again(then: list[int], now: list[int], another_pass: Iterable[Any]) -> bool | None:
    """Return whether the rows `then` of earlier data are among those of a whole pass over the current data.

    now: rows of the current data. None (unknown) if these do not reappear either (they are drawn anew in
    every pass, or augmented at random), or if the search takes too long.
    """
    left, own = set(then), set(now)
    give_up = time.monotonic() + SEARCH_SECONDS
    for batch in another_pass:
        numbers = set(row_numbers(batch).tolist())
        left, own = left - numbers, own - numbers
        if not left and not own:
            break
        if time.monotonic() > give_up:
            return None
    if len(own) > (1 - KNOWN_AGAIN) * len(set(now)):
        return None
    return len(left) <= (1 - KNOWN_AGAIN) * len(set(then))


def _rows_of(dataset: Dataset[Any]) -> np.ndarray | None:
    """(N,) the numbers of a data set's rows, if those are tensors in memory."""
    if isinstance(dataset, TensorDataset) and type(dataset).__getitem__ is TensorDataset.__getitem__:
        if sum(map(_n_bytes, dataset.tensors)) > MOST_BYTES:
            return None
        return row_numbers(dataset.tensors)
    if type(dataset) is Subset:
        rows = _rows_of(dataset.dataset)
        return None if rows is None else rows[np.asarray(dataset.indices, np.int64)]
    if type(dataset) is ConcatDataset:
        several = [_rows_of(part) for part in dataset.datasets]
        return None if any(rows is None for rows in several) else np.concatenate(several)  # type: ignore[arg-type]
    return None


def _digest(rows: list[np.ndarray]) -> str:
    total = sum(int(numbers.sum(dtype=np.uint64)) for numbers in rows) % 2**64
    return f"{sum(map(len, rows))} rows, {total:016x}"


def _parts(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield every leaf of a nested value, with its path."""
    if isinstance(value, Mapping):
        for key in value:
            yield from _parts(value[key], f"{name}/{key}")
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from _parts(item, f"{name}/{index}")
    else:
        yield name, value


def _summed(parts: list[tuple[str, Tensor]], n_rows: int) -> np.ndarray:
    """(N,) from all parts of a row: the sum of their own numbers, which depend on the part's path."""
    total = np.zeros(n_rows, np.uint64)
    for name, tensor in parts:
        words_nw = _words(tensor.reshape(n_rows, -1))
        total += _mixed(words_nw @ _factors(words_nw.shape[1]) + _of_text(f"{name} {tensor.dtype}"))
    return _mixed(total)


def _whole(parts: list[tuple[str, Any]]) -> Iterator[int]:
    for name, value in parts:
        if isinstance(value, Tensor) and value.layout is torch.strided:
            flat = value.reshape(1, -1)
            yield int(_summed([(f"{name} {tuple(value.shape)}", flat)], 1)[0])
        elif value is None or isinstance(value, bool | int | float | str | bytes):
            yield int(_of_text(f"{name} {value!r}"))
        # Other objects are left out: it is unknown which of their attributes are data.


def _words(rows: Tensor) -> np.ndarray:
    """(N, W) uint64: the bytes of every row, padded with zeros."""
    # A contiguous tensor with one number may still have a larger stride than its width, which a view as bytes refuses.
    rows = rows.detach().cpu().contiguous().as_strided(rows.shape, (rows.shape[1], 1))
    bytes_nb = rows.view(torch.uint8).numpy()
    short = -bytes_nb.shape[1] % 8
    if short:
        bytes_nb = np.pad(bytes_nb, ((0, 0), (0, short)))
    return np.ascontiguousarray(bytes_nb).view(np.uint64)


@lru_cache(maxsize=16)
def _factors(n: int) -> np.ndarray:
    """(n,) odd numbers, the same in every process."""
    return np.random.Generator(np.random.PCG64(n)).integers(0, 2**64, n, np.uint64) | np.uint64(1)


@lru_cache(maxsize=1024)
def _of_text(text: str) -> np.uint64:
    number = 0xCBF29CE484222325  # FNV-1a
    for byte in text.encode():
        number = (number ^ byte) * 0x100000001B3 % 2**64
    return np.uint64(number)


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every bit depends on every bit."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = numbers ^ (numbers >> np.uint64(31))
    return mixed


def _n_bytes(value: Any) -> int:
    return sum(
        part.numel() * part.element_size() for _, part in _parts(value, "") if isinstance(part, Tensor)
    )
