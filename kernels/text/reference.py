"""Word counting in plain Python, which the kernels are tested against."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from .layout import END


class ReferenceCounter:
    """`WordCounter` by str.split, for blocks that start at the beginning of a line."""

    def __init__(self) -> None:
        self._count_of: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._count_of)

    def add(self, text: np.ndarray, n: int) -> np.ndarray:
        """See `WordCounter.add`."""
        block = text[:n].tobytes().decode("utf-8")
        # Returns before a line feed form one line end with it; each other return is a line end.
        block = re.sub(
            "\r+\n?", lambda found: "\n" * found[0].count("\r" if found[0][-1] == "\r" else "\n"), block
        )
        lines = [line.lstrip("\ufeff").replace("\0", " ").split() for line in block.split("\n")]
        self._count_of.update(word for line in lines for word in line)
        number_of = {word: number for number, word in enumerate(self._count_of)}
        marked = [[*(number_of[word] for word in line), END] for line in lines]
        return np.array([number for line in marked for number in line][:-1], np.int32)

    def words(self) -> list[str]:
        """See `WordCounter.words`."""
        return list(self._count_of)

    @property
    def counts(self) -> np.ndarray:
        """See `WordCounter.counts`."""
        return np.array(list(self._count_of.values()), np.int64)


def reference_split_lines(
    numbers: np.ndarray, id_of: np.ndarray, is_label: np.ndarray, *, keep_empty: bool = False
) -> tuple[list[int], list[int], list[int], list[int]]:
    """`split_lines`, returning lists."""
    lines: list[list[int]] = [[]]
    for number in numbers.tolist():
        if number == END:
            lines.append([])
        else:
            lines[-1].append(number)
    ids: list[int] = []
    bounds, labels, places = [0], [], []
    for u, line in enumerate([line for line in lines[:-1] if line or keep_empty]):
        ids += [int(id_of[number]) for number in line if not is_label[number]]
        bounds.append(len(ids))
        labels += [number for number in line if is_label[number]]
        places += [u for number in line if is_label[number]]
    return ids, bounds, labels, places
