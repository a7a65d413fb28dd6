"""fastText-style training of text classifiers over bags of words and n-grams, with one head per label family."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mt2st_fast.data import TargetColumn
from mt2st_fast.data.labelled_text import DEFAULT_FAMILY, LabelledText, read_labelled_text, target_columns
from mt2st_fast.errors import InputError
from mt2st_fast.spelling import listed
from mt2st_fast.training.schedules import Schedule
from mt2st_fast.training.trainer import Trainer
from mt2st_fast.words.bag_training import BagOptions, train_bags
from mt2st_fast.words.fasttext_options import SAME, loss_of, with_fasttext_names
from mt2st_fast.words.supervised_model import SupervisedModel
from mt2st_fast.words.vectors import WordVectors

log = logging.getLogger("mt2st_fast")
MOST_NAMED = 5  # families named in one log message


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
    """Train on a file of `__label__` lines, with one head per label family, and return the model.

    path: UTF-8 text, one document per line, also as .gz. families: whether `__label__topic__sport` is the label sport
    of the family topic, or the single label `topic__sport`; by default it is split into families, and a log message
    says which were found. main: the family to optimize for, by default the first in the file; the others are auxiliary
    tasks, which `schedule` (MultiTask() by default) may retire. loss: "ova" where a document may have any number of a
    family's labels, "softmax" where it has one; by default, whichever fits the labels in the file. batch_size:
    documents per step; by default 64 to 512, by the number of documents. lr: learning rate of row-wise Adagrad, which
    falls linearly to 0; by default 0.03 to 0.2, higher for larger batches, as these take fewer steps. word_ngrams: the
    maximum length of word n-grams, which are hashed into `bucket` rows. minn, maxn: the lengths of the character
    n-grams of `<word>` that are added to the bag beside the word, hashed into the same rows, so that words that
    training never saw have a vector, too; there are none while maxn is 0. pretrained_vectors: a file of vectors to
    start from; the model also knows those of its words that the text lacks. threads: CPU threads for training, by
    default torch's setting. dropout: of the pooled vectors. seed: of the initial vectors and the order of documents.
    device: "auto" uses CUDA if it is available. label: the prefix of label words. epoch, dim, min_count: as in
    fastText. fastText's option names (wordNgrams, minCount, ...) are accepted, too. Other options go to the Trainer.

    Raises InputError for a file or a family that cannot be used and for an option out of range.
    """
    options = BagOptions(
        dim, epoch, lr, min_count, word_ngrams, bucket, minn, maxn, schedule, batch_size, dropout, seed, threads,
        device, trainer_options,
    )  # fmt: skip
    if not isinstance(path, str | os.PathLike):
        raise InputError(
            f"the input must be the path of a file of labelled lines, not a {type(path).__name__}; write them to a file"
        )
    _check_labels(label, families)
    _check_trainer_options(lr, trainer_options)
    loss = loss_of(loss)
    text = read_labelled_text(Path(path), label, families is not False)
    if families is None:
        _tell_families(path, text)
    main = text.families[0] if main is None else main
    if main not in text.families:
        raise InputError(f"{path}: has no label family {main}; available: {', '.join(text.families)}")
    order = [main, *(family for family in text.families if family != main)]
    targets = target_columns(text, order, any_of=loss == "ova")
    _check_loss(path, loss, targets)
    vectors = None if pretrained_vectors is None else _vectors(pretrained_vectors, dim)
    return train_bags(
        text.documents, targets, options, vectors, prefix=label, split_labels=families is not False
    )


def _check_labels(label: Any, families: Any) -> None:
    if not isinstance(label, str) or label.split() != [label]:
        raise InputError(f"label must be the prefix of label words, such as '__label__', not {label!r}")
    if families not in (True, False, None):
        raise InputError(f"families must be True, False or None, not {families!r}")


def _check_trainer_options(lr: float | None, trainer_options: Mapping[str, Any]) -> None:
    """Raise InputError for unknown options, and for options that would have no effect."""
    of_trainer = set(inspect.signature(Trainer).parameters) - {"encoder", "heads"}
    for name in trainer_options.keys() - of_trainer:
        near = get_close_matches(
            name, [*inspect.signature(train_supervised).parameters, *of_trainer, *SAME], 1
        )
        raise InputError(
            f"train_supervised has no option {name}{f'; did you mean {near[0]}?' if near else ''}"
        )
    if lr is not None and "optimizer" in trainer_options:
        raise InputError(
            "lr and optimizer are both given, but an optimizer has its own learning rate; leave lr out"
        )
    if trainer_options.get("weight_decay"):
        raise InputError(
            "weight_decay only applies to the Trainer's default optimizer; pass your own with optimizer="
        )


def _check_loss(path: str | Path, loss: str | None, targets: Mapping[str, TargetColumn]) -> None:
    several = [family for family, column in targets.items() if column.kind == "labels"]
    if loss == "softmax" and several:
        raise InputError(
            f"{path}: documents have several labels of the family {several[0]}, but loss='softmax' allows only one; "
            "use loss='ova', or leave it out"
        )


def _tell_families(path: str | Path, text: LabelledText) -> None:
    """Log one line about labels that contain `__` if `families` was not given."""
    if text.families == (DEFAULT_FAMILY,):
        return
    sizes = {family: len(text.labels[family].names) for family in text.families}
    named = [f"{family} ({n:,} label{'s' if n > 1 else ''})" for family, n in sizes.items()]
    log.warning(
        "%s: `__` within a label is read as the end of its family: %s; families=False takes labels whole, "
        "families=True says that they are these",
        path,
        listed(named, MOST_NAMED),
    )


def _vectors(path: str | Path, dim: int) -> WordVectors:
    """Read vectors to start from. Raises InputError for a file that cannot be read or has vectors of another length."""
    vectors = WordVectors.read(path)
    if vectors.dim != dim:
        raise InputError(f"{path}: has vectors of dimension {vectors.dim}; use dim={vectors.dim}, not {dim}")
    return vectors
