"""A Word2Vec in a folder: its tables and all that continued training needs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.model_folder import model_in, read_model, write_model
from mt2st_fast.training.schedules import Switch
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


def save_word2vec(model: Any, folder: str | Path) -> None:
    """Write a model. Raises InputError for a folder that holds something else, and for a schedule that cannot be
    stored.
    """
    if model.tasks and type(model.schedule) is not Switch:
        raise InputError(
            f"a model with tasks can only be saved with a Switch, not {type(model.schedule).__name__}; set "
            "model.tasks = {}"
        )
    configuration = {
        "arguments": {name: getattr(model, name) for name in ARGUMENTS},
        "tasks": {name: os.fspath(path) for name, path in model.tasks.items()},
        "switch_at": model.schedule.at if model.tasks else None,
        "state": {name: getattr(model, name) for name in STATE},
        "words": model.words,
        "counts": model.counts.tolist(),
    }
    tables = {"input_rows": model.input_rows, "output_vectors": model.output_vectors}
    tables |= {"node_vectors": model.node_vectors, "locks": model.lock_factors()}
    tensors = {
        name: torch.from_numpy(table) for name, table in tables.items() if table is not None and len(table)
    }
    write_model(folder, KIND, configuration, tensors)


def load_word2vec(cls: Any, folder: str | Path) -> Any:
    """Read a model. Raises InputError for a folder that holds no such model."""
    try:
        _check_folder(Path(folder))
        _, configuration, tensors = read_model(folder, KIND)
    except InputError as error:
        raise NoSuchNameError(str(error)) from None
    at = configuration["switch_at"]
    model = cls(
        **configuration["arguments"],
        tasks=configuration["tasks"],
        schedule=None if at is None else Switch(at=at),
    )
    model._know(Vocabulary(configuration["words"], configuration["counts"]))
    tables = {name: tensor.numpy() for name, tensor in tensors.items()}
    model.input_rows = tables["input_rows"]
    model.output_vectors, model.node_vectors = tables.get("output_vectors"), tables.get("node_vectors")
    model._locks = tables.get("locks", model._locks)
    for name, value in configuration["state"].items():
        setattr(model, name, value)
    model._show_vectors()
    return model


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
