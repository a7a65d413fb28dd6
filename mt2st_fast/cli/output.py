"""Where and how often a command writes, and what it must not overwrite."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mt2st_fast.cli.options import COMMANDS
from mt2st_fast.cli.paths import out_path
from mt2st_fast.errors import InputError
from mt2st_fast.folder_lock import check_can_write
from mt2st_fast.model_folder import RUN_CONFIG, RUN_MODEL, foreign_to_model, has_comparison
from mt2st_fast.runs.config_file import read_config_file
from mt2st_fast.runs.options import check_options, option, positive
from mt2st_fast.runs.run_facts import FACTS
from mt2st_fast.spelling import listed

CHECKPOINT = "checkpoint/last.safetensors"


@dataclass(frozen=True)
class OutputOptions:
    """The folder of a run, and its checkpoints. out: None stands for runs/ and the name of the command."""

    out: str | None = option(
        None,
        "Output",
        "output folder; runs/train or runs/compare by default",
        short="-o",
    )
    resume: bool = option(
        False,
        "Output",
        "continue the stopped run in --out with its stored options; train accepts a larger --epochs",
    )
    checkpoint_every: float = option(
        10.0,
        "Output",
        "minutes between checkpoints, in addition to the one after every epoch",
        test=positive,
    )

    def __post_init__(self) -> None:
        """Raise InputError for an option that cannot be used, naming it."""
        check_options(self)
        if self.out is not None:
            out_path(self.out)

    def folder(self, command: str) -> Path:
        """Return the folder to write to."""
        return Path("runs") / command if self.out is None else out_path(self.out)

    def resumed(self, stored: Mapping[str, Any], given: Collection[str]) -> OutputOptions:
        """Return the options of a resumed run: its stored interval of checkpoints, unless one is given now."""
        name = "checkpoint_every"
        return replace(self, checkpoint_every=stored[name]) if name in stored and name not in given else self

    @property
    def checkpoint_seconds(self) -> float:
        """The seconds between checkpoints."""
        return 60 * self.checkpoint_every


def writable(folder: Path, *, to_resume: bool = False) -> Path:
    """Return a folder that can be written to, and made if it is missing. Raises InputError if not.

    to_resume: the folder must exist, so that a mistyped name is found.
    """
    if to_resume and not folder.is_dir():
        raise InputError(f"nothing to resume in {folder}: no such folder; check --out, or leave out --resume")
    try:
        check_can_write(folder)
    except OSError as error:
        raise InputError(
            f"--out {folder} cannot be written ({error.strerror}); choose another folder"
        ) from error
    return folder


def check_not_of(other: str, folder: Path) -> None:
    """Raise InputError if the other command (train or compare) has written to the folder: both have a config.json."""
    compared = has_comparison(folder)
    found = compared if other == "compare" else not compared and (folder / RUN_CONFIG).exists()
    if found:
        what = "comparison" if other == "compare" else "training run"
        raise InputError(
            f"--out {folder} contains a {what}, which would be lost; choose another folder, or remove it"
        )


def check_not_lost(folder: Path, names: Iterable[str], own: bool) -> None:
    """Raise InputError if files that a command writes under these names would replace files from elsewhere.

    own: whether such a command has written to the folder before, so that its files may be replaced. Even then, a
    model's folder may contain nothing else, as it is replaced as a whole.
    """
    there = [] if own else [name for name in names if (folder / name).exists()]
    there += [f"{RUN_MODEL}/{name}" for name in foreign_to_model(folder / RUN_MODEL) if RUN_MODEL in names]
    if there:
        raise InputError(
            f"--out {folder} contains files that no run has written and that would be lost: "
            f"{listed(dict.fromkeys(there), 3)}; choose another folder, or move them away"
        )


def has_run(folder: Path) -> bool:
    """Whether `mt2st-fast train`, of any version, has written to a folder.

    This shows in its configuration or, if that is damaged or of another version, in the format that its other files
    name.
    """
    try:
        if "data" in read_config_file(folder / RUN_CONFIG, "train", COMMANDS["train"]):
            return True
    except InputError:
        pass
    from mt2st_fast.training.checkpoints.checkpoint import is_checkpoint  # imports torch

    return _format_of_facts(folder / FACTS).startswith("mt2st-fast run ") or is_checkpoint(
        folder / CHECKPOINT
    )


def _format_of_facts(path: Path) -> str:
    try:
        return str(json.loads(path.read_bytes())["format"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
