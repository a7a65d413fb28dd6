"""Load a model of any kind from its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mt2st_fast.errors import InputError
from mt2st_fast.model import description
from mt2st_fast.model_folder import kind_of
from mt2st_fast.serving import text_model
from mt2st_fast.words import supervised_model, word2vec, word2vec_model

_READERS: dict[str, Callable[[str | Path], Any]] = {
    text_model.KIND: text_model.TextModel.load,
    supervised_model.KIND: supervised_model.SupervisedModel.load,
    word2vec_model.KIND: word2vec.Word2Vec.load,
    description.KIND: description.load_modules,
}


def load(folder: str | Path) -> Any:
    """Return the model in a folder: one that was saved there, or that a run of `mt2st-fast train` left in its folder.

    It is a TextModel, a SupervisedModel, a Word2Vec, or (encoder, heads). No code named in a file is run.

    Raises InputError for a folder that holds no model or a damaged one.
    """
    kind = kind_of(folder)
    if kind not in _READERS:
        raise InputError(f"{folder}: is a model of the kind {kind!r}, which this version cannot load")
    return _READERS[kind](folder)
