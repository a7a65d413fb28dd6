"""A model's predictions as text: CoNLL-U, JSON lines, or a line of labels per line of text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mt2st_fast.errors import InputError
from mt2st_fast.serving.conllu import sentences
from mt2st_fast.serving.fitting import BETWEEN_LABELS, INPUT_KEY, check_fits
from mt2st_fast.serving.reading import Unit
from mt2st_fast.serving.text_model import TextModel
from mt2st_fast.serving.wanted import Wanted, rounded

FORMATS = {"token": ("conllu", "jsonl"), "document": ("labels", "jsonl")}


def check_format(model: TextModel, wanted: str | None) -> str:
    """Return the format of a model's answers, by default its first. Raises InputError for an unsupported one."""
    known = FORMATS[model.level]
    if wanted is not None and wanted not in known:
        raise InputError(f"a model of {model.level}s answers as {' or '.join(known)}, not as {wanted!r}")
    return known[0] if wanted is None else wanted


def write_units(model: TextModel, blocks: Iterable[Sequence[Unit]], wanted: Wanted) -> Iterator[str]:
    """Yield the text of every block: the model's answers for its units.

    Raises InputError for answers that do not fit into the format, before the first block is read.
    """
    check_fits(wanted, model.labels, model.level)
    for units in blocks:
        outputs = model.outputs([unit.words for unit in units], wanted.tasks)
        logits = {task: found.numpy() for task, found in outputs.items()}
        if wanted.format == "conllu":
            yield sentences(units, {task: _shown(model, task, values) for task, values in logits.items()})
        else:
            yield _rows(model, units, logits, wanted)


def _rows(model: TextModel, units: Sequence[Unit], logits: Mapping[str, np.ndarray], wanted: Wanted) -> str:
    rows = {task: _answers(model, task, values, wanted) for task, values in logits.items()}
    return _jsonl(units, rows, model.level) if wanted.format == "jsonl" else _lines(rows, wanted)


def _shown(model: TextModel, task: str, logits: np.ndarray) -> list[Any]:
    """Return what the model predicts for every row; numbers in as few digits as give the same number of their dtype."""
    if model.labels[task].kind == "values":
        return [tuple(map(float, row)) for row in logits.astype(str)]
    return model.shown(logits, task)


def _answers(model: TextModel, task: str, logits: np.ndarray, wanted: Wanted) -> list[Any]:
    """Return all rows' answers: a label each, or if more is wanted [[label, probability], ...] in falling order."""
    labels = model.labels[task]
    if labels.kind == "values" or wanted.one_class:
        return [_plain(each, labels.kind) for each in _shown(model, task, logits)]
    probabilities = probabilities_of(logits, labels.kind)
    C = probabilities.shape[1]
    k = wanted.k if wanted.k is not None else (1 if labels.kind == "classes" else C)
    k = C if k == -1 else min(k, C)
    least = wanted.threshold if wanted.threshold is not None else _least(wanted, labels.kind)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(probabilities, order, axis=1)
    return [
        [[labels.names[c], rounded(p)] for c, p in zip(cs, ps, strict=True) if p >= least]
        for cs, ps in zip(order.tolist(), best.tolist(), strict=True)
    ]


def _plain(shown: Any, kind: str) -> Any:
    """Return a class as its name, a single number as itself (readers of tables have it so), and others as lists."""
    if isinstance(shown, str):
        return shown
    return shown[0] if kind == "values" and len(shown) == 1 else list(shown)


def _least(wanted: Wanted, kind: str) -> float:
    return 0.5 if kind == "labels" and wanted.k is None else 0.0


def probabilities_of(logits: np.ndarray, kind: str) -> np.ndarray:
    """Return (N, C): probabilities of classes sum to 1, those of labels are independent."""
    if kind == "labels":
        with np.errstate(over="ignore"):  # exp of a large number is inf, whose inverse is 0, as it should be
            return np.asarray(1 / (1 + np.exp(-logits)))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _jsonl(units: Sequence[Unit], rows: Mapping[str, Sequence[Any]], level: str) -> str:
    out = []
    begin = 0
    for u, unit in enumerate(units):
        end = begin + len(unit.words)
        answer: dict[str, Any] = {INPUT_KEY[level]: unit.words if level == "token" else "\n".join(unit.lines)}
        for task, found in rows.items():
            answer[task] = list(found[begin:end]) if level == "token" else found[u]
        out.append(json.dumps(answer, ensure_ascii=False))
        begin = end
    return "\n".join(out) + "\n" if out else ""


def _lines(rows: Mapping[str, Sequence[Any]], wanted: Wanted) -> str:
    """Return one line per line of text; tabs separate what is in it, as labels may contain blanks.

    Of one task, a line has the labels, any number of them. Of several, it has a cell for each task, so that a cell says
    by its place which task it is of: the labels in it are separated by |, and it is empty if there are none.
    """
    between = "\t" if len(rows) == 1 else BETWEEN_LABELS
    cells = ([between.join(_labels(answer, wanted)) for answer in found] for found in rows.values())
    lines = ["\t".join(of_line) for of_line in zip(*cells, strict=True)]
    return "\n".join(lines) + "\n" if lines else ""


def _labels(answer: Any, wanted: Wanted) -> list[str]:
    """Return the labels of an answer, each followed by its probability if that is wanted."""
    if not isinstance(answer, list):
        return [str(answer)]
    pairs = [each if isinstance(each, list) else [each] for each in answer]  # a value has no probability
    return [" ".join(map(str, pair if wanted.probabilities else pair[:1])) for pair in pairs]
