"""A Word2Vec in a folder: its tables and all that continued training needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.model_folder import model_in, read_model, write_model
from mt2st_fast.training.schedules import Schedule, Switch
from mt2st_fast.words.gensim_errors import NoSuchNameError

KIND = "word2vec"
_PICKLE = b"\x80"  # the first byte of one, in every protocol since the second
ARGUMENTS = (
    "vector_size", "alpha", "window", "min_count", "sample", "seed", "workers", "min_alpha", "sg", "hs", "negative",
    "ns_exponent", "cbow_mean", "epochs", "batch_words", "compute_loss", "comment", "max_final_vocab", "min_n", "max_n",
    "bucket", "max_vocab_size", "sorted_vocab", "shrink_windows",
)  # fmt: skip
STATE = (
    "losses", "task_losses", "epochs_done", "running_training_loss", "min_alpha_yet_reached", "corpus_count",
    "corpus_total_words", "effective_min_count", "train_count", "total_train_time",
)  # fmt: skip


@dataclass(frozen=True)
class StoredWord2Vec:
    """What a folder has of a Word2Vec.

    arguments: those of the constructor, without tasks and schedule. state: the attributes named in STATE. tables: by
    name, without those that the model does not have.
    """

    arguments: Mapping[str, Any]
    tasks: Mapping[str, str]
    schedule: Schedule | None  # None without tasks
    state: Mapping[str, Any]
    vocabulary: Vocabulary
    tables: Mapping[str, np.ndarray]


def save_word2vec(stored: StoredWord2Vec, folder: str | Path) -> None:
    """Write a model. Raises InputError for a folder that holds something else, and for a schedule that cannot be
    stored.
    """
    schedule = stored.schedule
    if schedule is not None and type(schedule) is not Switch:
        raise InputError(
            f"a model with tasks can only be saved with a Switch, not {type(schedule).__name__}; set model.tasks = {{}}"
        )
    configuration = {
        "arguments": dict(stored.arguments),
        "tasks": dict(stored.tasks),
        "switch_at": None if schedule is None else schedule.at,
        "state": dict(stored.state),
        "words": stored.vocabulary.words,
        "counts": stored.vocabulary.counts.tolist(),
    }
    write_model(
        folder, KIND, configuration, {name: torch.from_numpy(table) for name, table in stored.tables.items()}
    )


def read_word2vec(folder: str | Path) -> StoredWord2Vec:
    """Read a model. Raises InputError for a folder that holds no such model."""
    try:
        _check_folder(Path(folder))
        _, configuration, tensors = read_model(folder, KIND)
    except InputError as error:
        raise NoSuchNameError(str(error)) from None
    at = configuration["switch_at"]
    return StoredWord2Vec(
        configuration["arguments"],
        configuration["tasks"],
        None if at is None else Switch(at=at),
        configuration["state"],
        Vocabulary(configuration["words"], configuration["counts"]),
        {name: tensor.numpy() for name, tensor in tensors.items()},
    )


def _check_folder(folder: Path) -> None:
    """Raise InputError, saying what it is, for a file and for the folder of a run."""
    if folder.is_file():
        with folder.open("rb") as file:
            is_pickle = file.read(2)[:1] == _PICKLE
        what = "a pickle, as gensim writes, which runs code when read" if is_pickle else "a file"
        raise InputError(
            f"{folder}: is {what}, and a model is a folder here; save vectors with gensim's save_word2vec_format and "
            "read them with WordVectors.read"
        )
    if model_in(folder) != folder:
        raise InputError(
            f"{folder}: is a run of train, which has no Word2Vec; read its model with mt2st_fast.load, or its vectors "
            f"with WordVectors.read({str(folder / 'vectors.txt')!r})"
        )
