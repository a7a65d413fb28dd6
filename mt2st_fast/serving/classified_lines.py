"""A supervised model's labels for lines of text, in fastText's format (`__label__a 0.9 __label__b 0.1`) or as JSON.

Which labels these are follows the same rule as for a model of `train`; see `SupervisedModel.choice` and `Wanted`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mt2st_fast.errors import InputError
from mt2st_fast.serving.wanted import Wanted, rounded
from mt2st_fast.words.bag_scorer import Choices
from mt2st_fast.words.supervised_model import SupervisedModel

FORMATS = ("labels", "jsonl")
Found = list[tuple[Choices, ...]]  # a list of blocks of lines, with the choices of each family


def check_format(wanted: str | None) -> str:
    """Return the format of the answers. Raises InputError for an unknown one."""
    if wanted is not None and wanted not in FORMATS:
        raise InputError(f"a model of train_supervised outputs {' or '.join(FORMATS)}, not {wanted!r}")
    return FORMATS[0] if wanted is None else wanted


def write_lines(model: SupervisedModel, blocks: Iterable[Sequence[str]], wanted: Wanted) -> Iterator[str]:
    """Yield the text of every block: an answer for each line. Raises InputError as `SupervisedModel.labeller` does."""
    label = model.labeller(wanted.tasks, wanted.k, wanted.threshold)
    for lines in blocks:
        found = label(lines)
        if wanted.format == "jsonl":
            yield _jsonl(model, lines, found, wanted)
        else:
            yield _labels(model, found, wanted)


def _jsonl(model: SupervisedModel, texts: Sequence[str], found: Found, wanted: Wanted) -> str:
    names = [np.array(model.labels[family], object) for family in wanted.tasks]
    answers: list[dict[str, Any]] = [{"text": text} for text in texts]
    first = 0
    for of_families in found:
        n_rows = len(of_families[0].counts)
        for family, own, choices in zip(wanted.tasks, names, of_families, strict=True):
            rows = _answers(own, choices, model.kind_of(family), wanted)
            for answer, of_row in zip(answers[first : first + n_rows], rows, strict=True):
                answer[family] = of_row
        first += n_rows
    return "".join(f"{json.dumps(answer, ensure_ascii=False)}\n" for answer in answers)


def _answers(names: np.ndarray, choices: Choices, kind: str, wanted: Wanted) -> Iterator[Any]:
    """Yield what JSON says of each row, as for a model of `train`: a label or a list of labels, or if more is wanted
    [[label, probability], ...].
    """
    labels: list[list[str]] = names[choices.labels].tolist()
    if wanted.one_class and kind == "classes":
        yield from (label for (label,) in labels)
        return
    rows = zip(labels, choices.probabilities.tolist(), choices.counts.tolist(), strict=True)
    for of_row, values, count in rows:
        if wanted.one_class:
            yield of_row[:count]
        else:
            yield list(zip(of_row[:count], map(rounded, values[:count]), strict=True))


def _labels(model: SupervisedModel, found: Found, wanted: Wanted) -> str:
    # A label's text is composed once, not in every line.
    shown = [
        np.array([model.prefix_of(family) + name for name in model.labels[family]], object)
        for family in wanted.tasks
    ]
    parts = []
    for of_families in found:
        cells = [
            _cells(own, choices, wanted.probabilities)
            for own, choices in zip(shown, of_families, strict=True)
        ]
        if len(cells) == 1:
            parts += cells[0]
        else:
            parts += [" ".join(filter(None, of_line)) for of_line in zip(*cells, strict=True)]
    return "\n".join(parts) + "\n" if parts else ""


def _cells(shown: np.ndarray, choices: Choices, probabilities: bool) -> list[str]:
    """Return the text of one family's labels in each line."""
    labels: list[list[str]] = shown[choices.labels].tolist()
    if probabilities:
        values = choices.probabilities.tolist()
        labels = [
            [f"{label} {value:.6g}" for label, value in zip(*row, strict=True)]
            for row in zip(labels, values, strict=True)
        ]
    counts = choices.counts
    if choices.labels.shape[1] == 1 and counts.all():
        return [row[0] for row in labels]
    return [" ".join(row[:count]) for row, count in zip(labels, counts.tolist(), strict=True)]
