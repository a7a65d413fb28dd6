"""A trained tagger or classifier of texts: encoder, heads, words and label names; kept in a folder, asked by words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.data.batches import BagInputs, WindowInputs
from mt2st_fast.data.corpus import Corpus
from mt2st_fast.data.subwords import HashedParts, SubwordTable
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.exporting.models import WordModel, export_words
from mt2st_fast.exporting.writing import Exported
from mt2st_fast.model.description import describe, rebuild
from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model_folder import model_in, read_model, write_model
from mt2st_fast.serving.window_features import WindowFeatures
from mt2st_fast.serving.words import OpenVocabulary

KIND = "text model"
ROWS_AT_ONCE = 4096
MOST_ROWS = 4 * ROWS_AT_ONCE  # of units that are longer


@dataclass(frozen=True)
class Labels:
    """What a task's outputs stand for: kind is that of a TargetColumn (classes, labels, values), names are the C.

    never_seen: those of the names that no training row had, as development or test data alone did.
    """

    kind: str
    names: tuple[str, ...]
    never_seen: tuple[str, ...] = ()


class TextModel:
    """What a run of `mt2st-fast train` learnt: words go in and labels come out.

        model = TextModel.load("runs/train/model")
        model.predict([["They", "buy", "books", "."]])            # [["PRON", "VERB", "NOUN", "PUNCT"]]
        model.probabilities([["They", "buy", "books", "."]])      # (4, C), one row a word

    level: "token", a row is a word, or "document", a row is a text. tokenizer: how its training data cut a text into
    words (see mt2st_fast.data.text.tokenizers). text_column: of the table that it learnt from, where that was said.
    Threads may ask one model; they take turns.
    Raises ValueError for parts that do not belong together.
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
        self._turn = RLock()  # what words and windows were met is remembered, and kernels use memory again

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
        """All tasks, the main task first; those that retired are as they were when they did."""
        return self.heads.names

    def save(self, folder: str | Path) -> None:
        """Write the model to a folder, whole or not at all. Raises InputError where that cannot be done."""
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
        """Read the model that `save` wrote, or that of a run in its folder.

        Raises InputError for a folder that holds none, or is damaged.
        """
        _, stored, tensors = read_model(model_in(folder), KIND)
        encoder, heads = rebuild(stored, tensors)
        assert isinstance(encoder, WindowEncoder | BagEncoder)  # nothing else is known to `rebuild`
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
        """Write a graph of plain operators, ONNX (.onnx) or torch.export's (.pt2), and beside it its description.

        `mt2st_fast.TextInputs` makes the graph's inputs of words, by that description. format: by the file's name;
        tasks: the main one by default. Raises InputError for a task that there is not, for what cannot be written,
        and where the graph does not give the model's logits.
        """
        names = [self._known(task) for task in tasks or (self.main,)]
        return export_words(
            WordModel(self._trained, self.heads, self.vocabulary, self.table, self.tokenizer),
            {task: (self.labels[task].kind, self.labels[task].names) for task in names},
            lambda units: self.outputs(units, names),
            file,
            format,
        )

    def __reduce__(self) -> tuple[Callable[..., TextModel], tuple[Any, ...]]:
        parts = (self._trained, self.heads, self.vocabulary, self.table, self.labels)
        return type(self), (*parts, self.tokenizer, self.source, self.text_column)

    def logits(self, units: Sequence[Sequence[str]], task: str | None = None) -> Tensor:
        """(N, C) of a task, the main one by default; a row is a word of the units, or a unit (see `level`).

        Raises InputError for a task that there is not, and for units that are no lists of strings.
        """
        task = self._known(task)
        return self.outputs(units, (task,))[task]

    @torch.no_grad()
    def outputs(self, units: Sequence[Sequence[str]], tasks: Sequence[str]) -> dict[str, Tensor]:
        """(N, C) logits of each of the tasks; raises as `logits` does."""
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
            _check_units(units)  # when it is needed: to look at every word takes a while
            raise
        return {task: torch.cat(found) for task, found in parts.items()}

    def probabilities(self, units: Sequence[Sequence[str]], task: str | None = None) -> np.ndarray:
        """(N, C) float32: of classes they sum to 1, of labels each is for itself; of values, the values."""
        logits = self.logits(units, task)
        kind = self.labels[self._known(task)].kind
        if kind == "values":
            return logits.numpy()
        return (logits.softmax(1) if kind == "classes" else logits.sigmoid()).numpy()

    def predict(self, units: Sequence[Sequence[str]], task: str | None = None) -> list[Any]:
        """The likeliest class of every row; the labels of probability 0.5 and above, a tuple; the values, a tuple.

        A list for every unit where rows are words; raises as `logits` does.
        """
        found = self.shown(self.logits(units, task).numpy(), task)
        if self.level == "document":
            return found
        ends = np.cumsum([len(unit) for unit in units]).tolist()
        return [found[end - len(unit) : end] for unit, end in zip(units, ends, strict=True)]

    def shown(self, logits: np.ndarray, task: str | None = None) -> list[Any]:
        """What `predict` says of every row of logits (N, C)."""
        labels = self.labels[self._known(task)]
        if labels.kind == "classes":
            best = torch.from_numpy(logits).argmax(1).numpy()  # NumPy's takes six times as long
            return np.array(labels.names, object)[best].tolist() if len(logits) else []
        if labels.kind == "labels":
            return [tuple(labels.names[c] for c in np.flatnonzero(row >= 0)) for row in logits]
        return [tuple(row) for row in logits.tolist()]

    def _batches(self, units: Sequence[Sequence[str]]) -> list[Sequence[Sequence[str]]]:
        """Units whose rows are computed together. Raises TypeError for what has no length, such as a generator."""
        len(units)
        if any(isinstance(unit, str) for unit in units):
            raise InputError(
                "a unit is a list of words, not one string; split it, or use predict of the command line"
            )
        sizes = np.array(list(map(len, units)) if self.level == "token" else [1] * len(units), np.int64)
        part_of = (np.cumsum(sizes) - sizes) // ROWS_AT_ONCE
        ends = (np.flatnonzero(np.diff(part_of, append=-1)) + 1).tolist()
        return [units[a:b] for a, b in pairwise([0, *ends])]

    def _features(self, units: Sequence[Sequence[str]]) -> Iterator[Tensor]:
        """Of the rows of units, a block at a time: one unit may be a whole book."""
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
        """Raises InputError for a task that there is not."""
        if task not in self.heads.names:
            raise InputError(f"the model has no task {task}; there are {', '.join(self.heads.names)}")

    def _known(self, task: str | None) -> str:
        if task is None:
            return self.main
        self.check_task(task)
        return task


def _check_units(units: Any) -> None:
    """Raises InputError that names the first unit which is no list of strings."""
    if not hasattr(units, "__len__"):
        raise InputError(
            f"units are a list of lists of words, not of type {type(units).__name__}; give such a list"
        )
    for u, unit in enumerate(units):
        if not hasattr(unit, "__len__"):
            raise InputError(f"units[{u}] is {unit!r}, no list of words; give its words as strings")
        for word in unit:
            if not isinstance(word, str):
                raise InputError(
                    f"units[{u}] has {word!r} among its words, which is no string; give words as strings"
                )
