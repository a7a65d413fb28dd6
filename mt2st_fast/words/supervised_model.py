"""A text classifier over bags of words and n-grams, and its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.data.bag_features import BagFeatures
from mt2st_fast.data.labelled_text import DEFAULT_FAMILY, LabelledText, read_labelled_text, target_columns
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.environment import device_named
from mt2st_fast.errors import InputError
from mt2st_fast.model.description import describe, rebuild
from mt2st_fast.model.encoders import BagEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model_folder import SUPERVISED, model_in, read_model, write_model
from mt2st_fast.words.bag_scorer import BagScorer, Choice, Labeller, check_choice, checked_texts, chosen
from mt2st_fast.words.label_counts import (
    KnownLabelCounts,
    LabelCounts,
    LabelFamily,
    tell_several,
    tell_unseen,
)
from mt2st_fast.words.line_scorer import LineScorer

if TYPE_CHECKING:  # who predicts needs neither
    from mt2st_fast.exporting.writing import Exported
    from mt2st_fast.training.history import History
    from mt2st_fast.training.trainer import Trainer

KIND = SUPERVISED
LIKELY = 0.5  # for several labels per document: a label is predicted from this probability on


class Prediction(NamedTuple):
    """The likeliest labels of a document, the likeliest first: (labels, probabilities)."""

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]


class SupervisedModel:
    """The result of `train_supervised` and `load_model`: predicts labels, tests, and gives vectors of words and
    documents.

        model.save("reviews.model")
        model = load_model("reviews.model")                  # in any process: the same probabilities
        labels, probabilities = model.predict("the soup was cold", k=-1)

    `labels` are the label names by family, without their prefix; `families` also have their counts. copy.deepcopy and
    pickle keep what a folder keeps: neither the Trainer nor the history. `mt2st_fast.fasttext.load_model` shows the
    main family under all of fastText's names.
    """

    def __init__(
        self,
        features: BagFeatures,
        families: Mapping[str, LabelFamily],
        encoder: BagEncoder,
        heads: MultiTaskHeads,
        prefix: str = "__label__",
        split_labels: bool = True,
        trainer: Trainer | None = None,
    ) -> None:
        self.features, self.prefix = features, prefix
        self.encoder, self.heads = encoder, heads
        self.labels = {name: family.names for name, family in families.items()}
        self.families, self._split_labels = dict(families), split_labels
        self._trainer = trainer
        self._scorer = BagScorer(features, encoder, heads, prefix)
        self._of_lines = LineScorer(features, encoder, heads, prefix)

    # --- saving and loading -----------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the model to a folder (see mt2st_fast.model_folder), replacing a model that was there.

        Raises InputError for a folder that holds something else or cannot be written.
        """
        write_model(folder, KIND, *self._state())

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> SupervisedModel:
        """Read a model that `save` wrote. device: "auto" takes CUDA where it is available.

        Raises InputError for a folder that holds no such model or a damaged one, and for a device that is not
        available.
        """
        _, configuration, tensors = read_model(model_in(folder), KIND)
        model = cls.__new__(cls)
        model._restore(configuration, tensors, device)
        return model

    def export(
        self, file: str | Path, format: str | None = None, families: Sequence[str] | None = None
    ) -> Exported:
        """Write a graph of the main family, or of `families`, as `TextModel.export` does; its input texts are lines."""
        from mt2st_fast.exporting.models import Outputs, export_bags

        names = [self._known(family) for family in families or (self.main,)]
        tasks = {name: Outputs(self.families[name].kind, self.labels[name]) for name in names}
        return export_bags(self.encoder, self.heads, self.features, self.prefix, tasks, file, format)

    def __getstate__(self) -> dict[str, Any]:
        configuration, tensors = self._state()
        return {
            "configuration": configuration,
            "tensors": {name: tensor.detach().cpu() for name, tensor in tensors.items()},
            "device": self.device.type,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        device = state["device"] if torch.cuda.is_available() else "cpu"
        self._restore(state["configuration"], state["tensors"], device)

    def _state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        modules, tensors = describe(self.encoder, self.heads)
        features = self.features
        configuration = {
            "words": features.vocabulary.words,
            "counts": features.vocabulary.counts.tolist(),
            "word_ngrams": features.word_ngrams,
            "bucket": features.buckets,
            "minn": features.minn,
            "maxn": features.maxn,
            "labels": [
                [name, family.kind, list(family.names), list(family.counts)]
                for name, family in self.families.items()
            ],
            "prefix": self.prefix,
            "split_labels": self._split_labels,
            "dim": self.dim,
            "modules": modules,
        }
        return configuration, tensors

    def _restore(
        self, configuration: Mapping[str, Any], tensors: Mapping[str, Tensor], device: str | torch.device
    ) -> None:
        encoder, heads = rebuild(configuration["modules"], tensors)
        if not isinstance(encoder, BagEncoder):
            raise InputError(f"a classifier of bags requires a BagEncoder, not a {type(encoder).__name__}")
        counts = np.asarray(configuration["counts"], np.int64)
        features = BagFeatures(
            Vocabulary(configuration["words"], counts),
            *(configuration[name] for name in ("word_ngrams", "bucket", "minn", "maxn")),
        )
        families = {
            name: LabelFamily(kind, tuple(names), tuple(counts))
            for name, kind, names, counts in configuration["labels"]
        }
        where = device_named(device)
        SupervisedModel.__init__(
            self,
            features,
            families,
            encoder.to(where),
            heads.to(where),
            configuration["prefix"],
            configuration["split_labels"],
        )

    # --- parts ------------------------------------------------------------------------------------------

    @property
    def main(self) -> str:
        """The family that training ends on."""
        return self.heads.main

    @property
    def words(self) -> list[str]:
        """The words that have a vector of their own, the most frequent first."""
        return self.features.vocabulary.words

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return self.encoder.dim

    @property
    def device(self) -> torch.device:
        """The device that the model computes on."""
        return self._scorer.device

    @property
    def trainer(self) -> Trainer:
        """The Trainer that trained the model. Raises RuntimeError for a model that was loaded or copied."""
        if self._trainer is None:
            raise RuntimeError(
                "this model was loaded or copied; its trainer and history are not saved with it"
            )
        return self._trainer

    @property
    def history(self) -> History:
        """The history of the training. Raises RuntimeError as `trainer` does."""
        return self.trainer.history

    def prefix_of(self, family: str) -> str:
        """The prefix of a family's labels in a file: `__label__`, or `__label__tone__`."""
        return self.prefix + ("" if family == DEFAULT_FAMILY else f"{self._known(family)}__")

    def kind_of(self, family: str) -> Literal["classes", "labels"]:
        """Return "labels" if a document may have several labels of a family, else "classes"."""
        return self.families[self._known(family)].kind

    # --- predictions ------------------------------------------------------------------------------------

    @overload  # a str is a Sequence[str], too
    def predict(  # type: ignore[overload-overlap]
        self, text: str, k: int = ..., threshold: float = ..., family: str | None = ...
    ) -> Prediction: ...

    @overload
    def predict(
        self, text: Sequence[str], k: int = ..., threshold: float = ..., family: str | None = ...
    ) -> list[Prediction]: ...

    @torch.no_grad()
    def predict(
        self, text: str | Sequence[str], k: int = 1, threshold: float = 0.0, family: str | None = None
    ) -> Prediction | list[Prediction]:
        """Return the k likeliest labels (-1: all) with a probability of at least `threshold`; for a list of texts, a
        list.

        A text is one line; labels in it are not counted as words. family: the main one by default. Raises InputError
        for a text that is no string or contains a line feed, for k and threshold out of range, and for an unknown
        family.
        """
        family = self._known(family)
        check_choice(k, threshold)
        texts, wanted = checked_texts([text] if isinstance(text, str) else text), Choice(k, threshold)
        predictions = self._predicted_one_by_one(texts, family, wanted)
        if predictions is None:
            predictions = self._predicted_together(texts, family, wanted)
        return predictions[0] if isinstance(text, str) else predictions

    def _predicted_one_by_one(
        self, texts: Sequence[str], family: str, wanted: Choice
    ) -> list[Prediction] | None:
        """Return the predictions for a few texts; None where that takes longer, or where a line is refused."""
        if (found := self._of_lines.likeliest(texts, family, wanted)) is None:
            return None
        names = self.labels[family]
        return [Prediction(tuple([names[c] for c in labels]), tuple(shares)) for labels, shares in found]

    def _predicted_together(self, texts: Sequence[str], family: str, wanted: Choice) -> list[Prediction]:
        predictions: list[Prediction] = []
        names = np.array(self.labels[family], object)
        for bags in self._scorer.bags(texts):
            for (found,) in self._scorer.choices(*bags, {family: wanted}):
                rows = zip(names[found.labels].tolist(), *map(np.ndarray.tolist, found[1:]), strict=True)
                predictions += [Prediction(tuple(n[:count]), tuple(p[:count])) for n, p, count in rows]
        return predictions

    def choice(self, family: str, k: int | None = None, threshold: float | None = None) -> Choice:
        """Return which labels of a family to predict, as `mt2st-fast predict` does and `test` measures.

        Where neither k nor threshold is given, these are the likeliest label, and where a document may have several,
        all with a probability from 0.5 on; with one of the two, only that one limits them. Raises InputError as
        `predict` does.
        """
        several = self.kind_of(family) == "labels"
        if threshold is None:
            threshold = LIKELY if several and k is None else 0.0
        if k is None:
            k = -1 if several else 1
        check_choice(k, threshold)
        return Choice(k, threshold)

    def labeller(
        self, families: Sequence[str], k: int | None = None, threshold: float | None = None
    ) -> Labeller:
        """Return a function that predicts blocks of lines as numbers; see `BagScorer.labeller`.

        By default it predicts what `choice` says. Raises as `predict` does.
        """
        wanted = {family: self.choice(family, k, threshold) for family in families}
        return self._scorer.labeller(wanted, self._of_lines.probabilities)

    def test(self, path: str | Path) -> dict[str, float]:
        """Measure every family in a file: accuracy, or micro F1 where a document may have several labels.

        A label that training never saw counts as an error. Where training documents had one label each and one of the
        file has several, a prediction is right if it is any of them, as in fastText's precision at 1; one line says
        so. Raises InputError where the file cannot be read or has no known family.
        """
        return {family: self.metric(family, found) for family, found in self.label_counts(path).items()}

    def metric(self, family: str, found: LabelCounts) -> float:
        """Return the metric of a family from its counts: what `test` returns."""
        return found.micro_f1 if self.kind_of(family) == "labels" else found.accuracy

    def test_label(
        self,
        path: str | Path,
        k: int | None = None,
        threshold: float | None = None,
        family: str | None = None,
    ) -> dict[str, dict[str, float]]:
        """Return {label: {"precision": ..., "recall": ..., "f1score": ...}} for a family in a file, NaN where
        undefined.

        The predictions are the k likeliest labels with a probability of at least `threshold`, by default as `choice`
        says. Raises InputError as `test` and `predict` do.
        """
        family = self._known(family)
        return self.label_counts(path, (family,), k, threshold)[family].scores()

    @torch.no_grad()
    def label_counts(
        self,
        path: str | Path,
        families: Sequence[str] = (),
        k: int | None = None,
        threshold: float | None = None,
    ) -> dict[str, LabelCounts]:
        """Return the counts behind `test` and `test_label`, by default of all families in a file. Raises as they do."""
        wanted = {family: self.choice(family, k, threshold) for family in families or self.labels}
        text = self._read(path)
        for family in families:
            if family not in text.families:
                raise InputError(f"{path}: has no label of {family}; available: {', '.join(text.families)}")
        wanted = {family: choice for family, choice in wanted.items() if family in text.families}
        if not wanted:
            raise InputError(f"{path}: has no label of {', '.join(self.labels)}")
        found: dict[str, LabelCounts] = {}
        for family, column in target_columns(text, tuple(wanted)).items():
            tell_unseen(path, family, column, self.families[family])
            tell_several(path, family, column, self.families[family])
            found[family] = LabelCounts(column, self.families[family])
        for block in self._scorer.of_families(*self.features.bags(text.documents), tuple(wanted)):
            for counts, choice, probabilities in zip(found.values(), wanted.values(), block, strict=True):
                counts.add(chosen(probabilities, choice))
        return found

    @torch.no_grad()
    def known_label_counts(self, path: str | Path, k: int, threshold: float) -> KnownLabelCounts:
        """Return what the k likeliest labels (-1: all) of at least `threshold` get right in the main family of a file,
        over the labels of training alone. Raises InputError as `predict` does, and for a file without such a family.
        """
        check_choice(k, threshold)
        text = self._read(path)
        if self.main not in text.labels:
            raise InputError(f"{path}: has no label of {self.main}; available: {', '.join(text.families)}")
        counts = KnownLabelCounts(text.labels[self.main], text.documents.n_units, self.labels[self.main])
        for probabilities in self._scorer.probabilities(*self.features.bags(text.documents), self.main):
            counts.add(chosen(probabilities, Choice(k, threshold)))
        return counts

    # --- vectors ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def vector(self, word: str) -> np.ndarray:
        """Return the vector (dim,) float32 of any string: the mean of its own vector, if training saw it, and those of
        its n-grams.

        Zeros for a word that has neither: one that is unseen by a model trained without n-grams (`maxn=0`).
        """
        if (found := self._of_lines.vector_of_word(word)) is not None:
            return found
        _, ids = self.features.subwords(word)
        return self._scorer.vectors(ids, np.array([0, len(ids)], np.int64))[0].cpu().numpy()

    @torch.no_grad()
    def text_vector(self, text: str) -> np.ndarray:
        """Return the mean (dim,) float32 of the vectors in the bag of a line. Raises InputError as `predict` does."""
        texts = checked_texts([text])
        if (found := self._of_lines.vector_of_line(texts[0])) is not None:
            return found
        (bags,) = self._scorer.bags(texts)
        return self._scorer.vectors(*bags)[0].cpu().numpy()

    @torch.no_grad()
    def word_vectors(self) -> Tensor:
        """Return the vectors of `words`, (words, dim) float32, on the CPU."""
        return self._scorer.word_vectors()

    def _read(self, path: str | Path) -> LabelledText:
        return read_labelled_text(Path(path), self.prefix, self._split_labels)

    def _known(self, family: str | None) -> str:
        if family is not None and family not in self.labels:
            raise InputError(f"unknown label family {family}; available: {', '.join(self.labels)}")
        return self.main if family is None else family


def load_model(folder: str | Path, device: str = "auto") -> SupervisedModel:
    """fastText's name for `SupervisedModel.load`; raises the same errors."""
    return SupervisedModel.load(folder, device)
