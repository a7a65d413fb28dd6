"""A model's predictions as text: CoNLL-U, JSON lines, or a line of labels per line of text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mt2st_fast.errors import InputError
from mt2st_fast.serving.conllu import sentences
from mt2st_fast.serving.reading import Unit
from mt2st_fast.serving.text_model import TextModel

FORMATS = {"token": ("conllu", "jsonl"), "document": ("labels", "jsonl")}


@dataclass(frozen=True)
class Wanted:
    """What to output for every row: the tasks, and the k likeliest (-1: all) labels of at least a probability.

    With k = None, the likeliest class, or the labels of at least 0.5. Raises InputError for numbers out of range.
    """

    tasks: tuple[str, ...]
    format: str
    k: int | None = None
    threshold: float | None = None
    probabilities: bool = False

    def __post_init__(self) -> None:
        if self.k is not None and (self.k < -1 or self.k == 0):
            raise InputError(f"--k must be at least 1, or -1 for all labels, not {self.k}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"--threshold is a probability, between 0 and 1, not {self.threshold}")
        if self.format == "conllu" and (
            self.k is not None or self.threshold is not None or self.probabilities
        ):
            raise InputError(
                "CoNLL-U has one label a word: --k, --threshold and --probabilities are for --format jsonl"
            )

    @property
    def one_class(self) -> bool:
        """Whether only the likeliest class is asked for."""
        return self.k is None and self.threshold is None and not self.probabilities


def check_format(model: TextModel, wanted: str | None) -> str:
    """Return the format of a model's answers, by default its first. Raises InputError for an unsupported one."""
    known = FORMATS[model.level]
    if wanted is not None and wanted not in known:
        raise InputError(f"a model of {model.level}s answers as {' or '.join(known)}, not as {wanted!r}")
    return known[0] if wanted is None else wanted


def write_units(model: TextModel, blocks: Iterable[Sequence[Unit]], wanted: Wanted) -> Iterator[str]:
    """Yield the text of every block: the model's answers for its units."""
    for units in blocks:
        outputs = model.outputs([unit.words for unit in units], wanted.tasks)
        logits = {task: found.numpy() for task, found in outputs.items()}
        if wanted.format == "conllu":
            yield sentences(units, {task: model.shown(values, task) for task, values in logits.items()})
        else:
            yield _rows(model, units, logits, wanted)


def _rows(model: TextModel, units: Sequence[Unit], logits: Mapping[str, np.ndarray], wanted: Wanted) -> str:
    rows = {task: _answers(model, task, values, wanted) for task, values in logits.items()}
    return _jsonl(units, rows, model.level) if wanted.format == "jsonl" else _lines(rows, wanted)


def _answers(model: TextModel, task: str, logits: np.ndarray, wanted: Wanted) -> list[Any]:
    """Return all rows' answers: a label each, or if more is wanted [[label, probability], ...] in falling order."""
    labels = model.labels[task]
    if labels.kind == "values" or wanted.one_class:
        return [each if isinstance(each, str) else list(each) for each in model.shown(logits, task)]
    probabilities = probabilities_of(logits, labels.kind)
    C = probabilities.shape[1]
    k = wanted.k if wanted.k is not None else (1 if labels.kind == "classes" else C)
    k = C if k == -1 else min(k, C)
    least = wanted.threshold if wanted.threshold is not None else _least(wanted, labels.kind)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(probabilities, order, axis=1)
    return [
        [[labels.names[c], float(f"{p:.6g}")] for c, p in zip(cs, ps, strict=True) if p >= least]
        for cs, ps in zip(order.tolist(), best.tolist(), strict=True)
    ]


def _least(wanted: Wanted, kind: str) -> float:
    return 0.5 if kind == "labels" and wanted.k is None else 0.0


def probabilities_of(logits: np.ndarray, kind: str) -> np.ndarray:
    """Return (N, C): probabilities of classes sum to 1, those of labels are independent."""
    if kind == "labels":
        return np.asarray(1 / (1 + np.exp(-logits)))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _jsonl(units: Sequence[Unit], rows: Mapping[str, Sequence[Any]], level: str) -> str:
    out = []
    begin = 0
    for u, unit in enumerate(units):
        end = begin + len(unit.words)
        answer: dict[str, Any] = (
            {"words": unit.words} if level == "token" else {"text": "\n".join(unit.lines)}
        )
        for task, found in rows.items():
            answer[task] = list(found[begin:end]) if level == "token" else found[u]
        out.append(json.dumps(answer, ensure_ascii=False))
        begin = end
    return "\n".join(out) + "\n" if out else ""


def _lines(rows: Mapping[str, Sequence[Any]], wanted: Wanted) -> str:
    """Return one line of labels per line of text, separated by tabs, as labels may contain blanks."""
    lines = ["\t".join(_cells(answers, wanted)) for answers in zip(*rows.values(), strict=True)]
    return "\n".join(lines) + "\n" if lines else ""


def _cells(answers: Iterable[Any], wanted: Wanted) -> Iterator[str]:
    """Yield the cells of a line."""
    for answer in answers:
        if isinstance(answer, str):
            yield answer
            continue
        for each in answer:
            if not isinstance(each, list):
                yield str(each)
            elif wanted.probabilities:
                yield f"{each[0]} {each[1]}"
            else:
                yield str(each[0])
