"""A trained tagger or text classifier: encoder, heads, words and label names, saved in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.data.batches import BagInputs, WindowInputs
from mt2st_fast.data.corpus import Corpus
from mt2st_fast.data.subwords import HashedParts, SubwordTable
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.model.description import describe, rebuild
from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model_folder import model_in, read_model, write_model
from mt2st_fast.serving.window_features import WindowFeatures
from mt2st_fast.serving.words import OpenVocabulary
from mt2st_fast.spelling import quoted

if TYPE_CHECKING:
    from mt2st_fast.exporting.writing import Exported

KIND = "text model"
ROWS_AT_ONCE = 4096
MOST_ROWS = 4 * ROWS_AT_ONCE  # per block of a longer unit


@dataclass(frozen=True)
class Labels:
    """The meaning of a task's outputs: kind as in a TargetColumn (classes, labels, values), and the C names.

    never_seen: names that no training row had, but only development or test data.
    """

    kind: str
    names: tuple[str, ...]
    never_seen: tuple[str, ...] = ()


class TextModel:
    """The model that a run of `mt2st-fast train` produced: words go in and labels come out.

        model = TextModel.load("runs/train/model")
        model.predict([["They", "buy", "books", "."]])            # [["PRON", "VERB", "NOUN", "PUNCT"]]
        model.probabilities([["They", "buy", "books", "."]])      # (4, C), one row per word

    A row is a word if `level` is "token", or a text if it is "document". A model may be used from several threads,
    which take turns.

    tokenizer: how the training data was split into words (see mt2st_fast.data.text.tokenizers). text_column: the text
    column of the training table, where one was given. Raises ValueError for parts that do not belong together.
    """

    def __init__(
        self,
        encoder: WindowEncoder | BagEncoder,
        heads: MultiTaskHeads,
        vocabulary: Vocabulary,
        table: SubwordTable,
        labels: Mapping[str, Labels],
        tokenizer: str,
        source: str = "",
        text_column: str | None = None,
    ) -> None:
        self.heads, self.vocabulary, self.table = heads.eval(), vocabulary, table
        self.labels, self.tokenizer, self.source = dict(labels), tokenizer, source
        self.text_column = text_column
        self._trained = encoder.eval()
        self._words = OpenVocabulary(vocabulary, table, encoder)
        self._windows = WindowFeatures()
        self._turn = RLock()  # words and windows are cached, and kernels reuse memory

    @property
    def level(self) -> str:
        """What a row of the predictions is: a "token" or a "document"."""
        return "token" if isinstance(self._trained, WindowEncoder) else "document"

    @property
    def main(self) -> str:
        """The task that training ended on."""
        return self.heads.main

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks, the main task first; retired tasks are as they were when they retired."""
        return self.heads.names

    def save(self, folder: str | Path) -> None:
        """Write the model to a folder, whole or not at all. Raises InputError where that is not possible."""
        configuration, tensors = describe(self._trained, self.heads)
        table = asdict(self.table)
        rows = torch.from_numpy(table.pop("rows"))
        configuration |= {
            "words": self.vocabulary.words,
            "counts": self.vocabulary.counts.tolist(),
            "subwords": table,
            "labels": {task: asdict(labels) for task, labels in self.labels.items()},
            "tokenizer": self.tokenizer,
            "source": self.source,
            "text_column": self.text_column,
        }
        write_model(folder, KIND, configuration, tensors | {"subwords": rows})

    @classmethod
    def load(cls, folder: str | Path) -> TextModel:
        """Read a model that `save` wrote, or the model in the folder of a run.

        Raises InputError for a folder that holds no model or a damaged one.
        """
        _, stored, tensors = read_model(model_in(folder), KIND)
        encoder, heads = rebuild(stored, tensors)
        assert isinstance(encoder, WindowEncoder | BagEncoder)  # `rebuild` makes no other
        options = dict(stored["subwords"])
        parts = HashedParts(**options.pop("parts"))
        labels = {
            task: Labels(of_task["kind"], tuple(of_task["names"]), tuple(of_task.get("never_seen", ())))
            for task, of_task in stored["labels"].items()
        }
        return cls(
            encoder,
            heads,
            Vocabulary(stored["words"], stored["counts"]),
            SubwordTable(rows=tensors["subwords"].numpy(), parts=parts, **options),
            labels,
            stored["tokenizer"],
            stored["source"],
            stored.get("text_column"),
        )

    def export(
        self, file: str | Path, format: str | None = None, tasks: Sequence[str] | None = None
    ) -> Exported:
        """Write a graph of plain operators, ONNX (.onnx) or torch.export's (.pt2), and its description beside it.

        `mt2st_fast.TextInputs` turns words into inputs of the graph, by that description. format: by default, from the
        name of the file. tasks: the main one by default. Raises InputError for an unknown task, for a model that cannot
        be exported, and where the graph does not reproduce the model's logits.
        """
        from mt2st_fast.exporting.models import (
            Outputs,
            WordModel,
            export_words,
        )  # who predicts does not need it

        names = [self._known(task) for task in tasks or (self.main,)]
        return export_words(
            WordModel(self._trained, self.heads, self.vocabulary, self.table, self.tokenizer),
            {task: Outputs(self.labels[task].kind, self.labels[task].names) for task in names},
            lambda units: self.outputs(units, names),
            file,
            format,
        )

    def __reduce__(self) -> tuple[Callable[..., TextModel], tuple[Any, ...]]:
        parts = (self._trained, self.heads, self.vocabulary, self.table, self.labels)
        return type(self), (*parts, self.tokenizer, self.source, self.text_column)

    def logits(self, units: Sequence[Sequence[str]], task: str | None = None) -> Tensor:
        """Return the logits (N, C) of a task, the main one by default; a row is a word or a whole unit (see `level`).

        Raises InputError for an unknown task, and for units that are not lists of strings.
        """
        task = self._known(task)
        return self.outputs(units, (task,))[task]

    @torch.no_grad()
    def outputs(self, units: Sequence[Sequence[str]], tasks: Sequence[str]) -> dict[str, Tensor]:
        """Return the logits (N, C) of each of the tasks; raises as `logits` does."""
        names = [self._known(task) for task in tasks]
        parts: dict[str, list[Tensor]] = {
            task: [torch.zeros(0, self.heads.linear(task).out_features)] for task in names
        }
        try:
            for some in self._batches(units):
                with self._turn:
                    for features in self._features(some):
                        for task, found in parts.items():
                            found.append(self.heads.logits(features, task))
        except TypeError:
            _check_units(units)  # only now, as checking every word takes a while
            raise
        return {task: torch.cat(found) for task, found in parts.items()}

    def probabilities(self, units: Sequence[Sequence[str]], task: str | None = None) -> np.ndarray:
        """Return (N, C) float32: probabilities of classes sum to 1, those of labels are independent; for values, the
        values.
        """
        logits = self.logits(units, task)
        kind = self.labels[self._known(task)].kind
        if kind == "values":
            return logits.numpy()
        return (logits.softmax(1) if kind == "classes" else logits.sigmoid()).numpy()

    def predict(self, units: Sequence[Sequence[str]], task: str | None = None) -> list[Any]:
        """Return for every row the likeliest class, a tuple of the labels with probability 0.5 and above, or a tuple of
        values.

        Where rows are words, the result has one list per unit. Raises as `logits` does.
        """
        found = self.shown(self.logits(units, task).numpy(), task)
        if self.level == "document":
            return found
        ends = np.cumsum([len(unit) for unit in units]).tolist()
        return [found[end - len(unit) : end] for unit, end in zip(units, ends, strict=True)]

    def shown(self, logits: np.ndarray, task: str | None = None) -> list[Any]:
        """Return what `predict` returns for every row of logits (N, C)."""
        labels = self.labels[self._known(task)]
        if labels.kind == "classes":
            best = torch.from_numpy(logits).argmax(1).numpy()  # NumPy's argmax takes six times as long
            return np.array(labels.names, object)[best].tolist() if len(logits) else []
        if labels.kind == "labels":
            return [tuple(labels.names[c] for c in np.flatnonzero(row >= 0)) for row in logits]
        return [tuple(row) for row in logits.tolist()]

    def _batches(self, units: Sequence[Sequence[str]]) -> list[Sequence[Sequence[str]]]:
        """Group units whose rows are computed together. Raises TypeError for input without a length, such as a
        generator.
        """
        len(units)
        if any(isinstance(unit, str) for unit in units):
            raise InputError(
                "a unit must be a list of words, not one string; split it, or use the command mt2st-fast predict"
            )
        sizes = np.array(list(map(len, units)) if self.level == "token" else [1] * len(units), np.int64)
        part_of = (np.cumsum(sizes) - sizes) // ROWS_AT_ONCE
        ends = (np.flatnonzero(np.diff(part_of, append=-1)) + 1).tolist()
        return [units[a:b] for a, b in pairwise([0, *ends])]

    def _features(self, units: Sequence[Sequence[str]]) -> Iterator[Tensor]:
        """Yield the features of the rows of units, block by block, as one unit may be a whole book."""
        ids = self._words.ids(list(chain.from_iterable(units)))
        bounds = np.cumsum([0, *map(len, units)])
        corpus = Corpus(ids, bounds, {}, self.level)
        rows, encoder = np.arange(corpus.n_rows), self._words.encoder
        if isinstance(encoder, BagEncoder):
            features: Tensor = encoder(BagInputs(corpus)(rows))
            yield features
            return
        windows = WindowInputs(corpus, encoder.width // 2)
        for first in range(0, len(rows), MOST_ROWS):
            some = windows(rows[first : first + MOST_ROWS])
            yield self._windows(encoder, some, self._words.times_forgotten)

    def check_task(self, task: str) -> None:
        """Raise InputError for an unknown task."""
        if task not in self.heads.names:
            known = self.heads.names
            raise InputError(f"the model has no task {task}; available: {', '.join(known)}{quoted(known)}")

    def _known(self, task: str | None) -> str:
        if task is None:
            return self.main
        self.check_task(task)
        return task


def _check_units(units: Any) -> None:
    """Raise InputError, naming the first unit that is not a list of strings."""
    if not hasattr(units, "__len__"):
        raise InputError(f"units must be a list of lists of words, not of type {type(units).__name__}")
    for u, unit in enumerate(units):
        if not hasattr(unit, "__len__"):
            raise InputError(f"units[{u}] is {unit!r}, not a list of words; pass its words as strings")
        for word in unit:
            if not isinstance(word, str):
                raise InputError(
                    f"units[{u}] contains {word!r}, which is not a string; pass words as strings"
                )
