"""What is done of a comparison, on disk after every run: one that was stopped goes on with the run that it was in."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mt2st_fast.data import Splits
from mt2st_fast.errors import InputError
from mt2st_fast.files import write_atomically
from mt2st_fast.runs.config import Config

FILE = "compare.progress.json"
CHECKPOINT = "checkpoint/last.safetensors"


@dataclass
class Progress:
    """The runs of a comparison, by strategy in the order of seeds, and the one at hand.

    current: [strategy, seed] of the run whose checkpoint lies in the folder, if it has got so far.
    """

    config: Config
    strategies: list[str]
    seeds: int
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    current: list[Any] = field(default_factory=list)
    data: str = ""  # the digest of the first seed's data

    def check_data(self, splits: Splits) -> None:
        """Raises InputError where runs that are over were of other data."""
        corpora = (splits.train, splits.dev, splits.test)
        digest = " ".join(corpus.digest(splits.tasks)[:16] for corpus in corpora)
        if self.data not in ("", digest):
            raise InputError(
                f"{self.config.data} has changed since the comparison began: give the data of then, or compare anew, "
                "without --resume"
            )
        self.data = digest

    @property
    def n_done(self) -> int:
        """Runs that are over."""
        return sum(map(len, self.runs.values()))

    @property
    def n_all(self) -> int:
        """Runs of the whole comparison."""
        return len(self.strategies) * self.seeds

    def is_done(self, strategy: str, seed: int) -> bool:
        """Whether that run is over."""
        return any(run["seed"] == seed for run in self.runs.get(strategy, ()))

    def begin(self, folder: Path, strategy: str, seed: int) -> bool:
        """Note that this run is at hand; whether it goes on from the checkpoint of a run that was stopped."""
        checkpoint = folder / CHECKPOINT
        if self.current == [strategy, seed] and checkpoint.exists():
            return True
        checkpoint.unlink(missing_ok=True)
        self.current = [strategy, seed]
        self.write(folder)
        return False

    def end(self, folder: Path, strategy: str, summary: dict[str, Any]) -> None:
        """Note that the run at hand is over."""
        self.runs.setdefault(strategy, []).append(summary)
        self.current = []
        self.write(folder)

    def write(self, folder: Path) -> None:
        """To the folder."""
        write_atomically(folder / FILE, json.dumps(asdict(self), indent=2).encode())

    @classmethod
    def read(cls, folder: Path) -> Progress:
        """What `write` wrote. Raises InputError where there is none, or where it is damaged."""
        path = folder / FILE
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**stored, "config": Config.from_json(stored["config"])})
        except FileNotFoundError:
            raise InputError(
                f"there is no comparison to resume in {folder}: {FILE} is missing; compare without --resume"
            ) from None
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} is damaged ({error}); compare again without --resume") from error

    @staticmethod
    def clear(folder: Path) -> None:
        """Remove what is for going on alone."""
        for name in (FILE, CHECKPOINT):
            (folder / name).unlink(missing_ok=True)
        if (folder / CHECKPOINT).parent.is_dir() and not any((folder / CHECKPOINT).parent.iterdir()):
            (folder / CHECKPOINT).parent.rmdir()
