"""A model from the folder that a user names: that of a model, or that of a run that left one."""

from __future__ import annotations

from pathlib import Path

from mt2st_fast.errors import InputError
from mt2st_fast.model_folder import DESCRIPTION
from mt2st_fast.serving.text_model import TextModel

RUN_MODEL = "model"  # the folder's name within a run's


def model_folder_of(folder: Path) -> Path:
    """Where the model lies. Raises InputError for a run that has none yet, and for a folder that is none."""
    if (folder / DESCRIPTION).exists():
        return folder
    if (folder / RUN_MODEL).is_dir():
        return folder / RUN_MODEL
    if (folder / "config.json").exists():
        raise InputError(
            f"{folder}: the run has not ended and left no model; finish it with: "
            f"mt2st-fast train --resume --out {folder}"
        )
    return folder


def load_text_model(folder: Path) -> TextModel:
    """The tagger or classifier in a folder. Raises InputError where there is none, or it is damaged."""
    return TextModel.load(model_folder_of(folder))
