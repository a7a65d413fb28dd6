"""What a supervised model says of lines of text, as fastText writes it: `__label__a 0.9 __label__b 0.1`; or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mt2st_fast.errors import InputError
from mt2st_fast.serving.reading import Unit
from mt2st_fast.serving.writing import Wanted
from mt2st_fast.words.supervised_model import Prediction, SupervisedModel

FORMATS = ("labels", "jsonl")


def check_format(wanted: str | None) -> str:
    """The format of the answers. Raises InputError for one that there is not."""
    if wanted is not None and wanted not in FORMATS:
        raise InputError(f"a model of train_supervised answers as {' or '.join(FORMATS)}, not as {wanted!r}")
    return FORMATS[0] if wanted is None else wanted


def write_lines(model: SupervisedModel, blocks: Iterable[Sequence[Unit]], wanted: Wanted) -> Iterator[str]:
    """The text of every block: an answer for each line. Raises InputError as `predict` does."""
    k, threshold = wanted.k or 1, wanted.threshold or 0.0
    for units in blocks:
        texts = [unit.lines[0] for unit in units]
        found = {family: model.predict(texts, k, threshold, family) for family in wanted.tasks}
        if wanted.format == "jsonl":
            yield _jsonl(texts, found)
        else:
            prefixes = {family: model.prefix_of(family) for family in found}
            yield _labels(found, prefixes, wanted.probabilities)


def _jsonl(texts: Sequence[str], found: dict[str, list[Prediction]]) -> str:
    lines = []
    for i, text in enumerate(texts):
        answer: dict[str, Any] = {"text": text}
        for family, predictions in found.items():
            answer[family] = list(zip(*predictions[i], strict=True))
        lines.append(json.dumps(answer, ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines)


def _labels(found: dict[str, list[Prediction]], prefixes: dict[str, str], probabilities: bool) -> str:
    lines = []
    for of_line in zip(*found.values(), strict=True):
        cells = []
        for prefix, (labels, values) in zip(prefixes.values(), of_line, strict=True):
            for label, value in zip(labels, values, strict=True):
                cells.append(f"{prefix}{label} {value:.6g}" if probabilities else prefix + label)
        lines.append(" ".join(cells))
    return "".join(f"{line}\n" for line in lines)
