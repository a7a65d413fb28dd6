"""Split numbered words at line ends: ids and bounds of each line's words, and the labels separately."""

from __future__ import annotations

import numpy as np

from ...machine.jit import free_entry
from ..layout import END


@free_entry
def split_lines(numbers, id_of, is_label, keep_empty):
    """See `split_lines` of words.py."""
    n_ids = n_labels = n_lines = 0
    filled = False
    for i in range(len(numbers)):
        number = numbers[i]
        if number == END:
            n_lines += np.int64(filled or keep_empty)
            filled = False
        else:
            filled = True
            n_labels += np.int64(is_label[number])
            n_ids += np.int64(not is_label[number])
    ids, bounds = numbers, np.empty(n_lines + 2, np.int64)
    # One extra element: values are always written, then kept or not.
    labels, lines = np.empty(n_labels + 1, np.int32), np.empty(n_labels + 1, np.int64)
    bounds[0] = 0
    n_ids = n_labels = n_lines = 0
    filled = False
    for i in range(len(numbers)):
        number = numbers[i]
        if number == END:
            n_lines += np.int64(filled or keep_empty)
            filled = False
            bounds[n_lines] = n_ids
        else:
            filled = True
            ids[n_ids] = id_of[number]
            labels[n_labels], lines[n_labels] = number, n_lines
            n_labels += np.int64(is_label[number])
            n_ids += np.int64(not is_label[number])
    return ids[:n_ids], bounds[: n_lines + 1], labels[:n_labels], lines[:n_labels]
