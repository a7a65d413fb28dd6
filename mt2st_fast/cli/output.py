"""Where a command writes, and how often."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mt2st_fast.errors import InputError
from mt2st_fast.model_folder import RUN_CONFIG, has_comparison
from mt2st_fast.runs.options import check_options, option, positive


@dataclass(frozen=True)
class OutputOptions:
    """The folder of a run, and its checkpoints. out None: runs/ and the name of the command."""

    out: str | None = option(
        None,
        "Output",
        "folder for everything that is written; runs/train or runs/compare by default",
        short="-o",
    )
    resume: bool = option(
        False,
        "Output",
        "go on with what was stopped in --out, with its own options; train takes more --epochs",
    )
    checkpoint_every: float = option(
        10.0, "Output", "minutes between checkpoints, beside the one at the end of every epoch", test=positive
    )

    def __post_init__(self) -> None:
        """Raises InputError naming an option that cannot be used."""
        check_options(self)

    def folder(self, command: str) -> Path:
        """The folder to write to."""
        return Path("runs") / command if self.out is None else Path(self.out)

    def going_on(self, stored: Mapping[str, Any], given: Collection[str]) -> OutputOptions:
        """Of what goes on from options stored by name: as often as then, where nothing else is given now."""
        name = "checkpoint_every"
        return replace(self, checkpoint_every=stored[name]) if name in stored and name not in given else self

    @property
    def checkpoint_seconds(self) -> float:
        """Seconds between checkpoints."""
        return 60 * self.checkpoint_every


def make_writable(folder: Path) -> Path:
    """Create `folder` if need be and try it. Raises InputError where nothing can be written."""
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"--out {folder} cannot be written ({error.strerror}); choose another folder"
        ) from error
    return folder


def check_not_of(other: str, folder: Path) -> None:
    """Raises InputError where the other one of train and compare has written to the folder: both have a config.json."""
    compared = has_comparison(folder)
    found = compared if other == "compare" else not compared and (folder / RUN_CONFIG).exists()
    if found:
        what = "comparison" if other == "compare" else "run of train"
        raise InputError(
            f"--out {folder} has a {what}, which would be lost; choose another folder, or remove it"
        )
