"""A fastText-shaped door: text classifiers over bags of words and n-grams, one head for each family of labels."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mt2st_fast.data import TargetColumn
from mt2st_fast.data.labelled_text import DEFAULT_FAMILY, LabelledText, read_labelled_text, target_columns
from mt2st_fast.errors import InputError
from mt2st_fast.training.schedules import Schedule
from mt2st_fast.training.trainer import Trainer
from mt2st_fast.words.bag_training import BagOptions, train_bags
from mt2st_fast.words.fasttext_options import SAME, loss_of, with_fasttext_names
from mt2st_fast.words.supervised_model import SupervisedModel
from mt2st_fast.words.vectors import WordVectors

log = logging.getLogger("mt2st_fast")
MOST_NAMED = 5  # families in a line of the log


@with_fasttext_names
def train_supervised(
    path: str | Path,
    *,
    dim: int = 100,
    epoch: float = 5,
    lr: float | None = None,
    min_count: int = 1,
    word_ngrams: int = 1,
    bucket: int = 200_000,
    minn: int = 0,
    maxn: int = 0,
    label: str = "__label__",
    families: bool | None = None,
    loss: str | None = None,
    pretrained_vectors: str | Path | None = None,
    main: str | None = None,
    schedule: Schedule | None = None,
    batch_size: int | None = None,
    dropout: float = 0.0,
    seed: int = 1,
    threads: int | None = None,
    device: str = "auto",
    **trainer_options: Any,
) -> SupervisedModel:
    """Train on a file of `__label__` lines, one head for each label family, and return the model.

    path: UTF-8 text, a document a line, .gz too. families: whether `__label__topic__sport` is sport of the family
    topic, or a label `topic__sport`; by default it is, and a line of the log says what became of it. main: the family
    to get right, the first in the file by default; the others are auxiliary tasks, which `schedule` (MultiTask() by
    default) may let go. loss: "ova" for any of a family's labels on a document, "softmax" for one; by default as the
    file has them. batch_size: documents a step; by default 64 to 512, by their number. lr: of row-wise Adagrad, falling
    linearly to 0; by default 0.03 to 0.2, by the batch, as large ones take fewer steps. word_ngrams: up to so many
    words in a row get a vector, hashed into `bucket` rows. minn, maxn: the character n-grams of that many characters of
    `<word>` stand in the bag beside the word, hashed into the same rows, so that a word that training never saw has a
    vector too; none while maxn is 0. pretrained_vectors: a file of vectors to begin with; its other words are known to
    the model, too. threads: CPU threads to train with, torch's by default. epoch, dim, min_count: as in fastText, whose
    names of options (wordNgrams, minCount, ...) are taken, too. Other options go to the Trainer.

    Raises InputError for a file or a family that cannot be used and for an option out of range.
    """
    options = BagOptions(
        dim, epoch, lr, min_count, word_ngrams, bucket, minn, maxn, schedule, batch_size, dropout, seed, threads,
        device, trainer_options,
    )  # fmt: skip
    _check_labels(label, families)
    _check_trainer_options(lr, trainer_options)
    loss = loss_of(loss)
    text = read_labelled_text(Path(path), label, families is not False)
    if families is None:
        _tell_families(path, text)
    main = text.families[0] if main is None else main
    if main not in text.families:
        raise InputError(f"{path}: has no label family {main}; there are {', '.join(text.families)}")
    order = [main, *(family for family in text.families if family != main)]
    targets = target_columns(text, order, any_of=loss == "ova")
    _check_loss(path, loss, targets)
    vectors = None if pretrained_vectors is None else _vectors(pretrained_vectors, dim)
    return train_bags(
        text.documents, targets, options, vectors, prefix=label, split_labels=families is not False
    )


def _check_labels(label: Any, families: Any) -> None:
    if not isinstance(label, str) or label.split() != [label]:
        raise InputError(f"label must be what label words begin with, such as '__label__', not {label!r}")
    if families not in (True, False, None):
        raise InputError(f"families must be True, False or None, not {families!r}")


def _check_trainer_options(lr: float | None, trainer_options: Mapping[str, Any]) -> None:
    """Raises InputError for options that nobody knows, or that nobody would read."""
    of_trainer = set(inspect.signature(Trainer).parameters) - {"encoder", "heads"}
    for name in trainer_options.keys() - of_trainer:
        near = get_close_matches(
            name, [*inspect.signature(train_supervised).parameters, *of_trainer, *SAME], 1
        )
        raise InputError(f"train_supervised has no option {name}{f'; is {near[0]} meant?' if near else ''}")
    if lr is not None and "optimizer" in trainer_options:
        raise InputError("lr and optimizer are both given; an optimizer has a rate of its own: leave lr out")
    if trainer_options.get("weight_decay"):
        raise InputError(
            "weight_decay belongs to the Trainer's own optimizer; give optimizer= with one of yours"
        )


def _check_loss(path: str | Path, loss: str | None, targets: Mapping[str, TargetColumn]) -> None:
    several = [family for family, column in targets.items() if column.kind == "labels"]
    if loss == "softmax" and several:
        raise InputError(
            f"{path}: documents have several labels of the family {several[0]}; loss='softmax' is for one: "
            "give loss='ova', or leave it out"
        )


def _tell_families(path: str | Path, text: LabelledText) -> None:
    """One line about labels that have `__` within, whose meaning was not said."""
    if text.families == (DEFAULT_FAMILY,):
        return
    sizes = {family: len(text.labels[family].names) for family in text.families}
    named = [f"{family} ({n:,} label{'s' if n > 1 else ''})" for family, n in sizes.items()]
    more = f" and {len(named) - MOST_NAMED:,} more" if len(named) > MOST_NAMED else ""
    log.warning(
        "%s: `__` within a label is read as the end of its family: %s%s; families=False takes labels whole, "
        "families=True says that they are these",
        path,
        ", ".join(named[:MOST_NAMED]),
        more,
    )


def _vectors(path: str | Path, dim: int) -> WordVectors:
    """Vectors to begin with. Raises InputError for a file that cannot be read, or of another length."""
    vectors = WordVectors.read(path)
    if vectors.dim != dim:
        raise InputError(f"{path}: has vectors of {vectors.dim} numbers; give dim={vectors.dim}, not {dim}")
    return vectors
